"""What was: runs, show, status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retl.cli import output, problems
from retl.cli.app import app, command
from retl.cli.invocation import Invocation
from retl.cli.output import Piece, Table
from retl.errors import DefinitionError

if TYPE_CHECKING:
    from retl.definitions import Sync
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
FACTS = (
    "sync",
    "status",
    "object",
    "started_at",
    "finished_at",
    "seconds",
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


@command(app, "runs")
def runs(
    invocation: Invocation,
    sync: Annotated[str | None, typer.Option(metavar="NAME", help="Only runs of this sync.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
) -> None:
    """The history, newest first."""
    if sync is not None and sync not in invocation.project.syncs:
        known = invocation.ledger().runs(sync, 1)  # the history knows syncs that are no longer defined
        if not known:
            invocation.sync(sync)
    found = invocation.ledger().runs(sync, limit)
    shown = ("read", "inserted", "updated", "refreshed", "deleted", "rejected")
    headers = ("run", "sync", "status", "started", "seconds", *shown)
    rows = [
        (one.run_id, one.sync, one.status, one.started_at, _seconds(one), *(one.counts.get(n) for n in shown))
        for one in found
    ]
    invocation.show(
        {"runs": [run_document(invocation, one, brief=True) for one in found]},
        lambda: [Table(headers, rows)] if rows else ["no runs yet"],
    )


@command(app, "show", reveals=True)
def show(
    invocation: Invocation,
    run_id: Annotated[str | None, typer.Argument(metavar="[RUN]", show_default=False)] = None,
) -> None:
    """One run in full, by default the last."""
    found = invocation.ledger().run(run_id)
    if found is None:
        what = f"there is no run {run_id!r}" if run_id else "there are no runs yet"
        raise DefinitionError("RUN_UNKNOWN", what, hint="`retl runs` lists them")
    document = run_document(invocation, found)
    invocation.show(document, lambda: _run_pieces(document))


@command(app, "status")
def status(
    invocation: Invocation,
    fail_stale: Annotated[bool, typer.Option("--fail-stale", help="Exit 1 if a sync is stale.")] = False,
) -> int:
    """Per sync: last success, age, open rejects, stale?"""
    ledger = invocation.ledger()
    now, rejects = ledger.now(), ledger.open_rejects()
    syncs = [
        _state(invocation.project.syncs[name], ledger, now, rejects.get(name, 0))
        for name in sorted(invocation.project.syncs)
    ]
    code = int(fail_stale and any(one["stale"] for one in syncs))
    headers = ("sync", "status", "last success", "age", "open rejects", "stale")
    rows = [
        (
            one["sync"],
            one["status"],
            one["last_success"],
            _age(one["age_seconds"]),
            one["open_rejects"],
            "STALE" if one["stale"] else "",
        )
        for one in syncs
    ]
    invocation.show(
        {"syncs": syncs, "exit_code": code},
        lambda: [Table(headers, rows)] if rows else ["no syncs"],
    )
    return code or int(invocation.unheard)


def run_document(invocation: Invocation, run: RunRow, *, brief: bool = False) -> dict[str, Any]:
    """A run as JSON has it; keys masked where the sync's key is sensitive."""
    from retl.summary import PHASES

    counts = {name: run.counts.get(name, 0) for name in COUNTED} if run.counts else {}
    found: dict[str, Any] = {
        "run_id": run.run_id,
        "sync": run.sync,
        "status": run.status,
        "environment": run.environment,
        "correlation_id": run.correlation_id,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "seconds": _seconds(run),
        "counts": counts,
        "error": run.error,
    }
    if brief:
        return found
    rejects = run.counts.get("rejects", ())
    if rejects and invocation.hides_key(run.sync):
        rejects = [{**one, "key": output.MASK} for one in rejects]
    return found | {
        "deletes": run.counts.get("deletes", {}),
        "batches": run.counts.get("batches", 0),
        "retries": run.counts.get("retries", 0),
        "bytes": run.counts.get("bytes", 0),
        "phases": {name: run.phases[name] for name in PHASES if name in run.phases},
        "rejects": list(rejects),
        "guards": list(run.guards),
        "object": run.object,
        "vars": dict(run.vars),
        "options": dict(run.options),
        "source_identity": run.source_identity,
        "fingerprint": run.fingerprint,
        "epoch": run.epoch,
        "heartbeat_at": run.heartbeat_at,
        "host": run.host,
        "pid": run.pid,
        "user": run.user,
        "version": run.version,
    }


def _run_pieces(run: Mapping[str, Any]) -> list[Piece]:
    pieces: list[Piece] = [
        Table(("run", run["run_id"]), [(n.replace("_", " "), output.cell(run[n])) for n in FACTS if run[n]])
    ]
    if run["counts"]:
        pieces.append(Table(("rows", "count"), [(n.replace("_", " "), c) for n, c in run["counts"].items()]))
    if any(run["deletes"].values()):
        pieces.append(Table(("deletes", "count"), list(run["deletes"].items())))
    if run["phases"]:
        total = sum(run["phases"].values()) or 1.0
        rows = [(name, f"{s:.3f}", f"{s / total:.0%}") for name, s in run["phases"].items()]
        pieces.append(Table(("phase", "seconds", "share"), rows))
    if run["rejects"]:
        parts = ("key", "stage", "code", "reason")
        pieces.append(Table(parts, [tuple(one[p] for p in parts) for one in run["rejects"]], "rejects:"))
    said: Sequence[Mapping[str, Any]] = (*run["guards"], *([run["error"]] if run["error"] else []))
    return [*pieces, *dict.fromkeys(problems.sentence(problem) for problem in said)]


def _state(sync: Sync, ledger: Ledger, now: datetime, rejects: int) -> dict[str, Any]:
    good, last = ledger.last_success(sync.name), ledger.runs(sync.name, 1)
    ended = good and (good.finished_at or good.started_at)
    age = (now - ended).total_seconds() if ended else None
    stale = sync.enabled and sync.freshness is not None and (age is None or age > sync.freshness)
    return {
        "sync": sync.name,
        "status": "PAUSED" if not sync.enabled else last[0].status if last else "NEVER",
        "enabled": sync.enabled,
        "last_run": last[0].run_id if last else None,
        "last_success": ended,
        "age_seconds": None if age is None else round(age, 1),
        "freshness_seconds": sync.freshness,
        "open_rejects": rejects,
        "stale": stale,
    }


def _seconds(run: RunRow) -> float | None:
    return (run.finished_at - run.started_at).total_seconds() if run.finished_at else None


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"
