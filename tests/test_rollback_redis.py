"""Runs into Redis that are taken back: images before the write, `retl rollback`, and what is held afterwards."""

from __future__ import annotations

import random
import sqlite3
import threading
from typing import Any

import pytest

from tests.commands import ROWS, Workshop
from tests.proxy import Proxy
from tests.redis_fixtures import client, proxied, proxy, workshop
from tests.servers import RedisServer
from tests.test_plans_and_state import run
from tests.test_reconcile import reconciled, verdicts
from tests.test_rollback import BAD, bad_run, rolled_back

__all__ = ["client", "proxied", "proxy", "workshop"]  # fixtures

Contents = dict[bytes, Any]


def contents(client: Any) -> Contents:
    """Every value of the sync, whatever its kind."""
    keys = sorted(client.scan_iter("users:*"))
    return {key: client.get(key) if client.type(key) == b"string" else client.hgetall(key) for key in keys}


def begun(workshop: Workshop, client: Any, value: str = "hash", **more: str) -> Contents:
    """Keys that a sync has filled, with an entry and bytes of others."""
    ttl = more.pop("ttl", "none")
    destination = f'{{type: redis, key: "users:{{user_id}}", value: {value}, ttl: {ttl}}}'
    given = {"destination": destination, "deletes": "delete", "rollback": "{keep: 30d}", "batch": "{rows: 7}"}
    workshop.sync("users", **given | more)
    assert run(workshop)["inserted"] == ROWS
    if value == "hash":
        for key in client.scan_iter("users:*"):
            client.hset(key, "note", b'\xff "theirs"\r\n')
    return contents(client)


@pytest.mark.parametrize("value", ["hash", "json", "{field: email}"])
def test_a_rollback_restores_every_value_and_no_run_undoes_it(
    workshop: Workshop, client: Any, value: str
) -> None:
    before = begun(workshop, client, value)
    bad = bad_run(workshop)
    after = contents(client)
    assert before != after
    planned, done = rolled_back(workshop, bad, "--dry-run"), rolled_back(workshop, bad)
    for one in (planned, done):
        assert (one["updated"], one["inserted"], one["deleted"]) == (5, 2, 2)
    assert contents(client) == before
    again = rolled_back(workshop, bad)
    assert (again["unchanged"], again["updated"], again["inserted"], again["deleted"]) == (9, 0, 0, 0)
    workshop.json("state", "resume", "users")
    for _ in range(2):
        kept = run(workshop)
        assert (kept["status"], kept["unchanged"], kept["deletes"]["planned"]) == ("SUCCESS", ROWS, 0)
    found = reconciled(workshop)
    assert (verdicts(found), found["held"]) == ({"same": ROWS - 7}, 9)
    rolled_back(workshop, done["run_id"], "--no-pause")
    assert contents(client) == after


def test_what_somebody_touched_since_stays_and_is_counted(workshop: Workshop, client: Any) -> None:
    begun(workshop, client)
    bad = bad_run(workshop)
    client.hset("users:1", "email", "human")
    client.hset("users:2", mapping={"email": "human", "spend": "9"})
    client.hset("users:3", "note", "theirs")
    client.delete("users:4")
    client.hset("users:100", "note", "ours now")
    client.hset("users:10", "email", "again")
    done = rolled_back(workshop, bad)
    said = "5 rows restored, 4 touched since and left alone, 1 of the restored ones only in part"
    assert said in str(done["notes"])
    held = contents(client)
    assert (held[b"users:1"][b"email"], held[b"users:1"][b"spend"]) == (b"human", b"1.00")
    assert (held[b"users:2"][b"email"], held[b"users:2"][b"spend"]) == (b"human", b"9")
    assert (held[b"users:3"][b"email"], held[b"users:3"][b"note"]) == (b"u3@example.com", b"theirs")
    assert held[b"users:10"] == {b"email": b"again"}
    assert held[b"users:11"][b"note"] == b'\xff "theirs"\r\n'
    assert held[b"users:100"][b"note"] == b"ours now"
    assert held.keys() & {b"users:4", b"users:101"} == set()


def test_a_soft_rollback_sets_entries_of_a_hash(workshop: Workshop, client: Any) -> None:
    soft = "{keep: 30d, soft: {set: {undone: true}}}"
    begun(workshop, client, rollback=soft)
    done = rolled_back(workshop, bad_run(workshop))
    assert (done["updated"], done["inserted"], done["deleted"]) == (7, 0, 0)
    marked = [key for key, held in contents(client).items() if held.get(b"undone") == b"true"]
    assert len(marked) == 7
    assert client.hget("users:1", "email") == b"bad"
    workshop.json("state", "resume", "users")
    workshop.sync("users", rollback=soft)
    assert "ROLLBACK_UNSUPPORTED" in workshop.retl("sync").err


def test_restored_rows_are_not_renewed_before_they_expire(workshop: Workshop, client: Any) -> None:
    """A refresh after half of the TTL would bring the bad row back."""
    before = begun(workshop, client, ttl="24h")
    workshop.warehouse("UPDATE users SET email = 'bad' WHERE user_id = 1")
    rolled_back(workshop, run(workshop)["run_id"], "--no-pause")
    assert 0 < client.ttl("users:1") <= 86400
    with sqlite3.connect(workshop.folder / ".retl" / "ledger.db") as ledger:  # as if half of it had passed
        late = "strftime('%Y-%m-%dT%H:%M:%S.000000+00:00', started_at, '-13 hours')"
        ledger.execute(f"UPDATE retl_runs SET started_at = {late}")
    after = run(workshop)
    assert (after["refreshed"], after["unchanged"]) == (ROWS - 1, 1)
    assert contents(client) == before


@pytest.mark.parametrize(
    "point", ["delta_written", "batches_opened", "images_kept:2", "batch_answered:2", "committing"]
)
def test_killed_anywhere_the_values_before_are_known_and_restored(
    workshop: Workshop, client: Any, point: str
) -> None:
    before = begun(workshop, client, batch="{rows: 2}")
    workshop.warehouse(BAD)
    assert workshop.process("sync", RETL_CRASH_AT=point).code == -9
    killed = workshop.json("runs")["runs"][0]["run_id"]
    run(workshop)
    last = workshop.json("runs")["runs"][0]["run_id"]
    assert workshop.process("rollback", last, RETL_CRASH_AT=point).code in (-9, 2)
    for one in (last, killed):
        said = workshop.retl("rollback", one)
        assert said.code == 0 or "NOT_REVERSIBLE" in said.err, said.err
    assert contents(client) == before
    workshop.json("state", "resume", "users")
    assert run(workshop)["unchanged"] == ROWS


def test_a_run_in_doubt_is_settled_before_it_is_taken_back(
    workshop: Workshop, client: Any, proxied: RedisServer, proxy: Proxy
) -> None:
    workshop.use(redis=proxied)
    before = begun(workshop, client, retry="{attempts: 2}")
    workshop.warehouse("UPDATE users SET email = 'bad' WHERE user_id < 6")
    proxy.drop_reply(b"redis.sha1hex", b"users:1", refuse=True)
    doubtful = run(workshop)
    assert (doubtful["in_doubt"], doubtful["updated"]) == (5, 0)
    proxy.heal()
    assert contents(client) != before, "the script ran, its answer did not arrive"
    assert rolled_back(workshop, doubtful["run_id"])["updated"] == 5
    assert contents(client) == before
    assert workshop.retl("log", "verify").code == 0


def test_under_three_editors_no_edit_is_lost_and_every_image_is_exact(
    workshop: Workshop, client: Any, redis_server: RedisServer
) -> None:
    """An editor swaps in its own value and notes what it met. After retl wrote over the last edit that a key
    had, only that edit may come back."""
    begun(workshop, client)
    stop, met = threading.Event(), dict[int, list[tuple[bytes, bytes]]]()
    swap = "local was = redis.call('HGET', KEYS[1], 'email') redis.call('HSET', KEYS[1], 'email', ARGV[1]) return was"

    def edit(editor: int) -> None:
        chance, number = random.Random(editor), 0
        with redis_server.client() as own:
            while not stop.wait(0.002):
                number += 1
                user, value = chance.randrange(editor + 1, 21, 3), f"edit {editor}/{number}".encode()
                met.setdefault(user, []).append((own.eval(swap, 1, f"users:{user}", value), value))

    editors = [threading.Thread(target=edit, args=(number,)) for number in range(3)]
    for one in editors:
        one.start()
    try:
        for number in range(3):
            workshop.warehouse(f"UPDATE users SET email = 'mart {number}'")
            rolled_back(workshop, run(workshop)["run_id"], "--no-pause")
    finally:
        stop.set()
        for one in editors:
            one.join()
    for user, notes in met.items():  # each key has one editor
        own = b""
        for was, value in notes:
            assert was.startswith(b"mart") or was == own or not own, (user, was, own)
            own = value
        assert client.hget(f"users:{user}", "email") == own, "the last rollback lost an edit"
    assert {client.hget(f"users:{n}", "email") for n in range(21, ROWS + 1)} == {
        f"u{n}@example.com".encode() for n in range(21, ROWS + 1)
    }
