"""A row's text made in SQL is the text that Python makes of the same row, whatever the row holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha1
from pathlib import Path
from typing import Any

import duckdb
import pytest

from retl.contract.judge import build
from retl.destinations.batch import (
    MODES,
    Batch,
    Bends,
    Cell,
    Field,
    FieldsText,
    KeyText,
    Line,
    Seen,
    Shape,
    Size,
    Tuples,
)
from retl.destinations.http import line
from retl.destinations.http.body import Endpoint, Template
from retl.destinations.kafka.adapter import Kafka, KafkaOptions
from retl.destinations.redis.adapter import Redis, RedisOptions
from retl.destinations.redis.resp import pack
from retl.engine import baseline, diff, hash, judge, mapping
from retl.engine.change_set import ChangeSet, assemble
from retl.engine.lines import line_sql
from retl.engine.literals import bends_sql
from retl.engine.workspace import Workspace
from retl.observe.signals import Stop
from retl.project.definitions import Sync
from retl.values.types import Type
from tests.destinations.rows import Rows
from tests.destinations.suite import HOSTILE

# every type that a field can have; the keys are of the types that a line can say
COLUMNS = {
    "text": "VARCHAR",
    "number": "INTEGER",
    "id": "UUID",
    "whole": "BIGINT",
    "exact": "DECIMAL(38,10)",
    "small": "DECIMAL(2,2)",
    "real": "DOUBLE",
    "flag": "BOOLEAN",
    "day": "DATE",
    "naive": "TIMESTAMP",
    "moment": "TIMESTAMP WITH TIME ZONE",
    "data": "JSON",
    "tags": "VARCHAR[]",
    "note": "VARCHAR",
}
EDGES = [
    "(-1, uuid(), -9223372036854775808, -0.0000000001, .25, -1.7976931348623157e308, false, '0001-01-01',"
    " '1900-01-01 00:00:00.000001', '1900-01-01 00:00:00+00', '{\"a\":[1,{\"b\":null}],\"c\":\n1.10}', ['', 'é'])",
    "(2147483647, uuid(), 9223372036854775807, 9999999999999999999999999999.9999999999, -.05, 5e-324, true,"
    " '9999-12-31', '9999-12-31 23:59:59.999999', '2026-03-29 02:30:00.5+02', '\"text\"', ['a,b', '\"'])",
    "(7, uuid(), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
]
KEEP = {"column": "note", "nulls": "keep"}
SHAPES = [
    None,
    "$row",
    "$fields",
    {"id": "$text", "attributes": "$fields"},
    {"key": {"n": "$number", "u": "$field.id"}, "is": ["$flag", "$note", {"d": "$data"}], "v": 1, "no": None},
    {"price": "$$5 or 5$$", "quote": 'a "q" \\', "é\n": "$exact", "list": []},
]


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    made = Workspace(tmp_path, Stop())
    yield made
    made.close()


def change_set(
    workspace: Workspace, timezone: str = "UTC", edges: int = 3, most: int = 1000, **sync: Any
) -> ChangeSet:
    """Rows of edges for hostile texts that can be a key (`most`), as a first run sends them."""
    texts = [text for text in HOSTILE if text.strip() and "\0" not in text and text.isprintable()]
    texts = [*texts, "\n", "\x1b[31m\r\n\t", "\x7f"][:most]
    workspace.load("texts", {"text": "VARCHAR"}, ((text,) for text in texts))
    typed = ", ".join(f"CAST(e.{name} AS {kind}) AS {name}" for name, kind in list(COLUMNS.items())[1:-1])
    workspace.run(
        f'CREATE TABLE frozen AS SELECT row_number() OVER () - 1 AS "retl row", text, {typed}, text AS note'
        f" FROM texts, (VALUES {', '.join(EDGES[:edges])}) AS e({', '.join(list(COLUMNS)[1:-1])})"
    )
    parts = {"name": "s", "source": {"table": "mart"}, "key": ["text", "number", "id"], "destination": {}}
    definition = Sync.model_validate(parts | sync)
    contract = build(None, COLUMNS, Path(), definition.key, timezone)
    run = mapping.Run("run-1", datetime(2026, 11, 21, tzinfo=UTC))
    field_map = mapping.build(definition, contract, run, state_id="s", timezone=timezone)
    baseline.build(workspace, None, [])
    hash.hash_rows(workspace, field_map, "TRUE", "5a17")
    everything = diff.Strategy(everything=True, absence=False, once=False, hold_unknown=False)
    diff.diff(workspace, field_map, everything, 0, whole=True)
    judge.judge(workspace, contract, definition.key)
    made = assemble(workspace, field_map, write="upsert")
    assert len(made) == edges * len(texts)
    return made


def names(shape: Shape) -> tuple[list[str], list[str]]:
    return [one.name for one in shape.key], [one.name for one in shape.fields]


def exactly(body: bytes) -> Any:
    return json.loads(body, parse_float=Decimal)


@pytest.mark.parametrize("timezone", ["UTC", "America/New_York"])
@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_a_request_of_lines_says_what_a_request_of_rows_says(
    workspace: Workspace, shape: Any, timezone: str
) -> None:
    made = change_set(workspace, timezone)
    last, (keys, fields) = len(made) - 1, names(made.field_map.shape)
    for endpoint in (
        Endpoint(path="/rows", wrap="data.list", envelope={"kind": "k"}, row=shape),
        Endpoint(path="/rows", encoding="ndjson", row=shape),
    ):
        template, text = Template(endpoint, keys, fields, "/v1"), line.line(endpoint, made.field_map.shape)
        assert text is not None
        of_lines = template.of_lines(made.lines(0, last, text))
        of_rows = template.request(made.documents(0, last))
        assert (of_lines.target, of_lines.headers) == (of_rows.target, of_rows.headers)
        if endpoint.encoding == "json":
            assert exactly(of_lines.body) == exactly(of_rows.body)
        else:
            assert list(map(exactly, of_lines.body.splitlines())) == list(
                map(exactly, of_rows.body.splitlines())
            )


@pytest.mark.parametrize("ttl", ["1h", "none"])
def test_a_packed_command_of_a_line_is_that_of_a_row(workspace: Workspace, ttl: str) -> None:
    made = change_set(workspace)
    options = RedisOptions(key="r{{e}}co:{number}:{text}/{id}", ttl=ttl)
    redis = Redis(options, made.field_map.shape)
    text = redis._plain.line
    assert text is not None
    lines = made.lines(0, len(made) - 1, text)
    expiry = ("EX", 3600) if ttl == "1h" else ()
    for (*key, document), said in zip(made.documents(0, len(made) - 1), lines, strict=True):
        assert said.encode() == pack(("SET", redis._template.key(key), document, *expiry))


@pytest.mark.parametrize(("key", "edges", "most"), [("text", 1, 1000), ("number", 3, 1), ("id", 3, 1)])
def test_a_record_of_lines_is_that_of_a_row(workspace: Workspace, key: str, edges: int, most: int) -> None:
    made = change_set(workspace, edges=edges, most=most, key=[key])
    kafka = Kafka(KafkaOptions(topic="t"), made.field_map.shape)
    assert kafka._lines is not None
    batch = Batch(made, *MODES["upsert"], "run-1", 1, 0, len(made) - 1, "2026-11-21T00:00:00Z")
    records, _ = kafka._records(*kafka._made(batch))
    of_rows = list(map(kafka._recorded(kafka._value), batch.documents()))
    assert [one for one, _ in records] == [one for one, _ in of_rows]
    assert [exactly(one) for _, one in records] == [exactly(one) for _, one in of_rows]
    assert [list(exactly(one)) for _, one in records] == [list(exactly(one)) for _, one in of_rows]


@pytest.mark.parametrize(
    "sync", [{"key": ["day", "text", "number", "id"]}, {"fields": {"note": KEEP}}], ids=repr
)
def test_a_record_that_needs_python_stays_with_it(workspace: Workspace, sync: dict[str, Any]) -> None:
    made = change_set(workspace, edges=1, **sync)
    assert Kafka(KafkaOptions(topic="t"), made.field_map.shape)._lines is None


@pytest.mark.parametrize("ttl", ["1h", "none"])
def test_a_conditional_batch_of_lines_is_that_of_rows(workspace: Workspace, ttl: str) -> None:
    made = change_set(workspace, conflicts="target_wins")
    workspace.run("CREATE TABLE known AS FROM changes")
    workspace.run("CREATE OR REPLACE VIEW changes AS FROM known")
    workspace.run(
        "UPDATE known SET seen = CASE pos % 3 WHEN 0 THEN unhex(left(sha1(CAST(pos AS VARCHAR)), 16))"
        " WHEN 1 THEN unhex('ffffffffffffffff') END"
    )
    options = RedisOptions(key="r{{e}}co:{number}:{text}/{id}", ttl=ttl)
    conditional = Redis(options, made.field_map.shape)._conditional
    assert conditional is not None
    assert conditional.assumed is not None
    batch = Batch(made, *MODES["upsert"], "run-1", 1, 2, len(made) - 1, "2026-11-21T00:00:00Z")
    rows = conditional.assumed.rows(batch)
    command = rows.command(conditional.stamp, "entry", conditional.ttl, rows.expected)
    assert command.data == pack(conditional.first(batch, "entry"))
    assert rows.look().data == pack(("MGET", *map(conditional.template.key, batch.keys())))
    texts = [document for *_, document in batch.documents()]
    assert list(rows.after) == [sha1(text.encode()).hexdigest()[:16] for text in texts]
    workspace.run("UPDATE known SET seen = unhex('0102')")
    seen = line_sql((Seen(8),), made.field_map)
    assert workspace.run(f"SELECT DISTINCT {seen} FROM changes") == [("!" * 16,)]  # no digest is equal to it


def test_lines_of_any_slice_are_those_of_the_whole(workspace: Workspace) -> None:
    made = change_set(workspace)
    text: Line = ("<", KeyText(1, "json"), FieldsText(), Size((KeyText(0, "url"),)), KeyText(0, "url"), ">")
    whole = made.lines(0, len(made) - 1, text)
    assert len(set(whole)) == len(made)
    assert [made.lines(n, n, text)[0] for n in range(len(made))] == whole
    assert [*made.lines(0, 4, text), *made.lines(5, len(made) - 1, text)] == whole


@pytest.mark.parametrize(
    ("endpoint", "sync"),
    [
        ({"row": {"n": "$row_no"}}, {}),
        ({"row": {"$merge": ["$fields", {"a": 1}]}}, {}),
        ({"row": {"p": {"$base64": "$row"}}}, {}),
        ({"row": "$row", "cast": {"values": "string"}}, {}),
        ({"row": "$row", "path": "/rows/{text}", "wrap": None}, {}),
        ({"row": "$row", "path": "/rows/$text", "wrap": None}, {}),
        ({"row": "$row", "encoding": "csv", "wrap": None}, {}),
        ({"row": "$row"}, {"fields": {"note": KEEP}}),
        ({"row": "$key"}, {"key": ["moment"]}),
        ({"method": "DELETE", "wrap": None}, {}),
        ({"row": "$row"}, {"fields": {}}),
    ],
    ids=repr,
)
def test_what_needs_python_stays_with_it(
    workspace: Workspace, endpoint: dict[str, Any], sync: dict[str, Any]
) -> None:
    definition = Sync.model_validate(
        {"name": "s", "source": {"table": "m"}, "key": ["text"], "destination": {}} | sync
    )
    contract = build(None, COLUMNS, Path(), definition.key)
    run = mapping.Run("run-1", datetime(2026, 11, 21, tzinfo=UTC))
    shape = mapping.build(definition, contract, run, state_id="s", timezone="UTC").shape
    assert line.line(Endpoint(**{"path": "/rows", "wrap": "rows", **endpoint}), shape) is None


def test_literals_are_read_back_as_the_cells_they_were(workspace: Workspace) -> None:
    made = change_set(workspace)
    plain = {"string", "integer", "float", "boolean"}
    fields = (*made.field_map.shape.key, *made.field_map.shape.fields)
    forms: tuple[Cell, ...] = tuple("value" if one.type.name in plain else "text" for one in fields)
    half = len(made) // 2
    with duckdb.connect() as reader:
        for first, last in ((0, half - 1), (half, 2 * half - 1), (0, len(made) - 1)):
            for most in (10, 600, 1 << 20):
                pieces = [
                    one.decode() for one in made.literals(first, last, Tuples(forms, numbered=True), most)
                ]
                counts = [len(reader.execute(f"VALUES {one}").fetchall()) for one in pieces]
                assert all(len(one) <= most or count == 1 for one, count in zip(pieces, counts, strict=True))
                read = reader.execute(f"VALUES {','.join(pieces)} ORDER BY 1").fetchall()
                assert [row[0] for row in read] == list(range(1, last - first + 2))
                for (_, *row), cells in zip(read, made.cells(first, last, forms), strict=True):
                    assert [_as(cell, value) for cell, value in zip(cells, row, strict=True)] == list(cells)


def _as(cell: Any, value: Any) -> Any:
    return value if cell is None or value is None else type(cell)(value)


def test_rows_that_bend_are_found_in_their_batch_only(workspace: Workspace) -> None:
    made = change_set(workspace)
    keys, names_ = names(made.field_map.shape)
    column = len(keys) + names_.index("whole")
    empty = [n for n, row in enumerate(made.tuples(0, len(made) - 1)) if row[column] is None]
    assert empty
    for first, last in ((0, len(made) - 1), (empty[0] + 1, len(made) - 1), (0, empty[-1] - 1)):
        found = made.bent(first, last, {column: Bends(null=True)})
        assert [first + n for n in found] == [n for n in empty if first <= n <= last]
    text, ours = keys.index("text"), made.keys(0, len(made) - 1)
    at = {n for n, row in enumerate(ours) if len(row[0].rstrip(" ")) <= 3 < len(row[0])}
    assert set(made.bent(0, len(made) - 1, {text: Bends(characters=3)})) == at


@pytest.mark.parametrize(
    ("bends", "values", "found"),
    [
        (Bends(units=3), ["abc", "abc ", "abcd", "a𝄞 ", "𝄞  ", "ab ", None], [1, 3, 4]),
        (Bends(ascii=True, characters=3), ["abc", "é", "abc ", "~\x7f", None], [1, 2]),
        (
            Bends(zero=True, subnormal=True),
            [0.0, -0.0, 5e-324, -1e-310, 2.2250738585072014e-308, None],
            [1, 2, 3],
        ),
    ],
)
def test_what_a_column_would_keep_as_another_value_is_found_in_sql(
    bends: Bends, values: list[Any], found: list[int]
) -> None:
    which = bends_sql(Shape("", "", (), (Field("v", Type("string")),)), {0: bends})
    kind = "DOUBLE" if bends.zero else "VARCHAR"
    with duckdb.connect() as duck:
        asked = (
            f"SELECT n FROM (SELECT unnest(range(len($1))) AS n, unnest($1::{kind}[]) AS f0) WHERE {which}"
        )
        assert sorted(n for (n,) in duck.execute(asked, [values]).fetchall()) == found
    rows = Rows(Shape("", "", (), (Field("v", Type("string")),)), [(one,) for one in values])
    assert rows.bent(0, len(values) - 1, {0: bends}) == found
