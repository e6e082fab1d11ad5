"""`retl sync SYNC --shard 3/16`: equal commands that are one run, on as many machines.

The command that gets the sync's lock is the run: it plans, judges and commits as any run does, and its shards
are handed out step by step to every command of the same job, also to itself. The others find it by its row in
the ledger and by a file in the shared folder. They work until it is over, and end as it did. If it is gone
before its end, the first of them that gets the lock begins the next run, which makes it good. So no command
has a share of its own: any of them may be late, or missing, or killed and started again.

The ticket is in the shared folder and not in the ledger: who reads it can act as a shard, which is given the
secrets of the target; and who writes it can give work to every command.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from retl.engine import scratch
from retl.errors import DefinitionError, Failure, Later, LedgerError, RetlError, Stopped
from retl.ledger import RunRow
from retl.observe import log
from retl.observe.summary import CONFLICTS, DELETES, KINDS, Conflicts, Counts, Deletes, Summary, described
from retl.run import asked, depot
from retl.run.depot import Depot
from retl.run.desk import Desk, Step, work
from retl.run.job import Job, Peer
from retl.run.lines import Exchange, Ticket, versions

STARTING = 10.0  # seconds for a command that has the lock to say what it runs
REACHING = 60.0  # seconds to reach a run that has said where it is
_LOOK = 0.5  # seconds between two looks
_ASK = 2.0  # seconds between two attempts to get the lock of a run that has not said where it is
_WHERE = "peers.json"
_STOPPED = tuple(Stopped(number).exit_code for number in (2, 15))
_BEGAN = ("LOCK_HELD", "PEERS_DONE")  # why a command is not the run


class PeerCluster:
    """The commands of a job, as the one that is the run sees them."""

    def __init__(self, folder: Path, host: str, port: int) -> None:
        """`host`: where the others reach this machine; `port`: 0 for any."""
        self.folder: Path | None = folder
        self._host, self._port = host, port
        self._exchange: Exchange
        self._broken = threading.Event()  # this machine does not work for its own run

    @contextmanager
    def open(self, place: Depot) -> Iterator[None]:
        """Failure PEERS_PORT, DISK_FULL."""
        try:
            self._exchange = Exchange(self._host, self._host, self._port)
        except OSError as problem:
            raise Failure(
                "PEERS_PORT",
                f"{self._host}:{self._port} cannot be listened at: {problem.strerror}",
                hint="`engine: {port: …}` names another port, or leave it out for any free one",
            ) from None
        with closing(self._exchange):
            self._desk = Desk()
            ticket = self._exchange.ticket(self._desk)
            threading.Thread(target=self._work, args=(ticket,), name="retl-own", daemon=True).start()
            _write(ticket, place)
            log.event("peers_invited", host=ticket.host, port=ticket.port)
            yield

    def begin(self, name: str) -> tuple[Connection, Step]:
        """A step of a shard: the line to it, and who has it. Failure PEERS_HOST."""
        step = Step(self._exchange, name)
        self._desk.put(step)
        if self._broken.is_set():  # else what breaks it later ends this step too
            step.kill()
            raise Failure(
                "PEERS_HOST",
                f"this machine does not reach itself at {self._host}, its address towards the ledger",
                hint="look at its firewall, and at `engine: {port: …}`",
            )
        return step.line.ours, step

    def _work(self, ticket: Ticket) -> None:
        """Work as the others do: the run needs none of them."""
        with suppress(OSError):
            work(ticket)
        self._broken.set()
        self._exchange.close()  # all that waits hears that it is lost


def sync(job: Job, run: Callable[[], Summary]) -> Summary:
    """Be the run, by `run`, or work for the command that is, until a run of the job is over; returns its
    summary. DefinitionError PEERS_DIFFER, PEERS_VERSIONS, Failure PEERS_FOREIGN."""
    waiting = _Waiting(job)
    while True:
        if (over := waiting.over()) is not None:
            return over
        summary = run()
        if summary.error is None or summary.error["code"] not in _BEGAN:
            return summary
        try:
            if waiting.ends():
                return summary
        except (Later, Stopped) as problem:
            status = "INTERRUPTED" if isinstance(problem, Stopped) else "BLOCKED"
            return Summary(job.sync.name, None, status, problem.exit_code, error=described(problem))


def require_open(job: Job) -> None:
    """Later PEERS_DONE if a run of the job has succeeded: a late command has nothing to do. Ask with the
    lock."""
    found = _last(job)
    if found and found["exit_code"] == 0:
        raise Later("PEERS_DONE", f"run {found['run_id']} has done the work of job {_peer(job).job}")


def conclude(job: Job, summary: Summary) -> None:
    """Let the others know how the run ended, before the lock is released."""
    end = {"job": _peer(job).job, "run_id": summary.run_id, "exit_code": summary.exit_code}
    with suppress(LedgerError, Later):  # then one more run finds that there is nothing to do
        job.ledger.keep(_name(job), json.dumps(end))


class _Waiting:
    """A command that is not the run: what it has seen so far."""

    def __init__(self, job: Job) -> None:
        self._job, self._peer = job, _peer(job)
        self._seen: set[str] = set()  # the runs that it worked for, or waited for
        self._heard = time.monotonic()  # when it last knew what it waits for

    def over(self) -> Summary | None:
        """How the run ended that this command belongs to; None while there is none, or if it was stopped:
        then the others go on."""
        found = _last(self._job)
        if found is None or found["exit_code"] in _STOPPED:
            return None
        if found["exit_code"] and found["run_id"] not in self._seen:
            return None  # this command is a new attempt
        row = self._job.ledger.run(found["run_id"])
        return _summary(row, found["exit_code"], self._peer) if row is not None else None

    def ends(self) -> bool:
        """Work for the run that has the lock, or wait a moment for it. True if nothing is to be had there.
        DefinitionError PEERS_DIFFER, PEERS_VERSIONS, Failure PEERS_FOREIGN, Later PEERS_UNREACHABLE,
        Stopped."""
        row = self._job.ledger.holder(self._job.sync.name)
        if row is None:
            return self._wait(STARTING)
        if row.correlation_id != self._peer.job or "shards" not in row.options:
            return True
        if row.options != json.loads(json.dumps(asked.options(self._job))):
            raise _different(row, self._peer)
        if row.run_id not in self._seen:
            log.event("peer_waits", run=row.run_id)
            self._seen.add(row.run_id)
        ticket = self._found(row.run_id)
        if ticket is None:
            self._heard = time.monotonic()
            return False
        if ticket.versions != versions():
            raise _other_versions(row, ticket)
        if not self._works(ticket) and self._wait(REACHING):
            raise _unreachable(row, ticket)
        return False

    def _found(self, run_id: str) -> Ticket | None:
        """The ticket of a run, if it says within a moment where it is: it may still read the mart."""
        ask = time.monotonic() + _ASK
        while (ticket := _read(self._place / run_id)) is None and time.monotonic() < ask:
            self._job.stop.wait(_LOOK)
        return ticket

    @property
    def _place(self) -> Path:
        cluster = self._job.cluster
        assert cluster is not None
        assert cluster.folder is not None
        return depot.root(cluster.folder, self._job.ledger.state_id, self._job.sync.name)

    def _works(self, ticket: Ticket) -> bool:
        """Whether the run could be reached; then it, or this connection to it, is over."""
        try:
            log.event("peer_joins", host=ticket.host, port=ticket.port)
            work(ticket, self._job.stop)
        except OSError:
            return False
        self._job.stop.check()
        self._heard = time.monotonic()
        return True

    def _wait(self, patience: float) -> bool:
        """Whether it was long enough; else wait a moment."""
        if time.monotonic() - self._heard > patience:
            return True
        self._job.stop.wait(_LOOK)
        return False


def _peer(job: Job) -> Peer:
    assert job.peer is not None
    return job.peer


def _name(job: Job) -> str:
    return f"peers {job.sync.name}"


def _last(job: Job) -> Mapping[str, Any] | None:
    """How the last run of this job ended, if no other job's run came after it."""
    found = json.loads(job.ledger.kept(_name(job)) or "{}")
    return found if found.get("job") == _peer(job).job else None


def _summary(row: RunRow, exit_code: int, peer: Peer) -> Summary:
    """A run of another command, as that one shows it."""
    counts = row.counts
    deletes, conflicts = counts.get("deletes", {}), counts.get("conflicts", {})
    note = f"this was command {peer.number} of {peer.of}: the run was that of pid {row.pid} on {row.host}"
    return Summary(
        row.sync,
        row.run_id,
        row.status,
        exit_code,
        counts=Counts(
            **{name: int(counts.get(name, 0)) for name in KINDS},
            deletes=Deletes(**{name: int(deletes.get(name, 0)) for name in DELETES}),
            conflicts=Conflicts(**{name: int(conflicts.get(name, 0)) for name in CONFLICTS}),
        ),
        batches=counts.get("batches", 0),
        retries=counts.get("retries", 0),
        bytes=counts.get("bytes", 0),
        seconds=row.seconds or 0.0,
        phases=row.phases,
        rejects=counts.get("rejects", ()),
        guards=row.guards,
        error=row.error,
        notes=[note],
        asserts=counts.get("assert", ()),
    )


def _write(ticket: Ticket, place: Depot) -> None:
    """Say where the run is, to those who may read this user's files."""
    words = {name: getattr(ticket, name) for name in ("host", "port", "certificate", "versions")}
    path, part = place.folder / _WHERE, place.folder / f".{_WHERE}"
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({**words, "token": ticket.token.hex()}, file)
        os.replace(part, path)
    except OSError as problem:
        raise scratch.unwritable(place.folder, problem) from problem


def _read(folder: Path) -> Ticket | None:
    """Where a run is; None if it has not said so yet. Failure PEERS_FOREIGN if somebody else says it."""
    try:
        with (folder / _WHERE).open("rb") as file, tempfile.TemporaryFile(dir=folder) as own:
            theirs, ours = os.fstat(file.fileno()), os.fstat(own.fileno())
            if (theirs.st_uid, theirs.st_mode) != (ours.st_uid, ours.st_mode):
                raise PermissionError
            found = json.load(file)
    except FileNotFoundError:
        return None
    except PermissionError:
        raise Failure(
            "PEERS_FOREIGN",
            f"{folder / _WHERE} is not of this user, so this command does not trust it",
            hint="run all commands of a job as the same user; nobody else may write in `engine: {folder: …}`",
        ) from None
    return Ticket(**{**found, "token": bytes.fromhex(found["token"])})


def _different(row: RunRow, peer: Peer) -> RetlError:
    of = row.options["shards"]
    what = f"is one of {of} commands" if of != peer.of else "was asked for with other options"
    return DefinitionError(
        "PEERS_DIFFER",
        f"run {row.run_id} of job {peer.job} {what}, and this command is {peer.number} of {peer.of}",
        hint="give all commands of a job the same N and the same options; another job has another"
        " RETL_CORRELATION_ID",
    )


def _other_versions(row: RunRow, ticket: Ticket) -> RetlError:
    return DefinitionError(
        "PEERS_VERSIONS",
        f"{socket.gethostname()} has {versions()}, and the run on {row.host} has {ticket.versions}",
        hint="install the same on all machines",
    )


def _unreachable(row: RunRow, ticket: Ticket) -> Later:
    return Later(
        "PEERS_UNREACHABLE",
        f"pid {row.pid} on {row.host} has the run, and was not reached at {ticket.host}:{ticket.port} for"
        f" {REACHING:.0f} s",
        hint="let the machines of a job reach each other at any port, or at that of `engine: {port: …}`",
    )
