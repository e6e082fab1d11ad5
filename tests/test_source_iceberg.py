"""Iceberg as a source: what a table holds reaches DuckDB unchanged, or it is refused by name."""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
import time
import uuid
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg import types as ice
from pyiceberg.manifest import DataFileContent, FileFormat
from pyiceberg.schema import Schema
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import NestedField

from retl.errors import SourceError
from tests.lake import Shop, add_file, append_exactly, delete_positions, rewrite, rows, the_file

A, B, C = (1, "a", Decimal("1.10")), (2, "b", None), (3, None, Decimal("-9999999999.99"))


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "shop")


def refusal(shop: Shop, *words: Any, **more: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        shop.read(*words, **more)
    return caught.value


# -- types


def field(number: int, name: str, kind: Any, required: bool = False) -> NestedField:
    return NestedField(number, name, kind, required=required)


def struct(number: int, name: str, kind: Any) -> ice.StructType:
    return ice.StructType(field(number, name, kind))


def listed(number: int, kind: Any) -> ice.ListType:
    return ice.ListType(number, kind, element_required=False)


def mapped(number: int, kind: Any) -> ice.MapType:
    return ice.MapType(number, ice.StringType(), number + 1, kind, value_required=False)


LEAST, MOST = dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31, 23, 59, 59, 999999)
HALF = dt.datetime(2026, 11, 28, 12, 30, 0, 123456)
ID = uuid.UUID("12345678-1234-5678-9234-567812345678")
# column → its type, DuckDB's type, values written, values read (the same if left out)
TYPES: dict[str, tuple[Any, ...]] = {
    "yes": (ice.BooleanType(), "BOOLEAN", [True, False]),
    "small": (ice.IntegerType(), "INTEGER", [-(2**31), 2**31 - 1]),
    "large": (ice.LongType(), "BIGINT", [-(2**63), 2**63 - 1]),
    "single": (ice.FloatType(), "FLOAT", [1.5, float("-inf")]),
    "double": (ice.DoubleType(), "DOUBLE", [0.1, 1.7976931348623157e308]),
    "money": (ice.DecimalType(9, 2), "DECIMAL(9,2)", [Decimal("-9999999.99"), Decimal("0.01")]),
    "exact": (
        *(ice.DecimalType(38, 10), "DECIMAL(38,10)"),
        [Decimal("9999999999999999999999999999.9999999999"), Decimal("-0.0000000001")],
    ),
    "day": (ice.DateType(), "DATE", [dt.date(1, 1, 1), dt.date(9999, 12, 31)]),
    "hour": (ice.TimeType(), "TIME", [dt.time(0), dt.time(23, 59, 59, 999999)]),
    "local": (ice.TimestampType(), "TIMESTAMP", [LEAST, MOST]),
    "moment": (
        *(ice.TimestamptzType(), "TIMESTAMP WITH TIME ZONE"),
        [HALF.replace(tzinfo=dt.UTC), dt.datetime(1969, 1, 1, tzinfo=dt.UTC)],
    ),
    "text": (ice.StringType(), "VARCHAR", ["", "z̈ 'NULL' \\ \n"]),
    "id_": (ice.UUIDType(), "UUID", [ID.bytes, bytes(16)], [ID, uuid.UUID(int=0)]),
    "three": (ice.FixedType(3), "BLOB", [b"abc", b"\0\xff\0"]),
    "bytes": (ice.BinaryType(), "BLOB", [b"", bytes(range(256))]),
    "inside": (struct(101, "a", ice.IntegerType()), "STRUCT(a INTEGER)", [{"a": 1}, {"a": None}]),
    "numbers": (listed(102, ice.LongType()), "BIGINT[]", [[1, None], []]),
    "structs": (
        *(listed(103, struct(104, "b", ice.StringType())), "STRUCT(b VARCHAR)[]"),
        [[{"b": "x"}, None, {"b": None}], []],
    ),
    "pairs": (
        *(mapped(105, ice.LongType()), "MAP(VARCHAR, BIGINT)"),
        [[("k", 1), ("l", None)], []],
        [{"k": 1, "l": None}, {}],
    ),
    "deep": (
        *(mapped(107, struct(109, "c", ice.LongType())), "MAP(VARCHAR, STRUCT(c BIGINT))"),
        [[("k", {"c": 1}), ("l", None)], []],
        [{"k": {"c": 1}, "l": None}, {}],
    ),
    "deeper": (
        *(listed(110, listed(111, struct(112, "d", ice.LongType()))), "STRUCT(d BIGINT)[][]"),
        [[[{"d": 1}, None], None, []], []],
    ),
    "a.b": (ice.StringType(), "VARCHAR", ["a dot", "x"]),
    'quo"ted ü': (ice.StringType(), "VARCHAR", ["q", "x"]),
}


@pytest.mark.parametrize("deleted", [(), (0,)], ids=["whole", "after a delete"])
def test_every_type_is_exact_and_null_stays_null(shop: Shop, deleted: tuple[int, ...]) -> None:
    fields = [field(at, name, kind) for at, (name, (kind, *_)) in enumerate(TYPES.items(), 2)]
    table = shop.table(schema=Schema(field(1, "id", ice.LongType()), *fields))
    made = [
        {"id": 2},
        *({"id": at} | {n: values[at] for n, (_, _, values, *_) in TYPES.items()} for at in (0, 1)),
    ]
    append_exactly(table, pa.Table.from_pylist(made, schema=table.schema().as_arrow()))
    if deleted:
        delete_positions(table, {the_file(table): [1]})
    with shop.opened() as (workspace, snapshot):
        assert dict(snapshot.description.columns) == {"id": "BIGINT"} | {n: t[1] for n, t in TYPES.items()}
        found = workspace.run(f"{snapshot.rows(list(snapshot.description.columns)).sql} ORDER BY 1")
    expected = [(at, *(t[-1][at] for t in TYPES.values())) for at in (0, 1)]
    assert found == [row for row in expected if row[0] not in deleted] + [(2, *[None] * len(TYPES))]


def test_nan_stays_nan(shop: Shop) -> None:
    table = shop.table(schema=pa.schema({"d": pa.float64()}))
    table.append(pa.table({"d": [float("nan")]}))
    ((value,),) = shop.read()
    assert value != value


def v3(shop: Shop, name: str, kind: str, **more: Any) -> None:
    """A table of format 3 with a column of this type, which PyIceberg reads and does not write."""
    table = shop.table(name)
    table.append(rows(A))
    text = json.loads(Path(table.metadata_location.removeprefix("file://")).read_text())
    text |= {"format-version": 3, "next-row-id": 1}
    text["schemas"][0]["fields"].append({"id": 9, "name": "odd", "required": False, "type": kind} | more)
    text["last-column-id"] = 9
    text["current-snapshot-id"] = text["snapshots"][0]["snapshot-id"]
    path = shop.folder / f"{name}.metadata.json"
    path.write_text(json.dumps(text))
    with sqlite3.connect(shop.folder / "catalog.db") as catalog:
        catalog.execute("UPDATE iceberg_tables SET metadata_location = ?", [f"file://{path}"])
    catalog.close()


def test_the_default_of_a_column_added_later_is_read(shop: Shop) -> None:
    v3(shop, "t", "string", **{"initial-default": "as before", "write-default": "now"})
    assert shop.read("t") == [(*A, "as before")]


@pytest.mark.parametrize("kind", ["timestamptz_ns", "geometry", "geography", "unknown", "variant"])
def test_a_type_that_duckdb_cannot_hold_is_refused_by_name(shop: Shop, kind: str) -> None:
    v3(shop, "t", kind)
    problem = refusal(shop, "t")
    assert (problem.code, kind in problem.message) == ("SOURCE_UNSUPPORTED", True)
    if kind != "variant":
        assert shop.read("t", columns=["id"]) == [(1,)]


def test_columns_that_duckdb_takes_for_one_are_refused(shop: Shop) -> None:
    shop.table(schema=pa.schema({"id": pa.int64(), "ID": pa.string()}))
    problem = refusal(shop)
    assert problem.message == (
        "table shop.customers has columns that differ only in upper and lower case (id, ID),"
        " which cannot be read exactly"
    )


# -- files


def without_ids(shop: Shop, table: Any, made: pa.Table, **options: Any) -> None:
    path = shop.folder / f"{uuid.uuid4()}.parquet"
    pq.write_table(made, path, **options)
    table.add_files([f"file://{path}"])


def test_files_without_field_ids_are_read_by_the_name_mapping(shop: Shop) -> None:
    table = shop.table()
    without_ids(shop, table, rows(A, B))
    with table.update_schema() as update:
        update.rename_column("name", "label")
    table.append(rows(C, schema=table.schema().as_arrow()))
    assert shop.read() == [A, B, C]
    table.transaction().remove_properties("schema.name-mapping.default").commit_transaction()
    assert "no name mapping" in refusal(shop).message


def test_old_timestamps_of_96_bits_are_exact(shop: Shop) -> None:
    table = shop.table(schema=pa.schema({"t": pa.timestamp("us")}))
    made = pa.table({"t": pa.array([LEAST, MOST, HALF], pa.timestamp("us"))})
    without_ids(shop, table, made)
    rewrite(the_file(table), made, use_deprecated_int96_timestamps=True)
    assert shop.read() == [(LEAST,), (HALF,), (MOST,)]


def test_nanoseconds_that_would_be_cut_off_are_refused(shop: Shop) -> None:
    table = shop.table(schema=pa.schema({"id": pa.int64(), "t": pa.timestamp("us")}))
    without_ids(shop, table, pa.table({"id": [1], "t": pa.array([1], pa.timestamp("us"))}))
    rewrite(the_file(table), pa.table({"id": [1], "t": pa.array([1001], pa.timestamp("ns"))}))
    assert "nanoseconds in column t" in refusal(shop).message
    assert shop.read(columns=["id"]) == [(1,)]


def test_a_file_that_lost_rows_is_no_table_with_fewer_rows(shop: Shop) -> None:
    table = shop.table()
    table.append(rows(A, B))
    rewrite(the_file(table), rows(A))
    problem = refusal(shop)
    assert (problem.code, "not the number of rows" in problem.message) == ("MART_UNREADABLE", True)


def test_renamed_dropped_added_and_widened_columns_are_read_by_id(shop: Shop) -> None:
    inside = ice.StructType(field(5, "x", ice.IntegerType()), field(6, "y", ice.StringType()))
    table = shop.table(
        schema=Schema(
            field(1, "id", ice.IntegerType()), field(2, "f", ice.FloatType()), field(3, "gone", ice.StringType()),
            field(4, "s", inside), field(7, "l", listed(8, struct(9, "z", ice.IntegerType()))),
        )
    )  # fmt: skip
    old = {"id": 1, "f": 0.5, "gone": "g", "s": {"x": 1, "y": "y"}, "l": [{"z": 1}, None]}
    empty = {"id": 2, "s": None, "l": None}
    append_exactly(table, pa.Table.from_pylist([old, empty], schema=table.schema().as_arrow()))
    with table.update_schema() as update:
        update.update_column("id", ice.LongType())
        update.update_column("f", ice.DoubleType())
        update.delete_column("gone")
        update.rename_column("s.x", "renamed")
        update.delete_column("s.y")
        update.add_column(("s", "new"), ice.LongType())
        update.update_column("l.element.z", ice.LongType())
        update.rename_column("l.element.z", "q")
        update.add_column(("l", "element", "more"), ice.StringType())
        update.rename_column("f", "gone_")
    with table.update_schema() as update:
        update.add_column("gone", ice.StringType())
    made = {
        "id": 2**40,
        "gone_": 0.1,
        "gone": "new",
        "s": {"renamed": 3, "new": 4},
        "l": [{"q": 2**40, "more": "m"}],
    }
    table.append(pa.Table.from_pylist([made], schema=table.schema().as_arrow()))
    columns = ["id", "gone_", "gone", "s", "l"]
    assert shop.read(columns=columns) == [
        (1, 0.5, None, {"renamed": 1, "new": None}, [{"q": 1, "more": None}, None]),
        (2, None, None, None, None),
        (2**40, 0.1, "new", {"renamed": 3, "new": 4}, [{"q": 2**40, "more": "m"}]),
    ]


def test_partitions_may_change_and_lose_their_column(shop: Shop) -> None:
    table = shop.table()
    table.append(rows(A))
    with table.update_spec() as update:
        update.add_field("name", IdentityTransform(), "by_name")
    table.append(rows(B))
    with table.update_spec() as update:
        update.remove_field("by_name")
    with table.update_schema() as update:
        update.delete_column("name")
    assert shop.read() == [(1, A[2]), (2, B[2])]


def test_a_partition_gives_the_value_of_a_column_that_its_files_lack(shop: Shop) -> None:
    table = shop.table()
    with table.update_spec() as update:
        update.add_field("name", IdentityTransform(), "by_name")
    table.append(rows(A))
    path = the_file(table)
    rewrite(path, pq.ParquetFile(path.removeprefix("file://")).read().drop_columns(["name"]))
    assert shop.read() == [A]
    assert shop.read(columns=["name"]) == [("a",)]


def test_rows_in_several_delete_files_are_deleted_once(shop: Shop) -> None:
    table = shop.table()
    table.append(rows(*((i, f"n{i}", None) for i in range(6))))
    before = shop.version()
    file = the_file(table)
    for positions in ([0, 2], [2, 3], [3, 99]):
        delete_positions(table, {file: positions, "file:///elsewhere.parquet": [1]})
    assert [row[0] for row in shop.read()] == [1, 4, 5]
    found = shop.feed(before)
    assert not isinstance(found, str)
    assert (sorted(found.rows), sorted(found.gone), found.total) == (
        [(1,), (4,), (5,)],
        [(0,), (2,), (3,)],
        3,
    )


@pytest.mark.parametrize(
    ("arguments", "feature"),
    [
        ({"content": DataFileContent.EQUALITY_DELETES, "equality_ids": [1]}, "equality deletes"),
        ({"file_format": FileFormat.PUFFIN}, "deletion vectors"),
        ({"file_format": FileFormat.AVRO}, "position deletes in AVRO format"),
        ({"key_metadata": b"key"}, "encrypted files"),
        ({"content": DataFileContent.DATA, "file_format": FileFormat.ORC}, "data files in ORC format"),
        ({"content": DataFileContent.DATA, "key_metadata": b"key"}, "encrypted files"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name_before_a_row_is(
    shop: Shop, arguments: dict[str, Any], feature: str
) -> None:
    table = shop.table()
    table.append(rows(A))
    add_file(table, "file:///nowhere.parquet", 1, **arguments)
    with pytest.raises(SourceError) as caught, shop.opened():
        pass
    assert caught.value.code == "SOURCE_UNSUPPORTED"
    assert caught.value.message == f"table shop.customers has {feature}, which cannot be read exactly"


# -- time travel


def test_every_state_is_read_in_its_own_schema_and_a_branch_in_that_of_today(shop: Shop) -> None:
    table = shop.table()
    table.append(rows(A))
    first = table.current_snapshot().snapshot_id
    table.manage_snapshots().create_tag(first, "before").create_branch(first, "audit").commit()
    time.sleep(0.01)
    between = dt.datetime.now(dt.UTC)
    time.sleep(0.01)
    with table.update_schema() as update:
        update.rename_column("name", "label")
        update.add_column("more", ice.StringType())
    table.append(pa.Table.from_pylist([{"id": 2, "more": "m"}], schema=table.schema().as_arrow()))
    local = between.astimezone(dt.timezone(dt.timedelta(hours=3)))
    for at in (first, str(first), "before", between.isoformat(), local, between.replace(tzinfo=None)):
        with shop.opened(at=at) as (_, snapshot):
            assert list(snapshot.description.columns) == ["id", "name", "amount"]
        assert shop.read(at=at) == [A]
    assert shop.read(at="audit") == [(*A, None)]
    assert shop.read(at="main") == shop.read() == [(*A, None), (2, None, None, "m")]
    assert shop.version(at="before") == shop.version(at=first) != shop.version(at="audit")


@pytest.mark.parametrize(
    ("at", "what", "hint"),
    [
        (17, "no snapshot 17", "it may have expired"),
        ("befor", "no tag or branch 'befor'", "did you mean 'before'?"),
        ("2001-01-01", "no snapshot of 2001-01-01", "younger"),
    ],
)
def test_a_state_that_is_not_there_is_named(shop: Shop, at: Any, what: str, hint: str) -> None:
    table = shop.table()
    table.append(rows(A))
    table.manage_snapshots().create_tag(table.current_snapshot().snapshot_id, "before").commit()
    problem = refusal(shop, at=at)
    assert (problem.code, problem.message) == ("MART_MISSING", f"table shop.customers has {what}")
    assert hint in str(problem.hint)


def test_a_snapshot_is_read_to_its_end_whoever_commits_meanwhile(shop: Shop) -> None:
    table = shop.table()
    table.append(rows(A, B))
    with shop.opened() as (workspace, snapshot):
        table.delete("id = 1")
        table.append(rows(C))
        assert workspace.run(snapshot.rows(["id"]).sql) == [(1,), (2,)]
    assert shop.read(columns=["id"]) == [(2,), (3,)]


def test_files_that_vanish_while_they_are_read_deliver_nothing(shop: Shop) -> None:
    table = shop.table()
    table.append(rows(A))
    with ExitStack() as stack:
        workspace, snapshot = stack.enter_context(shop.opened())
        query = snapshot.rows(["id"])
        Path(the_file(table).removeprefix("file://")).unlink()
        with pytest.raises(duckdb.Error):
            workspace.run(query.sql)
        with pytest.raises(SourceError) as caught:
            stack.close()
    assert caught.value.message == "table shop.customers cannot be read: one of its files is gone"


# -- the feed


def test_a_feed_says_why_it_cannot_compare(shop: Shop) -> None:
    table = shop.table()
    assert shop.feed("12 files abc") == "the last run read another source"
    table.append(rows(A))
    before = shop.version()
    with table.update_schema() as update:
        update.delete_column("name")
    with table.update_schema() as update:
        update.add_column("name", ice.StringType())
    assert shop.feed(before) == "column name was changed"
    former = table.current_snapshot().snapshot_id
    before = shop.version()
    table.append(rows((2, None, "b"), schema=table.schema().as_arrow()))
    table.maintenance.expire_snapshots().by_id(former).commit()
    assert shop.feed(before) == "the snapshot of the last run has expired"
    before = shop.version()
    shop.catalog.drop_table("shop.customers")
    shop.table()
    assert shop.feed(before) == "another table has this name now"


def test_a_column_that_is_not_used_may_change(shop: Shop) -> None:
    table = shop.table()
    table.append(rows(A))
    before = shop.version()
    with table.update_schema() as update:
        update.rename_column("name", "label")
    with shop.opened() as (_, snapshot):
        assert not isinstance(snapshot.feed(["id", "amount"], ["id"], before), str)
        assert snapshot.feed(["id", "label"], ["id"], before) == "column label was changed"


def test_another_name_mapping_is_another_reading_of_the_files(shop: Shop) -> None:
    table = shop.table()
    without_ids(shop, table, rows(A))
    before = shop.version()
    mapping = table.name_mapping().model_dump_json().replace('"name"', '"nom"')
    table.transaction().set_properties({"schema.name-mapping.default": mapping}).commit_transaction()
    assert shop.feed(before) == "the names of columns in files without ids were changed"


def test_a_feed_from_files_that_are_gone_or_unreadable_reads_everything(shop: Shop) -> None:
    table = shop.table()
    table.append(rows(A))
    before, kept = shop.version(), Path(the_file(table).removeprefix("file://"))
    table.overwrite(rows(B))
    kept.rename(kept.with_suffix(".moved"))
    assert "cannot be read any more" in str(shop.feed(before))
    kept.with_suffix(".moved").rename(kept)
    found = shop.feed(before)
    assert not isinstance(found, str)
    assert (found.rows, found.gone, found.total) == ({(2,): B}, {(1,)}, 1)


def test_a_file_that_is_listed_twice_is_read_twice(shop: Shop) -> None:
    table = shop.table()
    without_ids(shop, table, rows(A))
    before = shop.version()
    table.add_files([the_file(table)], check_duplicate_files=False)
    assert shop.read() == [A, A]
    found = shop.feed(before)
    assert not isinstance(found, str)
    assert (found.read, found.total) == (2, 2)


# -- reading


def test_memory_does_not_grow_with_a_file(shop: Shop) -> None:
    table = shop.table(schema=pa.schema({"id": pa.int64(), "text": pa.string()}))
    table.append(pa.table({"id": range(400_000), "text": ["x" * 300] * 400_000}))
    with shop.opened() as (_, snapshot):
        snapshot.rows(["id", "text"])
        (stream,) = snapshot._streams.values()
        held, count = 0, 0
        before = pa.total_allocated_bytes()
        for batch in stream.reader:
            count += batch.num_rows
            held = max(held, pa.total_allocated_bytes() - before)
    assert count == 400_000
    assert held < 100_000_000  # of 120 MB, and twice that while they are converted
