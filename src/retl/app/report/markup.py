"""Texts and tables as HTML. Everything that was written by somebody else passes `text`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from retl.observe.redact import redact


def text(value: object) -> str:
    """A value as text that means nothing to a browser: without secrets, markup, control characters or
    characters that reorder a line."""
    clean = redact("" if value is None else str(value))
    return escape("".join(c if c.isprintable() else repr(c)[1:-1] for c in clean))


def number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def moment(value: datetime | None) -> str:
    if value is None:
        return ""
    there = value.astimezone(UTC)
    return f'<time datetime="{there:%Y-%m-%dT%H:%M:%SZ}">{there:%Y-%m-%d %H:%M:%S} UTC</time>'


def span(seconds: float | None) -> str:
    """A length of time in its two largest units: 3 d 4 h, 12 m 5 s, 0.42 s."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} m" if hours else f"{minutes} m {rest} s"


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str,
    numbers: Sequence[int] = (),
    style: str = "",
) -> str:
    """A table that scrolls sideways by itself. Headers and cells are HTML, the caption is plain text; the
    first cell of a row names it, the columns `numbers` are aligned to the right."""

    def cells(line: Sequence[str], first: str, others: str) -> str:
        tags = [first, *[others] * (len(line) - 1)]
        return "".join(
            f"<{tag}{_kind(tag, first, column in numbers)}>{cell}</{tag.split()[0]}>"
            for column, (tag, cell) in enumerate(zip(tags, line, strict=True))
        )

    head = "".join(
        f'<th scope="col"{_number(column in numbers)}>{name}</th>' for column, name in enumerate(headers)
    )
    body = "".join(f"<tr>{cells(line, 'th', 'td')}</tr>" for line in rows)
    return (
        f'<p class="muted">{escape(caption)}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table class="{style}" aria-label="{escape(caption)}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _kind(tag: str, first: str, is_number: bool) -> str:
    return ' scope="row"' if tag == first else _number(is_number)


def _number(is_number: bool) -> str:
    return ' class="number"' if is_number else ""
