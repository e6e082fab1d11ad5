"""What commands print on stdout: tables for people, or exactly one JSON document.

All output passes `redact`, and control characters are escaped, so that no value of a mart can control a
terminal. Nothing else in retl writes to stdout.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal

from msgspec import Struct, field

Format = Literal["table", "json", "markdown", "csv"]  # each command says which it has

_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Table(Struct, frozen=True):
    """Rows under headers. A column of numbers is aligned to the right; None is shown as an empty cell. On a
    terminal a column of zeros is left out, unless `keeps` has its header. Where the terminal is too narrow,
    columns go whose cells are all the one in `defaults`, then the columns of `spares` one after the other: a
    column of `shorts` first gets these shorter cells. Then the cells of `folds` are broken."""

    headers: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str | None = None
    keeps: Sequence[str] = ()
    spares: Sequence[str] = ()
    folds: Sequence[str] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    shorts: Mapping[str, Sequence[Any]] = field(default_factory=dict)


Piece = Table | str  # text is printed without markup


def write(text: str) -> bool:
    """Write to stdout and flush; False if that is impossible (closed, or the disk is full)."""
    if sys.stdout is None:
        return False
    try:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
        sys.stdout.write(text)
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return False
    return True


def say(text: str) -> None:
    """Write a line for people to stderr; a closed stderr is no error."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            sys.stderr.write(clean(text) + "\n")
            sys.stderr.flush()


def document_text(document: Any) -> str:
    """One JSON document. Lone surrogates become escapes, so it is always valid JSON and UTF-8."""
    return json.dumps(_plain(document), ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def line_text(document: Any) -> str:
    """The same on one line, for a command that prints several."""
    return json.dumps(_plain(document), ensure_ascii=False, allow_nan=False) + "\n"


def pieces_text(pieces: Sequence[Piece]) -> str:
    """Tables and sentences for people: drawn by Rich on a terminal, otherwise aligned with spaces."""
    if sys.stdout is not None and sys.stdout.isatty():
        from retl.cli.drawing import drawn

        return drawn(pieces, _width())
    return "\n".join(clean(piece) + "\n" if isinstance(piece, str) else _aligned(piece) for piece in pieces)


def _width() -> int:
    """The columns of the terminal that stdout is."""
    if (asked := os.environ.get("COLUMNS", "")).isdigit() and int(asked):
        return int(asked)
    with suppress(OSError, ValueError):
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    return 80


def clean(text: str) -> str:
    """The text without secrets and without control characters, except line ends and tabs."""
    from retl.observe.redact import redact

    return _UNSAFE.sub(lambda found: repr(found[0])[1:-1], redact(text))


def cell(value: Any, *, separators: bool = False) -> str:
    """A number, time or text of retl's own as one line of text; `separators` makes 3000000 3,000,000."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case int() if separators:
            return f"{value:,}"
        case datetime():
            return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
        case float():
            grouped = "," if separators else ""
            return f"{value:{grouped}.1f}" if value >= 10 else f"{value:.2f}"
        case list() | tuple():
            return ", ".join(map(str, value))
        case dict():
            return ", ".join(f"{name}={item}" for name, item in value.items())
    return _line(str(value))


def datum(value: Any) -> str:
    """A value of a row as one line of text, as the mart and JSON write it: nothing is rounded."""
    match value:
        case None:
            return "NULL"
        case bool():
            return str(value).lower()
        case datetime() if value.tzinfo is not None:
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case list() | tuple() | dict():
            return _line(json.dumps(_plain(value), ensure_ascii=False))
    return _line(str(value))


def _line(text: str) -> str:
    return clean(text).replace("\n", "\\n").replace("\t", "\\t")


def moment(value: datetime | None) -> str | None:
    """A time in its JSON form: ISO 8601 in UTC."""
    return None if value is None else value.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case datetime():
            return moment(value)
        case Mapping():
            return {_text(str(name)): _plain(item) for name, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
    return _text(str(value))


def _text(value: str) -> str:
    from retl.observe.redact import redact

    return redact(value)


def _numeric(table: Table, column: int) -> bool:
    values = [row[column] for row in table.rows if row[column] is not None]
    return bool(values) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _aligned(table: Table) -> str:
    texts = [list(table.headers), *([cell(value) for value in row] for row in table.rows)]
    widths = [max(len(line[i]) for line in texts) for i in range(len(table.headers))]
    numeric = [_numeric(table, i) for i in range(len(table.headers))]
    lines = [
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in texts
    ]
    return "\n".join(([clean(table.title)] if table.title else []) + lines) + "\n"
