"""The six sample syncs end to end: real commands, real servers, compared by SQL that retl never sees."""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from retl_demo import oracle, warehouse
from retl_demo.oracle import LANDINGS, Motion
from tests import sample, servers
from tests.sample import Sample, landing

USERS = 20_000
CHANGED = 200
BROKEN = "UPDATE mart_user_segments SET segment = 'bogus' WHERE user_id <= format('u{{:06d}}', {})"


@pytest.fixture
def project(
    tmp_path: Path, postgres: servers.Database, redis_server: servers.RedisServer
) -> Iterator[Sample]:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    with sample.opened(tmp_path / "project", postgres, redis_server, scratch) as opened:
        yield opened


def settled(project: Sample, name: str, wanted: Motion) -> Motion:
    """The table's own statistics, once PostgreSQL has caught up with `wanted`; at the latest after 10 s."""
    deadline = time.monotonic() + 10
    while (now := oracle.written(project.targets, landing(name))) != wanted and time.monotonic() < deadline:
        time.sleep(0.1)
    return now


def test_all_six_targets_hold_exactly_what_the_marts_say(project: Sample) -> None:
    wanted = project.expected()
    first = project.sync("--all")
    assert first.code == 0, first.err
    assert {name: one["inserted"] for name, one in first.syncs.items()} == {
        name: len(rows) for name, rows in wanted.items()
    }
    assert project.faults(wanted) == {}
    before = project.everything()
    second = project.sync("--all")
    assert second.code == 0, second.err
    assert all(one["unchanged"] == one["read"] == len(wanted[name]) for name, one in second.syncs.items())
    after = project.everything()
    assert {name for name in before | after if before.get(name) != after.get(name)} <= {
        name for name in after if name.startswith(f"file {project.folder / '.retl'}")
    } | {f"file {project.folder}"}


def test_of_twenty_thousand_rows_only_the_changed_ones_are_written(project: Sample) -> None:
    assert project.sync("--sync", "user_segments").code == 0
    assert settled(project, "user_segments", Motion(inserted=USERS)) == Motion(inserted=USERS)
    assert warehouse.change(project.warehouse) == CHANGED
    second = project.sync("--sync", "user_segments").syncs["user_segments"]
    assert (second["read"], second["updated"], second["inserted"]) == (USERS, CHANGED, 0)
    wanted = Motion(inserted=USERS, updated=CHANGED)
    assert settled(project, "user_segments", wanted) == wanted


def test_after_a_change_all_six_targets_follow_and_nothing_else_moves(project: Sample) -> None:
    before = project.expected()
    assert project.sync("--all").code == 0
    warehouse.change(project.warehouse)
    wanted = project.expected(before)
    second = project.sync("--all")
    assert second.code == 0, second.err
    due = {name: oracle.motion(before[name], wanted[name]) for name in wanted}
    told = {
        name: Motion(one["inserted"], one["updated"], one["deleted"]) for name, one in second.syncs.items()
    }
    assert told == due
    assert project.faults(wanted) == {}


def test_a_customer_who_drops_to_three_recommendations_has_three(project: Sample) -> None:
    assert project.sync("--sync", "product_recommendations").code == 0
    count = "SELECT n, count(*) FROM (SELECT count(*) AS n FROM crm.product_recommendations GROUP BY customer_id) per GROUP BY n ORDER BY n"
    with psycopg.connect(**project.targets.postgres, autocommit=True) as connection:
        assert [n for n, _ in connection.execute(count)] == [5]
        warehouse.change(project.warehouse)
        assert project.sync("--sync", "product_recommendations").code == 0
        assert connection.execute(count).fetchall()[0] == (3, CHANGED)


@pytest.mark.parametrize("state", ["postgresql", *(["files"] if os.environ.get("RETL_TEST_ALL") else [])])
def test_a_dry_run_writes_nothing_anywhere_and_tells_the_next_run_s_numbers(
    project: Sample, postgres: servers.Database, state: str
) -> None:
    url = {"RETL_STATE_URL": postgres.url} if state == "postgresql" else {}
    situations = {
        "first": lambda: None,
        "unchanged": lambda: None,
        "changed": lambda: warehouse.change(project.warehouse),
        "rejects": lambda: project.mart(BROKEN.format(50)),
    }
    for name, happen in situations.items():
        happen()
        before = project.everything()
        dry = project.sync("--all", "--dry-run", **url)
        assert dry.code == 0, (name, dry.err)
        assert {one["status"] for one in dry.syncs.values()} <= {"SUCCESS", "SUCCESS_WITH_REJECTS"}
        assert project.everything() == before, name
        run = project.sync("--all", **url)
        assert project.everything() != before, name
        assert run.counts == dry.counts, name
        assert run.code == 0, (name, run.err)
        assert {n: one["status"] for n, one in run.syncs.items()} == {
            n: one["status"] for n, one in dry.syncs.items()
        }
    assert run.syncs["user_segments"]["rejected"] == 50


def test_a_fresh_empty_directory_carries_on_from_a_ledger_in_postgresql(
    project: Sample, postgres: servers.Database, tmp_path: Path
) -> None:
    url = {"RETL_STATE_URL": postgres.url}
    wanted = project.expected()
    killed = project.process("sync", "--all", RETL_CRASH_AT="batch_acknowledged:25", **url)
    assert killed.code == -9
    assert project.faults(wanted)
    fresh = tmp_path / "fresh"
    shutil.copytree(project.folder, fresh, ignore=shutil.ignore_patterns(".retl"))
    assert not (project.folder / ".retl").exists()
    assert project.sync("--all", folder=fresh, **url).code == 0
    assert project.faults(wanted) == {}
    again = project.sync("--all", folder=fresh, **url)
    assert again.code == 0, again.err
    assert all(one["unchanged"] == one["read"] for one in again.syncs.values())


def test_a_typo_is_named_with_line_and_column_and_what_was_meant(project: Sample) -> None:
    path = project.folder / "syncs" / "user_segments.yml"
    path.write_text(path.read_text().replace("freshness: 26h", "freshnes: 26h"))
    line = path.read_text().splitlines().index("freshnes: 26h") + 1
    answer = project.sync("--sync", "user_segments")
    assert answer.code == 2
    assert f"syncs/user_segments.yml:{line}:1" in answer.err
    assert "freshness" in answer.err
    assert not (project.folder / ".retl").exists()


def test_a_missing_variable_is_named_with_its_place(project: Sample) -> None:
    answer = project.sync("--sync", "churn_campaign", CAMPAIGN_TOKEN="")
    assert answer.code == 2
    assert "CAMPAIGN_TOKEN" in answer.err
    assert re.search(r"retl\.yml:\d+", answer.err)
    assert project.targets.campaigns.requests == 0
    assert project.sync("--sync", "user_segments", CAMPAIGN_TOKEN="").code == 0


def test_a_column_that_vanished_from_the_mart_is_refused(project: Sample) -> None:
    assert project.sync("--sync", "user_segments").code == 0
    before = project.everything()
    project.mart("ALTER TABLE mart_user_segments DROP COLUMN lifetime_value")
    answer = project.sync("--sync", "user_segments")
    assert answer.code == 3, answer.out
    (guard,) = answer.syncs["user_segments"]["guards"]
    assert guard["code"] == "SOURCE_DRIFT"
    assert "lifetime_value" in guard["message"]
    after = project.everything()
    assert {k: v for k, v in after.items() if not k.startswith("file ")} == {
        k: v for k, v in before.items() if not k.startswith("file ")
    }


def test_rows_without_a_usable_key_are_rejects_and_cost_only_themselves(project: Sample) -> None:
    project.mart(
        "UPDATE mart_user_segments SET user_id = NULL WHERE user_id = 'u000001'",
        "UPDATE mart_user_segments SET user_id = '  ' WHERE user_id = 'u000002'",
        "UPDATE mart_user_segments SET user_id = 'u000004' WHERE user_id = 'u000003'",
    )
    answer = project.sync("--sync", "user_segments")
    told = answer.syncs["user_segments"]
    assert answer.code == 0, answer.err
    assert told["status"] == "SUCCESS_WITH_REJECTS"
    assert (told["rejected"], told["inserted"]) == (4, USERS - 4)
    codes = sorted(one["code"] for one in told["rejects"])
    assert codes == ["KEY_BLANK", "KEY_DUPLICATE", "KEY_DUPLICATE", "KEY_NULL"]
    wanted = project.expected()["user_segments"]
    good = {
        key: row
        for key, row in wanted.items()
        if key[0] is not None and key[0].strip() and key[0] != "u000004"
    }
    one = landing("user_segments")
    assert not oracle.compare(good, oracle.held(project.targets, one), one)


@pytest.mark.parametrize(("bad", "passes"), [(1000, True), (1001, False)])
def test_exactly_five_percent_rejects_pass_and_one_more_is_refused(
    project: Sample, bad: int, passes: bool
) -> None:
    project.mart(BROKEN.format(bad))
    answer = project.sync("--sync", "user_segments")
    told = answer.syncs["user_segments"]
    there = len(oracle.held(project.targets, landing("user_segments")))
    if passes:
        assert (answer.code, told["status"]) == (0, "SUCCESS_WITH_REJECTS")
        assert (told["rejected"], there) == (bad, USERS - bad)
    else:
        assert (answer.code, told["status"]) == (3, "REFUSED")
        assert [guard["code"] for guard in told["guards"]] == ["REJECT_RATE"]
        assert told["rejected"] == bad
        assert project.tables() == {}


@pytest.mark.parametrize(
    ("sync", "port"), [("user_segments", "POSTGRES_PORT"), ("recommendations", "REDIS_PORT")]
)
def test_a_server_out_of_reach_is_one_sentence_without_traceback_or_password(
    project: Sample, sync: str, port: str
) -> None:
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        number = str(taken.getsockname()[1])
        answer = project.sync("--sync", sync, **{port: number})
    assert answer.code == 1
    error = answer.syncs[sync]["error"]
    assert error["message"]
    assert number in error["message"]
    assert "\n" not in error["message"]
    said = answer.out + answer.err
    assert "Traceback" not in said
    assert str(project.targets.postgres["password"]) not in said
    assert str(project.targets.redis["password"]) not in said


def test_the_oracle_knows_every_sync_of_the_project() -> None:
    files = (warehouse.project() / "syncs").glob("*.yml")
    assert {one.sync for one in LANDINGS} == {path.stem for path in files}
