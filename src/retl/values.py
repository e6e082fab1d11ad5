"""The contract's types, and the form each value takes in DuckDB, CSV, JSON, DDL and the row hash.

A value that cannot take a form exactly is a reject, never an approximation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TypeName = Literal[
    "string",
    "uuid",
    "integer",
    "decimal",
    "float",
    "boolean",
    "date",
    "timestamp",
    "timestamptz",
    "json",
    "list",
]


@dataclass(frozen=True, slots=True)
class Type:
    """A contract type; digits for decimal, the element's type for list."""

    name: TypeName
    max_digits: int | None = None
    decimal_places: int | None = None
    items: TypeName | None = None

    def __str__(self) -> str:
        if self.name == "decimal":
            return f"decimal({self.max_digits},{self.decimal_places})"
        return f"list of {self.items}" if self.name == "list" else self.name
