"""When a watched sync is due next. Pure: all moments are on the ledger's clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from math import floor

from msgspec import Struct

from retl.app.freshness import connection
from retl.model import zone
from retl.observe.metrics import Family
from retl.project.definitions import Sync
from retl.project.triggers import Trigger
from retl.run.job import Doubted

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0  # seconds before a run that failed is tried again


class Entry(Struct, eq=False):
    """One watched sync. With a `run_id` it is asked for: its next run has this id, and if it is `whole`, more
    than keys of its topic was asked for. `due`: the next moment of its triggers. `rests`: nothing starts
    before, because the last run failed. A `blind` sync cannot tell a ledger that is too old (`Job.is_blind`):
    it waits for the first run (`looked`) of those that can, unless they are `late`, because they run after a
    blind one. `doubted`: what the last run found, if target and ledger do not agree."""

    sync: Sync
    claim: str | None = None  # what all syncs of its object have in common, if that is known
    due: datetime | None = None
    rests: datetime | None = None
    run_id: str | None = None
    whole: bool = False
    running: bool = False
    failures: int = 0  # in a row
    blind: bool = False
    late: bool = False
    looked: bool = False
    doubted: Doubted | None = None

    def may_start(self, now: datetime) -> bool:
        return self.run_id is not None and not self.running and (self.rests is None or self.rests <= now)

    def is_to_look(self, now: datetime) -> bool:
        """Whether its first run, which compares target and ledger, is due or under way."""
        return not (self.late or self.looked) and (self.running or self.may_start(now))

    def wakes(self, now: datetime) -> datetime | None:
        """The next moment at which something may have to be done; None while it waits for an event, or for
        others to end."""
        if self.running:
            return None
        if self.run_id is not None:
            return self.rests if self.rests is not None and self.rests > now else None
        return self.due

    def set_back(self, now: datetime) -> None:
        """The clock was set back to `now`: what was planned by the wrong one may be years away."""
        self.rests = None
        if self.due is not None and self.due > now:
            self.due = following(self.sync, now)

    def excludes(self, other: Entry) -> bool:
        """Whether two syncs never run at the same time: on one object, or one after the other."""
        one, two = self.sync, other.sync
        shared = self.claim is not None and self.claim == other.claim
        return shared or one.name in two.earlier or two.name in one.earlier

    def ended(self, code: int, now: datetime, again: datetime | None = None, *, holds: bool = False) -> bool:
        """Note the exit code of its run. True if the run must be tried again, at the moment `again` if that
        is known, else after a pause that doubles. A run that a guard refused waits for its next trigger,
        unless it `holds` keys of a topic, which nobody names again."""
        self.running = False
        tries_again = code in (1, 75) or holds
        self.failures = self.failures + 1 if tries_again and again is None else 0
        pause = min(FIRST_PAUSE * 2.0 ** min(self.failures - 1, 16), LONGEST_PAUSE)
        self.rests = (again or now + timedelta(seconds=pause)) if tries_again else None
        return tries_again


def awaits(entry: Entry, now: datetime) -> str:
    """What a sync waits for, in a few words: its next moment, a change of its source, an event, a topic."""
    words = []
    if entry.run_id is not None or entry.due is not None:
        words = [f"{entry.due:%Y-%m-%d %H:%M}Z" if entry.due is not None and entry.due > now else "now"]
    for one in entry.sync.when:
        words += ["changed"] * one.changed + ["event"] * one.event
        words += [f"topic {one.topic}"] if one.topic else []
    return ", ".join(dict.fromkeys(words))


def groups(entries: Sequence[Entry], now: datetime, room: int) -> list[list[Entry]]:
    """What may start now, at most `room` groups; marked as running. The syncs of a group run one after the
    other, in the order of `entries`: they share a connection, or exclude each other."""
    busy = [entry for entry in entries if entry.running]
    found: list[list[Entry]] = []
    for entry in entries:
        if not entry.may_start(now) or any(entry.excludes(other) for other in busy):
            continue
        if entry.blind and any(one.is_to_look(now) for one in entries):
            continue
        joined = [
            group
            for group in found
            if any(entry.excludes(one) or connection(entry.sync) == connection(one.sync) for one in group)
        ]
        if joined or len(found) < room:
            merged = [one for group in joined for one in group] + [entry]
            found = [*(group for group in found if group not in joined), merged]
    for entry in (one for group in found for one in group):
        entry.running, entry.due = True, following(entry.sync, now)
    return [[one for one in entries if one in group] for group in found]


def families(entries: Iterable[tuple[str, Entry]], broken: str | None) -> list[Family]:
    """The metrics of a watch."""
    listed = list(entries)

    def of(value: Callable[[Entry], float | None]) -> list[tuple[dict[str, str], float]]:
        return [({"sync": name}, found) for name, one in listed if (found := value(one)) is not None]

    return [
        Family("retl_watch_running", "1 while the sync runs.", of(lambda one: int(one.running))),
        Family("retl_watch_asked", "1 while a run is asked for.", of(lambda one: int(bool(one.run_id)))),
        Family("retl_watch_failures", "Failed runs in a row.", of(lambda one: one.failures)),
        Family(
            "retl_watch_next_run_timestamp_seconds",
            "When the sync is due next.",
            of(lambda one: one.due.timestamp() if one.due else None),
        ),
        Family(
            "retl_watch_definitions_broken",
            "1 if the files are wrong and the former definitions are in use.",
            [({}, int(broken is not None))],
        ),
    ]


def heard(counted: Iterable[tuple[str, int, int]]) -> list[Family]:
    """The metrics of topics: of each sync the records that wait, and those that were skipped."""
    listed = list(counted)
    return [
        Family(
            "retl_watch_topic_waiting",
            "Records of the sync's topic that no run has confirmed.",
            [({"sync": name}, waiting) for name, waiting, _ in listed],
        ),
        Family(
            "retl_watch_topic_skipped",
            "Records of the sync's topic without a usable key, so far.",
            [({"sync": name}, skipped) for name, _, skipped in listed],
        ),
    ]


def first(sync: Sync, last: datetime | None, now: datetime) -> datetime | None:
    """The first moment, for a watch that begins now. `last`: when the sync last ran."""
    return _earliest(_first(one, last, now) for one in sync.when)


def following(sync: Sync, began: datetime) -> datetime | None:
    """The next moment after a run that began then."""
    return _earliest(_following(one, began) for one in sync.when)


def _first(trigger: Trigger, last: datetime | None, now: datetime) -> datetime | None:
    if trigger.event:  # nobody knows what was missed
        return now if trigger.catch_up == "once" else None
    if trigger.every is not None and last is None:
        return now
    if last is None:
        return _following(trigger, now)
    planned = _following(trigger, min(last, now))
    if planned is None or planned > now:
        return planned
    if trigger.catch_up == "once":
        return now
    if trigger.every is not None:
        missed = floor((now - last) / timedelta(seconds=trigger.every))
        return last + (missed + 1) * timedelta(seconds=trigger.every)
    return _following(trigger, now)


def _following(trigger: Trigger, began: datetime) -> datetime | None:
    if trigger.every is not None:
        return began + timedelta(seconds=trigger.every)
    if trigger.cron is not None:
        from cronsim import CronSim

        return next(CronSim(trigger.cron, began.astimezone(zone(trigger.timezone)))).astimezone(UTC)
    return None


def _earliest(moments: Iterable[datetime | None]) -> datetime | None:
    return min((one for one in moments if one is not None), default=None)
