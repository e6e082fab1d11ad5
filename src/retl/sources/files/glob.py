"""Patterns of files: `*` and `?` match within a name, `**` any number of folders.

The same rule holds on a disk and in a bucket. Names that begin with `_` or `.` are not part of a mart unless
the pattern spells it: that is where Spark and others keep markers and files that they still write.
"""

from __future__ import annotations

import re
from fnmatch import translate

_WILD = re.compile(r"[*?\[]")


class Glob:
    """A pattern such as `segments/dt=*/*.parquet`, relative to a root. ValueError if it leads out of it."""

    def __init__(self, text: str) -> None:
        self._parts = text.split("/")
        if not text or "\0" in text or any(part in ("", ".", "..") for part in self._parts):
            raise ValueError("a path is relative to `root` and does not lead out of it")
        if any("**" in part and part != "**" for part in self._parts) or self._parts[-1] == "**":
            raise ValueError("`**` is a whole part of a path, and a name follows: data/**/*.parquet")
        self._names = [re.compile(translate(part)) for part in self._parts]

    @property
    def folder(self) -> str:
        """The folder that has all files of the pattern, '' for the root itself."""
        plain = []
        for part in self._parts[:-1]:
            if _WILD.search(part):
                break
            plain.append(part)
        return "/".join(plain)

    def matches(self, path: str) -> bool:
        """Whether this path below the root is a file of the pattern."""
        return self._match(path.split("/"), 0, 0)

    def _match(self, parts: list[str], at: int, wanted: int) -> bool:
        if wanted == len(self._parts):
            return at == len(parts)
        if self._parts[wanted] == "**":
            return self._match(parts, at, wanted + 1) or (
                at < len(parts) and not _is_hidden(parts[at]) and self._match(parts, at + 1, wanted)
            )
        if at == len(parts) or not self._names[wanted].match(parts[at]):
            return False
        if _is_hidden(parts[at]) and self._parts[wanted][0] != parts[at][0]:
            return False
        return self._match(parts, at + 1, wanted + 1)


def _is_hidden(name: str) -> bool:
    return name[0] in "._" and "=" not in name
