"""What becomes of a row, from what the target holds, what we left there and what the mart says. Pure.

The rules are those of docs/guides/conflicts.md. Redis and HTTP targets judge here, PostgreSQL in SQL.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from hashlib import sha1
from types import MappingProxyType
from typing import NamedTuple

from retl.destinations.batch import WRITTEN, Decision, Kind, RowResult, Shape
from retl.destinations.conflict import (
    GONE_SINCE,
    MADE_SINCE,
    PARTLY_RESTORED,
    TOUCHED_SINCE,
    gone,
    in_conflict,
    spared,
)
from retl.destinations.value import SIZE, Held, Texts, Value, digest

NOTHING_HELD = ""  # the digests of a key that is not there
MUST_LOOK = "!"  # no value has these digests
_NEVER = bytes(SIZE)


class Row(NamedTuple):
    """A row of a batch: what is asked, what we left (None: nothing), and of a restore the value before."""

    number: int
    key: str
    operation: str  # upsert, delete; of a rollback restore, remove, remake, flag
    texts: Texts
    seen: bytes | None = None
    newest: tuple[str | None, ...] = ()
    decision: Decision | None = None


class Verdict(NamedTuple):
    """The result of a row if its key still has these digests, and what is written then: the texts, or nothing
    (None); or the key is removed. `after`: the digests that are then remembered. `fields`: per name write,
    keep, conflict or same."""

    result: RowResult
    expected: str
    writes: Texts | None = None
    removes: bool = False
    after: bytes | None = None
    fields: Mapping[str, str] = MappingProxyType({})

    @property
    def acts(self) -> bool:
        return self.removes or self.writes is not None


def assume(value: Value, row: Row) -> Verdict:
    """The verdict if the key is as we left it: nearly all are."""
    seen = row.seen
    if row.operation == "upsert" and (seen is None or value.absent_is_a_value(seen)):
        return _made(value, row)
    if row.operation not in ("upsert", "delete") or seen is None or len(seen) != value.size:
        return Verdict(WRITTEN, MUST_LOOK, writes={})
    if row.operation == "delete":
        return Verdict(WRITTEN, seen.hex(), removes=True)
    texts = row.texts
    after = b"".join(
        [digest(texts[name]) if name in texts else _part(seen, n) for n, name in enumerate(value.names)]
    )
    return Verdict(WRITTEN, seen.hex(), texts, after=after + seen[len(after) :])


def judge(value: Value, row: Row, held: Held, *, refill: bool, expires: bool) -> Verdict:
    """The verdict on a row whose key holds this. With `expires` a key that is not there has expired."""
    if row.operation not in ("upsert", "delete"):
        return _restored(value, row, held)
    expected = NOTHING_HELD if held is None else value.digests(held).hex()
    if row.operation == "delete":
        spare = None
        if held is not None and expected != (row.seen or b"").hex():
            spare = spared(value.shape.conflicts, _shown(expected), row.decision)
        return Verdict(spare or WRITTEN, expected, removes=spare is None and held is not None)
    if held is None:
        as_left = not row.seen or value.absent_is_a_value(row.seen)
        left_alone = None if as_left or refill or expires else gone(value.shape.conflicts, row.decision)
        return _made(value, row) if left_alone is None else Verdict(left_alone, NOTHING_HELD)
    return _merged(value, row, held, expected)


def _made(value: Value, row: Row) -> Verdict:
    """A key that is not there is made."""
    sent = {name: text for name, text in row.texts.items() if text is not None}
    nothing = not sent and value.absent_is_a_value(digest(None))
    return Verdict(WRITTEN, NOTHING_HELD, None if nothing else row.texts, after=value.digests(sent))


def _merged(value: Value, row: Row, held: Mapping[str, bytes], expected: str) -> Verdict:
    ends = {
        name: _field(value, row, n, name, held) if name in row.texts else "same"
        for n, name in enumerate(value.names)
    }
    fields = {one: end for name, end in ends.items() for one in value.stands_for(name)}
    if "conflict" in ends.values():
        sent = b"".join(digest(row.texts.get(name, held.get(name))) for name in value.names)
        names = [name for name, end in fields.items() if end == "conflict"]
        queued = in_conflict(names, _shown(expected + sent.hex()), row.decision)
        if queued is not None:  # a kept row has digests, those of what is not kept
            return Verdict(queued, expected, after=row.seen, fields=fields)
        ends = {name: "write" if end == "conflict" else end for name, end in ends.items()}
    kept = {name for name, end in ends.items() if end == "keep"}
    kind = Kind.WRITTEN
    if kept:
        kind = Kind.MERGED if "write" in ends.values() else Kind.KEPT
    after = b"".join(
        _part(row.seen, n) if name in kept else digest(row.texts.get(name, held.get(name)))
        for n, name in enumerate(value.names)
    )
    after += value.others(held) if value.rest else b""
    ours = kind is Kind.KEPT or value.shape.conflicts == "warehouse_wins" or bool(row.seen)
    writes = None if kind is Kind.KEPT else {n: t for n, t in row.texts.items() if n not in kept}
    return Verdict(RowResult(kind, ours=ours), expected, writes, after=after, fields=fields)


def _field(value: Value, row: Row, number: int, name: str, held: Mapping[str, bytes]) -> str:
    theirs, sent = held.get(name), row.texts[name]
    if value.same(name, theirs, sent):
        return "same"
    seen = _part(row.seen, number)
    strategy = value.field(name).conflicts
    if strategy == "warehouse_wins" or digest(theirs) == seen:
        return "write"
    if digest(sent) == seen or strategy == "target_wins":
        return "keep"
    if strategy == "manual":
        return "conflict"
    at = value.field(name).newest
    return "write" if _later(row.newest[at], value.newest(held, value.shape.newest[at].target)) else "keep"


def _restored(value: Value, row: Row, held: Held) -> Verdict:
    """The verdict on a row of a rollback: what somebody touched since stays."""
    expected = NOTHING_HELD if held is None else value.digests(held).hex()
    if row.operation == "remake":
        return Verdict(MADE_SINCE, expected) if held is not None else _made(value, row)
    if row.operation == "remove":
        if held is not None and expected != (row.seen or b"").hex():
            return Verdict(TOUCHED_SINCE, expected)
        return Verdict(WRITTEN, expected, removes=held is not None)
    if held is None:
        absent = row.operation == "restore" and value.absent_is_a_value(row.seen)
        return _made(value, row) if absent else Verdict(GONE_SINCE, expected)
    if row.operation == "flag":
        return Verdict(WRITTEN, expected, row.texts)
    differs = {name for name in value.names if held.get(name) != row.texts.get(name)}
    kept = {
        name
        for n, name in enumerate(value.names)
        if name in differs and digest(held.get(name)) != _part(row.seen, n)
    }
    if kept and kept == differs:
        return Verdict(TOUCHED_SINCE, expected)
    left = {*kept, *(set(value.ours) - set(value.names) if kept else ())}
    after = b"".join(  # what the run had left to others is still theirs
        digest(row.texts.get(name)) if name in differs - kept else _part(row.seen, n)
        for n, name in enumerate(value.names)
    )
    after += value.others(held) if value.rest else b""
    writes = {name: text for name, text in row.texts.items() if name not in left}
    return Verdict(PARTLY_RESTORED if kept else WRITTEN, expected, writes, after=after)


def refuse_mixed(shape: Shape) -> bool:
    """Whether fields of one value have different strategies, which cannot be kept."""
    return any(
        one.conflicts != shape.conflicts or one.newest != shape.compared[0].newest for one in shape.compared
    )


def _part(seen: bytes | None, number: int) -> bytes:
    """The digest of one name in those of all of them; what no value has, if it is not known."""
    part = (seen or b"")[SIZE * number : SIZE * (number + 1)]
    return part if len(part) == SIZE else _NEVER


def _shown(digests: str) -> str:
    """A digest of digests, as 16 hexadecimal digits for people."""
    return sha1(digests.encode(), usedforsecurity=False).hexdigest()[:16]


def _later(mart: str | None, target: str | None) -> bool:
    """Whether the mart's value is later: two numbers, or two times (a time without a zone is UTC)."""
    ours, theirs = _point(mart), _point(target)
    if isinstance(ours, Decimal) and isinstance(theirs, Decimal):
        return ours > theirs
    return isinstance(ours, datetime) and isinstance(theirs, datetime) and ours > theirs


def _point(text: str | None) -> Decimal | datetime | None:
    if text is None:
        return None
    try:
        number = Decimal(text)
        return number if number.is_finite() else None
    except InvalidOperation:
        pass
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
