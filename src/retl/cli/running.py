"""`retl sync` and `retl plan`: select syncs, run them in order, print the results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retl.cli import output, problems
from retl.cli.app import app, command
from retl.cli.invocation import Invocation, variables
from retl.cli.output import Piece, Table
from retl.errors import DefinitionError

if TYPE_CHECKING:
    from retl.observe.summary import Summary

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
    from retl.app.session import options

    session = invocation.session
    chosen = session.select(names or (), tags or (), exclude or (), all=everything)
    asked = options(
        dry_run=dry_run,
        full=full,
        limit=limit,
        keys=keys or (),
        where=where,
        allow_deletes=allow_deletes,
        accept=accept or (),
        variables=variables(var),
    )
    with session.stop.listening(), _progress(invocation):
        summaries = session.run_chosen(chosen, asked, jobs=jobs, fail_fast=fail_fast)
    if not dry_run:
        session.write_metrics(metrics_file, summaries)
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
    from retl.app.session import options, paused
    from retl.run import explain, plan_file
    from retl.run.plan import Plan

    session = invocation.session
    chosen = session.definition(names[0])
    if not chosen.enabled:
        return report(invocation, [paused(chosen.name, True)])
    asked = options(
        dry_run=True,
        full=full,
        limit=limit,
        keys=keys or (),
        where=where,
        allow_deletes=allow_deletes,
        accept=accept or (),
        variables=variables(var),
    )
    session.require([chosen], asked)

    def keep(plan: Plan) -> None:
        if out is not None:
            plan_file.write(plan_file.make(job, plan), out)

    with session.stop.listening(), _progress(invocation):
        job = session.job(chosen, session.ledger(), asked)
        summary, samples = explain.preview(job, reveal=invocation.reveal, keep=keep)
    return report(invocation, [summary], samples)


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
    invocation.show(document, lambda: summary_pieces(documents, samples))
    tell_errors(documents)
    return code


def tell_errors(documents: Sequence[Mapping[str, Any]]) -> None:
    """Say on stderr why syncs failed."""
    for one in documents:
        errors = (*one["guards"], *([one["error"]] if one["error"] else []))
        for sentence in dict.fromkeys(problems.sentence(problem) for problem in errors):
            output.say(f"error: {one['sync']}: {sentence}")


def masked(invocation: Invocation, document: dict[str, Any]) -> dict[str, Any]:
    """The document, with keys masked if the sync's key is sensitive."""
    if document["rejects"] and invocation.hides_key(document["sync"]):
        document["rejects"] = [{**one, "key": output.MASK} for one in document["rejects"]]
    return document


def summary_pieces(
    documents: Sequence[Mapping[str, Any]], samples: Sequence[Mapping[str, Any]] | None = None
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
        if any("verdict" in one for one in samples):
            headers += ("verdict",)
        rows = [row[: len(headers)] for row in _sampled(samples)]
        pieces.append(Table(headers, rows, "the first changes:"))
    return pieces


def _details(one: Mapping[str, Any], name: str) -> list[Piece]:
    pieces: list[Piece] = []
    if waiting := one["not_attempted"] + one["deletes"]["not_attempted"]:
        pieces.append(f"{name}{waiting} rows were not attempted")
    edits = {**one["conflicts"], "deletes kept": one["deletes"]["kept"]}
    if any(edits.values()):
        pieces.append(f"{name}edited by others: {', '.join(f'{n} {kind}' for kind, n in edits.items() if n)}")
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
            yield (*first, "", "", "", sample.get("verdict"))
        for field, (old, new) in sample["fields"].items():
            yield (*first, field, old, new, sample.get("verdicts", {}).get(field, sample.get("verdict")))
            first = ("", "")
