"""Scenes of backups: the ledger, the target or both go back in time, and what a refill owes then."""

from __future__ import annotations

from collections import Counter

from tests.test_then import listening
from tests.world.play import Play, Wrong
from tests.world.scenes import (
    CACHE,
    CLUSTER,
    EVERY,
    EXPORTS,
    FOLLOWING,
    KAFKA,
    MONGODB,
    MSSQL,
    MYSQL,
    POSTGRES,
    REFILLED,
    scene,
    terminate,
)

# Time goes backwards for the ledger.


@scene(
    "ledger restored from the day before",
    *EVERY,
    *EXPORTS,
    *KAFKA,
    "http",
    short=("append", "mirror", "sqlite append", "files, append", "snapshot"),
    ledgers=True,
)
def ledger_of_yesterday(play: Play) -> None:
    play.run()
    play.keep_ledger()
    play.next_day()
    play.run()
    play.restore_ledger()
    play.settle()


@scene(
    "ledger restored, and the mart moved on",
    *EVERY,
    *EXPORTS,
    "http",
    short=("upsert", "files"),
    ledgers=True,
)
def ledger_of_yesterday_and_a_new_day(play: Play) -> None:
    play.run()
    play.keep_ledger()
    for _ in range(2):
        play.next_day()
        play.run()
    play.restore_ledger()
    play.next_day()
    play.settle()


@scene(
    "ledger restored, and the values went back", "upsert", "mirror", "update_only", "json", short=("json",)
)
def ledger_of_yesterday_and_values_of_yesterday(play: Play) -> None:
    mart = play.target.project.mart
    play.run()
    play.keep_ledger()
    mart(
        "CREATE TABLE former AS FROM mart; UPDATE mart SET searches = searches + 1 WHERE hash(user_id) % 5 = 0"
    )
    play.run()
    play.restore_ledger()
    mart("CREATE OR REPLACE TABLE mart AS FROM former")
    play.settle()


@scene(
    "ledger restored, and a lost run sent the request that follows it",
    *EVERY,
    *EXPORTS,
    short=("mirror", "sqlite append"),
    ledgers=True,
)
def request_of_a_lost_run(play: Play) -> None:
    """It is sent once more, because nobody can know, but not without a word."""
    with listening() as server:
        play.follow(server.url)
        play.killed("run_finished")  # its request is recorded, and not sent
        play.keep_ledger()
        play.run()
        play.next_day()
        play.run()
        play.restore_ledger()
        play.settle()
        heard = Counter(path for _, path, _ in server.heard)
    twice = [path for path, times in heard.items() if times > 1]
    if twice and not any("it may have arrived twice" in note for note in play.notes):
        raise Wrong(f"DOUBLED {len(twice)} requests in silence")


@scene("a row came and left in the time that the restored ledger lost", "mirror", "mirror in Redis")
def a_row_of_the_lost_time(play: Play) -> None:
    mart = play.target.project.mart
    play.run()
    play.keep_ledger()
    mart("INSERT INTO mart VALUES ('short', 'new', 1, NULL)")
    play.run()
    play.restore_ledger()
    mart("DELETE FROM mart WHERE user_id = 'short'")
    play.settle()


@scene("a row left in the time that the restored ledger lost, and returned", "mirror", "mirror in Redis")
def a_row_that_left_in_the_lost_time(play: Play) -> None:
    mart = play.target.project.mart
    play.run()
    play.keep_ledger()
    mart("CREATE TABLE gone AS FROM mart WHERE user_id = 'user 000003'")
    mart("DELETE FROM mart WHERE user_id = 'user 000003'")
    play.run()
    play.restore_ledger()
    mart("INSERT INTO mart FROM gone")
    play.settle()


@scene("ledger restored, and the lost run was killed", *EVERY, *EXPORTS, "http", ledgers=True)
def ledger_before_a_killed_run(play: Play) -> None:
    play.run()
    play.keep_ledger()
    play.next_day()
    play.killed("batch_answered:2")
    play.restore_ledger()
    play.next_day()
    play.settle()


@scene("ledger kept in the middle of a run that died, then restored", *EVERY, *EXPORTS)
def ledger_of_a_killed_run(play: Play) -> None:
    play.run()
    play.next_day()
    play.killed("batch_acknowledged:2")
    play.keep_ledger()
    play.run()
    play.next_day()
    play.run()
    play.restore_ledger()
    play.settle()


@scene("ledger restored to before the first run", *EVERY, *EXPORTS)
def ledger_before_everything(play: Play) -> None:
    play.killed("run_started")
    play.keep_ledger()
    play.run()
    play.next_day()
    play.run()
    play.restore_ledger()
    play.next_day()
    play.settle()


@scene("two machines take turns with copies of one ledger", *EVERY, *EXPORTS, *KAFKA, short=("append",))
def two_copies_of_a_ledger(play: Play) -> None:
    play.run()
    play.keep_ledger()
    play.next_day()
    play.run()
    play.restore_ledger()
    play.next_day()
    ended = play.run()
    if ended.code:
        return play.settle()
    play.next_day()
    return play.settle()


# Time goes backwards for the target.


@scene(
    "target restored from the day before",
    *EVERY,
    *EXPORTS,
    *KAFKA,
    short=(
        "append",
        "mirror",
        "json",
        "sqlite mirror",
        "duckdb append",
        "files, snapshot",
        "stream",
        "partitioned append",
        "mongodb mirror",
        "mssql append",
    ),
    ledgers=True,
)
def target_of_yesterday(play: Play) -> None:
    play.run()
    play.keep_target()
    play.next_day()
    play.run()
    play.restore_target()
    play.settle()


@scene("target restored, and the mart moved on", *EVERY, *EXPORTS, ledgers=True)
def target_of_yesterday_and_a_new_day(play: Play) -> None:
    play.run()
    play.keep_target()
    for _ in range(2):
        play.next_day()
        play.run()
    play.restore_target()
    play.next_day()
    play.settle()


@scene("target restored, only its table", *POSTGRES, short=("upsert",))
def table_of_yesterday(play: Play) -> None:
    target = play.table
    play.run()
    target.execute("CREATE TABLE crm.backup AS TABLE crm.users")
    play.next_day()
    play.run()
    target.execute("TRUNCATE crm.users; INSERT INTO crm.users TABLE crm.backup")
    play.settle()


@scene(
    "target kept in the middle of a run, then restored",
    *CACHE,
    *CLUSTER,
    *MONGODB,
    *MYSQL,
    *MSSQL,
    short=("stream", "mysql append"),
)
def target_of_the_middle_of_a_run(play: Play) -> None:
    play.run()
    play.next_day()
    play.during("batch_acknowledged", play.keep_target, nth=3)
    play.restore_target()
    play.settle()


@scene("target restored to before a killed run", *EVERY, *EXPORTS)
def target_before_a_killed_run(play: Play) -> None:
    play.run()
    play.keep_target()
    play.next_day()
    play.killed(f"batch_acknowledged:{1 if play.target.at_once else 3}")
    play.restore_target()
    play.settle()


@scene("target restored between a lost answer and its recovery", *EVERY, *EXPORTS)
def target_before_a_lost_answer(play: Play) -> None:
    play.run()
    play.keep_target()
    play.next_day()
    play.killed("batch_answered:2")
    play.restore_target()
    play.next_day()
    play.settle()


@scene("ledger and target restored to one moment", *EVERY, *EXPORTS, ledgers=True)
def both_of_yesterday(play: Play) -> None:
    play.run()
    play.keep_ledger()
    play.keep_target()
    play.next_day()
    play.run()
    play.restore_ledger()
    play.restore_target()
    play.settle(quiet=True)


@scene("target restored to before the restored ledger", *EVERY, *EXPORTS)
def target_older_than_ledger(play: Play) -> None:
    play.run()
    play.keep_target()
    play.next_day()
    play.run()
    play.keep_ledger()
    play.next_day()
    play.run()
    play.restore_ledger()
    play.restore_target()
    play.settle()


@scene("ledger restored to before the restored target", *EVERY, *EXPORTS)
def ledger_older_than_target(play: Play) -> None:
    play.run()
    play.keep_ledger()
    play.next_day()
    play.run()
    play.keep_target()
    play.next_day()
    play.run()
    play.restore_ledger()
    play.restore_target()
    play.settle()


# What a refill owes is owed until it is delivered.


def _restored_target(play: Play) -> None:
    """Every row is there, and stale: nothing but the trace tells it."""
    play.run()
    play.keep_target()
    play.target.project.mart("UPDATE mart SET searches = searches + 1")
    play.run()
    play.restore_target()


@scene("target restored, `--full` killed", *FOLLOWING, "json", "mirror in Redis", short=("upsert", "json"))
def a_killed_refill(play: Play) -> None:
    _restored_target(play)
    play.killed("batch_acknowledged:3", "--full")
    play.settle()


@scene("target restored, `--full` killed twice", *FOLLOWING, "json")
def a_refill_killed_twice(play: Play) -> None:
    _restored_target(play)
    play.killed("batch_acknowledged:3", "--full")
    play.killed("batch_answered:2", "--full")
    play.settle()


@scene("target restored, `--full` stopped by SIGTERM", *FOLLOWING, "json")
def a_stopped_refill(play: Play) -> None:
    _restored_target(play)
    play.during("batch_acknowledged", terminate, "--full", nth=3, partial=True)
    play.settle()


@scene("target restored, `--full --limit 10`", *FOLLOWING, "json", short=("mirror",))
def a_limited_refill(play: Play) -> None:
    _restored_target(play)
    play.run("--full", "--limit", "10", partial=True)
    play.settle()


@scene("target restored, `--full --key` of one row", *FOLLOWING, "json")
def a_refill_of_one_row(play: Play) -> None:
    _restored_target(play)
    play.run("--full", "--key", "user 000002", partial=True)
    play.settle()


@scene("target restored, `--where` of some rows", *FOLLOWING, "json")
def a_refill_of_some_rows(play: Play) -> None:
    _restored_target(play)
    play.run("--where", "user_id < 'user 000010'", partial=True)
    play.settle()


@scene("target restored, `--full` killed, and the mart moved on", *FOLLOWING, "json")
def a_killed_refill_and_a_new_day(play: Play) -> None:
    _restored_target(play)
    play.killed("batch_acknowledged:3", "--full")
    play.next_day()
    play.settle()


@scene("emptied, the refill stopped by SIGTERM", "upsert", "mirror", *REFILLED, short=("ttl",))
def emptied_and_a_stopped_refill(play: Play) -> None:
    play.run()
    play.next_day()
    play.run()
    play.target.lose_all()
    ended = play.run(partial=True)
    words = ("--full",) if ended.code else ()
    play.target.lose_all()
    play.during("batch_acknowledged", terminate, *words, nth=5, partial=True)
    play.settle()


@scene("emptied, the refill killed near its end", "upsert", "mirror", *REFILLED)
def emptied_and_a_killed_refill(play: Play) -> None:
    play.run()
    play.target.lose_all()
    words = () if "ttl" in type(play.target).sync.replace("ttl: none", "") else ("--full",)
    play.killed("batch_acknowledged:22", *words)
    play.settle()
