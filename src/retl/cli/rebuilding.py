"""`retl state rebuild`: compare mart and target, and replace what was confirmed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import asdict, replace

from retl.cli.app import command
from retl.cli.invocation import Invocation
from retl.cli.running import Accepted, Variables, report
from retl.cli.state import SyncName, Yes, confirmed, done, state
from retl.errors import DefinitionError

if TYPE_CHECKING:
    from retl.project.definitions import Sync
    from retl.run.rebuild import Found


@command(state, "rebuild")
def rebuild(
    invocation: Invocation,
    name: SyncName,
    take_ownership: Annotated[
        bool, typer.Option("--take-ownership", help="Also own every key that only the target has.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compare and count; change nothing.")] = False,
    yes: Yes = False,
    accept: Accepted = None,
    var: Variables = None,
) -> int:
    """Replace the baseline by what the target holds."""
    from retl.app.session import options
    from retl.run import rebuild as run

    if dry_run and yes:
        raise DefinitionError("USAGE", "use either --dry-run or --yes")
    session, sync = invocation.session, invocation.session.definition(name)
    asked = options(dry_run=dry_run, accept=accept or (), variables=invocation.variables(var))
    session.require([sync])
    run.require(sync, session.project.destination(sync).target, take_ownership=take_ownership)
    if not dry_run:
        confirmed(_after_rebuild(sync, take_ownership), yes)
    job = session.job(sync, session.ledger(create=yes), replace(asked, purpose="repair"))
    with session.stop.listening():
        if dry_run:
            summary, found = None, run.look(job, take_ownership=take_ownership)
        else:
            summary, found = run.rebuild(job, take_ownership=take_ownership)
    if summary is not None and summary.exit_code:
        return report(invocation, [summary])
    then = _found(sync, found)
    document = {"rebuilt": name, "run_id": summary and summary.run_id, "dry_run": dry_run, **asdict(found)}
    done(invocation, document, f"a rebuild now would find: {then}" if dry_run else then)
    return 0


def _after_rebuild(sync: Sync, take_ownership: bool) -> str:
    """What a rebuild does, before anything is compared."""
    sends = {
        "append": "appends the rows whose keys the target lacks, also if somebody removed them there",
        "insert_only": "inserts the rows whose keys the target lacks",
        "update_only": "updates the rows that the target holds differently",
        "replace": "deletes and inserts the rows that the target lacks or holds differently",
    }.get(sync.write, "sends the rows that the target lacks or holds differently")
    rest = (
        "every other key at the target is owned by this sync, and the next run deletes it if the guards allow"
        if take_ownership
        else "what only the target has is not ours, and is never deleted"
    )
    return (
        f"the mart of {sync.name} is compared with the target, and the result replaces what was confirmed;"
        f" the next run {sends}; {rest}"
    )


def _found(sync: Sync, found: Found) -> str:
    """What a rebuild found, and what the next run does."""
    due = {
        "append": f"appends {found.absent}",
        "insert_only": f"inserts {found.absent}",
        "update_only": f"updates {found.different + found.again} and looks again for {found.absent}",
    }
    sent = found.absent if sync.write in due else found.different + found.absent + found.again
    erased = f"; {found.erased} {'is' if found.erased == 1 else 'are'} erased" if found.erased else ""
    text = (
        f"of {found.read} rows of the mart the target holds {found.same} as they are, {found.different}"
        f" differently and {found.absent} not at all; {found.rejected} cannot be sent{erased}. The next run"
        f" of {sync.name} {due.get(sync.write, f'sends {sent}')} {'row' if sent == 1 else 'rows'}"
    )
    if found.again:
        text += f" ({found.again} that are the same too, once, to notice edits of others from then on)"
    if found.taken:
        text += f" and deletes {found.taken} that only the target has, if the guards allow it"
    if found.unknown_runs and sync.then:
        text += (
            ". The ledger does not know all runs that wrote here: they may have sent the requests that follow"
            " them (`then`)"
        )
    if found.forgotten:
        text += (
            f". Keys that were delivered, left the mart and are no longer known as ours: {found.forgotten}"
            " (--take-ownership takes all that only the target has)"
        )
    return text
