"""What judges the rows of a sync, as a user writes it: columns with rules, a file of them, or a model."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Required, Self

from msgspec import Struct
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
    with_config,
)
from typing_extensions import TypedDict

from retl.model import Definition
from retl.values.types import Type, TypeName

_MODEL = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_CLOSED = ConfigDict(extra="forbid")  # for the spellings, which exist only for the JSON Schema


STAR = "*"  # in a contract: every column of the mart that it does not name


class Column(Definition):
    """One column of a YAML contract: its type and the rules for its values. Without `type` it has that of dbt
    or the warehouse."""

    type: TypeName | None = None
    nullable: bool = False
    sensitive: bool = False
    description: str | None = None
    min_length: Annotated[int, Field(ge=0)] | None = None
    max_length: Annotated[int, Field(ge=0)] | None = None
    pattern: str | None = None
    one_of: tuple[str | int, ...] | None = None
    ge: int | float | str | None = None
    gt: int | float | str | None = None
    le: int | float | str | None = None
    lt: int | float | str | None = None
    max_digits: Annotated[int, Field(ge=1, le=38)] | None = None
    decimal_places: Annotated[int, Field(ge=0, le=38)] | None = None
    items: TypeName | None = None

    @model_validator(mode="after")
    def _fits(self) -> Column:
        if self.type is None and (self.items, self.max_digits, self.decimal_places) != (None, None, None):
            raise ValueError("`items`, `max_digits` and `decimal_places` are parts of a `type`")
        if self.type == "decimal" and (self.max_digits is None or self.decimal_places is None):
            raise ValueError("a decimal needs max_digits and decimal_places")
        if self.type == "decimal" and (self.decimal_places or 0) > (self.max_digits or 0):
            raise ValueError("decimal_places cannot exceed max_digits")
        if (self.type == "list") != (self.items is not None):
            raise ValueError(
                "`items` (the type of the elements) is required for a list and not allowed for other types"
            )
        if self.items in ("list", "json", "decimal"):
            raise ValueError(
                "the items of a list are string, uuid, integer, float, boolean, date or timestamp values"
            )
        return self


def _column(value: object) -> object:
    return {} if value == STAR else value


ColumnSetting = Annotated[Column, BeforeValidator(_column, json_schema_input_type=Column | Literal["*"])]


class Documented(Struct, frozen=True):
    """What dbt's project says of a column: it fills what a contract does not say. `filled`: a test refuses
    NULL; `unique`: a test refuses a value that is there twice; `inherited`: it is said of a column that this
    one may be made of."""

    type: Type | None = None
    filled: bool = False
    unique: bool = False
    one_of: tuple[str, ...] = ()
    sensitive: bool = False
    description: str | None = None
    inherited: bool = False


class Contract(Definition):
    """What judges the rows: columns written here, a file of columns, or the user's own Pydantic model. Of the
    columns, `"*"` stands for every other one of the mart.

    `model` is `package.module:Class`. With `edits` its validators may change values, which are then sent.
    """

    columns: dict[str, ColumnSetting] | None = None
    file: str | None = None
    model: str | None = None
    edits: bool = False

    @property
    def named(self) -> list[str] | None:
        """The columns, if the definition alone says which they are."""
        return None if self.columns is None or STAR in self.columns else list(self.columns)

    @property
    def needs_mart(self) -> bool:
        """Whether a column or a type is only known from the mart."""
        columns = self.columns or {}
        return STAR in columns or any(one.type is None for one in columns.values())

    @model_validator(mode="after")
    def _star(self) -> Self:
        used = (self.columns or {}).get(STAR, Column()).model_fields_set
        if excess := sorted(used - {"nullable", "sensitive"}):
            raise ValueError(f'`"*"` takes only nullable and sensitive, not {", ".join(excess)}')
        return self


class ContractFile(Definition):
    """A file of contracts/, put under one key: the file itself contains only columns."""

    contract: dict[str, ColumnSetting]


def _contract(value: object) -> object:
    """The three spellings → the fields of Contract."""
    if isinstance(value, str):
        if value.endswith((".yml", ".yaml")):
            return {"file": value}
        if not _MODEL.fullmatch(value):
            raise ValueError("`contract` must be columns, a file (….yml) or a model (package.module:Class)")
        return {"model": value}
    if isinstance(value, dict) and not (
        value.keys() <= {"model", "edits"} and isinstance(value.get("model"), str)
    ):
        return {"columns": value}
    return value


@with_config(_CLOSED)
class ModelSpelling(TypedDict, total=False):
    model: Required[str]
    edits: bool


ContractSetting = Annotated[
    Contract | None,
    BeforeValidator(_contract, json_schema_input_type=dict[str, ColumnSetting] | ModelSpelling | str),
]
