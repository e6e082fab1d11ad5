"""`retl contract`: contracts beside mart, dbt and target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retl.cli import completing
from retl.cli.app import app, command
from retl.cli.invocation import Invocation
from retl.cli.output import Piece, Table
from retl.cli.state import Yes
from retl.errors import DefinitionError

if TYPE_CHECKING:
    from retl.app.contract import Compared
    from retl.run.contract_diff import Difference

Syncs = Annotated[
    list[str] | None,
    typer.Argument(metavar="SYNC", show_default=False, autocompletion=completing.names),
]
Var = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A SQL parameter.")]
contract = typer.Typer(help="Compare contracts with mart, dbt and target.", no_args_is_help=True)
app.add_typer(contract, name="contract")


@command(contract, "diff")
def diff(invocation: Invocation, syncs: Syncs = None, var: Var = None) -> int:
    """Show columns that came, went or changed, and what to do; exit 1 if one of the contract did."""
    found = [_compared(invocation, name, var) for name in _named(invocation, syncs)]
    code = int(any(each.is_drift for one in found for each in one.differences))
    pieces = [piece for one in found for piece in _pieces(one)]
    invocation.show(
        {"syncs": [_document(one) for one in found], "exit_code": code},
        lambda: pieces or ["no syncs"],
    )
    return code or int(invocation.output_lost)


@command(contract, "update")
def update(
    invocation: Invocation,
    syncs: Syncs = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--column", metavar="NAME", help="Also take this column of the mart; '*' is all of them."
        ),
    ] = None,
    yes: Yes = False,
    var: Var = None,
) -> int:
    """Edit contracts so that they fit the mart; comments stay. A column that a contract does not name stays
    out, unless --column names it."""
    from retl.app import contract as made

    found, names = [], _named(invocation, syncs, editable=not syncs)
    for name in names:
        definition = invocation.session.definition(name)
        if definition.contract is None or definition.contract.model is not None:
            what = "no contract" if definition.contract is None else "a model of its own"
            raise DefinitionError("EDIT_BY_HAND", f"sync {name} has {what}: there is no file to edit")
        found.append(_compared(invocation, name, var, columns or ()))
    folder, documents, said = invocation.project.folder, list[dict[str, Any]](), list[Piece]()
    for one in found:
        edit = made.shown(one, folder)
        written = [str(path) for path in made.write(one)] if yes else []
        documents.append({**_document(one), "edit": edit, "written": written})
        said += _update_pieces(invocation, one, edit, written, yes=yes)
    several: dict[str, Any] = {"syncs": documents} if len(names) != 1 else documents[0]
    invocation.show({**several, "exit_code": 0}, lambda: said or ["no sync has a contract of its own"])
    return int(invocation.output_lost)


def _named(invocation: Invocation, syncs: list[str] | None, *, editable: bool = False) -> list[str]:
    """The named syncs, or all of them; `editable`: only those with a contract in a file of the project."""
    if syncs:
        return syncs
    known = invocation.project.syncs
    return [
        name
        for name in sorted(known)
        if not editable or ((asked := known[name].contract) is not None and asked.model is None)
    ]


def _update_pieces(
    invocation: Invocation, found: Compared, edit: str, written: list[str], *, yes: bool
) -> list[Piece]:
    """The edit, what the target needs for it, which columns it adds, and which stay out."""
    if not edit:
        end = f"{found.sync}: the contract fits the mart"
    else:
        end = f"wrote {', '.join(written)}" if yes else "nothing was written: --yes writes this"
    taken = [one.column for one in found.differences if one.kind == "added" and one.column in found.taken]
    left = [one.column for one in found.differences if one.kind == "added" and one.column not in found.taken]
    rest = [one for one in found.differences if one.ddl and one.column not in left]
    return [
        *([edit.rstrip("\n")] if edit else []),
        *([f"the next run of {found.sync} also sends: {', '.join(taken)}"] if taken else []),
        *(said for one in rest if (said := _needed(one))),
        *([f"left out: {', '.join(left)} (--column NAME takes one)"] if left else []),
        end,
    ]


def _needed(one: Difference) -> str | None:
    """What becomes of the target, and who does it."""
    match one.kind:
        case "added" | "missing":
            needs = "the next run does at the target" if one.by == "run" else "the target needs"
            return f"{needs}: {one.ddl}"
        case "unfit":
            return f"the target needs: {one.ddl}"
        case "orphaned" | "removed":
            return f"no run removes {one.column} at the target; if nobody needs it: {one.ddl}"
        case _:  # the edit of the contract is the way out
            return None


def _compared(
    invocation: Invocation, name: str, var: list[str] | None, taken: Sequence[str] = ("*",)
) -> Compared:
    from datetime import UTC, datetime

    from retl.app import contract as made

    session = invocation.session
    given = session.variables(invocation.variables(var), datetime.now(UTC).date())
    return made.compare(session, session.definition(name), given, taken)


def _document(one: Compared) -> dict[str, Any]:
    from msgspec.structs import asdict

    return {
        "sync": one.sync,
        "differences": [asdict(each) for each in one.differences],
        "target": one.unseen,
    }


def _pieces(one: Compared) -> list[Piece]:
    from retl.app.scaffold.yamltext import flow

    headers = ("column", "", "what", "in the contract", "or at the target")
    rows = [
        (each.column, each.kind, each.what, _way(each, one.sent, flow), _ddl(each))
        for each in one.differences
    ]
    pieces: list[Piece] = [Table(headers, rows, title=f"{one.sync}:")] if rows else []
    pieces += [] if rows else [f"{one.sync}: contract, mart, dbt and target have the same columns"]
    left = [each.column for each in one.differences if each.kind == "added" and not each.is_drift]
    if left:
        pieces.append(f"the contract leaves out {', '.join(left)}: that is no difference to mend")
    return [*pieces, *([f"note: {one.unseen}"] if one.unseen else [])]


def _ddl(one: Difference) -> str:
    """What the target would need, and who does it."""
    if one.ddl is None or one.kind == "unfit":
        return one.ddl or ""
    return f"the next run: {one.ddl}" if one.by == "run" else f"by hand: {one.ddl}"


def _way(one: Difference, sent: Mapping[str, tuple[str, ...]], flow: Any) -> str:
    """What the contract would say instead; `sent`: the fields of a column."""
    match one.kind:
        case "added":
            return f"{one.column}: {flow(one.edit)}"
        case "renamed":
            fields = (one.column,) if one.edit is None else sent.get(one.column, ())  # None: of the target
            return f"{one.now}, sent as {', '.join(fields)}" if fields else str(one.now)
        case "removed":
            return f"remove {one.column}"
        case "retyped" | "dbt":
            parts = {part: value for part, value in (one.edit or {}).items() if value is not None}
            return f"{one.column}: {flow(parts)}" if parts else ""
        case "orphaned":
            return f"send {one.column} again"
    return ""
