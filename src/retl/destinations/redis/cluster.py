"""A Redis Cluster: sends each command to the server that has the slot of its key, and follows moving slots.

A server that has moved a slot refuses the command and names the one that has it (MOVED), or that has this key
already (ASK). What was refused is sent there, in rounds. It knows no rows and never retries.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct, field

from retl.destinations.redis.resp import (
    Account,
    Command,
    Packed,
    Refusal,
    Wire,
    advice,
    joined,
    judge,
    key_of,
    pack,
    why,
)
from retl.destinations.redis.sentinel import Address, encrypted
from retl.destinations.redis.slots import SLOTS, slot
from retl.errors import Systemic, Unavailable

ROUNDS = 8  # in which refused commands follow their slots
MOVING = Refusal("TRYAGAIN")
_ASKING = pack(("ASKING",))


class Mark(NamedTuple):
    """What is sent to a server before rows, and after them. Both commands have one key, of this slot."""

    slot: int
    begin: Command
    end: Command


class _Part(Struct):
    """What one server is sent in a round: rows and marks, by their numbers."""

    rows: list[int] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    replies: list[Any] = field(default_factory=list)


class _Work(Struct):
    """What is sent, and the replies so far. `ways`: of slots that are being moved, where their keys are."""

    slots: Sequence[int]
    rows: Sequence[bytes]
    marks: Sequence[Mark]
    replies: list[Any]
    stamps: list[tuple[Any, Any]]
    ways: dict[int, Address] = field(default_factory=dict)
    moved: Address | None = None  # who named another server
    stale: bool = False  # ask again which server has which slot


class Cluster:
    """The connections of one lane to all servers that have slots."""

    follows = True

    def __init__(
        self, server: str, seeds: Sequence[Address], account: Account, *, allow_plaintext: bool
    ) -> None:
        self.server = server
        self._seeds, self._account, self._allow_plaintext = seeds, account, allow_plaintext
        self._wires: dict[Address, Wire] = {}
        self._owners: Sequence[Address] = ()

    # --- commands

    def ask(self, commands: Iterable[Command]) -> list[Any]:
        """The replies to commands that change nothing, or not again if they are sent twice. Unavailable if a
        server does not answer."""
        listed = list(commands)
        slots = [slot(key_of(one)) for one in listed]
        try:
            return self.exchange(slots, [pack(one) for one in listed])[0]
        except OSError as error:
            raise Unavailable("NO_ANSWER", f"{self.server} did not answer: {why(error)}") from error

    def exchange(
        self,
        slots: Sequence[int],
        rows: Sequence[bytes],
        marks: Sequence[Mark] = (),
        count_bytes: Callable[[int], None] = lambda size: None,
    ) -> tuple[list[Any], list[tuple[Any, Any]]]:
        """The replies to rows, which are packed commands, and per mark those to its beginning and end. On
        each server all of its marks begin before the first row and end after the last; with marks a server
        without one gets no row. A command whose slot keeps moving has the reply MOVING.

        OSError if a connection breaks: it is not known how much was done. Unavailable or Systemic if nothing
        was sent."""
        self._learn_once()
        work = _Work(slots, rows, marks, [MOVING] * len(rows), [(MOVING, MOVING)] * len(marks))
        todo, due = list(range(len(rows))), set(range(len(marks)))
        for number in range(ROUNDS):
            parts = self._parts(work, todo, due)
            self._run(work, parts, count_bytes, first=number == 0)
            todo, due = self._left(work, parts, todo)
            if not todo and not due:
                break
            if work.moved is not None or work.stale:
                self._learn_again(work)
        if work.stale:
            self._owners = ()
        return work.replies, work.stamps

    def _parts(self, work: _Work, todo: Iterable[int], due: set[int]) -> Mapping[Address, _Part]:
        """Per server its rows, and its marks if it has rows or one of them is due."""
        parts: dict[Address, _Part] = {}
        owners, ways, slots = self._owners, work.ways, work.slots
        for n in todo:
            at = ways.get(slots[n]) or owners[slots[n]]
            if (part := parts.get(at)) is None:
                part = parts[at] = _Part()
            part.rows.append(n)
        homes = [ways.get(mark.slot) or owners[mark.slot] for mark in work.marks]
        touched = {*parts, *(homes[n] for n in due)}
        for n, at in enumerate(homes):
            if at in touched:
                parts.setdefault(at, _Part()).marks.append(n)
        sent = {at: part for at, part in parts.items() if part.marks or not work.marks}
        work.stale = work.stale or len(sent) < len(parts)  # nobody says when these slots move
        return sent

    def _run(
        self,
        work: _Work,
        parts: Mapping[Address, _Part],
        count_bytes: Callable[[int], None],
        *,
        first: bool,
    ) -> None:
        """All servers work at the same time."""
        try:
            for at in parts:
                self._wire(at).open()
        except Unavailable as error:
            self._owners = ()
            if first:
                raise
            raise ConnectionError(error.message) from error
        running = [
            self._wire(at).steps(_commands(work, part), part.replies, count_bytes)
            for at, part in parts.items()
        ]
        with contextlib.ExitStack() as stack:
            for one in running:
                stack.enter_context(contextlib.closing(one))
            try:
                while running:
                    running = [one for one in running if next(one, StopIteration) is None]
            except BaseException:
                self._owners = ()
                raise

    def _left(
        self, work: _Work, parts: Mapping[Address, _Part], todo: Sequence[int]
    ) -> tuple[list[int], set[int]]:
        """The rows and marks that are to be sent again, because their slots are elsewhere."""
        work.moved, sent = None, set[int]()
        left, due = list[int](), set[int]()
        answers = [(at, part, _answered(work, part)) for at, part in parts.items()]
        for at, part, (begins, rows, ends) in answers:
            sent.update(part.rows)
            stays = True
            for n, begin, end in zip(part.marks, begins, ends, strict=True):
                if self._redirected(work, work.marks[n].slot, at, (begin, end)):
                    due.add(n)
                    stays = False
                else:
                    work.stamps[n] = (begin, end)
            for n, reply in zip(part.rows, rows, strict=True):
                elsewhere = isinstance(reply, Refusal) and self._redirected(work, work.slots[n], at, (reply,))
                if elsewhere or not stays:
                    left.append(n)
                else:
                    work.replies[n] = reply
        return sorted([*left, *(n for n in todo if n not in sent)]), due

    def _redirected(self, work: _Work, number: int, at: Address, replies: Iterable[Any]) -> bool:
        """Whether this server says that the slot, or its key, is elsewhere; notes where."""
        found = False
        for reply in replies:
            if not isinstance(reply, Refusal):
                continue
            code, _, rest = str(reply).partition(" ")
            if code == "ASK":
                host, _, port = rest.partition(" ")[2].rpartition(":")
                work.ways[number] = self._encrypted((host or at[0], int(port)))
            elif code == "MOVED":
                work.ways.pop(number, None)
                work.moved = at
            elif code == "CLUSTERDOWN":
                work.stale = True
            found = found or code in ("ASK", "MOVED")
        return found

    # --- servers

    def each(self) -> list[Wire]:
        """The connections to all servers that have slots now."""
        self._learn_once()
        return [self._wire(at) for at in dict.fromkeys(self._owners)]

    def probe(self, commands: Sequence[Command]) -> list[Any]:
        """The replies of every server to commands that change nothing, without those that only say that the
        key is elsewhere."""
        found = [reply for wire in self.each() for reply in wire.ask(commands)]
        return [one for one in found if not (isinstance(one, Refusal) and judge(one)[0] in ("MOVED", "ASK"))]

    def require(self, slots: Iterable[int]) -> None:
        """Unavailable CLUSTER_SLOTS if a server has none of these."""
        self._learn_once()
        bare = sorted({*self._owners} - {self._owners[number] for number in slots})
        if bare:
            host, port = bare[0]
            raise Unavailable(
                "CLUSTER_SLOTS",
                f"{host}:{port} has so few slots that it has no stamp, so a loss there would not be noticed",
                hint="run again when the cluster has moved its slots, or move more slots to this server",
            )

    def steady(self) -> Sequence[Address]:
        """The server of every slot. Unavailable CLUSTER_MOVING if one is on its way."""
        self.close()
        self._learn_once()
        for wire in self.each():
            (reply,) = wire.ask([("CLUSTER", "NODES")])
            if isinstance(reply, Refusal):
                code, sentence = judge(reply)
                raise Systemic(code, f"{wire.server}: {sentence}", hint=advice(code))
            own = next(line for line in reply.splitlines() if b"myself" in line)
            if b" [" in own:
                raise moving(self.server)
        return self._owners

    def close(self) -> None:
        """Close all connections; which server has which slot is asked again. Never raises."""
        for wire in self._wires.values():
            wire.close()
        self._wires, self._owners = {}, ()

    def _wire(self, at: Address) -> Wire:
        if (wire := self._wires.get(at)) is None:
            name = f"redis://{at[0]}:{at[1]}"
            wire = self._wires[at] = Wire(name, lambda: at, self._account, mode="cluster")
        return wire

    def _learn_once(self) -> None:
        if not self._owners:
            self._learn([*self._wires, *self._seeds])

    def _learn_again(self, work: _Work) -> None:
        """Ask the server first that knows of a move. OSError if none answers."""
        first = [work.moved] if work.moved else []
        try:
            self._learn([*first, *self._wires, *self._seeds])
        except Unavailable as error:
            raise ConnectionError(error.message) from error

    def _learn(self, addresses: Iterable[Address]) -> None:
        """Which server has which slot, from the first that answers."""
        problem: Unavailable | None = None
        for at in dict.fromkeys(addresses):
            wire = self._wire(at)
            try:
                (reply,) = wire.ask([("CLUSTER", "SLOTS")])
            except Unavailable as error:
                problem = error
                del self._wires[at]
                continue
            if isinstance(reply, Refusal):
                code, sentence = judge(reply)
                raise Systemic(code, f"{wire.server}: {sentence}", hint=advice(code))
            self._owners = self._listed(reply, at[0])
            return
        assert problem is not None
        raise problem

    def _listed(self, reply: Iterable[Any], host: str) -> Sequence[Address]:
        """The server of every slot, from a reply to CLUSTER SLOTS. One without a host is where we asked."""
        owners: list[Address | None] = [None] * SLOTS
        for first, last, master, *_ in reply:
            named = (master[0] or b"").decode()
            at = self._encrypted((host if named in ("", "?") else named, int(master[1])))
            owners[first : last + 1] = [at] * (last + 1 - first)
        found = [at for at in owners if at is not None]
        if len(found) < SLOTS:
            raise Unavailable(
                "CLUSTERDOWN", f"{self.server}: no server has {SLOTS - len(found):,} of the slots"
            )
        return found

    def _encrypted(self, at: Address) -> Address:
        named, allow = "the cluster names a server", self._allow_plaintext
        return encrypted(at, self._account, "CLUSTER_PLAINTEXT", named, allow_plaintext=allow)


def moving(server: str) -> Unavailable:
    return Unavailable(
        "CLUSTER_MOVING",
        f"{server} moves slots, so its keys cannot be listed: some would be missed",
        hint="run again when it has moved them; `redis-cli --cluster check` finds unfinished moves",
    )


def _commands(work: _Work, part: _Part) -> Iterator[Command | Packed]:
    """The marks begin, the rows, the marks end. Keys that are on their way must be asked for."""
    ways = work.ways
    marks = [work.marks[n] for n in part.marks]
    yield from (_asked(mark.slot in ways, mark.begin) for mark in marks)
    if ways:
        for n in part.rows:
            one = work.rows[n]
            yield Packed(_ASKING + one, 2) if work.slots[n] in ways else Packed(one, 1)
    else:
        yield from joined([work.rows[n] for n in part.rows])
    yield from (_asked(mark.slot in ways, mark.end) for mark in marks)


def _asked(asking: bool, command: Command) -> Command | Packed:
    return Packed(_ASKING + pack(command), 2) if asking else command


def _answered(work: _Work, part: _Part) -> tuple[list[Any], list[Any], list[Any]]:
    """The replies to the beginnings, the rows, and the ends."""
    if not work.ways:
        first, last = len(part.marks), len(part.marks) + len(part.rows)
        return part.replies[:first], part.replies[first:last], part.replies[last:]
    marks = [work.marks[n].slot for n in part.marks]
    slots = [*marks, *(work.slots[n] for n in part.rows), *marks]
    replies = iter(part.replies)
    found = []
    for number in slots:
        if number in work.ways:
            next(replies)  # to ASKING
        found.append(next(replies))
    return found[: len(marks)], found[len(marks) : len(slots) - len(marks)], found[len(slots) - len(marks) :]
