"""Scenes of losses: somebody empties the target or makes it anew, between runs and during them."""

from __future__ import annotations

from tests.world.play import Play
from tests.world.scenes import (
    ALL,
    CACHE,
    CLICKHOUSE,
    EVERY,
    EXPORTS,
    FILES,
    KAFKA,
    MONGODB,
    POSTGRES,
    REFILLED,
    ROWS,
    scene,
)

# Somebody empties the target.


@scene(
    "emptied between runs",
    *EVERY,
    *EXPORTS,
    *KAFKA,
    short=(
        "upsert",
        "json",
        "ttl",
        "sqlite append",
        "clickhouse mirror",
        "mongodb append",
        "partitioned append",
        "kafka",
    ),
    ledgers=True,
)
def emptied(play: Play) -> None:
    play.run()
    play.target.lose_all()
    play.next_day()
    play.settle()


@scene("emptied, and the mart did not move", *EVERY, *EXPORTS)
def emptied_and_nothing_due(play: Play) -> None:
    play.run()
    play.target.lose_all()
    play.settle()


@scene("every row deleted, the traces stay", *ROWS)
def every_row_deleted(play: Play) -> None:
    play.run()
    play.target.lose(1.0)
    play.settle(hidden=not play.target.changes)  # who reads an append may take its rows away


@scene(
    "1 of 100 rows deleted, the traces stay",
    "upsert",
    "mirror",
    "append",
    *REFILLED,
    *FILES,
    *CLICKHOUSE,
    rows=2000,
)
def some_rows_deleted(play: Play) -> None:
    play.run()
    play.target.lose(0.01)
    play.settle(hidden=True)


@scene("table dropped", "upsert", "mirror", "append")
def dropped(play: Play) -> None:
    target = play.table
    play.run()
    target.drop()
    target.execute(target.table)
    play.next_day()
    play.settle()


@scene("table dropped and made anew, nothing due", *POSTGRES, short=("update_only",))
def made_anew(play: Play) -> None:
    play.run()
    play.table.make_anew()
    play.settle()


@scene("schema dropped and made anew with our traces", *POSTGRES)
def schema_made_anew(play: Play) -> None:
    target = play.table
    play.run()
    target.empty()
    play.settle()


@scene("emptied in the middle of a run", *ALL, *CLICKHOUSE, short=("upsert", "json"))
def emptied_during(play: Play) -> None:
    play.run()
    play.next_day()
    play.during("batch_acknowledged", play.target.lose_all, nth=3)
    play.settle()


@scene("emptied in the middle of the first run", *ALL, *CLICKHOUSE)
def emptied_during_the_first_run(play: Play) -> None:
    play.during("batch_acknowledged", play.target.lose_all, nth=12)
    play.settle()


@scene("emptied after the last batch of a run", *ALL, *CLICKHOUSE)
def emptied_after_the_last_batch(play: Play) -> None:
    play.during("batch_acknowledged", play.target.lose_all, nth=24)
    play.settle()


@scene("emptied while a run without changes looks", *ALL, *CLICKHOUSE)
def emptied_during_an_idle_run(play: Play) -> None:
    play.run()
    play.during("guards_judged", play.target.lose_all)
    play.settle()


@scene("table made anew in the middle of a run", *POSTGRES)
def made_anew_during(play: Play) -> None:
    play.run()
    play.next_day()
    play.during("batch_acknowledged", play.table.make_anew, nth=3)
    play.settle()


@scene("half of the rows deleted in the middle of a run", "upsert", "mirror", "append", "json")
def half_deleted_during(play: Play) -> None:
    play.run()
    play.next_day()
    play.during("batch_acknowledged", lambda: play.target.lose(0.5), nth=3, partial=True)  # no reset
    play.settle(hidden=not play.target.changes)


@scene("target restored in the middle of a run", *CACHE, *MONGODB, short=("mirror in Redis",))
def restored_during(play: Play) -> None:
    play.run()
    play.keep_target()
    play.next_day()
    play.run()
    play.next_day()
    play.during("batch_acknowledged", play.restore_target, nth=3)
    play.settle()


@scene("the killed run is followed by somebody who empties the target", *EVERY)
def killed_and_emptied(play: Play) -> None:
    play.run()
    play.next_day()
    play.killed("batch_acknowledged:2")
    play.target.lose_all()
    play.settle()
