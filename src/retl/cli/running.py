"""`retl sync` and `retl plan`: select syncs, run them in order, print the results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retl.cli import alerting, output, problems
from retl.cli.app import app, command
from retl.cli.invocation import Invocation
from retl.cli.observing import observed, write_metrics
from retl.cli.output import Piece, Table
from retl.errors import DefinitionError

if TYPE_CHECKING:
    from retl.ledger import Ledger
    from retl.observe.summary import Summary
    from retl.project.definitions import Sync
    from retl.run.job import Job, Options

GUARDS = (
    "REJECT_RATE",
    "DELETE_RATE",
    "EMPTY_SOURCE",
    "ROW_DROP",
    "IDENTITY_CHANGED",
    "SOURCE_DRIFT",
    "TARGET_DRIFT",
    "CHECK_FAILED",
    "TARGET_LOST",
    "STATE_LOST",
    "ORPHANED_STATE",
    "DBT_FAILED",
    "DBT_TESTS",
    "DBT_STALE",
    "DBT_UNKNOWN",
)
NUMBERS = (
    "read",
    "unchanged",
    "inserted",
    "updated",
    "refreshed",
    "deleted",
    "rejected",
    "skipped",
    "in_doubt",
)
REJECTS_SHOWN = 20

Names = Annotated[list[str] | None, typer.Option("--sync", metavar="NAME", help="A sync, or all.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", metavar="TAG", help="Every sync with this tag.")]
Excluded = Annotated[list[str] | None, typer.Option("--exclude", metavar="NAME", help="Leave out this sync.")]
Full = Annotated[bool, typer.Option("--full", help="Send every row, changed or not; delete nothing.")]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N changes; no deletes.")]
Keys = Annotated[
    list[str] | None, typer.Option("--key", metavar="KEY", help="Only this row, changed or not.")
]
Where = Annotated[str | None, typer.Option(metavar="SQL", help="Only these rows of the mart.")]
Allowed = Annotated[
    int | None,
    typer.Option("--allow-deletes", min=0, metavar="N", help="Allow exactly this planned number of deletes."),
]
Accepted = Annotated[list[str] | None, typer.Option("--accept", metavar="CODE", help="Pass this guard once.")]
Variables = Annotated[list[str] | None, typer.Option("--var", metavar="NAME=VALUE", help="A SQL parameter.")]
MetricsFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Metrics for Prometheus [RETL_METRICS_FILE].")
]


@command(app, "sync", reveals=True)
def sync(
    invocation: Invocation,
    names: Names = None,
    tags: Tags = None,
    exclude: Excluded = None,
    everything: Annotated[bool, typer.Option("--all", help="Every enabled sync (the default).")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what a run would do; write nothing.")
    ] = False,
    full: Full = False,
    limit: Limit = None,
    keys: Keys = None,
    where: Where = None,
    jobs: Annotated[
        int, typer.Option(min=1, max=64, metavar="N", help="Number of syncs at the same time.")
    ] = 1,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="After a failure start no more syncs.")
    ] = False,
    allow_deletes: Allowed = None,
    accept: Accepted = None,
    var: Variables = None,
    metrics_file: MetricsFile = None,
) -> int:
    """Run syncs: plan, guard, deliver, record."""
    project = invocation.project
    chosen = project.select(names or (), tags or (), exclude or (), all=everything)
    if not (chosen or names or tags or exclude):
        chosen = list(project.syncs.values())  # all of them are paused, which is no error
    if not chosen:
        raise DefinitionError(
            "NOTHING_SELECTED", "no sync matches the selection", hint="`retl list` shows the syncs"
        )
    options = _options(
        invocation.variables(var or []),
        dry_run=dry_run,
        full=full,
        limit=limit,
        keys=keys,
        where=where,
        allow_deletes=allow_deletes,
        accept=accept,
    )
    running = [one for one in chosen if one.enabled]
    _check_full(running, full)
    invocation.require(running)
    alerting.require(invocation)
    from retl.cli.schedule import run_all
    from retl.observe.signals import Stop

    ledger: Ledger | None = None
    with Stop().listening() as stop:
        work: dict[str, Job] = {}
        if running:
            ledger = invocation.ledger(create=not dry_run)
            work = {one.name: invocation.job(one, ledger, options, stop) for one in running}
        with observed(invocation, dry_run=dry_run), _progress(invocation):
            done = run_all(work, lambda job: _run(invocation, job), jobs=jobs, fail_fast=fail_fast)
    summaries = [done[one.name] if one.enabled else _paused(one.name, dry_run) for one in chosen]
    if not dry_run:
        write_metrics(invocation, metrics_file, ledger, summaries)
    return report(invocation, summaries)


@command(app, "plan", reveals=True)
def plan(
    invocation: Invocation,
    names: Names = None,
    full: Full = False,
    limit: Limit = None,
    keys: Keys = None,
    where: Where = None,
    allow_deletes: Allowed = None,
    accept: Accepted = None,
    var: Variables = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Save the plan for `retl apply`.")] = None,
) -> int:
    """Show what a sync would do now, with samples."""
    if not names or len(names) != 1:
        raise DefinitionError("USAGE", "`retl plan` needs one sync", hint="retl plan --sync NAME")
    chosen = invocation.sync(names[0])
    if not chosen.enabled:
        return report(invocation, [_paused(chosen.name, True)])
    _check_full([chosen], full)
    invocation.require([chosen])
    options = _options(
        invocation.variables(var or []),
        dry_run=True,
        full=full,
        limit=limit,
        keys=keys,
        where=where,
        allow_deletes=allow_deletes,
        accept=accept,
    )
    from retl.observe.signals import Stop
    from retl.run import explain, plan_file
    from retl.run.plan import Plan

    def keep(plan: Plan) -> None:
        if out is not None:
            plan_file.write(plan_file.make(job, plan), out)

    ledger = invocation.ledger()
    with Stop().listening() as stop:
        job = invocation.job(chosen, ledger, options, stop)
        with _progress(invocation):
            summary, samples = explain.preview(job, reveal=invocation.reveal, keep=keep)
    return report(invocation, [summary], samples)


def _options(
    variables: Mapping[str, Any],
    *,
    dry_run: bool,
    full: bool,
    limit: int | None,
    keys: Sequence[str] | None,
    where: str | None,
    allow_deletes: int | None,
    accept: Sequence[str] | None,
) -> Options:
    from retl.engine.changes import Selection
    from retl.run.job import Options

    for code in accept or ():
        if code not in GUARDS:
            hint = f"guards: {', '.join(GUARDS)}"
            raise DefinitionError("GUARD_UNKNOWN", f"there is no guard {code!r}", hint=hint)
    return Options(
        dry_run=dry_run,
        selection=Selection(full=full, limit=limit, keys=tuple(keys or ()), where=where),
        allow_deletes=allow_deletes,
        accept=tuple(accept or ()),
        variables=variables,
    )


def _check_full(syncs: Iterable[Sync], full: bool) -> None:
    for one in syncs:
        if full and one.write == "append":
            raise DefinitionError(
                "FULL_APPEND",
                "--full is not possible with `write: append`: it would append every row again",
                where=f"sync {one.name}",
            )


def _run(invocation: Invocation, job: Job) -> Summary:
    from retl.observe.summary import Summary
    from retl.run import pipeline

    try:
        if job.options.dry_run:
            return pipeline.dry_run(job)
        summary = pipeline.sync(job)
    except Exception as problem:  # noqa: BLE001 - the failure of one sync does not stop the others
        if invocation.debug:
            problems.report(problem, debug=True)
        error = {name: text for name, text in problems.described(problem).items() if name != "where"}
        code = problems.exit_code(problem)
        summary = Summary(job.sync.name, None, "FAILED", code, dry_run=job.options.dry_run, error=error)
    if not job.options.dry_run:
        alerting.report_end(invocation, job.sync, job.ledger, summary)
    return summary


def _paused(name: str, dry_run: bool) -> Summary:
    from retl.observe.summary import Summary

    return Summary(name, None, "PAUSED", 0, dry_run=dry_run)


def _progress(invocation: Invocation) -> AbstractContextManager[None]:
    """A progress line, if stderr is a terminal."""
    if not invocation.watched:
        return nullcontext()
    from retl.observe.progress import shown

    return shown()


def report(
    invocation: Invocation, summaries: Sequence[Summary], samples: Sequence[Mapping[str, Any]] | None = None
) -> int:
    """Print the results of the syncs and return the overall exit code."""
    from retl.observe.summary import exit_code

    code = exit_code([summary.exit_code for summary in summaries])
    documents = [masked(invocation, summary.document()) for summary in summaries]
    document: dict[str, Any] = {"syncs": documents, "exit_code": code}
    if samples is not None:
        documents[0]["samples"] = list(samples)
    invocation.show(document, lambda: _pieces(documents, samples))
    for one in documents:
        errors = (*one["guards"], *([one["error"]] if one["error"] else []))
        for sentence in dict.fromkeys(problems.sentence(problem) for problem in errors):
            output.say(f"error: {one['sync']}: {sentence}")
    return code


def masked(invocation: Invocation, document: dict[str, Any]) -> dict[str, Any]:
    """The document, with keys masked if the sync's key is sensitive."""
    if document["rejects"] and invocation.hides_key(document["sync"]):
        document["rejects"] = [{**one, "key": output.MASK} for one in document["rejects"]]
    return document


def _pieces(
    documents: Sequence[Mapping[str, Any]], samples: Sequence[Mapping[str, Any]] | None
) -> list[Piece]:
    dry = any(one["dry_run"] for one in documents)
    headers = ("sync", "status", *(name.replace("_", " ") for name in NUMBERS), "seconds")
    rows = [(one["sync"], one["status"], *(one[n] for n in NUMBERS), one["seconds"]) for one in documents]
    title = "dry run: nothing was written; a run now would give" if dry else None
    pieces: list[Piece] = [Table(headers, rows, title, flips=True)]
    several = len(documents) > 1
    for one in documents:
        name = f"{one['sync']}: " if several else ""
        pieces += _details(one, name)
    if samples:
        headers = ("op", "key", "field", "now", "then")
        pieces.append(Table(headers, list(_sampled(samples)), "the first changes:"))
    return pieces


def _details(one: Mapping[str, Any], name: str) -> list[Piece]:
    pieces: list[Piece] = []
    if waiting := one["not_attempted"] + one["deletes"]["not_attempted"]:
        pieces.append(f"{name}{waiting} rows were not attempted")
    if one["rejects"]:
        total = one["rejected"] + one["deletes"]["rejected"]
        title = f"{name}rejects ({len(one['rejects'])} of {max(total, len(one['rejects']))}):"
        parts = ("key", "stage", "code", "reason")
        pieces.append(Table(parts, [tuple(row[part] for part in parts) for row in one["rejects"]], title))
    pieces += [f"{name}note: {note}" for note in one.get("notes", ())]
    return pieces


def _sampled(samples: Sequence[Mapping[str, Any]]) -> Iterable[tuple[Any, ...]]:
    for sample in samples:
        first = (sample["op"], sample["key"])
        if not sample["fields"]:
            yield (*first, "", "", "")
        for field, (old, new) in sample["fields"].items():
            yield (*first, field, old, new)
            first = ("", "")
