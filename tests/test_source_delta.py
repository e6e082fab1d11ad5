"""Delta tables as a source: one version, read exactly or refused by the name of what is in the way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pydantic import SecretStr

from retl.engine.freeze import freeze
from retl.engine.workspace import Workspace
from retl.errors import SourceError
from retl.net.bucket import Storage
from retl.observe.signals import Stop
from retl.sources.api import Feed, Invocation
from retl.sources.delta import Delta, Lake, Table
from tests.commands import Workshop
from tests.delta_by_hand import ID_AND_NAME, ByHand, column, people
from tests.servers import ObjectStore, RedisServer

CDF = {"delta.enableChangeDataFeed": "true"}
Rows = list[tuple[Any, ...]]


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    (tmp_path / "work").mkdir()
    with Workspace(tmp_path / "work", Stop()) as workspace:
        yield workspace


def source(folder: Path, at: int | datetime | None = None, **connection: Any) -> Delta:
    lake, table = Lake(root=str(folder.parent), **connection), Table(path=folder.name, at=at)
    return Delta(lake, table, Invocation(Path("/"), {}))


def read(workspace: Workspace, folder: Path, at: int | datetime | None = None, *columns: str) -> Rows:
    """The rows of a table as a run freezes them, sorted."""
    with source(folder, at).open(workspace) as snapshot:
        types = snapshot.description.columns
        chosen = {name: types[name] for name in columns or types}
        freeze(workspace, snapshot.rows(list(chosen)), chosen)
    found = workspace.run('SELECT * EXCLUDE "retl row" FROM frozen ORDER BY ALL')
    workspace.run("DROP TABLE frozen")
    return found


def types(workspace: Workspace, folder: Path) -> Mapping[str, str]:
    with source(folder).open(workspace) as snapshot:
        return snapshot.description.columns


def refusal(
    workspace: Workspace, folder: Path, at: int | datetime | None = None, *columns: str
) -> SourceError:
    with pytest.raises(SourceError) as caught:
        read(workspace, folder, at, *columns)
    return caught.value


def feed(
    workspace: Workspace, folder: Path, after: str, at: int | None = None
) -> tuple[Rows, Rows, int] | str:
    """Rows that may have changed, keys that may be gone, number of rows; or why that cannot be told."""
    with source(folder, at).open(workspace) as snapshot:
        names = list(snapshot.description.columns)
        found = snapshot.feed(names, names[:1], after)
        if isinstance(found, str):
            return found
        ordered = (f"SELECT * FROM ({query.sql}) ORDER BY ALL" for query in (found.rows, found.left))
        rows, left = map(workspace.run, ordered)
        return rows, left, found.total


def version(folder: Path, number: int) -> str:
    return f"{number} of {DeltaTable(str(folder)).metadata().id}"


def vectors(folder: Path) -> ByHand:
    """Ids 0 to 9 in one file, with deletion vectors and a change feed."""
    table = ByHand(folder, "deletionVectors", writer_features=["changeDataFeed"], configuration=CDF)
    table.commit(table.add("a.parquet", people(*range(10))))
    return table


def test_a_table_is_delivered_with_its_changes_and_its_version(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    shop = Workshop(tmp_path / "shop")
    shop.use(redis=redis_server)
    shop.write("retl.yml", "sources:\n  gold: {type: delta, root: lake}\n")
    shop.sync(
        "s",
        source="{from: gold, table: crm.people}",
        key="[id]",
        deletes="delete",
        destination='{type: redis, key: "p:{id}", value: json, ttl: none}',
    )
    folder = shop.folder / "lake/crm/people"
    write_deltalake(str(folder), people(1, 2, 3))
    (run,) = shop.json("sync")["syncs"]
    assert (run["status"], run["inserted"]) == ("SUCCESS", 3)
    DeltaTable(str(folder)).delete("id = 1")
    write_deltalake(str(folder), people(4), mode="append")
    (run,) = shop.json("sync")["syncs"]
    assert (run["inserted"], run["deleted"], run["unchanged"]) == (1, 1, 2)
    assert shop.json("show")["source_version"] == version(folder, 2)


FIRST, LAST = datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999)
# column → its type, DuckDB's type, values
TYPES: dict[str, tuple[pa.DataType, str, list[Any]]] = {
    "i8": (pa.int8(), "TINYINT", [-128, 127]),
    "i16": (pa.int16(), "SMALLINT", [-(2**15), 2**15 - 1]),
    "i32": (pa.int32(), "INTEGER", [-(2**31), 2**31 - 1]),
    "i64": (pa.int64(), "BIGINT", [-(2**63), 2**63 - 1]),
    "f32": (pa.float32(), "FLOAT", [1.5, float("-inf")]),
    "f64": (pa.float64(), "DOUBLE", [0.1, 1e308]),
    "exact": (pa.decimal128(38, 10), "DECIMAL(38,10)", [Decimal("9" * 28 + ".0000000001"), None]),
    "yes": (pa.bool_(), "BOOLEAN", [True, None]),
    "bytes": (pa.binary(), "BLOB", [b"\0\xff", b""]),
    "text": (pa.string(), "VARCHAR", ["", "é\0\n'\"\U0001f600"]),
    "day": (pa.date32(), "DATE", [date(1, 1, 1), date(9999, 12, 31)]),
    "naive": (pa.timestamp("us"), "TIMESTAMP", [FIRST, LAST]),
    "zoned": (
        *(pa.timestamp("us", "UTC"), "TIMESTAMP WITH TIME ZONE"),
        [FIRST.replace(tzinfo=UTC), LAST.replace(tzinfo=UTC)],
    ),
    "list": (pa.list_(pa.int64()), "BIGINT[]", [[1, None], []]),
    "struct": (
        *(pa.struct([("a b", pa.decimal128(9, 2))]), 'STRUCT("a b" DECIMAL(9,2))'),
        [{"a b": Decimal("1.10")}, None],
    ),
    "map": (pa.map_(pa.string(), pa.int64()), "MAP(VARCHAR, BIGINT)", [{"k": 1}, {}]),
    'odd."na me"': (pa.string(), "VARCHAR", ["x", None]),
}


def test_every_type_is_exact(tmp_path: Path, workspace: Workspace) -> None:
    folder, columns = tmp_path / "types", TYPES
    arrays = [
        pa.array([list(one.items()) for one in values] if pa.types.is_map(kind) else values, kind)
        for kind, _, values in columns.values()
    ]
    write_deltalake(str(folder), pa.table(arrays, names=list(columns)), configuration=CDF)
    assert types(workspace, folder) == {name: kind for name, (_, kind, _) in columns.items()}
    wanted = list(zip(*(values for *_, values in columns.values()), strict=True))
    assert read(workspace, folder) == wanted
    write_deltalake(str(folder), DeltaTable(str(folder)).to_pyarrow_table(), mode="overwrite")
    found = feed(workspace, folder, version(folder, 0))
    assert found == (wanted, [(-128,), (127,)], 2)


def test_partition_values_are_exact(tmp_path: Path, workspace: Workspace) -> None:
    kinds = {
        "string": ("é/%20 x", "é/%20 x"),
        "long": (str(2**63 - 1), 2**63 - 1),
        "boolean": ("true", True),
        "date": ("2026-11-28", date(2026, 11, 28)),
        "timestamp": ("2026-11-28 10:00:00.123456", datetime(2026, 11, 28, 10, 0, 0, 123456, UTC)),
        "decimal(10,2)": ("1.10", Decimal("1.10")),
    }
    fields = [column("id", "long"), *(column(f"p {kind}", kind) for kind in kinds)]
    names = [f"p {kind}" for kind in kinds]
    table = ByHand(tmp_path / "parts", fields=fields, partitions=names)
    ids = people(1).select(["id"])
    values = {name: text for name, (text, _) in zip(names, kinds.values(), strict=True)}
    table.commit(table.add("a.parquet", ids, values=values))
    table.commit(table.add("b.parquet", ids, values=dict.fromkeys(names)))
    wanted = (1, *(value for _, value in kinds.values()))
    assert read(workspace, table.folder) == [wanted, (1, *[None] * len(kinds))]


@pytest.mark.parametrize("in_file", [False, True])
def test_rows_that_a_deletion_vector_hides_are_not_there(
    tmp_path: Path, workspace: Workspace, in_file: bool
) -> None:
    table = vectors(tmp_path / "hidden")
    vector = table.vector(2, 3, in_file=in_file)
    table.commit(table.remove("a.parquet"), table.add("a.parquet", vector=vector), operation="DELETE")
    more = table.vector(2, 3, 5, in_file=in_file)
    table.commit(
        table.remove("a.parquet", vector=vector), table.add("a.parquet", vector=more), operation="DELETE"
    )
    assert [one for one, _ in read(workspace, table.folder)] == [0, 1, 4, 6, 7, 8, 9]
    assert feed(workspace, table.folder, version(table.folder, 0)) == ([], [(2,), (3,), (5,)], 7)
    assert feed(workspace, table.folder, version(table.folder, 1)) == ([], [(5,)], 7)


def test_a_file_that_leaves_with_a_deletion_vector_makes_the_feed_unusable(
    tmp_path: Path, workspace: Workspace
) -> None:
    table = vectors(tmp_path / "hidden")
    vector = table.vector(2, 3)
    table.commit(table.remove("a.parquet"), table.add("a.parquet", vector=vector), operation="DELETE")
    table.commit(table.remove("a.parquet", vector=vector), table.add("b.parquet", people(1, 10)))
    said = feed(workspace, table.folder, version(table.folder, 1))
    assert said == "version 2 removes or adds files with deletion vectors and keeps no change files"
    assert [one for one, _ in read(workspace, table.folder)] == [1, 10]


def test_columns_mapped_by_name_are_read_at_every_depth(tmp_path: Path, workspace: Workspace) -> None:
    inner = {"type": "struct", "fields": [column("in ner", "long", id=4, physicalName="c-4")]}
    other = {"type": "struct", "fields": [column("in ner", "long", id=7, physicalName="c-7")]}
    many = {"type": "array", "elementType": other, "containsNull": True}
    fields = [
        column("id", "long", id=1, physicalName="c-1"),
        column("one", inner, id=2, physicalName="c-2"),
        column("many", many, id=3, physicalName="c-3"),
        column("dropped", "string", id=5, physicalName="c-5"),
        column("part", "string", id=6, physicalName="c-6"),
    ]
    mode = {"delta.columnMapping.mode": "name"}
    table = ByHand(
        tmp_path / "m", "columnMapping", fields=fields, configuration=mode | CDF, partitions=["part"]
    )
    rows = pa.table(
        {"c-1": [1], "c-2": [{"c-4": 7}], "c-3": [[{"c-7": 8}]], "dropped": ["of another column"]}
    )
    table.commit(table.add("a.parquet", rows, values={"c-6": "x"}))
    table.commit(table.add("b.parquet", rows, values={"c-6": None}))
    row = (1, {"in ner": 7}, [{"in ner": 8}], None)
    assert read(workspace, table.folder) == [(*row, "x"), (*row, None)]
    said = feed(workspace, table.folder, version(table.folder, 0))
    assert said == "the change feed of a table with mapped columns cannot be read"


def test_columns_mapped_by_id_are_refused(tmp_path: Path, workspace: Workspace) -> None:
    fields = [column("id", "long", id=1, physicalName="id")]
    mode = {"delta.columnMapping.mode": "id"}
    table = ByHand(tmp_path / "ids", "columnMapping", fields=fields, configuration=mode)
    table.commit(table.add("a.parquet", people(1).select(["id"])))
    refused = refusal(workspace, table.folder)
    assert refused.code == "SOURCE_UNSUPPORTED"
    assert "columns that are mapped by id" in refused.message


REFUSED = (
    *("typeWidening", "typeWidening-preview", "vacuumProtocolCheck", "variantShredding"),
    *("variantShredding-preview", "catalogManaged"),
    *("geospatial", "adaptiveMetadata-preview", "collations", "somethingNew"),
)


@pytest.mark.parametrize("feature", REFUSED)
def test_a_feature_that_is_not_read_exactly_is_refused_by_name(
    tmp_path: Path, workspace: Workspace, feature: str
) -> None:
    table = ByHand(tmp_path / "new", feature)
    table.commit(table.add("a.parquet", people(1)))
    refused = refusal(workspace, table.folder)
    assert refused.code == "SOURCE_UNSUPPORTED"
    assert f"the feature {feature}," in refused.message


def test_features_of_writers_do_not_matter(tmp_path: Path, workspace: Workspace) -> None:
    writers = ["clustering", "domainMetadata", "rowTracking", "inCommitTimestamp", "identityColumns"]
    writers += ["generatedColumns", "checkConstraints", "icebergCompatV2", "allowColumnDefaults"]
    table = ByHand(tmp_path / "new", "timestampNtz", "v2Checkpoint", writer_features=writers)
    table.commit(table.add("a.parquet", people(1)))
    assert read(workspace, table.folder) == [(1, "n1")]


@pytest.mark.parametrize("kind", ["interval", "geometry", "variant"])
def test_a_type_that_the_reader_does_not_know_is_refused_by_name(
    tmp_path: Path, workspace: Workspace, kind: str
) -> None:
    table = ByHand(tmp_path / "new", fields=[*ID_AND_NAME, column("x", kind)])
    table.commit(table.add("a.parquet", people(1)))
    refused = refusal(workspace, table.folder)
    assert refused.code == "SOURCE_UNSUPPORTED"
    assert f"a column of type {kind}" in refused.message.lower()


def test_a_column_of_type_variant_is_refused_and_the_others_are_read(
    tmp_path: Path, workspace: Workspace
) -> None:
    nested = {"type": "array", "elementType": "variant", "containsNull": True}
    fields = [*ID_AND_NAME, column("v", "variant"), column("nested", nested)]
    table = ByHand(tmp_path / "v", "variantType", fields=fields, configuration=CDF)
    kind = pa.struct([pa.field("metadata", pa.binary(), False), pa.field("value", pa.binary(), False)])
    value = {"metadata": b"\x01\0\0", "value": b"\x0c\x05"}
    rows = people(1).append_column("v", pa.array([value], kind))
    table.commit(table.add("a.parquet", rows.append_column("nested", pa.array([[value]], pa.list_(kind)))))
    assert read(workspace, table.folder, None, "id", "name") == [(1, "n1")]
    for name in ("v", "nested"):
        refused = refusal(workspace, table.folder, None, "id", name)
        assert (refused.code, f"the column {name} of type variant" in refused.message) == (
            *("SOURCE_UNSUPPORTED", True),
        )


def test_the_feed_has_the_newest_row_per_key_and_the_keys_that_left(
    tmp_path: Path, workspace: Workspace
) -> None:
    folder = tmp_path / "t"
    write_deltalake(str(folder), people(1, 2, 3), configuration=CDF)
    table = DeltaTable(str(folder))
    table.update(updates={"name": "'twice'"}, predicate="id = 1")
    table.update(updates={"name": "'once more'"}, predicate="id = 1")
    table.update(updates={"id": "20"}, predicate="id = 2")
    table.delete("id = 3")
    write_deltalake(str(folder), people(3), mode="append")
    rows, left, total = feed(workspace, folder, version(folder, 0))
    assert rows == [(1, "once more"), (3, "n3"), (20, "n2")]
    assert [one for one in left if one[0] not in (1, 3, 20)] == [(2,)]
    assert total == 3
    assert feed(workspace, folder, version(folder, 5)) == ([], [], 3)


def test_a_key_that_is_null_is_in_the_feed(tmp_path: Path, workspace: Workspace) -> None:
    folder = tmp_path / "t"
    write_deltalake(str(folder), people(1), configuration=CDF)
    rows = pa.table({"id": pa.array([None], pa.int64()), "name": ["nobody"]})
    write_deltalake(str(folder), rows, mode="append")
    assert feed(workspace, folder, version(folder, 0)) == ([(None, "nobody")], [(None,)], 2)


def test_rows_that_share_a_key_are_all_in_the_feed(tmp_path: Path, workspace: Workspace) -> None:
    folder = tmp_path / "t"
    write_deltalake(str(folder), people(1), configuration=CDF)
    write_deltalake(str(folder), people(2, 2), mode="append")
    assert feed(workspace, folder, version(folder, 0)) == ([(2, "n2")] * 2, [(2,)], 3)


def _vacuumed(table: DeltaTable) -> None:
    for file in Path(table.table_uri.removeprefix("file://")).glob("_change_data/*"):
        file.unlink()


def _made_anew(table: DeltaTable) -> None:
    folder = table.table_uri.removeprefix("file://")
    for file in sorted(Path(folder).rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    for one in range(9):
        write_deltalake(folder, people(one), mode="append", configuration=CDF if one == 0 else None)


def _log_cleaned(table: DeltaTable) -> None:
    table.create_checkpoint()
    folder = Path(table.table_uri.removeprefix("file://"))
    (folder / "_delta_log/00000000000000000001.json").unlink()


UNTOLD: dict[str, tuple[Callable[[DeltaTable], object], str]] = {
    "vacuumed": (_vacuumed, "the change feed cannot be read: files of this version of Delta table t are not"),
    "made anew": (_made_anew, "another table was delivered before"),
    "log cleaned": (_log_cleaned, "the log no longer has version 1"),
    "restored": (lambda table: table.restore(0), "version 3 is RESTORE"),
    "properties": (
        lambda table: table.alter.set_table_properties({"delta.appendOnly": "false"}),
        "version 3 is SET TBLPROPERTIES",
    ),
    "switched off": (
        lambda table: table.alter.set_table_properties({"delta.enableChangeDataFeed": "false"}),
        "the table has no change feed (delta.enableChangeDataFeed)",
    ),
    "column of the feed": (
        lambda table: write_deltalake(
            table, pa.table({"_change_type": ["x"]}), mode="append", schema_mode="merge"
        ),
        "the table's column _change_type has a name of the change feed",
    ),
}


@pytest.mark.parametrize("case", UNTOLD)
def test_what_the_feed_cannot_tell_is_a_sentence(tmp_path: Path, workspace: Workspace, case: str) -> None:
    folder, (change, sentence) = tmp_path / "t", UNTOLD[case]
    write_deltalake(str(folder), people(1, 2, 3), configuration=CDF)
    after = version(folder, 0)
    DeltaTable(str(folder)).update(updates={"name": "'x'"}, predicate="id = 1")
    DeltaTable(str(folder)).delete("id = 2")
    change(DeltaTable(str(folder)))
    said = feed(workspace, folder, after)
    assert isinstance(said, str)
    assert said.startswith(sentence)


def test_a_feed_that_never_was_is_a_sentence(tmp_path: Path, workspace: Workspace) -> None:
    folder = tmp_path / "t"
    write_deltalake(str(folder), people(1))
    write_deltalake(str(folder), people(2), mode="append")
    assert feed(workspace, folder, version(folder, 0)) == (
        "the table has no change feed (delta.enableChangeDataFeed)"
    )


def test_partitions_that_the_feed_does_not_find_are_a_sentence(tmp_path: Path, workspace: Workspace) -> None:
    folder = tmp_path / "t"
    rows = pa.table({"id": [1, 2], "part": ["é", "a b"]})
    write_deltalake(str(folder), rows, partition_by="part", configuration=CDF)
    DeltaTable(str(folder)).update(updates={"id": "id + 10"})
    said = feed(workspace, folder, version(folder, 0))
    assert isinstance(said, str)
    assert said.startswith("the change feed cannot be read")
    assert read(workspace, folder) == [(11, "é"), (12, "a b")]


@pytest.mark.parametrize(
    ("operation", "sentence"),
    [
        ("CREATE OR REPLACE TABLE AS SELECT", "version 1 is CREATE OR REPLACE TABLE AS SELECT"),
        ("SOMETHING NEW", "version 1 is SOMETHING NEW"),
        (None, "version 1 is an operation without a name"),
    ],
)
def test_an_operation_that_is_not_known_is_a_sentence(
    tmp_path: Path, workspace: Workspace, operation: str | None, sentence: str
) -> None:
    table = vectors(tmp_path / "t")
    table.commit(table.add("b.parquet", people(10)), operation=operation)
    assert feed(workspace, table.folder, version(table.folder, 0)) == sentence


def test_a_feed_that_was_off_for_one_version_is_a_sentence(tmp_path: Path, workspace: Workspace) -> None:
    table = vectors(tmp_path / "t")
    off = {**table.metadata, "configuration": {}}
    table.commit({"metaData": off}, table.add("b.parquet", people(10)))
    table.commit({"metaData": table.metadata})
    assert feed(workspace, table.folder, version(table.folder, 0)) == "version 1 has no change feed"


def test_a_commit_that_is_damaged_is_a_sentence(tmp_path: Path, workspace: Workspace) -> None:
    table = vectors(tmp_path / "t")
    table.commit(table.add("b.parquet", people(10)))
    with source(table.folder).open(workspace) as snapshot:
        table.commit_file(1).write_text('{"add": {"path"')
        said = snapshot.feed(["id"], ["id"], version_of(table, 0))
    assert said == "version 1 cannot be understood"


def version_of(table: ByHand, number: int) -> str:
    return f"{number} of {table.metadata['id']}"


def test_the_version_of_a_number_or_a_time_is_read(tmp_path: Path, workspace: Workspace) -> None:
    table = ByHand(tmp_path / "t")
    for one in range(3):
        table.commit(table.add(f"{one}.parquet", people(one)), at=one * 3_600_000)
        os.utime(table.commit_file(one), (one * 3600 + 1, one * 3600 + 1))
    assert read(workspace, table.folder, 1) == [(0, "n0"), (1, "n1")]
    assert read(workspace, table.folder, datetime(1970, 1, 1, 1, 30, tzinfo=UTC)) == [(0, "n0"), (1, "n1")]
    assert len(read(workspace, table.folder, datetime(2026, 1, 1, tzinfo=UTC))) == 3
    with source(table.folder, 1).open(workspace) as snapshot:
        assert snapshot.description.version == version_of(table, 1)


def test_a_version_that_the_log_no_longer_leads_to_is_named(tmp_path: Path, workspace: Workspace) -> None:
    folder = tmp_path / "t"
    for number in range(3):
        write_deltalake(str(folder), people(number), mode="append")
    DeltaTable(str(folder)).create_checkpoint()
    for number in range(2):
        (folder / f"_delta_log/{number:020}.json").unlink()
    assert "no such version, or its log no longer has it" in refusal(workspace, folder, 1).message
    assert len(read(workspace, folder, 2)) == 3


def test_a_time_that_the_log_does_not_tell_is_refused(tmp_path: Path, workspace: Workspace) -> None:
    table = ByHand(tmp_path / "t")
    for one in range(3):
        table.commit(table.add(f"{one}.parquet", people(one)), at=one * 3_600_000)
    before = refusal(workspace, table.folder, datetime(1960, 1, 1, tzinfo=UTC))
    copied = refusal(
        workspace, table.folder, datetime(1970, 1, 1, 1, 30, tzinfo=UTC)
    )  # the files are of today
    for refused in (before, copied):
        assert refused.code == "MART_MISSING"
        assert "does not say which version was the newest at" in refused.message


def test_every_failure_is_one_sentence(tmp_path: Path, workspace: Workspace) -> None:
    table = ByHand(tmp_path / "t")
    table.commit(table.add("a.parquet", people(1)))
    refused = refusal(workspace, table.folder, 7)
    assert (refused.code, refused.message) == (
        "MART_MISSING",
        "Delta table t has no such version, or its log no longer has it",
    )
    (tmp_path / "empty").mkdir()
    for name in ("nothing", "empty"):
        refused = refusal(workspace, tmp_path / name)
        assert (refused.code, refused.message) == ("MART_MISSING", f"there is no Delta table {name}")
    (table.folder / "a.parquet").unlink()
    refused = refusal(workspace, table.folder)
    assert (refused.code, refused.message) == (
        "MART_UNREADABLE",
        "files of this version of Delta table t are not there",
    )
    pq.write_table(pa.table({"id": [2**40], "name": ["secret value"]}), table.folder / "b.parquet")
    table.metadata["schemaString"] = table.metadata["schemaString"].replace("long", "integer")
    table.commit({"metaData": table.metadata}, table.remove("a.parquet"), table.add("b.parquet"))
    refused = refusal(workspace, table.folder)
    assert refused.code == "MART_UNREADABLE"
    assert str(2**40) not in str(refused)


@pytest.mark.parametrize(
    "written",
    [
        *("path: ../x", "path: /etc", "path: a/../../x", "path: a/%2e%2e/x", "path: ''", 'table: "a/../.."'),
        *(
            "table: ..",
            "table: '%2e%2e'",
            "{}",
            "table: a, path: a",
            "table: a, at: 2026-11-28",
            "table: a, at: -1",
        ),
        *("table: a, at: true", "table: a, at: soon", "table: a, version: 3"),
    ],
)
def test_an_option_that_is_wrong_is_refused(tmp_path: Path, written: str) -> None:
    shop = Workshop(tmp_path / "shop")
    shop.write("retl.yml", "sources:\n  gold: {type: delta, root: lake}\n")
    destination = '{type: redis, key: "p:{id}", value: json, ttl: none}'
    shop.sync("s", source=f"{{from: gold, {written.strip('{}')}}}", key="[id]", destination=destination)
    assert shop.retl("validate").code == 2


def test_a_link_out_of_the_root_is_no_table_of_it(tmp_path: Path, workspace: Workspace) -> None:
    write_deltalake(str(tmp_path / "elsewhere"), people(1))
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
    assert "a link that leads out of" in refusal(workspace, tmp_path / "root/link").message


def in_bucket(store: ObjectStore, folder: str, **other: Any) -> Delta:
    keys = {"access_key_id": store.user, "secret_access_key": store.password, "region": store.region}
    storage = Storage(**{"endpoint": store.url, **keys, **other})
    lake = Lake(root=f"s3://{store.bucket}/gold", storage=storage)
    return Delta(lake, Table(path=folder), Invocation(Path("/"), {}))


def test_a_table_in_a_bucket_is_read_with_its_feed(
    workspace: Workspace, objectstore: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"aws_access_key_id": objectstore.user, "aws_secret_access_key": objectstore.password}
    other = {"aws_endpoint": objectstore.url, "aws_region": objectstore.region, "allow_http": "true"}
    uri, writing = f"s3://{objectstore.bucket}/gold/peo ple", keys | other
    write_deltalake(uri, people(1, 2), configuration=CDF, storage_options=writing)
    table = in_bucket(objectstore, "peo ple")
    with table.open(workspace) as snapshot:
        assert workspace.run(f"{snapshot.rows(['id']).sql} ORDER BY 1") == [(1,), (2,)]
        before = snapshot.description.version
    DeltaTable(uri, storage_options=writing).delete("id = 1")
    write_deltalake(uri, people(3), mode="append", storage_options=writing)
    for name in ("AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):  # keys come alone
        monkeypatch.setenv(name, "of another account")
    with table.open(workspace) as snapshot:
        found = snapshot.feed(["id", "name"], ["id"], before)
        assert isinstance(found, Feed)
        assert (workspace.run(found.rows.sql), found.total) == ([(3, "n3")], 2)
        assert workspace.run(f"{found.left.sql} ORDER BY 1") == [(1,), (3,)]


def test_a_bucket_that_cannot_be_read_is_one_sentence(workspace: Workspace, objectstore: ObjectStore) -> None:
    def refused(folder: str = "nothing", **other: Any) -> tuple[str, str]:
        with pytest.raises(SourceError) as caught:
            in_bucket(objectstore, folder, **other).open(workspace)
        assert "secret-canary" not in f"{caught.value} {caught.value.hint}"
        return caught.value.code, caught.value.message

    assert refused() == ("MART_MISSING", "there is no Delta table nothing")
    wrong = {"access_key_id": "nobody", "secret_access_key": SecretStr("secret-canary")}
    assert refused(**wrong) == (
        *("MART_UNREADABLE", "Delta table nothing may not be read, or the keys are wrong"),
    )
    assert refused(endpoint="http://127.0.0.1:9")[0] == "UNREACHABLE"


@pytest.mark.parametrize(
    ("lake", "problem"),
    [
        ("root: lake, storage: {region: eu}", "`storage` is for a bucket"),
        ("root: 's3://b/x', storage: {account_key: k}", "`account_key` is no option of s3://"),
        ("root: 'ftp://b/x'", "an address begins with one of"),
        ("root: 's3://key:secret@b/x'", "keys belong under `storage`"),
        ("root: 'a%2e'", "a `root` with % cannot be read"),
    ],
)
def test_a_root_that_is_wrong_is_refused(tmp_path: Path, lake: str, problem: str) -> None:
    shop = Workshop(tmp_path / "shop")
    shop.write("retl.yml", f"sources:\n  gold: {{type: delta, {lake}}}\n")
    destination = '{type: redis, key: "p:{id}", value: json, ttl: none}'
    shop.sync("s", source="{from: gold, table: t}", key="[id]", destination=destination)
    said = shop.retl("validate")
    assert said.code == 2
    assert problem in said.err
    assert "secret" not in said.err
