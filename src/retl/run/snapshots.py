"""The images of a run as a table of eight columns, `retl_pre_snapshot`, in a file for people and auditors.

It reads the ledger's files and writes one file, private to this user: values of the target are in it.
"""

from __future__ import annotations

import os
from pathlib import Path

from retl.engine import baseline
from retl.engine.answers import IMAGES
from retl.engine.scratch import private_directory
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, writing
from retl.ledger import Ledger, RunRow
from retl.observe.signals import Stop
from retl.values.sql import literal

FORMATS = {".parquet": "parquet", ".csv": "csv, HEADER true", ".json": "json"}


def write(ledger: Ledger, run: RunRow, path: Path) -> int:
    """Write the rows that a run wrote, as they were before it; returns their number. DefinitionError
    NOT_REVERSIBLE without images, USAGE for a file of another kind; Failure FILE_UNWRITABLE."""
    if path.suffix not in FORMATS:
        raise DefinitionError("USAGE", "--images takes a .parquet, .csv or .json file")
    if not ledger.images(run.run_id):
        raise DefinitionError("NOT_REVERSIBLE", f"no images of run {run.run_id} are kept")
    with private_directory() as folder, Workspace(folder, Stop()) as workspace:
        _show(workspace, ledger, run)
        with writing(path):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        workspace.run(
            f"COPY (FROM retl_pre_snapshot ORDER BY record_key) TO {literal(str(path))}"
            f" (FORMAT {FORMATS[path.suffix]}, USE_TMP_FILE false)"
        )
        number: int = workspace.one("SELECT count(*) FROM retl_pre_snapshot")[0]
    return number


def _show(workspace: Workspace, ledger: Ledger, run: RunRow) -> None:
    """Create the table retl_pre_snapshot."""
    undone = [one for one in ledger.taken_back(run.sync) if one.of_run == run.run_id]
    restored = [f"SELECT key FROM ({_written(workspace, ledger, one, n)})" for n, one in enumerate(undone)]
    system, _, place = run.object.partition("://")
    at = run.finished_at or run.started_at
    times = [(one.first, one.last, one.answered_at or at) for one in ledger.batches(run.run_id)]
    workspace.load("answered", {"first": "BIGINT", "last": "BIGINT", "answered_at": "TIMESTAMPTZ"}, times)
    workspace.run(
        f"CREATE TABLE retl_pre_snapshot AS SELECT sha256({literal(run.run_id + '/')} || row) AS snapshot_id,"
        f" {literal(run.run_id)} AS pipeline_run_id, {literal(system)} AS target_system,"
        f" {literal(place.rpartition('/')[2])} AS target_entity, key AS record_key,"
        " before AS pre_write_values,"
        " (SELECT max(answered_at) FROM answered WHERE row BETWEEN first AND last) AS snapshot_timestamp,"
        f" key IN ({' UNION ALL '.join(restored) or 'SELECT NULL WHERE false'}) AS rollback_executed"
        f" FROM ({_written(workspace, ledger, run, len(undone))})"
    )


def _written(workspace: Workspace, ledger: Ledger, run: RunRow, number: int) -> str:
    """SQL of the rows that a run wrote: row, key, before."""
    files = [ledger.get_file(name, workspace.directory) for name in ledger.images(run.run_id)]
    read = " UNION ALL ".join(
        f"SELECT *, {n} AS file FROM {baseline.opened(workspace, path, IMAGES)}"
        for n, path in enumerate(files)
    )
    empty = "SELECT 0::BIGINT AS row, '' AS op, '' AS key, NULL::VARCHAR AS before, 0 AS file WHERE false"
    newest = (
        "(SELECT row, arg_max(key, file) AS key, arg_max({b: before}, file).b AS before"
        f" FROM ({read or empty}) GROUP BY row)"
    )
    answers = baseline.answered(workspace, newest, ledger.batches(run.run_id))
    table = f"written_{number}"
    workspace.run(
        f"CREATE TABLE {table} AS SELECT row, key, before FROM ({answers})"
        " WHERE kind IN ('written', 'merged')"
    )
    return f"FROM {table}"
