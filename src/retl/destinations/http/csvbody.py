"""Writes and reads tables as CSV bodies with one header line (RFC 4180).

A text is always quoted and NULL is nothing between two commas, so they differ. Numbers and booleans are
not quoted and keep their digits; lists and objects are quoted JSON. All rows of a body have the same
columns, because CSV has no form for a missing member.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence

import msgspec

from retl.destinations.http import escape
from retl.errors import Ambiguous, Poisoned
from retl.net.messages import Reply

csv.field_size_limit(16 * 1024 * 1024)

_END = b"\r\n"
_CELL = re.compile(r'(?:"((?:[^"]|"")*)"|([^,"\r\n]*))(,|\r\n)')
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def write(rows: Sequence[bytes]) -> bytes:
    """The body for these rows, each a JSON object. Poisoned CSV_COLUMNS if their members differ."""
    members = [_members.decode(row) for row in rows]
    names = list(members[0])
    if any(list(one) != names for one in members):
        raise Poisoned("CSV_COLUMNS", "the rows have different columns, which one CSV body cannot hold")
    lines = [[_quoted(name) for name in names]]
    lines += [[_cell(bytes(value)) for value in one.values()] for one in members]
    return b"".join(b",".join(line) + _END for line in lines)


def read(body: bytes) -> list[list[str]]:
    """The cells of each row of a body that `write` made, without the header."""
    return list(_rows(body.decode()))[1:]


def table(reply: Reply) -> list[dict[str, str]]:
    """The lines of a file that a target made, by their columns. Ambiguous if it is cut off or not a table: it
    can be fetched again."""
    try:
        if not reply.whole:
            raise ValueError("it is cut off, or too long to read")
        lines = csv.reader(io.StringIO(reply.body.decode("utf-8-sig"), newline=""), strict=True)
        columns = next(lines, [])
        rows = [line for line in lines if line]
        if len(set(columns)) != len(columns) or any(len(row) != len(columns) for row in rows):
            raise ValueError("its lines are not as long as its header")
    except (ValueError, csv.Error) as error:
        raise Ambiguous("JOB_RESULTS", f"a result file cannot be read: {type(error).__name__}") from None
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _rows(text: str) -> Iterator[list[str]]:
    row: list[str] = []
    for found in _CELL.finditer(text):
        row.append(found[2] if found[1] is None else found[1].replace('""', '"'))
        if found[3] != ",":
            yield row
            row = []


def _cell(value: bytes) -> bytes:
    if value == b"null":
        return b""
    if value.startswith(b'"'):
        return _quoted(msgspec.json.decode(value, type=str))
    return _quoted(value.decode()) if value.startswith((b"{", b"[")) else value


def _quoted(text: str) -> bytes:
    return escape.cell(text).encode()
