"""A plan as Markdown, for the comment of a pull request.

Values of rows are shown as code, so that no value becomes a link, a mention or markup. What is long is cut: a
comment has 65,536 characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from retl.cli import output
from retl.observe.summary import counted

if TYPE_CHECKING:
    from retl.run.review import Review

NUMBERS = ("read", "unchanged", "inserted", "updated", "refreshed", "deleted", "rejected", "skipped")
VALUE = 120  # characters of a value
REQUEST = 4_000  # characters of the request
LINES = 100  # of samples, and of columns
MARKS = {"passes": "passes", "accepted": "accepted", "refuses": "**REFUSES**"}


def plan_text(found: Review, document: Mapping[str, Any]) -> str:
    """The whole comment. `document`: the JSON form of the summary, with keys masked where they must be."""
    parts = [
        _head(found, document),
        _table(NUMBERS, [[f"{document[name]:,}" for name in NUMBERS]], right=True),
        *_times(document),
        *_columns(found),
        *_samples(found.samples),
        *_rejects(document),
        *_verdicts(found),
        *_request(found),
        *(f"> {_text(note)}" for note in document.get("notes", ())),
    ]
    return output.clean("\n\n".join(parts) + "\n")


def _head(found: Review, document: Mapping[str, Any]) -> str:
    about = f"### retl plan: {_code(document['sync'])}" + (
        f" → {_code(found.target)}" if found.target else ""
    )
    error = document["error"]
    if error is None:
        changes = found.summary.changes
        sent = counted(changes, "row")
        return f"{about}\n\n{f'{sent} would be sent.' if changes else 'No changes.'}"
    hint = f"<br>hint: {_text(error['hint'])}" if error.get("hint") else ""
    return f"{about}\n\n**{document['status']}** {_text(error['message'])} [{error['code']}]{hint}"


def _times(document: Mapping[str, Any]) -> Iterator[str]:
    if "estimate" in document:
        yield f"Estimated: {_text(document['estimate']['text'])}"


def _columns(found: Review) -> Iterator[str]:
    shown = [one for one in found.columns if one.inserted or one.updated is None or one.updated]
    updates = found.summary.counts.updated
    if not shown or not found.summary.changes:
        return
    of = f"of the first {found.compared:,} updates" if 0 < found.compared < updates else "updates"
    rows = [
        (_code(one.name), f"{one.inserted:,}", "?" if one.updated is None else f"{one.updated:,}")
        for one in shown
    ]
    yield "#### Changes by field\n\n" + _table(("field", "new rows with a value", of), _cut(rows))


def _samples(samples: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    from retl.cli.running import sampled

    judged = any("verdict" in sample for sample in samples)
    headers = ("op", "key", "field", "before", "after", *(("verdict",) if judged else ()))
    rows = [
        (
            *(op, _code(key) if key else "", _code(name) if name else "", _code(old), _code(new)),
            *((_text(verdict or ""),) if judged else ()),
        )
        for op, key, name, old, new, verdict in sampled(samples)
    ]
    if rows:
        yield "#### First changes\n\n" + _table(headers, _cut(rows))


def _rejects(document: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        (_code(one["key"]), one["stage"], one["code"], _text(one["reason"])) for one in document["rejects"]
    ]
    if rows:
        yield "#### Rejects\n\n" + _table(("key", "stage", "code", "reason"), rows)


def _verdicts(found: Review) -> Iterator[str]:
    rows = [(one.code, _text(one.found), one.limit, MARKS[one.verdict]) for one in found.verdicts]
    if rows:
        yield "#### Guards\n\n" + _table(("guard", "found", "limit", "verdict"), rows)


def _request(found: Review) -> Iterator[str]:
    if found.request is None:
        return
    text = output.clean(found.request).strip()
    if (more := len(text) - REQUEST) > 0:
        text = f"{text[:REQUEST]}\n… and {more:,} characters"
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    summary = "<summary>The request of one row</summary>"
    yield f"<details>{summary}\n\n{fence}text\n{text}\n{fence}\n\n</details>"


def _cut(rows: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    more = len(rows) - LINES
    if more <= 0:
        return list(rows)
    return [*rows[:LINES], (f"… and {more:,}", *("" for _ in rows[0][1:]))]


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: bool = False) -> str:
    lines = [headers, ["--:" if right else "---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(value: Any) -> str:
    """A value as code, also between the bars of a table; nothing for none."""
    text = output.cell(value)
    if not text:
        return ""
    text = f"{text[:VALUE]}…" if len(text) > VALUE else text
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text[0] in "` " or text[-1] in "` " else ""
    return f"{fence}{space}{text}{space}{fence}".replace("|", "\\|")


def _text(text: Any) -> str:
    """A sentence of retl: its code stays code, anything else is plain text."""
    parts = str(text).replace("\n", " ").split("`")
    plain = [re.sub(r"([\\*_\[\]~])", r"\\\1", part) for part in parts[::2]]
    plain = [part.replace("&", "&amp;").replace("<", "&lt;").replace("@", "&#64;") for part in plain]
    parts[::2] = plain
    return "`".join(parts).replace("|", "\\|")
