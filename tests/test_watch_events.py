"""What asks a watch for a run from outside: POST over HTTP, and NOTIFY of PostgreSQL."""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, RemoteDisconnected
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from retl.errors import DefinitionError
from tests import inprocess
from tests.commands import ROWS, Workshop
from tests.servers import Database, RedisServer
from tests.watching import Watched, until, watched

TOKEN = "token-of-the-tests-0123456789"
EVENT = "{event: true, catch_up: skip}"


@pytest.fixture
def shop(tmp_path: Path, redis_server: RedisServer) -> Iterator[Workshop]:
    made = Workshop(tmp_path / "shop")
    made.use(redis_server)
    made.environment["RETL_WATCH_TOKEN"] = TOKEN
    with inprocess.own_state():
        yield made


def ask(made: Watched, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    """The status and the document or text of an answer."""
    assert made.watch.server is not None
    client = HTTPConnection("127.0.0.1", made.watch.server.port, timeout=10)
    try:
        client.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
        answer = client.getresponse()
        text = answer.read().decode()
        assert answer.headers["Server"] == "retl"
        return answer.status, json.loads(text) if "json" in answer.headers["Content-Type"] else text
    finally:
        client.close()


def post(made: Watched, name: str, body: bytes | None = None, token: str = TOKEN) -> tuple[int, Any]:
    return ask(made, "POST", f"/sync/{name}", body, Authorization=f"Bearer {token}")


def test_a_post_is_answered_with_the_id_of_the_run(shop: Workshop) -> None:
    shop.sync("users", when=EVENT)
    shop.sync("hourly", when="{every: 1h, catch_up: skip}")
    with watched(shop, listen="127.0.0.1:0") as made:
        status, said = post(made, "users", b'{"purchase": 12}')
        again = post(made, "users")
        assert (status, again) == (202, (202, said))
        made.turn()
        run = next(one for one in made.done if one.sync == "users")
        assert (run.run_id, run.counts.inserted) == (said["run_id"], ROWS)
        assert post(made, "hourly")[0] == post(made, "nobody")[0] == post(made, "users/..")[0] == 404
        assert made.watch.hold.ledger.run(said["run_id"]) is not None


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "ü" * 30])
def test_a_post_without_the_token_does_nothing_and_learns_nothing(shop: Workshop, token: str) -> None:
    shop.sync("users", when=EVENT)
    with watched(shop, listen="127.0.0.1:0") as made:
        refused = post(made, "users", token=token.encode().decode("latin-1"))
        assert refused[0] == 401
        assert post(made, "nobody", token="wrong") == ask(made, "POST", "/sync/users") == refused
        assert made.watch._entries["users"].run_id is None


def test_a_request_is_bounded(shop: Workshop) -> None:
    shop.sync("users", when=EVENT)
    with watched(shop, listen="127.0.0.1:0") as made:
        assert post(made, "users", b"x" * 64 * 1024)[0] == 202
        assert post(made, "users", b"x" * (64 * 1024 + 1))[0] == 413
        assert (
            ask(made, "POST", "/sync/users", Authorization=f"Bearer {TOKEN}", Content_Length="-1")[0] == 411
        )
        assert ask(made, "GET", "/" + "a" * 100_000)[0] == 414
        assert ask(made, "GET", "/sync/users")[0] == 405
        assert ask(made, "BREW", "/<script>")[0] == 501
        assert made.watch.server is not None
        idle = [socket.create_connection(("127.0.0.1", made.watch.server.port)) for _ in range(40)]
        until(
            lambda: len(select.select(idle, [], [], 0)[0]) >= 8,
            "the ends of those for which there is no room",
        )
        for one in idle:
            one.close()
        until(lambda: _has_room(made))


def _has_room(made: Watched) -> bool:
    try:
        return post(made, "users")[0] == 202
    except (RemoteDisconnected, ConnectionResetError):
        return False


def test_health_and_metrics_tell_how_it_goes(shop: Workshop) -> None:
    shop.sync("users", when=EVENT)
    with watched(shop, listen="127.0.0.1:0") as made:
        post(made, "users")
        made.turn()
        assert ask(made, "GET", "/healthz") == (
            200,
            {"status": "ok", "definitions": "ok", "syncs": 1, "running": [], "failing": [], "deaf": []},
        )
        status, text = ask(made, "GET", "/metrics")
        samples = {
            (sample.name, sample.labels.get("status")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert status == 200
        assert samples["retl_run_status", "SUCCESS"] == 1
        assert samples["retl_watch_running", None] == samples["retl_watch_failures", None] == 0
        shop.write("syncs/wrong.yml", "key: [x]\n")
        made.watch.reload_soon()
        made.watch.turn()
        assert ask(made, "GET", "/healthz")[1]["definitions"] == "OPTION_MISSING"
        made.watch.stop.request(15)
        assert ask(made, "GET", "/healthz")[0] == 503
        assert post(made, "users")[0] == 503


@pytest.mark.parametrize(
    ("token", "listen", "code"),
    [("", None, "WATCH_TOKEN"), ("short", None, "WATCH_TOKEN"), (TOKEN, "8080", "LISTEN")],
)
def test_events_need_a_token_and_an_address(
    shop: Workshop, token: str, listen: str | None, code: str
) -> None:
    shop.environment["RETL_WATCH_TOKEN"] = token
    shop.sync("users", when="event")
    with pytest.raises(DefinitionError, match=code), watched(shop, listen=listen):
        pass


def test_a_port_in_use_is_said_before_anything_runs(shop: Workshop) -> None:
    shop.sync("users", when="event")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(DefinitionError, match="LISTEN"), watched(shop, listen=address):
            pass


PURCHASES = """
CREATE TABLE purchases (customer int, amount numeric(12,2));
INSERT INTO purchases VALUES (1, 5), (2, 500);
CREATE FUNCTION announce() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN NOTIFY purchases; RETURN NULL; END $$;
CREATE TRIGGER announce AFTER INSERT ON purchases FOR EACH STATEMENT EXECUTE FUNCTION announce();
"""
SEGMENTS = """
source:
  from: app
  sql: >
    SELECT customer, CASE WHEN sum(amount) >= 100 THEN 'power' ELSE 'casual' END AS segment
    FROM purchases GROUP BY customer
key: [customer]
contract: {customer: {type: integer}, segment: {type: string}}
destination: {type: redis, key: "segment:{customer}", value: json, ttl: none}
"""


@pytest.fixture
def app(shop: Workshop, postgres: Database) -> Database:
    """The database of an application, in which purchases are made."""
    shop.environment["PG_PASSWORD"] = postgres.password
    shop.write(
        "retl.yml",
        f"sources: {{app: {{type: postgres, host: {postgres.host}, port: {postgres.port},"
        f" dbname: {postgres.dbname}, user: {postgres.user}, password: '${{PG_PASSWORD}}'}}}}\n",
    )
    with postgres.connect() as connection:
        connection.execute(PURCHASES)
    return postgres


def buy(app: Database, *purchases: tuple[int, int]) -> None:
    with app.connect() as connection:
        for purchase in purchases:
            connection.execute("INSERT INTO purchases VALUES (%s, %s)", purchase)


def test_a_purchase_updates_the_segment(shop: Workshop, app: Database, redis_server: RedisServer) -> None:
    shop.write("syncs/segments.yml", f"{SEGMENTS}when: [event, {{changed: {{notify: purchases}}}}]\n")
    with watched(shop, listen="127.0.0.1:0") as made:
        loop = threading.Thread(target=made.watch.run)
        loop.start()
        until(lambda: made.done)
        for customer, how in ((1, "notify"), (3, "post")):
            if how == "post":
                with app.connect() as connection:
                    connection.execute("ALTER TABLE purchases DISABLE TRIGGER ALL")
            buy(app, (customer, 200))
            if how == "post":
                assert post(made, "segments")[0] == 202
            with redis_server.client() as client:
                key = f"segment:{customer}"
                until(lambda key=key, client=client: b"power" in (client.get(key) or b""), how)
        made.watch.stop.request(15)
        loop.join(30)
        assert not loop.is_alive()


def test_what_is_said_while_the_connection_is_lost_is_not_missed(shop: Workshop, app: Database) -> None:
    shop.write("syncs/segments.yml", f"{SEGMENTS}when: {{changed: {{notify: purchases}}}}\n")
    with watched(shop) as made:
        until(lambda: made.watch._listeners.deaf == [])
        made.turn()
        assert [one.counts.inserted for one in made.done] == [2], "nobody knows what was said before"
        with app.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'retl watch'"
            )
        until(lambda: made.watch._listeners.deaf)
        buy(app, (7, 1))
        until(lambda: made.watch._entries["segments"].run_id)
        made.turn()
        assert made.done[-1].counts.inserted == 1
        runs = len(made.done)
        buy(app, *((customer, 1) for customer in range(10, 60)))
        until(lambda: made.watch._entries["segments"].run_id)
        made.turn()
        made.turn()
        assert len(made.done) - runs <= 2, "many events are one run"
        assert sum(one.counts.inserted for one in made.done[runs:]) == 50
