"""`retl log`: what every run sent, row by row, and whether somebody changed that history."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retl.cli import output
from retl.cli.app import command
from retl.cli.invocation import Invocation
from retl.cli.naming import WORDS, named_run
from retl.cli.output import Table
from retl.cli.state import OneSync, group
from retl.errors import DefinitionError

if TYPE_CHECKING:
    from retl.engine.workspace import Workspace

SHOWN = 50  # rows for people; a file has all of them
_CHUNK = 1000
_HEADERS = (
    "write_timestamp",
    "pipeline_run_id",
    "target_entity",
    "operation",
    "record_key",
    "write_status",
    "error_message",
)

log = typer.Typer(
    help="Show what was sent, row by row, and verify that history.", invoke_without_command=True
)


def show(
    invocation: Invocation,
    sync: OneSync = None,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="Only the row with this key.")] = None,
    run: Annotated[str | None, typer.Option(metavar="RUN|SYNC|-N", help=f"Only this run. {WORDS}.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Only answers since then: 7d, 2026-11-01.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all columns to FILE: .parquet, .csv or .json.")
    ] = None,
) -> None:
    """Show every row that was sent, the newest last."""
    from retl.engine.scratch import private_directory
    from retl.engine.workspace import Workspace
    from retl.run import writeback

    if out is not None and out.suffix not in writeback.EXPORTS:
        message = f"{out.name} does not end in {', '.join(writeback.EXPORTS)}"
        raise DefinitionError("EXPORT_FORMAT", message, hint="the ending of the file says its format")
    ledger = invocation.session.ledger()
    if sync is not None and not ledger.runs(sync, 1):
        invocation.session.require_known(sync)  # the history may have syncs that are no longer defined
    run = named_run(ledger, run, "retl log").run_id if run is not None else None
    asked = writeback.Asked(sync, run, key, moment(since, ledger.now()))
    stop = invocation.session.stop
    with stop.listening(), private_directory() as folder, Workspace(folder, stop) as workspace:
        older = writeback.load(ledger, workspace, asked, invocation.hides_key)
        notes = [f"{older} runs are older than `log: {{keep: …}}`: their rows are not known any more"] * (
            older > 0
        )
        if out is not None:
            rows = writeback.export(workspace, out)
            invocation.show({"rows": rows, "file": str(out)}, lambda: [f"{rows} rows in {out}", *notes])
        elif invocation.output == "json":
            _write_document(invocation, workspace)
        else:
            _write_table(invocation, workspace, notes)


@command(log, "verify", ledger=True)
def verify(invocation: Invocation, sync: OneSync = None) -> int:
    """Verify the chain of runs: exit 1 if a run, its batches or its files were changed."""
    ledger = invocation.session.ledger()
    if sync is not None and not ledger.runs(sync, 1):
        invocation.session.require_known(sync)
    chains = [one for one in ledger.chains() if sync in (None, one.sync)]
    names = [sync] if sync else sorted({*ledger.synced(), *(one.sync for one in chains)})
    faults = [fault for name in names for fault in ledger.verify(name)]
    found = [
        {"sync": one.sync, "runs": one.head_no - one.pruned, "pruned": one.pruned, "head": one.head}
        for one in chains
    ]
    broken = [{"sync": one.sync, "run_id": one.run_id, "problem": one.problem} for one in faults]
    said = [f"{one.sync}: {one.run_id or 'the end'}: {one.problem}" for one in faults]
    headers = ("sync", "runs", "pruned", "head")
    table = Table(headers, [tuple(one[name] for name in headers) for one in found])
    invocation.show(
        {"chains": found, "faults": broken, "exit_code": int(bool(faults))},
        lambda: [table, *(said or ["every run is as it was recorded"])] if found or said else ["no runs yet"],
    )
    return int(bool(faults))


def moment(text: str | None, now: datetime) -> datetime | None:
    """`7d` before now, or a date or time, in UTC if it names no zone."""
    from retl.model import seconds

    if text is None:
        return None
    try:
        return now - timedelta(seconds=seconds(text))
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise DefinitionError(
            "SINCE_INVALID", f"--since takes 7d or 2026-11-01T06:00:00Z, not {text!r}"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _write_table(invocation: Invocation, workspace: Workspace, notes: list[str]) -> None:
    from retl.run import writeback

    (total,) = workspace.one(f"SELECT count(*) FROM {writeback.LOG}")
    listed, first = ", ".join(_HEADERS), max(total - SHOWN, 0)
    rows = workspace.run(f"SELECT {listed} FROM {writeback.LOG} ORDER BY {writeback.ORDER} OFFSET {first}")
    if first:
        notes = [f"the last {SHOWN} of {total} rows; --out FILE.parquet writes all rows and columns", *notes]
    labels = ("answered", "run", "object", "operation", "key", "status", "error")
    invocation.show(None, lambda: [Table(labels, rows), *notes] if rows else ["nothing was sent", *notes])


def _write_document(invocation: Invocation, workspace: Workspace) -> None:
    """The JSON document, a thousand rows at a time."""
    from retl.run import writeback

    sql = f"SELECT {', '.join(writeback.COLUMNS)} FROM {writeback.LOG} ORDER BY {writeback.ORDER}"
    before = '{"rows": ['
    for chunk in workspace.chunks(sql, _CHUNK):
        rows = [output.document_text(dict(zip(writeback.COLUMNS, row, strict=True))) for row in chunk]
        lines = ",\n".join(json.dumps(json.loads(row), ensure_ascii=False) for row in rows)
        if not output.write(f"{before}\n{lines}"):
            invocation.output_lost = True
            return
        before = ","
    output.write("]}\n" if before == "," else '{"rows": []}\n')


group(log, "log", show, "show", reveals=True, before_sync=("--sync",), ledger=True)
