"""Per sync: the age of the target's data, open rejects, rows in doubt, and what to do next.

It reads the ledger and the time of the mart's last change. It opens no warehouse, contacts no target and
sends no alert.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, replace

from retl.app.loaded import LoadedProject
from retl.errors import RetlError
from retl.ledger import BreakerRow, Checkpoint, Ledger, Pause, RunRow
from retl.ledger.breakers import SKEW
from retl.observe.summary import counted
from retl.project.definitions import Sync
from retl.run import standing
from retl.run.conflicts import STAGE
from retl.run.resolve import doubts, is_asked, sends_first

UNTOUCHED = timedelta(days=14)
UNKNOWN_AGE = "its last success is of a time to come, because the clock was set back"


_ADOPT = "write `first_run: adopt` now: if the state is ever lost, nothing is sent twice"


class State(Struct, frozen=True):
    """One sync in `retl status`. `age_seconds`: since the last success, None if there is none or if it is of
    a time to come. `lag_seconds`: how much newer the mart is than the last delivered one, None if unknown.
    `breaker`: the connection that is not used at the moment. `untouched_days`: days without delivery, if
    suspiciously many. `drift`: the keys in which the target drifted, as the last reconcile found and left it;
    None without one. `open_erasures`: those that have not come to their end. `paused`: who paused it, when
    and why. `next`: what to do, in one sentence, empty if nothing is wrong. `notes`: what its last good run
    said and what holds since then. `topic`: what the watch last reported of the sync's topic of keys."""

    sync: str
    status: str
    enabled: bool
    last_run: str | None
    last_success: datetime | None
    age_seconds: float | None
    freshness_seconds: float | None
    lag_seconds: float | None
    open_rejects: int
    in_doubt: int
    breaker: str | None
    stale: bool
    untouched_days: int | None
    paused: Pause | None
    reconciled_at: datetime | None
    drift: int | None
    open_erasures: int
    next: str
    notes: tuple[str, ...] = ()
    topic: dict[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """As `--output json` has it."""
        return {**asdict(self), "paused": asdict(self.paused) if self.paused else None}


def topic_name(sync: str) -> str:
    """The name under which the ledger keeps how far the topic of a sync was read."""
    return f"topic {sync}"


def renamed(project: LoadedProject, ledger: Ledger) -> dict[str, str]:
    """Syncs that never ran → the sync, no longer defined, that delivered to the same object: its former name,
    probably."""
    found: dict[str, str] = {}
    for sync in project.syncs.values():
        if ledger.last_run(sync.name) is None and not ledger.checkpoints(sync.name):
            with suppress(RetlError):  # what is wrong with its destination is said elsewhere
                at = project.destination(sync, offline=True)
                object = at.destination.place(at.options, sync.write)
                former = [one.sync for one in ledger.checkpoints_on(object) if one.sync not in project.syncs]
                found |= {sync.name: former[0]} if former else {}
    return found


def vanished(project: LoadedProject, ledger: Ledger) -> list[str]:
    """The syncs that delivered and that no file defines any more, but for those that were renamed."""
    known = {*project.syncs, *project.unread, *renamed(project, ledger).values()}
    return [name for name in ledger.delivering() if name not in known]


def states(
    syncs: Iterable[Sync],
    ledger: Ledger,
    mart: Path | None,
    now: datetime | None = None,
    *,
    former: Mapping[str, str] | None = None,
) -> list[State]:
    """The state of these syncs, in their order; ages are those at `now`, by default by the ledger's clock.
    Without a `mart` nobody knows how far behind it they are. `former`: what `renamed` found."""
    now, every, queued = now or ledger.now(), ledger.open_rejects(), ledger.open_rejects(STAGE)
    breakers, changed = {one.connection: one for one in ledger.breakers()}, _changed(mart)
    found = [
        _state(
            *(sync, ledger, now, changed),
            *(every.get(sync.name, 0), queued.get(sync.name, 0), breakers.get(connection(sync))),
        )
        for sync in syncs
    ]
    moves = {sync: _move(sync, name) for sync, name in (former or {}).items()}
    return [replace(one, next=moves.get(one.sync, one.next)) for one in found]


def each(syncs: Iterable[Sync], ledger: Ledger) -> Iterator[State]:
    """The state of one sync after the other, each as it is when it is asked for, by the ledger alone."""
    return (one for sync in syncs for one in states([sync], ledger, None))


def _move(sync: str, former: str) -> str:
    return f"`retl state mv {former} {sync}` if it was renamed: {former} delivered to this object"


def connection(sync: Sync) -> str:
    """The name of the connection that a sync uses."""
    return sync.destination.connection or sync.destination.type or ""


def _state(
    sync: Sync,
    ledger: Ledger,
    now: datetime,
    changed: str | None,
    rejects: int,
    queued: int,
    breaker: BreakerRow | None,
) -> State:
    good, last = ledger.last_success(sync.name), ledger.last_run(sync.name)
    pause = ledger.paused(sync.name)
    looked = ledger.last_reconcile(sync.name, partial=True)
    newest = max(ledger.checkpoints(sync.name), key=_touched, default=None)
    ended = (good.finished_at or good.started_at) if good else None
    age = _age(ended, now) if ended else None
    stale = sync.enabled and sync.freshness is not None and (age is None or age > sync.freshness)
    doubtful = _doubtful(sync, ledger, last)
    held = breaker if breaker and breaker.closes(now) else None
    erasing = ledger.unfinished(sync.name)
    lag = _lag(newest.source_version, changed) if newest else None
    status = "PAUSED" if pause or not sync.enabled else last.status if last else "NEVER"
    topic = _topic(sync, ledger)
    return State(
        sync=sync.name,
        status=status,
        enabled=sync.enabled,
        last_run=last.run_id if last else None,
        last_success=ended,
        age_seconds=None if age is None else round(age, 1),
        freshness_seconds=sync.freshness,
        lag_seconds=lag,
        open_rejects=rejects,
        in_doubt=doubtful,
        breaker=held.connection if held else None,
        stale=stale,
        untouched_days=_untouched(newest, now) if sync.enabled else None,
        paused=pause,
        reconciled_at=looked.started_at if looked else None,
        drift=looked.drift if looked else None,
        open_erasures=len(erasing),
        next=_resume(pause, erasing)
        or _urgent(sync, last, doubtful, _held(held, now))
        or (f"run it: {UNKNOWN_AGE}" if stale and good and age is None else "")
        or _due(sync, last, age=age, lag=lag, stale=stale, rejects=rejects, queued=queued)
        or _drifted(sync, looked)
        or (_ADOPT if good and sends_first(sync) else "")
        or _heard(topic),
        notes=standing.told(ledger, sync.name),
        topic=topic,
    )


def _age(ended: datetime, now: datetime) -> float | None:
    """Seconds since then; None if that is still to come: the clock was set back, and nobody knows."""
    return None if ended > now + SKEW else max(0.0, (now - ended).total_seconds())


def _doubtful(sync: Sync, ledger: Ledger, last: RunRow | None) -> int:
    """The rows that may wait for a decision. Those of a run that is at work only wait for their answer."""
    working = last.run_id if last is not None and last.status == "RUNNING" else None
    found = doubts(ledger, sync.name) if is_asked(sync) else []
    return sum(one.rows for one in found if one.run_id != working)


def _held(breaker: BreakerRow | None, now: datetime) -> str:
    if breaker is None:
        return ""
    name = breaker.connection
    return f"wait {breaker.wait(now)} s, or fix {name} and run `retl state unblock {name} --yes`"


def _urgent(sync: Sync, last: RunRow | None, doubtful: int, held: str) -> str:
    """What went wrong and needs a person, in one sentence; the most urgent of it."""
    status = last.status if last else "NEVER"
    if not sync.enabled:
        return ""
    if last is not None and status == "KILLED":  # also before rows in doubt: a run may find out about them
        return (
            held or f"run it: it was killed (pid {last.pid} on {last.host}); it carries on where it stopped"
        )
    if doubtful:
        return f"`retl resolve --sync {sync.name}`: {counted(doubtful, 'row')} in doubt"
    if held:
        return held
    if status in ("FAILED", "REFUSED") and last is not None:
        code = (last.error or {}).get("code", status)
        return f"`retl show {last.run_id}`: {code}"
    return ""


def _due(
    sync: Sync,
    last: RunRow | None,
    *,
    age: float | None,
    lag: float | None,
    stale: bool,
    rejects: int,
    queued: int,
) -> str:
    """What a run or a decision would do, in one sentence. `queued`: the rejects that are conflicts."""
    status = last.status if last else "NEVER"
    if not sync.enabled:
        return ""
    if status == "NEVER":
        return f"`retl sync --sync {sync.name}`: it never ran"
    if status in ("INTERRUPTED", "ABANDONED"):
        return "run it: it carries on where it stopped"
    if stale and age is not None and sync.freshness is not None:
        return f"run it: stale since {length(age - sync.freshness)}"
    if queued:
        return f"`retl conflicts --sync {sync.name}`"
    if rejects:
        return f"`retl rejects --sync {sync.name}`"
    return f"run it: the mart is {length(lag)} newer" if lag and status != "RUNNING" else ""


def _resume(pause: Pause | None, unfinished: Sequence[str]) -> str:
    """What waits for a person whatever the runs do: erasures that are not finished, or a pause."""
    if unfinished:
        return f"the same `retl erase` again: erasure {unfinished[0]} is not finished"
    if pause is None:
        return ""
    return f"`retl state resume {pause.sync}` when it may run again: {pause.reason}"


def _topic(sync: Sync, ledger: Ledger) -> dict[str, Any] | None:
    """What the watch last kept of the sync's topic of keys."""
    heard = ledger.kept(topic_name(sync.name)) if any(one.topic for one in sync.when) else None
    return json.loads(heard) if heard else None


def _heard(topic: Mapping[str, Any] | None) -> str:
    """What is to be said of a topic: records that no run has confirmed, and those without a usable key."""
    if topic is None:
        return ""
    if topic["waiting"]:
        return f"`retl watch`: records of {topic['topic']} that wait: {topic['waiting']}"
    skipped = f"records of {topic['topic']} without a usable key: {topic['skipped']}"
    return f"{skipped}, last {topic['last_skipped']}" if topic["skipped"] else ""


def _drifted(sync: Sync, looked: RunRow | None) -> str:
    """What to do about drift; nothing about edits that `conflicts` keeps."""
    if looked is None:
        return ""
    drift = looked.drift - (looked.edits if sync.conflicts.how != "warehouse_wins" else 0)
    return f"`retl reconcile {sync.name}`: the target drifted in {counted(drift, 'key')}" if drift else ""


def length(seconds: float) -> str:
    """A duration in one unit: 3h."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def _untouched(newest: Checkpoint | None, now: datetime) -> int | None:
    """Days without delivery, if suspiciously many."""
    days = (now - _touched(newest)).days if newest else 0
    return days if days >= UNTOUCHED.days else None


def _touched(checkpoint: Checkpoint) -> datetime:
    assert checkpoint.updated_at is not None, "the ledger sets it"
    return checkpoint.updated_at


def _changed(mart: Path | None) -> str | None:
    """The mart's identity now, as a run records it."""
    if mart is None:
        return None
    try:
        stat = mart.stat()
    except OSError:
        return None
    return f"{mart}:{stat.st_size}:{stat.st_mtime_ns}"


def _lag(delivered: str | None, now: str | None) -> float | None:
    """Seconds between the last delivered change of the mart and its newest; both are from one clock."""
    if delivered is None or now is None:
        return None
    place, *rest = delivered.rsplit(":", 2)  # another source's version has any form
    here, _, after = now.rsplit(":", 2)
    if place != here or len(rest) < 2 or not rest[1].isdigit():
        return None
    before = rest[1]
    return max(0.0, round((int(after) - int(before)) / 1e9, 1))
