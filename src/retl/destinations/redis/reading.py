"""Reads rows back, compares them with what a write would leave there, and lists the keys of a template.

It sends commands that change nothing. How a value is read depends on its kind: `Strings`, `Hashes`, or
`members.Members`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Protocol

from retl.destinations.api import EXPIRES
from retl.destinations.batch import Batch, Shape
from retl.destinations.redis.comparison import (
    Differing,
    entries_differ,
    field_differs,
    object_differs,
    stays,
)
from retl.destinations.redis.keys import KeyPattern, Template
from retl.destinations.redis.members import Members
from retl.destinations.redis.resp import CHUNK, Command, Refusal
from retl.destinations.redis.values import Hash, String

Ask = Callable[[Sequence[Command]], list[Any]]
SCANNED = 1000  # keys that the server looks at for one reply of a scan


class Reader(Protocol):
    """How rows of one kind are read. `leaves_ttl`: a write without TTL leaves that of the key."""

    leaves_ttl: bool

    def asked(self, rows: Sequence[Sequence[Any]]) -> list[Command]:
        """The commands that read what is ours of these rows, which begin with their key."""

    def held(self, replies: Sequence[Any]) -> Sequence[Any]:
        """Per row what is there, from the replies."""

    def fields(self, held: Any) -> Mapping[str, Any] | None:
        """Our fields in it; None if the row is not there."""

    def differs(self, held: Any, document: str) -> Differing:
        """The fields that a write would change; None if the row is not there."""


class Strings:
    """A string holds one row: a JSON object, or one field."""

    leaves_ttl = False

    def __init__(self, value: String, shape: Shape, template: Template, *, clustered: bool) -> None:
        self._value, self._template, self._clustered = value, template, clustered
        self._names = [field.name for field in shape.fields]
        self._compared = {field.name for field in shape.compared}

    def asked(self, rows: Sequence[Sequence[Any]]) -> list[Command]:
        keys = map(self._template.key, rows)
        return [("MGET", key) for key in keys] if self._clustered else [("MGET", *keys)]

    def held(self, replies: Sequence[Any]) -> Sequence[Any]:
        return [value for reply in replies for value in reply]

    def fields(self, held: Any) -> Mapping[str, Any] | None:
        if self._value.only is not None:
            return {self._value.only: _text(held)}
        if held is None:
            return None
        return {name: value for name, value in json_object(held).items() if name in self._names}

    def differs(self, held: Any, document: str) -> Differing:
        if (only := self._value.only) is None:
            return object_differs(held, document, self._names, self._compared)
        text = self._value.texts(document)[only]
        return field_differs(only, held, text, compared=only in self._compared)


class Hashes:
    """A hash holds one row, an entry per field."""

    leaves_ttl = True

    def __init__(self, value: Hash, shape: Shape, template: Template) -> None:
        self._value, self._template = value, template
        self._names = [field.name for field in shape.fields]
        self._compared = {field.name for field in shape.compared}

    def asked(self, rows: Sequence[Sequence[Any]]) -> list[Command]:
        return [("HMGET", self._template.key(row), *self._names) for row in rows]

    def held(self, replies: Sequence[Any]) -> Sequence[Any]:
        nothing = [None] * len(self._names)
        return [nothing if isinstance(one, Refusal) else one for one in replies]

    def fields(self, held: Any) -> Mapping[str, Any] | None:
        texts = [_text(entry) for entry in held]
        return dict(zip(self._names, texts, strict=True)) if any(t is not None for t in texts) else None

    def differs(self, held: Any, document: str) -> Differing:
        texts = self._value.texts(document)
        return entries_differ(dict(zip(self._names, held, strict=True)), texts, self._compared)


class Reading:
    """What the target holds of one sync. `ask` sends commands, and raises if a reply stops the run; `servers`
    are such functions for every server that stores rows."""

    def __init__(
        self,
        reader: Reader,
        template: Template,
        ttl: int | None,
        ask: Ask,
        servers: Callable[[], Iterable[Ask]],
    ) -> None:
        self._reader, self._template, self._ttl, self._ask = reader, template, ttl, ask
        self._servers = servers

    def read(self, batch: Batch) -> Iterator[Mapping[str, Any] | None]:
        yield from map(self._reader.fields, self._reader.held(self._ask(self._reader.asked(batch.keys()))))

    def differing(self, batch: Batch) -> Iterator[tuple[str, ...] | None]:
        for first in range(batch.first, batch.last + 1, CHUNK):
            yield from self._differing(batch.slice(first, min(first + CHUNK - 1, batch.last)))

    def _differing(self, batch: Batch) -> Iterator[tuple[str, ...] | None]:
        rows = batch.documents()
        replies = self._ask([*(("PTTL", self._template.key(row)) for row in rows), *self._reader.asked(rows)])
        times, held = replies[: len(rows)], self._reader.held(replies[len(rows) :])
        for time, value, row in zip(times, held, rows, strict=True):
            found = self._reader.differs(value, row[-1])
            stay = (self._reader.leaves_ttl and self._ttl is None) or stays(time, self._ttl)
            yield found if stay or found is None else (*found, EXPIRES)

    def scan(self) -> Iterator[tuple[str, ...]]:
        pattern = KeyPattern(self._template.positions)
        for server in self._servers():
            for key in self._listed(
                server, lambda cursor: ("SCAN", cursor, "MATCH", pattern.glob, "COUNT", SCANNED)
            ):
                yield from self._rows(pattern, key)

    def _rows(self, pattern: KeyPattern, key: bytes) -> Iterator[tuple[str, ...]]:
        """The key values of what a Redis key holds; none if it is none of the template's."""
        parts = pattern.values(key)
        if parts is None:
            return
        if not isinstance(self._reader, Members):
            if self._template.key(parts).encode() == key:
                yield parts
            return
        for member in self._members(self._reader, key):
            values = self._template.values(parts, member)
            if self._template.key(values).encode() == key:
                yield values

    def _members(self, reader: Members, key: bytes) -> Iterator[str]:
        """The members that are text; a key of another kind has none."""
        for found in reader.members(
            self._listed(self._ask, lambda cursor: reader.listed(key, cursor, SCANNED))
        ):
            try:
                yield found.decode()
            except UnicodeDecodeError:
                continue

    def _listed(self, ask: Ask, command: Callable[[bytes], Command]) -> Iterator[bytes]:
        cursor: bytes = b"0"
        while True:
            (reply,) = ask([command(cursor)])
            if isinstance(reply, Refusal):
                return
            cursor, found = reply
            yield from found
            if cursor == b"0":
                return


def _text(held: bytes | None) -> str | None:
    return None if held is None else held.decode(errors="replace")


def json_object(held: bytes) -> dict[str, Any]:
    """The JSON object of a value; {} if the value is not an object, so not ours, or is one that Python cannot
    read, because of its levels or the digits of a number."""
    try:
        document = json.loads(held, parse_float=Decimal)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
