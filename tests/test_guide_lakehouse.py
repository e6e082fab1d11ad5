"""The guide of the lakehouse comes true, with a catalog in a folder instead of a REST server.

Its sync files are taken from the page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from retl_demo.campaigns import Campaigns
from tests.commands import Workshop
from tests.servers import Database, RedisServer

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "lakehouse.md"
REST = re.compile(r"catalog: \{type: rest.*\}")
MOST = Decimal("9999999999.99")


@pytest.fixture
def tool() -> Iterator[Campaigns]:
    with Campaigns("a token of the tests") as running:
        yield running


@pytest.fixture
def lake(tmp_path: Path) -> SqlCatalog:
    catalog = SqlCatalog("lake", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/files")
    catalog.create_namespace("analytics")
    customers = [
        (1, "vip", MOST, "0.125"),
        (2, "at_risk", Decimal("500.00"), "0.900"),
        (3, "at_risk", Decimal("499.99"), "0.950"),
        (4, "lost", Decimal("0.10"), "0.999"),
    ]
    names = ("customer_id", "segment", "lifetime_value", "churn_probability")
    kinds = (pa.int64(), pa.string(), pa.decimal128(12, 2), pa.decimal128(5, 3))
    columns = zip(*((i, s, v, Decimal(p)) for i, s, v, p in customers), strict=True)
    table = pa.table({n: pa.array(c, k) for n, c, k in zip(names, columns, kinds, strict=True)})
    catalog.create_table("analytics.customer_analytics", table.schema).append(table)
    reco = {"customer_id": [1, 1, 4], "product_id": ["b", "a", "c"], "rank": [2, 1, 1]}
    found = pa.table(reco)
    catalog.create_table("analytics.product_recommendations", found.schema).append(found)
    return catalog


@pytest.fixture
def project(
    tmp_path: Path, lake: SqlCatalog, postgres: Database, redis_server: RedisServer, tool: Campaigns
) -> Workshop:
    workshop = Workshop(tmp_path / "shop")
    workshop.use(postgres=postgres, redis=redis_server)
    workshop.environment |= {"CAMPAIGN_URL": tool.url, "CAMPAIGN_TOKEN": "a token of the tests"}
    local = f"catalog: {{type: sql, path: {tmp_path}/catalog.db, name: lake}}"
    for path, text in re.findall(r"```yaml\n# (\S+\.yml)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        workshop.write(path, REST.sub(local, text))
    return workshop


def runs(workshop: Workshop) -> dict[str, dict[str, Any]]:
    return {one["sync"]: one for one in workshop.json("sync", "--all")["syncs"]}


def test_three_targets_hold_what_the_tables_say(
    project: Workshop, lake: SqlCatalog, postgres: Database, redis_server: RedisServer, tool: Campaigns
) -> None:
    assert {name: one["inserted"] for name, one in runs(project).items()} == {
        "customer_segments": 4,
        "recommendations": 1,
        "churn_campaign": 1,
    }
    with postgres.connect() as connection:
        query = "SELECT customer_id, lifetime_value, churn_probability FROM crm.customer_segments ORDER BY 1"
        rows = connection.execute(query).fetchall()
    assert rows[0] == (1, MOST, Decimal("0.125"))
    assert redis_server.client().get("reco:1") == b'{"products":["a","b"]}'
    assert {key: held.attributes for key, held in tool.recipients().items()} == {2: {"lifetime_value": 500.0}}

    table = lake.load_table("analytics.customer_analytics")
    table.delete("customer_id = 4")
    found = runs(project)
    assert (found["customer_segments"]["read"], found["customer_segments"]["deleted"]) == (3, 1)
    assert found["churn_campaign"]["unchanged"] == 1


def test_the_page_s_commands_run(project: Workshop) -> None:
    (shell,) = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for line in shell.splitlines():
        said = project.retl(*line.removeprefix("retl ").split())
        assert said.code == 0, (line, said.err)
