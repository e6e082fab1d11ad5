"""Tables that dlt loads: its own columns stay out of a sync, and a value it put elsewhere is noticed. The
tables are made as dlt makes them; dlt itself is not installed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Workshop
from tests.servers import Database

GUIDE = (Path(__file__).parents[1] / "docs" / "guides" / "dlt.md").read_text(encoding="utf-8")
LOADED = "'0.1' AS _dlt_load_id, '{}' || order_id AS _dlt_id"
SOURCE, SENT = "source: {table: shop.orders}", "{type: postgres, table: crm.orders, create: true}"


@pytest.fixture
def shop(tmp_path: Path, postgres: Database) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(postgres=postgres)
    made.warehouse("CREATE SCHEMA shop")
    load(made, "first")
    return made


def load(shop: Workshop, name: str, more: str = "") -> None:
    """What a load leaves; the ids of its rows begin with `name`."""
    rows = "range(1, 31) t(i)"
    own = LOADED.format(name)
    shop.warehouse(
        f"CREATE OR REPLACE TABLE shop.orders AS SELECT i AS order_id, i::DECIMAL(12,2) AS total{more}, {own} FROM {rows}"
    )


def yaml_of_the_guide(first: str) -> str:
    """The first example of the guide that begins with this."""
    found = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    (text,) = (one for one in found if one.startswith(first))
    return str(text)


def ran(shop: Workshop, code: int = 0) -> Any:
    said = shop.retl("sync", "--output", "json")
    assert said.code == code, said.err
    return said.document["syncs"][0]


def test_the_sync_of_the_guide_sends_what_changed(shop: Workshop) -> None:
    shop.write("syncs/orders.yml", yaml_of_the_guide("# syncs/orders.yml"))
    assert ran(shop)["inserted"] == 30
    load(shop, "second")
    assert ran(shop)["unchanged"] == 30


def test_the_columns_of_the_loader_are_not_part_of_all_columns(shop: Workshop, postgres: Database) -> None:
    shop.sync("orders", source="{table: shop.orders}", key="[order_id]", destination=SENT)
    assert ran(shop)["inserted"] == 30
    load(shop, "second")
    assert ran(shop)["unchanged"] == 30
    with postgres.connect() as connection:
        names = connection.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name = 'orders' ORDER BY 1"
        ).fetchall()
    assert names == [("order_id",), ("total",)]


def test_a_contract_can_name_a_column_of_the_loader(shop: Workshop) -> None:
    contract = "{order_id: {type: integer}, _dlt_load_id: {type: string}}"
    shop.sync("orders", source="{table: shop.orders}", key="[order_id]", contract=contract, destination=SENT)
    assert ran(shop)["inserted"] == 30


@pytest.mark.parametrize(
    "contract",
    [
        "{order_id: {type: integer}, total: {type: decimal, max_digits: 12, decimal_places: 2, nullable: true}}",
        None,
    ],
)
def test_a_column_whose_values_dlt_put_elsewhere_is_refused(shop: Workshop, contract: str | None) -> None:
    load(shop, "second", ", CASE WHEN i = 7 THEN 'seven' END AS total__v_text")
    parts = {"contract": contract} if contract else {}
    shop.sync("orders", source="{table: shop.orders}", key="[order_id]", destination=SENT, **parts)
    run = ran(shop, 3)
    assert (run["status"], run["error"]["code"]) == ("REFUSED", "SOURCE_DRIFT")
    assert "dlt put those of another type into total__v_text" in run["error"]["message"]
    said = shop.retl("validate")
    assert (said.code, "total__v_text" in said.err) == (2, True)


def test_the_sql_of_the_guide_puts_the_values_together(shop: Workshop, postgres: Database) -> None:
    load(shop, "second", ", CASE WHEN i = 7 THEN '7.50' END AS total__v_text")
    shop.warehouse("UPDATE shop.orders SET total = NULL WHERE order_id = 7")
    text = yaml_of_the_guide("# syncs/orders.yml")
    assert SOURCE in text
    shop.write("syncs/orders.yml", text.replace(SOURCE, yaml_of_the_guide("source:\n")))
    assert ran(shop)["inserted"] == 30
    with postgres.connect() as connection:
        assert connection.execute("SELECT total::text FROM crm.orders WHERE order_id = 7").fetchall() == [
            ("7.50",)
        ]


def test_a_column_with_such_a_name_is_nobodys_variant_without_its_column(shop: Workshop) -> None:
    load(shop, "second", ", 'x' AS score__v_text")
    shop.sync("orders", source="{table: shop.orders}", key="[order_id]", destination=SENT)
    assert ran(shop)["inserted"] == 30
