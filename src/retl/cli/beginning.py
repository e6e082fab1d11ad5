"""`retl init` and `retl demo`: make a project, show a working one."""

from __future__ import annotations

import shlex
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

import typer

from retl.cli import output
from retl.cli.app import app, command
from retl.cli.invocation import Invocation
from retl.errors import DefinitionError


@command(app, "init")
def init(
    invocation: Invocation,
    directory: Annotated[Path | None, typer.Argument(metavar="DIR", show_default=False)] = None,
    from_dbt: Annotated[
        Path | None,
        typer.Option(
            metavar="MANIFEST", help="Make a sync for each mart with `meta.retl` in dbt's manifest.json."
        ),
    ] = None,
    template: Annotated[
        Literal["dbt-to-postgres", "dbt-to-hubspot", "slack"] | None,
        typer.Option(help="Begin with this instead of an example: one sync with comments, to adapt."),
    ] = None,
) -> None:
    """Make a project that passes `retl validate`."""
    from retl.app import scaffold
    from retl.app.scaffold.templates import TEMPLATES

    folder = directory or invocation.folder or Path()
    if template and from_dbt:
        raise DefinitionError("USAGE", "--template and --from-dbt are two ways to begin: choose one")
    steps: tuple[str, ...]
    if from_dbt is not None:
        found, steps = _from_dbt(folder, from_dbt), scaffold.NEXT_FROM_DBT
    else:
        chosen = TEMPLATES[template] if template else scaffold.EXAMPLE
        files, steps = [str(path) for path in scaffold.write(folder, chosen.files)], chosen.steps
        found = {"files": files, "notes": scaffold.unprotected(folder)}
    if folder.absolute() != Path.cwd():
        steps = (f"cd {shlex.quote(str(folder))}", *steps)
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
    directory: Annotated[
        str | None, typer.Argument(metavar="DIR|stop", show_default=False, help="A new folder, or `stop`.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the project afterwards.")] = False,
    serve: Annotated[
        bool,
        typer.Option(
            "--serve",
            help="Only keep PostgreSQL, Valkey, a fake HubSpot and a fake Slack running on this machine, for"
            " a project of yours. `retl demo --serve >> config.env` tells it where they are, by the variables"
            " of the connections in its retl.yml too.",
        ),
    ] = False,
) -> int:
    """Run the sample project against real servers that it starts itself. `retl demo stop` ends the servers of
    `retl demo --serve`."""
    if directory == "stop" or serve:
        if keep or (directory and serve):
            raise DefinitionError("USAGE", "--serve and `stop` take no folder and no --keep")
        return _serve(invocation) if serve else _stop(invocation)
    if directory and get_close_matches(directory, ["stop"], cutoff=0.8) and not Path(directory).exists():
        hint = f"did you mean 'stop'? For a folder of this name write ./{directory}"
        raise DefinitionError("USAGE", f"`retl demo {directory}` would run the whole demo", hint=hint)
    from retl_demo import show

    return int(show.run(Path(directory) if directory else None, keep) or 0)


def _serve(invocation: Invocation) -> int:
    from retl.project.settings import project_folder
    from retl_demo import keeper, wanted

    served, already = keeper.serve()
    own = wanted.variables(project_folder(invocation.folder), served.variables)
    variables = {**served.variables, **own}
    begin = (
        "They run already, since"
        if already
        else "PostgreSQL, Valkey, a fake HubSpot and a fake Slack run since"
    )
    since = served.since.replace("T", " ").replace("+00:00", "Z")
    lines = [f"{name}={value}" for name, value in variables.items()]
    document = {"already": already, "since": served.since, "pid": served.pid, "variables": variables}
    invocation.show(document, lambda: ["\n".join(["# retl demo --serve", *lines])])
    if invocation.output != "json":
        output.say(f"{begin} {since}, on this machine only. `retl demo stop` ends them, and their data.")
    return int(invocation.output_lost)


def _stop(invocation: Invocation) -> int:
    from retl_demo import keeper

    served = keeper.stop()
    said = "No servers of `retl demo --serve` run." if served is None else "The servers have ended."
    invocation.show({"stopped": served is not None}, lambda: [said])
    return int(invocation.output_lost)
