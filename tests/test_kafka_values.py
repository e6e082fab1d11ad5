"""Runs that deliver values with a schema to a topic: rows that change, a contract that changes, a registry that is
away, and the example of the target's page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any

import pytest
import yaml

from retl.destinations.kafka import adapter
from retl.testing.faults import answer, passed
from tests.commands import ROWS, Workshop
from tests.destinations.test_kafka import Topic
from tests.kafka import Broker
from tests.schema_registry import SchemaRegistry

CONTRACT = """
  user_id: {type: integer}
  email: {type: string, nullable: true}
  spend: {type: decimal, max_digits: 12, decimal_places: 2}"""
AWAY = answer(503, '{"error_code": 50003, "message": "no leader"}')


class Shop(Workshop):
    """A project that delivers `users` to a topic."""

    def __init__(self, folder: Path, broker: Broker, registry: SchemaRegistry) -> None:
        super().__init__(folder)
        self.registry, self.topic = registry, Topic(broker)
        connection = {"type": "kafka", "servers": broker.address, "registry": registry.connection}
        self.write("retl.yml", json.dumps({"connections": {"events": connection}}))
        self.options: dict[str, Any] = {"value": "avro", "register_schema": True}
        self.define()

    def define(self, contract: str = CONTRACT, **parts: str) -> None:
        to = {"connection": "events", "topic": self.topic.name, "create": True, **self.options}
        given = {"contract": contract, "destination": json.dumps(to), "deletes": "delete", **parts}
        self.sync("users", **given)

    def run(self, *words: str) -> dict[str, Any]:
        said: dict[str, Any] = self.retl("sync", *words, "--output", "json").document["syncs"][0]
        return said

    @property
    def subject(self) -> list[int]:
        return self.registry.subjects.get(f"{self.topic.name}-value", [])

    def rows(self) -> dict[int, dict[str, Any]]:
        """The newest value of each key, decoded as a consumer does it."""
        newest = {one.key(): one.value() for one in self.topic.broker.committed(self.topic.name)}
        found = [self.registry.decoded(value) for value in newest.values() if value is not None]
        return {row["user_id"]: row for row in found}

    def sent(self) -> int:
        return len(self.topic.broker.committed(self.topic.name))


@pytest.fixture
def registry() -> Iterator[SchemaRegistry]:
    with SchemaRegistry() as registry:
        yield registry


@pytest.fixture
def shop(tmp_path: Path, kafka_broker: Broker, registry: SchemaRegistry) -> Shop:
    return Shop(tmp_path / "project", kafka_broker, registry)


@pytest.mark.parametrize("value", ["avro", "json_schema"])
def test_rows_that_change_and_go_arrive_as_what_they_are(shop: Shop, value: str) -> None:
    shop.options["value"] = value
    shop.define()
    first = shop.run()
    assert (first["status"], first["inserted"]) == ("SUCCESS", ROWS)
    assert shop.run()["unchanged"] == ROWS
    assert shop.sent() == ROWS
    shop.warehouse(
        "UPDATE users SET spend = 99.50, email = NULL WHERE user_id = 7; DELETE FROM users WHERE user_id = 8"
    )
    second = shop.run()
    assert (second["updated"], second["deleted"], second["unchanged"]) == (1, 1, ROWS - 2)
    found = shop.rows()
    assert found.keys() == {*range(1, ROWS + 1)} - {8}
    assert (str(found[7]["spend"]), found[7]["email"]) == ("99.50", None)
    assert found[9] == {"user_id": 9, "email": "u9@example.com", "spend": 9}
    assert shop.subject == [1]


def test_other_values_are_other_bytes_so_every_row_goes_again(shop: Shop) -> None:
    shop.options = {}
    shop.define()
    shop.run()
    assert shop.registry.seen == []
    shop.options = {"value": "avro", "register_schema": True}
    shop.define()
    assert shop.run()["updated"] == ROWS
    assert len(shop.rows()) == ROWS


def test_a_contract_that_grows_by_an_optional_field_is_a_new_version(shop: Shop) -> None:
    shop.run()
    shop.warehouse(
        "ALTER TABLE users ADD COLUMN note VARCHAR; UPDATE users SET note = 'hi' WHERE user_id = 3"
    )
    shop.define(f"{CONTRACT}\n  note: {{type: string, nullable: true}}")
    again = shop.run()
    assert (again["status"], again["updated"]) == ("SUCCESS", ROWS)
    assert shop.subject == [1, 2]
    assert shop.rows()[3]["note"] == "hi"
    shop.define()
    assert shop.run()["status"] == "SUCCESS"  # the field is gone: the older version is used again
    assert shop.subject == [1, 2]


def test_what_the_registry_refuses_is_refused_before_anything_is_sent(shop: Shop) -> None:
    shop.run()
    shop.warehouse("UPDATE users SET spend = spend + 1")
    shop.define(CONTRACT.replace("max_digits: 12", "max_digits: 14"))
    before = shop.sent()
    for words in (["--dry-run"], []):
        refused = shop.run(*words)
        assert (refused["status"], refused["exit_code"]) == ("REFUSED", 3)
        (guard,) = refused["guards"]
        assert guard["code"] == "TARGET_DRIFT"
        assert "TYPE_MISMATCH" in guard["message"]
    checked = shop.retl("check")
    assert checked.code == 3
    assert "nullable: true" in checked.out + checked.err
    assert "compatibility at the registry" in checked.out + checked.err
    assert (shop.sent(), shop.subject) == (before, [1])
    shop.registry.levels[f"{shop.topic.name}-value"] = "NONE"
    assert shop.run()["updated"] == ROWS


def test_a_subject_of_others_is_used_as_it_is_or_refused(shop: Shop) -> None:
    shop.options = {"value": "avro"}
    shop.define()
    assert shop.run()["guards"][0]["code"] == "TARGET_DRIFT"
    fields = [{"name": "user_id", "type": "long"}, {"name": "email", "type": ["string", "null"]}]
    theirs = {"type": "record", "name": "User", "namespace": "crm", "fields": fields}
    shop.registry.add(f"{shop.topic.name}-value", theirs)
    refused = shop.run()
    assert refused["exit_code"] == 3
    assert "it has no field spend" in refused["guards"][0]["message"]
    shop.define(fields="{email: email}")
    assert shop.run()["status"] == "SUCCESS"
    assert shop.rows()[5] == {"user_id": 5, "email": "u5@example.com"}
    assert not [one for one in shop.registry.asked if one.startswith("POST")]


def test_a_registry_that_is_away_ends_the_run_before_anything_is_sent(shop: Shop) -> None:
    shop.define(retry="{attempts: 1}")
    shop.registry.misbehave(AWAY)
    failed = shop.run()
    assert (failed["status"], failed["error"]["code"]) == ("FAILED", "REGISTRY_UNREACHED")
    assert failed["exit_code"] == 1
    assert shop.sent() == 0
    shop.registry.misbehave(passed, passed, AWAY)  # away once the run is to register
    assert shop.run()["status"] == "FAILED"
    assert shop.sent() == 0
    shop.registry.misbehave(passed, passed, passed, *[AWAY] * 50)  # away once rows are on their way
    assert shop.run()["status"] == "SUCCESS"
    assert len(shop.registry.faults) == 50
    assert len(shop.rows()) == ROWS


def test_check_says_what_a_run_will_register_and_registers_nothing(shop: Shop) -> None:
    said = shop.retl("check")
    assert said.code == 0
    assert "registers the schema of its values" in said.out + said.err
    assert shop.subject == []
    assert shop.retl("explain", "users", "--rows", "1").code == 0
    assert shop.retl("validate").code == 0


def test_formats_have_no_effect_in_avro_and_are_in_the_json_schema(shop: Shop) -> None:
    shop.define(formats="{decimals: string}")
    refused = shop.retl("validate")
    assert refused.code == 2
    assert "OPTION_UNUSED" in refused.out + refused.err
    shop.options["value"] = "json_schema"
    shop.define(formats="{decimals: string}")
    assert shop.run()["status"] == "SUCCESS"
    newest = shop.registry.newest(f"{shop.topic.name}-value")
    assert newest["properties"]["spend"] == {"type": "string"}
    assert shop.rows()[5]["spend"] == "5.00"


def test_the_example_of_the_page_delivers(
    tmp_path: Path, kafka_broker: Broker, registry: SchemaRegistry
) -> None:
    blocks = re.findall(r"(?:^    .*\n)+(?:\n(?:    .*\n)+)*", cleandoc(adapter.__doc__ or ""), re.MULTILINE)
    (text,) = [cleandoc(block) for block in blocks if "registry:" in block]
    example = yaml.safe_load(text)
    shop = Shop(tmp_path / "project", kafka_broker, registry)
    connection = example["connections"]["stream"]
    login = {"user": registry.connection["user"], "password": "${REGISTRY_PASSWORD}"}
    assert connection["registry"] == {"url": "https://registry.internal:8081", **login}
    connection["registry"]["url"] = registry.url
    for name in ("tls", "user", "password"):
        del connection[name]
    shop.write(
        "retl.yml", json.dumps({"connections": {"stream": {**connection, "servers": kafka_broker.address}}})
    )
    to = {**example["destination"], "topic": shop.topic.name}
    shop.sync(
        "users",
        contract=CONTRACT,
        destination=json.dumps(to),
        write=example["write"],
        deletes=example["deletes"],
    )
    shop.environment["REGISTRY_PASSWORD"] = registry.connection["password"]
    assert shop.run()["status"] == "SUCCESS"
    assert len(shop.rows()) == ROWS
