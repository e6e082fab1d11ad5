"""What ends a row, a request or a transaction before MongoDB has applied it. It needs no client."""

from __future__ import annotations

from collections.abc import Mapping

from retl.destinations.batch import RowResult

REASONS = {
    "NOT_EXACT": "MongoDB keeps 34 digits of a number and the milliseconds of a time",
    "NOT_UNICODE": "a text is not valid Unicode",
    "TOO_DEEP": "a value has more than 98 levels",
    "TOO_LARGE": "the document would be larger than 16 MB",
    "NUL_IN_NAME": "a name inside a value has a NUL, which BSON cannot hold",
}


class Unfit(Exception):
    """A row that cannot be a document. `code` is one of REASONS."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Refused(Exception):
    """Of a transaction: MongoDB refused rows, by their position, and nothing was applied."""

    def __init__(self, rows: Mapping[int, RowResult]) -> None:
        super().__init__()
        self.rows = rows


class Marked(Exception):
    """Of a transaction: the attempt has a mark already. Nothing was applied."""


class Relieved(Exception):
    """Of a transaction: another run holds the fence. Nothing was applied."""
