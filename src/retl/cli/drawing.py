"""Tables on a terminal, by Rich: nothing in a cell is broken, unless the table says that its cell may be.

Columns of zeros are left out, numbers have thousands separators, a status has its colour. Where the columns
do not fit, first sentences wrap between words; then go the columns of nothing but defaults, and those that a
table can spare; then each row becomes a record, one value a line. It never changes what is printed into a
pipe or a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from retl.cli.output import cell, clean

if TYPE_CHECKING:
    from retl.cli.output import Piece, Table

Column = tuple[str, list[Any]]  # header and values

GAP = 2  # between columns
FOLDED = 12  # the least width of a column that may be broken
SENTENCE = 20  # narrower than this, a column of sentences is not read any more
COLOURS = {
    **dict.fromkeys(("SUCCESS", "OK", "valid"), "green"),
    **dict.fromkeys(
        ("SUCCESS_WITH_REJECTS", "INTERRUPTED", "BLOCKED", "KILLED", "ABANDONED", "STALE"), "yellow"
    ),
    **dict.fromkeys(("FAILED", "REFUSED"), "red"),
    **dict.fromkeys(("PAUSED", "RUNNING", "NEVER"), "dim"),
}


def drawn(pieces: Sequence[Piece], width: int) -> str:
    """The pieces as text for a terminal of this width."""
    console = Console(file=StringIO(), force_terminal=True, width=width, highlight=False, emoji=False)
    for piece in pieces:
        if isinstance(piece, str):
            console.print(Text(clean(piece)), soft_wrap="\n" in piece)
        elif piece.rows:
            _print(console, piece)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def _print(console: Console, table: Table) -> None:
    if table.title:
        console.print(Text(clean(table.title), style="bold"), soft_wrap=True)
    columns, widths = _fitting(table, console.width)
    if widths is None and len(columns) == 2:
        _print_pairs(console, columns)
    elif widths is None:
        _print_records(console, columns)
    else:
        console.print(_grid(columns, widths))
        console.print()


def _fitting(table: Table, width: int) -> tuple[list[Column], list[int] | None]:
    """The columns that are shown, and their widths; None if a row has to become a record."""
    every = columns = _columns(table)
    usual, shorts = table.defaults, dict(table.shorts)
    if _widths(columns, width) is None:
        columns = [one for one in columns if one[0] not in usual or set(one[1]) != {usual[one[0]]}]
    for spared in (None, *table.spares):
        if spared in shorts:
            short = list(shorts.pop(spared))
            columns = [(head, short if head == spared else cells) for head, cells in columns]
        else:
            columns = [one for one in columns if one[0] != spared]
        if (widths := _widths(columns, width)) is not None:
            return columns, widths
    widths = _widths(columns, width, table.folds)
    return (columns, widths) if widths is not None else (every, None)


def _columns(table: Table) -> list[Column]:
    """Header and values per column. A column that says nothing in several rows or counts is left out."""
    columns = [(header, [row[i] for row in table.rows]) for i, header in enumerate(table.headers)]
    kept = [one for one in columns if one[0] in table.keeps or any(map(_says, one[1]))]
    return kept or columns


def _says(value: Any) -> bool:
    return value is not None and value != "" and value != [] and (value is False or value != 0)


def _widths(columns: Sequence[Column], width: int, folds: Sequence[str] = ()) -> list[int] | None:
    """The width of each column, so that all fit and no word is broken, except in the columns of `folds`; None
    if that is impossible."""
    texts = [[header, *(cell(value, separators=True) for value in values)] for header, values in columns]
    widest = [max(map(cell_len, column)) for column in texts]
    least = [
        FOLDED if header in folds else _least(column)
        for (header, _), column in zip(columns, texts, strict=True)
    ]
    room = width - GAP * (len(columns) - 1)
    if sum(least) > room:
        return None
    widths = [min(full, need) for full, need in zip(widest, least, strict=True)]
    free = room - sum(widths)
    for i in sorted(range(len(columns)), key=lambda i: widest[i] - widths[i]):
        waiting = sum(full > got for full, got in zip(widest, widths, strict=True)) or 1
        more = min(widest[i] - widths[i], free // waiting)
        widths[i], free = widths[i] + more, free - more
    return widths


def _least(texts: Sequence[str]) -> int:
    """The width that a column needs: all of it, or for sentences their longest word."""
    if not any(" " in text and cell_len(text) > SENTENCE for text in texts):
        return max(map(cell_len, texts))
    return max(SENTENCE, *(cell_len(word) for text in texts for word in text.split(" ")))


def _grid(columns: Sequence[Column], widths: Sequence[int]) -> Grid:
    grid = Grid(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0), header_style="bold"
    )
    for (header, values), width in zip(columns, widths, strict=True):
        grid.add_column(
            Text(header), justify="right" if _numeric(values) else "left", width=width, overflow="fold"
        )
    for row in zip(*(values for _, values in columns), strict=True):
        grid.add_row(*(_text(value) for value in row))
    return grid


def _text(value: Any) -> Text:
    text = cell(value, separators=True)
    return Text(text, style=COLOURS.get(text, ""))


def _numeric(values: Sequence[Any]) -> bool:
    known = [value for value in values if value is not None and value != ""]
    return bool(known) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in known)


def _print_pairs(console: Console, columns: Sequence[Column]) -> None:
    """A name and its value on a line; a line that is longer than the terminal is the terminal's to wrap."""
    names, values = ([header, *found] for header, found in columns)
    wide = max(cell_len(cell(name)) for name in names)
    for name, value in zip(names, values, strict=True):
        style = "bold" if name == columns[0][0] else "dim"
        text = cell(name, separators=True)
        line = Text.assemble((text + " " * (wide - cell_len(text) + GAP), style), _text(value))
        console.print(line, soft_wrap=True)
    console.print()


def _print_records(console: Console, columns: Sequence[Column]) -> None:
    """One value a line; a line that is longer than the terminal is the terminal's to wrap."""
    wide = max(len(header) for header, _ in columns)
    for row in range(len(columns[0][1])):
        for header, values in columns:
            if _says(values[row]):
                style = "bold" if header == columns[0][0] else "dim"
                line = Text.assemble((f"{header:<{wide}}  ", style), _text(values[row]))
                console.print(line, soft_wrap=True)
        console.print()
