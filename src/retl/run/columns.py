"""Columns that a definition leaves to the mart: what the last good run took of them, and who else writes
their fields.

Without a contract a sync sends whatever the mart has. So the columns and types are compared with those of the
last good run, and the fields with those that other syncs of the object last wrote. It reads no rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from retl.engine.mapping import FieldMap
from retl.errors import DefinitionError
from retl.ledger import Ledger
from retl.project.definitions import Sync
from retl.project.fields import Neighbour
from retl.run.guards import Refusal
from retl.values.types import of_duckdb

_SHOWN = 5


def followed(sync: Sync, field_map: FieldMap, columns: Mapping[str, str]) -> str:
    """Per field its column and that column's type, where only the mart says the type; as JSON, for the
    fingerprints of a baseline."""
    contract = sync.contract
    if contract is not None and contract.columns is None:  # a model has all types
        return "{}"
    written = contract.columns if contract is not None and contract.columns is not None else {}
    typed = {name for name, one in written.items() if one.type is not None}
    return json.dumps(
        {
            field.name: [field.column, _kind(columns[field.column])]
            for field in field_map.shape.fields
            if field.column is not None and field.column in columns and field.column not in typed
        }
    )


def drifted(
    former: Mapping[str, str], now: Mapping[str, str], field_map: FieldMap, columns: Mapping[str, str]
) -> Iterator[Refusal]:
    """SOURCE_DRIFT if a field's column left the mart or has another type than at the last good run. What the
    definition itself took away is no drift: a field that another column fills, a column that is still there.
    """
    then = json.loads(former.get("follows", "{}"))
    today = json.loads(now["follows"])
    written = {field.name for field in field_map.shape.fields}
    gone = [column for name, (column, _) in then.items() if name not in written and column not in columns]
    retyped = [
        f"{column} was {kind} and is {today[name][1]}"
        for name, (column, kind) in then.items()
        if name in today and today[name][0] == column and today[name][1] != kind
    ]
    found = [f"has no column {_listed(gone)} any more"] if gone else []
    found += [f"has other types: {_listed(retyped)}"] if retyped else []
    if found:
        yield Refusal(
            "SOURCE_DRIFT",
            f"since the last good run the mart {' and '.join(found)}",
            "fix the mart; or --accept SOURCE_DRIFT takes the columns as they are: what a lost column wrote"
            " stays at the target",
        )


def require_own(ledger: Ledger, sync: Sync, field_map: FieldMap, neighbours: Mapping[str, Neighbour]) -> None:
    """DefinitionError FIELD_SHARED if another sync of the object writes one of the fields: by its definition,
    or where that leaves it to the mart, in its last good run."""
    written = {field.name for field in field_map.shape.fields}
    for name, other in neighbours.items():
        theirs = set(other.fields)
        if other.follows:
            found = ledger.checkpoints(name)
            newest = max(found, key=lambda one: one.run_id, default=None)
            theirs |= json.loads(newest.fingerprints.get("types", "{}")).keys() if newest else set()
        if shared := sorted(written & theirs):
            raise DefinitionError(
                "FIELD_SHARED",
                f"sync {name!r} writes the same fields of this object: {_listed(shared)}",
                hint="let only one sync write a field: `fields` says which ones are this sync's. If"
                f" {name!r} does not write them any more, run it first",
                where=f"sync {sync.name}",
            )


def _kind(column_type: str) -> str:
    """The type without digits: values of a decimal with other digits are judged one by one."""
    found = of_duckdb(column_type)
    return column_type if found is None else "decimal" if found.name == "decimal" else str(found)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
