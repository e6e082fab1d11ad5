"""Commands about definitions: list, validate, check, schema, destinations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retl.app.choice import Choice
from retl.app.failures import described, each
from retl.cli import problems
from retl.cli.app import app, command
from retl.cli.invocation import Invocation
from retl.cli.output import Piece, Table
from retl.errors import DefinitionError, RetlError

if TYPE_CHECKING:
    from retl.app.loaded import LoadedProject
    from retl.destinations.api import Destination
    from retl.ledger import Ledger
    from retl.project.definitions import Sync


USUAL = {"enabled": True, "write": "upsert", "changes": "hash", "deletes": "keep"}
SPARED = ("changes", "write", "deletes", "after", "tags")  # of `list`, in this order, on a narrow terminal
FOLDED = ("source", "destination")


@command(app, "list")
def list_syncs(invocation: Invocation, choice: Choice) -> int | None:
    """List the syncs of the project."""
    from retl.app.modified import digests

    syncs = invocation.session.choose(choice, paused=True)
    if not syncs and not choice.bare:
        return invocation.show_nothing(choice)
    known = digests(invocation.project.folder)
    headers = ("sync", "enabled", "source", "destination", "write", "changes", "deletes", "tags", "after")
    rows = [_listed(sync) for sync in sorted(syncs, key=lambda sync: sync.name)]
    invocation.show(
        {
            "syncs": [
                {
                    **dict(zip(headers, row, strict=True)),
                    **_more(row[0], invocation),
                    "digest": known.get(row[0]),
                }
                for row in rows
            ]
        },
        lambda: (
            [Table(headers, rows, spares=SPARED, folds=FOLDED, defaults=USUAL)]
            if rows
            else ["no syncs: write one in syncs/, or make a project with `retl init`"]
        ),
    )
    return None


def _listed(sync: Sync) -> tuple[Any, ...]:
    source, ref = sync.source, sync.destination
    return (
        sync.name,
        sync.enabled,
        " + ".join(source.inputs or ()) or source.table or source.dbt or source.file or "sql",
        ref.connection or ref.type,
        sync.write,
        sync.changes.strategy,
        sync.deletes.how,
        list(sync.tags),
        list(sync.after),
    )


def _more(name: str, invocation: Invocation) -> dict[str, Any]:
    sync = invocation.project.syncs[name]
    return {"description": sync.description, "key": list(sync.key)}


@command(app, "validate")
def validate(
    invocation: Invocation,
    choice: Choice,
    strict: Annotated[
        bool, typer.Option("--strict", help="Every variable must be set, also of alerts and unused parts.")
    ] = False,
    var: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A SQL parameter.")] = None,
) -> int:
    """Check all definitions offline."""
    from datetime import UTC, datetime

    from retl.app import near_misses
    from retl.app.consistency import shared
    from retl.project.validation import raise_all

    project = invocation.project
    given = invocation.session.variables(invocation.variables(var), datetime.now(UTC).date())
    chosen = invocation.session.choose(choice, paused=True)
    if not chosen and not choice.bare:
        return invocation.show_nothing(choice)
    unset = sorted({missing.name for missing in project.missing(chosen)})
    errors: list[RetlError] = []
    notes: dict[str, str | None] = {}
    fields: dict[str, frozenset[str]] = {}
    ledger = _ledger_here(invocation)
    for one in chosen:
        notes[one.name] = _validated(invocation, one, given, ledger, errors, fields)
    errors += shared(project, fields)
    errors += project.unready(None if choice.bare else chosen) if strict else []
    raise_all(error for error in errors if isinstance(error, DefinitionError))
    rows = [(one.name, "valid", notes[one.name]) for one in chosen]
    pieces: list[Piece] = [Table(("sync", "result", "note"), rows)] if rows else ["no syncs"]
    if unset:
        pieces.append(f"not set, but needed by other commands: {', '.join(unset)}")
    mistyped, unread = near_misses.find(project), near_misses.endings(project.folder)
    pieces += [*project.environment.warnings(), *_strange(project, mistyped, unread)]
    invocation.show(
        {
            "syncs": [{"sync": name, "valid": True, "note": notes[name]} for name, _, _ in rows],
            "missing_variables": unset,
            "exposed_variables": project.environment.exposed(),
            "unused_variables": [{"name": name, "did_you_mean": near} for name, near in mistyped.items()],
            "unread_files": [{"file": path, "did_you_mean": near} for path, near in unread.items()],
            "exit_code": 0,
        },
        lambda: pieces,
    )
    return int(invocation.output_lost)


def _strange(project: LoadedProject, mistyped: Mapping[str, str], unread: Mapping[str, str]) -> Iterator[str]:
    """Sentences about names that nothing uses, and files that nothing reads."""
    name = project.environment.name
    file = "config.env" if name is None else f"config.{name}.env"
    yield from (f"nothing uses {one} of {file}: did you mean {near!r}?" for one, near in mistyped.items())
    yield from (f"{path} is not read: did you mean the ending {near}?" for path, near in unread.items())


def _validated(
    invocation: Invocation,
    sync: Sync,
    given: Mapping[str, Any],
    ledger: Ledger | None,
    errors: list[RetlError],
    fields: dict[str, frozenset[str]],
) -> str | None:
    """Adds what is wrong with a sync to `errors` and what it writes to `fields`, and returns what is worth a
    note."""
    from retl.app import places
    from retl.run import check as checks
    from retl.run.job import Target

    project, target, note, unread = invocation.project, None, None, False
    try:
        found = project.destination(sync)
        project.references(sync)
        target = Target(found.type, found.destination, found.options)
    except DefinitionError as problem:
        errors += [places.located(project, sync, one) for one in each(problem) if not _waits(one)]
    try:
        found_in = project.source(sync, given)
        news, fields[sync.name] = checks.validate(sync, found_in, project.folder, target, ledger)
        preview = target.destination.about.preview if target is not None else None
        note = "; ".join(filter(None, (preview, news))) or None
    except DefinitionError as problem:
        errors += [places.located(project, sync, one) for one in each(problem)]
    except RetlError as problem:
        note, unread = f"not checked against the warehouse: {problem.message}", True
    if unread or target is None:
        errors += _impossible(project, sync)
    errors += _wrong_tests(invocation, sync, given)
    return note


def _impossible(project: LoadedProject, sync: Sync) -> list[DefinitionError]:
    """What the target can never do of a sync: for that neither its mart nor its secrets are needed."""
    from retl.app import places
    from retl.run.fit import fit_definition

    with suppress(DefinitionError):  # a wrong destination is reported elsewhere
        target = project.destination(sync, offline=True).target
        try:
            fit_definition(sync, target)
        except DefinitionError as problem:
            return [places.located(project, sync, problem)]
    return []


def _ledger_here(invocation: Invocation) -> Ledger | None:
    """The ledger in a file. One in PostgreSQL is not asked, because this command is offline; one that cannot
    be read is no mistake in a definition."""
    if not invocation.project.state_url.startswith("file:"):
        return None
    with suppress(RetlError):
        return invocation.session.ledger()
    return None


def _wrong_tests(invocation: Invocation, sync: Sync, given: Mapping[str, Any]) -> list[RetlError]:
    """What is wrong with a sync's mapping tests. Empty if the contract cannot be read, which is reported
    elsewhere."""
    from retl.run import mapping_tests

    if not sync.tests:
        return []
    project = invocation.project
    try:
        judge = mapping_tests.contract_of(sync, project.source(sync, given), project.folder)
        found = list(mapping_tests.problems(sync, judge))
    except RetlError:
        return []
    return [
        DefinitionError(one.code, one.message, hint=one.hint, where=project.place(sync, one.loc))
        for one in found
    ]


def _waits(problem: RetlError) -> bool:
    """Whether it is about an unset variable, which is not an error of the definition."""
    by_default = problem.code == "OPTION_MISSING" and str(problem.where).startswith("environment ")
    return problem.code == "VARIABLE_UNSET" or by_default


@command(app, "check")
def check(
    invocation: Invocation,
    choice: Choice,
    var: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A SQL parameter.")] = None,
) -> int:
    """Check online that each destination can be reached and written."""
    from retl.app import places
    from retl.observe.summary import exit_code
    from retl.run import check as checks
    from retl.run.job import Options

    chosen = invocation.session.choose(choice)
    if not chosen and not choice.bare:
        return invocation.show_nothing(choice, "destinations")
    invocation.session.require(chosen)
    ledger = invocation.session.ledger()
    options = Options(variables=invocation.variables(var))
    found: list[dict[str, Any]] = []
    with invocation.session.stop.listening() as stop:
        for job in [invocation.session.job(one, ledger, options) for one in chosen]:
            stop.check()
            code, error, notes = 0, None, list[str]()
            try:
                notes = checks.check(job)
            except RetlError as problem:
                if isinstance(problem, DefinitionError):
                    places.located(invocation.project, job.sync, problem)
                code, error = problem.exit_code, described(problem)
            line = {"sync": job.sync.name, "type": job.target.kind, "object": job.object}
            found.append({**line, "ok": error is None, "exit_code": code, "error": error, "notes": notes})
    code = exit_code([line["exit_code"] for line in found])
    headers = ("sync", "type", "object", "result")
    rows = [
        (one["sync"], one["type"], one["object"], one["error"]["code"] if one["error"] else "OK")
        for one in found
    ]
    errors = [f"{one['sync']}: {problems.sentence(one['error'])}" for one in found if one["error"]]
    errors += [f"{one['sync']}: note: {note}" for one in found for note in one["notes"]]
    environment = invocation.project.environment
    errors += environment.warnings()
    invocation.show(
        {"destinations": found, "exposed_variables": environment.exposed(), "exit_code": code},
        lambda: (
            [Table(headers, rows, spares=("type",), folds=("object",)), *errors]
            if rows
            else ["no enabled syncs"]
        ),
    )
    return code or int(invocation.output_lost)


@command(app, "schema")
def schema(invocation: Invocation) -> None:
    """Print the JSON Schema of sync files, for editors."""
    from retl.app import reference
    from retl.cli.output import document_text

    document = reference.sync_schema()
    invocation.show(document, lambda: [document_text(document).rstrip()])


@command(app, "destinations")
def destinations(
    invocation: Invocation, name: Annotated[str | None, typer.Argument(metavar="NAME")] = None
) -> None:
    """List the destination types; with a NAME, show its page."""
    from retl.app import reference
    from retl.destinations import load

    own = own_presets(invocation)
    kinds: dict[str, Callable[[str], type[Destination[Any]]]] = {
        **dict.fromkeys(reference.types(), load),
        **dict.fromkeys(own, own.__getitem__),
    }
    if name is not None:
        page = reference.page(name, kinds.get(name, load)(name))
        invocation.show(page, lambda: _page_pieces(page))
        return
    pages = [reference.page(one, find(one)) for one, find in kinds.items()]
    rows = [(page["name"], page["summary"], "preview" if page["preview"] else "") for page in pages]
    invocation.show(
        {"destinations": [{part: page[part] for part in ("name", "summary", "preview")} for page in pages]},
        lambda: [Table(("type", "what it is", ""), rows)],
    )


@command(app, "sources")
def sources(
    invocation: Invocation, name: Annotated[str | None, typer.Argument(metavar="NAME")] = None
) -> None:
    """List the source types; with a NAME, show its page."""
    from retl.app import reference
    from retl.sources import names

    if name is None:
        pages = [reference.source_page(one) for one in names()]
        invocation.show(
            {"sources": [{part: page[part] for part in ("name", "summary", "evidence")} for page in pages]},
            lambda: [
                Table(
                    ("type", "what it is", "tried against"),
                    [(p["name"], p["summary"], p["evidence"]) for p in pages],
                )
            ],
        )
        return
    page = reference.source_page(name)
    headers = ("option", "required", "default", "description")
    tables = [
        Table(
            headers,
            [tuple(one[header] for header in headers) for one in page[part]],
            title=f"{part} options:",
        )
        for part in ("connection", "source")
    ]
    invocation.show(page, lambda: [page["text"] + "\n", *tables, f"evidence: {page['evidence']}"])


def own_presets(invocation: Invocation) -> Mapping[str, type[Destination[Any]]]:
    """The presets of the project, if there is one."""
    from retl.project.settings import project_folder

    folder = project_folder(invocation.folder)
    if not (folder / "presets").is_dir():
        return {}
    from retl.destinations import presets

    return {name: preset.destination for name, preset in presets.own(folder.resolve()).items()}


def _page_pieces(page: dict[str, Any]) -> list[Piece]:
    headers = ("option", "required", "default", "description")
    pieces: list[Piece] = [f"{page['note']}\n"] if page["note"] else []
    first = page.get("first")
    pieces.append(f"{page['summary']}\n\n{first}" if first else page["text"] + "\n")
    tables = [(f"{part} options:", page[part]) for part in ("connection", "destination")]
    tables += [(f"{title.lower()}:", options) for title, options in page.get("parts", {}).items()]
    for title, options in tables:
        rows = [tuple(option[header] for header in headers) for option in options]
        pieces += [Table(headers, rows, title=title)] if rows else []
    if first:
        from retl.app.reference import rest_of

        pieces.append(rest_of(page) + "\n")
    if "operations" in page:
        headers = ("operation", "request", "rows", "only_if")
        rows = [tuple(one[header] for header in headers) for one in page["operations"]]
        pieces.append(Table(("operation", "request", "rows each", "only with"), rows, title="requests:"))
    if "evidence" in page:
        limits = f"limits: {page['limits']}\n" if "limits" in page else ""
        pieces.append(f"{limits}evidence: {', '.join(page['evidence'])}, {page['source']}\n")
        pieces.append(f"a sync:\n{page['example']}")
    return pieces
