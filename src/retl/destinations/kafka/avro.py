"""Avro: the schema of a sync's rows, whether somebody else's schema holds them exactly, and a row as bytes.

It asks nobody. What an Avro type would keep as another value is refused before a row is encoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from retl.destinations.batch import Field
from retl.destinations.kafka.avro_bytes import Write, default, stored, writer
from retl.errors import DefinitionError
from retl.values.types import Type

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_TYPES: dict[str, Any] = {
    "string": "string",
    "uuid": {"type": "string", "logicalType": "uuid"},
    "integer": "long",
    "float": "double",
    "boolean": "boolean",
    "date": {"type": "int", "logicalType": "date"},
    "timestamp": {"type": "long", "logicalType": "local-timestamp-micros"},
    "timestamptz": {"type": "long", "logicalType": "timestamp-micros"},
    "json": "string",
}


def require_names(record: str, columns: Sequence[Field]) -> None:
    """DefinitionError for names that Avro does not have."""
    if not re.fullmatch(rf"{_NAME}(\.{_NAME})*", record):
        raise DefinitionError(
            "IDENTIFIER",
            f"no Avro record can be called {record!r}: a name has letters, digits and `_`, no digit first",
            hint="name it under `record`, with its namespace: crm.Segment",
        )
    for one in columns:
        if not re.fullmatch(_NAME, one.name):
            raise DefinitionError(
                "IDENTIFIER",
                f"no field of an Avro record can be called {one.name!r}: a name has letters, digits and `_`,"
                " and no digit first",
                hint="rename it under `fields`",
            )


def schema_of(record: str, columns: Sequence[Field]) -> str:
    """The schema of rows with these columns, as JSON. What may be empty is a union with null, and null by
    default."""
    namespace, _, name = record.rpartition(".")
    whole = {"type": "record", "name": name} | ({"namespace": namespace} if namespace else {})
    return json.dumps(whole | {"fields": [_field(one) for one in columns]})


def _field(column: Field) -> dict[str, Any]:
    type_ = _of(column.type)
    about = {"doc": column.description} if column.description else {}
    if column.nullable:
        return {"name": column.name, **about, "type": ["null", type_], "default": None}
    return {"name": column.name, **about, "type": type_}


def _of(type_: Type) -> Any:
    if type_.name == "decimal":
        digits = {"precision": type_.max_digits, "scale": type_.decimal_places}
        return {"type": "bytes", "logicalType": "decimal", **digits}
    if type_.name == "list":
        return {"type": "array", "items": ["null", _of(type_.item)]}
    return _TYPES[type_.name]


def unfit(schema: str, columns: Sequence[Field]) -> Iterator[str]:
    """Why values with this schema cannot hold rows with these columns exactly: a sentence for each reason."""
    whole = json.loads(schema)
    if not isinstance(whole, dict) or whole.get("type") != "record":
        yield "it is no record"
        return
    there = {one["name"]: one for one in whole["fields"]}
    for column in columns:
        if column.name not in there:
            yield f"it has no field {column.name}"
        elif why := _why_not(column.type, there[column.name]["type"], nullable=column.nullable):
            yield f"its field {column.name} {why}"
    sent = {one.name for one in columns}
    for name, one in there.items():
        if name not in sent and (why := _no_default(one)):
            yield f"its field {name} has {why}, and the sync does not send it"


def _no_default(field: Mapping[str, Any]) -> str | None:
    if "default" not in field:
        return "no default"
    try:
        default(field["type"], field["default"])
    except ValueError:
        return "a default that retl cannot write"
    return None


def _why_not(type_: Type, avro: Any, *, nullable: bool) -> str | None:
    """Why an Avro type does not hold every value of a contract type, and no other."""
    branches = avro if isinstance(avro, list) else [avro]
    kept = [one for one in branches if one not in ("null", {"type": "null"})]
    if nullable and len(kept) == len(branches):
        return "takes no null"
    if len(kept) != 1:
        return "is a union of several types"
    (one,) = kept
    if type_.name == "list" and _base(one) == "array":
        inner = _why_not(type_.item, one["items"], nullable=True)
        return inner and f"has items of which it {inner}"
    wanted = _of(type_)
    exact = _digits(type_, one) if type_.name == "decimal" else _alike(wanted, one)
    return None if exact else f"is {_shown(one)}, and {type_} needs {_shown(wanted)}"


def _alike(wanted: Any, avro: Any) -> bool:
    logical = _logical(avro)
    plain = logical is None and _base(wanted) == "string"
    return bool(_base(avro) == _base(wanted) and (plain or logical == _logical(wanted)))


def _digits(type_: Type, avro: Any) -> bool:
    """Whether a decimal has room for all digits before and behind the point."""
    if _base(avro) not in ("bytes", "fixed") or _logical(avro) != "decimal":
        return False
    digits, places = avro["precision"], avro.get("scale", 0)
    size = avro.get("size")  # of a fixed one, in bytes
    room = size is None or 10**digits <= 2 ** (8 * size - 1)
    more = (type_.max_digits or 0) - (type_.decimal_places or 0)
    return bool(room and places >= (type_.decimal_places or 0) and digits - places >= more)


def _base(avro: Any) -> Any:
    return avro["type"] if isinstance(avro, dict) else avro


def _logical(avro: Any) -> Any:
    return avro.get("logicalType") if isinstance(avro, dict) else None


def _shown(avro: Any) -> str:
    base, logical = _base(avro), _logical(avro)
    if logical == "decimal":
        return f"decimal({avro.get('precision')},{avro.get('scale', 0)})"
    return f"{base} ({logical})" if logical else str(base)


def encoder(
    schema: str, columns: Sequence[Field], head: bytes, *, values: int = 0
) -> Callable[[Sequence[Any]], bytes]:
    """What makes the bytes of a row, behind `head`, of its cells "stored" in the order of these columns; the
    first `values` of them are Python's own. It raises UnicodeEncodeError for a text that is none."""
    places = {one.name: number for number, one in enumerate(columns)}
    parts = list[tuple[int, Write]]()
    for one in json.loads(schema)["fields"]:
        place = places.get(one["name"])
        if place is None:
            parts.append((0, _always(default(one["type"], one["default"]))))
            continue
        type_ = columns[place].type
        write, make = writer(type_, one["type"]), stored(type_) if place < values else None
        parts.append((place, write if make is None else _after(make, write)))
    return lambda row: head + b"".join([write(row[place]) for place, write in parts])


def _after(make: Callable[[Any], Any], write: Write) -> Write:
    return lambda value: write(None if value is None else make(value))


def _always(content: bytes) -> Write:
    return lambda _: content
