"""Writes rows where nobody else has changed them since our last write, over HTTP.

A row whose version is known is sent under the condition that the object still has it; nearly all are as we
left them. If the target refuses, or the version is not known, the object is read and judged field by field,
and written under the condition that it is still what was read, in rounds. Where the target takes no condition
every object is read first, and an edit between the look and the write is lost. If it takes one for changes
and none for creations, every object is read first too. It knows no request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import replace

from retl.destinations.batch import ABSENT, PRESENT, UNKNOWN, WRITTEN, Batch, Kind, Outcome, Peeked, RowResult
from retl.destinations.conflict import BUSY, ROUNDS
from retl.destinations.http.objects import VERSION, Object
from retl.destinations.value import SIZE, Held, digest
from retl.destinations.verdicts import MUST_LOOK, NOTHING_HELD, Row, Verdict, judge

_MADE = (ABSENT, PRESENT, BUSY)  # answers that say that the object is not what it was


class Sending(Struct, frozen=True):
    """A row that is created, changed or deleted, if its object still has this version (None: whatever it
    has). `names`: the fields that are sent."""

    row: Row
    creates: bool
    deletes: bool
    version: bytes | None
    names: frozenset[str]


class Told(Struct, frozen=True):
    """What became of a row that was sent, and the object as the answer shows it."""

    result: RowResult
    held: Held = None


class Objects(Protocol):
    """The objects of rows: how they are read and written."""

    def look(self, rows: Sequence[Row]) -> Sequence[Held | RowResult]:
        """What each row's object holds, or why it cannot be read."""

    def send(self, rows: Sequence[Sending]) -> Sequence[Told]:
        """Send each row once. BUSY if its object has another version, PRESENT if one that is created is
        there, ABSENT if one that is changed is not."""


class Conditional(Struct, frozen=True):
    """The conditional batches of one lane. `atomic`: the target takes conditions. `changes_only`: a row that
    is not there is not made."""

    value: Object
    objects: Objects
    atomic: bool
    changes_only: bool

    def write(self, batch: Batch, rows: Sequence[Row], made: frozenset[int] = frozenset()) -> Outcome:
        """The outcome. `made`: rows whose creation may have been applied, by a request without an answer."""
        found: dict[int, RowResult] = {}
        digests: dict[int, bytes] = {}
        held: dict[int, Held] = {}
        todo = {row.number: self.assume(row) for row in rows}
        by_number = {row.number: row for row in rows}
        for _ in range(ROUNDS):
            looked = [by_number[n] for n, one in todo.items() if one.expected == MUST_LOOK]
            for row, what in zip(looked, self.objects.look(looked) if looked else (), strict=True):
                if isinstance(what, RowResult):
                    found[row.number] = what
                    del todo[row.number]
                else:
                    held[row.number] = what
                    todo[row.number] = self._judged(batch, row, what, made)
            sent = [self._sending(by_number[n], one, held.get(n)) for n, one in todo.items() if one.acts]
            told = self.objects.send(sent) if sent else ()
            answers = {one.row.number: answer for one, answer in zip(sent, told, strict=True)}
            again: dict[int, Verdict] = {}
            for n, one in todo.items():
                answer = answers.get(n, Told(one.result, held.get(n)))
                if n in answers and answer.result in _MADE and not (one.removes and answer.result == ABSENT):
                    again[n] = Verdict(WRITTEN, MUST_LOOK, writes={})
                    continue
                found[n] = self._result(one, answer.result, acted=n in answers)
                if (after := self._after(one, answer, by_number[n].seen, acted=n in answers)) is not None:
                    digests[n] = after
            todo = again
            if not todo:
                break
        found |= dict.fromkeys(todo, BUSY)
        if batch.returns is not None and batch.mode != "delete":
            batch.returns.digests(batch, _lines(found, digests))
        return Outcome(WRITTEN, {n: one for n, one in found.items() if one != WRITTEN})

    def resolve(self, rows: Sequence[Row]) -> Outcome:
        """Rows without an answer whose object is as we left it were not written; of the others nothing is
        known. A request that is still under way has a condition that a later write makes false."""
        found = dict[int, RowResult]()
        for row, held in zip(rows, self.objects.look(rows), strict=True):
            left = None if held is None or isinstance(held, RowResult) else held.get(VERSION)
            version = self.value.version(row.seen)
            same = held is None and row.seen is None if version is None else left == version
            found[row.number] = RowResult(Kind.RETRY) if same else UNKNOWN
        unknown = all(one == UNKNOWN for one in found.values())
        return Outcome(UNKNOWN) if unknown else Outcome(RowResult(Kind.RETRY), _unlike(found, Kind.RETRY))

    def peek(self, batch: Batch, rows: Sequence[Row]) -> Iterator[Peeked]:
        for row, what in zip(rows, self.objects.look(rows), strict=True):
            if isinstance(what, RowResult):
                yield Peeked(what)
                continue
            one = self._judged(batch, row, what, frozenset())
            yield Peeked(one.result, one.fields)

    def assume(self, row: Row) -> Verdict:
        """What is done first, before anything is read."""
        version = self.value.version(row.seen)
        if self.atomic and row.operation == "upsert" and row.seen is None and not self.changes_only:
            return self._made(row)
        if not self.atomic or version is None or row.seen is None:
            return Verdict(WRITTEN, MUST_LOOK, writes={})
        if row.operation == "delete":
            return Verdict(WRITTEN, row.seen.hex(), removes=True)
        return Verdict(WRITTEN, row.seen.hex(), row.texts, after=self._digests(row))

    def sending(self, row: Row) -> Sending | None:
        """What is sent first for a row; None if its object is read."""
        one = self.assume(row)
        return None if one.expected == MUST_LOOK else self._sending(row, one, None)

    def _made(self, row: Row) -> Verdict:
        return Verdict(WRITTEN, NOTHING_HELD, row.texts, after=self._digests(row))

    def _digests(self, row: Row) -> bytes:
        """Of the fields that are sent; of the others those of the last write."""
        seen = row.seen or b""
        return b"".join(
            digest(row.texts[name])
            if name in row.texts
            else seen[SIZE * n : SIZE * (n + 1)].ljust(SIZE, b"\0")
            for n, name in enumerate(self.value.names)
        )

    def _judged(self, batch: Batch, row: Row, held: Held, made: frozenset[int]) -> Verdict:
        if held is None and row.operation == "upsert" and self.changes_only:
            return Verdict(ABSENT, NOTHING_HELD)
        one = judge(self.value, row, held, refill=batch.refill, expires=False)
        ends = set(one.fields.values())
        if row.number in made and ends == {"same"}:  # it is as our request without an answer makes it
            one = one._replace(result=replace(one.result, ours=True))
        if one.writes is not None and ends == {"same"}:
            return one._replace(writes=None)
        return one

    def _sending(self, row: Row, one: Verdict, held: Held) -> Sending:
        version = held.get(VERSION) if held is not None else self.value.version(row.seen)
        return Sending(
            row,
            creates=one.expected == NOTHING_HELD and not one.removes,
            deletes=one.removes,
            version=version,
            names=frozenset(one.writes or ()),
        )

    def _result(self, one: Verdict, told: RowResult, *, acted: bool) -> RowResult:
        if not acted or told.kind is not Kind.WRITTEN:
            return WRITTEN if one.removes and told == ABSENT else told
        return replace(one.result, ref=told.ref)

    def _after(self, one: Verdict, told: Told, seen: bytes | None, *, acted: bool) -> bytes | None:
        """The digests that are remembered: a version only of an object that we left as a whole."""
        if one.after is None or (acted and told.result.kind is not Kind.WRITTEN):
            return None
        if not acted and "conflict" in one.fields.values():
            return seen
        fields = one.after[: SIZE * len(self.value.names)]
        if acted and told.held is not None and VERSION in told.held:
            shown = [name for name in self.value.names if name in told.held and name in (one.writes or ())]
            for n, name in enumerate(self.value.names):
                if name in shown:
                    fields = fields[: SIZE * n] + digest(told.held[name]) + fields[SIZE * (n + 1) :]
        if "keep" in one.fields.values() or told.held is None:
            return fields
        return fields + self.value.others(told.held)


def asked(value: Object, batch: Batch, rows: Sequence[tuple[Any, ...]]) -> list[Row]:
    """The rows of a conditional batch, from their documents. A row without fields sends none."""
    width = len(value.shape.key)
    return [
        Row(
            n,
            "",
            batch.operation,
            {} if batch.operation == "delete" or len(row) == width else value.texts(row[width]),
            seen,
            tuple(newest),
            batch.decisions.get(batch.first + n),
        )
        for n, (row, (seen, *newest)) in enumerate(zip(rows, batch.seen(), strict=True))
    ]


def _unlike(found: Mapping[int, RowResult], kind: Kind) -> dict[int, RowResult]:
    return {n: one for n, one in found.items() if one.kind is not kind}


def _lines(found: Mapping[int, RowResult], digests: Mapping[int, bytes]) -> Iterator[bytes]:
    for n, after in digests.items():
        if found[n].kind in (Kind.WRITTEN, Kind.MERGED, Kind.KEPT):
            yield b"%d,\\x%b\n" % (n, after.hex().encode())
