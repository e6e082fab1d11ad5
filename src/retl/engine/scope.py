"""The scope of a mirror: for which keys a row that is not in the mart was deleted.

`deletes: {within: …}` is a condition over the columns of the key, because of a row that left the mart nothing
else is known. A key for which it is false or NULL is never deleted. It decides about no row of the mart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import date
from typing import Any

import duckdb
from msgspec import Struct

from retl.engine.baseline import BASELINE
from retl.engine.diff import CANDIDATES
from retl.engine.hash import ROWS
from retl.engine.mapping import FieldMap
from retl.engine.sql_text import first_line, select
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError
from retl.values.keys import key_value_sql
from retl.values.sql import quoted
from retl.values.storage import storage_type

IN_SCOPE = "in_scope"  # key: those of the baseline that a mirror may delete
_CLOCK = re.compile(
    r"(?<![$\"\w])((?:now|today|random|uuid|get_current_\w+)(?=\s*\()|current_(?:date|time|timestamp)\b"
    r"|localtime(?:stamp)?\b)",
    re.IGNORECASE,
)


class Scope(Struct, frozen=True):
    """A condition over the key's columns, and the values of its parameters."""

    condition: str
    parameters: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> Scope:
        found = json.loads(text)
        named = found["parameters"].items()
        days = {name: date.fromisoformat(v["day"]) for name, v in named if isinstance(v, dict)}
        return cls(found["condition"], {**found["parameters"], **days})

    def text(self) -> str:
        """It as a checkpoint keeps it."""
        found = {"condition": self.condition, "parameters": dict(self.parameters)}
        return json.dumps(found, sort_keys=True, default=lambda day: {"day": str(day)})


class Scoped(Struct, frozen=True):
    """`known`: keys of the baseline in the scope; `read`: whether a row of the mart is in it."""

    known: int
    read: bool


def check(field_map: FieldMap, within: str, variables: Mapping[str, Any], sync: str) -> Scope:
    """The scope of a sync. DefinitionError SCOPE_INVALID if it is no condition over the key's columns."""
    where = f"sync {sync}: deletes"
    if found := _CLOCK.search(within):
        raise DefinitionError(
            "SCOPE_INVALID",
            f"`within` uses {found[0]}, which is another value in every run",
            hint="give the day as a variable: `vars: {start: today}` and $start",
            where=where,
        )
    if field_map.key != field_map.mart_key:
        raise DefinitionError(
            "SCOPE_INVALID", "`within` is not possible where the key is sent transformed", where=where
        )
    query = select(f"SELECT ({within}\n) AS inside FROM source", variables, "within")
    listed = ", ".join(
        f"{quoted(one.column or one.name)} {storage_type(one.type)}" for one in field_map.shape.key
    )
    problem = "it is no condition"
    with duckdb.connect(config={"enable_external_access": "false"}) as alone:
        alone.execute(f"CREATE TABLE source ({listed})")
        try:
            answer = alone.execute(query.sql, dict(query.parameters)).description or []
            if [str(kind) for _, kind, *_ in answer] == ["BOOLEAN"]:
                return Scope(within, query.parameters)
        except duckdb.Error as refusal:
            problem = first_line(refusal)
    raise DefinitionError(
        "SCOPE_INVALID",
        f"`within` is a condition over the columns of the key: {problem}",
        hint="of a row that left the mart only the key is known: put the column into the key",
        where=where,
    )


def find(workspace: Workspace, field_map: FieldMap, scope: Scope) -> Scoped:
    """Create IN_SCOPE from BASELINE, and look for a row of the mart in the scope."""
    known = _inside(field_map, scope, BASELINE)
    workspace.run(f"CREATE OR REPLACE TABLE {IN_SCOPE} AS {known}", scope.parameters)
    mart = _inside(field_map, scope, f"(SELECT key FROM {ROWS} WHERE fault IS NULL)")
    read = bool(workspace.run(f"{mart} LIMIT 1", scope.parameters))
    return Scoped(int(workspace.one(f"SELECT count(*) FROM {IN_SCOPE}")[0]), read)


def grown(workspace: Workspace, field_map: FieldMap, former: Scope) -> int:
    """How many due deletes were outside the scope that the sync had before."""
    due = f"(SELECT key FROM {CANDIDATES} WHERE op = 'delete' AND ending IS NULL)"
    (number,) = workspace.one(f"SELECT count(*) FROM {due}")
    try:
        inside = workspace.run(f"SELECT count(*) FROM ({_inside(field_map, former, due)})", former.parameters)
    except duckdb.Error:  # it was over a column that the key no longer has
        return int(number)
    return int(number) - int(inside[0][0])


def _inside(field_map: FieldMap, scope: Scope, keys: str) -> str:
    """SQL of the keys of a relation for which the condition is true."""
    types = [one.type for one in field_map.shape.key]
    columns = ", ".join(
        f"{key_value_sql(types, i, 'key')} AS {quoted(one.column or one.name)}"
        for i, one in enumerate(field_map.shape.key)
    )
    return (
        f'SELECT "retl key" AS key FROM (SELECT key AS "retl key", {columns} FROM {keys})'
        f" WHERE coalesce(({scope.condition}\n), FALSE)"
    )
