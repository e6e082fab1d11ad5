"""Promises in seconds, on machines that also do something else; and clocks that were wrong."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta

from tests.commands import Workshop


def waited(seconds: float) -> float:
    """What `seconds` of a machine of its own become on this one: as many times longer as processes of the last
    minute shared a core. A run that hangs takes longer than that."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def ahead(workshop: Workshop) -> None:
    """Make the runs so far runs of a clock that was a day ahead, and is right now."""
    with closing(sqlite3.connect(workshop.folder / ".retl" / "ledger.db")) as ledger, ledger:
        for run_id, began in ledger.execute("SELECT run_id, started_at FROM retl_runs").fetchall():
            later = (datetime.fromisoformat(began) + timedelta(days=1)).isoformat()
            ledger.execute("UPDATE retl_runs SET started_at = ? WHERE run_id = ?", (later, run_id))
