"""Where the suite delivers: a mart that lives, a kind of delivery, and what the target must then hold.

The oracle is SQL over the mart and over what others keep at the target. It knows nothing of retl.
"""

from __future__ import annotations

import json
import math
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psycopg
from msgspec import Struct
from msgspec.structs import replace

from tests import databases
from tests.crashes import COLUMNS, POSTGRES_YML, CampaignScene, PostgresScene, RedisScene, Scene
from tests.exported import objects
from tests.scenes import Appended, Changes, ChangesAppended, Merged, Snapshots
from tests.servers import Database, Databases
from tests.world.hosts import Cache, Cluster

Row = tuple[str | None, ...]
TABLE = (
    "CREATE TABLE crm.users (user_id text PRIMARY KEY, segment text, searches bigint,"
    " lifetime_value numeric(12,2))"
)
HEAP = TABLE.replace("PRIMARY KEY", "NOT NULL")  # nothing but retl keeps a row from coming twice
COPIES = ("users", "retl_applied")


def mart(rows: int) -> str:
    """The first day: so many users."""
    return f"""CREATE OR REPLACE TABLE mart AS SELECT 'user ' || lpad(i::VARCHAR, 6, '0') AS user_id,
  ['power', 'casual', 'new', 'dormant'][1 + i % 4] AS segment, i * 7 AS searches,
  CASE WHEN i % 6 = 0 THEN NULL ELSE (i * 13 / 100)::DECIMAL(12,2) END AS lifetime_value
FROM range({rows}) t(i)"""


def arrive(day: int, rows: int = 16) -> str:
    return f"""INSERT INTO mart SELECT 'day {day} ' || lpad(i::VARCHAR, 6, '0'), 'new', {day}, i::DECIMAL(12,2)
FROM range({rows}) t(i)"""


def change(day: int) -> str:
    """A seventh of the rows; a row that changed on one day may be as before on another."""
    return f"UPDATE mart SET searches = {day} * 1000 + length(user_id) WHERE hash(user_id) % 7 = {day} % 7"


def leave(day: int) -> str:
    """Three users of the first day."""
    return f"DELETE FROM mart WHERE user_id IN (SELECT user_id FROM mart WHERE user_id LIKE 'user %' ORDER BY hash(user_id || '{day}') LIMIT 3)"


class Difference(Struct, frozen=True):
    """What the target holds against what it must hold, in keys."""

    lost: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.lost or self.stale or self.extra or self.doubled)

    def __str__(self) -> str:
        parts = (("LOST", self.lost), ("STALE", self.stale), ("EXTRA", self.extra), ("DOUBLED", self.doubled))
        return ", ".join(f"{word} {len(keys)}" for word, keys in parts if keys)


def difference(wanted: list[Row], found: list[Row]) -> Difference:
    counted = Counter(row[0] for row in found)
    right, held = {row[0]: row for row in wanted}, {row[0]: row for row in found}
    return Difference(
        tuple(sorted(str(key) for key in right.keys() - held.keys())),
        tuple(sorted(str(key) for key in right.keys() & held.keys() if right[key] != held[key])),
        tuple(sorted(str(key) for key in held.keys() - right.keys())),
        tuple(sorted(str(key) for key, n in counted.items() if n > 1)),
    )


class Target(Scene):
    """A kind of delivery into one server; `rows` of the first day."""

    deletes = False
    changes = True
    at_once = False  # all of a mart is one batch
    lists = True  # its keys can be listed
    rows = 120

    def start_over(self) -> None:
        super().start_over()
        self.project.mart(mart(self.rows))

    def next_day(self, day: int) -> None:
        """Rows arrive; where the delivery follows it, rows change and leave."""
        self.project.mart(arrive(day))
        if self.changes:
            self.project.mart(change(day))
        if self.deletes:
            self.project.mart(leave(day))

    def difference(self) -> Difference:
        return difference(self.wanted(), self.content())

    @abstractmethod
    def lose_all(self) -> None:
        """Somebody empties it."""

    @abstractmethod
    def lose(self, share: float) -> None:
        """Somebody removes this share of our rows, and nothing else."""

    @abstractmethod
    def keep(self) -> Any:
        """A backup of everything that is there, with the traces that retl left."""

    @abstractmethod
    def restore(self, kept: Any) -> None: ...

    @property
    def address(self) -> tuple[str, int]:
        """Where retl reaches it."""
        raise NotImplementedError

    def reach(self, host: str, port: int) -> None:
        """From now on retl reaches it there."""
        raise NotImplementedError

    @property
    def places(self) -> tuple[str, str]:
        """What its sync says of the object, and the same of another one."""
        raise NotImplementedError


class InPostgres(PostgresScene, Target):
    """Upsert by key."""

    sync = POSTGRES_YML.replace(", create: true", "")
    table = TABLE
    theirs = ""  # what others put there first

    def __init__(self, folder: Path, cluster: Cluster, database: Database, state: str | None = None) -> None:
        super().__init__(folder, database, state)
        self.cluster = cluster
        self.reached = database  # how retl reaches it, which may be by another address

    def environ(self) -> dict[str, str]:
        found = super().environ()
        return found | {"PG_PORT": str(self.reached.port), "PG_DB": self.reached.dbname}

    def empty(self) -> None:
        super().empty()
        self.execute(f"CREATE SCHEMA crm; {self.table}; {self.theirs}")

    def execute(self, sql: str) -> None:
        with self.database.connect() as connection:
            connection.execute("SET lock_timeout = '10s'")
            connection.execute(sql)

    def lose_all(self) -> None:
        self.execute(f"TRUNCATE crm.users; {self.theirs}")

    def lose(self, share: float) -> None:
        self.execute(
            f"DELETE FROM crm.users WHERE user_id IN (SELECT user_id FROM crm.users ORDER BY md5(user_id)"
            f" LIMIT (SELECT ceil(count(*) * {share}) FROM crm.users))"
        )

    def drop(self) -> None:
        self.execute("DROP TABLE crm.users")

    def make_anew(self) -> None:
        self.execute(f"DROP TABLE crm.users; {self.table}; {self.theirs}")

    def keep(self) -> Database:
        return copied(self.database)

    def restore(self, kept: Database) -> None:
        restored(self.database, kept)

    @property
    def address(self) -> tuple[str, int]:
        return self.reached.host, self.reached.port

    def reach(self, host: str, port: int) -> None:
        self.reached = replace(self.reached, host=host, port=port)
        self.project.environ |= self.environ()

    @property
    def places(self) -> tuple[str, str]:
        self.execute("CREATE TABLE crm.others (LIKE crm.users INCLUDING ALL)")
        return "crm.users", "crm.others"


class Mirror(InPostgres):
    sync = InPostgres.sync + "deletes: delete\n"
    deletes = True


class Append(InPostgres):
    sync = InPostgres.sync + "write: append\nfirst_run: send\n"
    table = HEAP
    changes = False


class UpdateOnly(InPostgres):
    """Every other user is there already; who is not there is not for us to make."""

    sync = InPostgres.sync + "write: update_only\n"
    theirs = (
        "INSERT INTO crm.users SELECT 'user ' || lpad(i::text, 6, '0'), 'old', -1, NULL"
        " FROM generate_series(0, 118, 2) AS i ON CONFLICT DO NOTHING"
    )

    def wanted(self) -> list[Row]:
        there = {row[0] for row in self.content()}
        return [row for row in super().wanted() if row[0] in there]


class WholeTable(InPostgres):
    """All of the mart in one transaction; what others put there goes with the next set."""

    sync = InPostgres.sync.replace("crm.users", "crm.users, mode: snapshot") + "deletes: delete\n"
    deletes = at_once = True


PARTS = "".join(
    f"; CREATE TABLE crm.users_{number} PARTITION OF crm.users FOR VALUES WITH (MODULUS 3, REMAINDER {number})"
    for number in range(3)
)


class Partitioned(Mirror):
    """Rows of three partitions."""

    table = f"{TABLE} PARTITION BY HASH (user_id){PARTS}"

    @property
    def places(self) -> tuple[str, str]:
        self.execute(self.table.replace("crm.users", "crm.others"))
        return "crm.users", "crm.others"


class PartitionedAppend(Append):
    table = f"{HEAP} PARTITION BY HASH (user_id){PARTS}"
    places = Partitioned.places


class InRedis(RedisScene, Target):
    """JSON texts that stay."""

    sync = 'destination: {connection: cache, key: "user:{user_id}", value: json, ttl: none}\n'
    places = ("user:{user_id}", "other:{user_id}")

    def __init__(self, folder: Path, server: Cache, state: str | None = None) -> None:
        super().__init__(folder, server.address)
        self.reached, self.cache, self.state = server.address, server, state

    def environ(self) -> dict[str, str]:
        state = {"RETL_STATE_URL": self.state} if self.state else {}
        return super().environ() | state | {"CACHE_PORT": str(self.reached.port)}

    def client(self) -> Any:
        return self.server.client()

    def empty(self) -> None:
        with self.client() as client:
            client.flushall()

    def content(self) -> list[Row]:
        with self.client() as client:
            keys = sorted(client.keys("user:*"))
            values = [client.get(key) for key in keys]
        found = zip(keys, values, strict=True)
        return [self._row(key.decode(), json.loads(value, parse_float=str)) for key, value in found]

    @staticmethod
    def _row(key: str, held: dict[str, object]) -> Row:
        texts = (None if held[name] is None else str(held[name]) for name in COLUMNS[1:])
        return (unquote(key.removeprefix("user:")), *texts)

    def lose_all(self) -> None:
        self.empty()

    def lose(self, share: float) -> None:
        with self.client() as client:
            keys = sorted(client.keys("user:*"))
            for key in keys[: max(1, round(len(keys) * share))]:
                client.delete(key)

    def keep(self) -> dict[bytes, tuple[bytes, int]]:
        with self.client() as client:
            return {key: (client.dump(key), client.pttl(key)) for key in client.keys("*")}

    def restore(self, kept: dict[bytes, tuple[bytes, int]]) -> None:
        with self.client() as client:
            client.flushall()
            for key, (dumped, left) in kept.items():
                client.restore(key, max(0, left), dumped)

    @property
    def address(self) -> tuple[str, int]:
        return self.reached.host, self.reached.port

    def reach(self, host: str, port: int) -> None:
        self.reached = replace(self.reached, host=host, port=port)
        self.project.environ |= self.environ()


class Expiring(InRedis):
    sync = RedisScene.sync


class CacheMirror(InRedis):
    sync = InRedis.sync + "deletes: delete\n"
    deletes = True


class Hashes(InRedis):
    """A hash for each row, where others may have entries too."""

    sync = CacheMirror.sync.replace("value: json", "value: hash")
    deletes = True

    def content(self) -> list[Row]:
        with self.client() as client:
            found = {key: client.hgetall(key) for key in sorted(client.keys("user:*"))}
        return [
            (unquote(key.decode().removeprefix("user:")), *_texts(held, COLUMNS[1:]))
            for key, held in found.items()
        ]


class Ranking(InRedis):
    """One sorted set: a row is a member, and its score is the number of searches."""

    sync = """destination: {connection: cache, key: ranking, value: zset, ttl: none}
fields: {user_id: user_id, searches: searches}
deletes: delete
"""
    deletes = True
    places = ("key: ranking", "key: others")

    def content(self) -> list[Row]:
        with self.client() as client:
            found = client.zrange("ranking", 0, -1, withscores=True)
        return sorted((member.decode(), str(int(score))) for member, score in found)

    def wanted(self) -> list[Row]:
        return sorted((user, searches) for user, _, searches, *_ in super().wanted())

    def lose(self, share: float) -> None:
        with self.client() as client:
            members = client.zrange("ranking", 0, -1)
            client.zrem("ranking", *members[: max(1, round(len(members) * share))])


class Audience(InRedis):
    """One set: a row is a member."""

    sync = """destination: {connection: cache, key: audience, value: set, ttl: none}
fields: {user_id: user_id}
deletes: delete
"""
    deletes = True
    places = ("key: audience", "key: others")

    def content(self) -> list[Row]:
        with self.client() as client:
            return sorted((member.decode(),) for member in client.smembers("audience"))

    def wanted(self) -> list[Row]:
        return sorted((user,) for user, *_ in super().wanted())

    def lose(self, share: float) -> None:
        with self.client() as client:
            members = sorted(client.smembers("audience"))
            client.srem("audience", *members[: max(1, round(len(members) * share))])


class Stream(InRedis):
    """One stream: a row is an entry, which nothing but retl keeps from coming twice."""

    sync = """destination: {connection: cache, key: events, value: stream, ttl: none}
write: append
first_run: send
"""
    changes = False
    places = ("key: events", "key: others")

    def content(self) -> list[Row]:
        with self.client() as client:
            found = client.xrange("events")
        return sorted((_texts(held, COLUMNS) for _, held in found), key=str)

    def lose(self, share: float) -> None:
        with self.client() as client:
            entries = [name for name, _ in client.xrange("events")]
            client.xdel("events", *entries[: max(1, round(len(entries) * share))])


def _texts(held: dict[bytes, bytes], names: tuple[str, ...]) -> Row:
    """What a hash or an entry has; NULL has none."""
    return tuple(held[name.encode()].decode() if name.encode() in held else None for name in names)


class InTable(databases.TableScene, Target):
    """Upsert by key into a database that is not PostgreSQL."""

    sync = "destination: {connection: sql, table: users}\n"
    before = ()

    def __init__(self, folder: Path, shell: databases.Shell, state: str | None = None) -> None:
        super().__init__(folder, shell)
        self.state = state

    def environ(self) -> dict[str, str]:
        return {"RETL_STATE_URL": self.state} if self.state else {}

    def empty(self) -> None:
        super().empty()
        self.shell.execute(self.table)
        self._port = self.shell.address[1] if self.shell.serves else 0

    def lose_all(self) -> None:
        self.shell.empty()

    def lose(self, share: float) -> None:
        ((rows,),) = self.shell.execute("SELECT count(*) FROM users")
        drawn = f"SELECT user_id FROM users ORDER BY user_id LIMIT {math.ceil(rows * share)}"
        self.shell.execute(f"DELETE FROM users WHERE user_id IN (SELECT user_id FROM ({drawn}) AS drawn)")

    def keep(self) -> Any:
        return self.shell.keep()

    def restore(self, kept: Any) -> None:
        self.shell.restore(kept)

    @property
    def address(self) -> tuple[str, int]:
        return self.shell.address

    def reach(self, host: str, port: int) -> None:
        """Its shell stays where it is."""
        settings = self.folder / "retl.yml"
        text, server = settings.read_text(), re.search(r"  sql: .+", settings.read_text())
        assert server is not None
        moved = re.sub(rf"\b{self._port}\b", str(port), server[0])
        settings.write_text(text.replace(server[0], moved))
        self._port = port

    @property
    def places(self) -> tuple[str, str]:
        self.shell.execute(self.table.replace("TABLE users", "TABLE others"))
        return "table: users", "table: others"


class FileMirror(InTable):
    sync = InTable.sync + "deletes: delete\n"
    deletes = True


class FileAppend(InTable):
    sync = InTable.sync + "write: append\nfirst_run: send\n"
    key = ""
    changes = False


class InCampaigns(CampaignScene, Target):
    """Upsert over HTTP with an idempotency key; the vendor keeps no trace that a ledger could be held against."""

    def lose_all(self) -> None:
        raise NotImplementedError

    def lose(self, share: float) -> None:
        raise NotImplementedError

    def keep(self) -> Any:
        raise NotImplementedError

    def restore(self, kept: Any) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        if self.tool:
            self.tool.stop()


class CampaignInserts(InCampaigns):
    """A second delivery would be a second object."""

    sync = InCampaigns.sync.replace("upsert:", "insert:") + "write: append\nguards: {max_first_run: 1000}\n"
    changes = False

    def difference(self) -> Difference:
        return replace(super().difference(), doubled=tuple(self.doubled()))


TABLES: dict[str, type[InPostgres]] = {
    "upsert": InPostgres,
    "mirror": Mirror,
    "append": Append,
    "update_only": UpdateOnly,
    "snapshot": WholeTable,
    "partitioned": Partitioned,
    "partitioned append": PartitionedAppend,
}


class InFolder(Target):
    """Into a folder of this machine, which a backup copies file by file."""

    folder_name: str
    before = ()

    def __init__(self, folder: Path, state: str | None = None) -> None:
        super().__init__(folder)
        self.state = state

    @property
    def root(self) -> Path:
        return self.folder / self.folder_name

    def environ(self) -> dict[str, str]:
        return {"RETL_STATE_URL": self.state} if self.state else {}

    def keep(self) -> dict[str, bytes]:
        return objects(self.root)

    def restore(self, kept: dict[str, bytes]) -> None:
        self.empty()
        for name, data in kept.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def lose_all(self) -> None:
        self.empty()

    def lose(self, share: float) -> None:
        raise NotImplementedError  # nobody edits single rows of files


class InExports(InFolder, Changes):
    """Change files in a folder, each batch in the log."""

    folder_name = "out"
    sync = Changes.sync.replace("deletes: delete\n", "")


class ExportsAppended(InExports):
    sync = ChangesAppended.sync
    changes = False


class InSnapshots(InFolder, Snapshots):
    folder_name = "out"
    sync = Snapshots.sync
    deletes = at_once = True


class InLake(InFolder, Merged):
    """A Delta table that is merged by key."""

    folder_name = "lake"
    sync = Merged.sync
    deletes = True


class LakeAppended(InFolder, Appended):
    folder_name = "lake"
    sync = Appended.sync
    changes = False


EXPORTED: dict[str, type[InFolder]] = {
    "files": InExports,
    "files, append": ExportsAppended,
    "files, snapshot": InSnapshots,
    "delta": InLake,
    "delta, append": LakeAppended,
}
IN_TABLES: dict[str, type[InTable]] = {"upsert": InTable, "mirror": FileMirror, "append": FileAppend}
CACHED: dict[str, type[InRedis]] = {
    "json": InRedis,
    "ttl": Expiring,
    "mirror in Redis": CacheMirror,
    "hash": Hashes,
    "ranking": Ranking,
    "audience": Audience,
    "stream": Stream,
}
CAMPAIGNS: dict[str, type[InCampaigns]] = {"http": InCampaigns, "http insert": CampaignInserts}


@contextmanager
def fresh(server: Database) -> Iterator[Database]:
    """A database of this server, dropped afterwards if the server is still there."""
    databases = Databases(server)
    made = databases.make()
    try:
        yield made
    finally:
        with suppress(psycopg.OperationalError):
            databases.drop(made)


def copied(database: Database) -> Database:
    """A copy of it, as a backup makes one; nobody may be connected to it."""
    copy = replace(database, dbname=f"{database.dbname}_copy")
    with replace(database, dbname="postgres").connect() as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {copy.dbname} WITH (FORCE)")
        admin.execute(f"CREATE DATABASE {copy.dbname} TEMPLATE {database.dbname}")
    return copy


def restored(database: Database, copy: Database) -> None:
    """The database is what its copy is; whoever was connected no longer is."""
    with replace(database, dbname="postgres").connect() as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {database.dbname} WITH (FORCE)")
        admin.execute(f"CREATE DATABASE {database.dbname} TEMPLATE {copy.dbname}")
