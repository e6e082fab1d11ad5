"""A project, opened once: its syncs as jobs, run in order and observed.

The Python API and all commands use it. It prints nothing, reads no command line and installs no signal
handler. Everything is read or opened when it is needed.

    with retl.open("shop") as session:
        summary = session.sync("user_segments")
        summaries = session.run(tags=["daily"], jobs=4)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retl.app import observers
from retl.app.failures import described, exit_code
from retl.app.resolve import LoadedProject, Resolved, open_project
from retl.app.schedule import run_all
from retl.engine.selection import Selection
from retl.errors import DefinitionError, Failure, RetlError
from retl.observe import log
from retl.observe.signals import Stop
from retl.observe.summary import Summary
from retl.project.definitions import Sync
from retl.project.fields import key_fields
from retl.project.settings import project_folder
from retl.project.validation import raise_all
from retl.run.guards import GUARDS
from retl.run.job import Job, Options, Target

if TYPE_CHECKING:
    from retl.destinations.batch import Decision
    from retl.ledger import Ledger
    from retl.model import Limits
    from retl.pace.limiter import Pace
    from retl.run.plan import Plan

Verify = Callable[[Job, "Plan"], None]


class Session:
    """A project with valid files. Close it, or use it as a context manager, to release the ledger and the
    connections' limits. One session may run several syncs at once; use it from one thread."""

    def __init__(
        self,
        project: LoadedProject,
        environment: str | None = None,
        *,
        stop: Stop | None = None,
        begun: float | None = None,
        failed: Callable[[BaseException], object] = lambda _problem: None,
    ) -> None:
        """`stop`: when set, it ends the runs. `begun` (monotonic): the start of the process, for the time of
        the first run. `failed` is called with unexpected errors of a sync."""
        self.project = project
        self.environment = environment
        self.stop = stop or Stop()
        self._begun, self._failed = begun, failed
        self._closing = ExitStack()
        self._ledger: Ledger | None = None
        self._paces: dict[str, Pace] = {}
        self._targets: dict[str, Resolved] = {}
        self._references: dict[str, dict[str, str]] = {}

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._closing.close()
        self._ledger = None

    def sync(self, name: str, **asked: Any) -> Summary:
        """Run one sync; returns its summary, also if it failed. `asked` are the parameters of `options`.

        DefinitionError (such as SYNC_UNKNOWN) if nothing ran because a definition is wrong."""
        (summary,) = self.run([name], **asked)
        return summary

    def run(
        self,
        names: Collection[str] = (),
        *,
        tags: Collection[str] = (),
        exclude: Collection[str] = (),
        all: bool = False,
        jobs: int = 1,
        fail_fast: bool = False,
        **asked: Any,
    ) -> list[Summary]:
        """Run the selected syncs, `jobs` at a time, each after those in its `after`; without a name or tag
        all enabled ones. Returns a summary of each, PAUSED for one that is not enabled."""
        chosen = self.select(names, tags, exclude, all=all)
        return self.run_chosen(chosen, options(**asked), jobs=jobs, fail_fast=fail_fast)

    def select(
        self,
        names: Collection[str] = (),
        tags: Collection[str] = (),
        exclude: Collection[str] = (),
        *,
        all: bool = False,
    ) -> list[Sync]:
        """The definitions of the selected syncs. DefinitionError NOTHING_SELECTED, SYNC_UNKNOWN."""
        chosen = self.project.select(names, tags, exclude, all=all)
        if not (chosen or names or tags or exclude):
            chosen = list(self.project.syncs.values())  # all syncs are paused, which is not an error
        if not chosen:
            raise DefinitionError(
                "NOTHING_SELECTED",
                "no sync matches the selection",
                hint="`retl list` shows the syncs",
            )
        return chosen

    def run_chosen(
        self, chosen: Sequence[Sync], options: Options, *, jobs: int = 1, fail_fast: bool = False
    ) -> list[Summary]:
        """Run these syncs in the given order."""
        running = [one for one in chosen if one.enabled]
        self.require(running, options)
        work: dict[str, Job] = {}
        if running:
            ledger = self.ledger(create=not options.dry_run)
            work = {one.name: self.job(one, ledger, options) for one in running}
        with observers.listening(self.project, dry_run=options.dry_run):
            done = run_all(work, self._run, jobs=jobs, fail_fast=fail_fast)
        return [done[one.name] if one.enabled else paused(one.name, options.dry_run) for one in chosen]

    def apply(self, sync: Sync, options: Options, verify: Verify) -> Summary:
        """Run one sync if `verify` does not raise Mismatch on its plan."""
        from retl.run import pipeline

        self.require([sync], options)
        ledger = self.ledger(create=True)
        job = self.job(sync, ledger, options)
        with observers.listening(self.project):
            summary = pipeline.sync(job, lambda plan: verify(job, plan))
        observers.alert_end(self.project, self.environment, sync, ledger, summary)
        return summary

    def ledger(self, *, create: bool = False) -> Ledger:
        """The project's ledger; without `create` nothing is written."""
        from retl.ledger import open_ledger

        # The path of a file state contains the environment already; on a server it is the schema.
        if self._ledger is None or (create and self._ledger.fresh):
            own = None if self.project.state_url.startswith("file:") else self.environment
            url, folder = self.project.state_url, self.project.folder
            self._ledger = open_ledger(url, folder, environment=own, create=create)
            self._closing.callback(self._ledger.close)
        return self._ledger

    def definition(self, name: str) -> Sync:
        """One sync by its name, paused or not. DefinitionError SYNC_UNKNOWN."""
        if name == "all":
            raise DefinitionError("SYNC_UNKNOWN", "this command needs one sync, not `all`")
        (found,) = self.project.select(names=[name])
        return found

    def require(self, syncs: Sequence[Sync], options: Options | None = None) -> None:
        """Check that every variable is set and every destination valid; all DefinitionErrors at once. Call it
        before the ledger is opened, so that a wrong definition writes nothing."""
        if options is not None and options.selection.full:
            raise_all(_full_append(one) for one in syncs if one.write == "append")
        referred = {str(one.ref) for sync in syncs for one in sync.refers_to.values()}
        self.project.require([*syncs, *(self.project.syncs[name] for name in sorted(referred))])
        errors = []
        for sync in syncs:
            try:
                self._targets[sync.name] = self.project.destination(sync)
                if sync.reconcile is not None:
                    from retl.run import reconcile

                    reconcile.require(sync, self._targets[sync.name].destination, reconcile.Asked())
                self._references[sync.name] = self.project.references(sync)
            except DefinitionError as problem:
                errors.append(problem)
        raise_all(errors)
        if options is not None:
            observers.require_alerts(self.project)

    def job(self, sync: Sync, ledger: Ledger, options: Options) -> Job:
        """A job of a sync that passed `require`. `today` is the date on the ledger's clock."""
        project, found = self.project, self._targets[sync.name]
        begun, self._begun = self._begun, None
        book = None if options.dry_run else ledger
        variables = self.variables(options.variables, ledger.now().date())
        return Job(
            sync=sync,
            folder=project.folder,
            source=project.source(sync, variables, _log_waiting, partial(self._source_pace, book)),
            target=Target(found.type, found.destination, found.options, found.name),
            ledger=ledger,
            options=replace(options, variables=variables),
            stop=self.stop,
            pace=self._pace(found.name, found.limits, book),
            siblings=frozenset(project.syncs),
            references=self._references[sync.name],
            referred={
                name: tuple(key_fields(project.syncs[name]).values()) for name in self._references[sync.name]
            },
            environment=self.environment,
            correlation_id=project.settings.retl_correlation_id,
            since=begun,
        )

    def write_metrics(self, file: Path | None, summaries: Sequence[Summary]) -> None:
        """Write the metrics file of these runs, if `file` or RETL_METRICS_FILE names one."""
        observers.write_metrics(self.project, self.environment, file, self.ledger, summaries)

    def variables(self, given: Mapping[str, Any], today: date) -> dict[str, Any]:
        """The `vars` of retl.yml and the given ones, which win. `today` becomes that date, in the form that
        DuckDB compares with a DATE."""
        merged = {**self.project.definitions.vars, **given}
        return {name: today.isoformat() if value == "today" else value for name, value in merged.items()}

    def _pace(self, name: str, limits: Limits, ledger: Ledger | None) -> Pace:
        """The pace that all syncs of a connection share; without a ledger only in this process."""
        from retl.pace.limiter import Pace

        if name not in self._paces:
            made = Pace(limits, book=ledger, connection=name)
            self._paces[name] = made
            self._closing.callback(made.close)
        return self._paces[name]

    def _source_pace(self, ledger: Ledger | None, name: str, limits: Limits) -> Pace:
        """The pace of a source, which may have the name of a connection."""
        return self._pace(f"source {name}", limits, ledger)

    def _run(self, job: Job) -> Summary:
        from retl.run import pipeline

        try:
            if job.options.dry_run:
                return pipeline.dry_run(job)
            summary = pipeline.sync(job, unexpected=self._described)
            if job.sync.reconcile is not None:
                from retl.run import reconcile

                summary = reconcile.after_run(job, summary)
        except Exception as problem:  # noqa: BLE001 - one sync's failure does not stop the others
            error = {name: text for name, text in self._explained(problem).items() if name != "where"}
            code = exit_code(problem)
            summary = Summary(job.sync.name, None, "FAILED", code, dry_run=job.options.dry_run, error=error)
        if not job.options.dry_run:
            observers.alert_end(self.project, self.environment, job.sync, job.ledger, summary)
        return summary

    def _described(self, problem: Exception) -> RetlError:
        """An unexpected error as the failure of a run."""
        found = self._explained(problem)
        return Failure(found["code"], found["message"], hint=found["hint"])

    def _explained(self, problem: Exception) -> dict[str, Any]:
        self._failed(problem)
        return described(problem)


def open_session(project: Path | str | None = None, env: str | None = None) -> Session:
    """Open the project in a folder (RETL_PROJECT or the working directory by default), with the environment
    file of `env`. DefinitionError(s) for everything wrong in any file."""
    folder = project_folder(Path(project) if project is not None else None)
    return Session(open_project(folder, env), env)


def options(
    *,
    dry_run: bool = False,
    full: bool = False,
    limit: int | None = None,
    keys: Iterable[str] = (),
    where: str | None = None,
    allow_deletes: int | None = None,
    accept: Iterable[str] = (),
    variables: Mapping[str, Any] | None = None,
    decisions: Mapping[str, Decision] | None = None,
) -> Options:
    """The options of one invocation, as in `retl sync`. DefinitionError GUARD_UNKNOWN."""
    for code in accept:
        if code not in GUARDS:
            hint = f"guards: {', '.join(GUARDS)}"
            raise DefinitionError("GUARD_UNKNOWN", f"there is no guard {code!r}", hint=hint)
    return Options(
        dry_run=dry_run,
        selection=Selection(full=full, limit=limit, keys=tuple(keys), where=where),
        allow_deletes=allow_deletes,
        accept=tuple(accept),
        variables=dict(variables or {}),
        decisions=dict(decisions or {}),
    )


def paused(name: str, dry_run: bool = False) -> Summary:
    """The summary of a sync that is not enabled."""
    return Summary(name, None, "PAUSED", 0, dry_run=dry_run)


def _full_append(sync: Sync) -> DefinitionError:
    return DefinitionError(
        "FULL_APPEND",
        "--full is not possible with `write: append`: it would append every row again",
        where=f"sync {sync.name}",
    )


def _log_waiting(pid: str) -> None:
    log.event("mart_locked", writer=pid)
