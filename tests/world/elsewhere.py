"""Scenes of addresses, copies, other owners, applications and clocks."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psycopg

from tests.crashes import Ended
from tests.proxy import Proxy
from tests.world.hosts import FAKETIME, Cache, PgBouncer, Replica, Standby
from tests.world.play import Play, Wrong, error
from tests.world.scenes import ALL, CACHE, HTTP, POSTGRES, scene
from tests.world.targets import InPostgres, InRedis, copied

# An address is only where to knock.


def _reach(play: Play, host: str, port: int) -> None:
    target = play.target
    assert isinstance(target, InPostgres | InRedis)
    target.reached = replace(target.reached, host=host, port=port)
    target.project.environ |= target.environ()


def _moved(play: Play) -> None:
    play.next_day()
    play.run()
    play.next_day()
    play.settle(quiet=True)


@scene("reached as localhost, then as 127.0.0.1", *ALL)
def another_name(play: Play) -> None:
    yml = play.target.folder / "retl.yml"
    text = yml.read_text()
    yml.write_text(text.replace("127.0.0.1", "localhost"))
    play.run()
    yml.write_text(text)
    _moved(play)


@scene("reached at another port", *ALL, short=("append", "mirror"))
def another_port(play: Play) -> None:
    play.run()
    host, port = _address(play)
    proxy = play.hold.enter_context(Proxy(host, port))
    _reach(play, proxy.host, proxy.port)
    _moved(play)


@scene("reached at another port, and the ledger is restored", "append", "mirror", "json")
def another_port_and_an_old_ledger(play: Play) -> None:
    play.run()
    play.keep_ledger()
    host, port = _address(play)
    proxy = play.hold.enter_context(Proxy(host, port))
    _reach(play, proxy.host, proxy.port)
    play.next_day()
    play.run()
    play.restore_ledger()
    play.settle()


@scene("through PgBouncer in session mode from now on", *POSTGRES, needs="PgBouncer")
def through_a_pooler(play: Play) -> None:
    play.run()
    pooler = PgBouncer(play.hosts.folder(), _table(play).database, "session").start()
    play.hold.callback(pooler.stop)
    _reach(play, pooler.host, pooler.port)
    _moved(play)


@scene("through PgBouncer in transaction mode", *POSTGRES, needs="PgBouncer")
def through_a_pooler_of_transactions(play: Play) -> None:
    """It cannot work: one clear refusal, each time the same, and nothing is harmed for who connects well."""
    pooler = PgBouncer(play.hosts.folder(), _table(play).database, "transaction").start()
    play.hold.callback(pooler.stop)
    host, port = _address(play)
    _reach(play, pooler.host, pooler.port)
    codes = {(ended.code, error(ended)["code"]) for ended in (play.run(), play.run(), play.run())}
    if len(codes) != 1:
        raise Wrong(f"NOT ONE REFUSAL but {codes}")
    _reach(play, host, port)
    play.settle(quiet=True)


@scene("table A, then table B, then table A again", *POSTGRES, short=("upsert", "append"))
def another_table_and_back(play: Play) -> None:
    _there_and_back(play, "crm.users", "crm.others")


@scene("key template A, then B, then A again", *CACHE)
def another_template_and_back(play: Play) -> None:
    _there_and_back(play, '"user:{user_id}"', '"other:{user_id}"')


def _there_and_back(play: Play, here: str, there: str) -> None:
    project, sync = play.target.project, type(play.target).sync
    if isinstance(play.target, InPostgres):
        play.target.execute("CREATE TABLE crm.others (LIKE crm.users INCLUDING ALL)")
    play.run()
    project.define(sync.replace(here, there))
    for _ in range(3):
        play.next_day()
        play.run(partial=True)
    project.define(sync)
    play.settle(quiet=True)


@scene("database A, then its copy, then A again", *POSTGRES)
def a_copy_and_back(play: Play) -> None:
    target = _table(play)
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
    target = _table(play)
    play.run()
    copy = copied(target.database)
    play.keep_ledger()
    play.next_day()
    target.project.environ["PG_DB"] = copy.dbname
    target.project.answered("sync", "--sync", "users", "--output", "json")
    target.project.environ["PG_DB"] = target.database.dbname
    play.restore_ledger()
    play.settle(quiet=True)


# A standby becomes the primary.


def _primary_behind_an_address(play: Play) -> tuple[Proxy, Proxy, Standby]:
    """The address clients know; the standby's own way to its primary; the standby."""
    cluster = _table(play).cluster
    address = play.hold.enter_context(Proxy(cluster.host, cluster.port))
    link = play.hold.enter_context(Proxy(cluster.host, cluster.port))
    standby = Standby(play.hosts.folder(), cluster, link.port)
    play.hold.callback(standby.stop)
    standby.start()
    _reach(play, address.host, address.port)
    return address, link, standby


def _fail_over(play: Play, address: Proxy, standby: Standby) -> None:
    target = _table(play)
    standby.promote()
    target.database = replace(target.database, port=standby.port)
    address.lead_to(standby.host, standby.port)


@scene("failover to a standby that had everything", *POSTGRES, own_server=True)
def failover(play: Play) -> None:
    address, _, standby = _primary_behind_an_address(play)
    play.run()
    play.next_day()
    play.run()
    standby.caught_up()
    _fail_over(play, address, standby)
    play.next_day()
    play.settle(quiet=True)


@scene("failover to a standby that lagged by a run", *POSTGRES, own_server=True)
def failover_with_lag(play: Play) -> None:
    address, link, standby = _primary_behind_an_address(play)
    play.run()
    standby.caught_up()
    link.refuse()
    play.next_day()
    play.run()
    _fail_over(play, address, standby)
    play.settle()


@scene("failover in the middle of a run to a standby that lagged", *POSTGRES, own_server=True)
def failover_during(play: Play) -> None:
    address, link, standby = _primary_behind_an_address(play)
    play.run()
    play.next_day()
    standby.caught_up()
    link.refuse()
    play.during("batch_acknowledged", lambda: _fail_over(play, address, standby), nth=3)
    play.settle()


@scene("server restarts in the middle of a run", *POSTGRES, own_server=True)
def restart_during(play: Play) -> None:
    play.run()
    play.next_day()
    play.during("batch_acknowledged", _table(play).cluster.restart, nth=3)
    play.settle()


@scene("cache restarts empty between runs", *CACHE, short=("json",))
def cache_restarted(play: Play) -> None:
    play.run()
    _cache(play).cache.lose_memory()
    play.next_day()
    play.settle()


@scene("cache restarts empty in the middle of a run", *CACHE, short=("json", "ttl"))
def cache_restarted_during(play: Play) -> None:
    play.run()
    play.next_day()
    play.during("batch_acknowledged", _cache(play).cache.lose_memory, nth=3)
    play.settle()


@scene("cache restarts empty in the middle of the first run", *CACHE)
def cache_restarted_during_the_first_run(play: Play) -> None:
    play.during("batch_acknowledged", _cache(play).cache.lose_memory, nth=20)
    play.settle()


@scene("cache restarts with an old file between runs", *CACHE)
def cache_restarted_with_an_old_file(play: Play) -> None:
    play.run()
    _save(play)
    play.next_day()
    play.run()
    _cache(play).cache.lose_memory()
    play.settle()


@scene("cache restarts with an old file in the middle of a run", *CACHE, short=("json",))
def cache_restarted_with_an_old_file_during(play: Play) -> None:
    play.run()
    _save(play)
    play.next_day()
    play.run()
    play.next_day()
    play.during("batch_acknowledged", _cache(play).cache.lose_memory, nth=3)
    play.settle()


@scene("cache saved and restarted in the middle of a run, some batches lost", *CACHE)
def cache_restarted_with_a_file_of_this_run(play: Play) -> None:
    play.run()
    play.next_day()
    lose = _cache(play).cache.lose_memory
    play.during("batch_acknowledged", {2: lambda: _save(play), 4: lose})
    play.settle()


@scene("replica that lagged is promoted", *CACHE)
def cache_failover(play: Play) -> None:
    target = _cache(play)
    primary, link, address, replica = _replicated(play)
    play.run()
    replica.caught_up(primary)
    link.refuse()
    play.next_day()
    play.run()
    replica.promote(primary.password)
    target.server = replica.address
    address.lead_to(replica.host, replica.port)
    play.settle()


@scene("replica that lagged is promoted in the middle of a run", *CACHE)
def cache_failover_during(play: Play) -> None:
    target = _cache(play)
    primary, link, address, replica = _replicated(play)
    play.run()
    replica.caught_up(primary)
    link.refuse()
    play.next_day()

    def promote() -> None:
        replica.promote(primary.password)
        target.server = replica.address
        address.lead_to(replica.host, replica.port)

    play.during("batch_acknowledged", promote, nth=4)
    play.settle()


@scene("replica that had everything is promoted", *CACHE)
def cache_failover_without_loss(play: Play) -> None:
    target = _cache(play)
    primary, _, address, replica = _replicated(play)
    play.run()
    play.next_day()
    play.run()
    replica.caught_up(primary)
    replica.promote(primary.password)
    target.server = replica.address
    address.lead_to(replica.host, replica.port)
    play.next_day()
    play.settle(quiet=True)


@scene("half of the keys evicted", "json", "mirror in Redis", "ttl")
def evicted(play: Play) -> None:
    play.run()
    _cache(play).lose(0.5)
    play.settle()


def _replicated(play: Play) -> tuple[Cache, Proxy, Proxy, Replica]:
    target = _cache(play)
    primary = target.cache
    address = play.hold.enter_context(Proxy(primary.host, primary.port))
    link = play.hold.enter_context(Proxy(primary.host, primary.port))
    replica = play.hosts.own_replica(play.server)
    play.hold.callback(replica.stop)
    replica.follow(primary, link.port)
    _reach(play, address.host, address.port)
    return primary, link, address, replica


def _save(play: Play) -> None:
    with _cache(play).cache.client() as client:
        client.save()


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
    target = _table(play)
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
    _table(play).execute(
        "DELETE FROM crm.users WHERE user_id = 'user 000004';"
        "INSERT INTO crm.users VALUES ('user 000004', 'theirs', -5, NULL)"
    )
    play.settle(hidden=True)


@scene("an application holds a lock on a row for a while", *POSTGRES)
def a_held_lock(play: Play) -> None:
    target = _table(play)
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
    target = _table(play)
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
    target = _table(play)
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
    target = _table(play)
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
    folder = Path(play.target.folder / ".retl")
    play.run()
    small = play.hosts.folder()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], check=True, capture_output=True
    )
    play.hold.callback(subprocess.run, ["umount", "-l", str(small)], check=False)
    shutil.copytree(folder, small / "retl")
    shutil.rmtree(folder)
    folder.symlink_to(small / "retl")
    with contextlib.suppress(OSError), (small / "filler").open("wb", buffering=0) as filler:
        while filler.write(b"0" * 4096):
            pass
    play.next_day()
    ended = play.run(partial=True)
    if ended.code == 0:
        raise Wrong("SUCCESS on a full disk")
    (small / "filler").unlink()
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


def _address(play: Play) -> tuple[str, int]:
    target = play.target
    assert isinstance(target, InPostgres | InRedis)
    return target.reached.host, target.reached.port


def _table(play: Play) -> InPostgres:
    assert isinstance(play.target, InPostgres)
    return play.target


def _cache(play: Play) -> InRedis:
    assert isinstance(play.target, InRedis)
    return play.target
