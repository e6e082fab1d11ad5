"""The stamp: a hash per sync and object in which retl marks every batch, so that a server which lost rows is
noticed. An entry begins with its state. A conditional batch has its outcome there too, written in one step
with its rows. One more hash per object lists the ledgers that deliver to it, in the order of their last runs.

In a cluster each server can lose rows alone, and slots move between servers. So there is a stamp in every
128th part of the slots, and each batch is marked in all of them: wherever they are, each server has some.

The stamp of a stream is beside it, and has one more entry, the fence: the epoch and the run that may append.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from retl.destinations.batch import UNKNOWN, WRITTEN, Batch, Kind, Outcome, RowResult, Shape
from retl.destinations.redis.resp import Command, Refusal

PARTS = 128  # of the slots of a cluster
VOID, BEGUN, ENDED = 0, 1, 2  # the states of an entry: 0 for an attempt that must never be applied
FENCE = b"fence"
NOT_APPLIED = RowResult(Kind.RETRY)


class Stamp:
    """`keys`: of the stamp, in a cluster one in each part of the slots. `key`: their beginning."""

    def __init__(self, shape: Shape, template: str, within: Sequence[str] | None = None) -> None:
        """`within`: the hash tags that the names of its keys have."""
        self.key = f"retl:stamp:{quote(shape.state_id)}:{quote(template, safe='')}"
        self.keys = (self.key,) if within is None else tuple(f"{self.key}:{{{tag}}}" for tag in within)
        self.ledgers = f"retl:stamp::{quote(template, safe='')}"
        self._state_id = shape.state_id

    def others(self, reply: Any) -> bool:
        """Whether other ledgers have delivered here, and this one never. `reply`: to HGETALL of `ledgers`."""
        known = _ledgers(reply)
        return bool(known) and self._state_id not in known

    def taken(self, reply: Any) -> bool:
        """Whether another ledger has delivered here since this one last did."""
        known = _ledgers(reply)
        return self._state_id in known and max(known.values()) > known[self._state_id]

    def signing(self, reply: Any) -> list[Command]:
        """What makes this ledger the last in the list; nothing if it is."""
        known = _ledgers(reply)
        last = max(known.values(), default=0)
        if known.get(self._state_id) == last and list(known.values()).count(last) == 1:
            return []
        return [("HSET", self.ledgers, self._state_id, last + 1)]

    def around(self, batch: Batch) -> list[tuple[Command, Command]]:
        """Per key what is sent before and after the rows: if the server is emptied in between, the second
        finds no entry."""
        entry = self.entry(batch)
        return [(("HSET", key, entry, BEGUN), ("HINCRBY", key, entry, ENDED - BEGUN)) for key in self.keys]

    def entry(self, batch: Batch, attempt: int = 0) -> str:
        return f"{batch.run_id}/{batch.id}" + (f":{attempt}" if attempt else "")


def ended(replies: Iterable[Any]) -> frozenset[tuple[str, str]]:
    """The batches (run id, batch id) that were written to their end by every stamp. `replies`: to HGETALL."""
    return frozenset.intersection(
        *(
            frozenset(
                (run, entry.partition(":")[0]) for run, entry, state in _stamped(reply) if state >= ENDED
            )
            for reply in replies
        )
    )


def fenced(reply: Any) -> int:
    """The epoch in the fence of a stamp; 0 without one."""
    entries = iter(() if isinstance(reply, Refusal) else reply)
    held = dict(zip(entries, entries, strict=True)).get(FENCE)
    return int(held.split(b" ", 1)[0]) if held else 0


def entries_of_others(reply: Any, runs: frozenset[str]) -> list[str]:
    """The entries of a stamp that belong to no run of these."""
    return [f"{run}/{entry}" for run, entry, _ in _stamped(reply) if run not in runs]


def _ledgers(reply: Any) -> dict[str, int]:
    """Per ledger its place in the order of their last runs."""
    listed = iter(() if isinstance(reply, Refusal) else reply)
    return {state_id.decode(): int(place) for state_id, place in zip(listed, listed, strict=True)}


def _stamped(reply: Any) -> Iterator[tuple[str, str, int]]:
    """Per entry: run, batch with attempt, state."""
    entries = iter(() if isinstance(reply, Refusal) else reply)
    for entry, state in zip(entries, entries, strict=True):
        if entry == FENCE:
            continue
        run_id, _, batch = entry.decode().partition("/")
        yield run_id, batch, int(state.split(b" ", 1)[0])


def noted(results: Mapping[int, RowResult]) -> str:
    """Results other than WRITTEN as a text: equal ones share a group."""
    groups: dict[RowResult, list[int]] = {}
    for row, result in results.items():
        groups.setdefault(result, []).append(row)
    return json.dumps([[r.kind, r.code, r.reason, r.ours, rows] for r, rows in groups.items()])


def outcome(stored: bytes) -> Outcome | None:
    """What an entry says of its batch: rows whose key had changed were not written. None for an attempt that
    is never applied. A batch without conditions leaves no outcome: the server may have refused some rows."""
    state, _, rest = stored.partition(b" ")
    if int(state) == VOID:
        return None
    if int(state) == BEGUN or not rest:
        return Outcome(UNKNOWN)
    text, _, left = rest.partition(b" ")[2].rpartition(b"\n")
    found = {
        row: RowResult(Kind(kind), code, reason, ours=ours)
        for kind, code, reason, ours, rows in json.loads(text)
        for row in rows
    }
    return Outcome(WRITTEN, found | dict.fromkeys(_numbers(left), NOT_APPLIED))


def _numbers(listed: bytes) -> Sequence[int]:
    return [int(one) for one in listed.split(b",") if one]
