"""Watch: runs the syncs of a project when they are due, in the foreground, until it is asked to stop.

One process watches a project. A sync never overlaps itself; what asks for it while it runs becomes one run
afterwards. Syncs that are due together on one connection, or that wait for one another, run one after the
other, as in one `retl sync`. It decides only when: everything a run does is the session's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import datetime
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from msgspec import Struct
from msgspec.structs import replace

from retl.app import observers, schedule
from retl.app.choice import EVERY, Choice
from retl.app.failures import described
from retl.app.freshness import connection
from retl.app.loaded import LoadedProject
from retl.app.server import Server, parse
from retl.app.session import GOOD, Session, options
from retl.app.watch import agenda, paths, watched
from retl.app.watch.agenda import Entry, awaits, families, heard
from retl.app.watch.hold import Hold
from retl.app.watch.looks import Looks
from retl.app.watch.notify import Listeners
from retl.app.watch.topics import Load, Topics
from retl.engine.mapping import Run
from retl.engine.selection import Selection
from retl.errors import DefinitionError, RetlError, Stopped
from retl.ledger.breakers import SKEW
from retl.observe import log
from retl.observe.signals import Stop
from retl.observe.summary import Summary
from retl.project.definitions import Sync

if TYPE_CHECKING:
    from retl.run.job import Doubted, Job

RENEW = 60.0  # seconds between two looks at the lock and the ledger's clock
STUCK = 300.0  # seconds without a turn after which a watch is not healthy
JOBS = 4


class Shift(Struct):
    """A session, open as long as runs use it: between runs nothing stays connected."""

    session: Session
    groups: int = 0


class Begun(Struct, frozen=True):
    """What a run was started with: its id, whether more than keys was asked for, and what it takes from the
    sync's topic."""

    run_id: str | None
    whole: bool
    load: Load | None = None

    @property
    def is_idle(self) -> bool:
        """Whether another run took the keys for which this one was asked."""
        return self.load is not None and self.load.keys == ()


class Watch:
    """The syncs of a project that have a `when`. A context manager: entering it takes the project's lock."""

    def __init__(
        self,
        opened: Callable[[], LoadedProject],
        environment: str | None = None,
        choice: Choice = EVERY,
        *,
        jobs: int = JOBS,
        listen: str | None = None,
        stop: Stop | None = None,
        report: Callable[[Summary], object] = lambda _summary: None,
        failed: Callable[[BaseException], object] = lambda _problem: None,
    ) -> None:
        """`opened` reads the project's files, now and at each `reload`. `choice`: only these syncs.
        `listen`: HOST:PORT for HTTP; without it only where a sync takes events, and then on DEFAULT. `report`
        gets the summary of every run, in the thread of that run."""
        self.project = opened()
        self.environment, self.choice, self.jobs = environment, choice, jobs
        self.stop = stop or Stop()
        self.broken: str | None = None  # the code of what is wrong with the files since the last reload
        self._opened, self._report, self._failed = opened, report, failed
        self._closing = ExitStack()
        self._entries: dict[str, Entry] = {}
        self._shift: Shift | None = None
        self._awake = threading.Condition()
        self._asked_to_turn = self._asked_to_reload = False
        self._code = 0  # the exit code of the last run
        self._last_turn, self._renewed = monotonic(), monotonic()
        self._latest: datetime | None = None  # of the moments of turns
        self._alerts: Future[None] = Future()
        self._alerts.set_result(None)
        self._looks = Looks(self.ask, self.stop)
        self._listeners = Listeners(self.ask)
        self._topics = Topics(self._ask_for_keys)
        self._listen = listen
        self.server: Server | None = None
        if listen is not None:
            parse(listen)  # is it an address?

    def __enter__(self) -> Self:
        """DefinitionError if a sync cannot run or nothing is to be watched; Later LOCK_HELD."""
        chosen = watched.chosen(self.project, self.choice)
        with self._closing:
            self.hold = Hold(lambda: Session(self.project, self.environment).ledger(create=True))
            self._closing.callback(self.hold.close)
            self._closing.callback(self._report_last)
            self._closing.enter_context(observers.listening(self.project))
            self._pool = self._closing.enter_context(ThreadPoolExecutor(self.jobs, "retl-watch"))
            self._alerting = self._closing.enter_context(ThreadPoolExecutor(1, "retl-alerts"))
            self._closing.callback(self._looks.close)
            self._closing.callback(self._listeners.close)
            self._closing.callback(self._topics.close)
            self._use(self.project, chosen)
            self._closing = self._closing.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """Wait for the runs to end."""
        self._closing.close()

    def run(self) -> int:
        """Watch until a stop is requested; then let the runs end and return 128 and the signal's number.
        Later LOCK_HELD if another process took over."""
        self._looks.start()
        log.event("watching", **self.plan)
        with suppress(Stopped), self.stop.interrupting(self._wake):
            while not self.stop.event.is_set():
                seconds = self.turn()
                with self._awake:
                    if not (self._asked_to_turn or self.stop.event.is_set()):
                        self._awake.wait(seconds)
                    self._asked_to_turn = False
        log.event("watch_stopping", running=self.running)
        return 128 + (self.stop.signum or 15)

    @property
    def plan(self) -> dict[str, Any]:
        """What is watched, and what each sync waits for: its next moment, or an event."""
        now = self.hold.now()
        with self._awake:
            awaited = {name: awaits(entry, now) for name, entry in sorted(self._entries.items())}
        found = {"project": str(self.project.folder), "syncs": list(awaited), "next": awaited}
        if self.server is None:
            return found
        host = (self._listen or paths.DEFAULT).rpartition(":")[0]
        return {**found, "address": f"http://{host}:{self.server.port}"}

    def ask(self, name: str) -> str | None:
        """Ask for a run of a watched sync; returns the id that the run will have, None if the sync is not
        watched. Requests that come before the run starts get the same id."""
        with self._awake:
            entry = self._entries.get(name)
            if entry is None:
                return None
            run_id = self._ask(entry)
            self._asked_to_turn = True
            self._awake.notify_all()
            return run_id

    def _ask_for_keys(self, name: str) -> None:
        with self._awake:
            if (entry := self._entries.get(name)) is not None:
                self._ask(entry, whole=False)
        self._wake()

    def event(self, name: str) -> str | None:
        """`ask` for a sync that takes events."""
        with self._awake:
            entry = self._entries.get(name)
            takes = entry is not None and any(one.event for one in entry.sync.when)
        return self.ask(name) if takes else None

    def reload_soon(self) -> None:
        """Read the project's files again at the next turn, which is at once."""
        self._asked_to_reload = True
        self._wake()

    @property
    def running(self) -> list[str]:
        with self._awake:
            return sorted(name for name, entry in self._entries.items() if entry.running)

    def turn(self) -> float:
        """One cycle: start what is due. Returns the seconds until the next one."""
        if self._asked_to_reload:
            self._asked_to_reload = False
            self._reload()
        if monotonic() - self._renewed >= RENEW:
            self._renewed = monotonic()
            self.hold.renew()
            if observers.has_age_alerts(self.project) and self._alerts.done():
                self._alerts = self._alerting.submit(self._tell_ages)
        now = self.hold.now()
        with self._awake:
            if self._latest is not None and now < self._latest - SKEW:
                log.event("clock_set_back", level="warning", seconds=(self._latest - now).total_seconds())
                for entry in self._entries.values():
                    entry.set_back(now)
            self._latest = now
            for entry in self._entries.values():
                if entry.due is not None and entry.due <= now and not entry.running:
                    self._ask(entry)
            room = self.jobs - (self._shift.groups if self._shift else 0)
            groups = agenda.groups(list(self._entries.values()), now, room)
        for group in groups:
            self._start(group)
        self._topics.report(self.hold.ledger)
        self._last_turn = monotonic()
        with self._awake:
            wakes = [moment for one in self._entries.values() if (moment := one.wakes(now)) is not None]
        seconds = [(moment - self.hold.now()).total_seconds() for moment in wakes]
        return max(0.01, min([*seconds, RENEW]))

    def health(self) -> dict[str, Any]:
        """What /healthz says; `status` is ok, stopping or stuck."""
        turned = monotonic() - self._last_turn < STUCK
        with self._awake:
            entries = list(self._entries.items())
        return {
            "status": "stopping" if self.stop.event.is_set() else "ok" if turned else "stuck",
            "definitions": self.broken or "ok",
            "syncs": len(entries),
            "running": sorted(name for name, one in entries if one.running),
            "failing": sorted(name for name, one in entries if one.failures),
            "deaf": [*self._listeners.deaf, *self._topics.deaf],
        }

    def metrics(self) -> str:
        """What /metrics says: that of every sync, and of the watch. LedgerError."""
        with self._awake:
            entries = list(self._entries.items())
        found = [*families(entries, self.broken), *heard(self._topics.counted)]
        ledger = self.hold.ledger
        return observers.metrics_text(self.project, self.environment, ledger, [], self._code, found)

    def _wake(self) -> None:
        with self._awake:
            self._asked_to_turn = True
            self._awake.notify_all()

    def _ask(self, entry: Entry, *, whole: bool = True) -> str:
        entry.whole = entry.whole or whole
        entry.run_id = entry.run_id or Run.at(self.hold.now()).run_id
        return entry.run_id

    def _start(self, group: Sequence[Entry]) -> None:
        """Run the syncs of a group in another thread."""
        begun: dict[str, Begun] = {}
        with self._awake:
            if self._shift is None:
                self._shift = Shift(self._session())
            shift = self._shift
            shift.groups += 1
            for entry in group:
                begun[entry.sync.name] = Begun(entry.run_id, entry.whole)
                entry.run_id, entry.whole = None, False
        try:
            made = shift.session.jobs_of([entry.sync for entry in group], options())
            for name, job in made.items():
                begun[name] = self._loaded(begun[name], job)
            doubted = self._doubted()
            work = {
                name: _job(job, begun[name], doubted if job.is_blind else None)
                for name, job in made.items()
                if not begun[name].is_idle
            }
        except Exception as problem:  # noqa: BLE001 - a sync that cannot run must not end the watch
            failed = {one.sync.name: shift.session.failed(one.sync.name, problem) for one in group}
            self._ended(shift, failed, begun)
            return
        with self._awake:
            for entry in group:
                entry.running = entry.sync.name in work
        if work:
            self._pool.submit(self._work, shift, work, begun)
        else:
            self._ended(shift, {}, begun)

    def _doubted(self) -> Doubted | None:
        """What the last run of a sync found, if its target and the ledger do not agree."""
        with self._awake:
            return next((one.doubted for one in self._entries.values() if one.doubted), None)

    def _loaded(self, begun: Begun, job: Job) -> Begun:
        """The same with what the run takes from the sync's topic. What was never delivered as a whole is not
        delivered by keys. LedgerError."""
        topic = self._topics.of(job.sync.name)
        if topic is None:
            return begun
        first = job.ledger.checkpoint(job.sync.name, job.object) is None
        return replace(begun, load=topic.take(whole=begun.whole or first))

    def _work(self, shift: Shift, work: Mapping[str, Job], begun: Mapping[str, Begun]) -> None:
        try:
            done = shift.session.run_jobs(work)
        except Exception as problem:  # noqa: BLE001 - see above
            done = {name: shift.session.failed(name, problem) for name in work}
        self._ended(shift, done, begun)

    def _ended(self, shift: Shift, done: Mapping[str, Summary], begun: Mapping[str, Begun]) -> None:
        """Note how runs ended. An id that no run has is kept for the next try."""
        for summary in done.values():
            self._report(summary)
            self._code = summary.exit_code
        with self._awake:
            now = self.hold.now()
            for name, summary in done.items():
                entry, one = self._entries.get(name), begun[name]
                if entry is None:
                    continue
                entry.looked, entry.doubted = True, schedule.doubted(summary, entry.doubted)
                good, topic = summary.exit_code == 0 and summary.status in GOOD, self._topics.of(name)
                follows = topic is not None and topic.ended(one.load, good=good, rest=summary.rest)
                again, holds = self._opens(entry, summary), follows and not good
                if entry.ended(summary.exit_code, now, again, holds=holds) or follows:
                    entry.run_id = entry.run_id or (one.run_id if summary.run_id is None else None)
                    self._ask(entry, whole=one.whole)
            shift.groups -= 1
            idle = shift.groups == 0
            if idle and shift is self._shift:
                self._shift = None
        if idle:
            shift.session.close()
        self._wake()

    def _report_last(self) -> None:
        """Store what the runs confirmed that ended after the last turn."""
        if self.hold.is_held:
            self._topics.report(self.hold.ledger)

    def _tell_ages(self) -> None:
        """Send alerts for syncs that are stale. An alert may take long, so this has a thread of its own."""
        project, ledger = self.project, self.hold.ledger
        try:
            observers.alert_ages(project, self.environment, ledger)
        except RetlError as problem:
            log.event("ages_unknown", level="warning", code=problem.code)

    def _opens(self, entry: Entry, summary: Summary) -> datetime | None:
        """When the hours of its connection begin, if a run ended because of them."""
        known = self.project.definitions.connections.get(connection(entry.sync))
        outside = summary.error is not None and summary.error["code"] == "OUTSIDE_HOURS"
        if not (outside and known and known.hours):
            return None
        now = self.hold.now()
        return now if known.hours.closes(now) else known.hours.opens(now)  # they may have begun meanwhile

    def _session(self) -> Session:
        return Session(self.project, self.environment, stop=self.stop, failed=self._failed)

    def _reload(self) -> None:
        """Use the files as they are now. If they are wrong, the former definitions stay in use."""
        try:
            project = self._opened()
            if project.state_url != self.project.state_url:
                raise DefinitionError("STATE_URL", "another state needs a new start of `retl watch`")
            self._use(project, watched.chosen(project, self.choice))
        except Exception as problem:  # noqa: BLE001 - whatever it is, the watch goes on
            said = described(problem)
            self.broken = str(said["code"])
            fields = {name: said[name] for name in ("code", "message", "where")}
            log.event("definitions_broken", level="error", **fields)
        else:
            self.broken = None
            log.event("definitions_read", syncs=sorted(self._entries))

    def _use(self, project: LoadedProject, chosen: Sequence[Sync]) -> None:
        """Watch these from now on. If it fails, nothing has changed."""
        now, ledger = self.hold.now(), self.hold.ledger
        dues = {}
        for sync in chosen:
            known = self._entries.get(sync.name)
            if known is None or known.sync.when != sync.when:
                last = ledger.last_run(sync.name)
                dues[sync.name] = agenda.first(sync, last.started_at if last else None, now)
        views, ears = watched.views(project, chosen, ledger, now), watched.ears(project, chosen)
        claims = {one.name: project.claim(one) for one in chosen}
        topics = watched.topics(project, chosen)
        blind = {one.name for one in chosen if not project.kind(one).keeps_marks}
        late = schedule.late(chosen, blind)
        if self.server is None and (self._listen or watched.takes_events(chosen)):
            self.server = Server(
                self._listen or paths.DEFAULT,
                lambda request: paths.answer(request, self, lambda: watched.token(self.project)),
            )
            self._closing.callback(self.server.close)
        with self._awake:
            self._shift = None  # it closes with its last run
            self.project = project
            former = self._entries
            self._entries = {one.name: former.get(one.name) or Entry(one) for one in chosen}
            for one in chosen:
                entry = self._entries[one.name]
                entry.sync, entry.claim, entry.rests = one, claims[one.name], None
                entry.due = dues.get(one.name, entry.due)
                entry.blind, entry.late = one.name in blind, one.name in late
        self._looks.use(views)
        self._listeners.use(ears)
        self._topics.use(topics, ledger)


def _job(job: Job, begun: Begun, doubted: Doubted | None) -> Job:
    """A job for the keys that were named, or for the whole mart. `doubted`: what another sync found."""
    touched = begun.load.keys or () if begun.load is not None else ()
    chosen = replace(job.options, selection=Selection(touched=touched))
    return replace(job, run_id=begun.run_id, options=chosen, doubted=doubted)
