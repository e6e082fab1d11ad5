"""What must hold at the target after a delivery, as a user writes it under `assert:`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from retl.model import Definition, Duration


class Rows(Definition):
    """How many rows the table has."""

    min: Annotated[int, Field(ge=0)] | None = None
    max: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Rows:
        if self.min is None and self.max is None:
            raise ValueError("`count` needs min, max or both, or is `mart`: as many rows as the mart")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("`min` is more than `max`")
        return self


class Fresh(Definition):
    """How old the latest time in a column of the table may be, by the target's clock."""

    column: str
    max_age: Duration


class Assertion(Definition):
    """One of: a SELECT at the target that must return no row, a count, a latest time."""

    name: str | None = None
    sql: str | None = None
    count: Literal["mart"] | Rows | None = None
    fresh: Fresh | None = None

    @model_validator(mode="after")
    def _one(self) -> Assertion:
        if sum(one is not None for one in (self.sql, self.count, self.fresh)) != 1:
            raise ValueError("an assertion has exactly one of sql, count and fresh")
        if self.sql is not None and ";" in self.sql:
            raise ValueError("an assertion is one SELECT, without a semicolon")
        return self


AssertSetting = Annotated[
    Assertion,
    BeforeValidator(
        lambda value: {"sql": value} if isinstance(value, str) else value,
        json_schema_input_type=str | Assertion,
    ),
]
