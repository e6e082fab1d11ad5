"""The history: runs, show, status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retl.app.choice import Choice
from retl.cli import completing, output, problems
from retl.cli.app import app, command
from retl.cli.invocation import Invocation
from retl.cli.naming import WORDS, named_run, short_ids
from retl.cli.output import Piece, Table
from retl.observe.mask import MASK

if TYPE_CHECKING:
    from retl.ledger import Ledger, RunRow

COUNTED = (
    "read",
    "unchanged",
    "inserted",
    "updated",
    "refreshed",
    "deleted",
    "rejected",
    "skipped",
    "in_doubt",
    "not_attempted",
)
SPARED = (  # in this order, on a narrow terminal; an id stays with its end, a start without year and seconds
    "seconds",
    "refreshed",
    "run",
    "started",
    "deleted",
    "updated",
    "inserted",
    "rejected",
)
USUAL = {"purpose": "sync"}
STATUS_SPARED = ("last success", "behind", "open rejects")
FOLDED = ("sync",)  # runs: broken where even that is too wide
REJECTS_SHOWN = 20
FACTS = (
    "sync",
    "purpose",
    "status",
    "object",
    "source_version",
    "started_at",
    "finished_at",
    "seconds",
    "approved_by",
    "environment",
    "vars",
    "options",
    "batches",
    "retries",
    "bytes",
    "correlation_id",
    "host",
    "pid",
    "user",
    "version",
)


@command(app, "runs", ledger=True)
def runs(
    invocation: Invocation,
    choice: Choice,
    limit: Annotated[int, typer.Option(min=1, help="Number of runs.")] = 20,
) -> int | None:
    """List the runs, newest first."""
    ledger = invocation.session.ledger()
    names = invocation.names(choice)
    if names is not None and not names:
        return invocation.show_nothing(choice, "runs")
    several = (
        [ledger.runs(name, limit) for name in names] if names is not None else [ledger.runs(None, limit)]
    )
    found = sorted((run for some in several for run in some), key=lambda run: run.started_at, reverse=True)
    found = found[:limit]
    shown = ("read", "inserted", "updated", "refreshed", "deleted", "rejected")
    headers = ("run", "sync", "purpose", "status", "started", "seconds", *shown)
    rows = [
        (
            one.run_id,
            one.sync,
            one.purpose,
            one.status,
            one.started_at,
            one.seconds,
            *(one.counts.get(n) for n in shown),
        )
        for one in found
    ]
    invocation.show(
        {"runs": [run_document(invocation, one, brief=True) for one in found]},
        lambda: [_runs_table(headers, rows)] if rows else ["no runs yet"],
    )
    return None


def _runs_table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    shorts = {"run": short_ids([str(row[0]) for row in rows]), "started": _starts([row[4] for row in rows])}
    return Table(headers, rows, spares=SPARED, folds=FOLDED, defaults=USUAL, shorts=shorts)


def _starts(started: Sequence[datetime]) -> list[str]:
    """When runs began, in UTC: month, day and minute if all are of one year, else the day."""
    moments = [one.astimezone(UTC) for one in started]
    one_year = len({one.year for one in moments}) == 1
    return [f"{one:%m-%d %H:%MZ}" if one_year else f"{one:%Y-%m-%d}" for one in moments]


@command(app, "show", reveals=True, negative=True, ledger=True)
def show(
    invocation: Invocation,
    run_id: Annotated[
        str | None,
        typer.Argument(metavar="RUN|SYNC|-N", help=WORDS, show_default=False, autocompletion=completing.runs),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the rows as they were before it: .parquet, .csv or .json."),
    ] = None,
) -> None:
    """Show one run in full, by default the last."""
    found = named_run(invocation.session.ledger(), run_id)
    document = run_document(invocation, found)
    if images is not None:
        from retl.run import snapshots

        document["images"] = snapshots.write(invocation.session.ledger(), found, images)
    invocation.show(document, lambda: _run_pieces(document))


@command(app, "status", ledger=True)
def status(
    invocation: Invocation,
    choice: Choice,
    fail_stale: Annotated[
        bool, typer.Option("--fail-stale", help="Exit 1 if a sync is stale, or its file wrong.")
    ] = False,
) -> int:
    """Show per sync: last success, age, delay behind the mart, open rejects, what to do next."""
    alerts = fail_stale and _alerts_stale(invocation)
    ledger = invocation.session.ledger(create=alerts)
    chosen = {one.name for one in invocation.session.choose(choice, paused=True)}
    if not chosen and not choice.bare:
        return invocation.show_nothing(choice)
    found = [one for one in sync_states(invocation, ledger) if one["sync"] in chosen]
    if alerts:
        from retl.app import observers

        observers.alert_ages(invocation.project, invocation.environment, ledger, chosen)
    unread = sorted(invocation.project.unread)  # nobody knows whether they are stale, and none of them runs
    code = int(fail_stale and (bool(unread) or any(one["stale"] for one in found)))
    warnings = [f"{name}: its file is wrong; it is not listed here" for name in unread]
    warnings += _vanished(invocation, ledger) if choice.bare else []
    warnings += _untouched(found)
    headers = ("sync", "status", "last success", "age", "behind", "open rejects", "in doubt", "stale", "next")
    rows = [
        (
            one["sync"],
            one["status"],
            one["last_success"],
            _age(one["age_seconds"], "never"),
            _age(one["lag_seconds"], "?"),
            one["open_rejects"],
            one["in_doubt"],
            "STALE" if one["stale"] else "",
            one["next"],
        )
        for one in found
    ]
    table = Table(headers, rows, spares=STATUS_SPARED, folds=("next",))
    notes = [f"{one['sync']}: note: {note}" for one in found for note in one["notes"]]
    invocation.show(
        {"syncs": found, "warnings": warnings, "exit_code": code},
        lambda: (
            [table, *notes, *(f"warning: {one}" for one in warnings)] if rows else ["no syncs", *warnings]
        ),
    )
    return code or int(invocation.output_lost)


def _untouched(states: list[dict[str, Any]]) -> list[str]:
    return [
        f"{one['sync']}: nothing was delivered for {one['untouched_days']} days. Is it still scheduled?"
        for one in states
        if one["untouched_days"] is not None
    ]


def _vanished(invocation: Invocation, ledger: Ledger) -> list[str]:
    from retl.app.freshness import vanished

    return [
        f"{name}: it delivered, and no file defines it now: put syncs/{name}.yml back, or"
        f" `retl state mv {name} NEW` if it was renamed, `retl state reset {name}` if it is to go"
        for name in vanished(invocation.project, ledger)
    ]


def _alerts_stale(invocation: Invocation) -> bool:
    """Whether an alert has `stale`. DefinitionError if it cannot be sent."""
    from retl.app import observers

    alerts = observers.has_age_alerts(invocation.project)
    if alerts:
        invocation.project.require([])
        observers.require_alerts(invocation.project)
    return alerts


def sync_states(invocation: Invocation, ledger: Ledger) -> list[dict[str, Any]]:
    """The JSON form of every sync, by name."""
    from retl.app.freshness import renamed, states

    project = invocation.project
    syncs = [project.syncs[name] for name in sorted(project.syncs)]
    return [
        one.document()
        for one in states(syncs, ledger, Path(project.warehouse.path), former=renamed(project, ledger))
    ]


def run_document(invocation: Invocation, run: RunRow, *, brief: bool = False) -> dict[str, Any]:
    """The JSON form of a run; keys are masked if the sync's key is sensitive."""
    from retl.observe.summary import PHASES
    from retl.run.unended import so_far

    counts = {name: run.counts.get(name, 0) for name in COUNTED} if run.counts else {}
    found: dict[str, Any] = {
        "run_id": run.run_id,
        "sync": run.sync,
        "purpose": run.purpose,
        "status": run.status,
        "environment": run.environment,
        "correlation_id": run.correlation_id,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "seconds": run.seconds,
        "counts": counts,
        "error": run.error,
    }
    if brief:
        return found
    rejects = run.counts.get("rejects", ())
    if rejects and invocation.hides_key(run.sync):
        rejects = [{**one, "key": MASK} for one in rejects]
    return found | {
        "so_far": so_far(invocation.session.ledger(), run),
        **{name: run.counts.get(name, {}) for name in ("deletes", "conflicts", "settled")},
        **{name: run.counts.get(name, 0) for name in ("batches", "retries", "bytes")},
        "phases": {name: run.phases[name] for name in PHASES if name in run.phases},
        "rejects": list(rejects),
        "guards": list(run.guards),
        "object": run.object,
        "approved_by": run.approved_by,
        "vars": dict(run.vars),
        "options": dict(run.options),
        "source_identity": run.source_identity,
        "source_version": run.source_version,
        "fingerprint": run.fingerprint,
        "epoch": run.epoch,
        "heartbeat_at": run.heartbeat_at,
        "host": run.host,
        "pid": run.pid,
        "user": run.user,
        "version": run.version,
        **({"foreign_deleted": run.counts["foreign_deleted"]} if "foreign_deleted" in run.counts else {}),
        **_reconciled(invocation, run),
        **({"assert": run.counts["assert"]} if "assert" in run.counts else {}),
        **_followed(invocation, run),
    }


def _followed(invocation: Invocation, run: RunRow) -> dict[str, Any]:
    """The requests that follow a run."""
    rows = invocation.session.ledger().requests_of(run.run_id)
    parts = ("request", "state", "doubts", "attempts", "tried_by", "tried_at", "http_status", "error")
    return {"then": [{part: getattr(row, part) for part in parts} for row in rows]} if rows else {}


def _reconciled(invocation: Invocation, run: RunRow) -> dict[str, Any]:
    from retl.cli.reconciling import reconciled

    found = run.counts.get("reconcile")
    if not found:
        return {}
    drifted = run.status.startswith("SUCCESS") and run.drift > 0
    return {"reconcile": reconciled(invocation, run.sync, found), "drifted": drifted}


_ENDED = "and exit code 1, because the target drifted"  # a run that only looked did what it was to do
_MARKS = {"through": "", "less": "- ", "of which": "  "}


def _run_pieces(run: Mapping[str, Any]) -> list[Piece]:
    from retl.app.report.funnel import funnel

    facts = {**run, "status": f"{run['status']}, {_ENDED}"} if run.get("drifted") else run
    pieces: list[Piece] = [
        Table(("run", run["run_id"]), [(n.replace("_", " "), output.cell(facts[n])) for n in FACTS if run[n]])
    ]
    if run["counts"]:
        steps = [(f"{_MARKS[o.kind]}{o.name}", o.rows, f"{o.share:.1%}") for o in funnel(run["counts"])]
        pieces.append(Table(("rows", "count", "of read"), steps, keeps=("count",)))
    if run["so_far"]:
        when = "so far" if run["status"] == "RUNNING" else "until it was killed"
        known = [(name.replace("_", " "), count) for name, count in run["so_far"].items()]
        pieces.append(Table((when, "count"), known))
    if any(run["deletes"].values()):
        deletes = {**run["deletes"], "deleted": run["counts"].get("deleted", 0)}
        pieces.append(Table(("deletes", "count"), [(n.replace("_", " "), c) for n, c in deletes.items()]))
    if foreign := run.get("foreign_deleted"):
        pieces.append(f"deleted rows that retl had not delivered: {foreign}")
    if any(run["conflicts"].values()):
        pieces.append(Table(("edited by others", "count"), list(run["conflicts"].items())))
    if run["settled"]:
        settled = [(name.replace("_", " "), count) for name, count in run["settled"].items()]
        pieces.append(Table(("sent before without an answer", "count"), settled))
    if "assert" in run:
        from retl.cli.running import assert_pieces

        pieces += assert_pieces(run["assert"])
    if "then" in run:
        from retl.cli.running import then_pieces

        pieces += then_pieces(run["then"])
    if "reconcile" in run:
        from retl.cli.reconciling import found_pieces

        pieces += found_pieces(run["reconcile"], run["counts"].get("read", 0))
    if run["phases"]:
        total = sum(run["phases"].values()) or 1.0
        rows = [(name, f"{s:.3f}", f"{s / total:.0%}") for name, s in run["phases"].items()]
        pieces.append(Table(("phase", "seconds", "share"), rows))
    if run["rejects"]:
        pieces += _reject_pieces(run["rejects"])
    errors: Sequence[Mapping[str, Any]] = (*run["guards"], *([run["error"]] if run["error"] else []))
    return [*pieces, *dict.fromkeys(problems.sentence(problem) for problem in errors)]


def _reject_pieces(rejects: Sequence[Mapping[str, Any]]) -> list[Piece]:
    """The examples of rejects that a run kept; of many the first, after the number of each reason."""
    parts = ("key", "stage", "code", "reason")
    rows = [tuple(one[part] for part in parts) for one in rejects]
    if len(rows) <= REJECTS_SHOWN:
        return [Table(parts, rows, "rejects:")]
    alike = [(*why, number) for why, number in Counter(row[1:] for row in rows).most_common()]
    return [
        Table((*parts[1:], "rows"), alike, "rejects by reason:"),
        Table(parts, rows[:REJECTS_SHOWN], f"the first {REJECTS_SHOWN} of {len(rows)} (all: --output json):"),
    ]


def _age(seconds: float | None, unknown: str) -> str:
    from retl.app.freshness import length

    return unknown if seconds is None else length(seconds)
