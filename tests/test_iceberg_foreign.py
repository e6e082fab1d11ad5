"""Tables that another engine writes: DuckDB 1.5 with its own Iceberg extension, through the REST catalog.

It installs that engine into an environment of its own, so it is collected by `make test-all` only (see
tests/conftest.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pyiceberg.catalog.rest import RestCatalog

from retl.sources.api import Feed
from tests.lake import Changes, rows
from tests.servers import ObjectStore
from tests.test_iceberg_catalogs import connection, opened

pytestmark = pytest.mark.timeout(900)  # some of it is the network
UV = str(Path(sys.executable).with_name("uv"))
ENGINE = ["duckdb==1.5.5", *(f"duckdb-extension-{name}==1.5.5" for name in ("avro", "httpfs", "iceberg"))]
HISTORY = [
    "INSERT INTO t SELECT i, 'n' || i, i / 100 FROM range(1000) r(i)",
    "DELETE FROM t WHERE id % 7 = 0",
    "UPDATE t SET name = 'u' WHERE id % 5 = 0",
    "MERGE INTO t USING (SELECT range AS id FROM range(990, 1020)) s ON t.id = s.id"
    " WHEN MATCHED THEN UPDATE SET name = 'm' WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'm', 1)",
    "DELETE FROM t WHERE id BETWEEN 10 AND 12",
    "INSERT INTO t VALUES (11, 'back', 0.5)",
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with that DuckDB."""
    folder = tmp_path_factory.mktemp("engine") / "venv"
    python = str(folder / "bin" / "python")
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True, timeout=300)
    subprocess.run([UV, "pip", "install", "--quiet", "--python", python, *ENGINE], check=True, timeout=600)
    return python


def model() -> list[dict[int, tuple[Any, ...]]]:
    """The rows after each statement, by the same SQL in a plain DuckDB table."""
    import duckdb

    found = list[dict[int, tuple[Any, ...]]]()
    with duckdb.connect() as plain:
        plain.execute("CREATE TABLE t (id BIGINT, name VARCHAR, amount DECIMAL(12,2))")
        for statement in HISTORY:
            plain.execute(statement)
            found.append({row[0]: row for row in plain.execute("FROM t").fetchall()})
    return found


def test_what_another_engine_writes_is_read_and_fed(
    engine: str, objectstore: ObjectStore, tmp_path: Path
) -> None:
    catalog = RestCatalog("tests", **objectstore.catalog)
    catalog.create_namespace_if_not_exists("shop")
    catalog.create_table("shop.t", rows().schema)
    writer = [engine, str(Path(__file__).with_name("iceberg_writer.py")), objectstore.catalog_url]
    writer += [urlsplit(objectstore.url).netloc, objectstore.user, objectstore.password]
    former = list[tuple[str, dict[int, tuple[Any, ...]]]]()
    for statement, now in zip(HISTORY, model(), strict=True):
        words = [*writer, json.dumps(["USE lake.shop", statement])]
        subprocess.run(words, check=True, timeout=120)
        with opened(connection(objectstore), "shop.t", tmp_path) as (workspace, snapshot):
            columns = list(snapshot.description.columns)
            assert {row[0]: row for row in workspace.run(snapshot.rows(columns).sql)} == now
            for version, before in former:
                feed = snapshot.feed(columns, ["id"], version)
                assert isinstance(feed, Feed)
                found = Changes(workspace, feed, 1)
                assert {id_ for id_, row in now.items() if before.get(id_) != row} <= {
                    k for (k,) in found.rows
                }
                assert found.rows == {key: now[key[0]] for key in found.rows}
                assert found.gone == {(id_,) for id_ in before.keys() - now.keys()}
                assert found.total == len(now)
            former.append((snapshot.description.version, now))
    assert former[-1][1][11] == (11, "back", Decimal("0.50"))
    deletes = [one for task in catalog.load_table("shop.t").scan().plan_files() for one in task.delete_files]
    assert deletes, "the engine deletes by positions"
