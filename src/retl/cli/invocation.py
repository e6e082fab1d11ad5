"""One command line being answered: where the project is, how to print, and what was opened for it.

The project, the ledger and the jobs of syncs are made here and nowhere else. Nothing is read before a
command asks for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retl.cli import output
from retl.cli.output import Format, Piece
from retl.errors import DefinitionError

if TYPE_CHECKING:
    from retl.app.resolve import LoadedProject, Resolved
    from retl.ledger import Ledger
    from retl.observe.signals import Stop
    from retl.pace.limiter import Pace
    from retl.project.definitions import Sync
    from retl.project.settings import Settings
    from retl.run.job import Job, Options


@dataclass
class Invocation:
    """The options that every command has, and what the command opened so far."""

    folder: Path | None = None
    environment: str | None = None
    output: Format = "table"
    debug: bool = False
    reveal: bool = False
    watched: bool = False  # a person sits at stderr and wants progress rather than a log
    unheard: bool = False  # stdout is closed or its disk is full: what was printed is lost
    _closing: ExitStack = field(default_factory=ExitStack)
    _paces: dict[str, Pace] = field(default_factory=dict)
    _targets: dict[str, Resolved] = field(default_factory=dict)
    _references: dict[str, dict[str, str]] = field(default_factory=dict)
    begun: float | None = None  # when the first run's time began to count; that of later ones when they do

    def show(self, document: Any, pieces: Callable[[], Sequence[Piece]]) -> None:
        """Print a command's answer in the form that was asked for; called once per command."""
        text = output.document_text(document) if self.output == "json" else output.pieces_text(list(pieces()))
        if not output.write(text):
            self.unheard = True
            output.say("warning: stdout is closed or its disk is full: nothing could be printed there")

    @cached_property
    def project(self) -> LoadedProject:
        """The project, its files read and right; the log speaks as its settings say from here on."""
        from retl.app.resolve import open_project
        from retl.project.settings import project_folder

        project = open_project(project_folder(self.folder), self.environment)
        self._configure_log(project.settings)
        return project

    def _configure_log(self, settings: Settings) -> None:
        """Where a person looks on and asked for nothing else, only warnings: commands say the rest."""
        from retl.observe import log

        asked = settings.retl_log_format is not None or "retl_log_level" in settings.model_fields_set
        self.watched = not asked and sys.stderr is not None and sys.stderr.isatty()
        level = "warning" if self.watched else settings.retl_log_level
        log.configure(settings.retl_log_format, level, crash_at=settings.retl_crash_at)

    def ledger(self, *, create: bool = False) -> Ledger:
        """The project's ledger, closed when the command ends; without `create` nothing is written."""
        from retl.ledger import open_ledger

        project = self.project
        # The path of a state in files has the environment in it already; in a server it is the schema.
        own = None if project.state_url.startswith("file:") else self.environment
        ledger = open_ledger(project.state_url, project.folder, environment=own, create=create)
        self._closing.callback(ledger.close)
        return ledger

    def sync(self, name: str) -> Sync:
        """One sync by its name, paused or not. DefinitionError SYNC_UNKNOWN."""
        if name == "all":
            raise DefinitionError("SYNC_UNKNOWN", "one sync is needed here, not `all`")
        (found,) = self.project.select(names=[name])
        return found

    def require(self, syncs: Sequence[Sync]) -> None:
        """Every variable set, every destination resolved; DefinitionErrors for all that is wrong at once.
        Comes before the ledger is opened, so that a wrong definition leaves nothing behind."""
        from retl.project.validation import raise_all

        referred = {str(one.ref) for sync in syncs for one in sync.refers_to.values()}
        self.project.require([*syncs, *(self.project.syncs[name] for name in sorted(referred))])
        errors = []
        for sync in syncs:
            try:
                self._targets[sync.name] = self.project.destination(sync)
                self._references[sync.name] = self.project.references(sync)
            except DefinitionError as problem:
                errors.append(problem)
        raise_all(errors)

    def job(self, sync: Sync, ledger: Ledger, options: Options, stop: Stop) -> Job:
        """A sync that was required, ready to be planned or run; today is so on the ledger's clock."""
        from retl.run.job import Job, Target

        project, found = self.project, self._targets[sync.name]
        begun, self.begun = self.begun, None
        return Job(
            sync=sync,
            folder=project.folder,
            warehouse=project.warehouse,
            target=Target(found.type, found.destination, found.options, found.name),
            ledger=ledger,
            options=replace(options, variables=dated(options.variables, ledger.now().date())),
            stop=stop,
            pace=self._pace(found, None if options.dry_run else ledger),
            siblings=frozenset(project.syncs),
            references=self._references[sync.name],
            environment=self.environment,
            correlation_id=project.settings.retl_correlation_id,
            since=begun,
        )

    def _pace(self, found: Resolved, ledger: Ledger | None) -> Pace:
        """What all syncs of a connection share; without a ledger only those of this process."""
        from retl.pace.limiter import Pace

        if found.name not in self._paces:
            made = Pace(found.limits, book=ledger, connection=found.name)
            self._paces[found.name] = made
            self._closing.callback(made.close)
        return self._paces[found.name]

    def variables(self, given: Sequence[str]) -> Mapping[str, Any]:
        """The project's `vars` under those of --var NAME=VALUE, as they are written."""
        named: dict[str, Any] = dict(self.project.definitions.vars)
        for text in given:
            name, equals, value = text.partition("=")
            if not equals or not name.isidentifier():
                raise DefinitionError("VAR_INVALID", f"--var takes NAME=VALUE, not {text!r}")
            named[name] = value
        return named

    def hides_key(self, sync: str) -> bool:
        """Must this sync's keys be masked? Where nobody can say any more (it is no longer defined, or only
        its own Pydantic model knows), yes."""
        if self.reveal:
            return False
        known = self.project.syncs.get(sync)
        if known is None or (known.contract is not None and known.contract.model is not None):
            return True
        return bool(sensitive_columns(known, self.project.folder) & set(known.key))

    def masked_columns(self, sync: str) -> set[str]:
        """The columns of a sync that no reader may see, as its definition says by now."""
        known = self.project.syncs.get(sync)
        if known is None:
            return set()
        return sensitive_columns(known, self.project.folder).union(known.rejects.mask)

    def close(self) -> None:
        self._closing.close()


def dated(variables: Mapping[str, Any], today: date) -> dict[str, Any]:
    """Variables whose value is `today` as that date, in the form that DuckDB compares with a DATE."""
    return {name: today.isoformat() if value == "today" else value for name, value in variables.items()}


def sensitive_columns(sync: Sync, folder: Path) -> set[str]:
    """The columns that a sync's YAML contract calls sensitive."""
    from retl.project import yamlfile

    contract = sync.contract
    if contract is None:
        return set()
    if contract.file is not None:
        columns = yamlfile.load(folder / contract.file, name=contract.file).value
        return {
            name for name, column in columns.items() if isinstance(column, dict) and column.get("sensitive")
        }
    return {name for name, column in (contract.columns or {}).items() if column.sensitive}
