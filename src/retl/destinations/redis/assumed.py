"""The command of a conditional batch whose rows are all as we left them, made in SQL: nearly all batches are.

It says what `Conditional` says for `verdicts.assume`, in less time. For keys that hold a JSON object.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from retl.destinations.batch import Batch, Digest, FieldsText, Line, Seen, Shape
from retl.destinations.redis import script, stamp
from retl.destinations.redis.keys import Template
from retl.destinations.redis.plain import argument, sql_makes
from retl.destinations.redis.resp import Command, Packed, pack
from retl.destinations.redis.values import Stored

_APART = "\x1f"  # between the parts of a line: JSON escapes it, and so do keys


@dataclass(frozen=True)
class Assumed:
    """`line`: per row its key, its arguments but its number, and the digest of what it holds afterwards."""

    line: Line

    @classmethod
    def of(cls, value: Stored, shape: Shape, template: Template) -> Assumed | None:
        """None if Python must make the commands."""
        if shape.images or not sql_makes(value, shape):
            return None
        sent = (*argument(Seen(value.size)), *argument("1"), *argument("0"), *argument(FieldsText()))
        return cls((*argument(*template.pieces), _APART, *sent, _APART, Digest((FieldsText(),))))

    def command(
        self, batch: Batch, to: stamp.Stamp, entry: str, ttl: int | None
    ) -> tuple[Packed, list[bytes]]:
        """The command, and the lines of digests for `Returns`."""
        rows = [line.encode().rsplit(_APART.encode(), 2) for line in batch.lines(self.line)]
        head = _arguments(("EVAL", script.STRING, 1 + len(rows), to.key))
        about = _arguments((entry, 0, stamp.noted({}), "none" if ttl is None else ttl, 0, 0, 0))
        count = 4 + len(rows) + 7 + 5 * len(rows)
        keys = (key for key, _, _ in rows)
        sent = [b"*%d\r\n" % count, head, *keys, about, *_numbered(rows)]
        digests = [b"%d,\\x%b\n" % (n, digest) for n, (_, _, digest) in enumerate(rows)]
        return Packed(b"".join(sent), 1), digests


def _numbered(rows: list[list[bytes]]) -> Iterator[bytes]:
    for n, (_, arguments, _) in enumerate(rows):
        number = b"%d" % n
        yield b"$%d\r\n%b\r\n%b" % (len(number), number, arguments)


def _arguments(command: Command) -> bytes:
    """The command without the number of its arguments."""
    return pack(command).partition(b"\r\n")[2]
