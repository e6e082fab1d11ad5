"""The Python API: a project opened once, its syncs run from a program."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

import retl
from retl.errors import DefinitionError
from tests import inprocess
from tests.commands import ROWS, Workshop
from tests.servers import RedisServer


@pytest.fixture
def shop(tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    workshop = Workshop(tmp_path / "shop")
    workshop.use(redis=redis_server)
    for name, value in workshop.environment.items():
        monkeypatch.setenv(name, value)
    workshop.sync("users", tags="[daily]")
    with inprocess.own_state():
        yield workshop


def test_a_sync_is_run_and_tells_what_became_of_it(shop: Workshop, redis_server: RedisServer) -> None:
    with retl.open(shop.folder) as session:
        first, second = session.sync("users"), session.sync("users")
    assert (first.status, first.counts.inserted, first.exit_code) == ("SUCCESS", ROWS, 0)
    assert (second.counts.inserted, second.counts.unchanged) == (0, ROWS)
    assert first.bytes > 0
    assert len(redis_server.client().keys("users:*")) == ROWS


def test_nothing_is_printed_and_the_programs_own_log_is_left_alone(
    shop: Workshop, capfd: pytest.CaptureFixture[str]
) -> None:
    before = structlog.get_config()
    with retl.open(shop.folder) as session:
        session.sync("users")
    assert capfd.readouterr() == ("", "")
    assert structlog.get_config() == before


def test_a_dry_run_leaves_no_state_behind(shop: Workshop) -> None:
    with retl.open(shop.folder) as session:
        summary = session.sync("users", dry_run=True)
    assert (summary.dry_run, summary.counts.inserted) == (True, ROWS)
    assert not (shop.folder / ".retl").exists()


def test_several_syncs_run_at_once_and_each_has_a_summary(shop: Workshop) -> None:
    shop.sync("others", tags="[weekly]")
    shop.sync("more", tags="[daily]", enabled="false")
    with retl.open(str(shop.folder)) as session:
        daily = session.run(tags=["daily"])
        everything = session.run(jobs=2, limit=3, full=True)
    assert [(one.sync, one.status) for one in daily] == [("users", "SUCCESS")]
    moved = [(one.sync, one.counts.inserted, one.counts.updated) for one in everything]
    assert moved == [("others", 3, 0), ("users", 0, 3)]
    assert [one.name for one in retl.open(shop.folder).select(["more"])] == ["more"]


def test_what_fails_is_a_summary_and_what_is_wrong_is_raised(shop: Workshop) -> None:
    shop.sync("lost", source="{table: nowhere}")
    with retl.open(shop.folder) as session:
        lost = session.sync("lost")
        assert (lost.status, lost.exit_code) == ("REFUSED", 3)
        assert lost.error is not None
        assert lost.error["code"] == "SOURCE_DRIFT"
        with pytest.raises(DefinitionError, match="SYNC_UNKNOWN"):
            session.sync("nobody")
        with pytest.raises(DefinitionError, match="GUARD_UNKNOWN"):
            session.sync("users", accept=["ROW_DORP"])
    shop.write("syncs/wrong.yml", "key: [x]\n")
    with pytest.raises(DefinitionError, match=r"wrong\.yml"):
        retl.open(shop.folder)


def test_a_session_that_is_asked_to_stop_starts_nothing_more(shop: Workshop) -> None:
    with retl.open(shop.folder) as session:
        session.stop.request(15)
        summary = session.sync("users")
    assert (summary.status, summary.exit_code) == ("BLOCKED", 143)
