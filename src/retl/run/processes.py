"""The processes of a run's shards: begun, told what to do, begun again when they are lost, and ended.

On this machine a shard has one process as long as it lives; on a cluster one for each step. What they are
told, and what their answers mean, is in `run/shards.py`.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct, field
from msgspec.structs import replace

from retl.engine.mapping import Run
from retl.engine.workspace import Workspace
from retl.errors import Failure, Stopped
from retl.observe import log
from retl.run.depot import Depot
from retl.run.job import Job
from retl.run.lines import begun
from retl.run.parts import Part
from retl.run.shard import Failed, StopNow, Work

PATIENCE = 5.0  # seconds for a process to end when its work is done
ATTEMPTS = 3  # processes that a shard may have, one after the other


class Ending(Protocol):
    """What a shard's process can be asked, wherever it is."""

    @property
    def returncode(self) -> int | str | None: ...
    def wait(self, timeout: float | None = None, /) -> object: ...
    def kill(self) -> None: ...


class Cluster(Protocol):
    """Where shards run that do not run on this machine alone. `folder`: what its machines share; None if it
    is this machine."""

    folder: Path | None

    def open(self, depot: Depot, /) -> AbstractContextManager[None]:
        """While it is open, shards of the run that has this depot can begin."""

    def begin(self, name: str, /) -> tuple[Connection, Ending]:
        """A process of a shard: the line to it, and what can be asked of it."""


class Process(Struct):
    work: Any  # a Part or Work
    line: Connection
    process: Ending
    asked: bool = True  # it owes an answer
    attempts: int = 1  # at a step, on a cluster; else at all of them
    begun: int = 1  # processes so far
    turn: threading.Lock = field(default_factory=threading.Lock)  # a stop is told from another thread
    retries: int = 0
    bytes: int = 0
    before: tuple[int, int] = (0, 0)  # retries and bytes of earlier attempts, as far as they told


class Processes:
    """The processes of one run, by shard. Close it to end them."""

    def __init__(
        self, job: Job, run: Run, workspace: Workspace, keep: Sequence[int], depot: Depot | None
    ) -> None:
        """`keep`: descriptors of the run's lock. While a shard lives no other run begins, also after the
        parent was killed. `depot`: what is shared with a cluster."""
        self._job, self._run, self._workspace, self._keep = job, run, workspace, tuple(keep)
        self._depot = depot
        self._processes: list[Process] = []

    def _start(self, works: Sequence[Work | Part]) -> None:
        """Begin the first step of each shard, or the one after it has read its part."""
        for one, work in zip(self._processes, works, strict=False):
            self._next_step(one, lambda _part, work=work: work)  # type: ignore[misc]
            one.asked = True
        if self._processes:
            return
        for work in works:
            self._processes.append(Process(work, *self._begin(work)))
        for one in self._processes:
            self._tell(one, one.work)

    def _begin(self, work: Work | Part) -> tuple[Connection, Ending]:
        if self._job.cluster is not None:
            name = f"retl {work.sync.name}, shard {work.number + 1} of {self._job.shards}"
            return self._job.cluster.begin(name)
        work.folder.mkdir(mode=0o700)
        ours, theirs = Pipe()
        with theirs:
            return ours, begun(theirs, self._keep)

    def _begin_again(self, one: Process, changed: Callable[[Any], Any]) -> None:
        """Another process for a shard: its work is the same, but for what `changed` says."""
        one.attempts += 1
        self._replace(one, changed)
        log.event("shard_began_again", shard=one.work.number + 1, attempt=one.attempts, level="warning")

    def _next_step(self, one: Process, changed: Callable[[Any], Any]) -> None:
        """The process for the next step of a shard on a cluster, when the last one has ended."""
        with suppress(subprocess.TimeoutExpired):
            one.process.wait(PATIENCE)
        one.attempts = 1
        self._replace(one, changed)

    def _replace(self, one: Process, changed: Callable[[Any], Any]) -> None:
        one.line.close()
        one.before = (one.retries, one.bytes)
        one.begun += 1
        work = changed(replace(one.work, **files(one.work.share, one.work.number, one.begun)))
        one.work = replace(work, tables=one.work.tables) if work.sends else work
        one.line, one.process = self._begin(one.work)
        self._tell(one, one.work)
        if self._job.stop.event.is_set():  # it came between the two processes
            self._stop()

    def _all(self, changed: Callable[[Any], Any]) -> list[Any]:
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

    def _here(self, path: Path) -> Path:
        """A file that a shard wrote, on this machine."""
        return self._depot.get(path.name, self._workspace.directory) if self._depot else path

    def _ready(self, busy: Sequence[Process]) -> list[Process]:
        """Wait until shards have told something, or ended."""
        heard = set(wait([one.line for one in busy]))
        return [one for one in busy if one.line in heard]

    def _tell(self, one: Process, message: object) -> None:
        with suppress(OSError), one.turn:  # it is gone: the wait for its answer finds out
            one.line.send(message)

    def _stop(self) -> None:
        for one in self._processes:
            self._tell(one, StopNow(self._job.stop.signum or 15))

    def _lost(self, one: Process) -> Exception | None:
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


def files(share: Path, number: int, attempt: int) -> dict[str, Any]:
    """What one process of a shard writes: no other one touches it."""
    name = f"{number}.{attempt}"
    return {
        "tables": share.with_name(f"{name}.tables.duckdb"),
        "heads": share.with_name(f"{name}.heads.duckdb"),
        "folder": share.with_name(f"shard-{name}"),
    }


def _how(code: int | str | None) -> str:
    if isinstance(code, str):  # of Spark
        return code
    return f"signal {-code}" if code is not None and code < 0 else f"exit {code}"
