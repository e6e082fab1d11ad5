"""What a user may write: frozen models of syncs, guards and the project file.

`retl schema` makes its JSON Schema from these models. They know shapes and defaults. They do not know files,
environment or targets: `files` reads, `app/resolve` resolves, `destinations/` owns the target's options.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Required, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
    with_config,
)
from typing_extensions import TypedDict

from retl.model import Definition, Duration, Formats, Limits, Rate, Retry, needs_tls
from retl.values.sql import split
from retl.values.types import TypeName

WAREHOUSE = "warehouse"  # the name of the default source
SYNC_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_MODEL = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_CLOSED = ConfigDict(extra="forbid")  # for the spellings below, which exist only for the JSON Schema


class Mart(Definition):
    """A mart in a DuckDB file: exactly one of table, sql, file (a single SELECT), or dbt, the name of a
    model. A model whose last run ended longer than `max_age` ago is not read."""

    table: str | None = None
    sql: str | None = None
    file: str | None = None
    dbt: str | None = None
    max_age: Duration | None = None

    @field_validator("table")
    @classmethod
    def _named(cls, table: str | None) -> str | None:
        if table is not None:
            split(table)
        return table

    @model_validator(mode="after")
    def _one(self) -> Self:
        return self._with_one()

    def _with_one(self) -> Self:
        parts = (self.table, self.sql, self.file, self.dbt)
        if sum(part is not None for part in parts) != 1:
            raise ValueError("a source has exactly one of table, sql, file or dbt")
        if self.max_age is not None and self.dbt is None:
            raise ValueError("`max_age` needs `dbt`: only dbt records when a model was built")
        return self


class Source(Mart):
    """Where the mart's rows come from: the warehouse's table, sql, file or dbt model. `from` names another
    source, whose own options then stand here. With `inputs`, each a source of its own, `sql` is one SELECT
    over them. `complete`: what a source without snapshots returns is all there is, so a missing row was
    deleted."""

    from_: str | None = Field(default=None, alias="from")
    inputs: dict[str, dict[str, Any]] | None = None
    complete: bool = False

    def _with_one(self) -> Self:
        if self.inputs is not None and (self.from_ or not self.inputs or self.sql is None):
            raise ValueError("`inputs` are the sources of one `sql`, each by its name there")
        return self if self.from_ is not None else super()._with_one()

    @property
    def named(self) -> tuple[str, ...]:
        """The names of the sources."""
        if self.inputs is not None:
            return tuple(str(one.get("from", WAREHOUSE)) for one in self.inputs.values())
        return (self.from_ or WAREHOUSE,)


class NamedSource(Source):
    """A source of retl.yml: its type judges the options."""

    model_config = ConfigDict(frozen=True, extra="allow")


def _source(value: object) -> object:
    return NamedSource.model_validate(value) if isinstance(value, dict) and "from" in value else value


class Column(Definition):
    """One column of a YAML contract: its type and the rules for its values."""

    type: TypeName
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


class Contract(Definition):
    """What judges the rows: columns written here, a file of columns, or the user's own Pydantic model.

    `model` is `package.module:Class`. With `edits` its validators may change values, which are then sent.
    """

    columns: dict[str, Column] | None = None
    file: str | None = None
    model: str | None = None
    edits: bool = False


class ContractFile(Definition):
    """A file of contracts/, put under one key: the file itself contains only columns."""

    contract: dict[str, Column]


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


RunValue = Literal["$run_started_at", "$run_id", "$sync"]
Transform = Literal["trim", "lower", "upper", "sha256_hex", "e164"]


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
        "`deletes` must be keep, delete, {delete: true, within: SQL} or"
        " {set: {field: value}, restore: {field: value}, within: SQL}"
    )


def _several(value: object) -> object:
    return [value] if isinstance(value, dict) else value


class Drift(Definition):
    """How far a column may change from one good run to the next. `max_psi` limits the population stability
    index of its values; the others the change of the share of NULL, of the number of values and of the mean,
    as fractions."""

    column: str
    max_psi: Annotated[float, Field(gt=0)] | None = None
    max_null_rate_change: Rate | None = None
    max_distinct_change: Annotated[float, Field(gt=0)] | None = None
    max_mean_change: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _limits(self) -> Self:
        if self.model_fields_set == {"column"}:
            raise ValueError("`drift` needs a limit, such as max_psi: 0.2")
        return self


class Guards(Definition):
    """Limits: beyond them a run is refused before its first write. Rates are fractions of 1."""

    max_reject_rate: Rate = 0.05
    max_delete_rate: Rate = 0.10
    max_delete_rows: Annotated[int, Field(ge=0)] | None = None
    max_row_drop: Rate = 0.50
    max_failed_rate: Rate = 0.10
    max_conflict_rate: Rate = 0.10
    min_rows: Annotated[int, Field(ge=0)] | None = None
    drift: Annotated[
        tuple[Drift, ...],
        BeforeValidator(_several, json_schema_input_type=Drift | list[Drift]),
    ] = ()


class Results(Definition):
    """A file of check results that Great Expectations or Soda wrote, at most `max_age` old."""

    results: str
    max_age: Duration | None = None


class Rejects(Definition):
    """Whether the ledger stores rejected rows, for how long, and which columns it masks in addition to the
    sensitive ones."""

    payload: bool = False
    mask: tuple[str, ...] = ()
    retain: Duration = 7 * 86400.0

    @model_validator(mode="after")
    def _fits(self) -> Rejects:
        if self.model_fields_set and "payload" not in self.model_fields_set:
            raise ValueError("`mask` and `retain` need `payload: true`: they apply to the stored rows")
        return self


class Log(Definition):
    """How long `retl log` can show the rows of a run."""

    keep: Duration = 400 * 86400.0


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


class Reconcile(Definition):
    """How often the target is compared with what was delivered, after a run."""

    every: Duration


class BatchSize(Definition):
    rows: Annotated[int, Field(ge=1, le=1_000_000)] = 5000


class MappingTest(Definition):
    """A row of the mart, and either the fields that would be sent, or the reason of its reject: a column of
    the contract, or a code. A missing column is NULL. A missing field may have any value. `$kept` is a field
    under `nulls: keep` that would not be sent."""

    name: str | None = None
    given: dict[str, Any]
    expect: dict[str, Any] | None = None
    reject: str | None = None

    @model_validator(mode="after")
    def _one(self) -> MappingTest:
        if (self.expect is None) == (self.reject is None):
            raise ValueError("a test needs exactly one of expect and reject")
        return self


class DestinationRef(BaseModel):
    """The connection or type. All other keys belong to the target's own Options model."""

    model_config = ConfigDict(frozen=True, extra="allow")

    connection: str | None = None
    type: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Sync(Definition):
    """One sync file. `name` is the file's name, set by the project."""

    name: str
    description: str | None = None
    tags: tuple[str, ...] = ()
    enabled: bool = True
    after: tuple[str, ...] = ()
    source: Annotated[Source, BeforeValidator(_source)]
    key: Annotated[tuple[str, ...], Field(min_length=1)]
    contract: Annotated[
        Contract | None,
        BeforeValidator(_contract, json_schema_input_type=dict[str, Column] | ModelSpelling | str),
    ] = None
    fields: (
        dict[
            str,
            Annotated[FieldSource, BeforeValidator(_field_source, json_schema_input_type=str | FieldSource)],
        ]
        | None
    ) = None
    destination: DestinationRef
    write: Literal["upsert", "insert_only", "update_only", "append"] = "upsert"
    changes: Annotated[
        Changes,
        BeforeValidator(
            _changes, json_schema_input_type=Literal["hash", "all", "cdf"] | HashSpelling | WatermarkSpelling
        ),
        Field(json_schema_extra={"default": "hash"}),
    ] = Changes()
    deletes: Annotated[
        Deletes,
        BeforeValidator(
            _deletes, json_schema_input_type=Literal["keep", "delete"] | SetSpelling | WithinSpelling
        ),
        Field(json_schema_extra={"default": "keep"}),
    ] = Deletes()
    cascade: bool = False  # deletes may change other tables through foreign keys
    first_run: Literal["send", "adopt"] | None = None
    delivery: Literal["at_least_once", "at_most_once"] | None = None
    conflicts: Annotated[
        Conflicts,
        BeforeValidator(_conflicts, json_schema_input_type=ConflictsSpelling),
        Field(json_schema_extra={"default": "warehouse_wins"}),
    ] = Conflicts()
    guards: Guards = Guards()
    rejects: Rejects = Rejects()
    log: Log = Log()
    checks: tuple[str | Results, ...] = ()
    formats: Formats = Formats()
    batch: BatchSize = BatchSize()
    retry: Retry = Retry()
    timeout: Duration | None = None
    freshness: Duration | None = None
    reconcile: Reconcile | None = None
    rollback: Annotated[
        Rollback,
        BeforeValidator(_rollback, json_schema_input_type=Literal["none"] | KeepSpelling),
        Field(json_schema_extra={"default": "none"}),
    ] = Rollback()
    tests: tuple[MappingTest, ...] = ()

    @property
    def refers_to(self) -> dict[str, FieldSource]:
        """The fields that are ids from another sync."""
        return {name: one for name, one in (self.fields or {}).items() if one.ref is not None}

    @property
    def strategies(self) -> tuple[Conflicts, ...]:
        """How conflicts end: of the sync, then of each field that says so itself."""
        own = [one.conflicts for one in (self.fields or {}).values() if one.conflicts is not None]
        return (self.conflicts, *own)

    @property
    def earlier(self) -> set[str]:
        """The syncs of the same invocation that run before this one."""
        referred = {str(one.ref) for one in self.refers_to.values()} - {self.name}
        return referred | {*self.after}

    @model_validator(mode="after")
    def _fits(self) -> Sync:
        if self.deletes.how != "keep" and self.write == "append":
            raise ValueError("`deletes` is not possible with `write: append`: appended rows stay")
        if self.deletes.how != "keep" and self.changes.strategy not in ("hash", "cdf"):
            raise ValueError(
                f"`deletes` needs `changes: hash` or cdf: with {self.changes.strategy} a row's absence"
                " means nothing"
            )
        if self.guards.drift and (self.changes.strategy not in ("hash", "all") or self.write == "append"):
            raise ValueError("`drift` compares whole marts: it needs `changes: hash` or all, and no append")
        if self.cascade and self.deletes.how != "delete":
            raise ValueError("`cascade: true` needs `deletes: delete`: no other setting removes rows")
        if self.write == "append" and self.first_run is None:
            raise ValueError(
                "`write: append` needs `first_run`: send (every row of today's mart) or adopt (none)"
            )
        if self.rollback.keep is not None and self.deletes.how == "set":
            raise ValueError(
                "`rollback` is not possible with `deletes: {set: …}`: a row that is marked is restored by"
                " `restore` when its key returns to the mart"
            )
        compares = any(one.how != "warehouse_wins" for one in self.strategies)
        if compares and self.write == "append":
            raise ValueError("`conflicts` is not possible with `write: append`: there is nothing to compare")
        if "max_conflict_rate" in self.guards.model_fields_set and not compares:
            raise ValueError("`max_conflict_rate` has no effect with `conflicts: warehouse_wins`")
        if len(set(self.key)) != len(self.key):
            raise ValueError("`key` contains a column twice")
        for name, source in (self.fields or {}).items():
            if (name == "*") != (source.column == "*") or (name == "*" and source != FieldSource(column="*")):
                raise ValueError('`"*": "*"` stands for all other columns; * has no other use')
        return self


class Warehouse(Definition):
    """The DuckDB file with the marts."""

    type: Literal["duckdb"] = "duckdb"
    path: str = "data/warehouse.duckdb"
    read_paths: tuple[str, ...] = ()
    dbt: str = "target"  # dbt's target folder: manifest.json and run_results.json
    timezone: str = "UTC"
    lock_wait: Duration = 600.0


class State(Definition):
    """Where the ledger is, and how long `retl state prune` leaves history there."""

    url: str = "file:.retl"
    retain: Duration = 400 * 86400.0


class ConnectionRef(BaseModel):
    """A connection's type and limits; all other keys belong to the type's own Connection model."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str
    limits: Limits = Limits()

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


AlertEvent = Literal["failure", "refusal", "rejects", "stale", "success", "recovery"]


class When(Definition):
    """The event of an alert. `rejects`: more than this fraction of the rows read was rejected."""

    event: AlertEvent
    rate: Rate = 0.0


def _when(value: object) -> object:
    """`failure` or `{rejects: {rate: 0.01}}` → the fields of When."""
    if isinstance(value, str):
        return {"event": value}
    rejects = value.get("rejects") if isinstance(value, dict) and value.keys() == {"rejects"} else None
    if not isinstance(rejects, dict) or rejects.keys() != {"rate"}:
        raise ValueError(
            "`on` must be a list of failure, refusal, stale, success, recovery, {rejects: {rate: 0.01}}"
        )
    return {"event": "rejects", **rejects}


class Recipient(Definition):
    """The recipient of an alert: a webhook's address, or a URL of apprise. Both may contain a secret."""

    webhook: SecretStr | None = None
    apprise: SecretStr | None = None

    @model_validator(mode="after")
    def _one(self) -> Recipient:
        if (self.webhook is None) == (self.apprise is None):
            raise ValueError("`to` must be {webhook: https://…} or a URL that apprise knows")
        text = self.webhook.get_secret_value() if self.webhook else ""
        parts = urlsplit(text)
        if self.webhook and "${" not in text:  # an unset variable is reported later
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("a webhook's address must look like https://host/path")
            if parts.scheme == "http" and needs_tls(parts.hostname):
                raise ValueError("a webhook's address must be https, except on this machine")
        return self


class Alert(Definition):
    """Who gets an alert for which events; without syncs and tags for every sync."""

    to: Annotated[Recipient, BeforeValidator(lambda to: {"apprise": to} if isinstance(to, str) else to)]
    on: Annotated[tuple[Annotated[When, BeforeValidator(_when)], ...], Field(min_length=1)]
    syncs: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    def concerns(self, sync: Sync) -> bool:
        everything = not self.syncs and not self.tags
        return everything or sync.name in self.syncs or bool(set(self.tags) & set(sync.tags))


class SourceRef(BaseModel):
    """A source's type; the rest belongs to the type's own Connection model."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str


class Project(Definition):
    """retl.yml"""

    warehouse: Warehouse = Warehouse()
    sources: dict[str, SourceRef] = Field(default={})
    connections: dict[str, ConnectionRef] = Field(default={})
    vars: dict[str, str | int | float | bool | None] = Field(default={})
    state: State = State()
    alerts: tuple[Alert, ...] = ()
    defaults: dict[str, Any] = Field(default={})  # defaults for every sync file, applied before validation
