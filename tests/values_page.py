"""What becomes of each hostile value, found out by whole runs, and told as docs/values.md.

`python -m tests.values_page` starts servers, runs, and writes the page.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
from bson import DatetimeMS, Decimal128

from retl.values.sql import literal
from tests import duckdb_files, kafka, mongo, servers
from tests.api import TOKEN, Api
from tests.commands import Workshop
from tests.kafka import Broker
from tests.mongo import DATABASE, Mongo
from tests.schema_registry import SchemaRegistry
from tests.servers import Database, RedisServer
from tests.value_cases import APPLIED, TEXTS, Case, asked, cases, kind, short, tree, unfit_types

PAGE = "docs/values.md"
DESTINATIONS = {
    "postgres": "{{type: postgres, table: landed.{name}, create: true}}",
    "sqlite": "{{connection: lite, table: {name}, create: true}}",
    "duckdb": "{{connection: duck, table: {name}, create: true}}",
    "mongodb": "{{connection: app, collection: {name}, create: true}}",
    "kafka": '{{connection: events, topic: "{name}${{ENDING}}", create: true, value: avro, register_schema: true,'
    " max_message_bytes: 10000000}}",
    "redis_json": '{{type: redis, key: "{name}:{{{key}}}", value: json, ttl: none}}',
    "redis_hash": '{{type: redis, key: "{name}:{{{key}}}", value: hash, ttl: none}}',
    "http": "{{connection: api, upsert: {{path: /v1/users/batch, wrap: users, max_rows: 100,"
    " row: {{id: ${key}, attributes: $fields}}}}}}",
}
TARGETS = tuple(DESTINATIONS)
FILES = (
    "  lite: {type: sqlite, path: landed.db}\n  duck: {type: duckdb, path: landed.duckdb}\n"  # connections
    '  app: {type: mongodb, url: "${MONGODB_URL}"}\n'
    '  events: {type: kafka, servers: "${KAFKA}", registry: {url: "${REGISTRY}", user: retl, password: only-tests}}\n'
)
UNFIT = ("postgres", "redis_json", "redis_hash", "http")  # a type is refused before its target is asked
SHOWN = {
    "PostgreSQL": "postgres",
    "SQLite": "sqlite",
    "DuckDB": "duckdb",
    "MongoDB": "mongodb",
    "Avro": "kafka",
    "JSON": "redis_json",
    "Redis hash": "redis_hash",
}
KEYED = SHOWN | {"JSON": "http", "Redis hash": "redis_json"}
MARTS = ("own", "judged", "keyed", "applied")
WAREHOUSE = "CREATE TABLE {} (id VARCHAR, label VARCHAR DEFAULT 'here', {})"
NO_LIMITS = "{max_reject_rate: 1, max_failed_rate: 1}"
QUOTED = ("string", "uuid", "date", "timestamp", "timestamptz")  # what a Redis hash holds without quotes


@dataclass(frozen=True)
class Topics:
    """Topics with Avro, read back. `ending`: of their names."""

    broker: Broker
    registry: SchemaRegistry
    ending: str = field(default_factory=lambda: f"-{secrets.token_hex(6)}")

    @property
    def environment(self) -> dict[str, str]:
        return {"KAFKA": self.broker.address, "REGISTRY": self.registry.url, "ENDING": self.ending}

    def values(self, sync: str) -> Iterator[dict[str, Any]]:
        return (row for _, row in self._records(sync))

    def keys(self, sync: str) -> dict[str, str]:
        return {row["what"]: key for key, row in self._records(sync)}

    def _records(self, sync: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for one in self.broker.committed(sync + self.ending):
            yield (one.key() or b"").decode(), self.registry.decoded(one.value() or b"")


@dataclass(frozen=True)
class Told:
    """What a target holds: its text, and that text read."""

    text: str | None
    value: Any


@dataclass
class Outcomes:
    source: dict[Case, Any] = field(default_factory=dict)
    kinds: dict[Case, str] = field(default_factory=dict)
    told: dict[str, dict[Case, Told]] = field(default_factory=dict)
    rejects: dict[str, dict[Case, str]] = field(default_factory=dict)
    keys: dict[str, dict[str, str]] = field(default_factory=dict)  # the key each of TEXTS arrived as
    keys_rejected: dict[str, int] = field(default_factory=dict)
    unfit: dict[str, dict[tuple[str, str | None], str]] = field(default_factory=dict)
    applied: dict[tuple[int, str], str] = field(default_factory=dict)  # by number in APPLIED and SQL


def run(
    folder: Path, postgres: Database, redis: RedisServer, api: Api, mongodb: Mongo, topics: Topics
) -> Outcomes:
    """Deliver every case to every target and look there."""
    with mongodb.client() as client:
        for mart in MARTS:
            client[DATABASE].drop_collection(f"{mart}_mongodb")
    workshop, found = Workshop(folder), Outcomes()
    workshop.use(redis=redis, postgres=postgres)
    workshop.environment |= {"API_TOKEN": TOKEN, "MONGODB_URL": mongodb.url(mongodb.writer)}
    connection = f'{{type: http, base_url: "{api.url}", auth: {{type: bearer, token: "${{API_TOKEN}}"}}}}'
    workshop.environment |= topics.environment
    workshop.write("retl.yml", f"connections:\n  api: {connection}\n{FILES}")
    _fill(workshop, found)
    _fill_keys(workshop)
    _fill_applied(workshop, postgres)
    ran = [one for mart in MARTS for one in _run_only(workshop, mart)]
    assert {one["exit_code"] for one in ran} == {0}, ran
    for target in TARGETS:
        found.rejects[target] = _rejects(workshop, target)
    found.told = {
        "postgres": dict(_postgres(postgres)),
        "sqlite": dict(_sqlite(workshop.folder / "landed.db")),
        "duckdb": dict(_duckdb(workshop.folder / "landed.duckdb")),
        "mongodb": dict(_mongodb(mongodb)),
        "kafka": dict(_avro(topics)),
        "redis_json": dict(_redis_json(redis)),
        "redis_hash": dict(_redis_hash(redis)),
        "http": dict(_http(api)),
    }
    found.keys = dict(_arrived_keys(postgres, redis, api)) | _keys_in_files(workshop.folder)
    found.keys["kafka"] = topics.keys("keyed_kafka")
    found.keys["mongodb"] = {one["what"]: one["_id"] for one in mongodb.documents("keyed_mongodb")}
    rejected = {one["sync"].partition("_")[2]: one["rejected"] for one in ran if one["sync"][:5] == "keyed"}
    found.keys_rejected = rejected
    found.applied = _applied(workshop, postgres)
    found.unfit = _unfit(workshop)
    return found


def _run_only(workshop: Workshop, prefix: str) -> list[dict[str, Any]]:
    """The summaries of the syncs whose names begin so. The others are paused: all of them write to one HTTP object, and
    only one sync may insert there."""
    for path in sorted((workshop.folder / "syncs").glob("*.yml")):
        text = path.read_text(encoding="utf-8").replace("enabled: false\n", "")
        paused = "" if path.name.startswith(prefix) else "enabled: false\n"
        path.write_text(paused + text, encoding="utf-8")
    found: list[dict[str, Any]] = workshop.retl("sync", "--output", "json").document["syncs"]
    return found


def _fill(workshop: Workshop, found: Outcomes) -> None:
    """The two marts with a row per case, their syncs, and what the warehouse itself says of each value."""
    with duckdb_files.opened(workshop.folder / "data" / "warehouse.duckdb") as con:
        con.execute("SET timezone = 'UTC'")
        for mart in ("own", "judged"):
            of_mart = [case for case in cases() if case.mart == mart]
            columns = {case.column: case for case in of_mart}
            listed = ", ".join(f"{_name(column)} {case.type}" for column, case in columns.items())
            con.execute(WAREHOUSE.format(mart, listed))
            for case in of_mart:
                con.execute(f"INSERT INTO {mart} (id, {_name(case.column)}) SELECT ?, {case.sql}", [case.id])
                found.source[case], found.kinds[case] = asked(con, case), kind(case)
            contract = ", ".join(
                f"{json.dumps(column)}: {case.contract and case.contract[:-1]}, nullable: true}}"
                for column, case in columns.items()
            )
            judged = {"contract": f"{{id: {{type: string}}, label: {{type: string}}, {contract}}}"}
            every = {"*": "*"}
            renamed = {
                "mongodb": {_undotted(column): column for column in columns if "." in column} | every,
                "kafka": {_lettered(column): column for column in columns} | every,
            }
            for target, destination in DESTINATIONS.items():
                workshop.sync(
                    f"{mart}_{target}",
                    source=f"{{table: {mart}}}",
                    key="[id]",
                    destination=destination.format(name=f"{mart}_{target}", key="id"),
                    guards=NO_LIMITS,
                    **(judged if mart == "judged" else {}),
                    **({"fields": json.dumps(renamed[target])} if target in renamed else {}),
                )


def _undotted(column: str) -> str:
    """A name that a field of MongoDB can have."""
    return column.replace(".", "·")


def _lettered(column: str) -> str:
    """A name that a field of Avro can have."""
    return "c_" + "".join(c if c.isascii() and c.isalnum() else f"_{ord(c):x}_" for c in column)


def _fill_keys(workshop: Workshop) -> None:
    """A mart whose keys are the hostile texts themselves."""
    rows = ", ".join(f"({sql}, '{what.replace(chr(39), chr(39) * 2)}')" for what, sql in TEXTS.items())
    workshop.warehouse(f"CREATE TABLE keyed AS SELECT * FROM (VALUES {rows}) t(k, what)")
    for target, destination in DESTINATIONS.items():
        name = f"keyed_{target}"
        into = destination.format(name=name, key="k")
        workshop.sync(name, source="{table: keyed}", key="[k]", destination=into, guards=NO_LIMITS)


def _fill_applied(workshop: Workshop, postgres: Database) -> None:
    """A mart with a row per value of APPLIED, and the table of an application."""
    with postgres.connect() as connection:
        listed: Any = ", ".join(f"c{n} {column}" for n, (column, _) in enumerate(APPLIED))
        connection.execute("CREATE SCHEMA IF NOT EXISTS landed")
        connection.execute(f"CREATE TABLE landed.applied (id text PRIMARY KEY, {listed})")
    columns = ", ".join(f"c{n} {type}" for n, (_, type) in enumerate(APPLIED))
    rows = "; ".join(
        f"INSERT INTO applied (id, c{number}) SELECT {literal(f'{number} {sql}')}, {sql}"
        for number, values in enumerate(APPLIED.values())
        for sql in values
    )
    workshop.warehouse(f"CREATE TABLE applied (id VARCHAR, {columns}); {rows}")
    into = "{type: postgres, table: landed.applied}"
    workshop.sync(
        "applied_postgres", source="{table: applied}", key="[id]", destination=into, guards=NO_LIMITS
    )


def _applied(workshop: Workshop, postgres: Database) -> dict[tuple[int, str], str]:
    """What each column of the application holds, or the code of the reject."""
    listed = workshop.json("rejects", "--sync", "applied_postgres", "--reveal")["rejects"]
    ends = {one["key"]: f"rejected: `{one['code']}`" for one in listed}
    with postgres.connect() as connection:
        for number in range(len(APPLIED)):
            query: Any = f"SELECT id, format('%s', c{number}) FROM landed.applied WHERE c{number} IS NOT NULL"
            ends |= {id: _shown(text) for id, text in connection.execute(query).fetchall()}
    return {
        (number, sql): ends[f"{number} {sql}"]
        for number, values in enumerate(APPLIED.values())
        for sql in values
    }


def _arrived_keys(postgres: Database, redis: RedisServer, api: Api) -> Iterator[tuple[str, dict[str, str]]]:
    with postgres.connect() as connection:
        rows: Any = connection.execute("SELECT what, k FROM landed.keyed_postgres").fetchall()
    yield "postgres", dict(rows)
    with redis.client() as client:
        names: Any = [key.decode() for key in client.scan_iter("keyed_*", count=1000)]
        documents = {
            name: json.loads(client.get(name))
            if name.startswith("keyed_redis_json:")
            else client.hgetall(name)
            for name in names
        }
    for target, what in (("redis_json", "what"), ("redis_hash", b"what")):
        found = {
            document[what]: unquote(name.removeprefix(f"keyed_{target}:"))
            for name, document in documents.items()
            if name.startswith(f"keyed_{target}:")
        }
        yield target, {w.decode() if isinstance(w, bytes) else w: key for w, key in found.items()}
    yield "http", {user["what"]: key for key, user in api.users.items() if "what" in user}


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _rejects(workshop: Workshop, target: str) -> dict[Case, str]:
    found = {}
    for mart in ("own", "judged"):
        by_id = {case.id: case for case in cases() if case.mart == mart}
        listed = workshop.json("rejects", "--sync", f"{mart}_{target}", "--reveal")
        found |= {by_id[one["key"]]: one["code"] for one in listed["rejects"]}
    return found


def _unfit(workshop: Workshop) -> dict[str, dict[tuple[str, str | None], str]]:
    """The code each (type, contract) that fits nothing is refused with, by target."""
    for old in (workshop.folder / "syncs").glob("*.yml"):
        old.unlink()
    for number, (type, contract) in enumerate(unfit_types()):
        workshop.warehouse(f"CREATE TABLE unfit_{number} AS SELECT 'k' AS id, NULL::{type} AS v")
        judged = {"contract": f"{{id: {{type: string}}, v: {contract}}}"} if contract else {}
        for target in UNFIT:
            name = f"unfit_{number}_{target}"
            source = f"{{table: unfit_{number}}}"
            workshop.sync(
                name,
                source=source,
                key="[id]",
                destination=DESTINATIONS[target].format(name=name, key="id"),
                **judged,
            )
    ran = [one for number, _ in enumerate(unfit_types()) for one in _run_only(workshop, f"unfit_{number}_")]
    codes = {one["sync"]: one["error"]["code"] for one in ran}
    return {
        target: {pair: codes[f"unfit_{number}_{target}"] for number, pair in enumerate(unfit_types())}
        for target in UNFIT
    }


def _read(case: Case, text: str | None, *, json_text: bool) -> Told:
    """A target's text as `same` compares it."""
    of = kind(case)
    if text is None or (json_text and text == "null"):
        return Told(text, None)
    if json_text or of == "json" or of.endswith("[]"):
        return Told(text, tree(text))
    return Told(text, text)


def _postgres(postgres: Database) -> Iterator[tuple[Case, Told]]:
    with postgres.connect() as connection:
        connection.execute("SET timezone = 'UTC'")
        for case in cases():
            column = _name(case.column)
            if kind(case).endswith("[]"):
                column = f"to_json({column}::text[])"
            rows = connection.execute(
                f"SELECT {column}::text FROM landed.{case.mart}_postgres WHERE id = %s",  # type: ignore[arg-type]
                [case.id],
            ).fetchall()
            for (text,) in rows:
                yield case, _read(case, text, json_text=False)  # type: ignore[arg-type]


def _redis_json(redis: RedisServer) -> Iterator[tuple[Case, Told]]:
    for case, key in _keys(redis, "redis_json"):
        with redis.client() as client:
            document: Any = client.get(key)
        yield case, _member(case, msgspec.json.decode(document, type=dict[str, msgspec.Raw]))


def _sqlite(file: Path) -> Iterator[tuple[Case, Told]]:
    with closing(sqlite3.connect(file)) as connection:
        for case in cases():
            query = f"SELECT {_name(case.column)} FROM {case.mart}_sqlite WHERE id = ?"
            for (held,) in connection.execute(query, [case.id]):
                text = None if held is None else str(held)
                told = _read(case, text, json_text=False)
                is_flag = kind(case) == "boolean" and held is not None
                yield case, Told(text, ("false", "true")[held]) if is_flag else told


def _duckdb(file: Path) -> Iterator[tuple[Case, Told]]:
    with duckdb_files.opened(file, read_only=True) as connection:
        connection.execute("SET timezone = 'UTC'")
        for case in cases():
            column = _name(case.column)
            if kind(case).endswith("[]"):
                column = f"to_json({column}::VARCHAR[])"
            query = f"SELECT {column}::VARCHAR FROM {case.mart}_duckdb WHERE id = ?"
            for (text,) in connection.execute(query, [case.id]).fetchall():
                yield case, _read(case, text, json_text=False)


def _mongodb(server: Mongo) -> Iterator[tuple[Case, Told]]:
    held = {(mart, one["_id"]): one for mart in MARTS[:2] for one in server.documents(f"{mart}_mongodb")}
    for case in cases():
        document = held.get((case.mart, case.id))
        if document is not None and _undotted(case.column) in document:
            nested = kind(case) == "json" or kind(case).endswith("[]")
            text = _bson_text(document[_undotted(case.column)], nested=nested)
            told = _read(case, text, json_text=False)
            yield case, Told(text, _days(told.value)) if kind(case) in ("date", "date[]") else told
        elif document is not None:
            yield case, Told(None, None)


def _avro(topics: Topics) -> Iterator[tuple[Case, Told]]:
    held = {(mart, one["id"]): one for mart in MARTS[:2] for one in topics.values(f"{mart}_kafka")}
    for case in cases():
        row = held.get((case.mart, case.id))
        if row is not None:
            value = row[_lettered(case.column)]
            text = value if kind(case) == "json" else json_of(value)
            yield case, _read(case, None if value is None else text, json_text=True)


def json_of(value: Any) -> str:
    """A value of Avro as JSON, with all its digits."""
    match value:
        case list():
            return "[" + ",".join(map(json_of, value)) + "]"
        case None | bool() | int() | float():
            return json.dumps(value)
        case Decimal():
            return format(value, "f")
        case datetime():
            return json.dumps(value.isoformat())
        case _:
            return json.dumps(str(value), ensure_ascii=False)


def _days(value: Any) -> Any:
    """Midnights, which is how BSON has days."""
    if isinstance(value, list):
        return [_days(one) for one in value]
    return value.removesuffix("T00:00:00.000Z") if isinstance(value, str) else value


def _bson_text(value: Any, *, nested: bool) -> str:
    """The value as the shell shows it; `nested`: as JSON says it."""
    match value:
        case dict():
            parts = (f"{json.dumps(n)}:{_bson_text(one, nested=True)}" for n, one in value.items())
            return "{" + ",".join(parts) + "}"
        case list():
            return "[" + ",".join(_bson_text(one, nested=True) for one in value) + "]"
        case None | bool() | int() | float():
            return json.dumps(value)
        case Decimal128():
            return format(value.to_decimal(), "f")
        case DatetimeMS():
            text = value.as_datetime().replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"
            return json.dumps(text) if nested else text
        case _:
            return json.dumps(str(value), ensure_ascii=False) if nested else str(value)


def _keys_in_files(folder: Path) -> dict[str, dict[str, str]]:
    with closing(sqlite3.connect(folder / "landed.db")) as connection:
        lite = dict(connection.execute("SELECT what, k FROM keyed_sqlite"))
    with duckdb_files.opened(folder / "landed.duckdb", read_only=True) as connection:
        return {
            "sqlite": lite,
            "duckdb": dict(connection.execute("SELECT what, k FROM keyed_duckdb").fetchall()),
        }


def _redis_hash(redis: RedisServer) -> Iterator[tuple[Case, Told]]:
    for case, key in _keys(redis, "redis_hash"):
        with redis.client() as client:
            held: Any = client.hget(key, case.column)
        text = None if held is None else held.decode()
        yield case, _read(case, text, json_text=kind(case) not in QUOTED)


def _keys(redis: RedisServer, target: str) -> Iterator[tuple[Case, bytes]]:
    by_key = {(f"{case.mart}_{target}", case.id): case for case in cases()}
    with redis.client() as client:
        for key in list(client.scan_iter("*", count=1000)):
            name, _, rest = key.decode().partition(":")
            if (case := by_key.get((name, unquote(rest)))) is not None:
                yield case, key


def _http(api: Api) -> Iterator[tuple[Case, Told]]:
    class Row(msgspec.Struct):
        id: str
        attributes: dict[str, msgspec.Raw]

    by_id = {case.id: case for case in cases()}
    for method, path, _, body in api.seen:
        if (method, path) == ("POST", "/v1/users/batch"):
            for row in msgspec.json.decode(body, type=dict[str, list[Row]])["users"]:
                if "what" not in row.attributes:
                    yield by_id[row.id], _member(by_id[row.id], row.attributes)


def _member(case: Case, document: dict[str, msgspec.Raw]) -> Told:
    return _read(case, bytes(document[case.column]).decode(), json_text=True)


# --- the page


HEAD = """# What becomes of each value

Each line is a value in a DuckDB column, and what was found in the target after a run that delivered it. A value
arrives as it is, or its row is a reject with a code, or a column of its type is refused before anything is written.
None is altered. The page is made from the runs of `tests/test_value_outcomes.py`, which fails when one of them ends
otherwise; `make docs` writes it again.

Texts are shown in quotes, with control characters escaped; long ones are cut. *JSON* is what an HTTP API and Redis
with `value: json` get: byte for byte the same. `JSON null` cannot be told from NULL there. Members of a JSON object have
no order, and of a name given twice readers take the last; `jsonb` keeps just that, and has no negative zero. Inside of
STRUCT and MAP a date or time is DuckDB's own text of it. A Redis key is shown decoded; in the server it is
percent-encoded. *MongoDB* is an emulator of its protocol, through MongoDB's own client: the types are those of BSON.
*Avro* is what fastavro reads from records of Kafka with `value: avro`, written as JSON.
"""


APPLICATION = """\
A table that retl did not make may have columns whose type does not keep every value. There PostgreSQL judges each
value: the row goes in if the column gives back what was sent, otherwise it is a reject with `NOT_EXACT`.
Send the text that PostgreSQL shows for the value. A `real` shows the shortest number that stands for it, so 0.1
goes in."""


def page(found: Outcomes) -> str:
    """docs/values.md."""
    parts = [HEAD.rstrip()]
    for mart, title in (("own", "Columns without a contract"), ("judged", "Columns under a contract")):
        parts.append(f"## {title}")
        of_mart = [case for case in cases() if case.mart == mart]
        order = list(dict.fromkeys(case.column for case in of_mart))
        of_mart.sort(key=lambda case: order.index(case.column))
        for column, group in groupby(of_mart, key=lambda case: case.column):
            lines = [f"| value | {' | '.join(SHOWN)} |", f"|{' --- |' * (len(SHOWN) + 1)}"]
            lines += [_line(found, case) for case in group]
            parts += [f"### `{column}`", "\n".join(lines)]
    parts += [
        "## Texts as keys",
        _keyed(found),
        "## PostgreSQL columns that an application made",
        APPLICATION,
    ]
    parts += [_application(found), "## Columns that are refused", _refused(found)]
    return "\n\n".join(parts) + "\n"


def _line(found: Outcomes, case: Case) -> str:
    cells = [
        f"rejected: `{found.rejects[target][case]}`"
        if case in found.rejects[target]
        else _shown(found.told[target][case].text)
        for target in SHOWN.values()
    ]
    return f"| {case.what} | {' | '.join(cells)} |"


def _shown(text: str | None) -> str:
    if text is None:
        return "NULL"
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    cut = plain if len(plain) <= 60 else f"{plain[:50]}… ({len(text)} characters)"
    fence = "``" if "`" in cut else "`"
    return f"{fence}{cut}{fence}".replace("|", r"\|") if cut.strip() else f'`"{cut}"`'


def _keyed(found: Outcomes) -> str:
    titles = ("Redis key" if title == "Redis hash" else title for title in KEYED)
    lines = [f"| key | {' | '.join(titles)} |", f"|{' --- |' * (len(KEYED) + 1)}"]
    for what in TEXTS:
        keys = (found.keys[target].get(what) for target in KEYED.values())
        lines.append(f"| {what} | {' | '.join('rejected' if key is None else _shown(key) for key in keys)} |")
    return "\n".join(lines)


def _application(found: Outcomes) -> str:
    lines = ["| column | mart | value | PostgreSQL |", "| --- | --- | --- | --- |"]
    for (number, sql), outcome in found.applied.items():
        column, type = list(APPLIED)[number]
        lines.append(f"| `{column}` | `{type}` | `{sql}` | {outcome} |".replace("||", r"\|\|"))
    return "\n".join(lines)


def _refused(found: Outcomes) -> str:
    lines = ["| DuckDB type | contract | code |", "| --- | --- | --- |"]
    for (type, contract), code in found.unfit["postgres"].items():
        lines.append(f"| `{type}` | {f'`{short(contract)}`' if contract else 'none'} | `{code}` |")
    return "\n".join(lines)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        with (
            servers.postgres_server(folder / "postgres") as server,
            servers.redis_server(folder / "redis") as redis,
            servers.fresh_database(server) as postgres,
            Api() as api,
            mongo.server() as mongodb,
            kafka.broker(folder / "kafka") as broker,
            SchemaRegistry() as registry,
        ):
            topics = Topics(broker, registry)
            text = page(run(folder / "project", postgres, redis, api, mongodb, topics))
    (Path(__file__).parents[1] / PAGE).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
