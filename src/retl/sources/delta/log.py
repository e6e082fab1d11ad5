"""The commits of a Delta table's log, and whether a change feed over them can be trusted.

The log is read itself, because the reader of the feed does not say all of it: it counts the versions of its
history from the wrong end when the table is pinned, and for files that leave the table with a deletion
vector it takes the deleted rows for the others. Nothing of the rows is read here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

CHANGES_ON = "delta.enableChangeDataFeed"
# What may happen between two versions of a feed. Every other operation is read whole, also an unknown one.
_KNOWN = {
    *("WRITE", "STREAMING UPDATE", "COPY INTO", "MERGE", "UPDATE", "DELETE", "TRUNCATE"),
    *("OPTIMIZE", "REORG", "VACUUM START", "VACUUM END"),
    *("ADD COLUMN", "ADD COLUMNS", "ADD CONSTRAINT", "ANALYZE", "COMPUTE STATS"),
}


class File(msgspec.Struct, rename="camel"):
    """A file that came or left."""

    path: str = ""
    data_change: bool = True
    deletion_vector: dict[str, Any] | None = None


class CommitInfo(msgspec.Struct, rename="camel"):
    """What a commit says about itself; times in ms."""

    operation: str | None = None
    timestamp: int | None = None
    in_commit_timestamp: int | None = None


class MetaData(msgspec.Struct):
    """The table as it is from a commit on."""

    id: str
    configuration: dict[str, str | None] = {}


class _Action(msgspec.Struct, rename="camel"):
    """One line of a commit."""

    commit_info: CommitInfo | None = None
    meta_data: MetaData | None = None
    add: File | None = None
    remove: File | None = None
    cdc: File | None = None


class Commit:
    """One commit of the log."""

    def __init__(self, lines: bytes) -> None:
        actions = msgspec.json.Decoder(_Action).decode_lines(lines)
        self.info = next((one.commit_info for one in actions if one.commit_info), CommitInfo())
        self.metadata = [one.meta_data for one in actions if one.meta_data]
        self.came = [one.add for one in actions if one.add and one.add.data_change]
        self.left = [one.remove for one in actions if one.remove and one.remove.data_change]
        self.has_changes = any(one.cdc for one in actions)

    @property
    def time(self) -> int | None:
        """When it was made, in ms; None if it does not say."""
        return self.info.in_commit_timestamp or self.info.timestamp

    def problem(self, table_id: str) -> str | None:
        """Why the change feed of this commit cannot be trusted, as the end of a sentence that begins with the
        version."""
        if any(one.id != table_id for one in self.metadata):
            return "replaced the table"
        if any(not is_on(one.configuration) for one in self.metadata):
            return "has no change feed"
        if self.info.operation not in _KNOWN:
            return f"is {self.info.operation or 'an operation without a name'}"
        if not self.has_changes and any(one.deletion_vector for one in self._unpaired()):
            return "removes or adds files with deletion vectors and keeps no change files"
        return None

    def _unpaired(self) -> Iterator[File]:
        """Files that came or left; not those of which only the deletion vector changed."""
        came, left = {one.path for one in self.came}, {one.path for one in self.left}
        yield from (one for one in (*self.came, *self.left) if one.path not in came & left)


def is_on(configuration: Mapping[str, str | None]) -> bool:
    """Whether a table with this configuration records its changes."""
    return (configuration.get(CHANGES_ON) or "").lower() == "true"


def distrusted(read: Callable[[int], bytes | None], table_id: str, after: int, last: int) -> str | None:
    """Why the changes in the versions after `after`, up to `last`, must not be taken from the feed: a
    sentence, or None. `read` returns the text of a commit, None if the log no longer has it."""
    for version in range(after + 1, last + 1):
        lines = read(version)
        if lines is None:
            return f"the log no longer has version {version}"
        try:
            problem = Commit(lines).problem(table_id)
        except msgspec.DecodeError:
            problem = "cannot be understood"
        if problem is not None:
            return f"version {version} {problem}"
    return None
