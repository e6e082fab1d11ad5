"""`retl contract`: contracts beside mart, dbt and target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from retl.cli.app import app, command
from retl.cli.invocation import Invocation, variables
from retl.cli.output import Piece, Table
from retl.cli.state import SyncName, Yes
from retl.errors import DefinitionError

if TYPE_CHECKING:
    from retl.app.contract import Compared

Var = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A SQL parameter.")]
contract = typer.Typer(help="Compare contracts with mart, dbt and target.", no_args_is_help=True)
app.add_typer(contract, name="contract")


@command(contract, "diff")
def diff(
    invocation: Invocation,
    sync: Annotated[str | None, typer.Argument(metavar="SYNC", show_default=False)] = None,
    var: Var = None,
) -> int:
    """Show columns that came, went or changed, and what to do; exit 1 if there are any."""
    names = [sync] if sync is not None else sorted(invocation.project.syncs)
    found = [_compared(invocation, name, var) for name in names]
    code = int(any(one.differences for one in found))
    pieces = [piece for one in found for piece in _pieces(one)]
    invocation.show(
        {"syncs": [_document(one) for one in found], "exit_code": code},
        lambda: pieces or ["no syncs"],
    )
    return code or int(invocation.output_lost)


@command(contract, "update")
def update(invocation: Invocation, sync: SyncName, yes: Yes = False, var: Var = None) -> int:
    """Edit the contract so that it fits the mart; comments stay."""
    from retl.app import contract as made

    definition = invocation.session.definition(sync)
    if definition.contract is None or definition.contract.model is not None:
        what = "no contract" if definition.contract is None else "a model of its own"
        raise DefinitionError("EDIT_BY_HAND", f"sync {sync} has {what}: there is no file to edit")
    found = _compared(invocation, sync, var)
    edit = made.shown(found, invocation.project.folder)
    written = [str(path) for path in made.write(found)] if yes else []
    if not edit:
        end = "the contract fits the mart"
    else:
        end = f"wrote {', '.join(written)}" if yes else "nothing was written: --yes writes this"
    rest = [one for one in found.differences if one.ddl and one.kind not in ("renamed", "removed")]
    creates = (definition.destination.model_extra or {}).get("create") is True
    needs = "the next run does at the target" if creates else "the target needs"
    lines = [f"{needs}: {one.ddl}" for one in rest]
    document = {**_document(found), "edit": edit, "written": written, "exit_code": 0}
    invocation.show(document, lambda: [*([edit.rstrip("\n")] if edit else []), *lines, end])
    return int(invocation.output_lost)


def _compared(invocation: Invocation, name: str, var: list[str] | None) -> Compared:
    from datetime import UTC, datetime

    from retl.app import contract as made

    session = invocation.session
    given = session.variables(variables(var), datetime.now(UTC).date())
    return made.compare(session, session.definition(name), given)


def _document(one: Compared) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "sync": one.sync,
        "differences": [asdict(each) for each in one.differences],
        "target": one.unseen,
    }


def _pieces(one: Compared) -> list[Piece]:
    from retl.app.scaffold.yamltext import flow

    headers = ("column", "", "what", "in the contract", "or at the target")
    rows = [(each.column, each.kind, each.what, _way(each, flow), each.ddl or "") for each in one.differences]
    pieces: list[Piece] = [Table(headers, rows, title=f"{one.sync}:")] if rows else []
    pieces += [] if rows else [f"{one.sync}: contract, mart, dbt and target have the same columns"]
    return [*pieces, *([f"note: {one.unseen}"] if one.unseen else [])]


def _way(one: Any, flow: Any) -> str:
    """What the contract would say instead."""
    match one.kind:
        case "added":
            return f"{one.column}: {flow(one.edit)}"
        case "renamed":
            return f"{one.now}, sent as {one.column}"
        case "removed":
            return f"remove {one.column}"
        case "retyped" | "dbt":
            parts = {part: value for part, value in (one.edit or {}).items() if value is not None}
            return f"{one.column}: {flow(parts)}" if parts else ""
        case "orphaned":
            return f"send {one.column} again"
    return ""
