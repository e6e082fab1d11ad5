"""Topics of Kafka that name keys: what comes in a short window becomes one run of these keys.

How far a topic was read is stored in the ledger, after a run that succeeded. A kill in between means that
keys are looked at twice, and the second run finds nothing to send. What a topic cannot tell is read from the
mart: at the first start, when records were deleted before they were read, and when so many keys wait that a
run of the whole mart is cheaper. A record without a usable key is counted and passed.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from time import monotonic
from typing import TYPE_CHECKING

from msgspec import Struct

from retl.app.freshness import topic_name
from retl.app.watch.keys import Unreadable, parts
from retl.destinations.kafka.reader import Gone, Record, TopicReader
from retl.engine.selection import Parts
from retl.errors import RetlError
from retl.observe import log
from retl.project.triggers import KeyFormat, RecordPart
from retl.run.mart import MOST_KEYS

if TYPE_CHECKING:
    from retl.destinations.kafka.client import KafkaConnection
    from retl.ledger import Ledger

PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between two attempts to connect
COUNT = 1.0  # seconds between two looks at how many records wait
REPORT = 60.0  # seconds between two reports to the ledger while nothing is confirmed
MOST_WAITING = 2 * MOST_KEYS  # beside a full load: a run of the whole mart costs as much as three of keys
IDLE = 0.2  # seconds of one wait


class Ear(Struct, frozen=True):
    """What is heard: a topic, and where a record of it has the key of the sync. `definition`: a digest of the
    sync; after a change all rows may have to be sent, and not only those that are named."""

    sync: str
    connection: KafkaConnection
    topic: str
    columns: tuple[str, ...]
    part: RecordPart
    format: KeyFormat
    window: float
    definition: str

    @property
    def place(self) -> str:
        return f"{self.connection.name}/{self.topic}"


class Load(Struct, frozen=True, eq=False):
    """What a run stands for: these keys, or the whole mart (None), and the topic up to these offsets."""

    keys: tuple[Parts, ...] | None
    offsets: Mapping[int, int]


class Topic:
    """One topic of one sync, read in a thread of its own. `take` and `ended` are for the watch, `report` for
    the thread that has the ledger."""

    def __init__(self, ear: Ear, kept: str | None, ask: Callable[[str], object]) -> None:
        """`kept`: what was reported last."""
        self.ear, self._ask = ear, ask
        self.connected, self.skipped, self.last_skipped = False, 0, ""
        self._id, self._reported = "", kept
        self._definition = ear.definition  # of which every row was compared
        self._confirmed: dict[int, int] | None = None
        self._offsets: dict[int, int] | None = None  # after what was collected
        self._ends: dict[int, int] = {}
        self._surely: dict[int, int] = {}  # the same at the time of a full load, without open transactions
        self._keys: dict[Parts, None] = {}
        self._since: float | None = None  # when the first of the keys came
        self._whole = self._has_asked = self._is_news = False
        self._held: Load | None = None
        self._jump: dict[int, int] | None = None
        self._report_at = self._count_at = self._told_at = 0.0
        self._ending, self._turn = False, threading.Condition()
        self._reader = TopicReader(ear.connection, ear.topic)
        self._thread = threading.Thread(target=self._run, name="retl-topic", daemon=True)
        self._remember(kept)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        with self._turn:
            self._ending = True
            self._turn.notify_all()
        self._reader.interrupt()
        self._thread.join(timeout=5)

    def take(self, *, whole: bool) -> Load | None:
        """What the run that begins now stands for. None if the topic was not reached yet: the run is of the
        whole mart and confirms nothing. With `keys` that are empty there is nothing to run for, and nothing
        was taken: what was asked for is part of a run that began meanwhile."""
        with self._turn:
            if self._offsets is None:
                return None
            left = sum(max(0, end - self._offsets.get(one, end)) for one, end in self._surely.items())
            much = len(self._keys) > MOST_KEYS or left > MOST_WAITING
            if much:  # the run reads the mart after all of these were written
                self._jump = {n: max(at, self._surely.get(n, at)) for n, at in self._offsets.items()}
                self._offsets = dict(self._jump)
            if self._held is not None:  # its end was never told
                whole = whole or self._held.keys is None
                self._keys = {**dict.fromkeys(self._held.keys or ()), **self._keys}
            keys = None if whole or self._whole or much else tuple(self._keys)
            load = Load(keys, dict(self._offsets))
            self._has_asked = False
            if keys == ():
                return load
            self._held = load
            self._keys, self._since, self._whole = {}, None, False
            self._surely = {}
            self._turn.notify_all()
            return load

    def ended(self, load: Load | None, *, good: bool, rest: bool) -> bool:
        """Note how the run ended that took `load`. True if another one must follow: it did not succeed, or
        left a `rest` that only a run of the whole mart does. Without a `load` it took nothing, perhaps
        because it could not begin."""
        with self._turn:
            if load is None:
                self._has_asked = self._has_asked and good
                return not good and bool(self._keys or self._whole)
            if load is not self._held:
                return False
            self._held = None
            if good and not rest:
                if load.keys is None:
                    self._definition = self.ear.definition
                self._confirmed, self._is_news = {**(self._confirmed or {}), **load.offsets}, True
                return False
            self._keys = {**dict.fromkeys(load.keys or ()), **self._keys}
            self._whole = self._whole or load.keys is None or rest
            return True

    @property
    def lag(self) -> int:
        """The records that no run has confirmed."""
        known = self._confirmed or {}
        return sum(max(0, end - known.get(one, end)) for one, end in self._ends.items())

    def report(self, ledger: Ledger) -> None:
        """Store how far the topic is confirmed, and how it goes."""
        with self._turn:
            idle = not (self._keys or self._whole or self._held)
            if idle and self._offsets is not None and self._offsets != self._confirmed:
                self._confirmed = dict(self._offsets)  # only records without a key
            if self._confirmed is None or not (self._is_news or monotonic() >= self._report_at):
                return
            self._is_news, self._report_at = False, monotonic() + REPORT
            document = {
                "topic": self.ear.place,
                "id": self._id,
                "definition": self._definition,
                "offsets": {str(one): offset for one, offset in sorted(self._confirmed.items())},
                "waiting": self.lag,
                "skipped": self.skipped,
                "last_skipped": self.last_skipped,
            }
        text = json.dumps(document)
        if text == self._reported:
            return
        try:
            ledger.keep(topic_name(self.ear.sync), text)
            self._reported = text
        except RetlError as problem:  # the next turn tries again; a kill means that keys are read twice
            self._is_news = True
            log.event("topic_unreported", level="warning", sync=self.ear.sync, code=problem.code)

    def _remember(self, kept: str | None) -> None:
        said = json.loads(kept) if kept is not None else {}
        if said.get("topic") == self.ear.place:
            self._id, self.skipped, self.last_skipped = said["id"], said["skipped"], said["last_skipped"]
            self._confirmed = {int(one): offset for one, offset in said["offsets"].items()}
            self._offsets = dict(self._confirmed)
            self._definition = said["definition"]
            self._whole = self._definition != self.ear.definition

    def _run(self) -> None:
        pause, first = PAUSE, True
        while not self._ending:
            try:
                with closing(self._reader):
                    self._hear()
            except Exception as problem:  # noqa: BLE001 - whatever it is, it is tried again
                if self._ending:
                    return
                if self.connected or first:
                    code = problem.code if isinstance(problem, RetlError) else type(problem).__name__
                    log.event("listening_failed", level="warning", topic=self.ear.place, code=code)
                    pause = PAUSE
                self.connected = first = False
                with self._turn:
                    self._turn.wait_for(lambda: self._ending, pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    def _hear(self) -> None:
        """Read until `close`."""
        self._begin()
        self.connected = True
        log.event("listening_for_keys", topic=self.ear.place, sync=self.ear.sync)
        while not self._ending:
            self._step()

    def _begin(self) -> None:
        """Go on where it was left, or at the end of the topic, with a run of the whole mart."""
        found = self._reader.id()
        known = self._offsets if found == self._id else None
        try:
            places = self._reader.begin(known)
        except Gone:
            self._reader.close()
            known, places = None, self._reader.begin(None)
        with self._turn:
            self._id, self._offsets, self._jump = found, places, None
            if known is None:  # what a run that is under way took is of another topic, or of lost records
                self._whole, self._held, self._confirmed = True, None, None
        if known is None:
            log.event("topic_begun_at_its_end", topic=self.ear.place, sync=self.ear.sync)
        if self._whole:
            self._ask_once()

    def _step(self) -> None:
        with self._turn:
            jump, self._jump = self._jump, None
            full = len(self._keys) >= MOST_KEYS
        if jump is not None:
            self._reader.move(jump)
        if full:
            self._wait_for_room()
            return
        record = self._reader.poll(self._patience())
        with self._turn:
            if record is not None and self._offsets is not None:
                self._note(record, self._offsets)
        for number, offset in self._reader.added().items():
            with self._turn:
                (self._offsets or {}).setdefault(number, offset)
        if monotonic() >= self._count_at:
            self._count_at = monotonic() + COUNT
            self._ends = self._reader.ends(ask=False)
        if self._since is not None and self._patience() <= 0:
            self._ask_once()

    def _wait_for_room(self) -> None:
        """So many keys are a run; count what else waits, which may make it a run of the whole mart."""
        self._ends = self._surely = self._reader.ends(ask=True)
        self._ask_once()
        with self._turn:
            self._turn.wait_for(lambda: self._ending or len(self._keys) < MOST_KEYS, COUNT)

    def _patience(self) -> float:
        """Seconds until the records that were collected become a run."""
        since = self._since
        return IDLE if since is None or self._has_asked else since + self.ear.window - monotonic()

    def _note(self, record: Record, offsets: dict[int, int]) -> None:
        if record.next <= offsets.get(record.partition, 0):
            return
        offsets[record.partition] = record.next
        if record.is_end:
            return
        try:
            raw = record.key if self.ear.part == "key" else record.value
            self._keys[parts(raw, self.ear.columns, self.ear.format)] = None
            self._since = self._since or monotonic()
        except Unreadable as problem:
            self.skipped += 1
            self.last_skipped = f"partition {record.partition}, offset {record.next - 1}: {problem}"
            if monotonic() >= self._told_at:  # at most one a second
                self._told_at = monotonic() + COUNT
                self._tell_skipped()

    def _tell_skipped(self) -> None:
        log.event(
            "record_skipped",
            level="warning",
            topic=self.ear.place,
            sync=self.ear.sync,
            skipped=self.skipped,
            last=self.last_skipped,
        )

    def _ask_once(self) -> None:
        if not self._has_asked:
            self._has_asked = True
            self._ask(self.ear.sync)


class Topics:
    """The topics of all syncs that name one."""

    def __init__(self, ask: Callable[[str], object]) -> None:
        """`ask` is called with the name of a sync of which keys are waiting."""
        self._ask = ask
        self._running: dict[str, Topic] = {}

    def use(self, ears: Iterable[Ear], ledger: Ledger) -> None:
        """Listen to these from now on. One that stays the same stays connected. Systemic CLIENT_MISSING."""
        wanted = {one.sync: one for one in ears}
        former = self._running
        kept = {name: one for name, one in former.items() if wanted.get(name) == one.ear}
        made = {
            name: Topic(one, ledger.kept(topic_name(name)), self._ask)
            for name, one in wanted.items()
            if name not in kept
        }
        for name in former.keys() - kept.keys():
            former[name].close()
        self._running = kept | made
        for one in made.values():
            one.start()

    def of(self, sync: str) -> Topic | None:
        return self._running.get(sync)

    def report(self, ledger: Ledger) -> None:
        for one in self._running.values():
            one.report(ledger)

    @property
    def deaf(self) -> list[str]:
        """The topics that are not connected."""
        return [one.ear.place for one in self._running.values() if not one.connected]

    @property
    def counted(self) -> list[tuple[str, int, int]]:
        """Of each sync the records that no run has confirmed, and those without a usable key."""
        return [(name, one.lag, one.skipped) for name, one in self._running.items()]

    def close(self) -> None:
        """Read no more. What was read is still known: a run may end, and its end be reported, after this."""
        for one in self._running.values():
            one.close()
