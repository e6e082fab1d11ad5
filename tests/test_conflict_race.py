"""Three editors against `retl sync` in a loop: an edit is never overwritten under a strategy that keeps it.

Each editor locks a row, looks at it and writes a value that nobody else writes. Once a key was edited, nobody may
ever again meet a value of retl's there: neither the next editor nor whoever looks at the end.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.servers import Database
from tests.test_conflicts import STRATEGIES, TABLE, project, run

KEYS = 2000
SECONDS = 30.0 if os.environ.get("RETL_TEST_ALL") else 1.0
# A trigger after updates makes a batch take the way that locks first.
TRIGGER = """
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN null; END $$;
CREATE TRIGGER nothing AFTER UPDATE ON people FOR EACH ROW EXECUTE FUNCTION nothing();
"""
GUARDS = "{max_conflict_rate: 1}"
RACE = "race"  # the property of a test that says how much was raced


def mart(generation: int) -> str:
    """Every row changes, and the mart's time is older than any of the target's."""
    return (
        f"CREATE OR REPLACE TABLE people AS SELECT 'k' || i AS id, 'w{generation}' AS phone, i AS score,"
        f" TIMESTAMPTZ '2026-01-01 00:00:00+00' AS changed FROM range({KEYS}) t(i)"
    )


def raced(runs: int, written: int, edits: int, keys: int) -> str:
    return f"{runs} runs wrote {written:,} rows beside {edits:,} edits of {keys:,} keys"


def editing(database: Database, stop: threading.Event, seed: int, met: list[tuple[str, str, str]]) -> None:
    """Logs (key, the value met, the value written) of each edit, after it and so in no certain order."""
    chance, number = random.Random(seed), 0
    with database.connect() as session:
        while not stop.wait(chance.random() * 0.002):
            number += 1
            key, value = f"k{chance.randrange(KEYS)}", f"h{seed}-{number}"
            with session.transaction():
                row = session.execute("SELECT phone FROM people WHERE id = %s FOR UPDATE", [key]).fetchone()
                assert row is not None
                session.execute("UPDATE people SET phone = %s WHERE id = %s", [value, key])
                if chance.random() < 0.2:
                    time.sleep(chance.random() * 0.004)
            met.append((key, str(row[0]), value))


@pytest.mark.parametrize("strategy", ["target_wins", "newest_wins", "manual"])
def test_no_edit_is_overwritten_while_syncs_run(
    tmp_path: Path, every_postgres: Database, strategy: str, record_property: Callable[[str, object], None]
) -> None:
    with every_postgres.connect() as admin:
        admin.execute(TABLE + (f"; {TRIGGER}" if strategy == "manual" else ""))
    conflicts = STRATEGIES[strategy]
    workshop = project(
        tmp_path / "project", every_postgres, conflicts, batch="{rows: 200}", deletes="keep", guards=GUARDS
    )
    workshop.warehouse(mart(0))
    assert run(workshop)["inserted"] == KEYS
    met: list[tuple[str, str, str]] = []
    runs, written, stop = 0, 0, threading.Event()
    with ExitStack() as stack:
        editors = [threading.Thread(target=editing, args=(every_postgres, stop, n, met)) for n in range(3)]
        stack.callback(lambda: [one.join() for one in editors])
        stack.callback(stop.set)
        for one in editors:
            one.start()
        until = time.monotonic() + SECONDS
        while time.monotonic() < until or runs < 2:
            runs += 1
            workshop.warehouse(mart(runs))
            found = run(workshop)
            assert found["error"] is None, found["error"]
            written += found["updated"]
    edited = {key for key, _, _ in met}
    ours = Counter(
        key for key, was, _ in met if was.startswith("w")
    )  # met by the first editor of a key alone
    assert {key: number for key, number in ours.items() if number > 1} == {}, "edits were overwritten"
    with every_postgres.connect() as admin:
        ends = dict(admin.execute("SELECT id, phone FROM people").fetchall())
    assert [key for key in edited if not ends[key].startswith("h")] == []
    record_property(RACE, raced(runs, written, len(met), len(edited)))
    assert written > 0
    assert edited
    assert all(ends[key] == f"w{runs}" for key in ends.keys() - edited)
