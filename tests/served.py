"""A project with a history to look at: three syncs to SQLite, rejects, a row in doubt, a conflict; and the same
with a script in every text of its ledger."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from tests.commands import Workshop

LOUD = "<script>document.title = 'it ran'</script><img src=x onerror=\"document.title = 'it ran'\">\u202e&'"
MAIL = "zoe.canary@example.com"
CONTRACT = """
  user_id: {type: integer}
  email: {type: string, nullable: true, sensitive: true, description: "Where letters go"}
  spend: {type: decimal, max_digits: 12, decimal_places: 2, le: 28}"""
FIELDS = '{"*": "*", Mail: {column: email, transform: [trim, lower]}, Source: {value: warehouse}}'


def shop(folder: Path) -> Workshop:
    """The project, each sync run once."""
    made = Workshop(folder)
    made.write("retl.yml", "connections: {crm: {type: sqlite, path: data/crm.db}}\n")
    made.warehouse(
        f"UPDATE users SET email = '{MAIL}' WHERE user_id = 7;"
        "CREATE TABLE visits AS SELECT 'de' AS country, i AS n, 'seen' AS note FROM range(5) t(i);"
        "CREATE TABLE letters AS SELECT i AS letter FROM range(3) t(i)"
    )
    customers(made)
    made.sync(
        "visits",
        source='{sql: "SELECT * FROM visits"}',
        key="[country, n]",
        destination="{connection: crm, table: visits, create: true}",
    )
    made.sync(
        "letters",
        source="{table: letters}",
        key="[letter]",
        write="append",
        first_run="send",
        destination="{connection: crm, table: letters, create: true}",
    )
    assert made.retl("sync").code == 0
    return made


def customers(made: Workshop, **parts: str) -> None:
    made.sync(
        "customers",
        **{
            "source": "{table: users}",
            "description": "What the CRM knows of customers",
            "tags": "[crm, daily]",
            "freshness": "26h",
            "contract": CONTRACT,
            "fields": FIELDS,
            "destination": "{connection: crm, table: customers, create: true}",
            "guards": "{max_reject_rate: 0.5}",
            **parts,
        },
    )


def copy(made: Workshop, folder: Path) -> Workshop:
    """The same project elsewhere, with its history."""
    shutil.copytree(made.folder, folder)
    found = Workshop.__new__(Workshop)
    found.folder, found.environment = folder, dict(made.environment)
    return found


def change(made: Workshop, *statements: tuple[str, tuple[str, ...]]) -> None:
    """Change the ledger behind retl's back."""
    with closing(sqlite3.connect(made.folder / ".retl" / "ledger.db")) as ledger, ledger:
        for sql, cells in statements:
            ledger.execute(sql, cells)


def troubled(made: Workshop) -> None:
    """A batch in doubt and a conflict."""
    change(
        made,
        (
            "UPDATE retl_batches SET outcome = NULL WHERE run_id IN (SELECT run_id FROM retl_runs WHERE sync = 'letters')",
            (),
        ),
        (
            "INSERT INTO retl_rejects (sync, key, row_id, stage, code, reason, first_seen, last_seen, attempts, state)"
            " SELECT sync, '3', '', 'conflict', 'EDITED', 'spend was edited at the target [0123456789abcdef]',"
            " first_seen, last_seen, 1, 'open' FROM retl_rejects LIMIT 1",
            (),
        ),
    )


def settled(made: Workshop) -> None:
    """Times that do not depend on this machine's speed."""
    change(
        made,
        (
            """UPDATE retl_runs SET phases = '{"freeze": 0.4, "diff": 0.1, "judge": 0.1, "deliver": 1.2}'""",
            (),
        ),
        ("UPDATE retl_batches SET duration_ms = 120 + 80 * batch_no", ()),
    )


def hostile(made: Workshop) -> None:
    """A script in every text of a `troubled` ledger that is free, and a sync of the past with such a name."""
    trouble = json.dumps([{"code": LOUD, "message": LOUD, "hint": LOUD}])
    one = json.dumps({"code": LOUD, "message": LOUD, "hint": LOUD})
    runs = "object = ?, environment = ?, correlation_id = ?, status = ?, host = ?, os_user = ?, version = ?, guards = ?, error = ?"
    change(
        made,
        (f"UPDATE retl_runs SET {runs} WHERE sync = 'customers'", (*[LOUD] * 7, trouble, one)),
        (
            "UPDATE retl_runs SET sync = ?, run_id = ? WHERE run_id = (SELECT min(run_id) FROM retl_runs WHERE sync = 'visits')",
            (LOUD, LOUD),
        ),
        (
            "UPDATE retl_batches SET run_id = ?, batch_id = ?, status = ?, operation = ?, error = ? WHERE run_id NOT IN"
            " (SELECT run_id FROM retl_runs WHERE sync <> ?)",
            (*[LOUD] * 5, LOUD),
        ),
        ("UPDATE retl_batches SET batch_id = batch_id || ? WHERE outcome IS NULL", (LOUD,)),
        ("UPDATE retl_rejects SET key = key || ?, code = ?, reason = ? || reason", (LOUD, LOUD, LOUD)),
        ("UPDATE retl_rejects SET stage = ? WHERE stage <> 'conflict'", (LOUD,)),
    )
