"""`retl log`: what every run sent, row by row, and whether somebody changed that history."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import replace

from retl.app.choice import Choice
from retl.cli import output
from retl.cli.app import command
from retl.cli.invocation import Invocation
from retl.cli.naming import WORDS, named_run, short_ids
from retl.cli.output import Table
from retl.cli.state import group
from retl.errors import DefinitionError
from retl.observe.summary import counted

if TYPE_CHECKING:
    from retl.engine.workspace import Workspace
    from retl.ledger import Ledger
    from retl.run import writeback

SHOWN = 50  # rows for people; a file has all of them
_CHUNK = 1000
_HEADERS = (
    "write_timestamp",
    "pipeline_run_id",
    "target_entity",
    "operation",
    "record_key",
    # people see what was written, others the documented status
    "CASE WHEN kind IN ('kept', 'skipped') THEN kind ELSE write_status END",
    "error_message",
)

log = typer.Typer(
    help="Show what was sent, row by row, and verify that history.", invoke_without_command=True
)


def show(
    invocation: Invocation,
    choice: Choice,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="Only the row with this key.")] = None,
    run: Annotated[str | None, typer.Option(metavar="RUN|SYNC|-N", help=f"Only this run. {WORDS}.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Only answers since then: 7d, 2026-11-01.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Number of rows, the newest; 50 in a table, else all."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all columns to FILE: .parquet, .csv or .json.")
    ] = None,
) -> int | None:
    """Show every row that was sent, the newest last."""
    from retl.engine.scratch import private_directory
    from retl.engine.workspace import Workspace
    from retl.run import writeback

    if out is not None and out.suffix not in writeback.EXPORTS:
        message = f"{out.name} does not end in {', '.join(writeback.EXPORTS)}"
        raise DefinitionError("EXPORT_FORMAT", message, hint="the ending of the file says its format")
    ledger, names = invocation.session.ledger(), invocation.names(choice)
    if names is not None and not names:
        return invocation.show_nothing(choice, "rows")
    run = named_run(ledger, run, "retl log").run_id if run is not None else None
    counts_all = out is None and invocation.output != "json"  # a table says how many rows there are
    asked = writeback.Asked(names, run, key, moment(since, ledger.now()), None if counts_all else limit)
    stop = invocation.session.stop
    with stop.listening(), private_directory() as folder, Workspace(folder, stop) as workspace:
        older = writeback.load(ledger, workspace, asked, invocation.hides_key)
        if key is not None:
            _require_sent(ledger, workspace, asked, invocation.hides_key)
        gone = (
            f"{counted(older, 'run', 'is')} older than `log: {{keep: …}}`: their rows are not known any more"
        )
        notes = [gone] if older else []
        if out is not None:
            rows = writeback.export(workspace, out)
            said = f"{counted(rows, 'row')} in {out}"
            invocation.show({"rows": rows, "file": str(out)}, lambda: [said, *notes])
        elif invocation.output == "json":
            _write_document(invocation, workspace)
        else:
            _write_table(invocation, ledger, workspace, SHOWN if limit is None else limit, notes)
    return None


def _require_sent(
    ledger: Ledger, workspace: Workspace, asked: writeback.Asked, hides: Callable[[str], bool]
) -> None:
    """DefinitionError KEY_UNKNOWN if no row was ever sent with this key."""
    from retl.engine.scratch import private_directory
    from retl.engine.workspace import Workspace
    from retl.run import writeback

    if writeback.has_rows(workspace):
        return
    if asked.since is not None:
        with private_directory() as folder, Workspace(folder, workspace.stop) as ever:
            writeback.load(ledger, ever, replace(asked, since=None, limit=None), hides)
            if writeback.has_rows(ever):
                return
    hint = "`retl log` lists the keys that were sent; a key of several columns is a JSON array"
    raise DefinitionError("KEY_UNKNOWN", "no row was sent with this key", hint=hint)


@command(log, "verify", ledger=True)
def verify(invocation: Invocation, choice: Choice) -> int:
    """Verify the chain of runs: exit 1 if a run, its batches or its files were changed."""
    ledger, chosen = invocation.session.ledger(), invocation.names(choice)
    if chosen is not None and not chosen:
        return invocation.show_nothing(choice, "chains")
    chains = [one for one in ledger.chains() if chosen is None or one.sync in chosen]
    names = sorted({*ledger.synced(), *(one.sync for one in chains)}) if chosen is None else chosen
    faults = [fault for name in names for fault in ledger.verify(name)]
    found = [
        {
            "sync": one.sync,
            "runs": one.head_no - one.pruned,
            "pruned": one.pruned,
            "head": one.head,
            "first_run": one.chain_id,
        }
        for one in chains
    ]
    broken = [{"sync": one.sync, "run_id": one.run_id, "problem": one.problem} for one in faults]
    said = [f"{one.sync}: {one.run_id or 'the end'}: {one.problem}" for one in faults]
    said = said or ["every run is as it was recorded"]
    several = [name for name, number in Counter(one.sync for one in chains).items() if number > 1]
    said += [f"{name} has a chain for each name that its runs had (`retl state mv`)" for name in several]
    headers = ("sync", "runs", "pruned", "head", *(("first_run",) if several else ()))
    rows = [tuple(one[name] for name in headers) for one in found]
    table = Table([name.replace("_", " ") for name in headers], rows)
    invocation.show(
        {"chains": found, "faults": broken, "exit_code": int(bool(faults))},
        lambda: [table, *said] if found or faults else ["no runs yet"],
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


def _syncs(ledger: Ledger, runs: set[str]) -> dict[str, str]:
    """The sync of each run."""
    return {run: found.sync for run in runs if (found := ledger.run(run)) is not None}


def _write_table(
    invocation: Invocation, ledger: Ledger, workspace: Workspace, most: int, notes: list[str]
) -> None:
    from retl.run import writeback

    (total,) = workspace.one(f"SELECT count(*) FROM {writeback.LOG}")
    listed, first = ", ".join(_HEADERS), max(total - most, 0)
    rows = workspace.run(f"SELECT {listed} FROM {writeback.LOG} ORDER BY {writeback.ORDER} OFFSET {first}")
    if first:
        notes = [
            f"the last {most:,} of {total:,} rows; --out FILE.parquet writes all rows and columns",
            *notes,
        ]
    syncs = _syncs(ledger, {str(row[1]) for row in rows})
    several = ("sync",) if len({*syncs.values()}) > 1 else ()
    labels = ("answered", "run", *several, "object", "operation", "key", "status", "error")
    ends = {"run": short_ids([str(row[1]) for row in rows])}
    if several:
        rows = [(*row[:2], syncs[str(row[1])], *row[2:]) for row in rows]
    table = Table(labels, rows, spares=("run", "object", "answered"), folds=("object", "key"), shorts=ends)
    invocation.show(None, lambda: [table, *notes] if total else ["nothing was sent", *notes])


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


group(log, "log", show, "show", reveals=True, before_sync=(), ledger=True)
