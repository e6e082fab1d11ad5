"""A dbt model in another database than the warehouse's DuckDB file.

The source of that database reads the model's relation, as dbt's manifest names it for the adapter, and dbt's
results judge it as they judge a mart of the warehouse. The results are read once the source shows one state;
a model that dbt builds at that moment may be newer than they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from pydantic import BaseModel

from retl.engine.workspace import Workspace
from retl.errors import DefinitionError
from retl.model import Definition, Duration
from retl.observe.signals import Stop
from retl.project.contracts import Documented
from retl.sources import dbt, dbt_results
from retl.sources.api import Invocation, Snapshot, Source

if TYPE_CHECKING:
    from retl.net.postgres import PostgresConnection

# The adapters of dbt that build where a source reads, if they are not called like the source's type.
ADAPTERS = {
    "databricks": {"databricks", "spark"},
    "mssql": {"sqlserver", "synapse", "fabric"},
    "mysql": {"mysql", "mariadb"},
}
_HINT = "set `dbname` of the source to that database, or `warehouse.dbt` to the target folder of the project"


class Model(Definition):
    """A model, whose last run may have ended `max_age` ago."""

    dbt: str
    max_age: Duration | None = None


def reads(kind: type[Source[Any]]) -> bool:
    """Whether a type of sources reads one SELECT in the SQL of its database."""
    fields = kind.Options.model_fields
    return "sql" in fields and "dbt" not in fields


def type_for(adapter: str) -> str:
    """The type of the source that reads what an adapter builds."""
    return next((kind for kind, adapters in ADAPTERS.items() if adapter in adapters), adapter)


class DbtModel(Source[Model]):
    """A model, read by a source of another type."""

    Options = Model

    def __init__(
        self,
        kind: type[Source[Any]],
        connection: BaseModel,
        options: Model,
        target: Path,
        invocation: Invocation,
    ) -> None:
        """`target`: dbt's target folder. DefinitionError if sources of this kind do not read SQL."""
        super().__init__(connection, options, invocation)
        self._kind, self._target = kind, target
        self._type = kind.__module__.rpartition(".")[2]
        if not reads(kind):
            raise DefinitionError("OPTION_UNKNOWN", f"a source of type {self._type} reads no dbt model")
        self._reader = self._select("SELECT 1")
        self.tells = True
        vars(self).update(
            {part: getattr(kind, part) for part in ("changes", "one_state", "remote", "narrows")}
        )

    @property
    def label(self) -> str:
        return self.options.dbt

    @property
    def identity(self) -> dict[str, str]:
        place = {part: text for part, text in self._reader.identity.items() if part != "sql"}
        return {**place, "dbt": self.options.dbt}

    @property
    def readable(self) -> tuple[Path, ...]:
        return self._reader.readable

    @property
    def timezone(self) -> str:
        return self._reader.timezone

    @property
    def max_age(self) -> float | None:
        return self.options.max_age

    def documented(self) -> Mapping[str, Documented]:
        return dbt.documented(self._target, self.options.dbt)

    @property
    def announces(self) -> tuple[PostgresConnection, ...]:
        return self._reader.announces

    def version(self, stop: Stop) -> str:
        """When dbt last built the model; without a run of it, nothing changed."""
        return f"{self.options.dbt}: {dbt_results.build(self._target, self.options.dbt).ended_at}"

    def check(self, stop: Stop) -> None:
        self._reader.check(stop)

    def open(self, workspace: Workspace, *, wait: bool = True) -> Snapshot:
        adapters = ADAPTERS.get(self._type, {self._type})
        database = getattr(self.connection, "dbname", None)
        if database is not None and "${" in database:  # an unset variable is reported later
            database = None
        relation = dbt.relation_in(self._target, self.options.dbt, adapters, database, hint=_HINT)
        snapshot = self._select(f"SELECT * FROM {relation}").open(workspace, wait=wait)
        try:
            health = tuple(dbt_results.reported(self._target, [self.options.dbt]))
        except BaseException:
            snapshot.close()
            raise
        snapshot.description = replace(snapshot.description, health=health, models=(health[0].id,))
        return snapshot

    def _select(self, sql: str) -> Source[Any]:
        return self._kind(self.connection, self._kind.Options(sql=sql), self.invocation)
