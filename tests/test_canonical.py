"""The hash of a row is a format: SQL and a second implementation make exactly what the vectors say.

`make test-all` asks DuckDB 1.5 for the same vectors.
"""

from __future__ import annotations

from typing import Any, get_args

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retl.values import canonical
from retl.values.types import TypeName
from tests.canonical import VECTORS, differences, framed, sql_of, type_of


def test_the_installed_duckdb_and_the_reference_make_what_the_vectors_say() -> None:
    assert list(differences(duckdb.connect())) == []


def test_every_type_has_vectors_and_a_null() -> None:
    names = {type_of(name).name for name, *_ in VECTORS["texts"]}
    assert names == set(get_args(TypeName))
    nulls = {type_of(name).name for name, value, _ in VECTORS["texts"] if value is None}
    assert nulls == names


def test_rows_of_the_same_types_that_differ_have_hashes_that_differ() -> None:
    values: dict[Any, Any] = {}
    for fields, digest in VECTORS["rows"]:
        row = sorted((name, type, str(value)) for name, type, value in fields)
        types = tuple((name, type) for name, type, _ in row)
        assert values.setdefault((types, digest), row) == row
    assert len({digest for _, digest in values}) >= 20


@pytest.mark.parametrize("type", ["string", "float", "decimal(38,9)", "integer", "list of string", "json"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_sql_and_the_reference_agree_on_any_value(type: str, data: st.DataObject) -> None:
    kind = type_of(type)
    values = data.draw(st.lists(st.none() | VALUES[kind.name], min_size=1, max_size=40))
    rows = ", ".join(f"({sql_of(kind, value)})" for value in values)
    made = duckdb.connect().execute(
        f"SELECT concat({', '.join(canonical.framed(kind, 'v'))}) FROM (VALUES {rows}) AS t(v)"
    )
    assert [text for (text,) in made.fetchall()] == [framed(kind, value) for value in values]


_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "string": _TEXT,
    "json": st.recursive(st.integers(-9, 9), lambda inner: st.lists(inner, max_size=3), max_leaves=5).map(
        str
    ),
    "float": st.floats(allow_nan=False, allow_infinity=False).map(repr),
    "integer": st.integers(-(2**63), 2**63 - 1).map(str),
    "decimal": st.decimals(-(10**28), 10**28, places=9).map(lambda number: f"{number:f}"),
    "list": st.lists(st.none() | _TEXT, max_size=5),
}
