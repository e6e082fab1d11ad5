"""What is defined and whether it is right: list, validate, check, schema, destinations."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retl.cli import problems
from retl.cli.app import app, command
from retl.cli.invocation import Invocation
from retl.cli.output import Piece, Table
from retl.errors import DefinitionError, Mismatch, RetlError

if TYPE_CHECKING:
    from retl.definitions import Sync
    from retl.destinations import Destination

Selected = Annotated[list[str] | None, typer.Option("--sync", help="Only this sync; may be repeated.")]


@command(app, "list")
def list_syncs(invocation: Invocation) -> None:
    """The syncs of the project."""
    syncs = list(invocation.project.syncs.values())
    headers = ("sync", "enabled", "source", "destination", "write", "changes", "deletes", "tags", "after")
    rows = [_listed(sync) for sync in sorted(syncs, key=lambda sync: sync.name)]
    invocation.show(
        {"syncs": [{**dict(zip(headers, row, strict=True)), **_more(row[0], invocation)} for row in rows]},
        lambda: [Table(headers, rows)] if rows else ["no syncs: write one in syncs/, or `retl init` a project"],
    )


def _listed(sync: Sync) -> tuple[Any, ...]:
    source, ref = sync.source, sync.destination
    return (
        sync.name,
        sync.enabled,
        source.table or source.file or "sql",
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
    sync: Selected = None,
    var: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A SQL parameter.")] = None,
) -> int:
    """Offline: definitions, contracts, mappings, and SQL against the warehouse's catalog."""
    from retl import offline
    from retl.validation import each, raise_all

    project = invocation.project
    variables = invocation.variables(invocation.nothing_known(), var or [])
    chosen = project.select(names=sync or list(project.syncs))
    errors: list[DefinitionError] = []
    notes: dict[str, str | None] = {}
    for one in chosen:
        target = None
        try:
            missing = project.missing([one])
            if not missing:
                found = project.destination(one)
                target = (found.destination, found.options)
            checked = offline.check(one, project.warehouse, project.folder, variables, target)
            notes[one.name] = checked.note
        except DefinitionError as problem:
            errors += each(problem)
        except RetlError as problem:
            notes[one.name] = f"{problem.message}: its SQL was not checked against the catalog"
    raise_all(errors)
    unset = sorted({missing.name for missing in project.missing(chosen)})
    document = {
        "syncs": [{"sync": one.name, "valid": True, "note": notes[one.name]} for one in chosen],
        "missing_variables": unset,
        "exit_code": 0,
    }
    rows = [(one.name, "valid", notes[one.name]) for one in chosen]
    pieces: list[Piece] = [Table(("sync", "", "note"), rows)] if rows else ["no syncs"]
    if unset:
        pieces.append(f"not set, and needed by every other command: {', '.join(unset)}")
    invocation.show(document, lambda: pieces)
    return int(invocation.unheard)


@command(app, "check")
def check(invocation: Invocation, sync: Selected = None) -> int:
    """Online: is each destination reached, writable and fitting? Writes nothing."""
    from retl import explain
    from retl.planning import Options
    from retl.signals import Stop
    from retl.summary import exit_code

    project = invocation.project
    chosen = project.select(names=sync or ())
    project.require(chosen)
    ledger = invocation.ledger()
    options = Options(variables=invocation.variables(ledger, []))
    found: list[dict[str, Any]] = []
    with Stop().listening() as stop:
        for one in chosen:
            job = invocation.job(one, ledger, options, stop)
            known = project.destination(one)
            line = {"sync": one.name, "connection": known.name, "object": known.options.object}
            try:
                explain.check(job)
                found.append({**line, "ok": True, "exit_code": 0, "error": None})
            except RetlError as problem:
                stop.check()
                code = 3 if isinstance(problem, Mismatch) else problem.exit_code
                found.append({**line, "ok": False, "exit_code": code, "error": problems.described(problem)})
    code = exit_code([line["exit_code"] for line in found])
    rows = [
        (line["sync"], line["connection"], line["object"], "OK" if line["ok"] else _sentence(line["error"]))
        for line in found
    ]
    invocation.show(
        {"destinations": found, "exit_code": code},
        lambda: [Table(("sync", "connection", "object", "result"), rows)] if rows else ["no enabled syncs"],
    )
    return code or int(invocation.unheard)


def _sentence(error: dict[str, Any]) -> str:
    hint = f" - {error['hint']}" if error["hint"] else ""
    return f"{error['code']}: {error['message']}{hint}"


@command(app, "schema")
def schema(invocation: Invocation) -> None:
    """JSON Schema of sync files, for editors."""
    from retl import reference
    from retl.cli.output import document_text

    document = reference.sync_schema()
    invocation.show(document, lambda: [document_text(document).rstrip()])


@command(app, "destinations")
def destinations(
    invocation: Invocation, name: Annotated[str | None, typer.Argument(metavar="[NAME]")] = None
) -> None:
    """The targets retl can deliver to; with a NAME, its page."""
    from retl import destinations as register

    if name is not None:
        kind = register.load(name)
        page = _page(name, kind)
        invocation.show(page, lambda: _page_pieces(page))
        return
    rows = [(one, _text(register.load(one)).split("\n")[0]) for one in register.names()]
    invocation.show(
        {"destinations": [{"name": one, "summary": summary} for one, summary in rows]},
        lambda: [Table(("type", "what it is"), rows)],
    )


def _text(kind: type[Destination[Any]]) -> str:
    """The module's docstring is the target's page."""
    return inspect.cleandoc(inspect.getmodule(kind).__doc__ or "")  # type: ignore[union-attr]


def _page(name: str, kind: type[Destination[Any]]) -> dict[str, Any]:
    parts = {"connection": kind.Connection, "destination": kind.Options}
    options = {
        part: [
            {
                "option": field.alias or key,
                "required": field.is_required(),
                "default": None if field.is_required() or field.default is None else str(field.default),
                "description": field.description,
            }
            for key, field in model.model_fields.items()
            if not (part == "destination" and key in ("connection", "type"))
        ]
        for part, model in parts.items()
    }
    return {"name": name, "text": _text(kind), **options}


def _page_pieces(page: dict[str, Any]) -> list[Piece]:
    headers = ("option", "required", "default", "description")
    pieces: list[Piece] = [page["text"] + "\n"]
    for part in ("connection", "destination"):
        rows = [tuple(option[header] for header in headers) for option in page[part]]
        pieces.append(Table(headers, rows, title=f"{part} options:"))
    return pieces
