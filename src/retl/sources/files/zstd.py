"""Whether a .zst file is complete: DuckDB reads one that was cut off as if it had fewer rows.

It follows the frames and blocks of RFC 8878 by their lengths and decompresses nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

_FRAME, _SKIPPABLE = 0xFD2FB528, 0x184D2A50
_DICTIONARY_ID = (0, 1, 2, 4)  # bytes, by flag
_RLE = 1  # a block of one byte, repeated


def is_complete(path: Path) -> bool:
    """Whether the file ends where a frame ends."""
    size = path.stat().st_size
    with path.open("rb") as file:
        while file.tell() < size:
            if not _skip_frame(file, size):
                return False
        return file.tell() == size


def _skip_frame(file: BinaryIO, size: int) -> bool:
    magic = _number(file, 4)
    if magic & ~0xF == _SKIPPABLE:
        file.seek(_number(file, 4), 1)
        return True
    if magic != _FRAME:
        return False
    flags = _number(file, 1)
    single = flags >> 5 & 1
    content_size = (single, 2, 4, 8)[flags >> 6]
    file.seek((not single) + _DICTIONARY_ID[flags & 3] + content_size, 1)
    last = False
    while not last:
        if file.tell() + 3 > size:
            return False
        block = _number(file, 3)
        last = bool(block & 1)
        file.seek(1 if block >> 1 & 3 == _RLE else block >> 3, 1)
    file.seek(4 if flags >> 2 & 1 else 0, 1)
    return True


def _number(file: BinaryIO, width: int) -> int:
    return int.from_bytes(file.read(width), "little")
