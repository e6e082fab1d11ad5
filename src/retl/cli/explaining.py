"""`retl explain`: single rows, step by step through the data path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retl.cli import output, problems
from retl.cli.app import app, command
from retl.cli.invocation import Invocation
from retl.cli.output import Piece
from retl.cli.state import SyncName
from retl.errors import DefinitionError

if TYPE_CHECKING:
    from retl.ledger import Ledger

_STATE = {"confirmed": "delivered", "unknown": "sent, without an answer,"}
_EDITED = {
    "kept": "not written, because somebody edited it in the target,",
    "merged": "delivered without the fields that somebody edited in the target,",
}
READABLE = 1000  # characters of a request that are printed without being asked for


@command(app, "explain", reveals=True)
def explain(
    invocation: Invocation,
    name: SyncName,
    keys: Annotated[
        list[str] | None,
        typer.Option("--key", metavar="KEY", help="Explain this row; written as in `retl sync`."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, max=1000, help="Number of rows, if no key is given.")] = 3,
    read: Annotated[bool, typer.Option("--read", help="Also read the values of the target.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print a request in full, however long it is.")
    ] = False,
    var: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A SQL parameter.")] = None,
) -> None:
    """Explain row by row what retl does and why."""
    from retl.run import explain as explaining
    from retl.run.job import Options

    sync = invocation.session.definition(name)
    invocation.session.require([sync], offline=not read)
    ledger = invocation.session.ledger()
    with invocation.session.stop.listening():
        options = Options(dry_run=True, variables=invocation.variables(var))
        job = invocation.session.job(sync, ledger, options)
        found = explaining.explain(job, keys or [], rows, read=read, reveal=invocation.reveal)
    if keys and not any(map(explaining.is_known, found["rows"])):
        raise _unknown(invocation, ledger, name, keys, found["key_form"])
    invocation.show(found, lambda: _pieces(found, whole=verbose))


def _unknown(
    invocation: Invocation, ledger: Ledger, name: str, keys: list[str], form: str
) -> DefinitionError:
    """KEY_UNKNOWN, with the way to a row that was sent and then deleted."""
    from retl.engine.scratch import private_directory
    from retl.engine.workspace import Workspace
    from retl.run import writeback

    message = f"neither the mart nor the baseline of {name} has such a key"
    shows = "" if invocation.hides_key(name) else f"; `retl explain {name}` shows some"
    hint = f"write a key as {form}{shows}"
    with private_directory() as folder, Workspace(folder, invocation.session.stop) as workspace:
        for key in keys:
            writeback.load(ledger, workspace, writeback.Asked((name,), key=key), invocation.hides_key)
            if writeback.has_rows(workspace):
                message += " any more, but it was sent before"
                hint = f"`retl log {name} --key KEY` has what was sent"
                break
    return DefinitionError("KEY_UNKNOWN", message, hint=hint)


def _pieces(found: Mapping[str, Any], *, whole: bool) -> list[Piece]:
    pieces: list[Piece] = [_row(row, whole=whole) for row in found["rows"]] or ["a run reads no row"]
    pieces += [problems.sentence(guard) for guard in found["guards"]]
    return [*pieces, *(f"note: {note}" for note in found["notes"])]


def _row(row: Mapping[str, Any], *, whole: bool) -> str:
    lines = [f"key {output.cell(row['key'])}"]
    for name in ("row", "verdict", "fields", "request", "baseline", "reject", "target", "sides", "next"):
        if name not in row:
            continue
        label = {"row": "mart row", "reject": "open reject", "next": "next run", "sides": "edits"}.get(
            name, name
        )
        value = row[name] if name != "request" or whole else _brief(row[name])
        text = _text(name, value).replace("\n", "\n" + " " * 15)
        lines.append(f"  {label:<12} {text}")
    return "\n".join(lines)


def _brief(request: str | None) -> str | None:
    """The request as it is if a person can read it, else its size."""
    if request is None or len(request) <= READABLE:
        return request
    lines = len(request.splitlines())
    return f"{lines} lines, {len(request):,} characters: `--verbose` prints them"


def _text(name: str, value: Any) -> str:
    if name == "verdict" and value is not None:
        return "accepted" if value["accepted"] else f"rejected, {value['reason']} [{value['code']}]"
    if name == "baseline" and value is not None:
        run = f" by run {value['run_id']}" if value["run_id"] else ""
        state = _EDITED.get(value["edited"]) or _STATE[value["state"]]
        return f"{state} {output.cell(value['at'])}{run}"
    if value is None:
        return "none"
    if name == "sides":
        return "\n".join([value["row"], *(_side(field, one) for field, one in value["fields"].items())])
    if isinstance(value, Mapping):
        return "\n".join(f"{key} = {output.datum(item)}" for key, item in value.items()) or "none"
    return str(value)


def _side(field: str, one: Mapping[str, Any]) -> str:
    left = f"left by us {output.cell(one['left']['at'])}" if one["left"] else "never left by us"
    target, mart = output.datum(one["target"]), output.datum(one["mart"])
    return f"{field}: {left}, target {target}, mart {mart}: {one['verdict']}"
