"""The command of a conditional batch whose rows are all as we left them, made in SQL: nearly all batches are.

It says what `Conditional` says for `verdicts.assume`, in less time. For keys that hold a JSON object.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from retl.destinations.batch import Batch, Digest, FieldsText, Line, Seen, Shape
from retl.destinations.redis import script, stamp
from retl.destinations.redis.keys import Template
from retl.destinations.redis.plain import argument, sql_makes
from retl.destinations.redis.resp import Command, Packed, pack
from retl.destinations.redis.values import Stored
from retl.destinations.value import digest


class Assumed(Struct, frozen=True):
    """`lines`: of each row its key and its value as arguments, the digests that it must have, and those of
    what it holds afterwards. `width`: hexadecimal digits of a row's digests."""

    lines: tuple[Line, Line, Line, Line]
    width: int

    @classmethod
    def of(cls, value: Stored, shape: Shape, template: Template) -> Assumed | None:
        """None if Python must make the commands."""
        if not sql_makes(value, shape):
            return None
        held, sent = Seen(value.size), FieldsText()
        return cls((argument(*template.pieces), argument(sent), (held,), (Digest((sent,)),)), 2 * value.size)

    def rows(self, batch: Batch) -> Rows:
        keys, values, expected, after = zip(*batch.tuples_of(self.lines), strict=True)
        return Rows(self.width, "".join(keys).encode(), "".join(values).encode(), expected, after)


class Rows(Struct, frozen=True):
    """The rows of a batch: all keys and all values as arguments, and per row the digests."""

    width: int
    keys: bytes
    values: bytes
    expected: Sequence[str]
    after: Sequence[str]

    def look(self) -> Packed:
        """The command that reads what the keys hold."""
        return Packed(b"*%d\r\n$4\r\nMGET\r\n%b" % (1 + len(self.expected), self.keys), 1)

    def expected_of(self, held: Sequence[bytes | None]) -> list[str]:
        """The digests, where the keys hold this; others than any value's for a row that is not as we left it,
        so the script returns it."""
        absent, changed = script.NOTHING * self.width, script.CHANGED * self.width
        found = (absent if one is None else digest(one).hex() for one in held)
        return [left if left == now else changed for left, now in zip(self.expected, found, strict=True)]

    def command(self, to: stamp.Stamp, entry: str, ttl: int | None, expected: Sequence[str]) -> Packed:
        """The script. `expected`: the digests that the rows must have."""
        count = len(self.expected)
        head = _arguments(("EVAL", script.STRING, 1 + count, to.key))
        expires = "none" if ttl is None else ttl
        about = _arguments((entry, 0, stamp.noted({}), expires, self.width, "".join(expected), "", ""))
        return Packed(b"".join([b"*%d\r\n" % (12 + 2 * count), head, self.keys, about, self.values]), 1)


def _arguments(command: Command) -> bytes:
    """The command without the number of its arguments."""
    return pack(command).partition(b"\r\n")[2]
