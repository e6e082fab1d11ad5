"""One lane's connection, and what it finds at the collection: its kind, its index, and the right to write."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any
from uuid import UUID, uuid4

from msgspec import Struct
from pymongo.errors import OperationFailure

from retl.destinations.marks import Attempts
from retl.destinations.mongodb.client import Client, no_transactions
from retl.destinations.mongodb.connection import MongoDBConnection
from retl.destinations.mongodb.documents import Documents
from retl.destinations.mongodb.marks import Marks
from retl.destinations.mongodb.reading import Reading
from retl.errors import Mismatch, Systemic

_DUPLICATES = 11000


class Found(Struct, frozen=True):
    """A collection. `storage`: its id, another one once it was made again. `unique`: whether an index keeps
    keys apart. `unfit`: why rows cannot be written to it."""

    storage: str
    unique: bool
    unfit: str = ""
    hint: str | None = None


class Lane:
    """Opens its connection with the first request."""

    def __init__(
        self, connection: MongoDBConnection, name: str, documents: Documents, attempts: Attempts
    ) -> None:
        self.client = Client(connection, [] if documents.appends else documents.key_names)
        self.reading = Reading(self.client, name, documents)
        self.marks = Marks(self.client, name, documents.shape, attempts)
        self._name, self._documents = name, documents

    @cached_property
    def storage(self) -> str:
        """The id of the collection. Systemic COLLECTION_MISSING."""
        found = self.found()
        if found is None:
            raise Systemic(
                "COLLECTION_MISSING", f"there is no collection {self._name}", hint="run `retl check`"
            )
        return found.storage

    def require_transactions(self) -> None:
        """Systemic NO_TRANSACTIONS."""
        hello = self.client.hello()
        if "setName" not in hello and hello.get("msg") != "isdbgrid":
            raise no_transactions(f"MongoDB at {self.client.server}")

    def found(self) -> Found | None:
        with self.client.speaking():
            listed = list(self.client.database.list_collections(filter={"name": self._name}))
            if not listed:
                return None
            (about,) = listed
            options, info = about.get("options", {}), about.get("info", {})
            kind = about.get("type", "collection")
            if kind != "collection":
                return Found("", True, f"is a {kind}", "name a collection that can be written")
            if options.get("capped"):
                return Found("", True, "is capped, so old documents vanish", "name another collection")
            if options.get("collation"):
                return Found(
                    "",
                    True,
                    "has a collation, so different keys can be equal",
                    "name one without a collation",
                )
            return Found(_hexadecimal(info.get("uuid")), self._is_unique())

    def _is_unique(self) -> bool:
        if self._documents.appends or self._documents.by == "_id":
            return True
        wanted = set(self._documents.key_names)
        indexes = self.client.collection(self._name).list_indexes()
        return any(wanted == set(one["key"]) and _keeps_apart(one) for one in indexes)

    def probe(self, *, deletes: bool) -> None:
        """Ask for the rights to write with an update that MongoDB always refuses. Systemic NOPERM."""
        nobody = f"retl-probe-{uuid4().hex}"
        update = {"q": {"_id": nobody}, "u": {"$set": {"_id": f"{nobody}-other"}}, "upsert": True}
        with self.client.speaking():
            self.client.database.command("update", self._name, updates=[update])
            if deletes:
                deletion = {"q": {"_id": nobody}, "limit": 1}
                self.client.database.command("delete", self._name, deletes=[deletion])

    def create(self) -> None:
        """The collection, and the unique index that keeps keys apart. Mismatch NO_UNIQUE_INDEX if two
        documents have one key."""
        self.client.make(self._name)
        with self.client.speaking():
            if not self._is_unique():
                self._create_index()

    def _create_index(self) -> None:
        keys = [(name, 1) for name in self._documents.key_names]
        try:
            self.client.collection(self._name).create_index(keys, unique=True)
        except OperationFailure as problem:
            if problem.code != _DUPLICATES:
                raise
            raise Mismatch(
                "NO_UNIQUE_INDEX",
                f"documents of {self._name} have the same key, or none, so it can have no unique index",
                hint="remove them, or give each one its key",
            ) from None


def _hexadecimal(id: UUID | bytes | None) -> str:
    return id.hex if isinstance(id, UUID) else bytes(id or b"").hex()


def _keeps_apart(index: Mapping[str, Any]) -> bool:
    special = ("partialFilterExpression", "collation")
    plain = all(one in (1, -1) for one in index["key"].values())
    return bool(index.get("unique")) and plain and not any(index.get(one) for one in special)
