"""What a run may delete: nothing it cannot show to have delivered, and nothing for one bad row's sake."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api import TOKEN, Api, reset
from tests.commands import ROWS, Workshop
from tests.servers import Database, RedisServer

INSERTS = """
  connection: api
  insert: {method: POST, path: /v1/users/batch, wrap: users, max_rows: 100, row: {id: "$user_id", attributes: $fields}}
  delete: {method: DELETE, path: "/v1/users/{user_id}"}
  outcome: {ok: [200], partial: [207], rows: positional, at: results, row_ok: {at: status, in: [updated]}}"""


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as running:
        yield running


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path / "project")


def reach(workshop: Workshop, api: Api) -> None:
    workshop.write(
        "retl.yml",
        f'connections: {{api: {{type: http, base_url: "{api.url}", auth: {{type: bearer, token: "${{TOKEN}}"}}}}}}\n',
    )
    workshop.environment["TOKEN"] = TOKEN


def run(workshop: Workshop, *words: str, **more: str) -> dict[str, Any]:
    (found,) = workshop.retl("sync", *words, "--output", "json", **more).document["syncs"]
    return dict(found)


@pytest.mark.parametrize("end", ["crash", "no answer"])
def test_a_row_nobody_answered_for_is_not_ours_to_delete_where_keys_that_exist_are_kept(
    workshop: Workshop, api: Api, end: str
) -> None:
    reach(workshop, api)
    workshop.sync(
        "users",
        destination=INSERTS,
        write="insert_only",
        deletes="delete",
        first_run="send",
        delivery="at_most_once",
        batch="{rows: 10}",
    )
    if end == "crash":
        assert workshop.process("sync", RETL_CRASH_AT="batch_sending:2").code == -9
    else:
        api.faults.extend([lambda _: False, reset(applied=False)])
        assert run(workshop)["in_doubt"] == 10
    first = run(workshop)
    assert first["in_doubt"] == 10
    assert {3, 13} & set(api.users) == {3}
    workshop.warehouse("DELETE FROM users WHERE user_id IN (3, 13)")  # 13 was never answered for
    api.seen.clear()
    run(workshop)
    deleted = [path for method, path, *_ in api.seen if method == "DELETE"]
    assert deleted == ["/v1/users/3"]


# --- a mirror with bad rows in it, at each kind of target

CONTRACT = (
    "{user_id: {type: string}, email: {type: string},"
    " spend: {type: decimal, max_digits: 12, decimal_places: 2, ge: 0}}"
)
UPSERTS = INSERTS.replace("insert:", "upsert:")


class Mirrored:
    """A target of the sync `users`, looked into by a connection of its own."""

    def __init__(self, kind: str, workshop: Workshop, request: pytest.FixtureRequest) -> None:
        self.kind, self._request = kind, request
        workshop.warehouse("ALTER TABLE users ALTER user_id TYPE VARCHAR")  # as addresses have it
        if kind == "postgres":
            workshop.use(postgres=request.getfixturevalue("postgres"))
        elif kind == "redis":
            workshop.use(redis=request.getfixturevalue("redis_server"))
        else:
            reach(workshop, request.getfixturevalue("api"))
        self.destination = {
            "postgres": "{type: postgres, table: crm.users, create: true}",
            "redis": '{type: redis, key: "users:{user_id}", value: json, ttl: none}',
            "http": UPSERTS,
        }[kind]

    def rows(self) -> dict[int, dict[str, Any]]:
        if self.kind == "http":
            api: Api = self._request.getfixturevalue("api")
            return {int(key): user for key, user in api.users.items()}
        if self.kind == "redis":
            server: RedisServer = self._request.getfixturevalue("redis_server")
            with server.client() as client:
                keys = sorted(client.keys("users:*"))
                return {int(key.decode().partition(":")[2]): json.loads(client.get(key)) for key in keys}
        database: Database = self._request.getfixturevalue("postgres")
        with database.connect() as connection:
            found = connection.execute("SELECT user_id, to_jsonb(u) FROM crm.users u").fetchall()
        return {int(key): row for key, row in found}


@pytest.fixture(params=["postgres", "redis", "http"])
def target(request: pytest.FixtureRequest, workshop: Workshop) -> Mirrored:
    return Mirrored(request.param, workshop, request)


def test_a_mirror_with_bad_rows_deletes_only_what_really_left_the_mart(
    workshop: Workshop, target: Mirrored
) -> None:
    lenient = {"contract": CONTRACT, "guards": "{max_reject_rate: 0.5}", "deletes": "delete"}
    workshop.sync("users", destination=target.destination, **lenient)
    assert run(workshop)["inserted"] == ROWS
    everybody = set(range(1, ROWS + 1))
    workshop.warehouse(
        "UPDATE users SET spend = -1 WHERE user_id = 4; INSERT INTO users FROM users WHERE user_id = 6;"
        " DELETE FROM users WHERE user_id = 7"
    )
    mixed = run(workshop)
    assert (mixed["rejected"], mixed["deleted"]) == (3, 1), mixed
    assert set(target.rows()) == everybody - {7}
    workshop.warehouse(
        "UPDATE users SET user_id = NULL WHERE user_id = 5; DELETE FROM users WHERE user_id = 8"
    )
    held = run(workshop)
    assert (held["rejected"], held["deleted"], held["deletes"]["not_attempted"]) == (4, 0, 2)
    assert set(target.rows()) == everybody - {7}
    workshop.warehouse(
        "UPDATE users SET user_id = 5 WHERE user_id IS NULL; UPDATE users SET spend = abs(spend)"
    )
    healed = run(workshop)
    assert (healed["rejected"], healed["deleted"]) == (2, 1)
    assert set(target.rows()) == everybody - {7, 8}
    assert float(target.rows()[4]["spend"]) == 1.0


def test_a_soft_delete_is_undone_when_the_row_comes_back(workshop: Workshop, target: Mirrored) -> None:
    workshop.sync(
        "users",
        destination=target.destination,
        contract=CONTRACT,
        guards="{max_reject_rate: 0.5}",
        deletes="{set: {status: deleted}, restore: {status: active}}",
    )
    if target.kind == "redis":  # whose values are whole: a field of one cannot be set by itself
        said = workshop.retl("sync")
        assert (said.code, "OPERATION_UNSUPPORTED" in said.err) == (2, True)
        return
    assert run(workshop)["inserted"] == ROWS
    workshop.warehouse(
        "CREATE TABLE kept AS FROM users; DELETE FROM users WHERE user_id IN (5, 6);"
        " UPDATE users SET spend = -1 WHERE user_id = 4"
    )
    assert run(workshop)["deleted"] == 2
    assert {key for key, row in target.rows().items() if row["status"] == "deleted"} == {5, 6}
    workshop.warehouse("INSERT INTO users FROM kept WHERE user_id = 5")
    assert run(workshop)["inserted"] == 1
    assert {key for key, row in target.rows().items() if row["status"] == "deleted"} == {6}
    assert len(target.rows()) == ROWS
