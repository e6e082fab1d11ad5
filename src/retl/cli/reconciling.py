"""`retl reconcile`: what the target holds against mart and baseline, and its repair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec.structs import asdict, replace

from retl.cli.app import app, command
from retl.cli.invocation import Invocation
from retl.cli.output import Piece, Table
from retl.cli.running import Accepted, Variables, masked, summary_pieces, tell_errors
from retl.cli.state import SyncName
from retl.errors import DefinitionError
from retl.observe.mask import MASK

if TYPE_CHECKING:
    from retl.observe.summary import Summary

MEANINGS = {
    "same": "as it was delivered",
    "due": "the mart moved on: the next run sends or deletes it",
    "edited": "somebody changed it",
    "missing": "somebody removed it",
    "back": "it was deleted, and is there again",
    "held": "a rollback restored it: it waits until its mart row changes",
    "kept": "known to differ: not ours to change, or no longer in the mart",
    "extra": "never delivered: somebody else's",
    "duplicate": "the target has this key several times",
}


@command(app, "reconcile", reveals=True)
def reconcile(
    invocation: Invocation,
    name: SyncName,
    sample: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Compare only N rows of the mart, drawn at random.")
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Send rows that were edited or removed.")] = False,
    take_ownership: Annotated[
        bool, typer.Option("--take-ownership", help="Own every key that only the target has.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what --repair would send.")] = False,
    accept: Accepted = None,
    var: Variables = None,
) -> int:
    """Compare the target with what was delivered; exit 1 if it drifted."""
    from retl.app.session import options
    from retl.run import reconcile as run

    if dry_run and (take_ownership or not repair):
        raise DefinitionError("USAGE", "--dry-run shows what --repair would send: use both")
    if take_ownership and (repair or sample is not None):
        raise DefinitionError(
            "USAGE", "--take-ownership looks at every key: use it without --repair and --sample"
        )
    session, sync = invocation.session, invocation.session.definition(name)
    asked = run.Asked(sample, repair, take_ownership)
    session.require([sync])
    run.require(sync, session.project.destination(sync).target, asked)
    chosen = options(dry_run=dry_run, accept=accept or (), variables=invocation.variables(var))
    chosen = replace(chosen, purpose=asked.purpose, reconcile=asked.kind)
    with session.stop.listening():
        job = session.job(sync, session.ledger(create=not dry_run), chosen)
        summary, found = run.look(job, asked) if dry_run else run.reconcile(job, asked)
    document = reconciled(invocation, name, asdict(found))
    return _show(invocation, summary, document, drift=found.drift, mends=repair)


def reconciled(invocation: Invocation, sync: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """What a reconcile found; keys are masked if the sync's key is sensitive."""
    examples = found["examples"]
    if invocation.hides_key(sync):
        examples = [{**one, "key": MASK} for one in examples]
    return {**found, "examples": examples}


def _show(
    invocation: Invocation, summary: Summary, found: Mapping[str, Any], *, drift: int, mends: bool
) -> int:
    """Print what was found, and the run. Exit 1 if there is drift that the run did not repair."""
    one = masked(invocation, summary.document())
    left = drift - (summary.counts.written if mends else 0)
    code = summary.exit_code or int(left > 0)
    document = {"reconcile": {**found, "drift": drift}, "sync": one, "exit_code": code}

    def pieces() -> list[Piece]:
        parts: list[Piece] = [] if summary.exit_code else found_pieces(found, summary.counts.read)
        if mends or summary.exit_code:
            parts += summary_pieces([one])
        return parts

    invocation.show(document, pieces)
    tell_errors([one])
    return code


def found_pieces(found: Mapping[str, Any], read: int = 0) -> list[Piece]:
    """What was found. `read`: the rows of the mart, of which a sample may be all."""
    rows = [(name, found[name], text) for name, text in MEANINGS.items() if found[name] is not None]
    sampled, drawn = found["sampled"], None
    if sampled is not None:
        drawn = (
            f"of {sampled:,} rows drawn at random:" if sampled < read else "each row of the mart, one by one:"
        )
    pieces: list[Piece] = [Table(("verdict", "keys", "meaning"), rows, drawn)]
    if found["fields"]:
        pieces.append(Table(("edited field", "rows"), list(found["fields"].items())))
    if found["examples"]:
        examples = [(one["verdict"], one["key"], ", ".join(one["fields"])) for one in found["examples"]]
        pieces.append(Table(("verdict", "key", "fields"), examples, "the first keys:"))
    return pieces
