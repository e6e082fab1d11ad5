"""Writes the rows of a batch where nobody else has changed them since our last write.

Nearly all rows are as we left them: one script compares and writes those. It returns the values of the
others; these are judged, and sent again under the condition that they are still what was judged, in rounds.
If the sync keeps images, all rows are read first, and their images are durable before the script may write.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from retl.destinations import verdicts
from retl.destinations.batch import UNKNOWN, WRITTEN, Batch, Kind, Outcome, Peeked, RowResult
from retl.destinations.conflict import BUSY, ROUNDS
from retl.destinations.redis import script, stamp
from retl.destinations.redis.assumed import Assumed
from retl.destinations.redis.keys import Template
from retl.destinations.redis.resp import AGAIN, STOP, Command, Packed, Refusal, judge
from retl.destinations.redis.values import Hash, Stored, read_image
from retl.destinations.value import Held, Texts
from retl.destinations.verdicts import Row, Verdict
from retl.errors import Systemic, Unavailable

MOST_ROWS = 2000  # of a batch: the server does nothing else meanwhile


class Ask(Protocol):
    """Sends commands and returns their replies. With `writes`, Ambiguous if the server did not answer."""

    def __call__(self, commands: Sequence[Command | Packed], *, writes: bool = False) -> list[Any]: ...


@dataclass(frozen=True)
class Conditional:
    """The conditional batches of one lane."""

    value: Stored
    template: Template
    stamp: stamp.Stamp
    ttl: int | None
    server: str
    ask: Ask
    assumed: Assumed | None = None

    def write(self, batch: Batch, entry: str) -> Outcome:
        """The outcome, also if the batch was written before and the answer was lost."""
        reply = self._send_assumed(batch, entry)
        if reply == [None]:
            return Outcome(WRITTEN)
        rows = self._rows(batch)
        found: dict[int, RowResult] = {}
        held: dict[int, Held] = {}
        if self.value.shape.images:
            held, found = self._look(rows)
            todo = self._judged(batch, [row for row in rows if row.number not in found], held)
        else:
            todo = {row.number: verdicts.assume(self.value, row) for row in rows}
        by_number = {row.number: row for row in rows}
        done: dict[int, Verdict] = {}
        for number in range(ROUNDS):
            done |= todo
            results = _others(found, done)
            if reply is None:
                self._tell(batch, found, done)  # first: the answer may be lost
                self._keep(batch, held)
                command = self._command(entry, number, {n: by_number[n] for n in todo}, todo, results)
                reply = self._send(command)
            if reply[0] is not None:
                return stamp.outcome(reply[0]) or Outcome(UNKNOWN)
            met = dict(zip(reply[1::2], reply[2::2], strict=True))
            reply = None
            if not met:
                return Outcome(WRITTEN, results)
            self._raise_if_stopped(met.values())
            refused = {n: _refusal(one) for n, one in met.items() if isinstance(one, Refusal)}
            found |= refused
            now = {n: self.value.held(one) for n, one in met.items() if n not in refused}
            held |= now
            done = {n: one for n, one in done.items() if n not in met}
            todo = self._judged(batch, [by_number[n] for n in now], held)
            if not any(one.acts for one in todo.values()):
                done |= todo
                todo = {}
                break
        found |= dict.fromkeys(todo, BUSY)
        self._tell(batch, found, done)
        return Outcome(WRITTEN, _others(found, done))

    def peek(self, batch: Batch) -> Iterator[Peeked]:
        rows = self._rows(batch)
        held, refused = self._look(rows)
        judged = self._judged(batch, [row for row in rows if row.number not in refused], held)
        for row in rows:
            if row.number in refused:
                yield Peeked(refused[row.number])
            else:
                yield Peeked(judged[row.number].result, judged[row.number].fields)

    def first(self, batch: Batch, entry: str) -> Command:
        """The command that is sent if no images are kept."""
        rows = self._rows(batch)
        todo = {row.number: verdicts.assume(self.value, row) for row in rows}
        return self._command(entry, 0, {row.number: row for row in rows}, todo, {})

    def resolve(self, batch: Batch, attempt: int, *, act: bool) -> tuple[Outcome | None, int]:
        """What became of the batch, None if nothing of it was applied, and the attempt that is next. If it
        may `act`, an attempt that is still under way is never applied."""
        while True:
            entry = self.stamp.entry(batch, attempt)
            command: Command = ("HGET", self.stamp.key, entry)
            if act:
                command = ("EVAL", script.VOID, 1, self.stamp.key, entry)
            (stored,) = self.ask([command])
            if isinstance(stored, Refusal):
                code, sentence = judge(stored)
                kind = Unavailable if code in AGAIN else Systemic
                raise kind(code, f"{self.server}: {self.stamp.key}: {sentence}")
            if stored is not None and (known := stamp.outcome(stored)) is not None:
                return known, attempt
            attempt += 1
            if stored is None:
                return None, attempt

    def _rows(self, batch: Batch) -> list[Row]:
        width = len(self.value.shape.key)
        if batch.mode == "restore":
            undo = zip(batch.keys(), batch.undo(), strict=True)
            flags = {name: flag_text(value) for name, value in self.value.shape.flags.items()}
            return [
                Row(
                    n,
                    self.template.key(key),
                    op,
                    flags if op == "flag" else restored(self.value, op, before),
                    seen,
                )
                for n, (key, (op, before, seen)) in enumerate(undo)
            ]
        return [
            Row(
                n,
                self.template.key(row[:width]),
                batch.operation,
                {} if batch.operation == "delete" else self.value.texts(row[width]),
                seen,
                tuple(newest),
                batch.decisions.get(batch.first + n),
            )
            for n, (row, (seen, *newest)) in enumerate(zip(batch.documents(), batch.seen(), strict=True))
        ]

    def _look(self, rows: Sequence[Row]) -> tuple[dict[int, Held], dict[int, RowResult]]:
        """What the keys hold, and the results of rows whose key holds a value of another kind."""
        replies = self.ask([self.value.look(row.key) for row in rows])
        self._raise_if_stopped(replies)
        found = dict(zip((row.number for row in rows), replies, strict=True))
        refused = {n: _refusal(one) for n, one in found.items() if isinstance(one, Refusal)}
        return {n: self.value.held(one) for n, one in found.items() if n not in refused}, refused

    def _judged(self, batch: Batch, rows: Iterable[Row], held: Mapping[int, Held]) -> dict[int, Verdict]:
        expires = self.ttl is not None
        return {
            row.number: verdicts.judge(
                self.value, row, held[row.number], refill=batch.refill, expires=expires
            )
            for row in rows
        }

    def _send_assumed(self, batch: Batch, entry: str) -> list[Any] | None:
        """The reply to the first round, in which all rows are assumed to be as we left them; None if it was
        not sent."""
        if self.assumed is None or batch.mode != "upsert":
            return None
        command, digests = self.assumed.command(batch, self.stamp, entry, self.ttl)
        if batch.returns is not None:
            batch.returns.digests(batch, digests)  # first: the answer may be lost
        return self._send(command)

    def _send(self, command: Command | Packed) -> list[Any]:
        (reply,) = self.ask([command], writes=True)
        if isinstance(reply, Refusal):
            self._raise_if_stopped([reply])
            code, sentence = judge(reply)
            if code in AGAIN:
                raise Unavailable(code, f"{self.server}: {sentence}")
            raise Systemic("STAMP_REFUSED", f"{self.server} does not keep {self.stamp.key}: {sentence}")
        if reply[0] == b"reset":
            raise Unavailable("TARGET_RESET", f"{self.server} was emptied while the batch was written")
        return list(reply)

    def _command(
        self,
        entry: str,
        number: int,
        rows: Mapping[int, Row],
        todo: Mapping[int, Verdict],
        results: Mapping[int, RowResult],
    ) -> Command:
        sent = [n for n, one in todo.items() if one.acts]
        arguments: list[str | bytes | int] = [entry, number, stamp.noted(results)]
        arguments.append("none" if self.ttl is None else self.ttl)
        text = script.STRING
        if isinstance(self.value, Hash):
            text = script.HASH
            arguments += [int(self.value.rest), len(self.value.names), len(self.value.ours), *self.value.ours]
        else:
            arguments += [0, 0, 0]
        for n in sent:
            arguments += [n, todo[n].expected, *_change(self.value, todo[n])]
        return ("EVAL", text, 1 + len(sent), self.stamp.key, *(rows[n].key for n in sent), *arguments)

    def _keep(self, batch: Batch, held: Mapping[int, Held]) -> None:
        """Make durable what all rows hold, before anything of it is overwritten."""
        if not self.value.shape.images or batch.returns is None:
            return
        whole = batch.mode in ("delete", "restore")
        lines = (
            _line(batch.first + n, self.value.image(one, whole=whole))
            for n, one in held.items()
            if one is not None
        )
        batch.returns.forget(batch)
        batch.returns.images(batch, lines)
        batch.returns.keep(batch)

    def _tell(self, batch: Batch, found: Mapping[int, RowResult], done: Mapping[int, Verdict]) -> None:
        """Put the digests of what the rows hold after the write."""
        if batch.returns is not None and batch.mode != "delete":
            batch.returns.digests(
                batch,
                (
                    b"%d,\\x%b\n" % (n, one.after.hex().encode())
                    for n, one in done.items()
                    if one.after is not None and n not in found
                ),
            )

    def _raise_if_stopped(self, replies: Iterable[Any]) -> None:
        for reply in replies:
            if isinstance(reply, Refusal) and judge(reply)[0] in STOP:
                code, sentence = judge(reply)
                raise Systemic(code, f"{self.server}: {sentence}")


def restored(value: Stored, op: str, before: str | None) -> Texts:
    """The texts of a row of a rollback, from its image."""
    texts = read_image(before) if before is not None and op in ("restore", "remake") else {}
    return {name: texts.get(name) for name in value.ours} if op == "restore" else texts


def flag_text(value: Any) -> bytes | None:
    """A value of the definition as an entry of a hash."""
    return None if value is None else (value if isinstance(value, str) else json.dumps(value)).encode()


def _change(value: Stored, verdict: Verdict) -> list[str | bytes | int]:
    """How many arguments set the value and how many clear it, and those."""
    if verdict.removes or verdict.writes is None:
        return [-1, 0]
    if not isinstance(value, Hash):
        (text,) = verdict.writes.values() or (None,)
        return [-1, 0] if text is None else [1, 0, text]
    sets = [part for name, text in verdict.writes.items() if text is not None for part in (name, text)]
    clears = [name for name, text in verdict.writes.items() if text is None]
    return [len(sets), len(clears), *sets, *clears]


def _others(found: Mapping[int, RowResult], done: Mapping[int, Verdict]) -> dict[int, RowResult]:
    """The results that are not just WRITTEN."""
    others = {n: one.result for n, one in done.items() if one.result is not WRITTEN}
    return {n: one for n, one in (others | dict(found)).items() if one != WRITTEN}


def _refusal(refusal: Refusal) -> RowResult:
    code, sentence = judge(refusal)
    return RowResult(Kind.RETRY if code in AGAIN else Kind.REJECTED, code, sentence)


def _line(position: int, image: str) -> bytes:
    quoted = image.replace('"', '""')
    return f'{position},"{quoted}"\n'.encode()
