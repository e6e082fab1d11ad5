"""Writes the rows of a batch where nobody else has changed them since our last write.

Nearly all rows are as we left them: one script compares and writes those. It returns the values of the
others; these are judged, and sent again under the condition that they are still what was judged, in rounds.
If the sync keeps images, all rows are read first, and their images are durable before the script may write:
it writes only what still is as it was read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct, field

from retl.destinations import verdicts
from retl.destinations.batch import UNKNOWN, WRITTEN, Batch, Kind, Outcome, Peeked, RowResult
from retl.destinations.conflict import BUSY, ROUNDS
from retl.destinations.redis import script, stamp
from retl.destinations.redis.assumed import Assumed
from retl.destinations.redis.keys import Template
from retl.destinations.redis.resp import AGAIN, STOP, Command, Packed, Refusal, advice, judge
from retl.destinations.redis.values import Hash, Stored, read_image
from retl.destinations.value import Held, Texts
from retl.destinations.verdicts import Row, Verdict
from retl.errors import Systemic, Unavailable

MOST_ROWS = 1000  # of a batch: the server does nothing else meanwhile
MOST_KEPT = 2000  # with images: their file takes longer than the script
LANES = 2  # one makes a batch while the server writes the other's


class Ask(Protocol):
    """Sends commands and returns their replies. With `writes`, Ambiguous if the server did not answer."""

    def __call__(self, commands: Sequence[Command | Packed], *, writes: bool = False) -> list[Any]: ...


class State(Struct):
    """What is known of the rows of a batch, by their numbers.

    `found`: results that are final. `verdicts`: on rows that are not just assumed. `after`: the digests, in
    hexadecimal, that rows have if they are as expected. `images`: lines of what they hold before.
    """

    found: dict[int, RowResult] = field(default_factory=dict)
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    after: dict[int, str] = field(default_factory=dict)
    images: dict[int, bytes] = field(default_factory=dict)

    def expect(self, todo: Mapping[int, Verdict]) -> None:
        """These verdicts take the place of earlier ones."""
        self.verdicts |= todo
        for n, one in todo.items():
            if one.after is None:
                self.after.pop(n, None)
            else:
                self.after[n] = one.after.hex()

    @property
    def others(self) -> dict[int, RowResult]:
        """The results that are not just WRITTEN."""
        results = {n: one.result for n, one in self.verdicts.items()} | self.found
        return {n: one for n, one in results.items() if one != WRITTEN}


class Conditional(Struct, frozen=True):
    """The conditional batches of one lane."""

    value: Stored
    template: Template
    stamp: stamp.Stamp
    ttl: int | None
    server: str
    ask: Ask
    assumed: Assumed | None = None

    @property
    def looks_at_once(self) -> bool:
        """Whether rows are read with MGET before they are written."""
        return self.assumed is not None and self.value.shape.images

    def write(self, batch: Batch, entry: str) -> Outcome:
        """The outcome, also if the batch was written before and the answer was lost."""
        state = State()
        reply = self._send_assumed(batch, entry, state)
        if reply is None:
            reply = self._send_first(batch, entry, state)
        rows: Sequence[Row] = ()
        for number in range(1, ROUNDS + 1):
            if reply[0] is not None:
                return stamp.outcome(reply[0]) or Outcome(UNKNOWN)
            if len(reply) == 1:
                return Outcome(WRITTEN, state.others)
            rows = rows or self._rows(batch)
            todo = self._met(batch, rows, reply, state)
            if not any(one.acts for one in todo.values()):
                state.expect(todo)
                break
            if number == ROUNDS:
                state.found |= dict.fromkeys(todo, BUSY)
                break
            state.expect(todo)
            self._keep(batch, state)
            reply = self._send(self._command(entry, number, rows, todo, state.others))
        self._tell(batch, state)
        return Outcome(WRITTEN, state.others)

    def _met(
        self, batch: Batch, rows: Sequence[Row], reply: Sequence[Any], state: State
    ) -> dict[int, Verdict]:
        """The verdicts on the rows that the script did not write, by what it met."""
        met = dict(zip(reply[1::2], reply[2::2], strict=True))
        self._raise_if_stopped(met.values())
        refused = {n: _refusal(one) for n, one in met.items() if isinstance(one, Refusal)}
        state.found |= refused
        held = {n: self.value.held(one) for n, one in met.items() if n not in refused}
        self._remember(batch, held, state)
        return self._judged(batch, [rows[n] for n in held], held)

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
        return self._command(
            entry, 0, rows, {row.number: verdicts.assume(self.value, row) for row in rows}, {}
        )

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

    def _judged(
        self, batch: Batch, rows: Iterable[Row], held: Mapping[int, Held], *, briefly: bool = False
    ) -> dict[int, Verdict]:
        """`briefly`: a row that is as we left it has no verdicts on its fields."""
        expires = self.ttl is not None
        briefly = briefly and batch.mode in ("upsert", "delete")
        found = {}
        for row in rows:
            one = held[row.number]
            if briefly and one is not None and row.seen and self.value.digests(one) == row.seen:
                found[row.number] = verdicts.assume(self.value, row)
            else:
                found[row.number] = verdicts.judge(self.value, row, one, refill=batch.refill, expires=expires)
        return found

    def _send_assumed(self, batch: Batch, entry: str, state: State) -> list[Any] | None:
        """The reply to the first round, in which all rows are assumed to be as we left them; None if it was
        not sent."""
        if self.assumed is None or batch.mode != "upsert":
            return None
        rows = self.assumed.rows(batch)
        expected = rows.expected
        state.after = dict(enumerate(rows.after))
        if self.value.shape.images:
            (reply,) = self.ask([rows.look()])
            if isinstance(reply, Refusal):
                raise self._failure(reply)
            self._remember(batch, {n: self.value.held(one) for n, one in enumerate(reply)}, state)
            expected = rows.expected_of(reply)
        self._keep(batch, state)
        return self._send(rows.command(self.stamp, entry, self.ttl, expected))

    def _send_first(self, batch: Batch, entry: str, state: State) -> list[Any]:
        """The same from rows made in Python, which are read first if images are kept."""
        rows = self._rows(batch)
        if self.value.shape.images:
            held, refused = self._look(rows)
            state.found |= refused
            self._remember(batch, held, state)
            todo = self._judged(batch, [rows[n] for n in held], held, briefly=True)
        else:
            todo = {row.number: verdicts.assume(self.value, row) for row in rows}
        state.expect(todo)
        self._keep(batch, state)
        return self._send(self._command(entry, 0, rows, todo, state.others))

    def _send(self, command: Command | Packed) -> list[Any]:
        (reply,) = self.ask([command], writes=True)
        if isinstance(reply, Refusal):
            code, sentence = judge(reply)
            if code in STOP or code in AGAIN:
                raise self._failure(reply)
            raise Systemic("STAMP_REFUSED", f"{self.server} does not keep {self.stamp.key}: {sentence}")
        if reply[0] == b"reset":
            raise Unavailable("TARGET_RESET", f"{self.server} was emptied while the batch was written")
        return list(reply)

    def _failure(self, refusal: Refusal) -> Systemic | Unavailable:
        """The error of a command that is for all rows."""
        code, sentence = judge(refusal)
        return (Unavailable if code in AGAIN else Systemic)(code, f"{self.server}: {sentence}")

    def _command(
        self,
        entry: str,
        number: int,
        rows: Sequence[Row],
        todo: Mapping[int, Verdict],
        results: Mapping[int, RowResult],
    ) -> Command:
        sent = sorted(n for n, one in todo.items() if one.acts)
        width = script.width(self.value.size)
        arguments: list[str | bytes | int] = [entry, number, stamp.noted(results)]
        arguments += ["none" if self.ttl is None else self.ttl, width]
        arguments.append("".join(todo[n].expected.ljust(width, script.NOTHING) for n in sent))
        arguments.append("" if sent == list(range(len(sent))) else ",".join(map(str, sent)))
        changes = [todo[n] for n in sent]
        if isinstance(self.value, Hash):
            text = script.HASH
            arguments += [int(self.value.rest), len(self.value.names), len(self.value.ours), *self.value.ours]
            arguments += [part for one in changes for part in _entries(one)]
        else:
            text = script.STRING
            texts = [_text(one) for one in changes]
            ways = [script.REMOVES if one is None else script.SETS for one in texts]
            arguments.append("".join(ways) if None in texts else "")
            arguments += [one or b"" for one in texts]
        return ("EVAL", text, 1 + len(sent), self.stamp.key, *(rows[n].key for n in sent), *arguments)

    def _remember(self, batch: Batch, held: Mapping[int, Held], state: State) -> None:
        """The images of what rows hold."""
        if not self.value.shape.images:
            return
        whole = batch.mode in ("delete", "restore")
        for n, one in held.items():
            if one is None:
                state.images.pop(n, None)
            else:
                state.images[n] = _line(batch.first + n, self.value.image(one, whole=whole))

    def _keep(self, batch: Batch, state: State) -> None:
        """Make durable what all rows hold, before anything of it is overwritten, and what they will hold: the
        answer may be lost."""
        if batch.returns is not None:
            images = self.value.shape.images
            batch.returns.forget(batch)
            if images:
                batch.returns.images(batch, state.images.values())
            self._tell(batch, state)
            batch.returns.keep(batch, images=images)

    def _tell(self, batch: Batch, state: State) -> None:
        """Put the digests of what the rows hold after the write."""
        if batch.returns is not None and batch.mode != "delete":
            told = (f"{n},\\x{one}\n" for n, one in state.after.items() if n not in state.found)
            batch.returns.digests(batch, ["".join(told).encode()])

    def _raise_if_stopped(self, replies: Iterable[Any]) -> None:
        for reply in replies:
            if isinstance(reply, Refusal) and judge(reply)[0] in STOP:
                code, sentence = judge(reply)
                raise Systemic(code, f"{self.server}: {sentence}", hint=advice(code))


def restored(value: Stored, op: str, before: str | None) -> Texts:
    """The texts of a row of a rollback, from its image."""
    texts = read_image(before) if before is not None and op in ("restore", "remake") else {}
    return {name: texts.get(name) for name in value.ours} if op == "restore" else texts


def flag_text(value: Any) -> bytes | None:
    """A value of the definition as an entry of a hash."""
    return None if value is None else (value if isinstance(value, str) else json.dumps(value)).encode()


def _text(verdict: Verdict) -> bytes | None:
    """What sets a string; None if it is removed."""
    if verdict.removes or verdict.writes is None:
        return None
    (text,) = verdict.writes.values() or (None,)
    return text


def _entries(verdict: Verdict) -> list[str | bytes | int]:
    """How many arguments set a hash (-1: it is removed) and how many clear it, and those."""
    if verdict.removes or verdict.writes is None:
        return [-1, 0]
    sets = [part for name, text in verdict.writes.items() if text is not None for part in (name, text)]
    clears = [name for name, text in verdict.writes.items() if text is None]
    return [len(sets), len(clears), *sets, *clears]


def _refusal(refusal: Refusal) -> RowResult:
    code, sentence = judge(refusal)
    return RowResult(Kind.RETRY if code in AGAIN else Kind.REJECTED, code, sentence)


def _line(position: int, image: str) -> bytes:
    quoted = image.replace('"', '""')
    return f'{position},"{quoted}"\n'.encode()
