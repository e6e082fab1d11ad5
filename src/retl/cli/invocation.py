"""One command line: where the project is, how to print, and what was opened for it.

Everything else is the session's. Nothing is read before a command asks for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field
from msgspec.structs import replace

from retl.app import masking
from retl.cli import output
from retl.cli.output import Format, Piece
from retl.errors import DefinitionError

if TYPE_CHECKING:
    from retl.app.choice import Choice
    from retl.app.loaded import LoadedProject
    from retl.app.session import Session
    from retl.project.settings import Settings


class Invocation(Struct, dict=True):
    """The options that every command has, and what the command has opened so far."""

    folder: Path | None = None
    environment: str | None = None
    output: Format = "table"
    debug: bool = False
    reveal: bool = False
    reads: bool = False  # it only shows or changes the ledger: wrong sync files do not stop it
    watched: bool = False  # stderr is a terminal: show progress instead of a log
    output_lost: bool = False  # stdout is closed or its disk is full
    _closing: ExitStack = field(default_factory=ExitStack)
    _hidden: dict[str, bool] = field(default_factory=dict)  # sync → whether its keys are masked
    begun: float | None = None  # when the first run's time began to count; that of later ones when they do

    def show(
        self,
        document: Any,
        pieces: Callable[[], Sequence[Piece]],
        text_of: Callable[[], str] | None = None,
    ) -> None:
        """Print a command's result in the requested format; called once per command. `text_of`: the text of
        a format that only this command has."""
        if self.output == "json":
            text = output.document_text(document)
        elif self.output != "table" and text_of is not None:
            text = text_of()
        else:
            text = output.pieces_text(list(pieces()))
        if not output.write(text):
            self.output_lost = True
            output.say("warning: stdout is closed or its disk is full; the output is lost")

    def names(self, choice: Choice, is_former: Callable[[str], bool] | None = None) -> list[str] | None:
        """The names of the chosen syncs, None for all of the history. A name may be of a sync that is no
        longer defined, if `is_former` knows it, which by default is one that has runs."""
        if choice.bare:
            return None
        is_former = is_former or self._ran
        former = [one for one in choice.names if one not in self.project.syncs and is_former(one)]
        rest = replace(choice, names=tuple(one for one in choice.names if one not in former))
        defined = self.session.choose(rest, paused=True) if not rest.bare else []
        return [*former, *(one.name for one in defined)]

    def _ran(self, name: str) -> bool:
        return bool(self.session.ledger().runs(name, 1))

    def show_nothing(self, choice: Choice, name: str = "syncs") -> int:
        """Print that no sync was selected, which is a good answer, and return its exit code."""
        self.show({name: [], "exit_code": 0}, lambda: [choice.nothing()])
        return int(self.output_lost)

    @cached_property
    def session(self) -> Session:
        """The project, with its files read and checked. From here on its settings configure the log."""
        from retl.app.resolve import open_project
        from retl.app.session import Session
        from retl.project.settings import project_folder

        project = open_project(project_folder(self.folder), self.environment, to_read=self.reads)
        self._configure_log(project.settings)
        if project.faults:
            from retl.cli import problems

            problems.warn(project.faults)
        session = Session(project, self.environment, begun=self.begun, failed=self.debugged)
        self._closing.callback(session.close)
        return session

    @property
    def project(self) -> LoadedProject:
        return self.session.project

    def _configure_log(self, settings: Settings) -> None:
        """On a terminal without log settings only warnings are logged: commands print the rest."""
        from retl.observe import log

        configured = settings.retl_log_format is not None or "retl_log_level" in settings.model_fields_set
        self.watched = not configured and sys.stderr is not None and sys.stderr.isatty()
        level = "warning" if self.watched else settings.retl_log_level
        log.configure(settings.retl_log_format, level, crash_at=settings.retl_crash_at)

    def debugged(self, problem: BaseException) -> None:
        if self.debug:
            from retl.cli import problems

            problems.report(problem, debug=True)

    def hides_key(self, sync: str) -> bool:
        """Whether to mask this sync's keys: `masking.hides_key`, unless --reveal was given."""
        if sync not in self._hidden:
            self._hidden[sync] = masking.hides_key(self.project, sync)
        return not self.reveal and self._hidden[sync]

    def masked_columns(self, sync: str) -> set[str]:
        """The columns of a sync that must stay masked by its current definition."""
        known = self.project.syncs.get(sync)
        if known is None:
            return set()
        return masking.sensitive_columns(self.project, known).union(known.rejects.mask)

    def variables(self, given: Sequence[str] | None, where: str | None = None) -> dict[str, Any]:
        """The values of --var NAME=VALUE, of the types that retl.yml gives them. DefinitionError
        VAR_INVALID; USAGE for a name that the project does not have, and `where` does not use."""
        from retl.app import bindings
        from retl.project import parameters

        named: dict[str, Any] = {}
        for text in given or ():
            name, equals, value = text.partition("=")
            if not equals or not name.isidentifier():
                hint = "such as --var run_date=2026-11-20; SQL reads it as $run_date"
                raise DefinitionError("VAR_INVALID", f"--var takes NAME=VALUE, not {text!r}", hint=hint)
            bindings.require(self.project, [name], where)
            named[name] = parameters.given(name, value, self.project.definitions.vars.get(name))
        return named

    def close(self) -> None:
        self._closing.close()
