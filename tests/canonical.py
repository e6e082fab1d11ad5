"""Canonical texts and row hashes a second time, in plain Python, and the check of DuckDB against the vectors.

`python -m tests.canonical` needs nothing but a DuckDB: so any version of it can be asked.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import duckdb

from retl.values import canonical, keys
from retl.values.sql import literal
from retl.values.storage import storage_type
from retl.values.types import Type, TypeName

VECTORS: Mapping[str, Any] = json.loads(Path(__file__).with_name("canonical_vectors.json").read_text("utf-8"))
SALT = "5a17c0de"
FREE = ("string", "json", "list")  # their text may hold anything, so its length goes before it
Value = str | Sequence[str | None] | None  # a value as the vectors write it: text, or a list of texts


def type_of(text: str) -> Type:
    """'decimal(18,2)', 'list of string', 'date' → Type."""
    if found := re.fullmatch(r"decimal\((\d+),(\d+)\)", text):
        return Type("decimal", int(found[1]), int(found[2]))
    name, _, items = text.partition(" of ")
    return Type(cast(TypeName, name), items=cast(TypeName, items) if items else None)


def text_of(type: Type, value: Value) -> str | None:
    """The canonical text of a value, by the words of docs/formats.md."""
    if value is None:
        return None
    if type.name == "list":
        return "".join(framed(type.item, item) for item in value)
    assert isinstance(value, str)
    match type.name:
        case "integer":
            return str(int(value))
        case "decimal":
            places = Decimal(1).scaleb(-(type.decimal_places or 0))
            scaled = Decimal(value).quantize(places, context=Context(prec=76))
            return f"{scaled if scaled else abs(scaled):f}"
        case "float":
            return repr(float(value))
        case "boolean":
            return {"true": "true", "false": "false"}[value]
        case "date":
            return date.fromisoformat(value).isoformat()
        case "timestamp":
            return datetime.fromisoformat(value).isoformat(timespec="microseconds")
        case "timestamptz":
            moment = datetime.fromisoformat(value).astimezone(UTC).replace(tzinfo=None)
            return moment.isoformat(timespec="microseconds") + "Z"
        case "uuid":
            return str(UUID(value))
        case _:
            return value


def framed(type: Type, value: Value) -> str:
    """The text with what tells where it ends; NULL is the mark alone."""
    text = text_of(type, value)
    if type.name not in FREE:
        return f"{text or ''};"
    return ":" if text is None else f"{len(text.encode())}:{text}"


def hash_of(fields: Sequence[tuple[str, Type, Value]]) -> str:
    """The first 16 bytes of a row's hash, as hexadecimal digits: what its values say."""
    texts = (framed(type, value) for _, type, value in sorted(fields, key=lambda field: field[0]))
    return sha256("".join(texts).encode()).hexdigest()[:32]


def sql_of(type: Type, value: Value) -> str:
    """SQL of the value in its storage type."""
    if value is None or isinstance(value, str):
        text = "NULL" if value is None else literal(value)
        return f"CAST({text} AS {storage_type(type)})"
    return f"CAST([{', '.join(sql_of(type.item, item) for item in value)}] AS {storage_type(type)})"


def differences(con: duckdb.DuckDBPyConnection) -> Iterator[str]:
    """What this DuckDB makes of the vectors otherwise than they say, and where the reference does."""
    con.execute("SET TimeZone = 'America/New_York'")  # nothing may depend on it

    def ask(sql: str) -> Any:
        row = con.execute(f"SELECT {sql}").fetchone()
        assert row is not None
        return row[0]

    for name, value, text in VECTORS["texts"]:
        type = type_of(name)
        for maker, made in (
            ("Python", text_of(type, value)),
            ("DuckDB", ask(canonical.canonical_sql(type, sql_of(type, value)))),
        ):
            if made != text:
                yield f"{maker}: text of {name} {value!r} is {made!r}, not {text!r}"
    for fields, digest in VECTORS["rows"]:
        typed = [(field, type_of(name), value) for field, name, value in fields]
        parts = [(field, sql_of(type, value), type) for field, type, value in typed]
        for maker, made in (
            ("Python", hash_of(typed) + SALT),
            ("DuckDB", bytes(ask(canonical.hash_sql(parts, SALT))).hex()),
        ):
            if made != digest + SALT:
                yield f"{maker}: hash of {fields!r} is {made}, not {digest}{SALT}"
    for names, values, text in VECTORS["keys"]:
        types = [type_of(name) for name in names]
        made = ask(keys.key_sql(types, [sql_of(*pair) for pair in zip(types, values, strict=True)]))
        if made != text:
            yield f"DuckDB: key text of {values!r} is {made!r}, not {text!r}"


if __name__ == "__main__":
    found = list(differences(duckdb.connect()))
    print(f"DuckDB {duckdb.__version__}: {sum(map(len, VECTORS.values()))} vectors, {len(found)} differ")
    sys.exit("\n".join(found) or None)
