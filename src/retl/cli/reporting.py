"""`retl report` and `retl docs`: a run, or the whole project, as HTML files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retl.cli import completing
from retl.cli.app import app, command
from retl.cli.history import sync_states
from retl.cli.invocation import Invocation
from retl.cli.naming import WORDS, named_run
from retl.errors import DefinitionError

if TYPE_CHECKING:
    from retl.ledger import Ledger, RunRow

DEFAULT = Path("retl-report.html")


@command(app, "report", negative=True, reveals=True, ledger=True)
def report(
    invocation: Invocation,
    run_id: Annotated[
        str | None,
        typer.Argument(metavar="RUN|SYNC|-N", help=WORDS, show_default=False, autocompletion=completing.runs),
    ] = None,
    sync: Annotated[
        str | None, typer.Option("--sync", metavar="NAME", help="The last run of this sync.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write.")] = DEFAULT,
) -> None:
    """Write a run, by default the last, as one self-contained HTML file."""
    from retl.app.report import gather
    from retl.app.report.page import page

    ledger = invocation.session.ledger()
    run = _run(invocation, ledger, run_id, sync)
    facts = gather(ledger, run, masked=invocation.hides_key(run.sync), states=sync_states(invocation, ledger))
    out = Path(os.path.normpath(out))
    _write(out, page(facts))
    document = {"report": str(out), "run_id": run.run_id, "sync": run.sync}
    invocation.show(document, lambda: [f"{out}: run {run.run_id} of {run.sync}"])


def _run(invocation: Invocation, ledger: Ledger, run_id: str | None, sync: str | None) -> RunRow:
    if run_id or sync is None:
        found: RunRow | None = named_run(ledger, run_id, "retl report")
    else:
        found = next(iter(ledger.runs(sync, 1)), None)
    if found is None and sync is not None:
        invocation.session.require_known(sync)  # raises if there is no such sync
    if found is None or (sync is not None and found.sync != sync):
        of = f" of {sync}" if sync else ""
        what = f"there is no run {run_id!r}{of}" if run_id else f"there are no runs yet{of}"
        raise DefinitionError("RUN_UNKNOWN", what, hint="`retl runs` lists them")
    return found


def _write(path: Path, text: str) -> None:
    """Write a file that only this user can read: keys may be personal data."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as problem:
        message = f"{path} cannot be written: {problem.strerror}"
        raise DefinitionError("REPORT_UNWRITABLE", message, hint="name another file with --out") from None


@command(app, "docs")
def docs(
    invocation: Invocation,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")] = Path("site"),
) -> None:
    """Write a static site of the project: syncs, contracts, mappings, lineage, last runs, rejects."""
    from retl.app import site

    out = Path(os.path.normpath(out))
    paths = site.write(site.pages(invocation.project, invocation.environment), out)
    document = {"site": str(out), "pages": paths}
    invocation.show(document, lambda: [f"{out / 'index.html'}: {len(paths)} pages"])
