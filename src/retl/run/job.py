"""One sync to plan or run: definitions, target, ledger, and the options of the invocation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct, field
from msgspec.structs import replace

from retl.delivery.paced import Paced
from retl.destinations.api import Destination
from retl.destinations.batch import Capabilities, Decision, RowResult, Shape
from retl.engine.selection import Selection
from retl.ledger import Ledger, Purpose
from retl.model import Limits
from retl.net.gate import Gate
from retl.net.messages import Request
from retl.observe import log
from retl.observe.signals import Stop
from retl.pace.limiter import Pace
from retl.project.definitions import EngineType, Sync
from retl.project.then import FollowUp
from retl.project.writing import FieldSource
from retl.sources.api import Source

if TYPE_CHECKING:
    from retl.project.fields import Neighbour
    from retl.run.processes import Cluster


class Target(Struct, frozen=True):
    """The resolved destination of a sync: its class and its validated options."""

    kind: str
    destination: type[Destination[Any]]
    options: Any
    connection: str = ""

    def lane(self, shape: Shape, gate: Gate | None = None) -> Destination[Any]:
        """A new Destination, for one thread."""
        return self.destination(self.options, shape, gate)

    @property
    def comparable(self) -> bool:
        """Whether its rows can be compared with a mart."""
        return self.destination.comparable(self.options)

    @property
    def scannable(self) -> bool:
        """Whether everything at its place can be listed."""
        return self.destination.scan is not Destination.scan


class Follower(Struct, frozen=True):
    """A request that follows runs: its name for people and the ledger, the connection that it goes through,
    and the connection's pace. `secrets` are values of variables in it."""

    name: str
    asked: FollowUp
    http: Any  # an HttpConnection
    pace: Pace
    secrets: tuple[str, ...] = ()

    @property
    def when(self) -> str:
        return self.asked.when

    @property
    def required(self) -> bool:
        return self.asked.required

    @property
    def connection(self) -> str:
        return self.asked.connection

    def request(self, facts: Mapping[str, Any]) -> Request:
        """As `following.request`."""
        from retl.destinations.http import following

        return following.request(self.asked, self.http, facts)

    def send(
        self, made: Request, gate: Gate, before: Callable[[], None], answered: Callable[[int], None]
    ) -> RowResult:
        """As `following.send`."""
        from retl.destinations.http import following

        return following.send(self.http, made, gate, before, answered, self.secrets)


class Peer(Struct, frozen=True):
    """Which of several equal commands this is, counted from 1, and the job that they are together."""

    number: int
    of: int
    job: str


class Doubted(Struct, frozen=True):
    """A sync that was refused because its target and the ledger do not agree, and the guard's CODE."""

    sync: str
    code: str


class Options(Struct, frozen=True):
    """What one invocation asks of a sync."""

    dry_run: bool = False
    offline: bool = False  # the target is not asked: only for a dry run
    selection: Selection = field(default_factory=Selection)
    allow_deletes: int | None = None
    accept: tuple[str, ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)
    purpose: Purpose = "sync"
    decisions: Mapping[str, Decision] = field(default_factory=dict)  # about rows in conflict, by key
    retry: bool = False  # its keys are those of rejects: a key that the mart lacks is no error
    explains: tuple[str, ...] | None = None  # rows are explained: those of these keys, or any
    adopt: bool = False  # take the mart as delivered, whatever the ledger knows
    of_run: str | None = None  # the run that a rollback takes back
    approved_by: str | None = None  # who signed the plan that is applied
    plan: str | None = None  # its SHA-256
    reconcile: Literal["look", "sample", "repair", "own"] | None = None
    engine: EngineType | None = None  # where shards run; None: as retl.yml says
    shard: tuple[int, int] | None = None  # this command's number, and how many there are

    @property
    def partial(self) -> bool:
        """Whether absent rows mean nothing, because only a part of the mart may be sent."""
        return self.selection.partial or self.purpose in ("reconcile", "repair", "rollback", "erase")

    @property
    def whole(self) -> bool:
        """Whether every row of the mart is judged, and every due one may be sent."""
        return not self.partial and self.selection.limit is None


class Job(Struct):
    """One sync to plan or run."""

    sync: Sync
    folder: Path
    source: Source[Any]
    target: Target
    ledger: Ledger
    options: Options
    stop: Stop
    pace: Pace = field(default_factory=lambda: Pace(Limits()))
    siblings: frozenset[str] = frozenset()  # the names of all syncs of the project
    akin: frozenset[str] = frozenset()  # those other ones whose key has the same columns
    neighbours: Mapping[str, Neighbour] = field(default_factory=dict)  # other syncs of the object, by name
    references: Mapping[str, str] = field(default_factory=dict)  # syncs of its `ref` fields → their objects
    referred: Mapping[str, Sequence[FieldSource]] = field(default_factory=dict)  # … → their key fields
    environment: str | None = None
    correlation_id: str | None = None
    doubted: Doubted | None = None  # what another sync found of the ledger, where this one `is_blind`
    others: Callable[[], bool] | None = None  # runs syncs that may help refused rows; False if there are none
    run_id: str | None = None  # that its next run must have
    shards: int = 1  # processes that share the keys of a sync
    cluster: Cluster | None = None  # where they run, if they are several; None: on this machine
    peer: Peer | None = None  # of several commands that are one run
    images: float | None = None  # seconds that those of earlier runs stay, although this run keeps none
    followers: Sequence[Follower] = ()  # requests that follow the run
    since: float | None = None  # monotonic: where a command's first run starts to count time

    def lane(self, shape: Shape) -> Destination[Any]:
        """A new Destination for one thread, under the connection's pace."""
        return Paced(partial(self.target.lane, shape), self.pace, self.stop)

    def capabilities(self, shape: Shape) -> Capabilities:
        """The destination's capabilities for rows of this shape; offline it cannot be read."""
        found = self.target.lane(shape).capabilities
        return replace(found, readable=False) if self.options.offline else found

    @property
    def is_blind(self) -> bool:
        """Whether the target keeps no marks: it cannot tell a ledger that is older than what it was sent."""
        return not self.target.destination.keeps_marks

    @property
    def waits(self) -> bool:
        """Whether the sync is blind and sends much to a target that may have it: what it sends stays twice,
        or the ledger knows nothing of it yet."""
        first = self.ledger.checkpoint(self.sync.name, self.object) is None
        return self.is_blind and (repeats(self.sync) or first)

    @property
    def object(self) -> str:
        """The identity of the object that this sync writes."""
        return self.target.destination.place(self.target.options, self.sync.write)


def repeats(sync: Sync) -> bool:
    """Whether rows that are sent twice stay twice at the target."""
    return sync.first_run is not None


class Clock(Struct):
    """Seconds per phase of the data path."""

    phases: dict[str, float] = field(default_factory=dict)
    _open: tuple[str, float] | None = None
    _away: float = 0.0  # seconds that belong to no phase

    @classmethod
    def since(cls, begun: float | None) -> Clock:
        """A clock with a `start` phase since this monotonic time."""
        return cls({} if begun is None else {"start": time.monotonic() - begun})

    def so_far(self) -> dict[str, float]:
        """The seconds of every phase, also of the current one."""
        if self._open is None:
            return dict(self.phases)
        name, started = self._open
        return {**self.phases, name: self.phases.get(name, 0.0) + time.monotonic() - started}

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """This time belongs to no phase."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._away += time.monotonic() - started

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        log.event("phase", phase=name, level="debug")
        started = time.monotonic()
        away = self._away
        self._open = (name, started)
        try:
            yield
        finally:
            self._open = None
            seconds = time.monotonic() - started - (self._away - away)
            self.phases[name] = self.phases.get(name, 0.0) + seconds
            log.event("phase_ended", phase=name, seconds=round(seconds, 4), level="debug")
