"""How the rows of a sync are written: fields, changes, deletes, conflicts and rollback, with the short
spellings of each. The spellings are types only for the JSON Schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Required

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
    with_config,
)
from typing_extensions import TypedDict

from retl.model import Definition, Duration

_CLOSED = ConfigDict(extra="forbid")  # for the spellings, which exist only for the JSON Schema


RunValue = Literal["$run_started_at", "$run_id", "$sync"]
Transform = Literal["trim", "lower", "upper", "sha256_hex", "md5_hex", "e164"]


class Home(Definition):
    """The country of phone numbers without `+`: its calling code, and the trunk prefix that is dialled only
    inside the country (0 in many countries)."""

    country: Annotated[str, BeforeValidator(str), Field(pattern=r"^[1-9][0-9]{0,2}$")]
    trunk: Annotated[str, BeforeValidator(str), Field(pattern=r"^[0-9]{0,2}$")] = ""


class Phone(Definition):
    """The transform e164 with a country."""

    e164: Home


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Strategy = Literal["warehouse_wins", "target_wins", "newest_wins", "manual"]


class Conflicts(Definition):
    """Who wins if somebody edited a field since our last confirmed write and the mart changed it too.
    newest_wins compares a column of the `mart` with one of the `target`. `window: accepted`: the target can
    only look first and write later, and an edit in between is lost."""

    how: Strategy = "warehouse_wins"
    mart: str | None = None
    target: str | None = None
    window: Literal["accepted"] | None = None


@with_config(_CLOSED)
class NewestColumns(TypedDict):
    mart: str
    target: str


@with_config(_CLOSED)
class NewestSpelling(TypedDict):
    newest_wins: NewestColumns


@with_config(_CLOSED)
class AcceptedWindow(TypedDict):
    window: Literal["accepted"]


@with_config(_CLOSED)
class WindowSpelling(TypedDict):
    target_wins: AcceptedWindow


ConflictsSpelling = Literal["warehouse_wins", "target_wins", "manual"] | NewestSpelling | WindowSpelling


def _conflicts(value: object) -> object:
    """The spellings → the fields of Conflicts."""
    if value in ("warehouse_wins", "target_wins", "manual"):
        return {"how": value}
    if isinstance(value, dict) and value.keys() == {"newest_wins"} and isinstance(value["newest_wins"], dict):
        columns = value["newest_wins"]
        if columns.keys() == {"mart", "target"} and all(isinstance(one, str) for one in columns.values()):
            return {"how": "newest_wins", **columns}
    if value == {"target_wins": {"window": "accepted"}}:
        return {"how": "target_wins", "window": "accepted"}
    if isinstance(value, Conflicts):
        return value
    raise ValueError(
        "`conflicts` must be warehouse_wins, target_wins, manual,"
        " {newest_wins: {mart: column, target: column}} or {target_wins: {window: accepted}}"
    )


ConflictsSetting = Annotated[
    Conflicts,
    BeforeValidator(_conflicts, json_schema_input_type=ConflictsSpelling),
    Field(json_schema_extra={"default": "warehouse_wins"}),
]


class FieldSource(Definition):
    """Where one field of the destination comes from: a mart column, a constant, a run value, or the
    target's own id that sync `ref` got for the key in the columns `by`."""

    column: str | None = None
    value: str | int | float | bool | None = None
    run_value: RunValue | None = None
    ref: str | None = None
    by: Annotated[tuple[str, ...], BeforeValidator(_listed, json_schema_input_type=str | list[str])] = ()
    nulls: Literal["clear", "keep"] = "clear"
    only_if_empty: bool = False
    transform: tuple[Transform | Phone, ...] = ()
    conflicts: Annotated[
        Conflicts | None, BeforeValidator(_conflicts, json_schema_input_type=ConflictsSpelling)
    ] = None

    @model_validator(mode="after")
    def _one(self) -> FieldSource:
        given = self.model_fields_set & {"column", "value", "run_value", "ref"}
        if len(given) != 1:
            raise ValueError(
                "a field needs exactly one of: a column, a `value`, a `ref`, $run_started_at, $run_id, $sync"
            )
        if (self.ref is None) != (not self.by):
            raise ValueError(
                "`ref` (a sync) and `by` (the columns with the key of its row) must be given together"
            )
        if self.nulls == "keep" and self.column is None and self.ref is None:
            raise ValueError(
                "`nulls: keep` is only for a column or a `ref`: a constant is the same in every row"
            )
        if self.transform and self.column is None:
            raise ValueError("`transform` is only for a column; write a constant in its final form")
        return self


def _field_source(value: object) -> object:
    if isinstance(value, str):
        return {"run_value": value} if value.startswith("$") else {"column": value}
    return value


FieldSetting = Annotated[
    FieldSource, BeforeValidator(_field_source, json_schema_input_type=str | FieldSource)
]


class Changes(Definition):
    """How changed rows are found. With hash a missing row means that it was deleted; with cdf the source says
    so; with the others nothing does."""

    strategy: Literal["hash", "all", "watermark", "cdf"] = "hash"
    ignore: tuple[str, ...] = ()  # destination fields that are sent but never compared
    watermark: str | None = None
    lookback: Duration = 0.0


@with_config(_CLOSED)
class HashOptions(TypedDict, total=False):
    ignore: list[str]


@with_config(_CLOSED)
class HashSpelling(TypedDict):
    hash: HashOptions


@with_config(_CLOSED)
class WatermarkSpelling(TypedDict, total=False):
    watermark: Required[str]
    lookback: str


_CHANGES = "`changes` must be hash, all, cdf, {hash: {ignore: […]}} or {watermark: column, lookback: 1h}"


def _changes(value: object) -> object:
    """The spellings → the fields of Changes."""
    if value in ("hash", "all", "cdf"):
        return {"strategy": value}
    if isinstance(value, dict) and value.keys() == {"hash"} and isinstance(value["hash"], dict):
        if not value["hash"].keys() <= {"ignore"}:
            raise ValueError("`hash` has only the option ignore: the fields that are sent but never compared")
        return {**value["hash"], "strategy": "hash"}
    if isinstance(value, dict) and isinstance(value.get("watermark"), str) and "strategy" not in value:
        if not value.keys() <= {"watermark", "lookback"}:
            raise ValueError("`watermark` has only the option lookback")
        return {**value, "strategy": "watermark"}
    if isinstance(value, Changes):
        return value
    raise ValueError(_CHANGES)


ChangesSetting = Annotated[
    Changes,
    BeforeValidator(
        _changes, json_schema_input_type=Literal["hash", "all", "cdf"] | HashSpelling | WatermarkSpelling
    ),
    Field(json_schema_extra={"default": "hash"}),
]


class Deletes(Definition):
    """What happens at the target to a key that left the mart."""

    how: Literal["keep", "delete", "set"] = "keep"
    within: str | None = None  # SQL over the key's columns: other keys stay
    set: dict[str, Any] = Field(default={})
    restore: dict[str, Any] = Field(default={})

    @model_validator(mode="after")
    def _fits(self) -> Deletes:
        if self.how == "set" and not self.set:
            raise ValueError("`set` needs at least one field with its value, such as {status: deleted}")
        if extra := sorted(self.restore.keys() - self.set.keys()):
            raise ValueError(
                f"`restore` has {extra[0]}, which is not in `set`; it can only restore what `set` changed"
            )
        return self


@with_config(_CLOSED)
class SetSpelling(TypedDict, total=False):
    set: Required[dict[str, Any]]
    restore: dict[str, Any]
    within: str


@with_config(_CLOSED)
class WithinSpelling(TypedDict):
    delete: Literal[True]
    within: str


def _deletes(value: object) -> object:
    """The spellings → the fields of Deletes."""
    if value in ("keep", "delete"):
        return {"how": value}
    if isinstance(value, dict) and "how" not in value and "set" in value:
        return {**value, "how": "set"}
    if isinstance(value, dict) and value.keys() == {"delete", "within"} and value["delete"] is True:
        return {"how": "delete", "within": value["within"]}
    if isinstance(value, Deletes):
        return value
    raise ValueError(
        "must be keep, delete (for a mirror), {delete: true, within: SQL} or"
        " {set: {field: value}, restore: {field: value}, within: SQL}"
    )


DeletesSetting = Annotated[
    Deletes,
    BeforeValidator(
        _deletes, json_schema_input_type=Literal["keep", "delete"] | SetSpelling | WithinSpelling
    ),
    Field(json_schema_extra={"default": "keep"}),
]


class SoftRollback(Definition):
    """A rollback that only marks the rows that the run wrote."""

    set: Annotated[dict[str, Any], Field(min_length=1)]


class Rollback(Definition):
    """How long a run can be taken back: `keep` are the seconds for which its pre-images are stored."""

    keep: Annotated[Duration, Field(gt=0)] | None = None
    soft: SoftRollback | None = None

    @model_validator(mode="after")
    def _fits(self) -> Rollback:
        if self.soft is not None and self.keep is None:
            raise ValueError("`soft` needs `keep`: how long a run can be taken back")
        return self


def _rollback(value: object) -> object:
    """The spellings → the fields of Rollback."""
    if value == "none":
        return {}
    if isinstance(value, Rollback) or (isinstance(value, dict) and "keep" in value):
        return value
    raise ValueError("`rollback` must be none, {keep: 30d} or {keep: 30d, soft: {set: {field: value}}}")


@with_config(_CLOSED)
class KeepSpelling(TypedDict, total=False):
    keep: Required[Duration]
    soft: SoftRollback


RollbackSetting = Annotated[
    Rollback,
    BeforeValidator(_rollback, json_schema_input_type=Literal["none"] | KeepSpelling),
    Field(json_schema_extra={"default": "none"}),
]


class Erase(Definition):
    """What `retl erase` writes where it cannot, or must not, delete: the fields of the person's row."""

    set: Annotated[dict[str, Any], Field(min_length=1)]
