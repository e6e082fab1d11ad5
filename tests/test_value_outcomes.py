"""Every hostile value through every adapter by a whole run: it arrives as it is, or its row is refused.

docs/values.md is the table of what became of each, and is held against the runs of this very test;
`make docs` writes it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests import values_page
from tests.api import Api
from tests.commands import Workshop
from tests.kafka import Broker
from tests.mongo import Mongo
from tests.schema_registry import SchemaRegistry
from tests.servers import Database, RedisServer, fresh_database
from tests.value_cases import TEXTS, Case, cases, same, unfit_types
from tests.values_page import PAGE, TARGETS, UNFIT, Outcomes, Topics


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: Database,
    session_redis: RedisServer,
    mongodb: Mongo,
    kafka_broker: Broker,
) -> Iterator[Outcomes]:
    with session_redis.client() as client:
        client.flushdb()
    with fresh_database(postgres_server) as postgres, Api() as api, SchemaRegistry() as registry:
        folder, topics = tmp_path_factory.mktemp("values") / "project", Topics(kafka_broker, registry)
        yield values_page.run(folder, postgres, session_redis, api, mongodb, topics)


@pytest.mark.parametrize("target", TARGETS)
def test_no_value_is_altered(outcomes: Outcomes, target: str) -> None:
    altered = [
        (case.id, outcomes.source[case], told.text)
        for case in cases()
        if (told := outcomes.told[target].get(case)) is not None
        and not same(outcomes.source[case], told.value, outcomes.kinds[case])
    ]
    assert altered == []


@pytest.mark.parametrize("target", TARGETS)
def test_what_does_not_arrive_is_a_reject_with_a_code(outcomes: Outcomes, target: str) -> None:
    arrived, rejected = set(outcomes.told[target]), set(outcomes.rejects[target])
    assert arrived | rejected == set(cases())
    assert arrived & rejected == set()
    assert all(outcomes.rejects[target].values())


@pytest.mark.parametrize("target", TARGETS)
def test_a_hostile_key_arrives_as_it_is_or_its_row_is_refused(outcomes: Outcomes, target: str) -> None:
    with duckdb.connect() as con:
        keys = {what: con.execute(f"SELECT {sql}").fetchall()[0][0] for what, sql in TEXTS.items()}
    arrived = outcomes.keys[target]
    assert arrived == {what: keys[what] for what in arrived}
    assert len(arrived) + outcomes.keys_rejected[target] == len(TEXTS)
    too_long = {"one million"} if target == "postgres" else set()  # for an index
    assert set(TEXTS) - set(arrived) == {"empty", "one blank", "NUL alone", "NUL inside"} | too_long


STRICT = [
    ("integer", "9007199254740993", 9007199254740992),
    ("integer", "1", True),
    ("decimal", "1.005", Decimal("1.00")),
    ("float", "0.1", 0.10000000000000002),
    ("float", "0.0", "-0.0"),
    ("string", "1", 1),
    ("string", "abc ", "abc"),
    ("string", "", None),
    ("string", "e\u0301", "\u00e9"),
    ("timestamp", "2026-01-01 00:00:00.000001", "2026-01-01T00:00:00Z"),
    ("timestamptz", "2026-01-01 00:00:00+00", "2026-01-01T00:00:00+01:00"),
    ("string[]", ["a", None], ["a"]),
    ("string[]", ["NULL"], [None]),
    ("boolean", "true", 1),
    ("json", {"a": Decimal("1.1")}, {"a": 1.1}),
]


@pytest.mark.parametrize(("of", "source", "told"), STRICT)
def test_the_word_on_what_is_the_same_is_strict(of: str, source: Any, told: Any) -> None:
    assert not same(source, told, of)


def test_both_json_targets_get_the_same_bytes(outcomes: Outcomes) -> None:
    def texts(target: str) -> dict[Case, str | None]:
        return {case: told.text for case, told in outcomes.told[target].items()}

    assert texts("redis_json") == texts("http")


@pytest.mark.parametrize("target", UNFIT)
def test_a_type_without_a_form_is_refused_before_anything_is_written(outcomes: Outcomes, target: str) -> None:
    assert len(outcomes.unfit[target]) == len(unfit_types())
    assert set(outcomes.unfit[target].values()) <= {"COLUMN_TYPE", "SOURCE_DRIFT"}


def test_the_page_of_the_values_is_not_stale(outcomes: Outcomes) -> None:
    kept = Path(__file__).parents[1] / PAGE
    assert kept.read_text(encoding="utf-8") == values_page.page(outcomes), "run `make docs`"


@pytest.mark.parametrize("model", [False, True], ids=["columns", "model"])
def test_json_has_200_levels_and_a_reject_names_that_limit(tmp_path: Path, model: bool) -> None:
    """Not those of the libraries that read it on its way: a model of Pydantic can do a few more, Python 900."""
    shop = Workshop(tmp_path / "shop")
    shop.write("retl.yml", f"connections: {{app: {{type: sqlite, path: {tmp_path / 'app.db'}}}}}\n")
    levels = ", ".join(f"({n}, repeat('[', {n}) || repeat(']', {n}))" for n in (1, 199, 200, 201, 255, 900))
    shop.warehouse(
        f"CREATE TABLE docs AS SELECT id, CAST(doc AS JSON) AS doc FROM (VALUES {levels}) t(id, doc)"
    )
    contract = "{id: {type: integer}, doc: {type: json}}"
    if model:
        shop.write(
            "models.py",
            "from typing import Any\nfrom pydantic import BaseModel\n\n\n"
            "class Doc(BaseModel):\n    id: int\n    doc: Any\n",
        )
        contract = "models:Doc"
    to = "{connection: app, table: docs, create: true}"
    rates = "{max_reject_rate: 1, max_failed_rate: 1}"
    shop.sync("docs", source="{table: docs}", key="[id]", contract=contract, destination=to, guards=rates)
    (done,) = shop.json("sync", "docs")["syncs"]
    assert (done["inserted"], done["rejected"], len(done["rejects"])) == (3, 3, 3)
    assert {one["code"] for one in done["rejects"]} == {"UNREPRESENTABLE"}
    assert all("at most 200 levels" in one["reason"] for one in done["rejects"]), done["rejects"]
