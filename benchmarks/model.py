"""A contract as a user writes it, with a validator of their own; as a program: rows through it, bare."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator

from benchmarks.mart import COLUMNS, TABLE


class User(BaseModel):
    user_id: Annotated[str, Field(min_length=1, max_length=64)]
    segment: Literal["power", "casual", "new", "dormant", "churned"]
    total_searches: Annotated[int, Field(ge=0)]
    total_conversions: Annotated[int, Field(ge=0)]
    lifetime_value: Annotated[Decimal, Field(max_digits=12, decimal_places=2, ge=0)]
    last_seen_at: datetime

    @field_validator("user_id")
    @classmethod
    def _ours(cls, value: str) -> str:
        if not value.startswith("user_"):
            raise ValueError("a user's id begins with user_")
        return value


def loop(path: str) -> float:
    """Seconds that every row of the mart takes from DuckDB through the model."""
    import duckdb

    names = COLUMNS.split(", ")
    started = time.perf_counter()
    with duckdb.connect(path, read_only=True) as warehouse:
        warehouse.execute(f"SELECT {COLUMNS} FROM {TABLE}")
        while rows := warehouse.fetchmany(10_000):
            for row in rows:
                User.model_validate(dict(zip(names, row, strict=True)))
    return time.perf_counter() - started


if __name__ == "__main__":
    print(loop(sys.argv[1]))
