"""Scenes of columns that somebody adds, renames, drops or retypes in the table between runs.

What does not concern a sync stays as it is; what no longer fits is refused before anything is written, and what the
hint says brings the table where the mart is. An append changes no row: those that were there stay as they are.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from tests.crashes import Ended
from tests.databases import ClickHouseShell, DuckDBShell, MsSqlShell, MySQLShell, SQLiteShell
from tests.world.play import Play, Wrong, error, remedies
from tests.world.scenes import CLICKHOUSE, FILES, MSSQL, MYSQL, scene
from tests.world.targets import InPostgres, InTable

TABLES = ("upsert", "mirror", "append", "update_only", "partitioned", *FILES, *MYSQL, *MSSQL)


class Words(Struct, frozen=True):
    """What a database calls it. `small` does not hold every integer."""

    add: str = "ADD COLUMN note VARCHAR(20)"
    retype: str = "ALTER COLUMN searches TYPE {}"
    small: str = "integer"
    large: str = "bigint"
    rename: str = "ALTER TABLE {} RENAME COLUMN segment TO part"


WORDS: dict[type, Words] = {
    InPostgres: Words(),
    SQLiteShell: Words(),
    DuckDBShell: Words(),
    MySQLShell: Words(retype="MODIFY COLUMN searches {}", small="INT"),
    MsSqlShell: Words(
        "ADD note nvarchar(20)",
        "ALTER COLUMN searches {}",
        "int",
        rename="EXEC sys.sp_rename N'{}.segment', N'part', 'COLUMN'",
    ),
    ClickHouseShell: Words(
        retype="MODIFY COLUMN searches {}", small="Nullable(Int32)", large="Nullable(Int64)"
    ),
}


def _words(play: Play) -> Words:
    target = play.target
    return WORDS[type(target.shell) if isinstance(target, InTable) else InPostgres]


def _table(play: Play) -> str:
    return "users" if isinstance(play.target, InTable) else "crm.users"


def _do(play: Play, statement: str) -> list[tuple[Any, ...]]:
    """As the owner of the table."""
    target, sql = play.target, statement.format(_table(play))
    play.story.append(sql)
    if isinstance(target, InTable):
        return target.shell.execute(sql)
    with play.table.database.connect() as connection:
        done = connection.execute(sql)
        return done.fetchall() if done.description else []


def _alter(play: Play, action: str) -> None:
    _do(play, f"ALTER TABLE {{}} {action}")


def _refused(play: Play, column: str) -> str:
    """The hint of a run that cannot write this column, is refused, and has written nothing."""
    held = "SELECT user_id, searches FROM {} ORDER BY user_id"
    before = _do(play, held)
    ended = play.target.project.answered(
        "sync", "--sync", "users", "--output", "json", RETL_LOG_LEVEL="error"
    )
    problem = error(ended)
    if ended.code != 3 or problem["code"] != "TARGET_DRIFT" or column not in problem["message"]:
        raise Wrong(f"NOT REFUSED because of {column}: {ended.code} {problem}")
    if _do(play, held) != before:
        raise Wrong("LOST: a refused run has written")
    play.said.append(problem["code"])
    return str(problem["hint"])


def _carried_out(play: Play, hint: str) -> None:
    """First the statements of a hint, then its command; or a plain run, if it names none."""
    statements = [one.strip() for one in hint.split(";") if one.strip().startswith("ALTER TABLE")]
    if not statements:
        raise Wrong(f"NO REMEDY in {hint!r}")
    for one in statements:
        _do(play, one)
    words = remedies(hint)[0][1:] if remedies(hint) else []
    play.said.append("`" + " ".join(["its DDL; sync", *words]) + "`")
    _delivered(play, *words)


def _delivered(play: Play, *words: str) -> None:
    """A run that gets through. Of an append, rows of the first day may lack the column; `--full` deletes nothing."""
    ended = _plain(play, *words)
    if ended.code:
        raise Wrong(f"STUCK {error(ended)}")
    found = play.target.difference()
    stale = [one for one in found.stale if play.target.changes or not one.startswith("user ")]
    extra = found.extra if "--full" not in words else ()
    if found.lost or extra or found.doubled or stale:
        raise Wrong(f"{found} after {' '.join(('sync', *words))}")


def _plain(play: Play, *words: str) -> Ended:
    return play.target.project.answered(
        "sync", "--sync", "users", *words, "--output", "json", RETL_LOG_LEVEL="error"
    )


def _settled(play: Play) -> None:
    if play.target.changes:
        play.settle(quiet=True)
    _delivered(play)


def _others_stay(play: Play, column: str) -> None:
    """Only rows of the second day lack what others keep there."""
    wanted = sorted(str(user) for user, *_ in play.target.content() if str(user).startswith("day"))
    found = sorted(str(user) for (user,) in _do(play, f"SELECT user_id FROM {{}} WHERE {column} IS NULL"))
    if found != wanted:
        raise Wrong(f"LOST what others keep in {column}: empty in {found[:3]}, and new are {wanted[:3]}")


@scene("somebody adds a column and fills it", *TABLES, short=("mssql mirror",))
def added(play: Play) -> None:
    play.run()
    _alter(play, _words(play).add)
    _do(play, "UPDATE {} SET note = 'theirs'")
    play.next_day()
    play.settle(quiet=True)
    _others_stay(play, "note")


@scene("somebody adds a column where whole rows are replaced", *CLICKHOUSE)
def added_to_whole_rows(play: Play) -> None:
    play.run()
    _alter(play, "ADD COLUMN note Nullable(String)")
    play.next_day()
    hint = _refused(play, "note")
    assert "MATERIALIZED" in hint
    _alter(play, "MODIFY COLUMN note String MATERIALIZED upper(user_id)")
    play.settle(quiet=True)


@scene("somebody renames a column", *TABLES, short=("append", "sqlite mirror"))
def renamed(play: Play) -> None:
    play.run()
    _do(play, _words(play).rename)
    play.next_day()
    _carried_out(play, _refused(play, "segment"))
    _settled(play)
    _others_stay(play, "part")


@scene("somebody drops a column", *TABLES, *CLICKHOUSE)
def dropped(play: Play) -> None:
    play.run()
    _alter(play, "DROP COLUMN segment")
    play.next_day()
    _carried_out(play, _refused(play, "segment"))
    _settled(play)


@scene(
    "somebody drops a column that `create` makes again",
    *TABLES,
    *CLICKHOUSE,
    short=("mssql upsert", "sqlite append"),
)
def made_again(play: Play) -> None:
    play.target.project.define(type(play.target).sync.replace("users}", "users, create: true}"))
    play.run()
    _alter(play, "DROP COLUMN segment")
    play.next_day()
    _delivered(play)
    _settled(play)


@scene(
    "somebody makes a column too small for every integer, and large again",
    *(kind for kind in TABLES if "sqlite" not in kind),
    *CLICKHOUSE,
)
def retyped(play: Play) -> None:
    """Too small a column is refused, or its values are judged one by one. In SQLite none gets another type."""
    words = _words(play)
    play.run()
    _alter(play, words.retype.format(words.small))
    play.next_day()
    ended = _plain(play)
    if ended.code and error(ended)["code"] != "TARGET_DRIFT":
        raise Wrong(f"FALSE REFUSAL {error(ended)}")
    if not ended.code and play.target.difference():
        raise Wrong(f"{play.target.difference()} after sync said SUCCESS")
    _alter(play, words.retype.format(words.large))
    _settled(play)
