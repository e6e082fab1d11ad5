"""A project, opened once: its syncs as jobs, run in order and observed.

The Python API and all commands use it. It prints nothing, reads no command line and installs no signal
handler. Everything is read or opened when it is needed.

    with retl.open("shop") as session:
        summary = session.sync("user_segments")
        summaries = session.run(tags=["daily"], jobs=4)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from datetime import date
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from retl.app import bindings, engines, observers, places
from retl.app.alerts import Digest
from retl.app.choice import Choice
from retl.app.failures import described, exit_code
from retl.app.loaded import Following, LoadedProject, Resolved
from retl.app.resolve import open_project
from retl.app.schedule import run_all
from retl.app.selection import select, unknown
from retl.engine.selection import Selection
from retl.errors import DefinitionError, Failure, RetlError
from retl.observe import log
from retl.observe.signals import Stop
from retl.observe.summary import Summary
from retl.project import parameters
from retl.project.definitions import EngineType, Sync
from retl.project.fields import Neighbour, key_fields
from retl.project.settings import project_folder
from retl.project.validation import raise_all
from retl.run import asserting
from retl.run.fit import fit_definition
from retl.run.guards import GUARDS
from retl.run.job import Job, Options, Peer

if TYPE_CHECKING:
    from retl.destinations.batch import Decision
    from retl.ledger import Ledger
    from retl.model import Hours, Limits
    from retl.pace.limiter import Pace
    from retl.run.plan import Plan
    from retl.run.processes import Cluster
    from retl.run.spark import SparkCluster
    from retl.sources.api import Source

Verify = Callable[[Job, "Plan"], None]
GOOD = ("SUCCESS", "SUCCESS_WITH_REJECTS")  # a run that ended with success


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
        self._begun, self._on_failure = begun, failed
        self._closing = ExitStack()
        self._ledger: Ledger | None = None
        self._spark: SparkCluster | None = None
        self.marts: dict[str, Path] = {}  # by sync, a folder of Parquet files in place of its source
        self.given: Mapping[str, Any] = {}  # variables of every job, beside those of its options
        self._digest = Digest()
        self._paces: dict[str, Pace] = {}
        self._targets: dict[str, Resolved] = {}
        self._references: dict[str, dict[str, str]] = {}
        self._followers: dict[str, list[Following]] = {}

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._closing.close()
        self._ledger = None

    def sync(self, name: str, **asked: Any) -> Summary:
        """Run one sync; returns its summary, also if it failed. `name` may be any selector that fits one
        sync. `asked` are the parameters of `run`.

        DefinitionError (such as SYNC_UNKNOWN) if nothing ran because a definition is wrong."""
        choice, rest = _choice([name], asked)
        chosen = self.to_run(choice)
        if len(chosen) != 1:
            raise DefinitionError(
                "USAGE", f"{name!r} selects {len(chosen)} syncs, not one", hint="`run` takes any number"
            )
        return self.run_chosen(chosen, self._options(rest))[0]

    def run(
        self, names: Collection[str] = (), *, jobs: int = 1, fail_fast: bool = False, **asked: Any
    ) -> list[Summary]:
        """Run the selected syncs, `jobs` at a time, each after those in its `after`; without a name or tag
        all enabled ones. Returns a summary of each, PAUSED for one that is not enabled. `asked` are the
        other parameters of `select`, and those of `options`."""
        choice, rest = _choice(names, asked)
        return self.run_chosen(self.to_run(choice), self._options(rest), jobs=jobs, fail_fast=fail_fast)

    def _options(self, asked: dict[str, Any]) -> Options:
        """`options`, with variables that the project has, of the types that it gives them."""
        variables = bindings.typed(self.project, asked.get("variables") or {}, asked.get("where"))
        return options(**asked | {"variables": variables})

    def select(
        self,
        names: Collection[str] = (),
        tags: Collection[str] = (),
        exclude: Collection[str] = (),
        *,
        all: bool = False,
        failed: bool = False,
        state: str | None = None,
    ) -> list[Sync]:
        """The definitions of the selected syncs. `names` and `exclude` are names, globs and selectors as in
        `retl sync` (tag:daily, to:crm, dbt:orders+, state:modified). `failed`: only those whose last run did
        not end with success. `state`: what state:modified compares with, a commit, a folder or a file of
        `retl list`. DefinitionError NOTHING_SELECTED (not for `failed` and state:modified), SYNC_UNKNOWN."""
        return self.to_run(Choice(tuple(names), tuple(tags), tuple(exclude), all, failed, state))

    def choose(self, choice: Choice, *, paused: bool = False) -> list[Sync]:
        """The syncs of a choice, with `paused` also those that are not enabled. DefinitionError
        NOTHING_SELECTED, SYNC_UNKNOWN and others of `selection`."""
        chosen = select(self.project, choice, paused=paused)
        if choice.failed:
            with closing(self._opened(create=False)) as ledger:  # a run opens it again, to write
                chosen = [one for one in chosen if _failed(one.name, ledger)]
        if not (chosen or choice.bare or choice.may_be_empty):
            raise _nothing_selected()
        return chosen

    def to_run(self, choice: Choice) -> list[Sync]:
        """The same for a run, which is about something: without a choice that no sync is enabled is not an
        error, and that there is none at all is."""
        chosen = self.choose(choice)
        if not chosen and choice.bare:
            chosen = list(self.project.syncs.values())
            if not chosen:
                raise _nothing_selected()
        return chosen

    def run_chosen(
        self, chosen: Sequence[Sync], options: Options, *, jobs: int = 1, fail_fast: bool = False
    ) -> list[Summary]:
        """Run these syncs in the given order."""
        work = self.jobs_of([one for one in chosen if one.enabled], options)
        with observers.listening(self.project, dry_run=options.dry_run):
            done = self.run_jobs(work, jobs=jobs, fail_fast=fail_fast)
        return [done[one.name] if one.enabled else paused(one.name, options.dry_run) for one in chosen]

    def jobs_of(self, syncs: Sequence[Sync], options: Options) -> dict[str, Job]:
        """A job for each of these syncs, after all checks of `require`."""
        self.require(syncs, options)
        if not syncs:
            return {}
        ledger = self.ledger(create=not options.dry_run)
        return {one.name: self.job(one, ledger, options) for one in syncs}

    def run_jobs(
        self, work: Mapping[str, Job], *, jobs: int = 1, fail_fast: bool = False
    ) -> dict[str, Summary]:
        """Run jobs of this session, in any thread; returns a summary of each. Never raises."""
        done = run_all(work, self._run, jobs=jobs, fail_fast=fail_fast)
        self._remember_blocked(done)
        if self._digest.waiting and self._ledger is not None:
            self._digest.send(self._ledger)
        return done

    def _remember_blocked(self, done: Mapping[str, Summary]) -> None:
        """Note which syncs were not started, so that `--failed` chooses them: they have no run."""
        ledger = self._ledger
        for name, one in done.items():
            lacks = one.status == "BLOCKED" and one.run_id is None and not one.dry_run
            if ledger is not None and lacks and (one.error or {}).get("code") != "LOCK_HELD":
                with suppress(RetlError):  # the summary says it all the same
                    ledger.keep(_blocked_after(name), _newest(name, ledger))

    def failed(self, sync: str, problem: Exception) -> Summary:
        """The summary of a sync that could not be run."""
        error = {name: text for name, text in self._explained(problem).items() if name != "where"}
        return Summary(sync, None, "FAILED", exit_code(problem), error=error)

    def apply(self, sync: Sync, options: Options, verify: Verify) -> Summary:
        """Run one sync if `verify` does not raise Mismatch on its plan."""
        from retl.run import pipeline

        self.require([sync], options)
        ledger = self.ledger(create=True)
        job = self.job(sync, ledger, options)
        with observers.listening(self.project):
            summary = pipeline.sync(job, lambda plan: verify(job, plan))
        observers.alert_end(self.project, self.environment, sync, ledger, summary, self._digest)
        self._digest.send(ledger)
        return summary

    def ledger(self, *, create: bool = False) -> Ledger:
        """The project's ledger; without `create` nothing is written."""
        if self._ledger is None or (create and self._ledger.fresh):
            self._ledger = self._opened(create=create)
            self._closing.callback(self._ledger.close)
        return self._ledger

    def _opened(self, *, create: bool) -> Ledger:
        from retl.ledger import open_ledger

        # The path of a file state contains the environment already; on a server it is the schema.
        own = None if self.project.state_url.startswith("file:") else self.environment
        return open_ledger(self.project.state_url, self.project.folder, environment=own, create=create)

    def require_known(self, name: str) -> None:
        """DefinitionError SYNC_UNKNOWN if the project has no sync of this name, right or wrong."""
        if name not in self.project.unread:
            self.definition(name)

    def definition(self, name: str) -> Sync:
        """One sync by its name, paused or not. DefinitionError SYNC_UNKNOWN."""
        if name == "all":
            raise DefinitionError(
                "SYNC_UNKNOWN", "this command needs one sync, not `all`", hint="`retl list` shows them"
            )
        found = self.project.syncs.get(name)
        if found is None:
            raise unknown(name, self.project)
        return found

    def require(
        self, syncs: Sequence[Sync], options: Options | None = None, *, offline: bool = False
    ) -> None:
        """Check that every variable is set and every destination valid; all DefinitionErrors at once. Call it
        before the ledger is opened, so that a wrong definition writes nothing. With `offline` no server is
        going to be asked, so no secret of a target is needed."""
        if options is not None and options.selection.full:
            raise_all(_full_append(one) for one in syncs if one.write == "append")
        if options is not None and options.offline:
            offline = True
            raise_all(self._beyond(syncs))
        self.project.require(syncs, offline=offline)
        if options is not None:
            raise_all(engines.unfit(self.project, syncs, options))
        errors = []
        for sync in syncs:
            try:
                self._targets[sync.name] = self.project.destination(sync, offline=offline)
                if sync.reconcile is not None:
                    from retl.run import reconcile

                    reconcile.require(sync, self._targets[sync.name].target, reconcile.Asked())
                asserting.require(sync, self._targets[sync.name].target.destination)
                fit_definition(sync, self._targets[sync.name].target)
                self._references[sync.name] = self.project.references(sync)
                self._followers[sync.name] = self.project.following(sync, assumed=offline)
            except DefinitionError as problem:
                errors.append(places.located(self.project, sync, problem))
        raise_all(errors)
        if options is not None and not options.offline:
            observers.require_alerts(self.project)

    def _beyond(self, syncs: Sequence[Sync]) -> Iterator[DefinitionError]:
        """What a dry run without network cannot reach."""
        hint = "leave out --offline"
        if not self.project.state_url.startswith("file:"):
            yield DefinitionError("OFFLINE", "the ledger is on a server", hint=hint)
        for sync in syncs:
            if self.project.source(sync, offline=True).remote:
                message = "the source is on a server or in a bucket: its rows cannot be read offline"
                yield DefinitionError("OFFLINE", message, hint=hint, where=f"sync {sync.name}")

    def job(self, sync: Sync, ledger: Ledger, options: Options) -> Job:
        """A job of a sync that passed `require`. `today` is the date on the ledger's clock."""
        project, found = self.project, self._targets[sync.name]
        begun, self._begun = self._begun, None
        book = None if options.dry_run else ledger
        connection = getattr(found.options, "connection", None)
        for one in (connection, *(one.http for one in self._followers[sync.name])):
            if auth := getattr(getattr(one, "http", one), "auth", None):
                auth.keep_in(ledger)
        variables = self.variables(options.variables, ledger.now().date())
        return Job(
            sync=sync,
            folder=project.folder,
            source=self._source(sync, variables, book),
            target=found.target,
            ledger=ledger,
            options=replace(options, variables=variables),
            stop=self.stop,
            pace=self._pace(found.name, found.limits, book, found.hours),
            siblings=frozenset(project.syncs),
            akin=frozenset(
                name for name, one in project.syncs.items() if one.key == sync.key and name != sync.name
            ),
            neighbours=self._neighbours(sync),
            references=self._references[sync.name],
            referred={
                name: tuple(key_fields(project.syncs[name]).values()) for name in self._references[sync.name]
            },
            environment=self.environment,
            correlation_id=project.settings.retl_correlation_id,
            followers=[
                one.follower(self._pace(one.asked.connection, one.limits, book, one.hours))
                for one in self._followers[sync.name]
            ],
            since=begun,
            shards=(shards := engines.shards(project, sync, options)),
            cluster=self._cluster(ledger, options) if shards > 1 else None,
            peer=Peer(*options.shard, str(project.settings.retl_correlation_id)) if options.shard else None,
        )

    def _neighbours(self, sync: Sync) -> dict[str, Neighbour]:
        """The other syncs of the object of a sync. Paused ones do not count."""
        others = [one for one in self.project.syncs.values() if one.enabled and one.name != sync.name]
        claim = self.project.claim(sync) if sync.enabled and others else None
        if claim is None:
            return {}
        return {one.name: Neighbour.of(one) for one in others if self.project.claim(one) == claim}

    def _source(self, sync: Sync, variables: Mapping[str, Any], book: Ledger | None) -> Source[Any]:
        if folder := self.marts.get(sync.name):
            return self.project.sources.of_files(sync, folder, variables)
        return self.project.source(sync, variables, _log_waiting, partial(self._source_pace, book))

    def _cluster(self, ledger: Ledger, options: Options) -> Cluster | None:
        """Where the shards of all syncs run, if not on this machine alone."""
        engine, folder = self.project.definitions.engine, engines.shared_folder(self.project)
        if options.shard is not None and folder is not None:
            from retl.run.peers import PeerCluster

            return PeerCluster(folder, ledger.own_address, engine.port)
        if not engines.on_spark(self.project, options):
            return None
        if self._spark is None:
            from retl.run.spark import SparkCluster

            self._spark = SparkCluster(engine.master, folder, engine.port)
            self._closing.callback(self._spark.close)
        return self._spark

    def write_metrics(self, file: Path | None, summaries: Sequence[Summary]) -> None:
        """Write the metrics file of these runs, if `file` or RETL_METRICS_FILE names one."""
        observers.write_metrics(self.project, self.environment, file, self.ledger, summaries)

    def variables(self, given: Mapping[str, Any], today: date) -> dict[str, Any]:
        """The `vars` of retl.yml and the given ones, which win. Days are dates, and `today` is that one."""
        declared = self.project.definitions.vars
        return parameters.bound({**declared, **self.given, **given}, declared, today)

    def _pace(self, name: str, limits: Limits, ledger: Ledger | None, hours: Hours | None = None) -> Pace:
        """The pace that all syncs of a connection share; without a ledger only in this process."""
        from retl.pace.limiter import Pace

        if name not in self._paces:
            made = Pace(limits, book=ledger, connection=name, hours=hours)
            self._paces[name] = made
            self._closing.callback(made.close)
        return self._paces[name]

    def _source_pace(self, ledger: Ledger | None, name: str, limits: Limits) -> Pace:
        """The pace of a source, which may have the name of a connection."""
        return self._pace(f"source {name}", limits, ledger)

    def _run(self, job: Job) -> Summary:
        if job.peer is None:
            return self._run_alone(job)
        from retl.run import peers

        try:
            return peers.sync(job, lambda: self._run_alone(job))
        except Exception as problem:  # noqa: BLE001 - as of a run
            return self.failed(job.sync.name, problem)

    def _run_alone(self, job: Job) -> Summary:
        from retl.run import pipeline

        try:
            if job.options.dry_run:
                return self.placed(job.sync, pipeline.dry_run(job))
            summary = pipeline.sync(job, unexpected=self._described)
            if job.sync.reconcile is not None:
                from retl.run import reconcile

                summary = reconcile.after_run(job, summary)
        except Exception as problem:  # noqa: BLE001 - one sync's failure does not stop the others
            summary = replace(self.failed(job.sync.name, problem), dry_run=job.options.dry_run)
        summary = self.placed(job.sync, summary)
        if not job.options.dry_run:
            observers.alert_end(self.project, self.environment, job.sync, job.ledger, summary, self._digest)
        return summary

    def placed(self, sync: Sync, summary: Summary) -> Summary:
        """With file and line of a definition that only the mart refuted."""
        if summary.error is None or summary.exit_code != DefinitionError.exit_code:
            return summary
        where = places.place(self.project, sync, summary.error["code"])
        return replace(summary, error={**summary.error, "where": where})

    def _described(self, problem: Exception) -> RetlError:
        """An unexpected error as the failure of a run."""
        found = self._explained(problem)
        return Failure(found["code"], found["message"], hint=found["hint"])

    def _explained(self, problem: Exception) -> dict[str, Any]:
        self._on_failure(problem)
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
    offline: bool = False,
    engine: EngineType | None = None,
    shard: str | None = None,
) -> Options:
    """The options of one invocation, as in `retl sync`. DefinitionError GUARD_UNKNOWN, USAGE. `offline` is
    for a dry run: the target is not asked. `shard` is K/N, such as 3/16."""
    if offline and not dry_run:
        raise DefinitionError(
            "USAGE", "only a dry run can be offline: a run asks the target before it writes"
        )
    for code in accept:
        if code not in GUARDS:
            hint = f"guards: {', '.join(GUARDS)}"
            hint = next((f"did you mean {one!r}?" for one in get_close_matches(code.upper(), GUARDS)), hint)
            raise DefinitionError("GUARD_UNKNOWN", f"there is no guard {code!r}", hint=hint)
    return Options(
        dry_run=dry_run,
        selection=Selection(full=full, limit=limit, keys=tuple(keys), where=where),
        allow_deletes=allow_deletes,
        accept=tuple(accept),
        variables=dict(variables or {}),
        decisions=dict(decisions or {}),
        offline=offline,
        engine=engine,
        shard=engines.part(shard) if shard is not None else None,
    )


def paused(name: str, dry_run: bool = False) -> Summary:
    """The summary of a sync that is not enabled."""
    return Summary(name, None, "PAUSED", 0, dry_run=dry_run)


def _choice(names: Collection[str], asked: Mapping[str, Any]) -> tuple[Choice, dict[str, Any]]:
    """The parameters of `select` as a choice, and the other ones."""
    if isinstance(names, str):
        names = (names,)
    ours = set(Choice.__struct_fields__)
    given = {name: value for name, value in asked.items() if name in ours}
    given |= {name: tuple(given[name]) for name in ("tags", "exclude") if name in given}
    rest = {name: value for name, value in asked.items() if name not in ours}
    return Choice(names=tuple(names), **given), rest


def _failed(name: str, ledger: Ledger) -> bool:
    """Whether the last run of a sync did not end with success, or it could not be started since."""
    if ledger.kept(_blocked_after(name)) == _newest(name, ledger):
        return True
    last = ledger.last_run(name)
    return last is not None and last.status not in GOOD


def _newest(sync: str, ledger: Ledger) -> str:
    """The id of a sync's last run; empty without one."""
    last = ledger.last_run(sync)
    return last.run_id if last is not None else ""


def _blocked_after(sync: str) -> str:
    """The name under which the ledger keeps after which run a sync could not be started."""
    return f"blocked {sync}"


def _nothing_selected() -> DefinitionError:
    hint = "`retl list` shows the syncs"
    return DefinitionError("NOTHING_SELECTED", "no sync matches the selection", hint=hint)


def _full_append(sync: Sync) -> DefinitionError:
    return DefinitionError(
        "FULL_APPEND",
        "--full is not possible with `write: append`: it would append every row again",
        where=f"sync {sync.name}",
    )


def _log_waiting(pid: str) -> None:
    log.event("mart_locked", writer=pid)
