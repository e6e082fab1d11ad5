"""SQL of digests: 8 bytes by which a later run sees whether a field still holds what it held.

PostgreSQL makes them itself of its own text of a value, so no value of ours is compared with one of its own.
`hashtextextended` is what hash partitions stand on and is equal in all versions. The collation "C" keeps
texts apart that a column's own collation takes for one. Session settings that change a text are pinned in
net/postgres.py. Pure: SQL only.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from retl.destinations.batch import Field
from retl.values.sql import quoted

SIZE = 8  # bytes


def digest(value: str) -> str:
    """Of a column's value (SQL), as bytea. NULL has one too, all targets the same."""
    hashed = f'pg_catalog.hashtextextended({value}::text COLLATE "C", 0)'
    return f"pg_catalog.int8send(coalesce({hashed}, -1))"


def of_fields(alias: str, fields: Sequence[Field]) -> str:
    """Of all these fields of a row, one after the other."""
    parts = [digest(f"{alias}.{quoted(field.name)}") for field in fields]
    return " || ".join(parts) or "''::bytea"


def of_others(alias: str, columns: Sequence[str]) -> str:
    """One digest of all these columns of a row. It differs if the columns are others."""
    names = sorted(columns)
    seed = int.from_bytes(sha256("\0".join(names).encode()).digest()[:4], "big")
    listed = ", ".join(f"{alias}.{quoted(name)}" for name in names)
    text = f"ROW({listed})::text" if names else "''"
    return f'pg_catalog.int8send(pg_catalog.hashtextextended({text} COLLATE "C", {seed}))'


def part(of: str, number: int) -> str:
    """The digest of one field in those of all of them."""
    return f"pg_catalog.substr({of}, {SIZE * (number - 1) + 1}, {SIZE})"


def former(of: str, number: int) -> str:
    """The same as 8 bytes in any case: zeros, which no value has, where it is not known."""
    one = part(of, number)
    return f"CASE WHEN octet_length({one}) = {SIZE} THEN {one} ELSE '\\x{'00' * SIZE}'::bytea END"


def shown(of: str) -> str:
    """A digest of digests, as 16 hexadecimal digits for people."""
    hashed = f"pg_catalog.hashtextextended(pg_catalog.encode({of}, 'hex') COLLATE \"C\", 0)"
    return f"pg_catalog.lpad(pg_catalog.to_hex({hashed}), 16, '0')"
