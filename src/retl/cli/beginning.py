"""`retl init` and `retl demo`: from nothing to something that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retl.cli.app import app, command
from retl.cli.invocation import Invocation
from retl.cli.reserved import refuse


@command(app, "init")
def init(
    invocation: Invocation,
    directory: Annotated[Path | None, typer.Argument(metavar="[DIR]", show_default=False)] = None,
    from_dbt: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Make a project that passes `retl validate`."""
    if from_dbt is not None:
        refuse("--from-dbt")
    from retl import scaffold

    folder = directory or invocation.folder or Path()
    written = [str(path) for path in scaffold.write(folder)]
    steps = scaffold.NEXT
    invocation.show(
        {"directory": str(folder), "files": written, "next": steps},
        lambda: [
            *(f"wrote {path}" for path in written),
            "\n".join(["", "next:", *(f"  {s}" for s in steps)]),
        ],
    )


@command(app, "demo")
def demo(
    invocation: Invocation,
    directory: Annotated[Path | None, typer.Argument(metavar="[DIR]", show_default=False)] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the project behind.")] = False,
) -> int:
    """See it work against real servers that it starts itself."""
    from retl.demo import show

    return int(show.run(directory, keep) or 0)
