"""`retl state`: show and change what the next run believes.

Every change first says what the next run will do then, and does nothing without --yes.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec.structs import asdict, replace

from retl.app.choice import Choice
from retl.cli import completing
from retl.cli.app import Output, app, command, with_shared_options
from retl.cli.grouping import Family
from retl.cli.invocation import Invocation
from retl.cli.output import Table
from retl.errors import DefinitionError, Later

if TYPE_CHECKING:
    from retl.ledger import Ledger, Lock

Yes = Annotated[bool, typer.Option("--yes", help="Make the change.")]
SyncName = Annotated[str, typer.Argument(metavar="SYNC", autocompletion=completing.names)]
OneSync = Annotated[
    str | None,
    typer.Option("--sync", metavar="NAME", help="Only this sync.", autocompletion=completing.names),
]

state = typer.Typer(help="Show or change what the next run believes.", invoke_without_command=True)


def show(invocation: Invocation, choice: Choice) -> int | None:
    """Show what was confirmed, per sync and object."""
    from retl.run.known import confirmed

    ledger = invocation.session.ledger()
    chosen = invocation.names(choice, lambda name: _has_state(ledger, name))
    if chosen is not None and not chosen:
        return invocation.show_nothing(choice, "checkpoints")
    named = sorted({*invocation.project.syncs, *_former(ledger)}) if chosen is None else chosen
    found = [_checkpoint(one, confirmed(ledger, one)) for name in named for one in ledger.checkpoints(name)]
    headers = ("sync", "object", "baseline_rows", "read_rows", "run_id", "updated_at")
    rows = [tuple(one[name] for name in headers) for one in found]
    labels = tuple(name.replace("_", " ") for name in headers)
    invocation.show(
        {"state_id": None if ledger.fresh else ledger.state_id, "checkpoints": found},
        lambda: [Table(labels, rows)] if rows else ["nothing was delivered yet"],
    )
    return None


def _former(ledger: Ledger) -> set[str]:
    """The syncs in the history, defined or not."""
    return {run.sync for run in ledger.runs(limit=10_000)}


def _checkpoint(one: Any, confirmed: int) -> dict[str, Any]:
    return {
        "sync": one.sync,
        "object": one.object,
        "run_id": one.run_id,
        "epoch": one.epoch,
        "baseline_rows": confirmed,
        "read_rows": one.read_rows,
        "watermark": one.watermark,
        "fingerprints": dict(one.fingerprints),
        "source_version": one.source_version,
        "updated_at": one.updated_at,
    }


@command(state, "mv")
def mv(
    invocation: Invocation,
    old: Annotated[str, typer.Argument(metavar="OLD")],
    new: Annotated[str, typer.Argument(metavar="NEW")],
    yes: Yes = False,
) -> None:
    """Move the state of a renamed sync from OLD to NEW."""
    invocation.session.definition(new)
    ledger = _ledger(invocation, yes)
    _known(ledger, old)
    then = f"the next run of {new} carries on where {old} ended and sends only what changed"
    confirmed(then, yes)
    with held(ledger, new), held(ledger, old):
        ledger.rename(old, new)
    done(invocation, {"moved": {"old": old, "new": new}}, then)


@command(state, "reset")
def reset(invocation: Invocation, name: SyncName, yes: Yes = False) -> None:
    """Forget what a sync delivered."""
    from retl.run.resolve import doubts

    ledger = _ledger(invocation, yes)
    known = invocation.project.syncs.get(name)
    if known is None:
        _known(ledger, name)
    then = f"the next run of {name} sends every row and deletes nothing; its open rejects are forgotten"
    if known is not None and known.write == "append":
        then = f"the next run of {name} appends every row of the mart AGAIN; its open rejects are forgotten"
    if doubtful := sum(one.rows for one in doubts(ledger, name)):
        then += f"; so are {doubtful} rows in doubt, which may arrive twice"
    if known is None:
        then = (
            f"there is no sync {name}: its baseline, its rejects and the files with the keys that it sent are"
            " removed, and `retl log` no longer lists these rows; nothing at its target changes"
        )
    confirmed(then, yes)
    with held(ledger, name):
        ledger.reset(name, None, wholly=known is None)
    done(invocation, {"reset": name}, then)


@command(state, "adopt")
def adopt(
    invocation: Invocation,
    name: SyncName,
    yes: Yes = False,
    var: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A SQL parameter.")] = None,
) -> int:
    """Mark the current mart as delivered, without sending it."""
    from retl.cli.running import report
    from retl.run import pipeline
    from retl.run.job import Options

    sync = invocation.session.definition(name)
    invocation.session.require([sync])
    ledger = _ledger(invocation, yes)
    confirmed(
        f"every row that is now in the mart of {name} counts as delivered, and the former state is forgotten,"
        " also if another state delivered it; rows in doubt stay in doubt, and rows that the target rejected"
        " stay due; the next run sends only these and what changes from now on, and deletes only what it"
        " delivered itself",
        yes,
    )
    with invocation.session.stop.listening():
        # what another state delivered is what is taken over here
        accept = ("STATE_LOST", "STATE_BEHIND", "IDENTITY_CHANGED")
        options = Options(adopt=True, accept=accept, variables=invocation.variables(var))
        job = invocation.session.job(sync, ledger, options)
        if sync.first_run is None:
            job = replace(job, sync=sync.model_copy(update={"first_run": "adopt"}))
        return report(invocation, [pipeline.sync(job)])


@command(state, "prune", ledger=True)
def prune(
    invocation: Invocation,
    choice: Choice,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be removed.")] = False,
) -> int:
    """Remove history older than `state: {retain: …}` that no run needs any more."""
    ledger = invocation.session.ledger(create=not dry_run)
    names = invocation.names(choice, lambda name: _has_state(ledger, name))
    if names is not None and not names:
        return invocation.show_nothing(choice, "pruned")
    keep = timedelta(seconds=invocation.project.definitions.state.retain)
    found, busy = [], []
    for name in sorted(ledger.synced()) if names is None else names:
        try:
            with nullcontext() if dry_run else held(ledger, name):
                gone = ledger.prune(name, keep, dry_run=dry_run)
            found.append({"sync": name, "runs": gone.runs, "rejects": gone.rejects, "files": len(gone.files)})
        except Later as problem:
            busy.append(f"{name}: {problem.message}")
    headers = ("sync", "runs", "rejects", "files")
    table = Table(headers, [tuple(one[name] for name in headers) for one in found])
    code = Later.exit_code if busy else 0
    invocation.show(
        {"dry_run": dry_run, "pruned": found, "busy": busy, "exit_code": code},
        lambda: [*([table] if found else ["there is no history"]), *busy],
    )
    return code


@command(state, "unblock", ledger=True)
def unblock(
    invocation: Invocation,
    connection: Annotated[str, typer.Argument(metavar="CONNECTION", autocompletion=completing.connections)],
    yes: Yes = False,
) -> None:
    """Use a connection again at once, although its breaker or its target says wait."""
    from retl.project.settings import DEFAULT_CONNECTIONS
    from retl.project.validation import did_you_mean

    known = {*invocation.project.definitions.connections, *DEFAULT_CONNECTIONS}
    if connection not in known:
        hint = did_you_mean(connection, known)
        raise DefinitionError("CONNECTION_UNKNOWN", f"there is no connection {connection!r}", hint=hint)
    then = f"the next run uses {connection} at once"
    ledger = _ledger(invocation, yes)
    confirmed(then, yes)
    was_blocked = ledger.unblock(connection) | ledger.forget_holds(connection)
    done(invocation, {"unblocked": connection, "was_blocked": was_blocked}, then)


@command(state, "pause", ledger=True)
def pause(
    invocation: Invocation,
    name: SyncName,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; `retl status` shows it.")],
) -> None:
    """Let no run of a sync write until it is resumed."""
    invocation.session.require_known(name)
    if not reason.strip():
        raise DefinitionError("USAGE", "--reason needs a text: somebody has to decide by it when to resume")
    invocation.session.ledger(create=True).pause(name, getpass.getuser(), reason.strip())
    done(
        invocation,
        {"paused": name, "reason": reason.strip()},
        f"no run of {name} writes until `retl state resume {name}`; a run under way is not stopped",
    )


@command(state, "resume", ledger=True)
def resume(invocation: Invocation, name: SyncName) -> None:
    """Let a paused sync run again."""
    ended = invocation.session.ledger(create=True).resume(name)
    if ended is None:
        invocation.session.require_known(name)
    then = f"the next run of {name} sends what changed" if ended else f"{name} was not paused"
    done(invocation, {"resumed": name, "was_paused": asdict(ended) if ended else None}, then)


def _ledger(invocation: Invocation, yes: bool) -> Ledger:
    return invocation.session.ledger(create=yes)


def _known(ledger: Ledger, name: str) -> None:
    if not _has_state(ledger, name):
        raise DefinitionError(
            "STATE_UNKNOWN",
            f"there is no state of a sync {name!r}",
            hint="`retl state show` lists the syncs with state",
        )


def _has_state(ledger: Ledger, name: str) -> bool:
    return bool(ledger.checkpoints(name) or ledger.runs(name, 1) or ledger.rejects(name))


def confirmed(then: str, yes: bool) -> None:
    """DefinitionError NEEDS_YES unless --yes was given."""
    if not yes:
        raise DefinitionError(
            "NEEDS_YES", f"with --yes: {then}", hint="nothing was changed yet; add --yes to do it"
        )


def held(ledger: Ledger, name: str) -> AbstractContextManager[Lock]:
    """Lock the sync while its state changes. Later LOCK_HELD if a run is active."""
    return ledger.lock([name], sync=name, host=socket.gethostname(), pid=os.getpid())


def done(invocation: Invocation, document: dict[str, Any], then: str) -> None:
    invocation.show({**document, "next_run": then}, lambda: [then])


def group(
    group: typer.Typer,
    name: str,
    bare: Any,
    bare_name: str,
    *,
    reveals: bool,
    formats: Any = Output,
    before_sync: Sequence[str] | None = None,
    ledger: bool = False,
) -> None:
    """`retl NAME` alone does what `retl NAME BARE` does, and so does `retl NAME SYNC` if `before_sync` says
    what BARE takes before the name of a sync."""
    group.callback()(with_shared_options(bare, reveals=reveals, alone=True, formats=formats, ledger=ledger))
    command(group, bare_name, reveals=reveals, formats=formats, ledger=ledger)(bare)
    words = None if before_sync is None else (bare_name, *before_sync)
    app.add_typer(group, name=name, cls=type("Family", (Family,), {"before_sync": words}))


group(state, "state", show, "show", reveals=False, before_sync=(), ledger=True)
