"""The marks of batches, and the fence of a collection, in a collection `retl_applied` beside it.

A mark is inserted in the transaction of its rows. Each transaction also changes the fence, which says who may
write: so transactions of two runs never overlap, and those of an older run, or of a ledger that another one
relieved, are refused.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from pymongo.client_session import ClientSession
from pymongo.errors import DuplicateKeyError

from retl.destinations.batch import Batch, RowResult, Shape, Trace, Visit
from retl.destinations.marks import Attempts, Mark, noted
from retl.destinations.mongodb.client import Client
from retl.destinations.mongodb.refusals import Marked, Relieved
from retl.errors import Ambiguous

MARKS = "retl_applied"


class Marks:
    """The marks of one sync at one collection."""

    def __init__(self, client: Client, collection: str, shape: Shape, attempts: Attempts) -> None:
        self._client, self._object, self._attempts = client, collection, attempts
        self._us = {"object": collection, "ledger": shape.state_id, "sync": shape.sync}
        self._appends = shape.write == "append"
        alone = not self._appends  # appended rows have no owner: others may append at the same time
        self._fence = {"fence": collection, "of": "" if alone else f"{shape.state_id}/{shape.sync}"}

    @property
    def _marks(self) -> Any:
        return self._client.collection(MARKS)

    # --- the fence

    def begin(self, visit: Visit, storage: str) -> None:
        """Take the fence, and drop marks that no run looks for. Systemic VOIDED for an older run."""
        ours = {"ledger": self._us["ledger"], "sync": self._us["sync"]}
        older = [{name: {"$ne": value}} for name, value in ours.items()]
        free = {"_id": self._fence, "$or": [*older, {"epoch": {"$lte": visit.epoch}}]}
        taken = {**self._us, "state": "fence", "run": visit.run_id, "epoch": visit.epoch, "batches": 0}
        self._client.make(MARKS)
        with self._client.speaking():
            try:
                self._marks.update_one(free, {"$set": taken | {"storage": storage}}, upsert=True)
            except DuplicateKeyError:
                raise self._attempts.voided() from None
            kept = sorted({visit.run_id, *visit.keep})
            old = {"epoch": {"$lt": visit.epoch}, "run": {"$nin": kept}, "state": {"$ne": "fence"}}
            self._marks.delete_many({**self._us, **old})

    def claim(self, batch: Batch, session: ClientSession) -> None:
        """In the transaction of a batch: no other run writes until it ends. Relieved."""
        mine = {"_id": self._fence, "ledger": self._us["ledger"], "sync": self._us["sync"]}
        may = {**mine, "epoch": {"$lte": batch.epoch}}
        if not self._marks.update_one(may, {"$inc": {"batches": 1}}, session=session).matched_count:
            raise Relieved

    # --- marks

    def applied(
        self, batch: Batch, attempt: int, found: dict[int, RowResult], storage: str, session: ClientSession
    ) -> None:
        """In the transaction of the batch. Marked."""
        about = {"storage": storage, "rows": len(batch) - len(found), "left": json.dumps(noted(found))}
        mark = self._mark(batch, attempt, "applied") | about
        try:
            self._marks.insert_one(mark, session=session)
        except DuplicateKeyError:
            raise Marked from None

    def void(self, batch: Batch, attempt: int) -> bool:
        """The attempt is never applied; False if it has a mark. It waits for who writes one."""
        with self._client.speaking():
            try:
                self._marks.insert_one(self._mark(batch, attempt, "void"))
            except DuplicateKeyError:
                return False
        return True

    def _mark(self, batch: Batch, attempt: int, state: str) -> dict[str, Any]:
        named = {"_id": self._named(batch, attempt), **self._us, "run": batch.run_id}
        about = {"epoch": batch.epoch, "state": state, "author": self._attempts.author, "left": "[]"}
        return named | about | {"at": datetime.now(UTC)}

    def _named(self, batch: Batch, attempt: int) -> dict[str, Any]:
        return {"object": self._object, "batch": batch.id, "attempt": attempt}

    def marked(self, batch: Batch, attempt: int) -> Mark | None:
        with self._client.speaking():
            found = self._marks.find_one({"_id": self._named(batch, attempt)})
        return found and Mark(found["state"], found["author"], json.loads(found["left"]))

    def found(self, batch: Batch, attempt: int) -> Mark:
        """A mark that the primary has. Ambiguous as long as most members do not have it."""
        mark = self.marked(batch, attempt)
        if mark is None:
            raise Ambiguous(
                "NO_MAJORITY", f"most members do not yet have the mark of a batch of {self._object}"
            )
        return mark

    # --- the trace

    def trace(self, storage: str | None) -> Trace:
        """`storage`: the id of the collection, None if there is none. Of an append whose collection is empty
        no row is there any more."""
        with self._client.speaking():
            held = list(self._marks.find({"object": self._object, "state": {"$ne": "void"}}))
            emptied = self._appends and self._client.collection(self._object).find_one({}, {"_id": 1}) is None
        mine = [one for one in held if one["ledger"] == self._us["ledger"]]
        marks = [one for one in mine if one["state"] == "applied"]
        others = [one for one in held if one not in mine and one["state"] == "fence" and one["batches"]]
        return Trace(
            batches=frozenset(_named(one) for one in marks if storage is not None),
            replaced=frozenset(
                _named(one)
                for one in marks
                if one["storage"] != storage or (emptied and one.get("rows"))  # older marks do not count them
            ),
            foreign=frozenset(one["run"] for one in marks if one["sync"] != self._us["sync"]),
            epoch=max((one["epoch"] for one in mine if one["sync"] == self._us["sync"]), default=0),
            strangers=bool(held) and not mine,
            taken=bool(mine and others) and self._fence["of"] == "",
        )


def _named(mark: dict[str, Any]) -> tuple[str, str]:
    return mark["run"], mark["_id"]["batch"]
