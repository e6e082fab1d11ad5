"""A run in several processes: each compares, judges and sends one share of the keys.

The parent reads the mart and the ledger, asks the target, cuts rows and baseline by the hash of the key, and
sees the shards' tables as its own. So guards judge the whole, and numbers, rejects, delta and checkpoint are
those of any run: the ledger and the target do not know how many processes there were. It alone has the lock
and ends the run. A shard whose process is lost gets another, which carries on; after the third the run fails,
and what was not acknowledged is unknown.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from retl.delivery.failure_rate import FailureRate
from retl.delivery.lanes import Answered, Delivery
from retl.destinations.batch import MODES, UNKNOWN, Batch, Kind, Outcome
from retl.engine import shards
from retl.engine.change_set import ChangeSet, Phase
from retl.engine.mapping import Run
from retl.engine.scope import Scoped
from retl.engine.shards import Placed
from retl.engine.workspace import Workspace
from retl.errors import Failure, Stopped
from retl.ledger import Acknowledgement, Lock
from retl.observe import log, redact
from retl.run import planner
from retl.run.job import Job
from retl.run.known import Known
from retl.run.mart import Extent, Frozen, Opened
from retl.run.plan import Plan
from retl.run.planner import Diffed, Due, Judged
from retl.run.shard import Columns, Failed, Halt, Planned, Sending, Sent, StopNow, Work
from retl.run.target import Asked

_BEGIN = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from retl.run.shard import main; main()"
CHECKED = 1.0  # seconds for which the lock is not looked at again
PATIENCE = 5.0  # seconds for a process to end when its work is done
ATTEMPTS = 3  # processes that a shard may have, one after the other


@dataclass
class _Process:
    work: Work
    line: Connection
    process: subprocess.Popen[bytes]
    asked: bool = True  # it owes an answer
    attempts: int = 1
    turn: threading.Lock = field(default_factory=threading.Lock)  # a stop is told from another thread
    retries: int = 0
    bytes: int = 0
    before: tuple[int, int] = (0, 0)  # retries and bytes of earlier attempts, as far as they told


class Shards:
    """The processes of one run. Close it to end them."""

    def __init__(self, job: Job, run: Run, workspace: Workspace, keep: Sequence[int]) -> None:
        """`keep`: descriptors of the run's lock. While a shard lives no other run begins, also after the
        parent was killed."""
        self._job, self._run, self._workspace, self._keep = job, run, workspace, tuple(keep)
        self._processes: list[_Process] = []
        self._placed: list[Placed] = []
        self._sending: Sending | None = None
        self._heard: dict[str, int] = {}  # batches by id, and where their answers are

    # --- plan

    def plan(
        self,
        opened: Opened,
        frozen: Frozen,
        known: Known,
        asked: Asked,
        reach: Extent,
    ) -> tuple[Diffed, Judged, Due]:
        """What `planner.compare`, `judge_rows` and `assemble` return for the whole mart."""
        job, workspace = self._job, self._workspace
        frozen = planner.folding(frozen, asked)
        condition, mark = planner.choose(job, self._run, opened, frozen, reach, workspace)
        how = planner.comparison(job, self._run, opened, frozen, known, asked)
        self._start(self._cut(opened, frozen, known, how, condition))
        log.event("shards_started", shards=job.shards)
        found: list[Planned] = self._all(lambda work: work)
        changes = self._place(frozen, found)
        scoped = [one.scoped for one in found if one.scoped is not None]
        diffed = Diffed(
            how.strategy,
            sum(one.read for one in found),
            planner.next_mark(job, known, mark),
            Scoped(sum(one.known for one in scoped), any(one.read for one in scoped)) if scoped else None,
            sum(one.erased for one in found),
        )
        ends = Counter[tuple[str, str | None]]()
        for one in found:
            ends.update(one.ends)
        due = planner.due(
            changes, planner.taken(ends, changes.counts), diffed.erased, sum(one.grown for one in found)
        )
        return diffed, planner.judged(known, workspace), due

    def _cut(
        self,
        opened: Opened,
        frozen: Frozen,
        known: Known,
        how: planner.Comparison,
        condition: str | None,
    ) -> list[Work]:
        job, workspace, mapped = self._job, self._workspace, frozen.mapped
        unkeyed = shards.has_unkeyed(workspace, mapped.field_map, condition)
        paths = shards.cut(workspace, mapped.field_map, job.shards, workspace.directory, condition)
        described = opened.description
        edited = {name: rule.column_type for name, rule in mapped.contract.columns.items()}
        columns = Columns(
            described=described.columns,
            documented=opened.documented,
            misfit=described.misfit,
            timezone=job.source.timezone,
            project=job.folder,
            edited=edited if mapped.contract.edits else None,
            rejected=frozen.edited,
        )
        checkpoint = known.basis.checkpoint
        return [
            Work(
                number=number,
                share=path,
                **_files(path, number, attempt=1),
                threads=max(1, (os.cpu_count() or 1) // job.shards),
                sync=job.sync,
                run=self._run,
                columns=columns,
                field_map=mapped.field_map,
                capabilities=mapped.capabilities,
                fingerprints=mapped.fingerprints,
                how=how,
                selective=condition is not None,
                unkeyed=unkeyed,
                open_rejects=[one.key for one in known.open_rejects],
                retried=planner.retried(known, mapped.capabilities),
                limit=job.options.selection.limit,
                former_scope=checkpoint.scope if checkpoint else None,
                log=log.elsewhere(),
                secrets=redact.known(),
            )
            for number, path in enumerate(paths)
        ]

    def _place(self, frozen: Frozen, found: Sequence[Planned]) -> ChangeSet:
        """Give each share its positions; returns the change set of the run."""
        workspace, limit, field_map = (
            self._workspace,
            self._job.options.selection.limit,
            frozen.mapped.field_map,
        )
        rows: Sequence[Mapping[int, int]] = [one.phases for one in found]
        if limit is not None:
            rows = shards.first_of(workspace, field_map, [one.work.heads for one in self._processes], limit)
        self._placed = shards.place(rows)
        for one, placed in zip(self._processes, self._placed, strict=True):
            self._tell(one, placed)
            one.asked = True
        self._all(lambda work: replace(work, placed=self._placed[work.number]))
        changes = shards.unite(workspace, field_map, [one.work.tables for one in self._processes])
        changes.phases = shards.united(self._placed, self._job.sync.write)
        return changes

    # --- send

    @contextmanager
    def sending(self, plan: Plan, lock: Lock, delivery: Delivery) -> Iterator[Callable[..., None]]:
        """While open, the shards send what the returned function gets: parts of one phase, and the failure
        rate of the run. `delivery` gets their answers. It raises as `Delivery.drain`."""
        job = self._job
        wanted = job.pace.concurrency or job.shards
        lanes = max(1, wanted // job.shards)
        self._sending = Sending(
            target=job.target,
            ledger=job.ledger.address,
            pace=job.pace.elsewhere(lanes),
            retry=job.sync.retry,
            resend_unknown=job.sync.delivery == "at_least_once",
            epoch=lock.epoch,
            counts=plan.changes.counts,
            terms=plan.terms,
            shape=plan.field_map.shape,
            lanes=lanes,
        )
        for one in self._processes:
            self._tell(one, self._sending)

        def send(parts: Sequence[Phase], failure_rate: FailureRate) -> None:
            self._send(plan, lock, delivery, parts, failure_rate, at_once=min(wanted, job.shards))

        yield send

    def _send(
        self,
        plan: Plan,
        lock: Lock,
        delivery: Delivery,
        parts: Sequence[Phase],
        failure_rate: FailureRate,
        at_once: int,
    ) -> None:
        own = [
            (one, list(_clipped(parts, placed)))
            for one, placed in zip(self._processes, self._placed, strict=True)
        ]
        waiting = [(one, mine) for one, mine in own if mine]
        problems: list[Exception] = []
        hear = self._hearing(plan, lock, delivery, failure_rate)
        busy: list[_Process] = []
        parts_of = {one.work.number: mine for one, mine in waiting}

        def again(one: _Process) -> None:
            mine = parts_of[one.work.number]
            self._acknowledge(mine, delivery, lock)
            self._begin_again(one, lambda work: replace(work, sends=True))
            self._tell(one, self._sending)
            self._tell(one, mine)

        with self._job.stop.interrupting(self._stop):
            while busy or (waiting and not problems):
                while waiting and not problems and len(busy) < at_once:
                    one, mine = waiting.pop(0)
                    self._tell(one, mine)
                    one.asked = True
                    busy.append(one)
                try:
                    self._hear(busy, hear, again, problems)
                except Exception as problem:  # noqa: BLE001 - the others finish their batch
                    problems.append(problem)
                if problems:
                    for one in busy:
                        self._tell(one, Halt())
        delivery.retries += sum(one.retries for one in self._processes) - self._retries
        self._retries = sum(one.retries for one in self._processes)
        delivery.elsewhere = sum(one.bytes for one in self._processes)
        if problems:
            self._doubt(plan, lock.epoch, delivery)
            raise sorted(problems, key=lambda problem: isinstance(problem, Stopped))[0]

    _retries = 0

    def _hearing(
        self, plan: Plan, lock: Lock, delivery: Delivery, failure_rate: FailureRate
    ) -> Callable[[Answered], None]:
        """What takes an answer of a shard; it raises if the run must stop."""
        checked = time.monotonic()

        def hear(answered: Answered) -> None:
            nonlocal checked
            batch = replace(answered.batch, rows=plan.changes)
            one = replace(answered, batch=batch)
            if not self._is_news(one, delivery.answered):
                return
            log.event("answers_heard", level="debug")
            rows = 0 if one.status == "split" else len(batch)
            log.event("batch_acknowledged", batch=batch.id, rows=rows, attempts=one.attempts, level="debug")
            if one.outcome is not None and one.attempts:
                failure_rate.add(batch, one.outcome)
            if time.monotonic() - checked > CHECKED:
                lock.check()
                checked = time.monotonic()

        return hear

    def _acknowledge(self, parts: Sequence[Phase], delivery: Delivery, lock: Lock) -> None:
        """Record the answers that a lost process had told and not recorded: its successor need not ask."""
        run_id = self._run.run_id
        opened = {
            row.batch_id
            for row in self._job.ledger.batches(run_id)
            if row.status == "open" and any(part.first <= row.first <= part.last for part in parts)
        }
        found = [
            Acknowledgement(one.batch.id, one.outcome, one.attempts, round(one.seconds * 1000))
            for one in delivery.answered
            if one.batch.id in opened and one.outcome is not None and _is_final(one.outcome)
        ]
        if found:
            self._job.ledger.acknowledge(run_id, lock.epoch, found)

    def _is_news(self, one: Answered, answers: list[Answered]) -> bool:
        """Add an answer. A later attempt repeats what an earlier one had told: only what was in doubt, or was
        not applied, is replaced."""
        known = self._heard.setdefault(one.batch.id, len(answers))
        if known == len(answers):
            answers.append(one)
            return True
        former = answers[known].outcome
        if former is None or _is_final(former):
            return False
        answers[known] = one
        return True

    def _hear(
        self,
        busy: list[_Process],
        hear: Callable[[Answered], None],
        again: Callable[[_Process], None],
        problems: list[Exception],
    ) -> None:
        """Take one message of each shard that has one; shards that are done leave `busy`."""
        for one in self._ready(busy):
            try:
                told = one.line.recv()
            except (EOFError, OSError):
                if lost := self._lost(one):
                    problems.append(lost)
                if problems:
                    busy.remove(one)
                else:
                    again(one)
                continue
            if isinstance(told, Answered):
                hear(told)
                continue
            busy.remove(one)
            one.asked = False
            if isinstance(told, Failed):
                problems.append(told.problem)
            else:
                assert isinstance(told, Sent)
                one.retries, one.bytes = one.before[0] + told.retries, one.before[1] + told.bytes

    def _doubt(self, plan: Plan, epoch: int, delivery: Delivery) -> None:
        """A shard that died did not tell what became of the batches that it had opened: they are unknown."""
        told = {one.batch.id for one in delivery.answered}
        for row in self._job.ledger.batches(self._run.run_id):
            if row.status == "open" and row.batch_id not in told:
                batch = Batch(
                    plan.changes, *MODES[row.operation], self._run.run_id, epoch, row.first, row.last
                )
                delivery.answered.append(Answered(batch, Outcome(UNKNOWN), attempts=max(row.attempts, 1)))

    # --- processes

    def _start(self, works: Sequence[Work]) -> None:
        for work in works:
            self._processes.append(_Process(work, *self._begin(work)))
        for one in self._processes:
            self._tell(one, one.work)

    def _begin(self, work: Work) -> tuple[Connection, subprocess.Popen[bytes]]:
        work.folder.mkdir(mode=0o700)
        ours, theirs = Pipe()
        with theirs:
            return ours, begun(theirs, self._keep)

    def _begin_again(self, one: _Process, changed: Callable[[Work], Work]) -> None:
        """Another process for a shard: its work is the same, but for what `changed` says."""
        one.line.close()
        one.before = (one.retries, one.bytes)
        one.attempts += 1
        files = _files(one.work.share, one.work.number, one.attempts)
        work = changed(replace(one.work, **files))
        one.work = replace(work, tables=one.work.tables) if work.sends else work
        one.line, one.process = self._begin(one.work)
        log.event("shard_began_again", shard=one.work.number + 1, attempt=one.attempts, level="warning")
        self._tell(one, one.work)
        if self._job.stop.event.is_set():  # it came between the two processes
            self._stop()

    def _all(self, changed: Callable[[Work], Work]) -> list[Any]:
        """What each shard answers to its step. `changed`: what another process of a shard is told then."""
        found: dict[int, Any] = {}
        busy = list(self._processes)
        with self._job.stop.interrupting(self._stop):
            while busy:
                for one in self._ready(busy):
                    try:
                        told = one.line.recv()
                    except (EOFError, OSError):
                        if lost := self._lost(one):
                            raise lost from None
                        self._begin_again(one, changed)
                        continue
                    busy.remove(one)
                    one.asked = False
                    if isinstance(told, Failed):
                        raise told.problem
                    found[one.work.number] = told
        return [found[one.work.number] for one in self._processes]

    def _ready(self, busy: Sequence[_Process]) -> list[_Process]:
        """Wait until shards have told something, or ended."""
        heard = set(wait([one.line for one in busy]))
        return [one for one in busy if one.line in heard]

    def _tell(self, one: _Process, message: object) -> None:
        with suppress(OSError), one.turn:  # it is gone: the wait for its answer finds out
            one.line.send(message)

    def _stop(self) -> None:
        for one in self._processes:
            self._tell(one, StopNow(self._job.stop.signum or 15))

    def _lost(self, one: _Process) -> Exception | None:
        """A process is gone. None if its shard may have another one."""
        try:
            one.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()
        if self._job.stop.event.is_set():
            return Stopped(self._job.stop.signum or 15)
        if one.attempts < ATTEMPTS:
            return None
        ended = _how(one.process.returncode)
        return Failure(
            "SHARD_LOST",
            f"{ATTEMPTS} processes of shard {one.work.number + 1} of {self._job.shards} ended before it was"
            f" done (the last: {ended})",
            hint="run again: what they had sent is found; if they were killed for their memory, with fewer"
            " `shards`",
        )

    def close(self) -> None:
        """End all processes; none of them outlives the run."""
        for one in self._processes:
            if one.asked:  # nobody waits for its answer any more
                one.process.kill()
            self._tell(one, None)
        for one in self._processes:
            try:
                one.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
            one.line.close()
        self._processes = []


def begun(line: Connection, keep: Sequence[int]) -> subprocess.Popen[bytes]:
    """A process that serves at the other end of this line, and keeps these descriptors open."""
    return subprocess.Popen(  # noqa: S603 - this very Python
        [sys.executable, "-P", "-c", _BEGIN, str(line.fileno()), json.dumps(sys.path)],
        pass_fds=(line.fileno(), *keep),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def _is_final(outcome: Outcome) -> bool:
    results = (outcome.default, *outcome.exceptions.values())
    return not any(one.kind in (Kind.UNKNOWN, Kind.RETRY) for one in results)


def _files(share: Path, number: int, attempt: int) -> dict[str, Any]:
    """What one attempt at a shard writes: no other one touches it."""
    name = f"{number}.{attempt}"
    return {
        "tables": share.with_name(f"{name}.tables.duckdb"),
        "heads": share.with_name(f"{name}.heads.duckdb"),
        "folder": share.with_name(f"shard-{name}"),
    }


def _clipped(parts: Sequence[Phase], placed: Placed) -> Iterator[Phase]:
    """What a shard has of these rows."""
    for part in parts:
        for phase, rows in placed.rows.items():
            first = max(part.first, placed.first[phase])
            last = min(part.last, placed.first[phase] + rows - 1)
            if first <= last:
                yield replace(part, first=first, last=last)


def _how(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit {code}"
