"""Dump: everything that the target holds, read at once as text, so that only rows that seem to differ from
the mart are looked up there.

A dump proves that a row is the same: what the target would read from the text that we send is what it shows
with that text. It does not prove that a row differs, because one value may have several texts.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import duckdb

from retl.destinations.batch import Field, Unshown
from retl.engine import alike, change_set, held
from retl.engine.alike import Alike
from retl.engine.diff import CANDIDATES
from retl.engine.mapping import FieldMap
from retl.engine.workspace import Workspace
from retl.values import csv_text

_MET = "met"  # key, row, hash, owned, ref, same: each row of the dump, with the row of the mart of its key
_LONGEST = 16 << 20  # bytes of a row
_PART = 32 << 20  # bytes of a file, about
_PARTS = "dump-*.csv"


def fields(field_map: FieldMap) -> list[Field]:
    """The fields whose texts the dump must have."""
    return [one for one in field_map.shape.fields if one.compared]


def load(workspace: Workspace, field_map: FieldMap, chunks: Iterable[bytes], *, counts: bool) -> bool:
    """Read chunks of CSV: add them up for `find_alike` if it `counts`, else create held.SCAN with the texts.
    False, and nothing was made, if the target cannot show a row, or DuckDB cannot read it: it is too long, or
    not UTF-8."""
    _remove(workspace)  # what an attempt left that failed half way
    try:
        for number, part in enumerate(csv_text.Parts(chunks, _PART)):
            workspace.save(_PARTS.replace("*", str(number)), part)
    except Unshown:
        _remove(workspace)
        return False
    if not _files(workspace):  # the target has no rows
        workspace.save(_PARTS.replace("*", "0"), ())
    try:
        if counts:
            alike.add_up(workspace, _rows(workspace, field_map), _texts(field_map))
        else:
            _keep(workspace, field_map, "TRUE")
    except duckdb.InvalidInputException:
        _remove(workspace)
        return False
    return True


def find_alike(workspace: Workspace, field_map: FieldMap) -> Alike:
    """The rows that mart, baseline and dump have alike, found in bulk. Creates held.SCAN of the others."""
    found = alike.find(workspace, field_map, _sent(field_map))
    _keep(workspace, field_map, found.others)
    return found


def _rows(workspace: Workspace, field_map: FieldMap) -> str:
    """SQL of the rows of the files."""
    columns = dict.fromkeys([*held.key_columns(field_map), *_texts(field_map)], "VARCHAR")
    read = csv_text.reading(_files(workspace), columns, _LONGEST)
    return held.scanned(field_map, read, _texts(field_map))


def _keep(workspace: Workspace, field_map: FieldMap, among: str) -> None:
    """Create held.SCAN from the rows of the files that match the SQL predicate `among`."""
    workspace.run(f"CREATE TABLE {held.SCAN} AS FROM ({_rows(workspace, field_map)}) WHERE {among}")
    _remove(workspace)


def _files(workspace: Workspace) -> list[Path]:
    return sorted(workspace.directory.glob(_PARTS))


def _remove(workspace: Workspace) -> None:
    for path in _files(workspace):
        path.unlink()


def meet(workspace: Workspace, field_map: FieldMap, among: str = "TRUE") -> None:
    """Compare the rows of the dump that match the SQL predicate `among` with the due rows of the mart; those
    that are the same are no candidates any more. That is a row of which the target has just this key, no
    other that it takes for the same, and each text that would be sent."""
    equal = [
        f"{text} IS NOT DISTINCT FROM s.{name}"
        for text, name in zip(_sent(field_map), _texts(field_map), strict=True)
    ]
    several = "times > 1"
    if field_map.folds:
        several = f"folded IN (SELECT folded FROM {held.SCANNED} GROUP BY folded HAVING sum(times) > 1)"
    once = f"s.key NOT IN (SELECT key FROM {held.SCANNED} WHERE {several})"
    same = " AND ".join(["m.row IS NOT NULL", once, *equal])
    workspace.run(
        f"CREATE TABLE {_MET} AS SELECT s.key, m.row, m.hash, m.owned, m.ref, {same} AS same"
        f" FROM (FROM {held.SCAN} WHERE {among}) s"
        f" LEFT JOIN ({change_set.due_rows(workspace, field_map)}) m ON m.key = s.key"
    )
    workspace.run(f"DROP TABLE {held.SCAN}")
    workspace.run(f"DELETE FROM {CANDIDATES} WHERE row IN (SELECT row FROM {_MET} WHERE same)")


def same() -> str:
    """SQL of the rows that are the same, as COMPARED has them."""
    return f"SELECT row AS pos, key, hash, owned, ref FROM {_MET} WHERE same"


def others() -> str:
    """SQL of the keys that no row of the mart has just so."""
    return f"SELECT key FROM {_MET} WHERE row IS NULL"


def _sent(field_map: FieldMap) -> list[str]:
    """SQL of the texts that would be sent, over the payload `m`."""
    return [
        f"CAST({csv_text.csv_sql(one.type, f'm.f{i}')} AS VARCHAR)"
        for i, one in enumerate(field_map.shape.fields)
        if one.compared
    ]


def _texts(field_map: FieldMap) -> list[str]:
    return [f"t{i}" for i in range(len(fields(field_map)))]
