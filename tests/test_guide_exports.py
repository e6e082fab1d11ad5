"""The guide of exports comes true: its function applies what an event names, and its snapshot is one state.

The event is what the S3 of moto sent for such an object, as `s3:ObjectCreated:*` of a bucket with a prefix."""

from __future__ import annotations

import csv
import json
import re
import secrets
import sys
from decimal import Decimal
from io import BytesIO, StringIO
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote_plus

import duckdb
import obstore
import pytest

from tests.commands import ROWS, Workshop
from tests.exported import held, log, named, objects, texts
from tests.servers import ObjectStore

PAGE = (Path(__file__).parents[1] / "docs" / "guides" / "exports.md").read_text(encoding="utf-8")
EVENT = {
    "eventVersion": "2.1",
    "eventSource": "aws:s3",
    "awsRegion": "us-east-1",
    "eventTime": "2026-11-28T19:54:06.371Z",
    "eventName": "ObjectCreated:Put",
    "s3": {
        "s3SchemaVersion": "1.0",
        "configurationId": "y0y4NoEqhuOc2UKk4Q1HsgN516NZN7o86Sd7huulSHRqdPGBLZ",
        "bucket": {"name": "company-exports", "arn": "arn:aws:s3:::company-exports"},
        "object": {
            "key": "crm%2F_retl%2Flog%2F000000000001.json",
            "size": 2,
            "eTag": "99914b932bd37a50b983c5e7c90ae93b",
        },
    },
}
TYPES = """
contract:
  user_id: {type: integer}
  text: {type: string, nullable: true}
  amount: {type: decimal, max_digits: 38, decimal_places: 10, nullable: true}
  day: {type: date, nullable: true}
  moment: {type: timestamptz, nullable: true}
  data: {type: json, nullable: true}
  tags: {type: list, items: string, nullable: true}
"""
MART = r"""CREATE TABLE typed AS FROM (VALUES
 (1::BIGINT, 'a,"b"' || chr(10) || '\N', 9999999999999999999999999999.9999999999::DECIMAL(38,10), DATE '0001-01-01',
  TIMESTAMPTZ '2026-11-28 06:00:00.123456+02', '{"a":[1,{"b":1.10}]}'::JSON, ['', 'a,b', NULL]),
 (2, '', 0.1, DATE '9999-12-31', TIMESTAMPTZ '1900-01-01 00:00:00+00', '"x"', []),
 (3, NULL, NULL, NULL, NULL, NULL, NULL)) t(user_id, text, amount, day, moment, data, tags)"""


def block(language: str, has: str) -> str:
    """The only code block of the page that has these words."""
    (found,) = [one for one in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if has in one]
    return str(found)


def client_of(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`boto3.client("s3")` for the bucket of the tests, which the environment of a function has and ours has not."""

    class Client:
        def get_object(self, Bucket: str, Key: str) -> dict[str, Any]:
            assert Bucket == EVENT["s3"]["bucket"]["name"]  # type: ignore[index]
            return {"Body": BytesIO(bytes(obstore.get(store, Key).bytes()))}

    module = ModuleType("boto3")
    module.client = lambda _: Client()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "boto3", module)


def test_the_lambda_gets_the_rows_of_every_entry_and_nothing_else(
    objectstore: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = f"exports of {secrets.token_hex(4)}"
    workshop = Workshop(tmp_path / "project")
    storage = {
        "endpoint": objectstore.url,
        "region": objectstore.region,
        "access_key_id": objectstore.user,
        "secret_access_key": objectstore.password,
    }
    connection = {"type": "files", "root": f"s3://{objectstore.bucket}/{folder}", "storage": storage}
    workshop.write("retl.yml", f"connections: {json.dumps({'exports': connection})}")
    workshop.sync(
        "users",
        destination="{connection: exports, path: segments, format: ndjson}",
        deletes="delete",
        batch="{rows: 8}",
    )
    assert workshop.json("sync")["exit_code"] == 0
    workshop.warehouse("UPDATE users SET spend = 99.5 WHERE user_id = 7; DELETE FROM users WHERE user_id = 9")
    assert workshop.json("sync")["syncs"][0]["deleted"] == 1
    store = objectstore.store()
    client_of(store, monkeypatch)
    function: dict[str, Any] = {}
    exec(compile(block("python", "boto3"), "guide", "exec"), function)
    prefix = f"{folder}/segments/_retl/log/"
    keys = sorted(one["path"] for page in obstore.list(store, prefix=prefix) for one in page)
    users: dict[int, dict[str, Any]] = {}
    seen = []
    for key in keys:
        event = {"Records": [{**EVENT, "s3": {**EVENT["s3"], "object": {"key": quote_plus(key)}}}]}  # type: ignore[dict-item]
        for row in function["handler"](event, None):
            seen.append(row["_op"])
            if row.pop("_op") == "delete":
                del users[row["user_id"]]
            else:
                users[row["user_id"]] = row
    assert len(seen) == ROWS + 2
    assert users.keys() == set(range(1, ROWS + 1)) - {9}
    assert users[7] == {"user_id": 7, "email": "u7@example.com", "spend": 99.5}


@pytest.fixture
def exports(tmp_path: Path) -> Workshop:
    """A project that writes into a folder of its own, named as relative to it."""
    workshop = Workshop(tmp_path / "project")
    workshop.write("retl.yml", "connections: {exports: {type: files, root: out}}\n")
    return workshop


def test_a_snapshot_is_the_mart_and_stays_as_it_is_while_the_mart_does(exports: Workshop) -> None:
    exports.sync(
        "revenue",
        destination="{connection: exports, path: revenue, mode: snapshot, format: [parquet, json]}",
        deletes="delete",
        contract="{user_id: {type: integer}, email: {type: string}, spend: {type: decimal, max_digits: 12,"
        " decimal_places: 2, description: In euros}}",
    )
    folder = exports.folder / "out" / "revenue"
    first = exports.json("sync")["syncs"][0]
    assert (first["inserted"], first["batches"]) == (ROWS, 1)
    before = objects(folder)
    latest = json.loads(before["latest.json"])
    assert latest.keys() == json.loads(block("json", '"columns"').replace("…", "")).keys()
    assert [one["type"] for one in latest["columns"]] == ["integer", "string", "decimal(12,2)"]
    assert [one.get("description") for one in latest["columns"]] == [None, None, "In euros"]
    parquet, page = (texts(one["path"], before[one["path"]]) for one in latest["files"])
    assert parquet == page
    assert len(page) == latest["rows"] == ROWS
    assert exports.json("sync")["syncs"][0]["unchanged"] == ROWS
    assert objects(folder) == before
    exports.warehouse("UPDATE users SET spend = 0 WHERE user_id = 3; DELETE FROM users WHERE user_id > 28")
    second = exports.json("sync")["syncs"][0]
    counted = [second[name] for name in ("updated", "refreshed", "deleted", "unchanged")]
    assert counted == [1, ROWS - 3, 2, 0]
    after = objects(folder)
    assert len(texts("x.json", after[named(after)[1]["path"]])) == ROWS - 2


def test_a_snapshot_of_a_part_is_refused(exports: Workshop) -> None:
    exports.sync(
        "revenue", destination="{connection: exports, path: revenue, mode: snapshot}", deletes="delete"
    )
    assert exports.retl("sync", "--limit", "3").code == 2
    exports.write("syncs/revenue.yml", (exports.folder / "syncs/revenue.yml").read_text() + CONTRACT)
    said = exports.retl("sync", "--output", "json")
    assert said.document["syncs"][0]["error"]["code"] == "REJECT_RATE"
    assert not (exports.folder / "out").exists()
    assert exports.json("sync", "--accept", "REJECT_RATE")["syncs"][0]["rejected"] == 1
    assert len(held(objects(exports.folder / "out" / "revenue"), "user_id")) == ROWS - 1
    assert exports.json("sync")["syncs"][0]["status"].startswith("SUCCESS")


CONTRACT = """
contract:
  user_id: {type: integer}
  spend: {type: decimal, max_digits: 12, decimal_places: 2, le: 29}
"""


@pytest.mark.parametrize("form", ["parquet", "csv", "ndjson"])
def test_every_value_is_in_the_file_as_it_is_in_the_mart(exports: Workshop, form: str) -> None:
    exports.warehouse(MART)
    exports.sync(
        "typed",
        source="{table: typed}",
        destination=f"{{connection: exports, path: typed, format: {form}}}",
        write="append",
        first_run="send",
    )
    exports.write("syncs/typed.yml", (exports.folder / "syncs/typed.yml").read_text() + TYPES)
    assert exports.json("sync")["syncs"][0]["inserted"] == 3
    of = objects(exports.folder / "out" / "typed")
    (file,) = named(of)
    data = of[file["path"]]
    last = "9999999999999999999999999999.9999999999"
    if form == "parquet":
        path = exports.folder / "read.parquet"
        path.write_bytes(data)
        found = duckdb.sql(
            f"SELECT typeof(COLUMNS(*)) FROM '{path}'".replace("FROM '", "FROM read_parquet('") + ") LIMIT 1"
        )
        assert found.fetchall()[0][:4] == ("BIGINT", "VARCHAR", "DECIMAL(38,10)", "DATE")
        rows = texts(file["path"], data)
        assert (rows[0]["amount"], rows[1]["text"], rows[2]["text"]) == (last, "", None)
        assert rows[0]["data"] == '{"a":[1,{"b":1.10}]}'
    elif form == "csv":
        header, first, second, third = csv.reader(StringIO(data.decode()))
        assert header == ["user_id", "text", "amount", "day", "moment", "data", "tags"]
        assert first == [
            "1",
            'a,"b"\n\\N',
            last,
            "0001-01-01",
            "2026-11-28T04:00:00.123456Z",
            '{"a":[1,{"b":1.10}]}',
            '["","a,b",null]',
        ]
        assert data.decode().endswith(
            '2,"",0.1000000000,9999-12-31,1900-01-01T00:00:00Z,"""x""","[]"\n3,,,,,,\n'
        )
        assert (second[0], third) == ("2", ["3", *[""] * 6])
    else:
        lines = data.decode().splitlines()
        first = json.loads(lines[0], parse_float=Decimal)
        assert (str(first["amount"]), first["tags"]) == (last, ["", "a,b", None])
        assert (
            lines[2]
            == '{"user_id":3,"text":null,"amount":null,"day":null,"moment":null,"data":null,"tags":null}'
        )


def test_the_entry_in_the_guide_is_that_of_the_log(exports: Workshop) -> None:
    exports.sync("segments", destination="{connection: exports, path: segments, format: ndjson}")
    exports.json("sync")
    shown = json.loads(block("json", '"attempt"'))
    (_, entry) = log(objects(exports.folder / "out" / "segments"))
    assert entry.keys() == shown.keys()
    assert entry["files"][0].keys() == shown["files"][0].keys()
