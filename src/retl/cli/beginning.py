"""`retl init` and `retl demo`: make a project, show a working one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retl.cli.app import app, command
from retl.cli.invocation import Invocation


@command(app, "init")
def init(
    invocation: Invocation,
    directory: Annotated[Path | None, typer.Argument(metavar="[DIR]", show_default=False)] = None,
    from_dbt: Annotated[
        Path | None,
        typer.Option(
            metavar="MANIFEST", help="Make a sync for each mart with `meta.retl` in dbt's manifest.json."
        ),
    ] = None,
) -> None:
    """Make a project that passes `retl validate`."""
    from retl.app import scaffold

    folder = directory or invocation.folder or Path()
    steps = scaffold.NEXT
    if from_dbt is None:
        found: dict[str, list[str]] = {"files": [str(path) for path in scaffold.write(folder)]}
    else:
        found, steps = _from_dbt(folder, from_dbt), scaffold.NEXT_FROM_DBT
    lines = [f"wrote {path}" for path in found["files"]]
    lines += [f"{path} exists and was not changed" for path in found.get("kept", ())]
    lines += [f"no sync: {reason}" for reason in found.get("left_out", ())]
    lines += [f"note: {note}" for note in found.get("notes", ())]
    invocation.show(
        {"directory": str(folder), **found, "next": steps},
        lambda: ["\n".join([*lines, "", "next:", *(f"  {step}" for step in steps)])],
    )


def _from_dbt(folder: Path, manifest: Path) -> dict[str, list[str]]:
    from retl.app.scaffold import dbt

    made = dbt.write(folder, manifest)
    return {
        "files": [str(path) for path in made.written],
        "kept": [str(path) for path in made.kept],
        "left_out": [f"{mart}: {why}" for mart, why in made.left_out],
        "notes": made.notes,
    }


@command(app, "demo")
def demo(
    invocation: Invocation,
    directory: Annotated[Path | None, typer.Argument(metavar="[DIR]", show_default=False)] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the project afterwards.")] = False,
) -> int:
    """Run the sample project against real servers that it starts itself."""
    from retl_demo import show

    return int(show.run(directory, keep) or 0)
