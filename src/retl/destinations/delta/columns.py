"""The columns of a Delta table: which hold a contract's values exactly, and the SQL that makes them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retl.destinations.batch import Field, Shape
from retl.destinations.drift import fills
from retl.destinations.held import sql_type
from retl.errors import Mismatch
from retl.values.sql import quoted
from retl.values.types import Type

_DELTA = {
    "integer": "long",
    "float": "double",
    "boolean": "boolean",
    "date": "date",
    "timestamp": "timestamp_ntz",
    "timestamptz": "timestamp",
}
Column = Mapping[str, Any]  # as the schema has it in JSON


def delta_type(type_: Type) -> Any:
    """The type of Delta, as its schema has it in JSON."""
    if type_.name == "decimal":
        return f"decimal({type_.max_digits},{type_.decimal_places})"
    if type_.name == "list":
        return {"type": "array", "elementType": delta_type(type_.item), "containsNull": True}
    return _DELTA.get(type_.name, "string")


def column(field: Field) -> dict[str, Any]:
    return {"name": field.name, "type": delta_type(field.type), "nullable": True, "metadata": {}}


def schema(fields: Sequence[Field]) -> dict[str, Any]:
    return {"type": "struct", "fields": [column(one) for one in fields]}


def shown(type_: Any) -> str:
    """A type as people write it."""
    if isinstance(type_, str):
        return type_
    if type_.get("type") == "array":
        return f"array<{shown(type_['elementType'])}>"
    return str(type_.get("type"))


def selected(fields: Sequence[Field]) -> str:
    """SQL of columns of a Parquet file of rows, as the table has them."""
    return ", ".join(
        f"CAST({quoted(one.name)} AS {sql_type(one.type)}) AS {quoted(one.name)}" for one in fields
    )


def judge(columns: Sequence[Column], shape: Shape, label: str, *, create: bool) -> list[Field]:
    """The fields that the table lacks and `create` adds. Mismatch TARGET_DRIFT."""
    theirs = {one["name"]: one for one in columns}
    missing = list[Field]()
    for field in (*shape.key, *shape.fields):
        found = theirs.pop(field.name, None)
        if found is None and create and field not in shape.key:
            missing.append(field)
        elif found is None:
            hint = f"add a column {field.name} of type {shown(delta_type(field.type))}; {fills(shape.write)}"
            raise Mismatch("TARGET_DRIFT", f"the table {label} has no column {field.name}", hint=hint)
        elif not _same(found["type"], delta_type(field.type)):
            wanted = shown(delta_type(field.type))
            raise Mismatch(
                "TARGET_DRIFT",
                f"the column {field.name} of {label} is {shown(found['type'])}, and {field.type} is {wanted}",
                hint="cast it in the source's SQL, and change the type in the contract, if there is one",
            )
    needed = [name for name, one in theirs.items() if not one["nullable"]]
    if needed and shape.write != "update_only":
        raise Mismatch(
            "TARGET_DRIFT",
            f"the column {needed[0]} of {label} may not be empty, and the sync does not send it",
            hint="send it, or let it be empty",
        )
    return missing


def _same(held: Any, wanted: Any) -> bool:
    if isinstance(held, str) or isinstance(wanted, str):
        return bool(held == wanted)
    return held.get("type") == "array" and _same(held.get("elementType"), wanted["elementType"])
