"""`retl watch`: when a sync runs, what one run stands for, and how the watch ends."""

from __future__ import annotations

import gc
import os
import resource
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from retl.app.watch import agenda
from retl.app.watch.agenda import Entry
from retl.cli.watching import sentence
from retl.errors import DefinitionError, Later
from retl.observe import log
from retl.project.definitions import Sync
from tests import inprocess
from tests.commands import ROWS, Workshop
from tests.servers import RedisServer
from tests.test_alerts import listening
from tests.watching import process, until, watched

NOON = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def a_sync(when: object) -> Sync:
    return Sync.model_validate(
        {"name": "a", "source": {"table": "t"}, "key": ["k"], "destination": {"type": "redis"}, "when": when}
    )


@pytest.fixture
def shop(tmp_path: Path, redis_server: RedisServer) -> Iterator[Workshop]:
    made = Workshop(tmp_path / "shop")
    made.use(redis_server)
    with inprocess.own_state():
        yield made


@pytest.mark.parametrize(
    ("when", "last", "first"),
    [
        ({"every": "1h"}, None, NOON),
        ({"every": "1h"}, NOON - HOUR / 2, NOON + HOUR / 2),
        ({"every": "1h"}, NOON - 5.5 * HOUR, NOON),
        ({"every": "1h", "catch_up": "skip"}, NOON - 5.5 * HOUR, NOON + HOUR / 2),
        ({"cron": "30 * * * *"}, None, NOON + HOUR / 2),
        ({"cron": "30 * * * *"}, NOON - HOUR / 4, NOON + HOUR / 2),
        ({"cron": "30 * * * *"}, NOON - 9 * HOUR, NOON),
        ({"cron": "30 * * * *", "catch_up": "skip"}, NOON - 9 * HOUR, NOON + HOUR / 2),
        ({"cron": "0 15 * * *", "timezone": "Europe/Berlin"}, NOON, NOON + 2 * HOUR),
        ("event", NOON, NOON),
        ({"event": True, "catch_up": "skip"}, NOON, None),
        ("changed", None, None),
        (["event", {"every": "1h", "catch_up": "skip"}], NOON, NOON),
    ],
)
def test_what_was_missed_is_run_once_or_skipped(
    when: object, last: datetime | None, first: datetime | None
) -> None:
    assert agenda.first(a_sync(when), last, NOON) == first


def test_a_time_of_the_clock_comes_once_on_the_days_when_clocks_change() -> None:
    berlin = a_sync({"cron": "30 2 * * *", "timezone": "Europe/Berlin"})
    spring, autumn = datetime(2026, 3, 28, 12, tzinfo=UTC), datetime(2026, 10, 24, 12, tzinfo=UTC)
    for day in (spring, autumn):
        moments, moment = [], day
        for _ in range(3):
            moment = agenda.following(berlin, moment) or day
            moments.append(moment)
        gaps = [later - earlier for earlier, later in pairwise(moments)]
        assert all(timedelta(hours=22) < gap < timedelta(hours=26) for gap in gaps), moments


def test_a_run_that_failed_is_tried_again_after_pauses_that_grow() -> None:
    entry = Entry(a_sync({"every": "1d"}), running=True)
    pauses = []
    for _ in range(9):
        assert entry.ended(1, NOON)
        assert entry.rests is not None
        pauses.append((entry.rests - NOON).total_seconds())
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    entry.run_id = "x"
    assert not entry.may_start(NOON)
    assert entry.may_start(NOON + timedelta(minutes=5))
    assert not entry.ended(3, NOON), "a guard's answer does not change by asking again"
    assert (entry.rests, entry.failures) == (None, 0)


def test_a_clock_that_was_set_back_makes_nobody_wait_for_the_time_it_showed(shop: Workshop) -> None:
    """The ledger's clock was a year ahead while a run began."""
    shop.sync("users", when="{every: 1h}")
    shop.sync("nightly", when="{cron: '0 6 * * *'}")
    with watched(shop) as made:
        hold, entries = made.watch.hold, made.watch._entries
        hold._moment += 365 * DAY
        made.turn()
        failed = entries["nightly"]
        failed.ended(1, hold.now())
        assert all(one.due and one.due > datetime.now(UTC) + 300 * DAY for one in entries.values())
        hold._moment -= 365 * DAY
        made.turn()
        assert entries["users"].due is not None
        assert entries["users"].due <= datetime.now(UTC) + HOUR
        assert failed.due is not None
        assert failed.due <= datetime.now(UTC) + DAY
        assert failed.rests is None
        due = entries["users"].due
        hold._moment -= timedelta(seconds=30)
        made.turn()
        assert entries["users"].due == due, "clocks differ a little, and a time of the clock comes once"


def test_a_watch_says_at_its_start_what_is_watched_and_what_each_sync_waits_for(shop: Workshop) -> None:
    shop.write("retl.yml", "warehouse: {path: data/warehouse.duckdb}\n")
    shop.sync("by_hour", when="{every: 1h}")
    shop.sync("by_mart", when="changed")
    shop.sync("both", when="[event, {cron: '0 6 * * *'}]")
    shop.environment["RETL_WATCH_TOKEN"] = "token-of-the-tests-0123456789"
    with watched(shop, listen="127.0.0.1:0") as made:
        plan = made.watch.plan
        port = made.watch.server.port if made.watch.server else None
    assert (plan["project"], plan["syncs"]) == (str(shop.folder), ["both", "by_hour", "by_mart"])
    assert plan["address"] == f"http://127.0.0.1:{port}"
    assert plan["next"]["by_mart"] == "changed"
    assert (plan["next"]["both"], plan["next"]["by_hour"]) == ("now, event", "now"), "they never ran"
    later = agenda.awaits(Entry(a_sync({"every": "1h"}), due=NOON + HOUR), NOON)
    assert later == "2026-11-28 13:00Z"
    said = sentence(plan)
    assert said.startswith(f"watching 3 syncs of {shop.folder}: both (")
    assert said.endswith(f"by_mart (changed); http://127.0.0.1:{port}/healthz")
    many = {**plan, "next": {f"s{number}": "changed" for number in range(12)}}
    assert "s9 (changed) and 2 more; " in sentence(many)


def test_a_sync_runs_when_its_file_changed_and_not_otherwise(shop: Workshop) -> None:
    shop.sync("users", when="{changed: {look: 1s}}")
    with watched(shop) as made:
        for view in made.watch._looks._views.values():
            view.every = 0.0  # every turn is a look
        for _ in range(4):
            made.turn()
        assert [(one.status, one.counts.inserted) for one in made.done] == [("SUCCESS", ROWS)]
        shop.warehouse("UPDATE users SET spend = spend + 1 WHERE user_id = 7")
        for _ in range(4):
            made.turn()
        assert [one.counts.updated for one in made.done] == [0, 1]
    with watched(shop) as made:  # nothing was missed
        for _ in range(4):
            made.watch._looks._views["users"].next = 0.0
            made.turn()
        assert made.done == []
    shop.warehouse("UPDATE users SET spend = spend + 1 WHERE user_id = 8")
    with watched(shop) as made:
        for _ in range(4):
            made.watch._looks._views["users"].next = 0.0
            made.turn()
        assert [one.counts.updated for one in made.done] == [1]


def test_a_source_that_cannot_be_looked_at_is_run_once_and_the_run_says_why(shop: Workshop) -> None:
    shop.write("retl.yml", "sources: {marts: {type: files, root: nowhere/here}}\n")
    shop.sync("users", source="{from: marts, path: '*.parquet'}", when="changed")
    with watched(shop) as made:
        for _ in range(3):
            made.watch._looks._views["users"].next = 0.0
            made.watch._entries["users"].rests = None
            made.turn()
        assert {(one.status, (one.error or {})["code"]) for one in made.done} == {("FAILED", "MART_MISSING")}


def test_many_requests_become_one_run_and_those_during_a_run_one_more(shop: Workshop) -> None:
    shop.environment["RETL_WATCH_TOKEN"] = "token-of-the-tests"
    shop.sync("users", when="{event: true, catch_up: skip}")
    with watched(shop, listen="127.0.0.1:0") as made:
        asked = {made.watch.ask("users") for _ in range(50)}
        assert len(asked) == 1
        made.watch.turn()
        during = {made.watch.ask("users") for _ in range(50)}
        until(lambda: not made.watch.running)
        made.turn()
        made.turn()
        assert [one.run_id for one in made.done] == [*asked, *during]
        assert made.watch.ask("nobody") is None


def test_syncs_that_are_due_together_run_as_one_invocation(shop: Workshop) -> None:
    shop.sync("first", when="{every: 1h}", source="{table: nowhere}")
    shop.sync("second", when="{every: 1h}", after="[first]")
    shop.sync("other", when="{every: 1h}")
    with watched(shop) as made:
        made.turn()
        assert sorted(made.statuses()) == [
            ("first", "REFUSED"),
            ("other", "SUCCESS"),
            ("second", "BLOCKED"),
        ]
        made.turn()
        assert len(made.done) == 3, "the next hour has not come, and after a refusal nothing is tried again"


def test_a_project_is_watched_by_one_process(shop: Workshop) -> None:
    shop.sync("users", when="{every: 1h}")
    with watched(shop):
        second = shop.retl("watch")
        assert second.code == 75
        assert "[LOCK_HELD]" in second.err
        with pytest.raises(Later, match="LOCK_HELD"), watched(shop):
            pass
        assert shop.retl("sync").code == 0, "a run by hand needs no watch"
    with watched(shop) as made:
        made.turn()


def test_a_stale_sync_is_an_alert_though_nobody_asks_for_its_status(shop: Workshop) -> None:
    shop.sync("users", when="{cron: '0 0 1 1 *'}", freshness="1h")
    with listening() as listener:
        shop.write("retl.yml", f'alerts: [{{to: {{webhook: "http://{listener.address}/x"}}, on: [stale]}}]\n')
        with watched(shop) as made:
            for _ in range(2):
                made.watch._renewed -= 60
                made.turn()
                until(made.watch._alerts.done)
        assert listener.events() == ["stale"]


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ({"when": "{every: 1h, cron: '* * * * *'}"}, "when"),
        ({"when": "{every: 10ms}"}, "greater than or equal to 1"),
        ({"when": "{cron: '0 25 * * *'}"}, "Bad hour"),
        ({"when": "{cron: '0 6 * * *', timezone: Europe/Atlantis}"}, "no time zone"),
        ({"when": "{changed: {notify: sales}}"}, "WHEN_UNKNOWN"),
        ({"when": "{changed: {notify: sales, look: 2s}}"}, "no effect"),
        ({}, "NOTHING_TO_WATCH"),
    ],
)
def test_a_wrong_when_is_an_error_before_anything_runs(
    shop: Workshop, parts: dict[str, str], code: str
) -> None:
    shop.sync("users", **parts)
    with pytest.raises(DefinitionError, match=code), watched(shop):
        pass
    assert not (shop.folder / ".retl").exists()


def test_a_stop_ends_the_runs_and_the_watch_without_starting_more(shop: Workshop) -> None:
    shop.sync("users", when="{every: 1s}")
    with watched(shop) as made:
        threading.Timer(0.3, lambda: made.watch.stop.request(signal.SIGTERM)).start()
        assert made.watch.run() == 128 + signal.SIGTERM
    assert made.watch.running == []
    assert {status for _, status in made.statuses()} <= {"SUCCESS", "INTERRUPTED", "BLOCKED"}


@pytest.mark.parametrize(("event", "ended"), [("delta_written", "INTERRUPTED"), ("run_finished", "SUCCESS")])
def test_a_run_ends_once_whenever_the_stop_comes(shop: Workshop, event: str, ended: str) -> None:
    shop.sync("users", when="{every: 1h}")
    with watched(shop) as made:

        def stop(name: str, _fields: object) -> None:
            if name == event:
                log.unlisten(stop)
                made.watch.stop.request(signal.SIGTERM)

        log.listen(stop)
        assert made.watch.run() == 128 + signal.SIGTERM
    assert [(one.status, one.error and one.error["code"]) for one in made.done] == [
        (ended, "SIGTERM" if ended == "INTERRUPTED" else None)
    ]


def test_a_cycle_that_finds_nothing_costs_little_and_leaves_nothing(shop: Workshop) -> None:
    cycles = 10_000 if os.environ.get("RETL_TEST_ALL") else 1_000
    shop.sync("users", when="changed")
    shop.sync("often", when="{every: 1h}")
    with watched(shop) as made:
        for _ in range(3):
            made.watch._looks._views["users"].next = 0.0
            made.turn()
        assert len(made.done) == 2
        before, began = _memory(), resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(cycles):
            made.watch._looks._views["users"].next = 0.0
            made.watch._looks.turn()
            made.watch.turn()
        ended = resource.getrusage(resource.RUSAGE_SELF)
        assert len(made.done) == 2
        seconds = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
        print(f"{seconds / cycles * 1000:.3f} ms of CPU a cycle")
        assert seconds / cycles < 0.05
        assert _memory() - before < 2_000_000


def test_runs_that_find_nothing_leave_nothing(shop: Workshop) -> None:
    """The first ones load code and fill caches: that of `typing` has the last 128 types, of ten objects each."""
    whole = bool(os.environ.get("RETL_TEST_ALL"))
    shop.sync("users", when="{every: 1d}")
    with watched(shop) as made:
        held = []
        for runs in (200, 1000) if whole else (5, 8):
            for _ in range(runs):
                made.done.clear()
                made.watch.ask("users")
                made.turn()
            gc.collect()
            files, threads = (len(os.listdir(f"/proc/self/{of}")) for of in ("fd", "task"))
            held.append((len(gc.get_objects()), files, threads, _memory()))
        (done,) = made.done
    assert (done.status, done.counts.unchanged) == ("SUCCESS", ROWS)
    objects, files, threads, memory = (after - before for before, after in zip(*held, strict=True))
    print(f"{objects} objects and {memory} bytes more after {runs} runs")
    assert objects < (runs if whole else 20 * runs)
    assert files <= 0
    assert threads <= 1  # of the pool, which has up to four
    assert not whole or memory < 8_000_000


def _memory() -> int:
    """Bytes that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_the_process_runs_reads_its_files_anew_and_ends_with_143(shop: Workshop) -> None:
    shop.sync("users", when="{changed: {look: 1s}}")
    with process(shop, "--output", "json") as made:
        made.says('"inserted": 30')
        shop.write("syncs/wrong.yml", "key: [x]\n")
        made.signal(signal.SIGHUP)
        made.says("definitions_broken")
        shop.warehouse("UPDATE users SET spend = spend + 1 WHERE user_id = 7")
        made.says('"updated": 1')
        (shop.folder / "syncs" / "wrong.yml").unlink()
        shop.sync("more", when="{every: 1d}")
        made.signal(signal.SIGHUP)
        made.says('"sync": "more", "run_id"')
        assert made.end(signal.SIGTERM) == 143
