"""`retl serve`: the ledger as web pages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retl.cli import output
from retl.cli.app import app, command
from retl.cli.invocation import Invocation
from retl.errors import DefinitionError, Stopped

if TYPE_CHECKING:
    from retl.app.loaded import LoadedProject


@command(app, "serve", ledger=True)
def serve(
    invocation: Invocation,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to serve; off this machine it needs a token.")
    ] = "127.0.0.1:8081",
    token: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A file with the token that visitors need [RETL_SERVE_TOKEN]."),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name that visitors use for this server, as behind a proxy."),
    ] = None,
) -> int:
    """Show the ledger as read-only web pages until it is stopped."""
    from retl.app.resolve import open_project
    from retl.app.serve import Serve
    from retl.observe import log
    from retl.observe.summary import counted

    first = [invocation.session.project]
    folder, stop = first[0].folder, invocation.session.stop

    def opened() -> LoadedProject:
        return first.pop() if first else open_project(folder, invocation.environment)

    serving = Serve(
        opened,
        invocation.environment,
        listen=listen,
        token=_set(invocation) if token is None else _read(token),
        names=tuple(host or ()),
        failed=invocation.debugged,
    )
    with serving, stop.listening(serving.reload):
        address, number = f"http://{serving.address}/", len(serving.project.syncs)
        log.event("serving", project=str(folder), syncs=number, address=address)
        if invocation.watched:  # elsewhere the log says it
            output.say(f"serving the ledger of {counted(number, 'sync')} of {folder}: {address}")
        try:
            while True:
                stop.wait(3600)
        except Stopped as stopped:
            return stopped.exit_code


def _set(invocation: Invocation) -> str | None:
    found = invocation.project.settings.retl_serve_token
    return found.get_secret_value() if found is not None else None


def _read(file: Path) -> str:
    """The token in a file; on the command line itself every user of the machine could read it."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        raise DefinitionError(
            "SERVE_TOKEN",
            "--token names a file, and it cannot be read",
            hint="write the token into a file that only you can read, or set RETL_SERVE_TOKEN",
        ) from None
