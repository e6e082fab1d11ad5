"""Scenes of addresses, copies, other owners, applications and clocks."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import threading
import time

import psycopg
from msgspec.structs import replace

from tests.crashes import Ended
from tests.proxy import Proxy
from tests.world.hosts import FAKETIME, PgBouncer
from tests.world.play import Play, Wrong, error
from tests.world.scenes import ALL, EVERY, FILES, HTTP, KAFKA, POSTGRES, scene
from tests.world.targets import copied

# An address is only where to knock.

SERVED = tuple(kind for kind in EVERY if kind not in FILES)


def _moved(play: Play) -> None:
    play.next_day()
    play.run()
    play.next_day()
    play.settle(quiet=True)


@scene("reached as localhost, then as 127.0.0.1", *SERVED)
def another_name(play: Play) -> None:
    yml, project = play.target.folder / "retl.yml", play.target.project
    text, environ = yml.read_text(), project.environ
    yml.write_text(text.replace("127.0.0.1", "localhost"))
    project.environ = {name: value.replace("127.0.0.1", "localhost") for name, value in environ.items()}
    play.run()
    yml.write_text(text)
    project.environ = environ
    _moved(play)


@scene("reached at another port", *SERVED, short=("append", "mirror"))
def another_port(play: Play) -> None:
    play.run()
    host, port = play.target.address
    proxy = play.hold.enter_context(Proxy(host, port))
    play.target.reach(proxy.host, proxy.port)
    _moved(play)


@scene("reached at another port, and the ledger is restored", *SERVED, short=("stream",))
def another_port_and_an_old_ledger(play: Play) -> None:
    play.run()
    play.keep_ledger()
    host, port = play.target.address
    proxy = play.hold.enter_context(Proxy(host, port))
    play.target.reach(proxy.host, proxy.port)
    play.next_day()
    play.run()
    play.restore_ledger()
    play.settle()


@scene("through PgBouncer in session mode from now on", *POSTGRES, needs="PgBouncer")
def through_a_pooler(play: Play) -> None:
    play.run()
    pooler = PgBouncer(play.hosts.folder(), play.table.database, "session").start()
    play.hold.callback(pooler.stop)
    play.target.reach(pooler.host, pooler.port)
    _moved(play)


@scene("through PgBouncer in transaction mode", *POSTGRES, needs="PgBouncer")
def through_a_pooler_of_transactions(play: Play) -> None:
    """It cannot work: one clear refusal, each time the same, and nothing is harmed for who connects well."""
    pooler = PgBouncer(play.hosts.folder(), play.table.database, "transaction").start()
    play.hold.callback(pooler.stop)
    host, port = play.target.address
    play.target.reach(pooler.host, pooler.port)
    codes = {(ended.code, error(ended)["code"]) for ended in (play.run(), play.run(), play.run())}
    if len(codes) != 1:
        raise Wrong(f"NOT ONE REFUSAL but {codes}")
    play.target.reach(host, port)
    play.settle(quiet=True)


@scene(
    "object A, then object B, then object A again",
    *EVERY,
    *KAFKA,
    "mongodb alone",
    short=("upsert", "append"),
)
def another_object_and_back(play: Play) -> None:
    """A table, a key template, a collection, a topic."""
    project, sync = play.target.project, type(play.target).sync
    here, there = play.target.places
    assert here in sync
    play.run()
    project.define(sync.replace(here, there))
    for _ in range(3):
        play.next_day()
        play.run(partial=True)
    project.define(sync)
    play.settle(quiet=not play.target.at_once)  # a snapshot deletes what others wrote since, so it asks


@scene("database A, then its copy, then A again", *POSTGRES)
def a_copy_and_back(play: Play) -> None:
    target = play.table
    play.run()
    copy = copied(target.database)
    target.project.environ["PG_DB"] = copy.dbname
    target.project.answered("sync", "--sync", "users", "--output", "json")
    play.next_day()
    target.project.answered("sync", "--sync", "users", "--output", "json")
    target.project.environ["PG_DB"] = target.database.dbname
    play.settle(quiet=True)


@scene("a developer's copy of database and ledger delivers, then ours", *POSTGRES)
def a_developers_copy(play: Play) -> None:
    target = play.table
    play.run()
    copy = copied(target.database)
    play.keep_ledger()
    play.next_day()
    target.project.environ["PG_DB"] = copy.dbname
    target.project.answered("sync", "--sync", "users", "--output", "json")
    target.project.environ["PG_DB"] = target.database.dbname
    play.restore_ledger()
    play.settle(quiet=True)


# Others own what we do not.

ANOTHER = """
source: {sql: "SELECT user_id, length(user_id) AS score FROM mart"}
key: [user_id]
contract:
  user_id: {type: string}
  score: {type: integer}
batch: {rows: 50}
"""


@scene("two syncs own different fields; a key leaves and returns", "mirror", short=("mirror",))
def two_owners(play: Play) -> None:
    target = play.table
    mart = target.project.mart
    target.execute("ALTER TABLE crm.users ADD COLUMN score bigint")
    other = target.folder / "syncs" / "scores.yml"
    other.write_text(ANOTHER + "destination: {connection: db, table: crm.users}\nwrite: update_only\n")
    mart("CREATE TABLE gone AS FROM mart WHERE user_id IN ('user 000003', 'user 000007')")

    def both() -> None:
        play.run()
        ended = target.project.answered("sync", "--sync", "scores", "--output", "json")
        if ended.code:
            raise Wrong(f"FALSE REFUSAL of the second sync {error(ended)}")
        with target.database.connect() as connection:
            wrong = connection.execute(
                "SELECT count(*) FROM crm.users WHERE score IS DISTINCT FROM length(user_id)"
            ).fetchall()
        if wrong != [(0,)]:
            raise Wrong(
                f"LOST fields of the second sync in {wrong[0][0]} rows ({ended.summary['unchanged']} unchanged)"
            )

    both()
    mart("DELETE FROM mart WHERE user_id IN (SELECT user_id FROM gone)")
    both()
    mart("INSERT INTO mart FROM gone")
    both()
    both()


@scene("an application deletes a row and makes it anew", "update_only")
def made_anew_by_an_application(play: Play) -> None:
    play.run()
    play.table.execute(
        "DELETE FROM crm.users WHERE user_id = 'user 000004';"
        "INSERT INTO crm.users VALUES ('user 000004', 'theirs', -5, NULL)"
    )
    play.settle(hidden=True)


@scene("an application holds a lock on a row for a while", *POSTGRES)
def a_held_lock(play: Play) -> None:
    target = play.table
    play.run()
    play.next_day()
    connection = target.database.connect()
    play.hold.callback(connection.close)
    connection.execute("BEGIN; LOCK TABLE crm.users IN EXCLUSIVE MODE")
    timer = threading.Timer(1, connection.close)
    timer.start()
    play.settle(quiet=True)
    timer.join()


@scene("an application's transaction deadlocks with a batch", "upsert", "mirror", "update_only")
def a_deadlock(play: Play) -> None:
    """It locks the last row, and the first one once retl waits for the last."""
    target = play.table
    play.run()
    target.project.mart("UPDATE mart SET searches = searches + 1")
    connection = target.database.connect()
    play.hold.callback(connection.close)
    connection.execute(
        "SET deadlock_timeout = '3s'; BEGIN; SELECT FROM crm.users WHERE user_id = 'user 000004' FOR UPDATE"
    )

    def cross() -> None:
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        end = time.monotonic() + 20
        with target.database.connect() as looks:
            while looks.execute(waiting).fetchall() == [(0,)] and time.monotonic() < end:
                time.sleep(0.02)
        with contextlib.suppress(psycopg.Error):
            connection.execute("SELECT FROM crm.users WHERE user_id = 'user 000000' FOR UPDATE")
        connection.close()

    thread = threading.Thread(target=cross)
    thread.start()
    play.settle(quiet=True)
    thread.join()


SWALLOW = """
CREATE FUNCTION crm.swallow() RETURNS trigger LANGUAGE plpgsql AS
 $$BEGIN IF NEW.user_id LIKE '%7' THEN RETURN NULL; END IF; RETURN NEW; END$$;
CREATE TRIGGER swallow BEFORE INSERT OR UPDATE ON crm.users FOR EACH ROW EXECUTE FUNCTION crm.swallow()"""


@scene("a trigger swallows rows", *POSTGRES)
def a_trigger_that_swallows(play: Play) -> None:
    """What was swallowed is a reject, every time, and arrives once the trigger is gone."""
    target = play.table
    target.execute(SWALLOW)
    for _ in range(2):
        ended = play.run(partial=True)
        absent = target.difference()
        missing = len(absent.lost) + len(absent.stale)
        if ended.code == 0 and ended.summary["rejected"] + ended.summary["skipped"] < missing:
            raise Wrong(f"LOST {missing} swallowed rows, {ended.summary['rejected']} rejected")
    target.execute("DROP TRIGGER swallow ON crm.users")
    play.said.clear()
    play.settle(quiet=True)


@scene("a trigger alters the key", "upsert", "append", "mirror")
def a_trigger_that_alters_the_key(play: Play) -> None:
    target = play.table
    target.execute(
        SWALLOW.replace(
            "IF NEW.user_id LIKE '%7' THEN RETURN NULL; END IF", "NEW.user_id := upper(NEW.user_id)"
        )
    )
    for _ in range(2):
        ended = play.run(partial=True)
        if ended.code == 0 and ended.summary["inserted"] and target.difference().lost:
            raise Wrong(f"LOST {target.difference()} although {ended.summary['inserted']} count as inserted")


@scene("`retl state mv` after a killed run", *ALL, *HTTP, short=("append",))
def moved_state(play: Play) -> None:
    project = play.target.project
    play.run()
    play.next_day()
    play.killed("batch_answered:2")
    (project.folder / "syncs" / "users.yml").rename(project.folder / "syncs" / "people.yml")
    play.command("state", "mv", "users", "people", "--yes")
    play.name = "people"
    play.settle(quiet=True)


# Clocks and disks.


@scene("the clock jumps a day ahead, and back", *ALL, *HTTP, needs="libfaketime")
def a_jumping_clock(play: Play) -> None:
    for offset in ("+0", "+1d", "-1d", "+0"):
        play.next_day()
        environ = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        play.judged(_process(play, environ))
    play.settle(quiet=True)


@scene("the disk of the state is full", *ALL, *HTTP, needs="mount")
def a_full_disk(play: Play) -> None:
    folder = play.target.folder / ".retl"
    play.run()
    kept = play.hosts.folder() / "retl"
    shutil.copytree(folder, kept)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(folder)],
        check=True,
        capture_output=True,
    )
    play.hold.callback(subprocess.run, ["umount", "-l", str(folder)], check=False)
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
        while filler.write(b"0" * 4096):
            pass
    play.next_day()
    ended = play.run(partial=True)
    if ended.code == 0:
        raise Wrong("SUCCESS on a full disk")
    (folder / "filler").unlink()
    play.said.clear()
    play.settle(quiet=True)


def _process(play: Play, environ: dict[str, str]) -> Ended:
    project = play.target.project
    words = [sys.executable, "-m", "retl", "--project", str(project.folder), "sync", "--sync", "users"]
    done = subprocess.run(
        [*words, "--output", "json"],
        cwd=project.folder,
        env={**project.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@scene(
    "the ledger goes away in the middle of a run, and comes back", "upsert", "append", "http", ledgers=True
)
def a_ledger_that_goes_away(play: Play) -> None:
    here = play.target.folder / ".retl"
    if play.ledger is not None:
        admin = play.hold.enter_context(replace(play.ledger, dbname="postgres").connect())
        name, sessions = (
            play.ledger.dbname,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
        )

        def go() -> None:
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            admin.execute(sessions, [name])

        def come() -> None:
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    else:

        def go() -> None:
            here.rename(here.with_name("away"))

        def come() -> None:
            shutil.rmtree(here, ignore_errors=True)  # what a run put in its place
            here.with_name("away").rename(here)

    ended = play.during("batch_acknowledged", go, nth=3, partial=True)
    come()
    counted = ended.summary["inserted"]
    if not 15 <= counted <= len(play.target.content()):
        raise Wrong(f"LOST: {counted} inserted are told where {len(play.target.content())} rows are")
    play.said.clear()
    play.settle(quiet=True)
