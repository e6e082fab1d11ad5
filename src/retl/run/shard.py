"""One shard of a run: a process that compares, judges and sends its share of the keys.

`run/shards.py` starts it and tells it what to do, step by step. It decides nothing about the run: guards, the
order of phases, and the end of the run are its parent's. It dies with its parent: when their connection
breaks, it ends at once, and what it had not acknowledged is unknown, as after every crash.

A shard whose process is lost gets another one, which is a new attempt. From then on the ledger takes no
entry of the earlier attempt, so it cannot open a batch any more. The batches that it had opened are resolved
first: a target with marks then refuses them from it.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from retl.contract import judge as contracts
from retl.delivery.answered import Answered
from retl.delivery.lanes import Delivery, prepared
from retl.delivery.paced import Paced
from retl.destinations.batch import UNKNOWN, Batch, Capabilities, Outcome, Shape
from retl.engine import change_set, diff, judge, scope, shards
from retl.engine.answers import Answers
from retl.engine.change_set import ChangeSet, Phase
from retl.engine.diff import Ends
from retl.engine.mapping import FieldMap, Run
from retl.engine.scope import Scope, Scoped
from retl.engine.scratch import private_directory
from retl.engine.shards import Placed
from retl.engine.succession import SUCCEEDED
from retl.engine.workspace import Workspace
from retl.ledger import Attempt, BatchRow, Ledger, open_ledger
from retl.model import Retry
from retl.observe import log, redact
from retl.observe.signals import Stop
from retl.pace.limiter import Pace
from retl.project.contracts import Documented
from retl.run import parts
from retl.run.depot import Depot
from retl.run.diffing import Comparison, differ
from retl.run.drain import batch, batches
from retl.run.job import Target
from retl.run.journal import RunJournal
from retl.run.mart import Mapped, hash_rows
from retl.run.parts import Part, Step
from retl.run.plan import Terms

STEP = 1_000_000  # numbers of batches and files that each attempt at a shard has for itself
MOST = 64  # shards of a run


class Columns(Struct, frozen=True):
    """What the contract of a run is built over. `edited`: the types of the columns that it edited, and what
    it rejected."""

    described: Mapping[str, str]
    documented: Mapping[str, Documented]
    misfit: str | None
    timezone: str
    project: Path
    edited: Mapping[str, str] | None
    rejected: Sequence[tuple[Any, ...]]


class Work(Step, frozen=True):
    """How the share of a shard is planned, and how far it is."""

    columns: Columns
    field_map: FieldMap
    capabilities: Capabilities
    fingerprints: dict[str, str]
    how: Comparison
    selective: bool  # whether only rows that the run selects are compared
    unkeyed: bool  # whether any share has a row without a usable key
    open_rejects: Sequence[str]  # keys
    retried: Sequence[str]  # keys that are sent last
    limit: int | None
    former_scope: str | None
    parts: Sequence[str] = ()  # files in the depot that have its rows
    placed: Placed | None = None  # the end of an earlier attempt to plan is already known
    sends: bool = False  # it is planned: `tables` is there
    planned: Path | None = None  # its tables, which are not placed yet, of a shard elsewhere


class Planned(Struct, frozen=True):
    """What a shard found: rows that it read, candidates by op and ending, due rows by phase."""

    read: int
    erased: int
    scoped: Scoped | None
    ends: Ends
    phases: Mapping[int, int]
    grown: int


class Sending(Struct, frozen=True):
    """How a shard sends: its change set in the run's, and the run as the ledger and the target know it."""

    target: Target
    ledger: tuple[str, Path, str | None]
    pace: Mapping[str, Any]
    retry: Retry
    resend_unknown: bool
    epoch: int
    counts: Mapping[str, int]  # of the run, by op
    terms: Terms
    shape: Shape
    lanes: int


class Sent(Struct, frozen=True):
    """A shard has sent what it was asked for. Numbers are of all that it sent so far."""

    retries: int
    bytes: int


class Failed(Struct, frozen=True):
    """A shard could not do what it was asked for."""

    problem: Exception


class StopNow(Struct, frozen=True):
    signum: int


class Halt:
    """Finish the batch in hand and send no more."""


class Halted(Exception):
    """The parent asked for it: another shard failed."""


class Share(Struct, frozen=True):
    """The rows of a shard as a plan that is drained: see `drain.batches`."""

    run: Run
    capabilities: Capabilities
    terms: Terms
    changes: ChangeSet


class Inbox:
    """What the parent asks for. Requests to stop or halt are obeyed in the middle of a step."""

    def __init__(self, line: Connection, end: Callable[[int], object] = os._exit) -> None:
        """`end` is called when the parent is gone, and ends this process."""
        self.stop, self.halt = Stop(), threading.Event()
        self._line, self._end = line, end
        self._steps: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=self._listen, name="retl-shard", daemon=True).start()

    def next(self) -> Any:
        return self._steps.get()

    def _listen(self) -> None:
        while True:
            try:
                told = self._line.recv()
            except (EOFError, OSError):
                self._end(1)
                return
            if isinstance(told, StopNow):
                if not self.stop.event.is_set():
                    self.stop.request(told.signum)
            elif isinstance(told, Halt):
                self.halt.set()
            else:
                self._steps.put(told)


class Reporting(RunJournal):
    """The journal of a shard: its parent hears of each answer too."""

    tell: Any = None

    def acknowledge(self, answered: Answered) -> None:
        super().acknowledge(answered)
        self.tell(sent(answered))


class Halting(Struct):
    """Instead of the failure rate, which the parent keeps for all shards."""

    halt: threading.Event

    def add(self, batch: Batch, outcome: Outcome) -> None:
        if self.halt.is_set():
            raise Halted


class Shard(Struct):
    """One process. Every step answers with its result, or with Failed."""

    line: Connection
    inbox: Inbox
    work: Work
    _told: threading.Lock = field(default_factory=threading.Lock)

    def serve(self) -> None:
        """Plan, place, then send until the parent is done; a shard elsewhere does one of these."""
        work = self.work
        try:
            if work.depot is not None:
                with private_directory() as folder:
                    self._serve_step(work, work.depot, folder)
            elif work.sends or self._prepare():
                self._serve_sending()
        except Exception as problem:  # noqa: BLE001 - the parent raises it
            self.tell(Failed(portable(problem)))

    def _serve_step(self, work: Work, depot: Depot, folder: Path) -> None:
        """The same with files of this machine, which come from the depot and go there when they are whole."""
        work = self.work = parts.here(work, folder)
        if work.sends:
            depot.get(work.tables.name, folder)
            self._serve_sending()
            return
        if work.placed is None:
            for name in (work.share.name, *work.parts):
                depot.get(name, folder)
            found: object = self._plan_apart()
        else:
            assert work.planned is not None
            found = self._place(depot.get(work.planned.name, folder), work.placed)
        for path in (work.tables, work.heads):
            if path.exists():
                depot.put(path)
        self.tell(found)

    def _serve_sending(self) -> None:
        work, sending = self.work, self.inbox.next()
        if sending is not None:
            with self._workspace() as workspace:
                shards.reopen(workspace, work.tables)
                self._send(sending, workspace)

    @contextmanager
    def _workspace(self) -> Iterator[Workspace]:
        folder = self.work.folder
        with Workspace(folder, self.inbox.stop, threads=self.work.threads) as workspace:
            workspace.harden([folder.parent])
            yield workspace

    def _plan_apart(self) -> Planned:
        """Plan, and write the tables at positions of their own."""
        with self._workspace() as workspace:
            planned = self._plan(workspace)
            (own,) = shards.place([planned.phases])
            shards.put(workspace, self.work.tables, own)
            return planned

    def _place(self, planned: Path, placed: Placed) -> dict[str, int]:
        with self._workspace() as workspace:
            shards.unite(workspace, self.work.field_map, [planned])
            return shards.put(workspace, self.work.tables, placed)

    def tell(self, message: object) -> None:
        with self._told:
            self.line.send(message)

    def _prepare(self) -> bool:
        """Plan and place; False if the parent is done."""
        work = self.work
        with self._workspace() as workspace:
            planned, placed = self._plan(workspace), work.placed
            if placed is None:
                self.tell(planned)
                placed = self.inbox.next()
            if placed is not None:
                self.tell(shards.put(workspace, work.tables, placed))
            return placed is not None

    def _plan(self, workspace: Workspace) -> Planned:
        work, field_map = self.work, self.work.field_map
        mapped = Mapped(self._contract(), field_map, work.capabilities, work.fingerprints)
        rows = shards.take(workspace, work.share, [work.share.with_name(name) for name in work.parts])
        hash_rows(workspace, mapped, shards.CHOSEN if work.selective else None)
        found = differ(workspace, field_map, work.how, rows)
        judge.judge(workspace, mapped.contract, work.sync.key, work.columns.rejected)
        judge.hold_deletes(workspace, unkeyed=work.unkeyed, by_ref=work.capabilities.by_ref)
        judge.find_standing(workspace, dict.fromkeys(work.open_rejects))
        changes = change_set.assemble(
            workspace,
            field_map,
            write=work.sync.write,
            retried=work.retried,
            limit=work.limit,
            succeeds=bool(workspace.run(f"SELECT 1 FROM {SUCCEEDED} LIMIT 1")),
        )
        grown = 0
        if work.former_scope and changes.counts.get("delete"):
            grown = scope.grown(workspace, field_map, Scope.parse(work.former_scope))
        if work.limit is not None:
            shards.put_heads(workspace, field_map, work.heads)
        ends, phases = diff.ends(workspace), shards.by_phase(workspace)
        return Planned(found.read, found.erased, found.scoped, ends, phases, grown)

    def _contract(self) -> contracts.Contract:
        sync, columns = self.work.sync, self.work.columns
        found = contracts.build(
            *(sync.contract, columns.described, columns.project, sync.key, columns.timezone, columns.misfit),
            documented=columns.documented,
        )
        return found if columns.edited is None else found.over(columns.edited)

    def _send(self, sending: Sending, workspace: Workspace) -> None:
        work = self.work
        url, folder, environment = sending.ledger
        with closing(open_ledger(url, folder, environment=environment)) as ledger:
            attempt = ledger.join(work.run.run_id, sending.epoch, work.number)
            first = (attempt.number * MOST + work.number) * STEP
            changes = ChangeSet(workspace, work.field_map, (), sending.counts, parted=True)
            answers = None
            if sending.shape.digests != "none":
                numbers = count(first), count(first + 1)
                answers = Answers(workspace, work.run.run_id, changes.table, ledger, *numbers)
            pace = Pace(**sending.pace, book=ledger)
            plan = Share(work.run, work.capabilities, sending.terms, changes)
            journal = Reporting(
                ledger,
                attempt,
                work.run.run_id,
                every=prepared(work.capabilities),
                answers=answers,
                number=first,
                tell=self.tell,
            )
            with closing(pace), closing(self._delivery(sending, journal, pace)) as delivery:
                while (parts := self.inbox.next()) is not None:
                    former = _opened(ledger, attempt, work.run.run_id, parts)
                    self._drain(delivery, plan, parts, former, sending.epoch, answers)

    def _drain(
        self,
        delivery: Delivery,
        plan: Share,
        parts: Sequence[Phase],
        former: Sequence[BatchRow],
        epoch: int,
        answers: Answers | None,
    ) -> None:
        """Send these parts. `former`: the batches of earlier attempts in them."""
        halting = Halting(self.inbox.halt)
        try:
            for row in former:
                one = batch(plan, Phase(row.operation, row.first, row.last), epoch, answers)
                if row.outcome is None:
                    halting.add(one, Outcome(UNKNOWN))
                    delivery.finish(one, row.handle)
                else:
                    seconds = (row.duration_ms or 0) / 1000
                    self.tell(sent(Answered(one, row.outcome, row.attempts, seconds)))
            spans = [(row.first, row.last) for row in former]
            rest = [less for part in parts for less in part.outside(spans)]
            delivery.drain((b for part in rest for b in batches(plan, part, epoch, answers)), halting)
        except Halted:
            pass
        except Exception as problem:  # noqa: BLE001 - the parent raises it
            self.tell(Failed(portable(problem)))
            return
        self.tell(Sent(delivery.retries, delivery.sent))

    def _delivery(self, sending: Sending, journal: Reporting, pace: Pace) -> Delivery:
        stop = self.inbox.stop
        return Delivery(
            lane=lambda: Paced(lambda gate: sending.target.lane(sending.shape, gate), pace, stop),
            capabilities=replace(self.work.capabilities, lanes=sending.lanes),
            journal=journal,
            pace=pace,
            retry=sending.retry,
            stop=stop,
            resend_unknown=sending.resend_unknown,
        )


def _opened(ledger: Ledger, attempt: Attempt, run_id: str, parts: Sequence[Phase]) -> list[BatchRow]:
    """The batches of earlier attempts in these parts, in order."""
    if attempt.number == 1:
        return []
    return [
        row
        for row in ledger.batches(run_id)
        if row.status != "split" and any(part.first <= row.first <= part.last for part in parts)
    ]


def sent(answered: Answered) -> Answered:
    """The answer without what cannot be sent to another process."""
    nothing: Any = None
    batch = replace(answered.batch, rows=nothing, returns=None, window=None, request=None, decisions={})
    return replace(answered, batch=batch)


def portable(problem: Exception) -> Exception:
    """The error, or what can be sent of it."""
    try:
        pickle.loads(pickle.dumps(problem))  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - any class may refuse
        return RuntimeError(f"{type(problem).__name__} in a shard")
    return problem


def serve(line: Connection, inbox: Inbox, work: Work | Part) -> None:
    """Do what the parent asks of this process, until it is done."""
    if isinstance(work, Work):
        Shard(line, inbox, work).serve()
        return
    try:
        with private_directory() as folder:
            found: object = parts.read(parts.here(work, folder), inbox.stop)
    except Exception as problem:  # noqa: BLE001 - the parent raises it
        found = Failed(portable(problem))
    line.send(found)


def main() -> None:
    """The process: its connection to the parent is the descriptor in its arguments."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends them to all processes; the parent decides
    line = Connection(int(sys.argv[1]))
    work: Work | Part = line.recv()
    redact.register(*work.secrets)
    if work.log is not None:
        log.configure(**work.log)
    with log.bound(run_id=work.run.run_id, sync=work.sync.name, shard=work.number + 1):
        serve(line, Inbox(line), work)
