"""The sources of a project, ready to open, with the options that a sync writes beside their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace
from pydantic import BaseModel

from retl import sources
from retl.app.connections import placed
from retl.errors import DefinitionError
from retl.model import Limits
from retl.observe.mask import MASK
from retl.observe.redact import register_model
from retl.project.definitions import SourceRef, Sync, Warehouse
from retl.project.files import PROJECT_FILE, inside
from retl.project.marts import WAREHOUSE
from retl.project.settings import Environment
from retl.project.validation import did_you_mean, raise_all
from retl.project.variables import Filled, fill, masked
from retl.sources.api import Invocation, Source, own_pace
from retl.sources.dbt_model import DbtModel, Model
from retl.sources.inputs import Inputs, Select

if TYPE_CHECKING:
    from retl.pace.limiter import Pace


class Sources(Struct, frozen=True):
    """The sources of retl.yml and the warehouse; `file` is retl.yml as written, `vars` are its variables."""

    __repr__ = object.__repr__  # the values of variables are secrets

    folder: Path
    definitions: Mapping[str, SourceRef]
    warehouse: Warehouse
    vars: Mapping[str, Any]
    environment: Environment
    file: Filled

    def of(
        self,
        sync: Sync,
        filled: Filled,
        variables: Mapping[str, Any] | None = None,
        waiting: Callable[[str], object] = lambda _who: None,
        pace: Callable[[str, Limits], Pace] = lambda _name, limits: own_pace(limits),
        *,
        offline: bool = False,
    ) -> Source[Any]:
        """The source of a sync, ready to open; `variables` fill `$name` in its SQL (by default those of
        retl.yml), `pace` finds the pace of a source by name and limits. With `offline` it is not going to be
        opened: no secret is read. DefinitionError(s), each with the place where it was written."""
        given = self.vars if variables is None else variables
        invocation = Invocation(self.folder, given, waiting, sync.contract, watermark=sync.changes.watermark)
        written = filled.part("source")
        if sync.source.inputs is None:
            source = self._source(
                sync.source.from_, written.without("complete"), invocation, pace, offline=offline
            )
        else:
            inputs = written.part("inputs")
            invocation = replace(
                invocation, contract=None, watermark=None
            )  # it judges what the SELECT makes of them
            named = {
                name: self._source(value.get("from"), inputs.part(name), invocation, pace, offline=offline)
                for name, value in inputs.value.items()
            }
            source = Inputs(Select(sql=str(sync.source.sql)), named, invocation)
        raise_all(_unfit(sync, filled, source))
        return source

    def of_files(self, sync: Sync, folder: Path, variables: Mapping[str, Any]) -> Source[Any]:
        """The Parquet files of a folder as the source of a sync. DefinitionError CHANGES_UNKNOWN."""
        from retl.sources.files import Files, Folder, Pattern

        invocation = Invocation(
            self.folder, variables, contract=sync.contract, watermark=sync.changes.watermark
        )
        if sync.changes.strategy not in Files.changes:
            raise DefinitionError(
                "CHANGES_UNKNOWN",
                f"a frame does not report its changes: `changes` can be {', '.join(sorted(Files.changes))}",
                where=f"sync {sync.name}",
            )
        return Files(Folder(root=str(folder)), Pattern(path="*.parquet"), invocation)

    def _source(
        self,
        name: str | None,
        written: Filled,
        invocation: Invocation,
        pace: Callable[[str, Limits], Pace],
        *,
        offline: bool,
    ) -> Source[Any]:
        """A source with the options that are written in a sync."""
        known = self.definitions
        if name is not None and name != WAREHOUSE and name not in known:
            raise DefinitionError(
                "SOURCE_UNKNOWN",
                f"{PROJECT_FILE} has no source {name!r}",
                hint=did_you_mean(name, [*known, WAREHOUSE]),
                where=written.place(("from",)),
            )
        kind = self._source_type(name or WAREHOUSE)
        connection: BaseModel = self.warehouse
        if name is not None and name != WAREHOUSE:
            connection = self._connection(kind, name, offline=offline)
            register_model(connection)
        invocation = replace(invocation, pace=partial(pace, name or WAREHOUSE))
        if "dbt" in written.value and "dbt" not in kind.Options.model_fields:
            model = placed(Model, written.without("from"))
            try:
                return DbtModel(kind, connection, model, Path(self.warehouse.dbt), invocation)
            except DefinitionError as error:
                error.where = error.where or written.place(("dbt",))
                raise
        options = placed(kind.Options, written.without("from"))
        register_model(options)
        if (file := getattr(options, "file", None)) is not None:
            inside(self.folder, file, written.place(("file",)))
        try:
            return kind(connection, options, invocation)
        except DefinitionError as error:
            error.where = error.where or written.place(())
            raise

    def _connection(self, kind: type[Source[Any]], name: str, *, offline: bool) -> BaseModel:
        """A source of retl.yml by the model of its type. Offline, stand-ins replace what is unset, or what a
        file or a command would say: a text, or an address where only one fits."""
        if not offline:
            filled = fill(self.file.tree, self.environment, ("sources", name))
            return placed(kind.Connection, filled.without("type"))
        filled = fill(self.file.tree, self.environment.plain(), ("sources", name)).without("type")
        with suppress(DefinitionError):
            return placed(kind.Connection, masked(filled, MASK))
        return placed(kind.Connection, masked(filled, "https://unset.invalid"))

    def _source_type(self, name: str) -> type[Source[Any]]:
        try:
            return sources.load(self.warehouse.type if name == WAREHOUSE else self.definitions[name].type)
        except DefinitionError as error:
            error.hint = did_you_mean(self.definitions[name].type, sources.names()) or error.hint
            error.where = self.file.place(("sources", name, "type"))
            raise


def _unfit(sync: Sync, written: Filled, source: Source[Any]) -> Iterator[DefinitionError]:
    """What a sync asks of its source that this type cannot give."""
    if sync.changes.strategy not in source.changes:
        yield DefinitionError(
            "CHANGES_UNKNOWN",
            f"this source does not report its changes: `changes` can be {', '.join(sorted(source.changes))}",
            where=written.place(("changes",)),
        )
    changed = [one for one in sync.when if one.changed]
    if any(one.notify is None for one in changed) and not source.tells:
        yield DefinitionError(
            "WHEN_UNKNOWN",
            "this source does not tell whether it changed: use `every`, `cron` or `event`"
            + (", or {changed: {notify: channel}}" if source.announces else ""),
            where=written.place(("when",)),
        )
    if any(one.notify is not None for one in changed) and not source.announces:
        message = "`notify` needs a source in PostgreSQL"
        yield DefinitionError("WHEN_UNKNOWN", message, where=written.place(("when",)))
    absence = sync.deletes.how != "keep"
    if absence and not source.one_state and not sync.source.complete:
        yield DefinitionError(
            "SOURCE_INCOMPLETE",
            "this source has no snapshots, so a missing row may only have been missed: `deletes` needs"
            " `source: {complete: true}`",
            where=written.place(("deletes",)),
        )
    if sync.source.complete and (source.one_state or not absence):
        yield DefinitionError(
            "OPTION_UNUSED",
            "`complete` has no effect here: it is for `deletes` from a source without snapshots",
            where=written.place(("source", "complete")),
        )
