"""`hours` of a connection: nothing is sent outside them, and a run that reaches their end goes on later."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from retl.ledger.database import SQLite
from retl.model import Hours
from retl.observe.summary import Summary
from tests import inprocess
from tests.commands import ROWS, Workshop
from tests.servers import RedisServer
from tests.watching import watched


def hours(start: str, end: str, timezone: str = "UTC") -> Hours:
    return Hours.model_validate({"from": start, "to": end, "timezone": timezone})


@pytest.mark.parametrize(
    ("given", "now", "closes", "opens"),
    [
        (hours("08:00", "18:00"), "11-28 07:59", None, "11-28 08:00"),
        (hours("08:00", "18:00"), "11-28 08:00", "11-28 18:00", "11-29 08:00"),
        (hours("08:00", "18:00"), "11-28 18:00", None, "11-29 08:00"),
        (hours("22:00", "06:00"), "11-28 23:00", "11-29 06:00", "11-29 22:00"),
        (hours("22:00", "06:00"), "11-28 05:59", "11-28 06:00", "11-28 22:00"),
        (hours("22:00", "06:00", "Europe/Berlin"), "11-28 21:30", "11-29 05:00", "11-29 21:00"),
        # the nights in which the clocks of Berlin change
        (hours("22:00", "06:00", "Europe/Berlin"), "03-28 22:00", "03-29 04:00", "03-29 20:00"),
        (hours("22:00", "06:00", "Europe/Berlin"), "10-24 21:00", "10-25 05:00", "10-25 21:00"),
        # 02:00 to 03:00 is skipped in March: hours inside it are left out, others begin or end with the skip
        (hours("02:30", "03:30", "Europe/Berlin"), "03-29 00:00", None, "03-29 01:00"),
        (hours("02:00", "02:45", "Europe/Berlin"), "03-29 01:10", None, "03-30 00:00"),
        (hours("22:00", "02:30", "Europe/Berlin"), "03-29 00:30", "03-29 01:00", "03-29 20:00"),
        (hours("22:00", "02:30", "Europe/Berlin"), "03-29 01:10", None, "03-29 20:00"),
        (hours("03:00", "02:00", "Europe/Berlin"), "03-28 02:30", "03-30 00:00", "03-30 01:00"),
        # and comes twice in October, as on the island whose clock is changed by half an hour
        (hours("02:30", "06:00", "Europe/Berlin"), "10-25 01:10", None, "10-25 01:30"),
        (hours("22:00", "02:30", "Europe/Berlin"), "10-25 00:10", "10-25 00:30", "10-25 01:00"),
        (hours("22:00", "02:30", "Europe/Berlin"), "10-25 00:40", None, "10-25 01:00"),
        (hours("01:45", "06:00", "Australia/Lord_Howe"), "04-04 15:05", None, "04-04 15:15"),
        (hours("23:59", "00:00"), "11-28 23:59", "11-29 00:00", "11-29 23:59"),
    ],
)
def test_hours_are_those_of_the_clock_on_the_wall(
    given: Hours, now: str, closes: str | None, opens: str
) -> None:
    def at(text: str) -> datetime:
        return datetime.strptime(f"2026-{text}", "%Y-%m-%d %H:%M").replace(tzinfo=UTC)

    assert given.closes(at(now)) == (at(closes) if closes else None)
    assert given.opens(at(now)) == at(opens)


@pytest.mark.parametrize(
    "text",
    [
        "{from: 22:00, to: 06:00}",
        '{from: "22:00", to: "25:00"}',
        '{from: "22:00", to: "22:00"}',
        '{from: "22:00", to: "06:00", timezone: Mars/Olympus}',
        '{from: "22:00"}',
    ],
)
def test_hours_that_cannot_be_meant_are_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        Hours.model_validate(yaml.safe_load(text))


@pytest.fixture
def shop(tmp_path: Path, redis_server: RedisServer) -> Iterator[Workshop]:
    made = Workshop(tmp_path / "shop")
    made.use(redis_server)
    made.sync("users", when="{every: 1h}", batch="{rows: 1}", destination=DESTINATION)
    with inprocess.own_state():
        yield made


DESTINATION = '{connection: cache, key: "users:{user_id}", value: json, ttl: none}'


def opened(shop: Workshop, start: timedelta, end: timedelta) -> None:
    """The connection's hours, relative to now."""
    now = datetime.now(UTC)
    shop.write(
        "retl.yml",
        'connections: {cache: {type: redis, host: "${REDIS_HOST}", port: "${REDIS_PORT}", db: "${REDIS_DB}",'
        f' password: "${{REDIS_PASSWORD:-}}", hours: {{from: "{now + start:%H:%M}", to: "{now + end:%H:%M}"}}}}}}\n',
    )


def test_outside_its_hours_a_connection_gets_nothing_and_the_run_comes_later(
    shop: Workshop, redis_server: RedisServer
) -> None:
    opened(shop, timedelta(hours=3), timedelta(hours=6))
    later = shop.retl("sync", "--output", "json")
    assert (later.code, later.document["syncs"][0]["status"]) == (75, "BLOCKED")
    assert "[OUTSIDE_HOURS]" in later.err
    assert shop.retl("sync", "--dry-run").code == 0
    with watched(shop) as made:
        made.turn()
        entry = made.watch._entries["users"]
        assert (made.statuses(), entry.failures) == ([("users", "BLOCKED")], 0)
        assert entry.rests is not None
        assert entry.rests > made.watch.hold.now() + timedelta(hours=2)
    with redis_server.client() as client:
        assert client.keys("users:*") == []
    opened(shop, timedelta(hours=-3), timedelta(hours=3))
    assert shop.retl("sync").code == 0


def test_a_run_that_was_blocked_just_before_its_hours_is_not_put_off_to_the_next_day(shop: Workshop) -> None:
    opened(shop, timedelta(hours=-3), timedelta(hours=3))
    blocked = Summary("users", None, "BLOCKED", 75, error={"code": "OUTSIDE_HOURS"})
    with watched(shop) as made:
        again = made.watch._opens(made.watch._entries["users"], blocked)
        assert again is not None
        assert again <= made.watch.hold.now()


def test_a_run_that_reaches_the_end_stops_after_its_batch_and_goes_on_in_the_next_hours(
    shop: Workshop, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger's clock reaches the end while the third batch is under way."""
    opened(shop, timedelta(hours=-3), timedelta(hours=3))
    ahead, sent = timedelta(0), 0

    def hears(text: str) -> None:
        nonlocal ahead, sent
        sent += text.count('"event": "batch_sending"')
        ahead = timedelta(hours=4) if sent >= 3 else ahead

    monkeypatch.setattr("retl.pace.limiter._TRUST", 0.0)
    with monkeypatch.context() as clock:
        clock.setattr(SQLite, "now", lambda _self: datetime.now(UTC) + ahead)
        said = inprocess.answer(
            ["sync", "--output", "json"], shop.environ(RETL_LOG_LEVEL="debug"), shop.folder, hears
        )
    assert said.code == 75, said.err
    (one,) = said.document["syncs"]
    assert (one["status"], one["error"]["code"]) == ("INTERRUPTED", "OUTSIDE_HOURS")
    assert (one["inserted"], one["not_attempted"], one["in_doubt"]) == (3, ROWS - 3, 0)
    with redis_server.client() as client:
        assert len(client.keys("users:*")) == 3
    after = shop.json("sync")["syncs"][0]
    assert (after["status"], after["inserted"], after["unchanged"]) == ("SUCCESS", ROWS - 3, 3)
