"""The values of rows as BSON, the operations that write them, and keys of documents as texts. Pure.

What MongoDB would keep as another value is refused: it has milliseconds, and 34 digits of a decimal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal, DecimalException
from hashlib import sha256
from math import isfinite
from typing import Any, Literal, NamedTuple

import bson
from bson import json_util
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.raw_bson import RawBSONDocument
from pymongo import DeleteMany, DeleteOne, InsertOne, UpdateOne

from retl.destinations.batch import Batch, Condition, Field, Shape, SoftDelete
from retl.destinations.mongodb.refusals import Unfit
from retl.values.types import Type

Operation = InsertOne[Any] | UpdateOne | DeleteOne | DeleteMany
CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    dict, tz_aware=True, uuid_representation=UuidRepresentation.STANDARD,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)  # fmt: skip
_SHOWN = json_util.JSONOptions(
    json_mode=json_util.JSONMode.CANONICAL, uuid_representation=UuidRepresentation.STANDARD
)
LARGEST = (16 << 20) - (64 << 10)  # bytes of key and values; MongoDB takes 16 MB with operators and names
DEEPEST = 98  # levels inside a field; MongoDB has 100 for the document
REMOVED: Any = object()  # in place of the value of an empty field, which is not in the document
_LONG = range(-(2**63), 2**63)


class Prepared(NamedTuple):
    """What one row sends, and the bytes of its values."""

    number: int
    key: tuple[Any, ...]
    operation: Operation
    size: int


class Documents:
    """The documents of one sync. `by`: whether the key is the `_id`, or fields of the document."""

    def __init__(self, shape: Shape, by: Literal["_id", "fields"], times: Literal["date", "text"]) -> None:
        self.shape, self._times = shape, times
        self.appends = shape.write == "append"  # then the key is in fields, and no index keeps it apart
        self.by = "fields" if self.appends else by

    # --- rows

    def prepared(self, batch: Batch, number: int, row: Sequence[Any]) -> Prepared:
        """Unfit."""
        made = self._made(batch, number, row)
        if made.size > LARGEST:
            raise Unfit("TOO_LARGE")
        return made

    def _made(self, batch: Batch, number: int, row: Sequence[Any]) -> Prepared:
        width = len(self.shape.key)
        key = self.key(row)
        if batch.operation == "append":
            named = _named(batch, number) | dict(zip((one.name for one in self.shape.key), key, strict=True))
            kept = {name: one for name, one in self.fields(row[width:]).items() if one is not REMOVED}
            document, size = _encoded(named | kept)
            return Prepared(number, key, InsertOne(document), size)
        found, size = _encoded(self.filter(key))
        if batch.operation == "delete":
            return Prepared(number, key, self._deletion(found), size)
        update, more = self._update(batch, key, self.fields(row[width:]))
        upsert = batch.condition is not Condition.PRESENT
        return Prepared(number, key, UpdateOne(found, update, upsert=upsert), size + more)

    def fields(self, values: Sequence[Any]) -> dict[str, Any]:
        """The BSON values of the fields that a row writes; REMOVED for an empty one. Unfit."""
        return {
            one.name: REMOVED if value is None else self.value(one.type, value)
            for one, value in zip(self.shape.fields, values, strict=True)
            if value is not None or one.nulls == "clear"
        }

    def _update(
        self, batch: Batch, key: Sequence[Any], fields: Mapping[str, Any]
    ) -> tuple[dict[str, Any], int]:
        values, size = _encoded({name: one for name, one in fields.items() if one is not REMOVED})
        gone = {name: "" for name, one in fields.items() if one is REMOVED}
        absent = batch.condition is Condition.ABSENT
        update: dict[str, Any] = {}
        if len(values):
            update["$setOnInsert" if absent else "$set"] = values
        if gone and not absent:
            update["$unset"] = gone
        return update or {"$setOnInsert": self.filter(key)}, size

    def _deletion(self, found: Mapping[str, Any]) -> Operation:
        if not isinstance(self.shape.deletes, SoftDelete):
            return DeleteMany(found) if self.appends else DeleteOne(found)
        types = {one.name: one.type for one in self.shape.fields}
        sets = {name: self._constant(types.get(name), one) for name, one in self.shape.deletes.set.items()}
        return UpdateOne(found, {"$set": sets})

    def _constant(self, type_: Type | None, value: Any) -> Any:
        return value if value is None or type_ is None else self.value(type_, value)

    def shown(self, row: Prepared) -> str:
        """The operation in MongoDB's extended JSON, as the shell takes it."""
        one = row.operation
        if isinstance(one, InsertOne):
            said = {"insertOne": {"document": one._doc}}
        elif isinstance(one, DeleteOne | DeleteMany):
            said = {f"delete{'Many' * self.appends or 'One'}": {"filter": one._filter}}
        else:
            about = {"filter": one._filter, "update": one._doc, "upsert": bool(one._upsert)}
            said = {"updateOne": about}
        return json_util.dumps(said, json_options=_SHOWN)

    # --- keys

    def key(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """The BSON values of the key of a row, which begins with them. Unfit."""
        return tuple(self.value(one.type, value) for one, value in zip(self.shape.key, row, strict=False))

    def filter(self, key: Sequence[Any]) -> dict[str, Any]:
        """What finds the document of a key."""
        named = dict(zip((one.name for one in self.shape.key), key, strict=True))
        if self.by == "fields":
            return named
        return {"_id": key[0] if len(key) == 1 else named}

    def filters(self, keys: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
        """What finds the documents of several keys."""
        if self.by == "fields" and len(self.shape.key) > 1:
            return {"$or": [self.filter(key) for key in keys]}
        (name,) = self.filter(keys[0])
        return {name: {"$in": [self.filter(key)[name] for key in keys]}}

    @property
    def key_names(self) -> list[str]:
        return ["_id"] if self.by == "_id" else [one.name for one in self.shape.key]

    def key_of(self, held: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """The key's values in a document; None if it has no such key."""
        found: Any = held
        if self.by == "_id":
            if len(self.shape.key) == 1:
                return (held["_id"],)
            found = held["_id"]
        names = [one.name for one in self.shape.key]
        if not isinstance(found, Mapping) or any(name not in found for name in names):
            return None
        if self.by == "_id" and list(found) != names:
            return None
        return tuple(found[name] for name in names)

    def token(self, key: Sequence[Any]) -> tuple[Any, ...]:
        """Equal for keys that MongoDB takes for one: it compares numbers, whatever their type."""
        return tuple(map(_token, key))

    def key_texts(self, key: Sequence[Any]) -> tuple[str, ...]:
        """As keys are written everywhere."""
        return tuple(_key_text(one, value) for one, value in zip(self.shape.key, key, strict=True))

    # --- values

    def value(self, type_: Type, value: Any) -> Any:
        """Unfit."""
        match type_.name:
            case "string":
                return _text(value)
            case "integer":
                return bson.Int64(value)
            case "decimal":
                return _decimal(value)
            case "date" | "timestamp" | "timestamptz":
                return self._time(value)
            case "json":
                return _json(value)
            case "list":
                return [None if one is None else self.value(type_.item, one) for one in value]
            case _:
                return value

    def _time(self, value: date | datetime) -> Any:
        if not isinstance(value, datetime):
            if self._times == "text":
                return value.isoformat()
            return datetime(value.year, value.month, value.day, tzinfo=UTC)
        utc = value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
        if self._times == "text":
            return utc.isoformat() + "Z"
        if utc.microsecond % 1000:
            raise Unfit("NOT_EXACT")
        return utc.replace(tzinfo=UTC)

    def same(self, held: Any, sent: Any) -> bool:
        """Whether both are the same value of the same type. What others wrote as null is an empty field."""
        if sent is REMOVED:
            return held is REMOVED or held is None
        if held is REMOVED:
            return False
        return bson.encode({"": held}, codec_options=CODEC) == bson.encode({"": sent}, codec_options=CODEC)


def _encoded(values: Mapping[str, Any]) -> tuple[RawBSONDocument, int]:
    try:
        raw = bson.encode(values, codec_options=CODEC)
    except bson.errors.InvalidDocument:
        raise Unfit("NUL_IN_NAME") from None
    return RawBSONDocument(raw), len(raw)


def _named(batch: Batch, number: int) -> dict[str, str]:
    """The `_id` of an appended row: the same in each attempt at it."""
    text = f"{batch.run_id}/{batch.first + number}/{batch.round}"
    return {"_id": sha256(text.encode()).hexdigest()[:32]}


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unfit("NOT_UNICODE") from None
    return value


def _decimal(value: Decimal | int) -> bson.Decimal128:
    try:
        return bson.Decimal128(Decimal(value))
    except DecimalException:
        raise Unfit("NOT_EXACT") from None


def _json(text: str) -> Any:
    """A number is an integer of 64 bits, or a double if that has all its digits, else a decimal."""
    return _checked(json.loads(text, parse_float=_real, parse_int=_whole), 0)


def _checked(value: Any, depth: int) -> Any:
    if depth > DEEPEST:
        raise Unfit("TOO_DEEP")
    match value:
        case str():
            return _text(value)
        case list():
            return [_checked(one, depth + 1) for one in value]
        case dict():
            return {_text(name): _checked(one, depth + 1) for name, one in value.items()}
        case _:
            return value


def _whole(text: str) -> Any:
    number = int(text)
    return number if number in _LONG else _decimal(number)


def _real(text: str) -> Any:
    double = float(text)
    exact = isfinite(double) and Decimal(repr(double)) == Decimal(text)
    return double if exact else _decimal(Decimal(text))


def plain(held: Any) -> Any:
    """A value as Python has it."""
    match held:
        case bson.Decimal128():
            return held.to_decimal()
        case bson.Int64():
            return int(held)
        case list():
            return [plain(one) for one in held]
        case dict():
            return {name: plain(one) for name, one in held.items()}
        case _:
            return held


def _token(value: Any) -> Any:
    found = plain(value)
    if isinstance(found, int | float | Decimal) and not isinstance(found, bool):
        return "number", Decimal(found)
    return type(found).__name__, str(found)


def _key_text(field: Field, value: Any) -> str:
    found = plain(value)
    if isinstance(found, Decimal | int) and field.type.name == "decimal":
        return format(Decimal(found), f".{field.type.decimal_places}f")
    if isinstance(found, datetime) and field.type.name == "date":
        return found.date().isoformat()
    return str(found)
