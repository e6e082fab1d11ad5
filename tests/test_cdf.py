"""A run that follows what the source reports: only that is read, and the target is that of a whole read."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from tests.commands import Workshop
from tests.servers import RedisServer

PROPERTIES = {"delta.enableChangeDataFeed": "true"}


@pytest.fixture
def lake(tmp_path: Path, redis_server: RedisServer) -> Workshop:
    workshop = Workshop(tmp_path / "shop")
    workshop.use(redis=redis_server)
    workshop.write("retl.yml", "sources:\n  lake: {type: delta, root: lake}\n")
    write(workshop, {n: n for n in range(20)})
    follow(workshop)
    return workshop


def follow(workshop: Workshop, **parts: str) -> None:
    lines = {
        "source": "{from: lake, table: users}",
        "key": "[user_id]",
        "changes": "cdf",
        "deletes": "delete",
    }
    workshop.sync("s", **{**lines, "guards": "{max_delete_rate: 1, max_reject_rate: 1}", **parts})


def write(workshop: Workshop, rows: dict[int, int]) -> None:
    table = pa.table(
        {"user_id": pa.array(list(rows), pa.int64()), "score": pa.array(list(rows.values()), pa.int64())}
    )
    write_deltalake(str(workshop.folder / "lake/users"), table, mode="overwrite", configuration=PROPERTIES)


def table(workshop: Workshop) -> DeltaTable:
    return DeltaTable(str(workshop.folder / "lake/users"))


def upsert(workshop: Workshop, rows: dict[int, int]) -> None:
    given = pa.table(
        {"user_id": pa.array(list(rows), pa.int64()), "score": pa.array(list(rows.values()), pa.int64())}
    )
    merge = table(workshop).merge(given, "t.user_id = s.user_id", source_alias="s", target_alias="t")
    merge.when_matched_update_all().when_not_matched_insert_all().execute()


def run(workshop: Workshop, *words: str) -> dict[str, Any]:
    (found,) = workshop.json("sync", *words)["syncs"]
    return dict(found)


def held(redis_server: RedisServer) -> dict[int, str]:
    client = redis_server.client()
    return {int(k[2:]): client.get(k).decode() for k in client.scan_iter("s:*")}


def mart(workshop: Workshop) -> dict[int, str]:
    rows = pa.table(table(workshop).scan(["user_id", "score"])).to_pylist()
    return {row["user_id"]: f'{{"score":{row["score"]}}}' for row in rows}


def test_only_changes_are_read(lake: Workshop, redis_server: RedisServer) -> None:
    assert run(lake)["inserted"] == 20
    upsert(lake, {1: 100, 50: 50})
    table(lake).delete("user_id IN (3, 4)")
    found = run(lake)
    assert (found["read"], found["inserted"], found["updated"], found["deleted"]) == (2, 1, 1, 2)
    assert held(redis_server) == mart(lake)
    assert run(lake)["read"] == 0


def test_nothing_new_reads_nothing_and_says_nothing(lake: Workshop) -> None:
    run(lake)
    assert "every row of the source was read" not in lake.retl("plan", "--sync", "s").out


def test_a_history_that_is_gone_is_read_whole_and_said(lake: Workshop, redis_server: RedisServer) -> None:
    run(lake)
    shutil.rmtree(lake.folder / "lake/users")
    write(lake, {n: n + 1 for n in range(15)})
    said = lake.retl("plan", "--sync", "s")
    assert "every row of the source was read" in said.out + said.err
    run(lake)
    assert held(redis_server) == mart(lake)


def test_a_rejected_row_is_read_again(lake: Workshop, redis_server: RedisServer) -> None:
    contract = "{user_id: {type: integer}, score: {type: integer, le: 1000}}"
    follow(lake, contract=contract)
    run(lake)
    upsert(lake, {1: 5000, 2: 22})
    assert (run(lake)["rejected"], held(redis_server)[2]) == (1, '{"score":22}')
    found = run(lake)
    assert (found["read"], found["rejected"]) == (1, 1)
    upsert(lake, {1: 500})
    assert run(lake)["updated"] == 1
    assert held(redis_server) == mart(lake)


def test_a_limit_leaves_the_rest_for_the_next_run(lake: Workshop, redis_server: RedisServer) -> None:
    run(lake)
    upsert(lake, {n: n + 100 for n in range(10)})
    table(lake).delete("user_id = 15")
    assert run(lake, "--limit", "3")["updated"] == 3
    found = run(lake)
    assert (found["updated"], found["deleted"]) == (7, 1)
    assert held(redis_server) == mart(lake)


def test_a_key_that_stands_twice_is_noticed_by_the_number_of_rows(
    lake: Workshop, redis_server: RedisServer
) -> None:
    run(lake)
    twice = pa.table({"user_id": pa.array([5], pa.int64()), "score": pa.array([55], pa.int64())})
    write_deltalake(str(lake.folder / "lake/users"), twice, mode="append")
    said = lake.retl("plan", "--sync", "s")
    assert "FEED_GAP" in said.out + said.err
    assert run(lake)["rejected"] == 2


def test_a_check_is_asked_of_every_row(lake: Workshop) -> None:
    follow(lake, checks="['SELECT 1 FROM source HAVING count(*) < 20']")
    assert run(lake)["inserted"] == 20
    upsert(lake, {1: 100})
    assert (run(lake)["read"], lake.retl("sync").code) == (20, 0)


def test_any_history_ends_in_the_table(lake: Workshop, redis_server: RedisServer) -> None:
    random.seed(11)
    run(lake)
    for _ in range(12):
        for _ in range(random.randint(0, 3)):
            some = random.sample(range(40), 4)
            match random.choice(["upsert", "delete", "overwrite", "optimize"]):
                case "upsert":
                    upsert(lake, {n: random.randint(0, 9) for n in some})
                case "delete":
                    table(lake).delete(f"user_id IN ({', '.join(map(str, some))})")
                case "overwrite":
                    write(lake, {n: random.randint(0, 9) for n in random.sample(range(40), 20)})
                case "optimize":
                    table(lake).optimize.compact()
        run(lake)
        assert held(redis_server) == mart(lake)
