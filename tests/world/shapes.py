"""Scenes of targets with a life of their own: keys that are not unique, unique values that swap, trees,
parents and children, inheritance, roles with settings, tables that refuse. Each has a sync of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.crashes import Ended
from tests.world.play import Play, Wrong, error
from tests.world.scenes import scene


def define(play: Play, name: str, mart: str, says: str) -> None:
    """A sync `name` of a mart of that name, made by this query; batches are small."""
    target = play.target
    (target.folder / "syncs" / "users.yml").unlink(missing_ok=True)
    target.project.mart(f"CREATE OR REPLACE TABLE {name} AS {mart}")
    text = f"source: {{table: {name}}}\nbatch: {{rows: 5}}\n{says}\n"
    (target.folder / "syncs" / f"{name}.yml").write_text(text)


def run_all(play: Play, *words: str) -> tuple[Ended, dict[str, dict[str, Any]]]:
    """Every sync in one invocation, and the summary of each."""
    ended = play.target.project.answered(
        "sync", "--sync", "all", *words, "--output", "json", RETL_LOG_LEVEL="error"
    )
    document = json.loads(ended.stdout) if ended.stdout else {}
    found = {one["sync"]: one for one in document.get("syncs", ())}
    play.story.append(f"sync all {' '.join(words)} -> {ended.code} {ended.stdout[:300]}")
    if ended.code:
        play.said.append(error(ended)["code"])
    return ended, found


def rows(play: Play, sql: str) -> list[tuple[Any, ...]]:
    with play.table.database.connect() as connection:
        return connection.execute(sql).fetchall()


def execute(play: Play, sql: str) -> None:
    play.table.execute(sql)


def must(play: Play, sql: str, wanted: list[tuple[Any, ...]], what: str) -> None:
    found = rows(play, sql)
    if found != wanted:
        raise Wrong(f"LOST {what}: {found[:4]} where {wanted[:4]} should be")


@scene("update_only finds a key twice and another one not at all", "upsert")
def a_key_that_is_not_unique(play: Play) -> None:
    execute(
        play, "CREATE TABLE crm.loose (id text, v bigint); INSERT INTO crm.loose VALUES ('A', 0), ('A', 0)"
    )
    says = "key: [id]\ndestination: {connection: db, table: crm.loose}\nwrite: update_only"
    define(play, "loose", "SELECT unnest(['A', 'B']) AS id, 7::BIGINT AS v", says)
    ended, found = run_all(play)
    if ended.code == 0 and found["loose"]["inserted"]:
        raise Wrong(f"LOST: {found['loose']['inserted']} inserted by update_only")
    execute(play, "INSERT INTO crm.loose VALUES ('B', 0)")
    ended, _ = run_all(play)
    if ended.code == 0:
        must(play, "SELECT DISTINCT id, v FROM crm.loose ORDER BY 1", [("A", 7), ("B", 7)], "B")


@scene("the role has settings that shape values", "upsert")
def settings_of_a_role(play: Play) -> None:
    database = play.table.database.dbname
    for setting in (
        "array_nulls = off", "extra_float_digits = 0", "intervalstyle = 'sql_standard'", "bytea_output = 'escape'",
        "datestyle = 'German, DMY'", "timezone = 'Asia/Tokyo'",
    ):  # fmt: skip
        execute(play, f"ALTER DATABASE {database} SET {setting}")
    execute(
        play,
        "CREATE TABLE crm.shaped (id bigint PRIMARY KEY, l text[], d date, t timestamptz, f double precision)",
    )
    says = "key: [id]\ndestination: {connection: db, table: crm.shaped}\nconflicts: warehouse_wins"
    mart = (
        "SELECT 1::BIGINT AS id, ['a', NULL, 'NULL'] AS l, DATE '2026-02-03' AS d,"
        " TIMESTAMPTZ '2026-01-01 00:00:00+00' AS t, 0.1::DOUBLE + 0.2 AS f"
    )
    define(play, "shaped", mart, says)
    for _ in range(2):
        ended, found = run_all(play)
        if ended.code:
            raise Wrong(f"FALSE REFUSAL {error(ended)}")
    if found["shaped"]["unchanged"] != 1:
        raise Wrong(f"NOT IDLE {found['shaped']}")
    must(
        play,
        "SELECT l = ARRAY['a', NULL, 'NULL'] AND d = make_date(2026, 2, 3) AND f = float8 '0.30000000000000004'"
        " AND t = to_timestamp(1767225600) FROM crm.shaped",
        [(True,)],
        "a value",
    )


@scene("unique values swap and rotate", "upsert")
def unique_values_rotate(play: Play) -> None:
    execute(play, "CREATE TABLE crm.seats (id bigint PRIMARY KEY, seat text UNIQUE)")
    says = "key: [id]\ndestination: {connection: db, table: crm.seats}"
    for day in (0, 1, 7):
        define(
            play, "seats", f"SELECT i AS id, 'seat ' || ((i + {day}) % 30) AS seat FROM range(30) t(i)", says
        )
        run_all(play)
        wanted = [(i, f"seat {(i + day) % 30}") for i in range(30)]
        must(play, "SELECT id, seat FROM crm.seats ORDER BY id", wanted, "seats that rotate")


@scene("a tree whose children come before their parents", "upsert")
def children_first(play: Play) -> None:
    execute(play, "CREATE TABLE crm.nodes (id bigint PRIMARY KEY, parent bigint REFERENCES crm.nodes)")
    says = "key: [id]\ndestination: {connection: db, table: crm.nodes}\ndeletes: delete"
    mart = "SELECT i AS id, CASE WHEN i < 59 THEN i + 1 END AS parent FROM range(60) t(i)"
    define(play, "nodes", mart, says)
    run_all(play)
    must(play, "SELECT count(*) FROM crm.nodes", [(60,)], "nodes")
    define(play, "nodes", f"{mart} WHERE i >= 5", says)
    run_all(play)
    must(play, "SELECT count(*) FROM crm.nodes", [(55,)], "nodes that remain")


@scene("a parent and its children leave in one invocation", "upsert")
def a_family_leaves(play: Play) -> None:
    execute(
        play,
        "CREATE TABLE crm.parents (id bigint PRIMARY KEY);"
        "CREATE TABLE crm.children (id bigint PRIMARY KEY, parent bigint NOT NULL REFERENCES crm.parents)",
    )
    for day in (0, 5):
        for name, columns in (("children", "i AS id, i AS parent"), ("parents", "i AS id")):
            says = f"key: [id]\ndestination: {{connection: db, table: crm.{name}}}\ndeletes: delete"
            define(play, name, f"SELECT {columns} FROM range({day}, 20 + {day}) t(i)", says)
        run_all(play)
        wanted = [(day, 19 + day, 20)]
        must(play, "SELECT min(id), max(id), count(*) FROM crm.children", wanted, "children")
        must(play, "SELECT min(id), max(id), count(*) FROM crm.parents", wanted, "parents")


@scene("a table with heirs: their rows are not ours", "upsert")
def heirs(play: Play) -> None:
    execute(
        play,
        "CREATE TABLE crm.contacts (id bigint PRIMARY KEY, name text); CREATE TABLE crm.members () INHERITS (crm.contacts);"
        "INSERT INTO crm.members VALUES (3, 'theirs'), (4, 'theirs')",
    )
    says = "key: [id]\ndestination: {connection: db, table: crm.contacts}\ndeletes: delete"
    for mart in ("range(20)", "range(5, 20)"):
        define(play, "contacts", f"SELECT i AS id, 'ours' AS name FROM {mart} t(i)", says)
        ended, _ = run_all(play)
        if ended.code:
            raise Wrong(f"FALSE REFUSAL {error(ended)}")
    theirs = [(3, "theirs"), (4, "theirs")]
    must(play, "SELECT id, name FROM ONLY crm.members ORDER BY id", theirs, "rows of an heir")
    must(play, "SELECT count(*) FROM ONLY crm.contacts", [(15,)], "our rows")


@scene("a partition is missing for some rows", "upsert")
def a_missing_partition(play: Play) -> None:
    execute(
        play,
        "CREATE TABLE crm.parts (id bigint PRIMARY KEY, v bigint) PARTITION BY RANGE (id);"
        "CREATE TABLE crm.parts_low PARTITION OF crm.parts FOR VALUES FROM (0) TO (97)",
    )
    says = "key: [id]\ndestination: {connection: db, table: crm.parts}"
    define(play, "parts", "SELECT i AS id, i AS v FROM range(100) t(i)", says)
    ended, found = run_all(play)
    if ended.code or found["parts"]["inserted"] != 97 or found["parts"]["rejected"] != 3:
        raise Wrong(f"LOST {found['parts']}")
    execute(play, "CREATE TABLE crm.parts_high PARTITION OF crm.parts DEFAULT")
    run_all(play)
    must(play, "SELECT count(*) FROM crm.parts", [(100,)], "rows once their partition is there")


@scene("most rows are refused, on every run", "upsert")
def most_are_refused(play: Play) -> None:
    execute(play, "CREATE TABLE crm.strict (id bigint PRIMARY KEY, n bigint CHECK (n < 40))")
    says = "key: [id]\ndestination: {connection: db, table: crm.strict}"
    define(play, "strict", "SELECT i AS id, i AS n FROM range(300) t(i)", says)
    for _ in range(4):
        ended, found = run_all(play)
        if ended.code == 0:
            raise Wrong(f"SUCCESS with {found['strict']['rejected']} of 300 refused")


@scene("every row is refused, however few", "upsert")
def all_are_refused(play: Play) -> None:
    execute(play, "CREATE TABLE crm.strict (id bigint PRIMARY KEY, n bigint CHECK (n < 0))")
    says = "key: [id]\ndestination: {connection: db, table: crm.strict}"
    define(play, "strict", "SELECT i AS id, i AS n FROM range(3) t(i)", says)
    for _ in range(2):
        ended, found = run_all(play)
        if ended.code != 1:
            raise Wrong(f"EXIT {ended.code} with {found['strict']['rejected']} of 3 refused")


@scene("a row is wider than a page", "upsert")
def too_wide(play: Play) -> None:
    columns = ", ".join(f"c{i} text" for i in range(1598))
    execute(play, f"CREATE TABLE crm.wide (id bigint PRIMARY KEY, {columns})")
    values = ", ".join(f"'value ' || i AS c{n}" for n in range(1598))
    says = "key: [id]\ndestination: {connection: db, table: crm.wide}"
    define(play, "wide", f"SELECT i AS id, {values} FROM range(3) t(i)", says)
    ended, found = run_all(play)
    if ended.code == 0:
        raise Wrong(f"SUCCESS with {found['wide']['rejected']} of 3 refused")


@scene("nothing was ever delivered and the mart is empty", "upsert")
def nothing_at_all(play: Play) -> None:
    execute(play, "CREATE TABLE crm.none (id bigint PRIMARY KEY)")
    says = "key: [id]\ndestination: {connection: db, table: crm.none}\ndeletes: delete"
    define(play, "none", "SELECT i AS id FROM range(0) t(i)", says)
    for _ in range(2):
        ended, _ = run_all(play)
        if ended.code:
            raise Wrong(f"FALSE REFUSAL {error(ended)}")


@scene("a transform on a key", "upsert")
def a_transformed_key(play: Play) -> None:
    execute(play, "CREATE TABLE crm.masked (email text PRIMARY KEY, v bigint)")
    says = (
        "key: [email]\ndestination: {connection: db, table: crm.masked}\n"
        "fields: {email: {column: email, transform: [sha256_hex]}, v: v}"
    )
    define(play, "masked", "SELECT 'a' || i || '@example.com' AS email, i AS v FROM range(3) t(i)", says)
    run_all(play)
    must(play, "SELECT count(*) FROM crm.masked WHERE email LIKE '%@%'", [(0,)], "secrecy of a key")


@scene("a view reads files beside the warehouse; retl is started elsewhere", "upsert")
def files_beside_the_warehouse(play: Play) -> None:
    folder = play.target.folder
    (folder / "lake").mkdir()
    play.target.project.mart(
        f"COPY (SELECT i AS id FROM range(5) t(i)) TO '{folder}/lake/x.parquet' (FORMAT parquet)"
    )
    execute(play, "CREATE TABLE crm.lake (id bigint PRIMARY KEY)")
    says = "key: [id]\ndestination: {connection: db, table: crm.lake}"
    define(play, "lake", "SELECT 1::BIGINT AS id", says)
    made = "import duckdb; duckdb.connect('mart.duckdb').execute(\"DROP TABLE lake; CREATE VIEW lake AS FROM 'lake/x.parquet'\")"
    subprocess.run([sys.executable, "-c", made], cwd=folder, check=True)
    yml = folder / "retl.yml"
    yml.write_text(yml.read_text().replace("lock_wait: 30s", "lock_wait: 30s, read_paths: [lake]"))
    project = play.target.project
    done = subprocess.run(
        [sys.executable, "-m", "retl", "--project", str(folder), "sync", "--sync", "all", "--output", "json"],
        cwd="/", env=project.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = error(Ended(done.returncode, done.stdout, done.stderr)) if done.returncode else {}
    if said and ("lake/x.parquet" not in said["message"] or "read_paths" not in str(said.get("hint"))):
        raise Wrong(f"FALSE REFUSAL {said}")


@scene("a plan file is cut or is none", "upsert")
def a_broken_plan_file(play: Play) -> None:
    for text in ("{", "[]", '{"retl": 1}', "not a plan"):
        file = play.target.folder / "broken.plan"
        file.write_text(text)
        ended = play.target.project.answered("apply", str(file), "--output", "json", RETL_LOG_LEVEL="error")
        if ended.code != 2:
            raise Wrong(f"EXIT {ended.code} for a plan file with {text!r}: {ended.stderr[-200:]}")


@scene("a row that is refused stays owed when the target is restored", "upsert")
def a_reject_and_a_restored_target(play: Play) -> None:
    execute(play, "CREATE TABLE crm.strict (id bigint PRIMARY KEY, n bigint CHECK (n <> 50))")
    says = "key: [id]\ndestination: {connection: db, table: crm.strict}"
    define(play, "strict", "SELECT i AS id, i AS n FROM range(100) t(i)", says)
    run_all(play)
    play.keep_target()
    define(play, "strict", "SELECT i AS id, i AS n FROM range(120) t(i)", says)
    run_all(play)
    play.restore_target()
    execute(play, "ALTER TABLE crm.strict DROP CONSTRAINT strict_n_check")
    ended, _ = run_all(play)
    if ended.code:
        run_all(play, "--full")
    run_all(play)
    must(play, "SELECT count(*) FROM crm.strict", [(120,)], "rows")
