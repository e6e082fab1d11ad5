"""Dump: everything that the target holds, read at once as text, so that only rows that seem to differ from
the mart are looked up there.

A dump proves that a row is the same: what the target would read from the text that we send is what it shows
with that text. It does not prove that a row differs, because one value may have several texts.
"""

from __future__ import annotations

from collections.abc import Iterable

import duckdb

from retl.destinations.batch import Field
from retl.engine import change_set, held
from retl.engine.diff import CANDIDATES
from retl.engine.mapping import FieldMap
from retl.engine.workspace import Workspace
from retl.values import csv_text
from retl.values.sql import literal

_MET = "met"  # key, row, hash, owned, ref, same: each row of the dump, with the row of the mart of its key
_LAYOUT = (
    "auto_detect = false, header = false, delim = ',', quote = '\"', escape = '\"', nullstr = '',"
    f" allow_quoted_nulls = false, max_line_size = {16 << 20}"
)


def fields(field_map: FieldMap) -> list[Field]:
    """The fields whose texts the dump must have."""
    return [one for one in field_map.shape.fields if one.compared]


def load(workspace: Workspace, field_map: FieldMap, chunks: Iterable[bytes]) -> bool:
    """Create held.SCANNED and the texts from chunks of CSV. False, and nothing was made, if DuckDB cannot
    read it: a row is too long, or not UTF-8."""
    path = workspace.save("dump.csv", chunks)
    names = [*held.key_columns(field_map), *_texts(field_map)]
    columns = ", ".join(f"{name}: 'VARCHAR'" for name in names)
    try:
        held.keep_scan(
            workspace,
            field_map,
            f"read_csv({literal(str(path))}, {_LAYOUT}, columns = {{{columns}}})",
            _texts(field_map),
        )
    except duckdb.InvalidInputException:
        return False
    finally:
        path.unlink()
    return True


def meet(workspace: Workspace, field_map: FieldMap) -> None:
    """Compare the dump with the due rows of the mart; those that are the same are no candidates any more.
    That is a row of which the target has the key once, and each text that would be sent."""
    sent = [
        f"CAST({csv_text.csv_sql(one.type, f'm.f{i}')} AS VARCHAR)"
        for i, one in enumerate(field_map.shape.fields)
        if one.compared
    ]
    equal = [
        f"{text} IS NOT DISTINCT FROM s.{name}" for text, name in zip(sent, _texts(field_map), strict=True)
    ]
    once = f"s.key NOT IN (SELECT key FROM {held.SCANNED} WHERE times > 1)"
    alike = " AND ".join(["m.row IS NOT NULL", once, *equal])
    workspace.run(
        f"CREATE TABLE {_MET} AS SELECT s.key, m.row, m.hash, m.owned, m.ref, {alike} AS same"
        f" FROM {held.SCAN} s LEFT JOIN ({change_set.due_rows(workspace, field_map)}) m ON m.key = s.key"
    )
    workspace.run(f"DROP TABLE {held.SCAN}")
    workspace.run(f"DELETE FROM {CANDIDATES} WHERE row IN (SELECT row FROM {_MET} WHERE same)")


def same() -> str:
    """SQL of the rows that are the same, as COMPARED has them."""
    return f"SELECT row AS pos, key, hash, owned, ref FROM {_MET} WHERE same"


def others() -> str:
    """SQL of the keys that no row of the mart has just so."""
    return f"SELECT key FROM {_MET} WHERE row IS NULL"


def _texts(field_map: FieldMap) -> list[str]:
    return [f"t{i}" for i in range(len(fields(field_map)))]
