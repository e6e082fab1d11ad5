"""A word that is nearly a known one: every place that knows all words names the nearest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import Workshop


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path / "shop")
    made.into_sqlite()
    made.write("config.prod.env", "")
    return made


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("destinations", "hubspt"), "'hubspot'"),
        (("sources", "postgrse"), "'postgres'"),
        (("sync", "--accept", "STATE_LOS"), "'STATE_LOST'"),
        (("plan", "--output", "jsn"), "'json'"),
        (("init", "other", "--template", "hubspot"), "'dbt-to-hubspot'"),
        (("--env", "prd", "sync"), "'prod'"),
        (("demo", "stp"), "'stop'"),
    ],
)
def test_the_nearest_word_is_named(shop: Workshop, words: tuple[str, ...], meant: str) -> None:
    said = shop.retl(*words)
    assert (said.code, f"did you mean {meant}?" in said.err) == (2, True), said.err
    assert "Value error" not in said.err


def test_a_word_that_is_like_none_gets_the_known_ones(shop: Workshop) -> None:
    assert "known types: clickhouse" in shop.retl("destinations", "zzz").err
    assert "guards: REJECT_RATE" in shop.retl("sync", "--accept", "zzz").err
    assert "create it" in shop.retl("--env", "zzz", "sync").err


def test_a_type_in_the_place_of_a_column_is_shown_in_its_form(shop: Workshop) -> None:
    shop.sync("users", destination="{connection: out, table: users}", contract="{user_id: integer}")
    assert "write {type: integer}" in shop.retl("validate").err


def test_a_mapping_in_the_place_of_a_list_is_told_how_a_list_begins(shop: Workshop) -> None:
    shop.write("retl.yml", "alerts:\n  team: {to: x}\n")
    assert "write a list: `- ` before each entry" in shop.retl("validate").err


@pytest.mark.parametrize(
    ("contract", "whose"),
    [
        ('{user_id: {type: integer}, "*": "*"}', "mart"),
        ("{user_id: {type: integer}, email: {type: string}}", "contract"),
        (None, "mart"),
    ],
)
def test_a_column_that_is_nowhere_is_answered_with_those_that_are(
    shop: Workshop, contract: str | None, whose: str
) -> None:
    more = {"contract": contract} if contract else {}
    shop.sync("users", destination="{connection: out, table: users}", fields="{name: zzz}", **more)
    said = shop.retl("validate").err
    assert f"the {whose} has no column 'zzz'" in said
    assert f"the {whose} has: user_id, email" in said
    assert ("take all with" in said) == (whose == "contract")
