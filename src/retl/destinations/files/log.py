"""The log of a place: entries with consecutive numbers, each created only if its number is free.

An entry is the commit of a batch: a reader of the entries sees a batch as a whole or not at all. A batch
that got no answer is resolved by a void entry at the next number: then it was applied before, or never will
be. A run begins with an entry of its own, which fences off every older run and every other ledger, and
carries on the marks that the ledger may ask for. It knows no files and no rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

from msgspec import Struct, field

from retl.destinations.batch import Batch, Shape, Trace, Visit
from retl.destinations.files.place import OURS, Place
from retl.errors import Systemic

FOLDER = f"{OURS}/log"
_HEAD = f"{OURS}/head.json"  # where the newest run began: only saves reading, and may be wrong
_AT_ONCE = 8  # entries that are fetched at the same time
Entry = Mapping[str, Any]
Owner = tuple[str, str]  # a ledger and a sync
Mark = dict[str, Any]  # ledger, sync, run, batch, set: the number of the entry of the set it belongs to


class Log(Struct):
    """The entries as far as they were read. Not for several threads."""

    place: Place
    shape: Shape
    author: str = field(default_factory=lambda: uuid4().hex)  # tells our voids from those of another run
    marks: list[Mark] = field(default_factory=list)
    epochs: dict[Owner, int] = field(default_factory=dict)  # the newest of each ledger and sync
    owner: Owner | None = None  # of the newest run
    _fates: dict[tuple[str, int], Entry] = field(default_factory=dict)
    _next: int | None = None

    def read(self) -> None:
        """Read what came since the last reading."""
        if self._next is None:
            self._read_first()
        assert self._next is not None
        while (held := self.place.get(key(self._next))) is not None:
            self._take(self._next, held.data)

    @property
    def length(self) -> int:
        """The number of entries that were read or skipped so far."""
        return self._next or 0

    def fate(self, batch: str, attempt: int) -> Entry | None:
        """The entry of this attempt to write a batch, as far as the log was read."""
        return self._fates.get((batch, attempt))

    def begin(self, visit: Visit) -> None:
        """A new run: older ones can no longer commit. Marks of its sync outside `visit.keep` are dropped."""
        self.read()
        kept = [one for one in self.marks if not self._is_ours(one) or one["run"] in visit.keep]
        self._fence(visit.epoch, starts=True)
        epochs = [[*owner, epoch] for owner, epoch in sorted(self.epochs.items())]
        entry = self._entry("begin", visit.run_id, visit.epoch, marks=kept, epochs=epochs)
        if not self._create(entry):
            return self.begin(visit)  # somebody else wrote an entry meanwhile
        self.place.put(_HEAD, encoded({"entry": self._next}))
        return self.read()

    def commit(self, batch: Batch, attempt: int, state: str, **said: Any) -> Entry:
        """The entry of this attempt: a new one with `said`, or what the log already has."""
        told = {"batch": batch.id, "attempt": attempt, "operation": batch.operation, "author": self.author}
        entry = self._entry(state, batch.run_id, batch.epoch, **told, **said)
        while True:
            self.read()
            if (found := self.fate(batch.id, attempt)) is not None:
                return found
            if state != "void":  # which concerns this batch alone
                self._fence(batch.epoch, starts=False)
            self._create(entry)

    def trace(self, newest: int | None = None) -> Trace:
        """The marks of this ledger; `newest`: those of later sets count for nothing."""
        marks = [one for one in self.marks if newest is None or (one["set"] or 0) <= newest]
        mine = [one for one in marks if one["ledger"] == self.shape.state_id]
        ledgers = {ledger for ledger, _ in self.epochs}
        return Trace(
            batches=frozenset((one["run"], one["batch"]) for one in mine),
            foreign=frozenset(one["run"] for one in mine if one["sync"] != self.shape.sync),
            epoch=self.epochs.get(self._us, 0),
            strangers=bool(ledgers) and self.shape.state_id not in ledgers,
            taken=bool(mine) and marks[-1]["ledger"] != self.shape.state_id,
        )

    @property
    def _us(self) -> Owner:
        return self.shape.state_id, self.shape.sync

    def _is_ours(self, one: Mapping[str, Any]) -> bool:
        return (one["ledger"], one["sync"]) == self._us

    def _fence(self, epoch: int, *, starts: bool) -> None:
        """Systemic VOIDED if a newer run of this sync wrote here, or another ledger or sync took over."""
        if self.epochs.get(self._us, 0) > epoch or not (starts or self.owner in (None, self._us)):
            raise Systemic(
                "VOIDED", "a newer run, or another ledger, delivers here: this one may no longer write"
            )

    def _entry(self, state: str, run: str, epoch: int, **more: Any) -> dict[str, Any]:
        ledger, sync = self._us
        return {"state": state, "ledger": ledger, "sync": sync, "run": run, "epoch": epoch, **more}

    def _create(self, entry: Entry) -> bool:
        assert self._next is not None
        return self.place.create(key(self._next), encoded({"entry": self._next, **entry}))

    def _read_first(self) -> None:
        """The entries since the newest run began, several at the same time."""
        head = self.place.get(_HEAD)
        found = (document(head.data) or {}).get("entry") if head is not None else None
        first = found if isinstance(found, int) else 0
        if first and self.place.get(key(first)) is None:
            first = 0
        keys = list(self.place.sizes(FOLDER, after=key(first - 1) if first else ""))
        with ThreadPoolExecutor(_AT_ONCE, "retl-log") as pool:
            for name, held in zip(keys, pool.map(self.place.get, keys), strict=True):
                if held is not None:
                    self._take(number(name), held.data)
        self._next = self._next or 0

    def _take(self, number: int, data: bytes) -> None:
        entry = said(key(number), data)
        self._next = number + 1
        owner = entry["ledger"], entry["sync"]
        if entry["state"] == "begin":
            self.marks, self.owner = list(entry["marks"]), owner
            self.epochs |= {(ledger, sync): epoch for ledger, sync, epoch in entry["epochs"]}
        self.epochs[owner] = max(self.epochs.get(owner, 0), entry["epoch"])
        if entry["state"] == "begin":
            return
        self._fates[entry["batch"], entry["attempt"]] = entry
        if entry["state"] == "applied":
            mark = {name: entry[name] for name in ("ledger", "sync", "run", "batch")}
            self.marks.append({**mark, "set": number if entry.get("set") == "new" else entry.get("set")})


def key(number: int) -> str:
    return f"{FOLDER}/{number:012d}.json"


def number(key: str) -> int:
    return int(key.rpartition("/")[2].removesuffix(".json"))


def said(key: str, data: bytes) -> Entry:
    """What an entry of the log says. Systemic TARGET_DAMAGED."""
    found = document(data)
    if found is None:
        raise Systemic(
            "TARGET_DAMAGED",
            f"the entry {key} of the log cannot be read, so nobody knows what was delivered",
            hint="put it back from a copy; or give another `path`, where everything is sent again",
        )
    return found


def document(data: bytes) -> dict[str, Any] | None:
    """A JSON object; None if it is none, such as half of a file."""
    try:
        found = json.loads(data)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def encoded(document: Mapping[str, Any] | Iterable[Any]) -> bytes:
    """JSON as it is written everywhere: the same document has the same bytes."""
    return (json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
