"""`retl sync` and `retl plan`: select syncs, run them in order, print the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from msgspec.structs import replace

from retl.app.choice import Choice
from retl.cli import completing, output, problems
from retl.cli.app import DETAILED, app, command
from retl.cli.invocation import Invocation
from retl.cli.output import Piece, Table
from retl.errors import DefinitionError, Place
from retl.observe.mask import MASK

if TYPE_CHECKING:
    from retl.app.session import Session
    from retl.observe.summary import Summary
    from retl.project.definitions import Sync
    from retl.run.job import Options
    from retl.run.review import Review

KEYS_SHOWN = 3  # of each reason for rejects
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
SLOW = 5.0  # seconds of delivery; with retries, they are why
NOTHING_RAN = (
    "nothing ran, also none of the other syncs: only all files together show whether two syncs write the same"
    " rows or fields. To run the others now, move a wrong file out of syncs/."
)

Full = Annotated[bool, typer.Option("--full", help="Send every row, changed or not; delete nothing.")]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N changes; no deletes.")]
Keys = Annotated[
    list[str] | None,
    typer.Option(
        "--key",
        metavar="KEY",
        help="""Only this row, changed or not. A key of several columns is a JSON array: '["eu",7]'.""",
    ),
]
Where = Annotated[str | None, typer.Option(metavar="SQL", help="Only these rows of the mart.")]
Allowed = Annotated[
    int | None,
    typer.Option("--allow-deletes", min=0, metavar="N", help="Allow exactly this planned number of deletes."),
]
Accepted = Annotated[
    list[str] | None,
    typer.Option("--accept", metavar="CODE", help="Pass this guard once.", autocompletion=completing.guards),
]
Variables = Annotated[list[str] | None, typer.Option("--var", metavar="NAME=VALUE", help="A SQL parameter.")]
PlanFormats = Annotated[
    Literal["table", "json", "markdown"] | None, typer.Option(help="table (default), json or markdown.")
]
Engine = Annotated[
    Literal["local", "spark"] | None, typer.Option(help="Where shards run: local or spark (see retl.yml).")
]
Shard = Annotated[
    str | None,
    typer.Option(
        metavar="K/N", help="Be command K of N that are one run together, on as many machines: 3/16."
    ),
]
MetricsFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Metrics for Prometheus [RETL_METRICS_FILE].")
]


@command(app, "sync", reveals=True)
def sync(
    invocation: Invocation,
    choice: Choice,
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
    engine: Engine = None,
    shard: Shard = None,
    metrics_file: MetricsFile = None,
) -> int:
    """Run syncs: plan, guard, deliver, record."""
    from retl.app.session import options

    session = _opened(invocation)
    choice = replace(choice, all=everything)
    chosen = session.to_run(choice)
    _require_one(chosen, allow_deletes, keys)
    asked = options(
        dry_run=dry_run,
        full=full,
        limit=limit,
        keys=keys or (),
        where=where,
        allow_deletes=allow_deletes,
        accept=accept or (),
        variables=invocation.variables(var, where),
        engine=engine,
        shard=shard,
    )
    with session.stop.listening(), progress(invocation):
        summaries = session.run_chosen(chosen, asked, jobs=jobs, fail_fast=fail_fast)
    if not dry_run:
        session.write_metrics(metrics_file, summaries)
    return report(invocation, summaries) if chosen else invocation.show_nothing(choice)


@command(app, "plan", reveals=True, formats=PlanFormats)
def plan(
    invocation: Invocation,
    choice: Choice,
    full: Full = False,
    limit: Limit = None,
    keys: Keys = None,
    where: Where = None,
    allow_deletes: Allowed = None,
    accept: Accepted = None,
    var: Variables = None,
    engine: Engine = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Save the plan for `retl apply`.")] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no server and need no credentials; say what is not known.")
    ] = False,
    detailed: Annotated[
        bool,
        typer.Option(DETAILED, help="Exit 0 without changes, 2 with changes, 1 on an error, 3 if refused."),
    ] = False,
) -> int:
    """Show what syncs would do now, with samples."""
    from retl.app.session import options
    from retl.observe.summary import exit_code

    session = _opened(invocation)
    chosen = session.to_run(choice)
    _require_file(chosen, out, offline=offline)
    _require_one(chosen, allow_deletes, keys)
    asked = options(
        dry_run=True,
        offline=offline,
        full=full,
        limit=limit,
        keys=keys or (),
        where=where,
        allow_deletes=allow_deletes,
        accept=accept or (),
        variables=invocation.variables(var, where),
        engine=engine,
    )
    session.require([one for one in chosen if one.enabled], asked)
    with session.stop.listening(), progress(invocation):
        reviews = [_planned(invocation, one, asked, out) for one in chosen]
    if not chosen:
        return invocation.show_nothing(choice)
    code = exit_code([one.summary.exit_code for one in reviews])
    if detailed:
        code = _detailed(code, [one.summary for one in reviews])
    _show_reviews(invocation, reviews, code)
    return code


def _opened(invocation: Invocation) -> Session:
    """The project. If a sync's file is wrong, its error gets a note on why the others do not run either."""
    from retl.project.files import sync_paths
    from retl.project.settings import project_folder
    from retl.project.validation import each

    try:
        return invocation.session
    except DefinitionError as problem:
        files = {one.where.file for one in each(problem) if isinstance(one.where, Place)}
        of_syncs = any(one.startswith("syncs/") for one in files)
        if of_syncs and len([*sync_paths(project_folder(invocation.folder))]) > 1:
            problem.add_note(NOTHING_RAN)
        raise


def _require_file(chosen: Sequence[Sync], out: Path | None, *, offline: bool) -> None:
    """DefinitionError USAGE if what is planned is no plan that a file could have."""
    if out is not None and offline:
        raise DefinitionError("USAGE", "--out needs what the target says: leave out --offline")
    if out is not None and len(chosen) != 1:
        hint = "name it: `retl plan SYNC --out FILE`"
        raise DefinitionError("USAGE", f"--out takes the plan of one sync, not of {len(chosen)}", hint=hint)


def _require_one(chosen: Sequence[Sync], allow_deletes: int | None, keys: Sequence[str] | None) -> None:
    """DefinitionError USAGE if one number of deletes, or one key, is to be that of several syncs: 5 is a
    customer in one and an order in another."""
    if keys and len(chosen) > 1:
        raise DefinitionError(
            "USAGE",
            f"--key takes the keys of one sync, and {len(chosen)} are chosen",
            hint="name it: `retl sync SYNC --key KEY`",
        )
    if allow_deletes is not None and len(chosen) > 1:
        raise DefinitionError(
            "USAGE",
            f"--allow-deletes takes the number of one sync, and {len(chosen)} are chosen",
            hint=f"name it: `retl sync SYNC --allow-deletes {allow_deletes}`",
        )


def _planned(invocation: Invocation, sync: Sync, asked: Options, out: Path | None) -> Review:
    """What a sync would do, with samples of it."""
    from retl.app.session import paused
    from retl.run import plan_file, review
    from retl.run.plan import Plan

    if not sync.enabled:
        return review.Review(paused(sync.name, True))
    job = invocation.session.job(sync, invocation.session.ledger(), asked)

    def keep(plan: Plan) -> None:
        if out is not None:
            plan_file.write(plan_file.make(job, plan), out)

    full = invocation.output != "table"
    found = review.review(job, reveal=invocation.reveal, full=full, keep=keep)
    return replace(found, summary=invocation.session.placed(sync, found.summary))


def _detailed(code: int, summaries: Sequence[Summary]) -> int:
    """The exit code of --detailed-exitcode: an error is never 2, which says that there are changes."""
    if code == 0:
        return 2 if any(one.changes for one in summaries) else 0
    return 1 if code == DefinitionError.exit_code else code


def _show_reviews(invocation: Invocation, reviews: Sequence[Review], code: int) -> None:
    """Print plans: as a table with samples, or in full as JSON or Markdown."""
    from retl.cli.markdown import plan_text

    documents = [
        masked(invocation, one.summary.document()) | {"samples": one.samples, **one.parts()}
        for one in reviews
    ]
    invocation.show(
        {"syncs": documents, "exit_code": code},
        lambda: summary_pieces(documents),
        lambda: "\n".join(map(plan_text, reviews, documents)),
    )
    tell_errors(documents)


def progress(invocation: Invocation) -> AbstractContextManager[None]:
    """A progress line, if stderr is a terminal."""
    if not invocation.watched:
        return nullcontext()
    from retl.observe.progress import shown

    return shown(invocation.begun)


def report(invocation: Invocation, summaries: Sequence[Summary]) -> int:
    """Print the results of the syncs and return the overall exit code."""
    from retl.observe.summary import exit_code

    code = exit_code([summary.exit_code for summary in summaries])
    documents = [masked(invocation, summary.document()) for summary in summaries]
    document: dict[str, Any] = {"syncs": documents, "exit_code": code}
    invocation.show(document, lambda: summary_pieces(documents))
    tell_errors(documents)
    return code


def tell_errors(documents: Sequence[Mapping[str, Any]]) -> None:
    """Say on stderr why syncs failed."""
    for one in documents:
        errors = (*one["guards"], *([one["error"]] if one["error"] else []))
        for error in {problems.sentence(problem): problem for problem in errors}.values():
            problems.tell(error, one["sync"])


def masked(invocation: Invocation, document: dict[str, Any]) -> dict[str, Any]:
    """The document, with keys masked if the sync's key is sensitive."""
    if document["rejects"] and invocation.hides_key(document["sync"]):
        document["rejects"] = [{**one, "key": MASK} for one in document["rejects"]]
    return document


def summary_pieces(documents: Sequence[Mapping[str, Any]]) -> list[Piece]:
    dry = any(one["dry_run"] for one in documents)
    headers = ("sync", "status", *(name.replace("_", " ") for name in NUMBERS), "seconds")
    rows = [(one["sync"], one["status"], *(one[n] for n in NUMBERS), one["seconds"]) for one in documents]
    title = "dry run: nothing was written; a run now would give" if dry else None
    pieces: list[Piece] = [Table(headers, rows, title, keeps=("read",))]
    several = len(documents) > 1
    for one in documents:
        name = f"{one['sync']}: " if several else ""
        pieces += _details(one, name)
        if samples := one.get("samples"):
            headers = ("op", "key", "field", "before", "after")
            if any("verdict" in sample for sample in samples):
                headers += ("verdict",)
            rows = [row[: len(headers)] for row in sampled(samples)]
            pieces.append(Table(headers, rows, f"{name}the first changes:"))
    return pieces


def _details(one: Mapping[str, Any], name: str) -> list[Piece]:
    from retl.observe.summary import counted, duration

    pieces: list[Piece] = []
    for waiting, noun in ((one["not_attempted"], "row"), (one["deletes"]["not_attempted"], "delete")):
        if waiting and one["status"] != "REFUSED":  # there nothing was attempted, as the refusal says
            pieces.append(f"{name}{counted(waiting, noun, 'was')} not attempted")
    if one["retries"] and (seconds := one["phases"]["deliver"]) >= SLOW:
        pieces.append(f"{name}{counted(one['retries'], 'retry')}; delivery took {duration(seconds)}")
    kept = one["deletes"]["kept"]
    edits = {**one["conflicts"], f"delete{'s' * (kept != 1)} kept": kept}
    if any(edits.values()):
        pieces.append(f"{name}edited by others: {', '.join(f'{n} {kind}' for kind, n in edits.items() if n)}")
    pieces += _reject_pieces(one, name)
    pieces += assert_pieces(one.get("assert", ()), name)
    pieces += then_pieces(one.get("then", ()), name)
    if "estimate" in one:
        pieces.append(f"{name}estimated: {one['estimate']['text']}")
    pieces += [f"{name}note: {note}" for note in one.get("notes", ())]
    return pieces


def _reject_pieces(one: Mapping[str, Any], name: str) -> list[Piece]:
    """The rejects that a summary has: a line per reject, or per reason if several have the same one."""
    from retl.observe.summary import counted

    rejects = one["rejects"]
    if not rejects:
        return []
    rows = max(one["rejected"] + one["deletes"]["rejected"], len(rejects))
    some = f"{len(rejects)} of " if len(rejects) < rows else ""
    title = f"{name}rejects ({some}{counted(rows, 'row')}):"
    why = ("stage", "code", "reason")
    reasons = Counter(tuple(row[part] for part in why) for row in rejects)
    if len(reasons) < len(rejects):
        counts = reasons.most_common()
        lines = [(number, *reason, _first_keys(rejects, why, reason)) for reason, number in counts]
        table = Table(("rows", *why, "first keys"), lines, title)
    else:
        table = Table(("key", *why), [(row["key"], *(row[part] for part in why)) for row in rejects], title)
    is_more = len(reasons) < rows and one["status"] == "SUCCESS_WITH_REJECTS" and not one["dry_run"]
    return [table, *([f"`retl rejects {one['sync']}` lists them"] if is_more else [])]


def _first_keys(rejects: Sequence[Mapping[str, Any]], why: Sequence[str], reason: tuple[Any, ...]) -> str:
    alike = (row["key"] for row in rejects if tuple(row[part] for part in why) == reason)
    keys = list(dict.fromkeys(key for key in alike if key is not None))
    return ", ".join([*keys[:KEYS_SHOWN], *(["…"] if len(keys) > KEYS_SHOWN else [])])


def assert_pieces(found: Sequence[Mapping[str, Any]], name: str = "") -> list[Piece]:
    rows = [(one["name"], "holds" if one["passed"] else "FAILED", one["found"]) for one in found]
    return [Table(("assertion", "result", "found"), rows, f"{name}at the target:")] if rows else []


def then_pieces(found: Sequence[Mapping[str, Any]], name: str = "") -> list[Piece]:
    rows = [(one["request"], one["state"], one["http_status"]) for one in found]
    return [Table(("request", "state", "HTTP"), rows, f"{name}requests that follow:")] if rows else []


# What a run would do to a row, in the words for its fields. In JSON it has the word of an outcome.
_PLANNED = {"written": "write", "merged": "write", "kept": "keep", "skipped": "skip", "rejected": "reject"}


def sampled(samples: Sequence[Mapping[str, Any]]) -> Iterable[tuple[Any, ...]]:
    """A line per field: op and key on the first of a row, field, before, after, verdict."""
    for sample in samples:
        op = sample["op"]
        first = (op, sample["key"])
        whole = _PLANNED.get(sample.get("verdict", ""), sample.get("verdict"))
        if not sample["fields"]:
            yield (*first, "", "", "", whole)
        for field, pair in sample["fields"].items():
            old, new = map(output.datum, pair)
            old, new = ("" if op == "insert" else old), ("" if op == "delete" and pair[1] is None else new)
            yield (*first, field, old, new, sample.get("verdicts", {}).get(field, whole))
            first = ("", "")
