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
NAME = "retl"  # of our entry among those of a commit
WINDOW = 1000  # commits that are read at first
_AT_ONCE = 8  # requests for commits
_COMMIT = "_delta_log/{:020d}.json"
_REPLACING = ("RESTORE", "CREATE OR REPLACE TABLE", "REPLACE TABLE", "TRUNCATE")


class Marks:
    """The marks of one sync, as far as the log was read. `number`: of the newest application transaction."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self.author = uuid4().hex
        self._application = f"retl/{shape.state_id}/{shape.sync}"
        self._read: int | None = None  # the newest version that was read
        self._first = 0  # the oldest
        self._table = ""  # its id
        self.number = 0
        self._forget()

    def _forget(self) -> None:
        self._fates: dict[tuple[str, int], Mark] = {}
        self._marks: list[tuple[int, Mark]] = []
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
        operation = str(entry.get("operation", ""))
        overwritten = dict(entry.get("operationParameters") or {}).get("mode") == "Overwrite"
        if overwritten or operation in _REPLACING:
            self._gone = version
        try:
            mark = json.loads(entry.get(NAME) or "null")
        except (TypeError, ValueError):
            return  # somebody else's entry of this name
        if not isinstance(mark, dict) or "batch" not in mark:
            return
        self._marks.append((version, mark))
        if self._is_ours(mark):
            self._fates[mark["batch"], mark["attempt"]] = mark

    def _is_ours(self, mark: Mark) -> bool:
        return (mark["ledger"], mark["sync"]) == (self._shape.state_id, self._shape.sync)

    def fate(self, batch: Batch, attempt: int) -> Mark | None:
        """Applied or void; None if no commit of this attempt was read."""
        return self._fates.get((batch.id, attempt))

    def covers(self, place: Place, batch: Batch) -> bool:
        """Whether every commit since this batch's run began was read. The log may no longer have them."""
        if self._begun_before(batch.epoch):
            return True
        assert self._read is not None
        self._load(place, 0, self._read)
        return self._begun_before(batch.epoch)

    def _begun_before(self, epoch: int) -> bool:
        ours = (mark for _, mark in self._marks if self._is_ours(mark))
        return self._first == 0 or any(mark["epoch"] < epoch for mark in ours)

    def fence(self, epoch: int) -> None:
        """Systemic VOIDED if a newer run of this sync wrote here."""
        if any(mark["epoch"] > epoch for _, mark in self._marks if self._is_ours(mark)):
            raise Systemic("VOIDED", "a newer run delivers here: this one may no longer write")

    def mark(self, batch: Batch, attempt: int, state: str) -> CommitProperties:
        """What makes a commit that of this attempt, and lets no other through that began beside it."""
        from deltalake import CommitProperties, Transaction

        mine = [mark["n"] for _, mark in self._marks if self._is_ours(mark) and mark["run"] == batch.run_id]
        said = {
            "ledger": self._shape.state_id,
            "sync": self._shape.sync,
            "run": batch.run_id,
            "epoch": batch.epoch,
            "batch": batch.id,
            "attempt": attempt,
            "state": state,
            "n": max(mine, default=0) + 1,  # of the run: from 1, so that a missing one is noticed
            "author": self.author,
        }
        return CommitProperties(
            custom_metadata={NAME: json.dumps(said)},
            app_transactions=[Transaction(self._application, self.number + 1)],
        )

    def trace(self, visit: Visit) -> Trace | None:
        """The batches of this ledger. None if the log no longer has all that the next run looks for."""
        mine = [(v, one) for v, one in self._marks if one["ledger"] == self._shape.state_id]
        if self._first > 0:
            complete = {one["run"] for _, one in mine if one["n"] == 1}
            if not visit.keep <= complete:
                return None
        applied = [(v, one) for v, one in mine if one["state"] == "applied"]
        return Trace(
            batches=frozenset((one["run"], one["batch"]) for _, one in applied),
            replaced=frozenset((one["run"], one["batch"]) for v, one in applied if v < self._gone),
            foreign=frozenset(one["run"] for _, one in applied if one["sync"] != self._shape.sync),
            epoch=max((one["epoch"] for _, one in mine if self._is_ours(one)), default=0),
            strangers=bool(self._marks) and not mine,
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
