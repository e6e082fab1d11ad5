"""What the guide to dashboards says: the schema beside the rows, stable bytes, and a query that reads them."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import duckdb

from tests.commands import Workshop
from tests.exported import objects

FOLDER = Path(__file__).parents[1] / "docs" / "guides" / "dashboard"
PAGE = (FOLDER / "index.md").read_text(encoding="utf-8")
MART = """CREATE TABLE mart_revenue_by_month AS SELECT (DATE '2024-07-01' + to_months(i::INTEGER))::DATE AS month,
 (900 + 700 * sin(i / 3.0) + i * 45)::DECIMAL(12,2) AS revenue, (40 + i * 7 % 31)::BIGINT AS orders FROM range(29) t(i)"""
SYNC = re.findall(r'```yaml title="syncs/.*?\n(.*?)```', PAGE, re.DOTALL)[0]


def shop(folder: Path) -> Workshop:
    """The guide's sync, into a folder of the project."""
    made = Workshop(folder)
    made.warehouse(MART)
    made.write("retl.yml", "connections: {exports: {type: files, root: out}}\n")
    made.write("syncs/revenue_by_month.yml", SYNC)
    return made


def latest(workshop: Workshop) -> dict[str, Any]:
    return dict(json.loads((workshop.folder / "out" / "revenue" / "latest.json").read_text()))


def test_a_set_says_what_it_is_and_the_same_rows_have_the_same_bytes(tmp_path: Path) -> None:
    made = shop(tmp_path / "project")
    assert made.json("sync")["syncs"][0]["inserted"] == 29
    folder, first = made.folder / "out" / "revenue", latest(made)
    assert (first["description"], first["fresh_for"], first["rows"]) == ("Revenue by month", 93600.0, 29)
    assert [(one["type"], one.get("description")) for one in first["columns"]] == [
        ("date", None), ("decimal(12,2)", "In euros, net"), ("integer", "Paid orders"),
    ]  # fmt: skip
    parquet, page = first["files"]
    assert (page["path"].rpartition(".json")[2], page["encoding"]) == (".gz", "gzip")
    data = (folder / page["path"]).read_bytes()
    rows = json.loads(gzip.decompress(data))
    assert (sha256(data).hexdigest(), len(data)) == (page["sha256"], page["bytes"])
    assert [row["month"] for row in rows] == sorted(row["month"] for row in rows)
    before = objects(folder)
    assert made.json("sync")["syncs"][0]["unchanged"] == 29
    assert objects(folder) == before
    made.json("sync", "--full")  # a new set of the same rows
    second = latest(made)
    assert second["set"] != first["set"]
    assert second["version"] == first["version"]
    assert [one["sha256"] for one in second["files"]] == [parquet["sha256"], page["sha256"]]
    made.warehouse("UPDATE mart_revenue_by_month SET orders = 1 WHERE month = '2024-07-01'")
    made.json("sync")
    assert latest(made)["version"] != first["version"]
    assert made.json("reconcile", "revenue_by_month")["reconcile"]["same"] == 29


def test_the_query_of_the_guide_reads_the_newest_set(tmp_path: Path) -> None:
    made = shop(tmp_path / "project")
    made.json("sync")
    (query,) = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
    query = query.replace("'revenue/", f"'{made.folder}/out/revenue/")
    with duckdb.connect() as connection:
        first, second = (one for one in query.split(";") if one.strip())
        connection.execute(first)
        found = connection.execute(second).fetchall()
    assert (len(found), str(found[0][0])) == (29, "2024-07-01")


def test_compressing_is_for_snapshots_in_csv_and_json(tmp_path: Path) -> None:
    made = shop(tmp_path / "project")
    for wrong in ("format: [parquet, json], mode: changes", "format: parquet, mode: snapshot"):
        text = SYNC.replace("mode: snapshot, format: [parquet, json]", wrong)
        made.write("syncs/revenue_by_month.yml", text)
        assert made.retl("plan", "--offline").code == 2


def beside(workshop: Workshop) -> Path:
    """The folder with the guide's page beside the files."""
    folder = workshop.folder / "out" / "revenue"
    shutil.copyfile(FOLDER / "dashboard.html", folder / "index.html")
    return folder
