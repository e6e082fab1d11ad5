"""Every kind of delivery that crash tests kill, by name: what is there before, and what must be there after.

What the target must hold is worked out by SQL over the mart and over what others keep there.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
from deltalake import DeltaTable

from tests import clickhouse_server, databases, duckdb_files, dynamodb, kafka, mongo, servers
from tests.crashes import (
    COLUMNS,
    POSTGRES_YML,
    SECOND,
    Append,
    CampaignScene,
    Deletes,
    PostgresScene,
    RedisScene,
    Scene,
)
from tests.exported import held, named, objects, texts
from tests.mysql_server import MySQLDatabase

TABLE = (
    "CREATE SCHEMA crm; CREATE TABLE crm.users (user_id text PRIMARY KEY, segment text, searches bigint,"
    " lifetime_value numeric(12,2));"
)
THEIRS = ("user 005", "theirs", "-1", None)
# Users leave the mart and one of them comes back; the mart remembers who is gone.
LEAVE = f"""
CREATE OR REPLACE TABLE gone AS SELECT * FROM mart WHERE user_id IN ('user 003', 'user 021', 'user 039');
{SECOND}"""
RETURN = """
INSERT INTO mart SELECT * FROM gone WHERE user_id = 'user 003';
DELETE FROM gone WHERE user_id = 'user 003';
INSERT INTO gone SELECT * FROM mart WHERE user_id IN ('user 005', 'user 016');
DELETE FROM mart WHERE user_id IN ('user 005', 'user 016');
UPDATE mart SET searches = searches + 1 WHERE right(user_id, 1) = '8'"""


class InsertOnly(PostgresScene):
    """One key is somebody else's and stays as it is."""

    sync = POSTGRES_YML + "write: insert_only\n"

    def empty(self) -> None:
        super().empty()
        with self.database.connect() as connection:
            connection.execute(f"{TABLE} INSERT INTO crm.users VALUES ('user 005', 'theirs', -1, NULL)")

    def wanted(self) -> list[tuple[str | None, ...]]:
        return [THEIRS if row[0] == THEIRS[0] else row for row in super().wanted()]


class UpdateOnly(PostgresScene):
    """Every other user is there already; the others are not for us to make."""

    sync = POSTGRES_YML + "write: update_only\n"

    def empty(self) -> None:
        super().empty()
        with self.database.connect() as connection:
            connection.execute(
                f"{TABLE} INSERT INTO crm.users SELECT 'user ' || lpad(i::text, 3, '0'), 'old', 0, NULL"
                " FROM generate_series(0, 38, 2) AS i"
            )

    def wanted(self) -> list[tuple[str | None, ...]]:
        return [row for row in super().wanted() if int(str(row[0])[-3:]) % 2 == 0]


class SoftDeletes(PostgresScene):
    """Who left is marked and stays; who came back is unmarked."""

    sync = POSTGRES_YML + "deletes: {set: {status: deleted}, restore: {status: active}}\n"
    columns = (*COLUMNS, "status")
    before = (LEAVE, RETURN)

    def wanted(self) -> list[tuple[str | None, ...]]:
        listed = ", ".join(f"{name}::VARCHAR" for name in COLUMNS)
        with duckdb_files.opened(self.folder / "mart.duckdb", read_only=True) as connection:
            return connection.execute(
                f"SELECT {listed}, 'active' FROM mart UNION ALL SELECT {listed}, 'deleted' FROM gone ORDER BY 1"
            ).fetchall()


class WholeTable(PostgresScene):
    """All of a mart in one transaction: rows that others put there are gone."""

    sync = POSTGRES_YML.replace("create: true", "create: true, mode: snapshot") + "deletes: delete\n"
    before = (SECOND,)

    def begin(self) -> None:
        super().begin()
        with self.database.connect() as connection:
            connection.execute("INSERT INTO crm.users VALUES ('somebody', 'theirs', -1, NULL)")


class RedisHash(RedisScene):
    sync = RedisScene.sync.replace("value: json", "value: hash")

    def content(self) -> list[tuple[str | None, ...]]:
        rows = []
        with self.server.client() as client:
            for key in sorted(client.keys("user:*")):
                assert 0 < client.ttl(key) <= 86400
                held = {name.decode(): value.decode() for name, value in client.hgetall(key).items()}
                assert held.keys() <= set(COLUMNS[1:])
                named = unquote(key.decode().removeprefix("user:"))
                rows.append((named, *(held.get(name) for name in COLUMNS[1:])))
        return rows


class RedisDeletes(RedisScene):
    sync = RedisScene.sync + "deletes: delete\n"
    before = (SECOND,)


class RedisRanking(RedisScene):
    """Members of sorted sets: one per segment, and the number of searches is the score."""

    sync = """
destination: {connection: cache, key: "seg:{segment}", value: zset, ttl: none}
fields: {segment: segment, user_id: user_id, searches: searches}
deletes: delete
"""
    before = (SECOND,)

    def start_over(self) -> None:
        super().start_over()
        path = self.folder / "syncs" / "users.yml"
        path.write_text(path.read_text().replace("key: [user_id]", "key: [segment, user_id]"))

    def content(self) -> list[tuple[str | None, ...]]:
        rows: list[tuple[str | None, ...]] = []
        with self.server.client() as client:
            for key in client.keys("seg:*"):
                segment = unquote(key.decode().removeprefix("seg:"))
                found = client.zrange(key, 0, -1, withscores=True)
                rows += [(member.decode(), segment, str(int(score)), None) for member, score in found]
        return sorted(rows, key=str)

    def wanted(self) -> list[tuple[str | None, ...]]:
        return sorted(((*row[:3], None) for row in super().wanted()), key=str)


class CampaignAppend(CampaignScene):
    """HTTP insert with an idempotency key, where a second delivery would be a second object."""

    sync = CampaignScene.sync.replace("upsert:", "insert:") + "write: append\n"


class Changes(Scene):
    """Change files in a folder, with a log."""

    connections = "  out: {type: files, root: out}\n"
    sync = """
destination: {connection: out, path: users, format: ndjson}
deletes: delete
"""
    before = (SECOND,)

    def environ(self) -> dict[str, str]:
        return {}

    def empty(self) -> None:
        shutil.rmtree(self.folder / "out", ignore_errors=True)

    def content(self) -> list[tuple[str | None, ...]]:
        found = held(objects(self.folder / "out" / "users"), "user_id")
        return sorted((tuple(row[name] for name in COLUMNS) for row in found), key=str)

    def doubled(self) -> list[str]:
        return [str(key) for key, n in Counter(row[0] for row in self.content()).items() if n > 1]


class ChangesAppended(Changes):
    sync = """
destination: {connection: out, path: users, format: csv}
write: append
first_run: send
"""
    before = ()


class Snapshots(Changes):
    sync = """
destination: {connection: out, path: users, mode: snapshot, format: [parquet, json], keep: 1}
deletes: delete
"""

    def content(self) -> list[tuple[str | None, ...]]:
        of = objects(self.folder / "out" / "users")
        assert len([name for name in of if name.endswith(".parquet")]) <= 2
        found = [
            row
            for one in named(of)
            if one["format"] == "parquet"
            for row in texts(one["path"], of[one["path"]])
        ]
        return sorted((tuple(row[name] for name in COLUMNS) for row in found), key=str)


class Records(Scene):
    """Records of a topic: the newest of a key counts."""

    connections = '  stream: {type: kafka, servers: "${KAFKA}"}\n'
    sync = """
destination: {connection: stream, topic: "${TOPIC}", create: true}
deletes: delete
"""
    before = (SECOND,)

    def __init__(self, folder: Path, broker: kafka.Broker) -> None:
        super().__init__(folder)
        self.broker, self.topic = broker, ""

    def environ(self) -> dict[str, str]:
        return {"KAFKA": self.broker.address, "TOPIC": self.topic}

    def empty(self) -> None:
        self.topic = f"users-{secrets.token_hex(6)}"

    def content(self) -> list[tuple[str | None, ...]]:
        newest = {one.key(): one.value() for one in self.broker.committed(self.topic)}
        rows = [json.loads(value, parse_float=str, parse_int=str) for value in newest.values() if value]
        return sorted((tuple(row[name] for name in COLUMNS) for row in rows), key=str)


class RecordsAppended(Records):
    sync = """
destination: {connection: stream, topic: "${TOPIC}", create: true}
write: append
first_run: send
"""
    before = ()

    def doubled(self) -> list[str]:
        counts = Counter(one.key() for one in self.broker.committed(self.topic))
        return [str(key) for key, number in counts.items() if number > 1]


class Items(Scene):
    """Items of a table, merged by key."""

    connections = (
        '  app: {type: dynamodb, region: eu-central-1, endpoint: "${AWS_URL}", access_key_id: "${AWS_USER}",'
        ' secret_access_key: "${AWS_SECRET}"}\n'
    )
    sync = """
destination: {connection: app, table: "${TABLE}", create: true}
deletes: delete
"""
    before = (SECOND,)

    def __init__(self, folder: Path, server: dynamodb.Aws) -> None:
        super().__init__(folder)
        self.server, self.table = server, ""

    def environ(self) -> dict[str, str]:
        user, secret = self.server.writer
        return {"AWS_URL": self.server.url, "AWS_USER": user, "AWS_SECRET": secret, "TABLE": self.table}

    def empty(self) -> None:
        self.table = f"users-{secrets.token_hex(6)}"

    def content(self) -> list[tuple[str | None, ...]]:
        return sorted((self._row(one) for one in self.server.rows(self.table)), key=str)

    @staticmethod
    def _row(held: dict[str, Any]) -> tuple[str | None, ...]:
        value = held.get("lifetime_value")
        money = None if value is None else f"{value:.2f}"
        return (held["user_id"], held["segment"], str(held["searches"]), money)


class WholeItems(Items):
    sync = Items.sync.replace("create: true", "create: true, item: whole")


class Documents(Scene):
    """Documents of a collection, by key, in transactions."""

    connections = '  app: {type: mongodb, url: "${MONGODB_URL}"}\n'
    sync = """
destination: {connection: app, collection: "${COLLECTION}", create: true}
deletes: delete
"""
    before = (SECOND,)

    def __init__(self, folder: Path, server: mongo.Mongo) -> None:
        super().__init__(folder)
        self.server, self.collection = server, ""
        server.store.lifetime = 0.5  # a killed run leaves its transaction open

    def environ(self) -> dict[str, str]:
        return {"MONGODB_URL": self.server.url(self.server.writer), "COLLECTION": self.collection}

    def empty(self) -> None:
        self.collection = f"users_{secrets.token_hex(6)}"

    def content(self) -> list[tuple[str | None, ...]]:
        return sorted((self._row(one) for one in self.server.documents(self.collection)), key=str)

    @staticmethod
    def _row(held: dict[str, Any]) -> tuple[str | None, ...]:
        money = held.get("lifetime_value")
        key = held.get("user_id", held["_id"])
        return (key, held["segment"], str(held["searches"]), None if money is None else str(money))


class DocumentsAlone(Documents):
    sync = Documents.sync.replace("create: true", "create: true, transactions: false")


class DocumentsAppended(Documents):
    sync = """
destination: {connection: app, collection: "${COLLECTION}", create: true}
write: append
first_run: send
"""
    before = ()

    def doubled(self) -> list[str]:
        return [str(key) for key, n in Counter(row[0] for row in self.content()).items() if n > 1]


class Merged(Scene):
    """A Delta table in a folder of this machine, merged by key."""

    connections = "  lake: {type: delta, root: lake}\n"
    sync = """
destination: {connection: lake, path: users, create: true}
deletes: delete
"""
    before = (SECOND,)

    def environ(self) -> dict[str, str]:
        return {}

    def empty(self) -> None:
        shutil.rmtree(self.folder / "lake", ignore_errors=True)

    def content(self) -> list[tuple[str | None, ...]]:
        uri = str(self.folder / "lake" / "users")
        if not DeltaTable.is_deltatable(uri):
            return []
        listed = ", ".join(f"{name}::VARCHAR" for name in COLUMNS)
        with duckdb.connect() as connection:
            connection.register("theirs", DeltaTable(uri).scan())
            return connection.execute(f"SELECT {listed} FROM theirs ORDER BY user_id").fetchall()

    def doubled(self) -> list[str]:
        return [str(key) for key, n in Counter(row[0] for row in self.content()).items() if n > 1]


class Appended(Merged):
    sync = """
destination: {connection: lake, path: users, create: true}
write: append
first_run: send
"""
    before = ()


_CLICKHOUSE = {"clickhouse": databases.Replaced}
_DELTA = {"delta": Merged, "delta, append": Appended}
_AWS = {"dynamodb": Items, "dynamodb, whole": WholeItems}
_MONGODB = {"mongodb": Documents, "mongodb, append": DocumentsAppended, "mongodb, alone": DocumentsAlone}
_KAFKA = {"kafka": Records, "kafka, append": RecordsAppended}
_FILES = {"files": Changes, "files, append": ChangesAppended, "files, snapshot": Snapshots}
_POSTGRES: dict[str, type[PostgresScene]] = {
    "upsert": PostgresScene,
    "append": Append,
    "deletes": Deletes,
    "soft deletes": SoftDeletes,
    "insert_only": InsertOnly,
    "update_only": UpdateOnly,
    "snapshot": WholeTable,
}
_REDIS = {
    "redis": RedisScene,
    "redis, hash": RedisHash,
    "redis, deletes": RedisDeletes,
    "redis, zset": RedisRanking,
}
_HTTP = {"http": CampaignScene, "http append": CampaignAppend}
_IN_POSTGRES = ("upsert", "append")
KINDS = (
    *_POSTGRES,
    *(f"{kind}, state in postgres" for kind in _IN_POSTGRES),
    *_REDIS,
    *_HTTP,
    *_FILES,
    *databases.KINDS,
    *_KAFKA,
    *_AWS,
    *_MONGODB,
    *_CLICKHOUSE,
    *_DELTA,
)


@contextlib.contextmanager
def scene(
    kind: str,
    folder: Path,
    postgres: servers.Database,
    redis: servers.RedisServer,
    mysql: MySQLDatabase | None = None,
) -> Iterator[Scene]:
    """The scene of this name, begun. Only its own kinds need `mysql`."""
    stack = contextlib.ExitStack()
    if kind in _KAFKA:
        made: Scene = _KAFKA[kind](folder, stack.enter_context(kafka.broker(folder.parent / "kafka")))
    elif kind in _CLICKHOUSE:
        server = stack.enter_context(clickhouse_server.server(folder.parent / "clickhouse"))
        made = _CLICKHOUSE[kind](folder, server)
    elif kind in _AWS:
        made = _AWS[kind](folder, stack.enter_context(dynamodb.aws()))
    elif kind in _MONGODB:
        made = _MONGODB[kind](folder, stack.enter_context(mongo.server()))
    else:
        made = _makers(folder, postgres, redis, mysql)[kind]()
    try:
        made.begin()
        yield made
    finally:
        if isinstance(made, CampaignScene) and made.tool:
            made.tool.stop()
        stack.close()


def _makers(
    folder: Path, postgres: servers.Database, redis: servers.RedisServer, mysql: MySQLDatabase | None
) -> dict[str, Callable[[], Scene]]:
    found: dict[str, Callable[[], Scene]] = {}
    for kind, made in _POSTGRES.items():
        found[kind] = lambda made=made: made(folder, postgres)
        found[f"{kind}, state in postgres"] = lambda made=made: made(folder, postgres, postgres.url)
    found |= {kind: lambda kind=kind: databases.scene_of(kind, folder, mysql) for kind in databases.KINDS}
    found |= {kind: lambda made=made: made(folder, redis) for kind, made in _REDIS.items()}
    alone = {**_HTTP, **_FILES, **_DELTA}
    return found | {kind: lambda made=made: made(folder) for kind, made in alone.items()}
