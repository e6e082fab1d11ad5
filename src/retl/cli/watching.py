"""`retl watch`: run syncs when they are due."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retl.app.choice import Choice
from retl.cli import output
from retl.cli.app import app, command
from retl.cli.choosing import STANDING
from retl.cli.invocation import Invocation
from retl.cli.running import NUMBERS, masked, tell_errors
from retl.observe.summary import counted

if TYPE_CHECKING:
    from retl.app.loaded import LoadedProject
    from retl.observe.summary import Summary

LISTED = 10  # syncs that the first line names
GARBAGE_EVERY = 20_000  # objects: a process that stays keeps less than one that soon ends


@command(app, "watch", reveals=True, chooses=STANDING)
def watch(
    invocation: Invocation,
    choice: Choice,
    jobs: Annotated[
        int, typer.Option(min=1, max=64, metavar="N", help="Number of runs at the same time.")
    ] = 4,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Serve /healthz, /metrics and POST /sync/NAME here [127.0.0.1:8080 if a sync has `event`].",
        ),
    ] = None,
) -> int:
    """Stay, and run each sync when its `when` says so."""
    from retl.app.resolve import open_project
    from retl.app.watch import Watch

    gc.set_threshold(GARBAGE_EVERY)
    first = [invocation.session.project]

    def opened() -> LoadedProject:
        return first.pop() if first else open_project(first_folder, invocation.environment)

    first_folder, stop = first[0].folder, invocation.session.stop
    watched = Watch(
        opened,
        invocation.environment,
        choice,
        jobs=jobs,
        listen=listen,
        stop=stop,
        report=lambda summary: show(invocation, summary),
        failed=invocation.debugged,
    )
    with stop.listening(watched.reload_soon), watched:
        if invocation.watched:  # elsewhere the log says it
            output.say(sentence(watched.plan))
        return watched.run()


def sentence(plan: Mapping[str, Any]) -> str:
    """What is watched, in one line."""
    listed = [f"{name} ({awaited})" for name, awaited in plan["next"].items()]
    more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
    address = f"; {plan['address']}/healthz" if "address" in plan else ""
    syncs = counted(len(listed), "sync")
    return f"watching {syncs} of {plan['project']}: {', '.join(listed[:LISTED])}{more}{address}"


def show(invocation: Invocation, summary: Summary) -> None:
    """Print a run that ended: a line of text, or of JSON."""
    document = masked(invocation, summary.document())
    if invocation.output == "json":
        output.write(output.line_text(document))
    else:
        counted = [f"{document[name]} {name.replace('_', ' ')}" for name in NUMBERS if document[name]]
        text = f"{summary.sync}: {summary.status}: {', '.join(counted) or 'no rows'}"
        output.write(output.pieces_text([text]))
    tell_errors([document])
