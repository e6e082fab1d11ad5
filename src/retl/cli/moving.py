"""`retl state copy` and `retl state unfence`: move the whole state to another store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retl.cli.app import command
from retl.cli.invocation import Invocation
from retl.cli.state import Yes, confirmed, done, state
from retl.errors import DefinitionError
from retl.observe.summary import counted

if TYPE_CHECKING:
    from retl.ledger.moving import Store


@command(state, "copy")
def copy(
    invocation: Invocation,
    to: Annotated[
        str,
        typer.Option("--to", metavar="URL", help="file:FOLDER or postgresql://…; '${NAME}' is a variable."),
    ],
    yes: Yes = False,
) -> None:
    """Copy everything that retl remembers to another store, and let no run use the old one."""
    from retl.ledger import moving

    here, there = _here(invocation), _there(invocation, to)
    confirmed(
        f"the state of {here.address} is copied to {there.address}; from then on runs that still use the old"
        " address are refused",
        yes,
    )
    made = moving.copy(here, there, list(invocation.project.syncs))
    what = f"{counted(made.rows, 'row')} and {counted(made.files, 'run file')} copied to {made.address}"
    if made.finished:
        what = f"the copy to {made.address} is finished"
    then = f"{what}; now set RETL_STATE_URL (or `state: {{url: …}}` in retl.yml) to it"
    document = {"copied": {"to": made.address, "rows": made.rows, "files": made.files}}
    done(invocation, document, then)


@command(state, "unfence")
def unfence(invocation: Invocation, yes: Yes = False) -> None:
    """Put a state that was copied away in charge again; the copy must not be used any more."""
    from retl.ledger import moving

    here = _here(invocation)
    confirmed(
        f"runs use the state at {here.address} again; it does not know the runs that the copy recorded: what"
        " they did may be done again (STATE_BEHIND where the target keeps a trace)",
        yes,
    )
    moved = moving.unfence(here)
    then = f"{here.address} was not moved" if moved is None else f"{here.address} is in charge, not {moved}"
    done(invocation, {"unfenced": moved is not None, "moved_to": moved}, then)


def _here(invocation: Invocation) -> Store:
    return _store(invocation.project.state_url, invocation.environment)


def _there(invocation: Invocation, to: str) -> Store:
    """The store of --to; a file state gets the folder of the environment, as that of retl.yml does."""
    environment = invocation.project.environment

    def value(found: re.Match[str]) -> str:
        known = environment.get(found[1])
        if known is None:
            raise DefinitionError("VARIABLE_UNSET", f"the variable {found[1]} is not set")
        return known

    from retl.observe.redact import register_variable

    url = re.sub(r"\$\{(\w+)\}", value, to)
    register_variable("--to", url)
    if url.startswith(("postgresql://", "postgres://")):
        return _store(url, invocation.environment)
    if not url.startswith("file:") or url in ("file:",) or url.startswith("file://"):
        raise DefinitionError("STATE_URL", "a state is file:FOLDER or postgresql://…", where="--to")
    own = () if invocation.environment is None else (invocation.environment,)
    folder = invocation.project.folder / url.removeprefix("file:")
    return _store(f"file:{Path(folder).joinpath(*own)}", None)


def _store(url: str, environment: str | None) -> Store:
    from retl.ledger.moving import Store

    return Store(url, None if url.startswith("file:") else environment)
