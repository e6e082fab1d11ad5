"""What the log of a Delta table says of our batches: every commit of ours carries a mark of its batch.

The application transaction of a sync lets only one of several commits through that began at the same state of
the log, and the marks say what was applied until then. It does no I/O but to read the log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from retl.destinations.batch import Batch, Shape, Trace, Visit
from retl.destinations.files.place import Place
from retl.errors import Systemic

if TYPE_CHECKING:
    from deltalake import CommitProperties, DeltaTable

Mark = Mapping[str, Any]
Owner = tuple[str, str]  # a ledger and a sync
NAME = "retl"  # of our entry among those of a commit
WINDOW = 1000  # commits that are read at first
_AT_ONCE = 8  # requests for commits
_COMMIT = "_delta_log/{:020d}.json"
_REPLACING = ("RESTORE", "CREATE OR REPLACE TABLE", "REPLACE TABLE", "TRUNCATE")


class Marks:
    """The marks of one sync, as far as the log was read. `number`: of the newest application transaction."""

    def __init__(self, shape: Shape) -> None:
        self._us: Owner = (shape.state_id, shape.sync)
        self.author = uuid4().hex
        self._application = f"retl/{shape.state_id}/{shape.sync}"
        self._read: int | None = None  # the newest version that was read
        self._first = 0  # the oldest
        self._table = ""  # its id
        self.number = 0
        self._forget()

    def _forget(self) -> None:
        self._fates: dict[tuple[str, int], Mark] = {}
        self._applied: dict[Owner, list[tuple[str, str, int]]] = {}  # run, batch, version of the commit
        self._epochs: dict[Owner, int] = {}
        self._begun: list[int] = []  # the epochs of our runs that began within what was read
        self._gone = -1  # what was written up to this version was replaced

    def read(self, table: DeltaTable, place: Place) -> None:
        """The commits since the last reading. The client's own way to read them holds all threads."""
        newest, table_id = table.version(), str(table.metadata().id)
        if self._read is None or table_id != self._table or newest < self._read:
            self._load(place, max(0, newest - WINDOW), newest)
        elif newest > self._read:
            for version, entry in _entries(place, self._read + 1, newest):
                self._take(version, entry)
        self._read, self._table = newest, table_id
        self.number = table.transaction_version(self._application) or 0

    def _load(self, place: Place, first: int, newest: int) -> None:
        self._forget()
        entries = _entries(place, first, newest)
        self._first = entries[0][0] if entries else newest + 1
        for version, entry in entries:
            self._take(version, entry)

    def _take(self, version: int, entry: Mapping[str, Any]) -> None:
        overwritten = dict(entry.get("operationParameters") or {}).get("mode") == "Overwrite"
        if overwritten or str(entry.get("operation", "")) in _REPLACING:
            self._gone = version
        try:
            mark = json.loads(entry.get(NAME) or "null")
        except (TypeError, ValueError):
            return  # somebody else's entry of this name
        if not isinstance(mark, dict) or "author" not in mark:
            return
        owner = mark["ledger"], mark["sync"]
        self._epochs[owner] = max(self._epochs.get(owner, 0), mark["epoch"])
        if mark["state"] == "begin":
            self._applied[owner] = [(run, batch, at) for run, batch, at in mark["marks"]]
            self._begun += [mark["epoch"]] if owner == self._us else []
            return
        if mark["state"] == "applied":
            self._applied.setdefault(owner, []).append((mark["run"], mark["batch"], version))
        if owner == self._us:
            self._fates[mark["batch"], mark["attempt"]] = mark

    def fate(self, batch: Batch, attempt: int) -> Mark | None:
        """Applied or void; None if no commit of this attempt was read."""
        return self._fates.get((batch.id, attempt))

    def covers(self, place: Place, epoch: float) -> bool:
        """Whether every commit since a run of ours, of this epoch or an older one, began was read: the log
        may no longer have them."""
        if self._has_begin(epoch):
            return True
        assert self._read is not None
        self._load(place, 0, self._read)
        return self._has_begin(epoch)

    def _has_begin(self, epoch: float) -> bool:
        return self._first == 0 or any(one <= epoch for one in self._begun)

    def fence(self, epoch: int) -> None:
        """Systemic VOIDED if a newer run of this sync wrote here."""
        if self._epochs.get(self._us, 0) > epoch:
            raise Systemic("VOIDED", "a newer run delivers here: this one may no longer write")

    def begin(self, visit: Visit) -> CommitProperties:
        """What makes a commit the beginning of a run. It carries on the marks that the next run looks for."""
        mine = self._applied.get(self._us, [])
        kept = [one for one in mine if one[0] in visit.keep]
        return self._properties("begin", visit.run_id, visit.epoch, marks=kept)

    def mark(self, batch: Batch, attempt: int, state: str) -> CommitProperties:
        """What makes a commit that of this attempt."""
        said = {"batch": batch.id, "attempt": attempt}
        return self._properties(state, batch.run_id, batch.epoch, **said)

    def _properties(self, state: str, run: str, epoch: int, **more: Any) -> CommitProperties:
        """Of two commits with these that began at the same state of the log, one is let through."""
        from deltalake import CommitProperties, Transaction

        ledger, sync = self._us
        said = {"state": state, "ledger": ledger, "sync": sync, "run": run, "epoch": epoch, **more}
        return CommitProperties(
            custom_metadata={NAME: json.dumps(said | {"author": self.author})},
            app_transactions=[Transaction(self._application, self.number + 1)],
        )

    def trace(self) -> Trace:
        """The batches of this ledger."""
        ledger, sync = self._us
        mine = {owner: found for owner, found in self._applied.items() if owner[0] == ledger}
        every = [one for found in mine.values() for one in found]
        ledgers = {owner[0] for owner in self._epochs}
        return Trace(
            batches=frozenset((run, batch) for run, batch, _ in every),
            replaced=frozenset((run, batch) for run, batch, version in every if version < self._gone),
            foreign=frozenset(run for owner, found in mine.items() if owner[1] != sync for run, *_ in found),
            epoch=self._epochs.get(self._us, 0),
            strangers=bool(ledgers) and ledger not in ledgers,
        )


def _entries(place: Place, first: int, last: int) -> list[tuple[int, Mapping[str, Any]]]:
    """The info of the commits of these versions that the log still has, oldest first."""
    if last - first < _AT_ONCE:
        wanted = [_COMMIT.format(version) for version in range(first, last + 1)]
    else:
        listed = place.sizes("_delta_log", after=_COMMIT.format(first - 1) if first else "")
        newest = _COMMIT.format(last)
        wanted = [key for key in listed if re.fullmatch(r"_delta_log/\d{20}\.json", key) and key <= newest]
    with ThreadPoolExecutor(_AT_ONCE, "retl-log") as pool:
        found = zip(wanted, pool.map(place.get, wanted), strict=True)
        there = [(key, held.data) for key, held in found if held is not None]
    return [(int(key[-25:-5]), _info(data)) for key, data in there]


def _info(commit: bytes) -> Mapping[str, Any]:
    """What a commit says of itself; nothing if its writer said nothing."""
    for line in commit.splitlines():
        if line.startswith(b'{"commitInfo"'):
            found: Mapping[str, Any] = json.loads(line)["commitInfo"]
            return found
    return {}
