"""`retl rollback`: take back what a run wrote."""

from __future__ import annotations

from typing import Annotated

import typer
from msgspec.structs import replace

from retl.cli import completing
from retl.cli.app import app, command
from retl.cli.invocation import Invocation
from retl.cli.naming import TAKEN_BACK, run_to_take_back
from retl.cli.running import Accepted, Allowed, report


@command(app, "rollback", reveals=True, negative=True)
def rollback(
    invocation: Invocation,
    run_id: Annotated[
        str, typer.Argument(metavar="RUN|SYNC|-N", help=TAKEN_BACK, autocompletion=completing.runs)
    ],
    keys: Annotated[
        list[str] | None, typer.Option("--key", metavar="KEY", help="Only this row of the run.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be restored; write nothing.")
    ] = False,
    no_pause: Annotated[bool, typer.Option("--no-pause", help="Let the sync run on.")] = False,
    allow_deletes: Allowed = None,
    accept: Accepted = None,
) -> int:
    """Take back what a run wrote, except what was touched since; pause its sync."""
    from retl.app.session import options
    from retl.run import rollback as run
    from retl.values.keys import key_texts

    session = invocation.session
    ledger = session.ledger(create=not dry_run)
    found = run_to_take_back(ledger, run_id)
    sync = session.definition(found.sync)
    session.require([sync])
    asked = run.Asked(found, key_texts(keys or (), len(sync.key)), pause=not no_pause)
    chosen = options(dry_run=dry_run, allow_deletes=allow_deletes, accept=accept or ())
    with session.stop.listening():
        job = session.job(sync, ledger, replace(chosen, purpose="rollback", of_run=found.run_id))
        run.require(job, found)
        summary = run.look(job, asked) if dry_run else run.rollback(job, asked)
    return report(invocation, [summary])
