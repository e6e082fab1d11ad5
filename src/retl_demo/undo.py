"""The act of `retl demo` in which somebody else writes too: an edit stays, a bad run is taken back, and a
customer is erased.

It has a small project of its own beside the sample project: its sync says more than a first one needs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

if TYPE_CHECKING:
    from retl_demo.show import Story
    from retl_demo.stage import Stage

ADA = "ada@example.com"
CUSTOMERS = f"""
CREATE TABLE customers AS SELECT * FROM (VALUES
  (1, '{ADA}', '030 11', 40), (2, 'bo@example.com', '030 12', 55),
  (3, 'cleo@example.com', '030 13', 70), (4, 'dan@example.com', '030 14', 85)
) AS t(id, email, phone, score)
"""
BAD = "UPDATE customers SET phone = 'n/a', score = 0"
SYNC = """\
source: {table: customers}
key: [id]
destination: {type: postgres, table: crm.customers, create: true}
conflicts: target_wins
rollback: {keep: 30d}
"""
NUMBER = "+49 151 2345"  # that a person finds out
HEADERS = ("id", "email", "phone", "score")


def play(story: Story, stage: Stage, folder: Path) -> None:
    """The whole act, in an empty folder."""
    story.chapter("Somebody else writes there too")
    (folder / "syncs").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "syncs" / "customers.yml").write_text(SYNC, encoding="utf-8")
    _warehouse(folder, CUSTOMERS)
    beside = stage.beside(folder)
    first = beside.sync("--sync", "customers")
    story.expect(first.code == 0, f"customers: the first run ended with {first.code}")
    _edited(story, beside, f"UPDATE crm.customers SET phone = '{NUMBER}' WHERE id = 2")
    story.say(f"`conflicts: target_wins`. A person writes the phone number of customer 2: {NUMBER}.")
    _taken_back(story, beside, folder)
    _erased(story, beside, folder)


def _taken_back(story: Story, stage: Stage, folder: Path) -> None:
    good = _rows(stage)
    _warehouse(folder, BAD)
    (bad,) = stage.sync("--sync", "customers").syncs
    now = _rows(stage)
    story.table(HEADERS, now, "a bad build of the mart, delivered by `retl sync`: the person's number stays")
    kept = bad["conflicts"] == {"merged": 1, "kept": 0, "queued": 0}
    story.expect(kept and now[1][2:] == (NUMBER, 0), f"customers: the edit did not stay: {now[1]}")
    done = stage.retl("rollback", bad["run_id"])
    back = _rows(stage)
    story.table(HEADERS, back, "retl rollback RUN: every value as it was; the sync waits for a better mart")
    story.expect(done.code == 0 and back == good, f"customers: the rollback left {back}, not {good}")


def _erased(story: Story, stage: Stage, folder: Path) -> None:
    done = stage.retl("erase", "--subject", f"email={ADA}", "--reason", "request 4711")
    (one,) = done.syncs or [{}]
    proof: dict[str, Any] = one.get("proof") or {"target": {}, "ledger": {}, "outside": []}
    ledger = proof["ledger"]
    found = [
        ("the target", f"{proof['target'].get('there')} row deleted, read back: {_yes(proof['target'])}"),
        ("the ledger", f"{len(ledger.get('files', ()))} files rewritten, key kept only as a digest"),
        ("not here", "; ".join(proof["outside"][:1])),
        ("erasure", f"{done.document.get('erasure_id')}, sealed in the chain of runs"),
    ]
    story.table(("proof of", "what"), found, f"retl erase --subject email={ADA}: no run sends her again")
    left = [row for row in _rows(stage) if row[0] == 1]
    files = [path for path in (folder / ".retl").rglob("*") if path.is_file()]
    named = [path.name for path in files if ADA.encode() in path.read_bytes()]
    story.expect(done.code == 0 and not left and not named, f"customers: {ADA} is left: {left} {named}")


def _yes(target: dict[str, Any]) -> str:
    return "gone" if target.get("read_back") else json.dumps(target)


def _warehouse(folder: Path, sql: str) -> None:
    with duckdb.connect(str(folder / "data" / "warehouse.duckdb")) as connection:
        connection.execute(sql)


def _edited(story: Story, stage: Stage, sql: str) -> None:
    import psycopg

    with psycopg.connect(**stage.targets.postgres) as connection:
        changed = connection.execute(sql).rowcount
    story.expect(changed == 1, "customers: there is no row that a person could edit")


def _rows(stage: Stage) -> list[tuple[Any, ...]]:
    import psycopg

    with psycopg.connect(**stage.targets.postgres) as connection:
        return connection.execute("SELECT id, email, phone, score FROM crm.customers ORDER BY id").fetchall()
