"""One command line: where the project is, how to print, and what was opened for it.

Only this module opens the project and the ledger and makes the jobs of syncs. It reads nothing before a
command needs it.
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

from retl import BEGUN
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
    """The options that every command has, and what the command has opened so far."""

    folder: Path | None = None
    environment: str | None = None
    output: Format = "table"
    debug: bool = False
    reveal: bool = False
    watched: bool = False  # stderr is a terminal: show progress instead of a log
    output_lost: bool = False  # stdout is closed or its disk is full
    _closing: ExitStack = field(default_factory=ExitStack)
    _paces: dict[str, Pace] = field(default_factory=dict)
    _targets: dict[str, Resolved] = field(default_factory=dict)
    _references: dict[str, dict[str, str]] = field(default_factory=dict)
    _begun: float | None = BEGUN

    def show(self, document: Any, pieces: Callable[[], Sequence[Piece]]) -> None:
        """Print a command's result in the requested format; called once per command."""
        text = output.document_text(document) if self.output == "json" else output.pieces_text(list(pieces()))
        if not output.write(text):
            self.output_lost = True
            output.say("warning: stdout is closed or its disk is full; the output is lost")

    @cached_property
    def project(self) -> LoadedProject:
        """The project, with its files read and checked. From here on its settings configure the log."""
        from retl.app.resolve import open_project
        from retl.project.settings import project_folder

        project = open_project(project_folder(self.folder), self.environment)
        self._configure_log(project.settings)
        return project

    def _configure_log(self, settings: Settings) -> None:
        """On a terminal without log settings only warnings are logged: commands print the rest."""
        from retl.observe import log

        configured = settings.retl_log_format is not None or "retl_log_level" in settings.model_fields_set
        self.watched = not configured and sys.stderr is not None and sys.stderr.isatty()
        level = "warning" if self.watched else settings.retl_log_level
        log.configure(settings.retl_log_format, level, crash_at=settings.retl_crash_at)

    def ledger(self, *, create: bool = False) -> Ledger:
        """The project's ledger, closed at the end of the command. Without `create` nothing is written."""
        from retl.ledger import open_ledger

        project = self.project
        # For files the environment is already part of the path; on a server it is the schema.
        own = None if project.state_url.startswith("file:") else self.environment
        ledger = open_ledger(project.state_url, project.folder, environment=own, create=create)
        self._closing.callback(ledger.close)
        return ledger

    def sync(self, name: str) -> Sync:
        """One sync by its name, paused or not. DefinitionError SYNC_UNKNOWN."""
        if name == "all":
            raise DefinitionError("SYNC_UNKNOWN", "this command needs one sync, not `all`")
        (found,) = self.project.select(names=[name])
        return found

    def require(self, syncs: Sequence[Sync]) -> None:
        """Check variables and resolve destinations. DefinitionErrors list everything that is wrong.
        Called before the ledger is opened, so that a wrong definition creates no files."""
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
        """The job of a sync that `require` checked. `today` is the date on the ledger's clock."""
        from retl.run.job import Job, Target

        project, found = self.project, self._targets[sync.name]
        begun, self._begun = self._begun, None
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
        """The pace that all syncs of a connection share; without a ledger only within this process."""
        from retl.pace.limiter import Pace

        if found.name not in self._paces:
            made = Pace(found.limits, book=ledger, connection=found.name)
            self._paces[found.name] = made
            self._closing.callback(made.close)
        return self._paces[found.name]

    def variables(self, given: Sequence[str]) -> Mapping[str, Any]:
        """The project's `vars`, overridden by --var NAME=VALUE, unconverted."""
        named: dict[str, Any] = dict(self.project.definitions.vars)
        for text in given:
            name, equals, value = text.partition("=")
            if not equals or not name.isidentifier():
                raise DefinitionError("VAR_INVALID", f"--var takes NAME=VALUE, not {text!r}")
            named[name] = value
        return named

    def hides_key(self, sync: str) -> bool:
        """Whether to mask this sync's keys. Also if it is unknown: the sync is no longer defined, or only
        its own Pydantic model knows."""
        if self.reveal:
            return False
        known = self.project.syncs.get(sync)
        if known is None or (known.contract is not None and known.contract.model is not None):
            return True
        return bool(sensitive_columns(known, self.project.folder) & set(known.key))

    def masked_columns(self, sync: str) -> set[str]:
        """The columns of a sync that must stay masked by its current definition."""
        known = self.project.syncs.get(sync)
        if known is None:
            return set()
        return sensitive_columns(known, self.project.folder).union(known.rejects.mask)

    def close(self) -> None:
        self._closing.close()


def dated(variables: Mapping[str, Any], today: date) -> dict[str, Any]:
    """The variables, with `today` replaced by that date, in a form that DuckDB compares with a DATE."""
    return {name: today.isoformat() if value == "today" else value for name, value in variables.items()}


def sensitive_columns(sync: Sync, folder: Path) -> set[str]:
    """The sensitive columns of a sync's YAML contract."""
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
