"""Contracts that say only what is special, and what dbt's project says for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from retl.contract import judge
from retl.contract.model import Rule
from retl.errors import DefinitionError, Mismatch
from retl.project.contracts import ColumnSetting, Contract, Documented
from retl.sources.dbt import columns_of, read_manifest
from retl.values.types import Type
from tests.commands import Workshop

MART = {"id": "INTEGER", "email": "VARCHAR", "spend": "DECIMAL(12,2)", "_dlt_id": "VARCHAR"}
DBT = {
    "email": Documented(sensitive=True, description="Where to write", filled=True),
    "spend": Documented(Type("decimal", 10, 2)),
}


def rules(columns: dict[str, Any] | None, dbt: dict[str, Documented] | None = None) -> dict[str, Rule]:
    definition = None if columns is None else Contract.model_validate({"columns": columns})
    return dict(judge.build(definition, MART, Path(), ["id"], documented=dbt).columns)


def test_a_star_takes_every_other_column_with_the_type_of_the_warehouse() -> None:
    found = rules({"id": {"type": "integer", "ge": 1}, "*": "*"})
    assert list(found) == ["id", "email", "spend"]  # not the loader's own
    assert (found["id"].ge, found["id"].nullable) == (1, False)
    assert (str(found["spend"].type), found["spend"].nullable) == ("decimal(12,2)", True)
    assert rules({"*": {}, "id": {"type": "integer", "ge": 1}}) == found


def test_a_named_column_refines_what_the_star_says() -> None:
    found = rules(
        {"*": {"nullable": False, "sensitive": True}, "email": {"sensitive": False, "max_length": 9}}
    )
    assert (found["email"].max_length, found["email"].sensitive) == (9, False)
    assert (found["spend"].sensitive, found["spend"].nullable) == (True, False)


def test_a_column_without_a_type_has_the_one_of_the_warehouse() -> None:
    assert str(rules({"id": {}, "spend": {"ge": 0}})["spend"].type) == "decimal(12,2)"
    with pytest.raises(Mismatch, match="column gone is not in the mart"):
        rules({"*": "*", "gone": {"sensitive": True}})


@pytest.mark.parametrize("wrong", [{"*": {"one_of": ["a"]}}, {"spend": {"max_digits": 3}}])
def test_what_has_no_sense_without_a_type_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Contract.model_validate({"columns": wrong})


def test_a_source_without_types_needs_all_of_them() -> None:
    from retl.contract.model import types_of

    with pytest.raises(DefinitionError, match="gives email no type"):
        types_of(Contract(columns={"id": column(type="integer"), "email": column()}), Path())


def column(**parts: Any) -> ColumnSetting:
    return next(iter((Contract.model_validate({"columns": {"c": parts}}).columns or {}).values()))


def test_dbt_says_what_the_contract_does_not_say() -> None:
    for columns in (None, {"*": "*"}, {"id": {"type": "integer"}, "email": {}, "spend": {}}):
        found = rules(columns, DBT)
        email = found["email"]
        assert (email.sensitive, email.description, email.nullable) == (True, "Where to write", False)
        assert str(found["spend"].type) == "decimal(10,2)"
    written = {"type": "string", "nullable": True, "sensitive": False, "description": "Mail"}
    email = rules({"*": "*", "email": written}, DBT)["email"]
    assert (email.sensitive, email.description, email.nullable) == (False, "Mail", True)


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path / "shop")
    made.write("retl.yml", "connections: {out: {type: sqlite, path: out.db}}\n")
    test = {"resource_type": "test", "package_name": "shop", "attached_node": "model.shop.users"}

    def tested(kind: str, column: str, config: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        name = f"{kind}_{column}"
        metadata = {"name": kind, "kwargs": {"column_name": column, **more}}
        ids = {"name": name, "unique_id": f"test.shop.{name}", "column_name": column}
        return {**test, **ids, "test_metadata": metadata, "config": config or {}}

    model = {
        "name": "users",
        "resource_type": "model",
        "unique_id": "model.shop.users",
        "package_name": "shop",
        "relation_name": '"warehouse"."main"."users"',
        "columns": {
            "user_id": {"name": "user_id", "data_type": "bigint", "description": "The shop's number"},
            "email": {"name": "email", "data_type": "varchar", "meta": {"pii": True}},
            "spend": {"name": "spend", "data_type": "numeric"},
        },
    }
    nodes = [
        model,
        tested("unique", "user_id"),
        tested("not_null", "user_id"),
        tested("not_null", "spend", {"severity": "warn"}),
        tested("accepted_values", "email", values=["u1@example.com", "u2@example.com"]),
    ]
    document = {
        "metadata": {"generated_at": "2026-11-28T06:00:00Z", "adapter_type": "duckdb"},
        "nodes": {one["unique_id"]: one for one in nodes},
    }
    made.write("target/manifest.json", json.dumps(document))
    return made


def test_types_tests_descriptions_and_marks_are_read_from_the_manifest(shop: Workshop) -> None:
    manifest = read_manifest(shop.folder / "target" / "manifest.json")
    found = columns_of(manifest, manifest.nodes["model.shop.users"])
    assert found["user_id"] == Documented(
        Type("integer"), filled=True, unique=True, description="The shop's number"
    )
    assert found["email"] == Documented(
        Type("string"), one_of=("u1@example.com", "u2@example.com"), sensitive=True
    )
    assert found["spend"] == Documented()  # its test only warns, and its digits are not said


def test_what_dbt_calls_personal_is_masked_wherever_the_source_is_its_model(shop: Workshop) -> None:
    contract = "{user_id: {type: integer}, email: {type: string}}"
    shop.sync("s", source="{dbt: users}", key="[email]", destination=OUT, contract=contract)
    accepted = ("--accept", "REJECT_RATE", "--accept", "DBT_UNKNOWN")
    (summary,) = shop.json("sync", *accepted)["syncs"]
    assert (summary["inserted"], summary["rejected"]) == (2, 28)  # accepted_values
    assert {one["key"] for one in summary["rejects"]} == {"***"}
    assert "@example.com" not in shop.retl("explain", "s", "--rows", "1", "--output", "json").out
    assert {one["key"] for one in shop.json("rejects")["rejects"]} == {"***"}
    (shop.folder / "target" / "manifest.json").unlink()
    assert {one["key"] for one in shop.json("rejects")["rejects"]} == {"***"}  # nobody knows now


OUT = "{connection: out, table: mart, create: true}"


def test_a_sync_may_name_only_what_is_special(shop: Workshop) -> None:
    contract = '{"*": "*", user_id: {ge: 2}}'
    shop.sync(
        "s", source="{table: users}", destination=OUT, contract=contract, fields='{mail: email, "*": "*"}'
    )
    assert shop.retl("validate").code == 0
    (summary,) = shop.json("sync", "--accept", "DBT_UNKNOWN")["syncs"]
    assert (summary["inserted"], summary["rejected"]) == (29, 1)


def test_what_dbt_says_of_a_column_is_in_the_schema_of_published_files(shop: Workshop) -> None:
    shop.write("retl.yml", "connections: {out: {type: files, root: out}}\n")
    target = "{connection: out, path: users, mode: snapshot, format: json}"
    shop.sync(
        "s", source="{dbt: users}", destination=target, deletes="delete", contract="{user_id: {}, spend: {}}"
    )
    shop.json("sync", "--accept", "DBT_UNKNOWN")
    key, spend = json.loads((shop.folder / "out" / "users" / "latest.json").read_text())["columns"]
    assert (key["description"], "description" in spend) == ("The shop's number", False)
