"""What a user may write: frozen models of syncs, guards and the project file. The larger settings have files
of their own: `marts`, `contracts`, `writing`, `alerts`.

`retl schema` makes its JSON Schema from these models. They know shapes and defaults. They do not know files,
environment or targets: `files` reads, `app/resolve` resolves, `destinations/` owns the target's options.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from retl.model import Definition, Duration, Formats, Hours, Limits, Rate, Retry
from retl.project.alerts import Alert
from retl.project.asserts import AssertSetting
from retl.project.contracts import ContractSetting
from retl.project.marts import SourceSetting
from retl.project.then import Then
from retl.project.triggers import Triggers
from retl.project.writing import (
    Changes,
    ChangesSetting,
    Conflicts,
    ConflictsSetting,
    Deletes,
    DeletesSetting,
    Erase,
    FieldSetting,
    FieldSource,
    Rollback,
    RollbackSetting,
)

SYNC_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")


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
    max_first_run: Annotated[int, Field(ge=0)] = 100
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


Shards = Annotated[int, Field(ge=1, le=64)]


EngineType = Literal["local", "spark"]


class Engine(Definition):
    """How syncs are worked out: in how many processes each, unless it says so itself, and where these run."""

    type: EngineType = "local"
    shards: Shards = 1
    master: str | None = None
    folder: str | None = None
    port: Annotated[int, Field(ge=0, le=65535)] = 0

    @model_validator(mode="after")
    def _shared(self) -> Engine:
        if self.type == "spark" and self.shards == 1:
            raise ValueError("Spark shares the keys of a sync: `type: spark` needs `shards`, 2 or more")
        return self


class DestinationRef(BaseModel):
    """The connection or type. All other keys belong to the target's own Options model."""

    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)

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
    when: Triggers = ()  # for `retl watch`
    source: SourceSetting
    key: Annotated[tuple[str, ...], Field(min_length=1)]
    contract: ContractSetting = None
    fields: dict[str, FieldSetting] | None = None
    destination: DestinationRef
    write: Literal["upsert", "insert_only", "update_only", "append", "replace"] = "upsert"
    changes: ChangesSetting = Changes()
    deletes: DeletesSetting = Deletes()
    cascade: bool = False  # deletes may change other tables through foreign keys
    first_run: Literal["send", "adopt"] | None = None
    delivery: Literal["at_least_once", "at_most_once"] | None = None
    conflicts: ConflictsSetting = Conflicts()
    guards: Guards = Guards()
    rejects: Rejects = Rejects()
    log: Log = Log()
    checks: tuple[str | Results, ...] = ()
    formats: Formats = Formats()
    batch: BatchSize = BatchSize()
    retry: Retry = Retry()
    shards: Shards | None = None  # processes of one run; None: as `engine` says
    timeout: Duration | None = None
    freshness: Duration | None = None
    reconcile: Reconcile | None = None
    rollback: RollbackSetting = Rollback()
    erase: Erase | None = None
    require: Literal["approval"] | None = None
    tests: tuple[MappingTest, ...] = ()
    asserts: tuple[AssertSetting, ...] = Field(default=(), alias="assert")
    then: Then = ()  # requests after a run

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
    """A connection's type, limits and hours; all other keys belong to the type's own Connection model."""

    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)

    type: str
    limits: Limits = Limits()
    hours: Hours | None = None

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class SourceRef(BaseModel):
    """A source's type; the rest belongs to the type's own Connection model."""

    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)

    type: str


class Project(Definition):
    """retl.yml"""

    warehouse: Warehouse = Warehouse()
    sources: dict[str, SourceRef] = Field(default={})
    connections: dict[str, ConnectionRef] = Field(default={})
    vars: dict[str, str | int | float | bool | None] = Field(default={})
    state: State = State()
    engine: Engine = Engine()
    alerts: tuple[Alert, ...] = ()
    allowed_signers: str | None = None  # who may approve plans: a file as ssh-keygen(1) describes it
    defaults: dict[str, Any] = Field(default={})  # defaults for every sync file, applied before validation
