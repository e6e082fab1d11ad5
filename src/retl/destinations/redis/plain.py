"""The commands of rows that are written whatever their keys hold. Pure: rows in, commands out.

There is one command per row, so that each reply belongs to one row. They are made in SQL where possible.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from retl.destinations.batch import LINE_KEYS, Batch, FieldsText, Line, Piece, RowResult, Shape, Size
from retl.destinations.redis.keys import Template
from retl.destinations.redis.members import Members
from retl.destinations.redis.resp import Argument, Command, Packed, joined, key_of, pack
from retl.destinations.redis.slots import slot
from retl.destinations.redis.values import Hash, Stored, String

# After a refused HSET, MULTI would continue and set a TTL on a key that is not ours; a script stops.
WRITE_HASH = """\
local last = 2 + ARGV[2]
if last > 2 then redis.call('HSET', KEYS[1], unpack(ARGV, 3, last)) end
if #ARGV > last then redis.call('HDEL', KEYS[1], unpack(ARGV, last + 1)) end
if ARGV[1] ~= 'none' then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
if last == 2 and redis.call('EXISTS', KEYS[1]) == 0 then return redis.error_reply('EMPTYHASH') end"""


class Plain:
    """The commands of one sync."""

    def __init__(self, value: Stored | Members, shape: Shape, template: Template, ttl: int | None) -> None:
        self._value, self._template, self._ttl = value, template, ttl
        self.line = _line(value, shape, template, ttl)

    def commands(self, batch: Batch) -> Iterator[Command | Packed]:
        """In the order of the rows."""
        if self.line is None or batch.operation == "delete":
            yield from self.by_row(batch)
            return
        yield from joined([line.encode() for line in batch.lines(self.line)])

    def by_slot(self, batch: Batch) -> tuple[Sequence[int], Sequence[bytes]]:
        """Per row the slot of its key in a cluster, and its packed command."""
        if self.line is None or batch.operation == "delete":
            commands = list(self.by_row(batch))
            return [slot(key_of(one)) for one in commands], [pack(one) for one in commands]
        rows = batch.tuples_of((self._template.pieces, self.line))
        return [slot(key) for key, _ in rows], [line.encode() for _, line in rows]

    def by_row(self, batch: Batch) -> Iterator[Command]:
        write = self._remove if batch.operation == "delete" else self._write
        yield from map(write, batch.documents())

    def refused(self, batch: Batch) -> dict[int, RowResult]:
        """The results of the rows that are refused before the server is asked."""
        if not isinstance(self._value, Members) or batch.operation == "delete":
            return {}
        found = ((n, self._value.refused(row[-1])) for n, row in enumerate(batch.documents()))
        return {n: result for n, result in found if result is not None}

    def _remove(self, row: Sequence[Any]) -> Command:
        if isinstance(self._value, Members):
            return self._value.remove(row)
        return ("UNLINK", self._template.key(row))

    def _write(self, row: Sequence[Any]) -> Command:
        if isinstance(self._value, Members):
            return self._value.add(row)
        key, document = self._template.key(row), row[-1]
        expiry: Command = () if self._ttl is None else ("EX", self._ttl)
        if isinstance(self._value, String) and self._value.only is None:
            return ("SET", key, document, *expiry)
        texts = self._value.texts(document)
        if isinstance(self._value, Hash):
            entries = [part for name, text in texts.items() if text is not None for part in (name, text)]
            cleared = [name for name, text in texts.items() if text is None]
            ttl: Argument = "none" if self._ttl is None else self._ttl
            return ("EVAL", WRITE_HASH, 1, key, ttl, len(entries), *entries, *cleared)
        (text,) = texts.values()
        return ("UNLINK", key) if text is None else ("SET", key, text, *expiry)


def _line(value: Stored | Members, shape: Shape, template: Template, ttl: int | None) -> Line | None:
    """The packed command of a row with a JSON object as its value, made in SQL; None if Python must make
    it."""
    if not sql_makes(value, shape):
        return None
    expiry = pack(("EX", ttl)).decode().partition("\r\n")[2] if ttl is not None else ""
    return (
        f"*{5 if expiry else 3}\r\n$3\r\nSET\r\n",
        *argument(*template.pieces),
        *argument(FieldsText()),
        expiry,
    )


def sql_makes(value: Stored | Members, shape: Shape) -> bool:
    """Whether SQL can make commands of rows: of a JSON object under a key of plain types."""
    is_object = isinstance(value, String) and value.only is None
    return is_object and all(field.type.name in LINE_KEYS for field in shape.key)


def argument(*pieces: Piece) -> Line:
    """These pieces as one argument of a packed command."""
    return ("$", Size(pieces), "\r\n", *pieces, "\r\n")
