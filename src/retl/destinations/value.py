"""The value of one row at the target, as digests compare it, and what is sent of it. Pure.

What a row holds is a mapping of names to bytes, None if it is not there. How they are read and written is the
target's own matter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha1

from retl.destinations.batch import Field, Shape

Held = Mapping[str, bytes] | None
Texts = dict[str, bytes | None]  # what is sent: None removes it; what is left out stays
SIZE = 8  # bytes of a digest
RAW = "surrogateescape"  # names may be any bytes
ABSENT = b"\xff" * SIZE  # the digest of a name that is not there
_sha1 = partial(sha1, usedforsecurity=False)  # what a script of Redis has


def digest(text: bytes | None) -> bytes:
    return ABSENT if text is None else _sha1(text).digest()[:SIZE]


class Value(ABC):
    """The value of one row. `names` are those that digests are made of, in their order; `ours` has also the
    fields that are written and never compared; with `rest` the digests end with what tells of all else."""

    names: tuple[str, ...]
    ours: tuple[str, ...]
    rest: bool = False

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    @abstractmethod
    def field(self, name: str) -> Field:
        """The field that has the strategy of this name."""

    @abstractmethod
    def stands_for(self, name: str) -> Sequence[str]:
        """The compared fields of the sync that this name has the values of."""

    @abstractmethod
    def texts(self, document: str) -> Texts:
        """What a row sends, from the JSON object of its fields."""

    def same(self, name: str, held: bytes | None, sent: bytes | None) -> bool:
        return held == sent

    def absent_is_a_value(self, seen: bytes | None) -> bool:
        """Whether we left no row on purpose."""
        return False

    def newest(self, held: Mapping[str, bytes], name: str) -> str | None:
        """The text of what newest_wins compares; None if there is none."""
        found = held.get(name)
        return None if found is None else found.decode(errors="replace")

    def digests(self, held: Mapping[str, bytes]) -> bytes:
        found = b"".join(digest(held.get(name)) for name in self.names)
        return found + self.others(held) if self.rest else found

    def others(self, held: Mapping[str, bytes]) -> bytes:
        """One digest of what is not ours."""
        others = [(name.encode(errors=RAW), text) for name, text in held.items() if name not in self.ours]
        found = sorted(_sha1(b"%d:%b%b" % (len(name), name, text)).hexdigest() for name, text in others)
        return digest("".join(found).encode())

    @property
    def size(self) -> int:
        """Bytes of all digests of a row."""
        return SIZE * (len(self.names) + self.rest)
