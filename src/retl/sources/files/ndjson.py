"""JSON lines as a relation of texts, one column for each key that is asked for.

DuckDB reads JSON numbers as doubles, also for a DECIMAL: 12345678901234567.89 becomes 12345678901234567.8152.
So a number that would change is made a string first, and nothing of it is lost.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, Mismatch
from retl.sources.files.relation import Partitions, Relation, listed
from retl.values.sql import literal, quoted
from retl.values.types import Type

_DRIFT_LOOK = 10_000  # records that probably have every key
# JSON numbers that would change on their way through a double: their text is kept as a string that begins
# with a token nobody can know. In `_NUMBER` a string is matched first, so that its contents are no numbers.
_DOUBTFUL = (
    r"[:,\[\s]-?(?:[0-9]+\.[0-9]*0|0\.0000[0-9]*|[0-9]+(?:\.[0-9]+)?[eE][-+]?[0-9]+|(?i:nan|inf[a-z]*))[,}\]\s]"
    r"|-0[,}\]\s]|[0-9.]{16}"
)
_NUMBER = r'("(?:[^"\\]|\\.)*")|(-?(?:[0-9][-+0-9.eE]*|(?i:nan|inf[a-z]*)))'


def relation(
    workspace: Workspace,
    files: Mapping[str, Path],
    partitions: Partitions,
    types: Mapping[str, Type],
    optional: Iterable[str],
) -> Relation:
    if not types:
        raise DefinitionError(
            "OPTION_MISSING",
            "ndjson needs to know its columns and their types",
            hint="give the sync a contract, or `columns` under its source",
        )
    own = {name: type for name, type in types.items() if name not in partitions.types}
    lines = f"read_json_objects({listed(files.values())}, format = 'newline_delimited', {partitions.options})"
    _refuse_unknown(workspace, lines, [name for name in own if name not in set(optional)])
    token = secrets.token_hex(8)
    shape = json.dumps(dict.fromkeys(own, "VARCHAR"))
    folders = "".join(f", {quoted(name)}" for name in partitions.types)
    values = ", ".join(f"{_restored(name, type, token)} AS {quoted(name)}" for name, type in own.items())
    record = f"from_json(CAST({_exact('line', token)} AS JSON), {literal(shape)})"
    lined = f'SELECT CAST("json" AS VARCHAR) AS line{folders} FROM {lines}'
    sql = f"SELECT {values}{folders} FROM (SELECT {record} AS record{folders} FROM ({lined}))"
    texts = own | partitions.types
    return Relation(sql, dict.fromkeys(texts, "VARCHAR"), texts)


def _exact(line: str, token: str) -> str:
    """SQL for a line in which every doubtful number is a string with all its characters."""
    marked = rf"regexp_replace({line}, {literal(_NUMBER)}, '\1' || chr(1) || '\2' || chr(2), 'g')"
    kept = f"replace({marked}, chr(1) || chr(2), '')"
    kept = f"replace(replace({kept}, chr(1), '\"{token}'), chr(2), '\"')"
    return f"CASE WHEN regexp_matches({line}, {literal(_DOUBTFUL)}) THEN {kept} ELSE {line} END"


def _restored(name: str, type: Type, token: str) -> str:
    """SQL for the text of a key, its numbers as they were written."""
    value = f"struct_extract(record, {literal(name)})"
    if type.name in ("json", "list"):
        return f"""regexp_replace({value}, '"{token}([^"]*)"', '\\1', 'g')"""
    return f"replace({value}, '{token}', '')"


def _refuse_unknown(workspace: Workspace, lines: str, names: Sequence[str]) -> None:
    """Mismatch SOURCE_DRIFT if no record has one of the keys. Most files show all keys at once."""
    missing, some = list(names), f"(SELECT * FROM {lines} LIMIT {_DRIFT_LOOK})"
    for where in (some, lines):
        if not missing:
            return
        asked = ", ".join(
            f'coalesce(bool_or(list_contains(json_keys("json"), {literal(n)})), FALSE)' for n in missing
        )
        total, *seen = workspace.one(f"SELECT count(*), {asked} FROM {where}")
        if not total:
            return
        missing = [name for name, is_there in zip(missing, seen, strict=True) if not is_there]
    if missing:
        raise Mismatch(
            "SOURCE_DRIFT",
            f"no record of the files has {', '.join(missing)}",
            hint="correct the contract; list keys that all records may lack under `optional` of the source",
        )
