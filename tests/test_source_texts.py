"""CSV and JSON lines: the contract's types read the texts, exactly or not at all."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retl.engine import freeze
from retl.engine.workspace import Workspace
from retl.errors import Mismatch, RetlError, SourceError
from retl.observe.signals import Stop
from retl.project.contracts import Column, Contract
from retl.sources.api import Invocation
from retl.sources.files import Files, Folder, Pattern
from retl.sources.files.relation import MISFIT
from retl.values import text
from retl.values.sql import literal
from retl.values.types import Type

MONEY = {"type": "decimal", "max_digits": 12, "decimal_places": 2}
LONG = {"type": "decimal", "max_digits": 38, "decimal_places": 10}
connection = duckdb.connect()
connection.execute("SET timezone = 'UTC'")


def read(
    root: Path, contract: Mapping[str, Any] | None = None, *, timezone: str = "UTC", **options: Any
) -> list[dict[str, Any]]:
    """The rows of the files, as a run freezes them."""
    given = {"path": f"*.{options.get('format', 'csv')}*", "format": "csv"} | options
    judged = None
    if contract is not None:
        kinds = {n: k if isinstance(k, dict) else {"type": k, "nullable": True} for n, k in contract.items()}
        judged = Contract(columns={name: Column.model_validate(kind) for name, kind in kinds.items()})
    source = Files(
        Folder(root=str(root), timezone=timezone),
        Pattern.model_validate(given),
        Invocation(root, {}, contract=judged),
    )
    run = root / ".run"
    run.mkdir(exist_ok=True)
    with closing(Workspace(run, Stop())) as workspace:
        with source.open(workspace) as snapshot:
            workspace.harden(source.readable)
            found = snapshot.description
            columns = dict(found.columns) | ({found.misfit: "VARCHAR"} if found.misfit else {})
            freeze.freeze(workspace, snapshot.rows(list(columns)), columns)
        names = list(columns)
        rows = workspace.run(f'SELECT * EXCLUDE ("retl row") FROM {freeze.FROZEN} ORDER BY ALL')
        return [dict(zip(names, row, strict=True)) for row in rows]


def write(root: Path, name: str, content: str | bytes) -> None:
    (root / name).write_bytes(content.encode() if isinstance(content, str) else content)


def test_the_contract_says_what_a_text_of_csv_is(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", "code,n,price,day,ok,note\n007,007,1.10,2026-11-28,yes,\n")
    kinds = {"code": "string", "n": "integer", "price": MONEY, "day": "date", "ok": "boolean"}
    (row,) = read(tmp_path, {**kinds, "note": "string"})
    assert (row["code"], row["n"], row["price"]) == ("007", 7, Decimal("1.10"))
    assert (str(row["day"]), row["ok"], row["note"], row[MISFIT]) == ("2026-11-28", True, None, None)


def test_without_a_contract_csv_is_text_unless_columns_gives_a_type(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", "code,n\n007,1\n")
    assert read(tmp_path) == [{"code": "007", "n": "1"}]
    assert read(tmp_path, columns={"n": "BIGINT"}) == [{"code": "007", "n": 1}]
    write(tmp_path, "a.csv", "code,n\n007,one\n")
    with pytest.raises(SourceError, match="the column n has a text that is no integer"):
        read(tmp_path, columns={"n": "BIGINT"})


READABLE = [
    ("integer", "5", "5"),
    ("integer", "+5", "5"),
    ("integer", "-007", "-7"),
    ("integer", "5.0", "5"),
    ("integer", "9223372036854775807", "9223372036854775807"),
    ("integer", "9223372036854775808", None),
    ("integer", "5.5", None),
    ("integer", "1e2", None),
    ("integer", " 5", None),
    ("integer", "1_000", None),
    ("integer", "1,000", None),
    ("integer", "0x1f", None),
    ("integer", "", None),
    ("decimal", "1.10", "1.10"),
    ("decimal", "1.1000", "1.10"),
    ("decimal", ".5", "0.50"),
    ("decimal", "0001234567890.12", "1234567890.12"),
    ("decimal", "1.005", None),
    ("decimal", "12345678901.00", None),
    ("decimal", "1,50", None),
    ("decimal", "1e1", None),
    ("decimal", ".", None),
    ("float", "1e-3", "0.001"),
    ("float", "nan", None),
    ("float", "inf", None),
    ("boolean", "TRUE", "true"),
    ("boolean", "0", "false"),
    ("boolean", "wahr", None),
    ("date", "2026-11-28", "2026-11-28"),
    ("date", "28.11.2026", None),
    ("date", "11/28/2026", None),
    ("date", "2026-02-30", None),
    ("date", "infinity", None),
    ("timestamp", "2026-11-28T10:00:00.123456", "2026-11-28 10:00:00.123456"),
    ("timestamp", "2026-11-28", "2026-11-28 00:00:00"),
    ("timestamp", "2026-11-28T10:00:00.1234567", None),
    ("timestamp", "2026-11-28T10:00:00Z", None),
    ("timestamptz", "2026-11-28T10:00:00Z", "2026-11-28 10:00:00+00"),
    ("timestamptz", "2026-11-28 10:00:00+02:00", "2026-11-28 08:00:00+00"),
    ("timestamptz", "2026-11-28 10:00:00", "2026-11-28 09:00:00+00"),  # in Berlin
    ("timestamptz", "2026-11-28 10:00:00 Europe/Paris", None),
    ("uuid", "6F9619FF-8B86-D011-B42D-00C04FC964FF", "6f9619ff-8b86-d011-b42d-00c04fc964ff"),
    ("uuid", "6F9619FF", None),
    ("json", '{"a": 12345678901234567.89}', '{"a": 12345678901234567.89}'),
    ("json", "{", None),
    ("list", '["a", null]', "[a, NULL]"),
    ("list", "a", None),
]


@pytest.mark.parametrize(("name", "written", "value"), READABLE)
def test_a_text_is_read_exactly_or_not_at_all(name: Any, written: str, value: str | None) -> None:
    type = Type(name, 12, 2, "string" if name == "list" else None)
    sql = f"CAST({text.value(type, 't', 'Europe/Berlin')} AS VARCHAR), {text.readable(type, 't', 'Europe/Berlin')}"
    (row,) = connection.execute(f"SELECT {sql} FROM (SELECT {literal(written)} AS t)").fetchall()
    assert row[1] is (value is not None)
    assert value is None or row[0] == value


@given(st.decimals(-(10**18), 10**18, places=3), st.integers(1, 20), st.integers(0, 6))
def test_a_decimal_keeps_its_value_or_is_refused(number: Decimal, whole: int, places: int) -> None:
    type = Type("decimal", whole + places, places)
    sql = f"{text.value(type, 't', 'UTC')}, {text.readable(type, 't', 'UTC')}"
    (row,) = connection.execute(f"SELECT {sql} FROM (SELECT '{number:f}' AS t)").fetchall()
    fits = number == round(number, places) and abs(number) < 10**whole
    assert row[1] is fits
    assert not fits or row[0] == number


def test_a_null_text_is_null_only_without_quotes(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", 'id,a\n1,\n2,""\n3,NULL\n4,"NULL"\n')
    assert [row["a"] for row in read(tmp_path)] == [None, "", "NULL", "NULL"]
    assert [row["a"] for row in read(tmp_path, null="NULL")] == ["", "", None, "NULL"]


def test_hostile_csv_is_read_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, "bom.csv", b'\xef\xbb\xbfid,a\r\n1,x\r\n2,"y\r\nz"\r\n3,"q""q,"\r\n')
    write(tmp_path, "only.csv", "id,a\n")
    write(tmp_path, "empty.csv", "")
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress(b"id,a\n4,gz\n"))
    duckdb.sql("SELECT 5 AS id, 'zst' AS a").write_csv(str(tmp_path / "packed.csv.zst"), compression="zstd")
    assert [row["a"] for row in read(tmp_path)] == ["x", "y\r\nz", 'q"q,', "gz", "zst"]


def test_other_dialects_and_encodings_are_said(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", "1;'Müller; Söhne'\n".encode("latin-1"))
    options = {"delimiter": ";", "quote": "'", "encoding": "latin-1", "header": False}
    found = read(tmp_path, columns={"id": "BIGINT", "name": "VARCHAR"}, **options)
    assert found == [{"id": 1, "name": "Müller; Söhne"}]


@pytest.mark.parametrize("first", ["a", "b"])
def test_headers_that_differ_are_joined_by_name(tmp_path: Path, first: str) -> None:
    second = "b" if first == "a" else "a"
    write(tmp_path, f"{first}.csv", "id,name\n1,x\n")
    write(tmp_path, f"{second}.csv", "tier,id\ngold,2\n")
    rows = sorted(read(tmp_path), key=lambda row: str(row["id"]))
    assert [(row["id"], row["name"], row["tier"]) for row in rows] == [("1", "x", None), ("2", None, "gold")]


BROKEN = {
    "a row is longer": ("id,a\n1,x,3\n", "a.csv, line 2"),
    "a row is shorter": ("id,a\n1,x\n2\n", "a.csv, line 3"),
    "a quote is open": ('id,a\n1,"x\n', "a.csv, line 2"),
    "not utf-8": (b"id,a\n1,\xe9\n", "a.csv, line 2"),
    "a name comes twice": ("id,ID\n1,2\n", "a.csv has two columns id"),
    "a line before the header": ("\nid,a\n1,2\n", "a.csv begins with an empty line"),
    "nothing at all": ("", "they have not even a header"),
}


@pytest.mark.parametrize(("content", "says"), BROKEN.values(), ids=BROKEN)
def test_broken_csv_is_named_with_its_line_and_no_value(
    tmp_path: Path, content: str | bytes, says: str
) -> None:
    write(tmp_path, "a.csv", content)
    with pytest.raises(SourceError) as caught:
        read(tmp_path)
    assert caught.value.code == "MART_UNREADABLE"
    assert says in caught.value.message
    assert ",x" not in caught.value.message


def test_a_compressed_file_that_was_cut_off_is_not_read_as_fewer_rows(tmp_path: Path) -> None:
    rows = "SELECT i AS id, hash(i) AS a FROM range(4000) t(i)"
    for name in ("csv", "ndjson"):
        kind = "csv" if name == "csv" else "json"
        whole = tmp_path / f"whole.{name}.zst"
        duckdb.execute(f"COPY ({rows}) TO '{whole}' (FORMAT {kind}, COMPRESSION zstd)")
        assert len(read(tmp_path, {"id": "integer"}, format=name)) == 4000
        content = whole.read_bytes()
        for cut in (1, len(content) // 2, len(content) - 3):
            whole.write_bytes(content[:cut])
            with pytest.raises(SourceError, match=r"is no complete \.zst file"):
                read(tmp_path, {"id": "integer"}, format=name)
        whole.write_bytes(content + content)  # frames may follow each other
        assert len(read(tmp_path, {"id": "integer"}, format=name)) == 8000 + (name == "csv")
        whole.unlink()
        packed = gzip.compress(b'{"id": 1}\n' * 9999 if name == "ndjson" else b"id\n" + b"1\n" * 9999)
        (tmp_path / f"cut.{name}.gz").write_bytes(packed[:-9])
        with pytest.raises(SourceError, match="GZIP"):
            read(tmp_path, {"id": "integer"}, format=name)
        (tmp_path / f"cut.{name}.gz").unlink()


def test_json_numbers_keep_all_their_digits(tmp_path: Path) -> None:
    line = '{"a": 12345678901234567.89, "b": 9223372036854775807, "c": 1.10, "d": {"x": 1.10, "y": "1.10"},'
    line += ' "e": 1e-7, "f": [1.50, 12345678901234567.89], "g": "12345678901234567.89", "h": 1.0}'
    write(tmp_path, "a.ndjson", line + '\n{"a": 0.1}\n')
    kinds = {"a": LONG, "b": "integer", "c": "string", "d": "json", "e": "float", "f": "json", "g": LONG}
    nullable = {n: {**k, "nullable": True} if isinstance(k, dict) else k for n, k in kinds.items()}
    rows = read(tmp_path, {**nullable, "h": "integer"}, format="ndjson")
    row = next(row for row in rows if row["b"])
    assert (row["a"], row["b"]) == (Decimal("12345678901234567.8900000000"), 9223372036854775807)
    assert (row["c"], row["e"], row["g"], row["h"]) == ("1.10", 1e-7, Decimal("12345678901234567.89"), 1)
    assert (row["d"], row["f"]) == ('{"x":1.10,"y":"1.10"}', "[1.50,12345678901234567.89]")
    assert {row[MISFIT] for row in rows} == {None}


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", 'q"', "ü"]),
        st.one_of(
            st.integers(-(10**25), 10**25),
            st.decimals(-(10**15), 10**15, places=9),
            st.text(),
            st.sampled_from(['"', "\\", '": 1.10, "b": 2.20', "1.10", ",1.50]", "[1.0]"]),
            st.booleans(),
            st.none(),
        ),
        min_size=1,
    )
)
def test_any_record_comes_back_as_it_was_written(record: dict[str, Any]) -> None:
    from retl.sources.files import ndjson

    written = ", ".join(f"{json.dumps(k)}: {_json(v)}" for k, v in record.items())
    shape = literal(json.dumps(dict.fromkeys(record, "VARCHAR")))
    line = "CAST($line AS VARCHAR)"
    fields = ", ".join(ndjson._restored(name, Type("string"), "TOKEN") for name in record)
    sql = f"SELECT {fields} FROM (SELECT from_json({ndjson._exact(line, 'TOKEN')}, {shape}) AS record)"
    (row,) = connection.execute(sql, {"line": f"{{{written}}}"}).fetchall()
    for value, found in zip(record.values(), row, strict=True):
        assert found == (None if value is None else _json(value) if not isinstance(value, str) else value)


def _json(value: Any) -> str:
    return f"{value:f}" if isinstance(value, Decimal) else json.dumps(value)


def test_json_that_is_not_exactly_a_value_is_a_misfit(tmp_path: Path) -> None:
    lines = ['{"id": 1, "n": 1.5}', '{"id": 2, "n": "x"}', '{"id": 3, "n": NaN}', '{"id": 4, "n": {"a": 1}}']
    write(tmp_path, "a.ndjson", "\n".join([*lines, '{"id": 5, "n": "7"}', '{"id": 6}']))
    rows = read(tmp_path, {"id": "integer", "n": "integer"}, format="ndjson")
    assert [(row["n"], row[MISFIT]) for row in rows] == [*[(None, "n")] * 4, (7, None), (None, None)]


BAD_LINES = {
    "half a line": ('{"id": 1}\n{"id": 2, "na', "unexpected end of data"),
    "two in a line": ('{"id": 1}{"id": 2}\n', "unexpected content"),
    "a byte order mark": (b'\xef\xbb\xbf{"id": 1}\n', "byte order mark"),
    "not utf-8": (b'{"id": "\xff"}\n', "UTF-8"),
}


@pytest.mark.parametrize(("content", "says"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_broken_line_of_json_is_named(tmp_path: Path, content: str | bytes, says: str) -> None:
    write(tmp_path, "a.ndjson", content)
    with pytest.raises(SourceError) as caught:
        read(tmp_path, {"id": "integer"}, format="ndjson")
    assert caught.value.code == "MART_UNREADABLE"
    assert "a.ndjson, line " in caught.value.message
    assert says in caught.value.message


def test_empty_lines_and_files_have_no_records(tmp_path: Path) -> None:
    write(tmp_path, "a.ndjson", '{"id": 1}\r\n\r\n{"id": 2}\r\n')
    write(tmp_path, "b.ndjson", "")
    assert [row["id"] for row in read(tmp_path, {"id": "integer"}, format="ndjson")] == [1, 2]


@pytest.mark.parametrize("name", ["csv", "ndjson"])
def test_a_column_that_no_file_has_is_drift_unless_it_is_optional(tmp_path: Path, name: str) -> None:
    write(tmp_path, f"a.{name}", "id,segmnt\n1,x\n" if name == "csv" else '{"id": 1, "segmnt": "x"}\n')
    kinds = {"id": "integer", "segment": "string"}
    if name == "ndjson":  # elsewhere the contract is compared with the columns later
        with pytest.raises(Mismatch, match="no record of the files has segment"):
            read(tmp_path, kinds, format=name)
    rows = read(tmp_path, kinds, format=name, optional=["segment"])
    assert [(row["id"], row["segment"]) for row in rows] == [(1, None)]


def test_json_lines_need_types(tmp_path: Path) -> None:
    write(tmp_path, "a.ndjson", '{"id": 1}\n')
    with pytest.raises(RetlError, match="needs to know its columns"):
        read(tmp_path, format="ndjson")
    assert read(tmp_path, format="ndjson", columns={"id": "BIGINT"}) == [{"id": 1}]
