"""The hash of a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
from retl.values.sql import literal
from retl.values.types import Type


def hash_sql(fields: Sequence[tuple[str, str, Type]], salt: str) -> str:
    """SQL for a row's hash over (destination field, SQL, type), in any order: 16 bytes of its values,
    then 4 of the salt (hexadecimal digits), which stands for all that is the same in every row.

    sha256 takes time by the block of 64 bytes: neither the fields' names, in whose order the values stand,
    nor the salt are hashed once more with each row.
    """
    # JSON inside JSON loses digits, and '.5' is not JSON at all: both go in as text
    as_text = ("json", "decimal")
    parts = ", ".join(
        f"CAST({expr} AS VARCHAR)" if type.name in as_text else expr
        for _, expr, type in sorted(fields, key=lambda field: field[0])
    )
    digest = f"substring(sha256(CAST(json_array({parts}) AS VARCHAR)), 1, 32)"
    return f"unhex({digest} || {literal(salt[:8])})"
