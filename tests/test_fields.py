"""Which field comes from where."""

from __future__ import annotations

from typing import Any

import pytest

from retl.errors import DefinitionError
from retl.project.definitions import Sync
from retl.project.fields import expand_fields, key_names
from retl.project.writing import FieldSource

COLUMNS = ["id", "a", "b"]


def sync(fields: dict[str, Any] | None = None, **more: Any) -> Sync:
    given = {"fields": fields} if fields is not None else {}
    return Sync.model_validate(
        {
            "name": "s",
            "source": {"table": "m"},
            "key": ["id"],
            "destination": {"type": "redis"},
            **given,
            **more,
        }
    )


def columns(of: Sync) -> dict[str, Any]:
    return {
        name: source.column or source.run_value or source.value
        for name, source in expand_fields(of, COLUMNS).items()
    }


@pytest.mark.parametrize(
    ("fields", "expanded"),
    [
        (None, {"id": "id", "a": "a", "b": "b"}),
        ({}, {"id": "id"}),
        ({"X": "a"}, {"id": "id", "X": "a"}),
        ({"*": "*", "X": "a"}, {"id": "id", "b": "b", "X": "a"}),
        ({"*": "*", "a": "b"}, {"id": "id", "a": "b"}),
        ({"Key": "id", "*": "*"}, {"Key": "id", "a": "a", "b": "b"}),
        ({"Copy": "id", "id": "id"}, {"id": "id", "Copy": "id"}),
        ({"h": {"column": "id", "transform": ["sha256_hex"]}}, {"h": "id"}),
        ({"id": "id", "h": {"column": "id", "transform": ["sha256_hex"]}}, {"id": "id", "h": "id"}),
        ({"id": {"column": "id", "transform": ["sha256_hex"]}, "plain": "id"}, {"id": "id", "plain": "id"}),
        ({"s": "$sync", "c": {"value": 1}}, {"id": "id", "s": "$sync", "c": 1}),
    ],
)
def test_fields_are_the_complete_list_plus_the_key(
    fields: dict[str, Any] | None, expanded: dict[str, Any]
) -> None:
    assert columns(sync(fields)) == expanded
    assert next(iter(columns(sync(fields)))) == key_names(sync(fields))[0]


def test_a_soft_delete_restores_what_no_field_gives() -> None:
    deletes = {"set": {"status": "gone", "a": None}, "restore": {"status": "here"}}
    assert expand_fields(sync(deletes=deletes), COLUMNS)["status"] == FieldSource(value="here")


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (sync({"X": "nothing"}), "COLUMN_UNKNOWN"),
        (sync(key=["nothing"]), "COLUMN_UNKNOWN"),
        (sync({"id": "a"}), "FIELD_TWICE"),
        (sync({"id": {"value": 1}}), "FIELD_TWICE"),
        (sync(deletes={"set": {"status": 1}}), "SOFT_DELETE_FIELD"),
        (sync(deletes={"set": {"id": 1}}), "SOFT_DELETE_FIELD"),
        (sync(changes={"hash": {"ignore": ["nothing"]}}), "FIELD_UNKNOWN"),
        (sync(changes={"hash": {"ignore": ["id"]}}), "OPTION_UNUSED"),
        (sync({"at": "$run_started_at"}, changes={"hash": {"ignore": ["at"]}}), "OPTION_UNUSED"),
        (sync({"id": {"column": "id", "nulls": "keep"}}), "OPTION_UNUSED"),
        (sync({"Key": {"column": "id", "only_if_empty": True}}), "OPTION_UNUSED"),
    ],
)
def test_what_does_not_fit_is_refused(given: Sync, code: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        expand_fields(given, COLUMNS)
    assert (caught.value.code, caught.value.where) == (code, "sync s")
