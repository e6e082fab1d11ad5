"""The table itself: where it is, how it is opened, and what the client's errors mean.

The client's own text may quote values and signed requests, so none of it is repeated.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from retl.destinations.api import needs
from retl.destinations.files.place import Disk, Place, Remote, unusable
from retl.errors import Poisoned, Systemic, TargetError, Unavailable
from retl.model import Duration
from retl.net.bucket import Address, Root, answer
from retl.net.delta import options

if TYPE_CHECKING:
    from deltalake import DeltaTable

# The client's words for a refused row. Only its own kinds of errors come before them: no path of a file.
_REFUSED = re.compile(
    r"(?:[\w ]+: )*(?:Invalid data found: \d+ rows? failed validation|Check or Invariant|Invariant violation)"
)
_LIMITED = frozenset({408, 425, 429, 500, 502, 503, 504})
_NO_RIGHT = re.compile(r"necessary privileges|Unauthenticated|SignatureDoesNotMatch|AccessDenied")
_OF_SYSTEM = re.compile(r"(?:\(os error |\[Errno )(\d+)")
_FEATURE = re.compile(r"[Ff]eature|[Uu]nsupported|not supported")


class DeltaConnection(Root):
    """A folder of tables."""

    type: Literal["delta"] = "delta"
    timeout: Duration = Field(60.0, description="Of one request to a bucket.")
    connect_timeout: Duration = Field(10.0, description="Of a connection to a bucket.")

    @model_validator(mode="after")
    def _writable(self) -> Self:
        if "%" in self.root and "${" not in self.root:  # an unset variable is reported later
            raise ValueError("a `root` with % cannot be used: the client decodes it")
        return self


class Missing(Systemic):
    """There is no such table."""


class Opening:
    """Opens the table of a sync, always at its newest version."""

    def __init__(self, connection: DeltaConnection, path: str) -> None:
        self._connection, self.path = connection, path
        self._address = Address.of(connection.root)
        self.uri = f"{connection.root.rstrip('/')}/{path}"
        self._table: DeltaTable | None = None

    @property
    def storage(self) -> dict[str, str]:
        """The client's options. It repeats nothing by itself."""
        if self._address is None:
            return {}
        limits = self._connection
        return options(
            self._address,
            limits.storage,
            Path(),
            retries=0,
            seconds=limits.timeout,
            connect=limits.connect_timeout,
        )

    def newest(self) -> DeltaTable:
        """Systemic, Unavailable; Missing if there is no table."""
        with needs("lake"), self.translated():
            from deltalake import DeltaTable

            if self._table is None:
                self._table = DeltaTable(self.uri, storage_options=self.storage)
            else:
                self._table.update_incremental()
        return self._table

    def close(self) -> None:
        self._table = None

    @cached_property
    def place(self) -> Place:
        """The folder of the table, to read its log and to test the right to write."""
        if self._address is None:
            return Disk(Path(self.uri))
        with needs("lake"):
            to = self._connection
            return Remote(self._address, to.storage, self.path, to.timeout, to.connect_timeout)

    def create(self, schema: dict[str, Any]) -> None:
        with needs("lake"), self.translated():
            from deltalake import DeltaTable, Schema

            made = Schema.from_json(json.dumps(schema))
            DeltaTable.create(self.uri, made, mode="ignore", storage_options=self.storage)

    def add(self, columns: list[dict[str, Any]]) -> None:
        table = self.newest()
        with self.translated():
            from deltalake import Field as Column

            table.alter.add_columns([Column.from_json(json.dumps(one)) for one in columns])

    @contextmanager
    def translated(self) -> Iterator[None]:
        """The client's errors as ours, for what may be tried again if it fails."""
        try:
            yield
        except TargetError:
            self.close()
            raise
        except Exception as problem:
            self.close()
            if not is_clients(problem):
                raise
            raise self.meant(problem) from None

    def meant(self, problem: Exception) -> TargetError:
        from deltalake.exceptions import DeltaProtocolError, TableNotFoundError

        text, said = str(problem), answer(str(problem))
        answered = said.status is not None and said.status not in (*_LIMITED, 404)
        if answered or said.keyless or _NO_RIGHT.search(text):
            return Systemic(
                "BUCKET_REFUSED",
                f"the bucket of {self.path}: {said.why}",
                hint="compare `root` and `storage` of the connection with the bucket and its permissions",
            )
        if isinstance(problem, TableNotFoundError) or "No files in log segment" in text:
            return Missing("TABLE_MISSING", f"there is no Delta table {self.path}", hint="run `retl check`")
        if isinstance(problem, DeltaProtocolError) or (_FEATURE.search(text) and self._address is None):
            return Systemic(
                "TARGET_UNSUPPORTED",
                f"the table {self.path} has a feature that cannot be written",
                hint="drop the feature, or name another table",
            )
        if self._address is None:
            cause = _OF_SYSTEM.search(text)
            return unusable(self.uri, os.strerror(int(cause[1])) if cause else None)
        return Unavailable("UNREACHABLE", f"the bucket of {self.path}: {said.why}")


def refused(problem: Exception) -> Poisoned | None:
    """The error of a commit that holds a bad row; None if it is another one."""
    if is_clients(problem) and _REFUSED.match(str(problem)):
        return Poisoned("23514", "a check of the table, or its NOT NULL, refuses the row")
    return None


def is_clients(problem: Exception) -> bool:
    """Whether the client raised it, and not a mistake of ours."""
    from deltalake.exceptions import DeltaError

    return isinstance(problem, DeltaError | OSError | ValueError)
