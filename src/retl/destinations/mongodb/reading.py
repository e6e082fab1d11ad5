"""Reads documents back, compares them with rows, and lists keys. It writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pymongo.client_session import ClientSession

from retl.destinations.batch import Batch
from retl.destinations.mongodb.client import Client
from retl.destinations.mongodb.documents import REMOVED, Documents, plain
from retl.destinations.mongodb.refusals import Unfit

AT_ONCE = 1000  # keys of one request


class Reading:
    """The documents of one sync, as most members of the replica set have them."""

    def __init__(self, client: Client, collection: str, documents: Documents) -> None:
        self._client, self._name, self._documents = client, collection, documents

    def read(self, batch: Batch) -> Iterator[Mapping[str, Any] | None]:
        names = [one.name for one in self._documents.shape.fields]
        for held in self._held(batch.keys(), names):
            yield None if held is None else {name: plain(held.get(name)) for name in names}

    def differing(self, batch: Batch) -> Iterator[tuple[str, ...] | None]:
        shape = self._documents.shape
        compared = {one.name for one in shape.compared}
        for row, held in zip(batch.tuples(), self._held(batch.keys(), list(compared)), strict=True):
            if held is None or batch.operation == "delete":
                yield None if held is None else ()
                continue
            yield self._differing(row[len(shape.key) :], held, compared)

    def _differing(
        self, values: Sequence[Any], held: Mapping[str, Any], compared: set[str]
    ) -> tuple[str, ...]:
        try:
            sent = self._documents.fields(values)
        except Unfit:  # no document can have it
            return tuple(sorted(compared))
        same = self._documents.same
        return tuple(
            name for name, one in sent.items() if name in compared and not same(held.get(name, REMOVED), one)
        )

    def scan(self) -> Iterator[tuple[str, ...]]:
        names = self._documents.key_names
        with self._client.speaking():
            for held in self._client.collection(self._name).find({}, self._projection(names)):
                if (key := self._documents.key_of(held)) is not None:
                    yield self._documents.key_texts(key)

    def present(self, keys: Sequence[tuple[Any, ...]], session: ClientSession | None) -> set[Any]:
        """The tokens of those keys that have a document."""
        found = (self._documents.key_of(one) for one in self._found(keys, [], session))
        return {self._documents.token(key) for key in found if key is not None}

    def _held(
        self, keys: Sequence[Sequence[Any]], names: Sequence[str]
    ) -> Iterator[Mapping[str, Any] | None]:
        """Per key its document, or None."""
        for first in range(0, len(keys), AT_ONCE):
            some = [self._key(key) for key in keys[first : first + AT_ONCE]]
            found = dict[Any, Mapping[str, Any]]()
            for one in self._found([key for key in some if key is not None], names, None):
                if (key := self._documents.key_of(one)) is not None:
                    found[self._documents.token(key)] = one
            yield from (None if key is None else found.get(self._documents.token(key)) for key in some)

    def _key(self, key: Sequence[Any]) -> tuple[Any, ...] | None:
        """None if no document can have it."""
        try:
            return self._documents.key(key)
        except Unfit:
            return None

    def _found(
        self, keys: Sequence[tuple[Any, ...]], names: Sequence[str], session: ClientSession | None
    ) -> Iterator[Mapping[str, Any]]:
        if not keys:
            return
        asked = self._projection([*self._documents.key_names, *names])
        with self._client.speaking():
            yield from self._client.collection(self._name).find(
                self._documents.filters(keys), asked, session=session
            )

    @staticmethod
    def _projection(names: Sequence[str]) -> dict[str, int]:
        return {"_id": 0} | dict.fromkeys(names, 1)
