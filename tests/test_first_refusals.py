"""A definition that is wrong without looking at a mart stops every sync; what only a mart tells stops its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import Workshop
from tests.servers import Database


@pytest.fixture
def shop(tmp_path: Path, postgres: Database) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(postgres=postgres)
    made.sync("good", destination="{type: postgres, table: good, create: true}")
    return made


@pytest.mark.parametrize(
    ("parts", "code", "line"),
    [
        (
            {"destination": "{type: postgres, table: bad, create: true, mode: snapshot}", "deletes": "keep"},
            "OPERATION_UNSUPPORTED",
            "syncs/bad.yml:",
        ),
        (
            {"destination": "{type: postgres, table: bad, create: true, mode: snapshot}"},
            "OPERATION_UNSUPPORTED",
            "syncs/bad.yml:1:1",
        ),
        (
            {"destination": "{type: postgres, table: bad, create: true}", "delivery": "at_least_once"},
            "OPTION_UNUSED",
            "syncs/bad.yml:",
        ),
    ],
)
def test_what_needs_no_mart_and_no_server_stops_every_sync(
    shop: Workshop, parts: dict[str, str], code: str, line: str
) -> None:
    shop.sync("bad", **parts)
    for words in (("validate",), ("sync",), ("plan",), ("check",)):
        said = shop.retl(*words)
        assert (said.code, f"[{code}]" in said.err, line in said.err) == (2, True, True), said.err
    assert shop.json("runs")["runs"] == []


def test_validate_finds_it_without_the_mart_and_without_the_password(shop: Workshop) -> None:
    shop.sync("bad", destination="{type: postgres, table: bad, create: true, mode: snapshot}", deletes="keep")
    (shop.folder / "data/warehouse.duckdb").unlink()
    for more in ({}, {"POSTGRES_PASSWORD": ""}):
        said = shop.retl("validate", **more)
        assert (said.code, said.err.count("[OPERATION_UNSUPPORTED]")) == (2, 1), said.err


def test_a_webhook_that_deletes_nothing_stops_every_sync(shop: Workshop) -> None:
    shop.write("retl.yml", "connections:\n  hook: {type: http, base_url: 'http://127.0.0.1:9'}\n")
    shop.sync(
        "bad",
        destination="{connection: hook, upsert: {path: /x, row: {id: $key, $fields: true}}}",
        deletes="delete",
    )
    said = shop.retl("sync")
    assert (said.code, "syncs/bad.yml" in said.err, shop.json("runs")["runs"]) == (2, True, []), said.err


def test_what_only_the_mart_tells_stops_its_own_sync_and_names_the_line(shop: Workshop) -> None:
    shop.sync("bad", key="[userid]", destination="{type: postgres, table: bad, create: true}")
    said = shop.retl("sync", "--output", "json")
    found = {one["sync"]: one for one in said.document["syncs"]}
    assert (said.code, found["good"]["status"], found["bad"]["status"]) == (2, "SUCCESS", "FAILED")
    assert found["bad"]["error"]["code"] == "KEY_COLUMN"
    assert found["bad"]["error"]["where"] == "syncs/bad.yml:2:6"
    for words in (("validate",), ("sync",), ("sync", "--dry-run"), ("plan",)):
        said = shop.retl(*words)
        assert (said.code, "syncs/bad.yml:2:6" in said.err) == (2, True), said.err
    said = shop.retl("check")
    assert (said.code, "syncs/bad.yml:2:6" in said.out) == (2, True), said.out


def test_fields_that_two_marts_share_are_found_by_validate_and_stop_the_second_sync(shop: Workshop) -> None:
    shop.sync("other", destination="{type: postgres, table: good}", write="update_only", deletes="keep")
    said = shop.retl("validate")
    assert (said.code, "[FIELD_SHARED]" in said.err, "syncs/other.yml:" in said.err) == (2, True, True)
    assert shop.retl("sync", "good").code == 0
    said = shop.retl("sync", "other")
    assert (said.code, "[FIELD_SHARED]" in said.err, "syncs/other.yml:" in said.err) == (2, True, True)
