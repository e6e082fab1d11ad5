"""`retl presets`: which vendors there are, a first preset for another one, and the rehearsal of a preset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from retl.cli.app import command
from retl.cli.invocation import Invocation
from retl.cli.output import Piece, Table, say
from retl.cli.state import group
from retl.errors import DefinitionError

presets = typer.Typer(help="Vendors as data: list, make and rehearse them.", invoke_without_command=True)

_COLUMNS = ("operations", "evidence", "limits", "erasure", "conflicts")


def list_presets(invocation: Invocation) -> None:
    """List the presets at a glance, the project's own ones too."""
    from retl.app import reference
    from retl.cli.definitions import own_presets

    rows = reference.catalogue(own_presets(invocation))
    invocation.show(
        {"presets": rows},
        lambda: [
            Table(
                ("preset", *_COLUMNS, "state"),
                [(one["name"], *(one[name] for name in _COLUMNS), one["state"]) for one in rows],
            )
        ],
    )


group(presets, "presets", list_presets, "list", reveals=False)


@command(presets, "new")
def new(
    invocation: Invocation,
    vendor: Annotated[str, typer.Argument(metavar="VENDOR")],
    curl: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LINE", help="A curl line that writes one row, or looks for one; may be repeated."
        ),
    ] = None,
    openapi: Annotated[Path | None, typer.Option(metavar="FILE", help="The vendor's OpenAPI 3 file.")] = None,
    path: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="A path of that file; may be repeated.")
    ] = None,
    key: Annotated[str | None, typer.Option(metavar="NAME", help="The member that is the key.")] = None,
    source: Annotated[
        str | None, typer.Option(metavar="URL", help="Where the request is documented.")
    ] = None,
) -> None:
    """Write presets/VENDOR.yml and its test from an OpenAPI file or curl lines, without their secrets."""
    from retl.app.scaffold import lines, preset
    from retl.app.scaffold import openapi as api
    from retl.app.scaffold.curl import parse
    from retl.project.settings import project_folder

    if bool(curl) == bool(openapi) or bool(openapi) != bool(path):
        raise DefinitionError("USAGE", "a preset is made from --curl, or from --openapi with --path")
    if openapi is not None:
        draft = api.Api(openapi).draft(vendor, path or (), key)
        draft.source = source or draft.source
    else:
        draft = lines.draft(vendor, [parse(line) for line in curl or ()], key, source)
    files = [str(one) for one in preset.write(project_folder(invocation.folder), draft)]
    steps = preset.next_steps(draft)
    said = [*(f"wrote {one}" for one in files), "", "next:", *(f"  {step}" for step in steps)]
    invocation.show({"files": files, "next": list(steps)}, lambda: ["\n".join(said)])


@command(presets, "test")
def rehearse(invocation: Invocation, file: Annotated[Path, typer.Argument(metavar="FILE")]) -> int:
    """Run a preset against a vendor made from it, with a fault in each run, and print what is proved."""
    from retl.testing import rehearsal
    from retl.testing.script import HEADERS

    quiet = invocation.output == "json"
    proof = rehearsal.rehearse(file, (lambda line: None) if quiet else say)
    code = int(bool(proof.problems))
    document: dict[str, Any] = {
        "preset": proof.preset,
        "evidence": list(proof.evidence),
        **proof.counts,
        "problems": proof.problems,
        "notes": proof.notes,
        "exit_code": code,
    }
    pieces: list[Piece] = [Table(HEADERS, [proof.row])]
    pieces += [f"FAILED {one}" for one in proof.problems] + [f"note: {one}" for one in proof.notes]
    invocation.show(document, lambda: pieces)
    return code or int(invocation.output_lost)
