"""The command of a conditional batch whose rows are all as we left them, made in SQL: nearly all batches are.

It says what `Conditional` says for `verdicts.assume`, in less time. For keys that hold a JSON object.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from retl.destinations.batch import LINE_KEYS, Batch, Digest, FieldsText, Line, Seen, Shape, Size
from retl.destinations.redis import script, stamp
from retl.destinations.redis.keys import Template
from retl.destinations.redis.resp import Command, Packed, pack
from retl.destinations.redis.values import Stored, String

_APART = "\x1f"  # between the parts of a line: JSON escapes it, and so do keys
_DOCUMENT = (FieldsText(),)


@dataclass(frozen=True)
class Assumed:
    """`line`: per row its key, its arguments but its number, and the digest of what it holds afterwards."""

    line: Line

    @classmethod
    def of(cls, value: Stored, shape: Shape, template: Template) -> Assumed | None:
        """None if Python must make the commands."""
        is_object = isinstance(value, String) and value.only is None
        if not is_object or shape.images or any(field.type.name not in LINE_KEYS for field in shape.key):
            return None
        key, seen = template.pieces, Seen(value.size)
        return cls(
            (
                *("$", Size(key), "\r\n", *key, "\r\n", _APART),
                *("$", Size((seen,)), "\r\n", seen, "\r\n$1\r\n1\r\n$1\r\n0\r\n"),
                *("$", Size(_DOCUMENT), "\r\n", *_DOCUMENT, "\r\n", _APART, Digest(_DOCUMENT)),
            )
        )

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
