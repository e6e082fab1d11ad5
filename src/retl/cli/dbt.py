"""`retl dbt`: what retl gives back to a dbt project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retl.cli.app import app, command
from retl.cli.invocation import Invocation
from retl.errors import DefinitionError

dbt = typer.Typer(help="Give dbt what retl knows.", no_args_is_help=True)
app.add_typer(dbt, name="dbt")


@command(dbt, "exposures")
def exposures(
    invocation: Invocation,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write this file of the dbt project.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 if FILE is not what would be written.")
    ] = False,
) -> int:
    """Write the syncs as exposures of the dbt project."""
    from retl.app import exposures as made

    if check and out is None:
        raise DefinitionError("USAGE", "--check compares a file: name it with --out FILE")
    found = made.exposures(invocation.project)
    text = made.text(found)
    current = out is not None and made.is_current(out, text)
    if out is not None and not check:
        made.write(out, text)
    said = text
    if out is not None:
        done = f"{out} is not up to date" if check else f"wrote {out}"
        said = f"{out} is up to date" if current else done
    code = int(check and not current)
    invocation.show(
        {
            "exposures": [one.document() for one in found],
            "file": None if out is None else str(out),
            "changed": out is not None and not current,
            "exit_code": code,
        },
        lambda: [said.rstrip("\n")],
    )
    return code or int(invocation.output_lost)
