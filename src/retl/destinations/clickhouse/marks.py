"""The marks of our runs and batches, in a table `retl_applied` beside the table of the sync.

ClickHouse has no transactions, so a mark is written after its rows: if it is there, they were. A run that
begins leaves one too, before its first row: the version of its rows, higher than all that the table or a mark
has. By it a row of an older run that arrives late loses, and an older run finds that it is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from retl.destinations.batch import Batch, Shape, Trace, Visit
from retl.destinations.clickhouse.connection import Requests
from retl.destinations.clickhouse.table import Name, Table
from retl.errors import Mismatch, Systemic, Unavailable
from retl.net.clickhouse import quoted

TABLE = "retl_applied"
_COLUMNS = (
    "`object` String, `ledger` String, `sync` String, `run` String, `epoch` Int64, `batch` String,"
    " `version` UInt64, `rows` UInt64, `storage` String, `oldest` Int64"
)
_NAMES = tuple(one.split()[0].strip("`") for one in _COLUMNS.split(","))
_OURS = "object = {object:String} AND ledger = {ledger:String} AND sync = {sync:String}"
_HIGHEST = 2**63  # what is above it is no number of runs
_TRIES = 5


class Began(NamedTuple):
    """Of a run: the version of its rows, and the id of the table now."""

    version: int
    storage: str


class Marks:
    """The marks of one sync and its table."""

    def __init__(self, requests: Requests, name: Name, shape: Shape) -> None:
        self._requests, self._name = requests, name
        self._us = {"object": str(name), "ledger": shape.state_id, "sync": shape.sync}
        self.table = Name(name.database, TABLE)
        self._oldest: dict[str, int] = {}  # by run

    def statement(self, *, replicated: bool = False) -> str:
        engine = f"{'Replicated' * replicated}MergeTree"
        return (
            f"CREATE TABLE IF NOT EXISTS {self.table.sql} ({_COLUMNS})"
            f" ENGINE = {engine} ORDER BY (object, ledger, sync)"
        )

    def probe(self) -> bool:
        """Whether the table of marks is there. Systemic NOPERM without the right to write it."""
        there = self._requests.ask(
            "SELECT count() AS n FROM system.tables"
            " WHERE database = {database:String} AND name = {name:String}",
            database=self.table.database,
            name=TABLE,
        )
        if not there[0]["n"]:
            return False
        listed = ", ".join(map(quoted, _NAMES))
        self._requests.do(
            f"INSERT INTO {self.table.sql} ({listed}) SELECT {listed} FROM {self.table.sql} WHERE 0"
        )
        return True

    # --- the version of a run

    def began(self, batch: Batch, table: Table) -> Began:
        """What the run of a batch writes with. Systemic VOIDED if a newer run of this sync has begun."""
        return self._found(batch.run_id, batch.epoch) or self.begin(batch.run_id, batch.epoch, table)

    def begin(self, run: str, epoch: int, table: Table) -> Began:
        """A mark of the run with the version of its rows, unless it has one. Systemic VOIDED."""
        for _ in range(_TRIES):
            if found := self._found(run, epoch):
                return found
            version = self._highest(table) + 1
            self._insert(run=run, epoch=epoch, batch="", version=version, rows=0, storage="", oldest=0)
            same = self._requests.ask(
                f"SELECT uniqExact(ledger, sync, run) AS n FROM {self.table.sql}"
                " WHERE object = {object:String} AND batch = '' AND version >= {version:UInt64}",
                object=str(self._name),
                version=version,
            )
            if same[0]["n"] == 1 and (found := self._found(run, epoch)):
                return found
            self._requests.do(
                f"DELETE FROM {self.table.sql} WHERE {_OURS} AND run = {{run:String}} AND batch = ''",
                **self._us,
                run=run,
            )
        raise Unavailable("CONCURRENT_WRITE", f"others begin to write to {self._name} at the same moment")

    def _found(self, run: str, epoch: int) -> Began | None:
        """What the run began with; None if it has not begun. Systemic VOIDED if a newer one has: then the
        marks of this one may be gone."""
        (one,) = self._requests.ask(
            "SELECT maxIf(version, run = {run:String}) AS ours, max(version) AS newest, max(epoch) AS epoch,"
            " (SELECT any(toString(uuid)) FROM system.tables"
            " WHERE database = {database:String} AND name = {name:String}) AS storage"
            f" FROM {self.table.sql} WHERE {_OURS} AND batch = ''",
            **self._us,
            run=run,
            database=self._name.database,
            name=self._name.table,
        )
        if one["epoch"] > epoch or 0 < one["ours"] < one["newest"]:
            raise Systemic("VOIDED", f"a newer run delivers to {self._name}: this one may no longer write")
        if not one["ours"]:
            return None
        return Began(one["ours"], one["storage"] or "")

    def _highest(self, table: Table) -> int:
        """The highest version in the table or of a run. Mismatch TARGET_DRIFT if none is left above it."""
        (held,) = self._requests.ask(f"SELECT max({quoted(table.version)}) AS n FROM {table.name.sql}")
        (marked,) = self._requests.ask(
            f"SELECT max(version) AS n FROM {self.table.sql} WHERE object = {{object:String}}",
            object=str(self._name),
        )
        highest = max(int(held["n"]), int(marked["n"]))
        if highest >= _HIGHEST:
            raise Mismatch(
                "TARGET_DRIFT",
                f"{self._name} has a row of the version {highest}, and there is hardly one above it",
                hint="somebody else wrote it: delete such rows, or make a new table",
            )
        return highest

    # --- batches

    def applied(self, batch: Batch, began: Began, rows: int) -> None:
        """The rows of the batch are there. `rows`: how many of them can be seen."""
        oldest = self._oldest.get(batch.run_id)
        if oldest is None:
            oldest = self._oldest[batch.run_id] = self._oldest_block()
        said = {"run": batch.run_id, "epoch": batch.epoch, "batch": batch.id, "version": began.version}
        self._insert(**said, rows=rows, storage=began.storage, oldest=oldest)

    def _insert(self, **values: Any) -> None:
        listed = ", ".join(map(quoted, _NAMES))
        types = dict(one.split() for one in _COLUMNS.replace("`", "").split(", "))
        asked = ", ".join(f"{{{name}:{types[name]}}}" for name in _NAMES)
        self._requests.do(f"INSERT INTO {self.table.sql} ({listed}) SELECT {asked}", **self._us, **values)

    def _oldest_block(self) -> int:
        """The number of the first insert whose rows are still there; 0 without rows. It only grows if those
        are removed as a whole: by TRUNCATE, DROP PARTITION, or when a partition is replaced."""
        (one,) = self._requests.ask(
            f"SELECT min(toInt64OrZero(splitByChar('_', _part)[2])) AS n FROM {self._name.sql}"
        )
        return int(one["n"])

    def prune(self, visit: Visit) -> None:
        """Remove the marks of this sync that no run looks for."""
        given = {**self._us, "run": visit.run_id}
        kept = [f"{{keep{n}:String}}" for n in range(len(visit.keep))]
        given |= {f"keep{n}": run for n, run in enumerate(sorted(visit.keep))}
        which = f"{_OURS} AND run NOT IN ({', '.join(['{run:String}', *kept])})"
        (old,) = self._requests.ask(f"SELECT count() AS n FROM {self.table.sql} WHERE {which}", **given)
        if old["n"]:
            self._requests.do(f"DELETE FROM {self.table.sql} WHERE {which}", **given)

    # --- the trace

    def trace(self, table: Table) -> Trace:
        """The batches of this ledger."""
        found = self._requests.ask(
            f"SELECT ledger, sync, run, epoch, batch, rows, storage, oldest FROM {self.table.sql}"
            " WHERE object = {object:String} ORDER BY version",
            object=str(self._name),
        )
        ledger, sync = self._us["ledger"], self._us["sync"]
        mine = [one for one in found if one["ledger"] == ledger]
        batches = [one for one in mine if one["batch"]]
        oldest = self._oldest_block() if any(one["rows"] for one in batches) else 0
        return Trace(
            batches=frozenset(map(_named, batches)),
            replaced=frozenset(_named(one) for one in batches if _is_gone(one, table.storage, oldest)),
            foreign=frozenset(one["run"] for one in mine if one["sync"] != sync),
            epoch=max((one["epoch"] for one in mine if one["sync"] == sync), default=0),
            strangers=bool(found) and not mine,
            taken=bool(mine) and found[-1]["ledger"] != ledger,
        )


def _named(mark: Mapping[str, Any]) -> tuple[str, str]:
    return mark["run"], mark["batch"]


def _is_gone(mark: Mapping[str, Any], storage: str, oldest: int) -> bool:
    """Whether the table is another one since, or lost its first rows."""
    emptied = oldest == 0 or oldest > mark["oldest"]
    return mark["storage"] != storage or bool(mark["rows"] and emptied)
