"""Reads items back, compares them with rows, and lists the keys of the table. It writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from retl.destinations.batch import Batch, Shape
from retl.destinations.dynamodb import items
from retl.destinations.dynamodb.connection import Client
from retl.errors import Unavailable

GETS = 100  # items of one request


class Reading:
    """The items of one sync. Every read is consistent."""

    def __init__(self, client: Client, table: str, shape: Shape) -> None:
        self._client, self._table, self._shape = client, table, shape

    def read(self, batch: Batch) -> Iterator[Mapping[str, Any] | None]:
        names = [one.name for one in self._shape.fields]
        for held in self._held(batch.keys()):
            yield None if held is None else {name: items.plain(held.get(name)) for name in names}

    def differing(self, batch: Batch) -> Iterator[tuple[str, ...] | None]:
        compared = {one.name for one in self._shape.compared}
        rows = batch.documents()
        for row, held in zip(rows, self._held(rows), strict=True):
            yield None if held is None else _differing(row[-1], held, compared)

    def scan(self) -> Iterator[tuple[str, ...]]:
        names = {f"#k{n}": one.name for n, one in enumerate(self._shape.key)}
        request: dict[str, Any] = {
            "TableName": self._table,
            "ProjectionExpression": ", ".join(names),
            "ExpressionAttributeNames": names,
            "ConsistentRead": True,
        }
        while True:
            answer = self._client.ask("scan", **request)
            for item in answer["Items"]:
                yield tuple(items.key_value(item[one.name], one.type) for one in self._shape.key)
            if not (last := answer.get("LastEvaluatedKey")):
                return
            request["ExclusiveStartKey"] = last

    def _held(self, rows: Sequence[Sequence[Any]]) -> Iterator[items.Item | None]:
        """Per row its item, or None."""
        keys = [self._key(row) for row in rows]
        for first in range(0, len(keys), GETS):
            some = keys[first : first + GETS]
            wanted = list({str(key): key for key in some if key is not None}.values())
            found = {str(items.key_in(self._shape, one)): one for one in self._items(wanted)}
            yield from (found.get(str(key)) for key in some)

    def _key(self, row: Sequence[Any]) -> items.Item | None:
        """None if no item can have it."""
        try:
            return items.key_of(self._shape, row)
        except items.Refused:
            return None

    def _items(self, keys: list[items.Item]) -> Iterator[items.Item]:
        """Those that are there. Unavailable if a request brings none of them."""
        names = [one.name for one in (*self._shape.key, *self._shape.fields)]
        asked = {f"#n{n}": name for n, name in enumerate(names)}
        while keys:
            request = {
                "Keys": keys,
                "ConsistentRead": True,
                "ProjectionExpression": ", ".join(asked),
                "ExpressionAttributeNames": asked,
            }
            answer = self._client.ask("batch_get_item", RequestItems={self._table: request})
            yield from answer["Responses"].get(self._table, [])
            left = answer.get("UnprocessedKeys", {}).get(self._table, {}).get("Keys", [])
            if len(left) == len(keys):
                raise Unavailable("THROTTLED", f"DynamoDB answers no reads of {self._table} for now")
            keys = left


def _differing(document: str, held: items.Item, compared: set[str]) -> tuple[str, ...]:
    try:
        sent = items.fields(document)
    except items.Refused:  # no item can have it
        return tuple(sorted(compared))
    return tuple(
        name for name, one in sent.items() if name in compared and not items.same(held.get(name), one)
    )
