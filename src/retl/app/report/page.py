"""Facts → the page: what happened, the funnel, the history, why rows were refused, and the batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from retl.app.report.charts import Bar, columns, share
from retl.app.report.facts import Facts, Reason
from retl.app.report.funnel import Step, delivered, funnel
from retl.app.report.markup import moment, number, span, table, text
from retl.app.report.style import sheet
from retl.ledger import BatchRow, RunRow
from retl.observe.summary import PHASES

COLOURS = {"SUCCESS": "good", "SUCCESS_WITH_REJECTS": "warn", "RUNNING": "muted", "INTERRUPTED": "warn"}
FALLEN = {"unchanged": "idle", "skipped": "idle", "not attempted": "warn"}


def page(facts: Facts) -> str:
    """The whole HTML document: no script, nothing from any network, nothing that escapes its text."""
    run = facts.run
    title = f"{text(run.sync)} · {text(run.run_id)}"
    sections = [
        *_head(facts),
        _rows(run),
        *_reasons("Rejected in this run", facts.met, _kept(run)),
        *_reasons("Waiting now", facts.open, "open rejects of the sync by reason, most first"),
        *_phases(run),
        *_history(facts),
        *_batches(facts),
        *_states(facts.states),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\';'
        " style-src 'unsafe-inline'; img-src data:\">"
        f'<link rel="icon" href="data:,"><title>{title}</title><style>{sheet()}</style></head>\n'
        f"<body><main>\n{chr(10).join(sections)}\n</main>"
        f"<footer>Made {moment(facts.made_at)} by retl {text(run.version)} from its ledger. Times are UTC."
        "</footer></body></html>\n"
    )


def _head(facts: Facts) -> Iterator[str]:
    run = facts.run
    colour = COLOURS.get(run.status, "bad")
    yield f'<h1>{text(run.sync)} <span class="{colour}">{text(run.status)}</span></h1>'
    yield (
        f'<p class="muted">run <code>{text(run.run_id)}</code> to <code>{text(run.object)}</code>,'
        f" {moment(run.started_at)}, on {text(run.host)} by {text(run.user)}"
        f"{f', environment {text(run.environment)}' if run.environment else ''}</p>"
    )
    counts = run.counts
    age = (facts.made_at - facts.last_success).total_seconds() if facts.last_success else None
    tiles = {
        "read": number(counts.get("read", 0)),
        "delivered": number(delivered(counts)),
        "deleted": number(counts.get("deleted", 0)),
        "rejected": number(counts.get("rejected", 0)),
        "took": span(_seconds(run)) or "unknown",
        "rows per second": number(_rate(run)) or "none",
        "last success": f"{span(age)} ago" if age is not None else "never",
    }
    inner = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in tiles.items())
    yield f'<dl class="tiles">{inner}</dl>'
    said = [*run.guards, *([run.error] if run.error else [])]
    for code, message, hint in dict.fromkeys((o["code"], o["message"], o.get("hint")) for o in said):
        more = f'<p class="muted">{text(hint)}</p>' if hint else ""
        yield (
            f'<div class="said"><p><strong class="bad">{text(code)}</strong> {text(message)}</p>{more}</div>'
        )


def _rows(run: RunRow) -> str:
    deletes = run.counts.get("deletes", {})
    planned = deletes.get("planned", 0)
    apart = (
        f"<p>Deletes are counted apart: {number(run.counts.get('deleted', 0))} of {number(planned)} planned"
        f" were carried out, {number(deletes.get('rejected', 0))} were refused,"
        f" {number(deletes.get('in_doubt', 0))} are in doubt.</p>"
        if planned
        else ""
    )
    rows = [
        (_label(step), number(step.rows), f"{step.share:.1%}", share(step.share, _colour(step)))
        for step in funnel(run.counts)
    ]
    made = table(
        ("rows of the mart", "count", "of read", ""),
        rows,
        caption="from what was read to what was delivered",
        numbers=(1, 2),
        style="bars",
    )
    return f"<h2>Rows</h2>{made}{apart}"


def _label(step: Step) -> str:
    if step.kind == "of which":
        return f'<span class="of">{step.name}</span>'
    return f"&minus; {step.name}" if step.kind == "less" else step.name


def _colour(step: Step) -> str:
    if step.kind == "less":
        return FALLEN.get(step.name, "bad")
    return "idle" if step.name == "read" else "good"


def _phases(run: RunRow) -> Iterator[str]:
    if not run.phases:
        return
    whole = sum(run.phases.values()) or 1.0
    rows = [
        (name, span(run.phases[name]), f"{run.phases[name] / whole:.0%}")
        for name in PHASES
        if name in run.phases
    ]
    yield "<h2>Phases</h2>" + table(
        ("phase", "took", "share"), rows, caption="where the time went", numbers=(1, 2)
    )


def _history(facts: Facts) -> Iterator[str]:
    runs = facts.runs
    if not runs:
        return
    ends = (_day(runs[0].started_at), _day(runs[-1].started_at))
    yield f"<h2>Runs over time</h2><p class='muted'>the newest {len(runs)} of {text(facts.run.sync)}</p>"
    sent = [
        Bar(
            [(_moved(run), "good"), (int(run.counts.get("rejected", 0)), "bad")],
            f"{_day(run.started_at)}: {_moved(run)} delivered, {run.counts.get('rejected', 0)} rejected",
        )
        for run in runs
    ]
    most = max(bar.total for bar in sent)
    yield columns("rows delivered (deletes too) and, on top, rejected", sent, ends, f"{number(most)} rows")
    rates = [_rate(run) or 0.0 for run in runs]
    fast = [
        Bar([(rate, "idle")], f"{_day(run.started_at)}: {rate:,.0f} rows/s")
        for run, rate in zip(runs, rates, strict=True)
    ]
    yield columns("rows per second", fast, ends, f"{number(max(rates))} rows/s")
    gaps = _ages(runs)
    if gaps:
        aged = [Bar([(age, "warn")], f"{_day(at)}: {span(age)}") for at, age in gaps]
        oldest = span(max(age for _, age in gaps))
        yield columns("age that the target's data reached before it was renewed", aged, ends, oldest)
    yield table(
        ("run", "status", "read", "delivered", "deleted", "rejected", "took"),
        [_line(run) for run in reversed(runs)],
        caption="newest first",
        numbers=(2, 3, 4, 5, 6),
        style="history",
    )


def _ages(runs: Sequence[RunRow]) -> list[tuple[datetime, float]]:
    """When each good run but the first ended, and how long ago the one before it had."""
    good = [run.finished_at for run in runs if run.status.startswith("SUCCESS") and run.finished_at]
    return [(now, (now - before).total_seconds()) for before, now in pairwise(good)]


def _line(run: RunRow) -> tuple[str, ...]:
    colour = COLOURS.get(run.status, "bad")
    numbers = (run.counts.get("read", 0), delivered(run.counts))
    return (
        f"{run.started_at:%Y-%m-%d %H:%M:%S}",
        f'<span class="{colour}">{text(run.status)}</span>',
        *map(number, numbers),
        number(run.counts.get("deleted", 0)),
        number(run.counts.get("rejected", 0)),
        span(_seconds(run)),
    )


def _reasons(title: str, reasons: Sequence[Reason], caption: str) -> Iterator[str]:
    if not reasons:
        return
    rows = [
        (
            f"<code>{text(one.code)}</code>",
            number(one.rows),
            text(one.stage),
            text(one.reason),
            ", ".join(f"<code>{text(key)}</code>" for key in one.keys),
        )
        for one in reasons
    ]
    headers = ("code", "rows", "stage", "reason", "keys, for example")
    yield f"<h2>{title}</h2>" + table(headers, rows, caption=caption, numbers=(1,), style="reasons")


def _kept(run: RunRow) -> str:
    kept = len(run.counts.get("rejects", ()))
    refused = int(run.counts.get("rejected", 0)) + int(run.counts.get("deletes", {}).get("rejected", 0))
    return f"by reason, counted over the {kept} of {max(refused, kept)} that the run kept as examples"


def _batches(facts: Facts) -> Iterator[str]:
    if not facts.batches:
        return
    whole = len(facts.batches) == facts.batches_in_all
    which = (
        f"all {facts.batches_in_all}"
        if whole
        else f"the {len(facts.batches)} slowest of {facts.batches_in_all}, in the order they were sent"
    )
    bars = [
        Bar([(float(one.duration_ms or 0), _state(one))], f"batch {one.number}: {one.duration_ms or 0} ms")
        for one in facts.batches
    ]
    slowest = span(max((one.duration_ms or 0) for one in facts.batches) / 1000)
    yield "<h2>Batches</h2>" + columns("time per batch", bars, ("first", "last"), slowest)
    rows = [
        (
            str(one.number),
            text(one.operation),
            number(one.last - one.first + 1),
            f'<span class="{_state(one)}">{text(one.status)}</span>',
            number(one.attempts),
            "" if one.duration_ms is None else span(one.duration_ms / 1000),
            text(one.error),
        )
        for one in facts.batches
    ]
    headers = ("batch", "operation", "rows", "status", "attempts", "took", "error")
    yield table(headers, rows, caption=which, numbers=(2, 4, 5), style="batches")


def _state(batch: BatchRow) -> str:
    return {"done": "good", "open": "warn"}.get(batch.status, "bad")


def _states(states: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not states:
        return
    rows = [
        (
            text(one["sync"]),
            f'<span class="{"bad" if one["stale"] else COLOURS.get(one["status"], "muted")}">'
            f"{text(one['status'])}{', stale' if one['stale'] else ''}</span>",
            span(one["age_seconds"]) or "never",
            "unknown" if one["lag_seconds"] is None else span(one["lag_seconds"] or None) or "no",
            number(one["open_rejects"]),
            number(one["in_doubt"]),
            text(one["next"]),
        )
        for one in states
    ]
    headers = ("sync", "status", "age", "behind the mart", "open rejects", "in doubt", "next")
    yield "<h2>All syncs</h2>" + table(
        headers, rows, caption="as `retl status` says when this page was made", numbers=(4, 5)
    )


def _seconds(run: RunRow) -> float | None:
    return (run.finished_at - run.started_at).total_seconds() if run.finished_at else None


def _rate(run: RunRow) -> float | None:
    """Rows moved per second of the run, None while nobody can say."""
    seconds = _seconds(run)
    return _moved(run) / seconds if seconds else None


def _moved(run: RunRow) -> int:
    """Rows and deletes that reached the target."""
    return delivered(run.counts) + int(run.counts.get("deleted", 0))


def _day(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}"
