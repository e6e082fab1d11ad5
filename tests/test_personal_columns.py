"""What dbt calls personal stays masked, however a sync reads the model: as a table, in SQL, under another name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from retl.sources.personal import carried
from retl.sources.relations import Name
from tests.commands import Workshop

MODEL = {
    "name": "people",
    "resource_type": "model",
    "unique_id": "model.shop.people",
    "relation_name": '"warehouse"."main"."people"',
    "columns": {"Mail": {"name": "Mail", "meta": {"pii": True}}, "id": {"name": "id"}},
}
MANIFEST = {
    "metadata": {"generated_at": "2026-11-30T10:00:00Z", "adapter_type": "duckdb"},
    "nodes": {"model.shop.people": MODEL},
}
KNOWN: dict[Name, frozenset[str]] = {("warehouse", "main", "people"): frozenset({"mail"})}
ACCEPTED = ("--accept", "DBT_UNKNOWN")


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path / "shop")
    made.warehouse("CREATE TABLE people AS SELECT 1 AS id, 'ada@example.com' AS mail, 'x' AS segment")
    made.write("retl.yml", "connections: {out: {type: sqlite, path: out.db}}\n")
    made.write("target/manifest.json", json.dumps(MANIFEST))
    made.write("by_file.sql", "SELECT id, upper(mail) AS shout FROM people")
    return made


def mart(shop: Workshop, source: str, **more: str) -> None:
    shop.sync("mart", source=source, destination="{connection: out, table: mart, create: true}", **more)


@pytest.mark.parametrize(
    "source",
    [
        "{table: people}",
        "{table: main.people}",
        '{sql: "SELECT id, mail FROM warehouse.main.People"}',
        '{sql: "SELECT id, lower(mail) AS address FROM people"}',
        "{file: by_file.sql}",
        '{inputs: {p: {dbt: people}}, sql: "SELECT id, mail AS address FROM p"}',
        '{inputs: {p: {table: people}}, sql: "SELECT * FROM p"}',
    ],
)
@pytest.mark.parametrize("contract", [None, '{id: {type: integer}, "*": "*"}'])
def test_a_personal_column_of_a_model_is_masked_in_whatever_reads_it(
    shop: Workshop, source: str, contract: str | None
) -> None:
    mart(shop, source, key="[id]", **({"contract": contract} if contract else {}))
    for words in (("plan", *ACCEPTED), ("explain", "mart", "--rows", "1"), ("plan", "--output", "markdown")):
        said = shop.retl(*words)
        assert "ada@example.com" not in (said.out + said.err).lower(), words
        assert "***" in said.out or said.code == 3, words


def test_a_key_that_is_made_of_a_personal_column_is_masked_in_what_the_ledger_keeps(shop: Workshop) -> None:
    rules = '{address: {type: string}, segment: {type: string, one_of: ["y"]}}'
    guards = "{max_reject_rate: 1}"
    sql = '{sql: "SELECT mail AS address, segment FROM people"}'
    mart(shop, sql, key="[address]", contract=rules, guards=guards)
    assert shop.retl("sync", *ACCEPTED).code in (0, 1)
    assert "ada@example.com" not in shop.retl("rejects").out
    assert "***" in shop.retl("rejects").out
    assert "ada@example.com" in shop.retl("rejects", "--reveal").out


def test_the_contract_may_say_that_a_column_is_not_personal(shop: Workshop) -> None:
    rules = "{id: {type: integer}, mail: {type: string, sensitive: false}}"
    mart(shop, '{sql: "SELECT id, mail FROM people"}', key="[id]", contract=rules)
    assert "ada@example.com" in shop.retl("plan", *ACCEPTED).out


def test_what_a_select_leaves_out_is_no_difference_of_its_contract(shop: Workshop) -> None:
    mart(shop, "{sql: \"SELECT id, segment FROM people WHERE mail <> ''\"}", key="[id]")
    said = shop.retl("contract", "diff", "mart")
    assert "mail" not in said.out


@pytest.mark.parametrize(
    ("sql", "names"),
    [
        ("SELECT p.mail FROM people p", {"mail"}),
        ("SELECT * RENAME (mail AS m) FROM people", {"mail", "m"}),
        ("SELECT * REPLACE (md5(mail) AS segment) FROM people", {"mail", "segment"}),
        ("WITH c(a, b) AS (SELECT id, mail FROM people) SELECT b AS z, a AS y FROM c", {"mail", "b", "z"}),
        ("SELECT t.q FROM (SELECT * FROM people) t(p, q)", {"mail", "p", "q"}),
        ("SELECT id, name FROM users UNION ALL SELECT id, mail FROM people", {"name", "mail"}),
        ("SELECT p AS whole, id FROM people p", {"mail", "whole"}),
        ("SELECT (SELECT max(mail) FROM people) AS top, id FROM orders", {"mail", "top"}),
        ("WITH RECURSIVE r AS (SELECT mail AS e, 1 AS n FROM people UNION ALL SELECT e, n + 1 FROM r)"
         " SELECT e AS f, n FROM r", {"mail", "e", "f"}),
        ("WITH people AS (SELECT 1 AS mail) SELECT mail FROM people", set()),
        ("SELECT mail FROM users", set()),
        ("SELECT mail FROM", set()),
    ],
)  # fmt: skip
def test_names_are_followed_through_a_select(sql: str, names: set[str]) -> None:
    told = carried(sql, KNOWN)
    assert names <= told
    assert not {"id", "a", "y", "n"} & told
    if not names:
        assert not told
