"""A topic of Kafka that names keys: what becomes a run, what is stored, and that no key is lost."""

from __future__ import annotations

import json
import re
import resource
import secrets
import signal
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import NewTopic

from retl.app.freshness import topic_name
from retl.app.watch.keys import Unreadable, parts
from retl.destinations.kafka.client import KafkaConnection
from retl.destinations.kafka.reader import TopicReader
from retl.errors import DefinitionError
from retl.project.triggers import KeyFormat
from tests import inprocess
from tests.commands import ROWS, Workshop
from tests.kafka import LOGIN, Broker, Relay
from tests.servers import Database, RedisServer
from tests.watching import Watched, process, until, watched

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "scheduling" / "segments.yml"


class Topic:
    """A topic of a test, and who writes to it."""

    def __init__(self, broker: Broker, partitions: int = 1) -> None:
        self.broker, self.name = broker, f"purchases-{secrets.token_hex(6)}"
        made = broker.admin.create_topics([NewTopic(self.name, partitions, 1)])
        made[self.name].result(10)
        self._producer = Producer(broker.quiet | {"linger.ms": 0})

    def say(self, *keys: str | bytes | None, value: str | bytes | None = None, partition: int = 0) -> None:
        """A request for each: the wheel's broker takes the first record of the last batch for the end."""
        for key in keys:
            self._producer.produce(self.name, value, key, partition=partition)
            assert self._producer.flush(10) == 0

    def say_many(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._producer.produce(self.name, None, key, partition=0)
        assert self._producer.flush(60) == 0

    def make_again(self) -> None:
        self.broker.admin.delete_topics([self.name])[self.name].result(10)
        self.broker.admin.create_topics([NewTopic(self.name, 1, 1)])[self.name].result(10)

    @property
    def trigger(self) -> str:
        return f"{{topic: {self.name}, from: stream, window: 100ms}}"


@pytest.fixture
def shop(tmp_path: Path, redis_server: RedisServer, kafka_broker: Broker) -> Iterator[Workshop]:
    made = Workshop(tmp_path / "shop")
    made.use(redis_server)
    made.write("retl.yml", f"connections: {{stream: {{type: kafka, servers: '{kafka_broker.address}'}}}}\n")
    with inprocess.own_state():
        yield made


@pytest.fixture
def topic(kafka_broker: Broker) -> Topic:
    return Topic(kafka_broker)


@contextmanager
def running(shop: Workshop, *names: str, **more: Any) -> Iterator[Watched]:
    """A watch that turns by itself."""
    with watched(shop, *names, **more) as made:
        loop = threading.Thread(target=made.watch.run)
        loop.start()
        try:
            yield made
        finally:
            made.watch.stop.request(15)
            loop.join(20)


def kept(shop: Workshop, sync: str = "users") -> dict[str, Any]:
    found = shop.json("status")["syncs"]
    return next(one["topic"] for one in found if one["sync"] == sync) or {}


def test_a_key_makes_its_row_be_read_and_sent_and_no_other(shop: Workshop, topic: Topic) -> None:
    shop.sync("users", when=topic.trigger.replace("100ms", "1s"))  # all three keys become one run
    topic.say("1", "2", "3")
    with running(shop) as made:
        until(lambda: made.done, "the first run, of the whole mart")
        assert [(one.status, one.counts.inserted) for one in made.done] == [("SUCCESS", ROWS)]
        shop.warehouse("UPDATE users SET spend = spend + 1 WHERE user_id IN (7, 8)")
        topic.say("7", "9", "7")
        until(lambda: len(made.done) == 2, "the run of these keys")
        found = made.done[1].counts
        assert (found.read, found.updated, found.unchanged) == (2, 1, 1), "8 was not named"
        topic.say("7")
        until(lambda: len(made.done) == 3)
        assert (made.done[2].counts.read, made.done[2].counts.unchanged) == (1, 1), "twice is harmless"


def test_what_was_said_while_nobody_watched_is_read_from_where_it_was_left(
    shop: Workshop, topic: Topic
) -> None:
    shop.sync("users", when=topic.trigger)
    with running(shop) as made:
        until(lambda: made.done)
        topic.say("1")
        until(lambda: len(made.done) == 2)
        until(lambda: kept(shop).get("offsets") == {"0": 1}, "the place in the ledger")
    shop.warehouse("UPDATE users SET spend = spend + 1 WHERE user_id IN (3, 4)")
    topic.say("3")
    with running(shop) as made:
        until(lambda: made.done)
        assert (made.done[0].counts.read, made.done[0].counts.updated) == (1, 1)
        until(lambda: kept(shop)["offsets"] == {"0": 2})


def test_a_kill_between_the_run_and_the_place_in_the_topic_looks_at_the_keys_once_more(
    shop: Workshop, topic: Topic
) -> None:
    shop.sync("users", when=topic.trigger)
    with running(shop) as made:
        until(lambda: made.done and kept(shop).get("offsets") == {"0": 0})
    shop.warehouse("UPDATE users SET spend = spend + 1 WHERE user_id = 7")
    topic.say("7")
    with process(shop, RETL_CRASH_AT="run_finished:1") as killed:
        assert killed.process.wait(60) == -signal.SIGKILL
    assert shop.json("show")["status"] == "SUCCESS", "the run is in the ledger"
    assert kept(shop)["offsets"] == {"0": 0}, "and the place in the topic is not"
    with running(shop) as made:
        until(lambda: made.done)
        assert (made.done[0].counts.read, made.done[0].counts.unchanged) == (1, 1)
        until(lambda: kept(shop)["offsets"] == {"0": 1})


def test_a_refused_run_keeps_the_keys_and_is_tried_again_after_pauses(shop: Workshop, topic: Topic) -> None:
    shop.sync("users", when=topic.trigger, checks="['SELECT 1 FROM source WHERE spend > 1000']")
    with running(shop) as made:
        until(lambda: made.done and kept(shop).get("offsets") == {"0": 0})
        shop.warehouse("UPDATE users SET spend = 2000 + user_id WHERE user_id IN (7, 8)")
        topic.say("7")
        until(lambda: len(made.done) == 2)
        assert made.statuses()[1] == ("users", "REFUSED")
        topic.say("8", "9")
        sleep(1.5)
        assert len(made.done) == 2, "records that come meanwhile wait with it"
        entry = made.watch._entries["users"]
        assert entry.failures == 1
        assert entry.rests is not None
        assert kept(shop)["offsets"] == {"0": 0}
        shop.warehouse("UPDATE users SET spend = 900 + user_id WHERE user_id IN (7, 8)")
        entry.rests = None
        made.watch._wake()
        until(lambda: len(made.done) == 3)
        assert (made.done[2].status, made.done[2].counts.updated) == ("SUCCESS", 2)
        until(lambda: kept(shop)["offsets"] == {"0": 3})


def test_a_paused_sync_keeps_its_keys(shop: Workshop, topic: Topic) -> None:
    shop.sync("users", when=topic.trigger)
    with running(shop) as made:
        until(lambda: made.done and kept(shop).get("offsets") == {"0": 0})
        made.watch.hold.ledger.pause("users", "a test", "because")
        topic.say("7")
        until(lambda: len(made.done) == 2)
        assert made.statuses()[1] == ("users", "PAUSED")
        sleep(0.5)
        assert len(made.done) == 2
        assert kept(shop)["offsets"] == {"0": 0}


def test_a_record_without_a_usable_key_is_counted_and_the_others_pass(shop: Workshop, topic: Topic) -> None:
    shop.sync("users", when=topic.trigger)
    with running(shop, listen="127.0.0.1:0") as made:
        until(lambda: made.done)
        topic.say(b"\xff", None, "7", "no-number")
        until(lambda: len(made.done) > 1 and kept(shop)["offsets"] == {"0": 4})
        later = [one for one in made.done if one.counts.read == 1 or one.notes]
        assert "keys that the mart does not have: 1 of" in str([one.notes for one in later])
        assert {one.status for one in made.done} == {"SUCCESS"}
        metrics = made.watch.metrics()
        assert 'retl_watch_topic_skipped{project="shop",sync="users"} 2' in metrics
        assert 'retl_watch_topic_waiting{project="shop",sync="users"} 0' in metrics
    told = kept(shop)
    assert (told["skipped"], told["last_skipped"]) == (
        2,
        "partition 0, offset 1: this part of the record is empty",
    )
    assert "records of" in shop.json("status")["syncs"][0]["next"]
    topic.say(b"\xff")
    with running(shop) as made:
        until(lambda: made.watch._topics.counted[0][2] == 3, "no run for it, and the count goes on")
        made.watch._topics.of("users")._report_at = 0.0  # type: ignore[union-attr]
        made.watch._wake()
        until(lambda: kept(shop)["offsets"] == {"0": 5})
        assert made.done == []


def test_a_row_that_breaks_the_contract_is_a_reject_and_not_a_refusal(shop: Workshop, topic: Topic) -> None:
    rules = "{user_id: {type: integer}, spend: {type: decimal, max_digits: 12, decimal_places: 2, le: 500}}"
    shop.sync("users", when=topic.trigger, contract=rules)
    with running(shop) as made:
        until(lambda: made.done)
        shop.warehouse("UPDATE users SET spend = 100 * user_id WHERE user_id IN (2, 30)")
        topic.say("2", "30")
        until(lambda: sum(one.counts.read for one in made.done[1:]) >= 2)
        assert sum(one.counts.rejected for one in made.done[1:]) == 1
        assert sum(one.counts.updated for one in made.done[1:]) == 1
        assert "REFUSED" not in {one.status for one in made.done}
        until(lambda: kept(shop)["offsets"] == {"0": 2})


@pytest.mark.parametrize("deletes", ["keep", "delete"])
def test_a_key_that_left_the_mart_is_deleted_by_a_run_of_the_whole_mart(
    shop: Workshop, topic: Topic, redis_server: RedisServer, deletes: str
) -> None:
    shop.sync("users", when=topic.trigger, deletes=deletes)
    with running(shop) as made:
        until(lambda: made.done)
        shop.warehouse("DELETE FROM users WHERE user_id = 7")
        topic.say("7", "1000")
        until(lambda: kept(shop)["offsets"] == {"0": 2})
        deleted = [one.counts.deleted for one in made.done[1:]]
        whole = [one for one in made.done[1:] if one.counts.read == ROWS - 1]
        assert sum(deleted) == len(whole) == (deletes == "delete")
        assert redis_server.client().exists("users:7") == (deletes == "keep")


def test_after_the_target_lost_its_rows_a_run_of_the_whole_mart_follows(
    shop: Workshop, topic: Topic, redis_server: RedisServer
) -> None:
    to = "{type: redis, key: 'u:{user_id}', value: json, ttl: 1h}"
    shop.sync("users", when=topic.trigger, destination=to)
    client: Any = redis_server.client()
    with running(shop) as made:
        until(lambda: made.done and kept(shop).get("offsets") == {"0": 0})
        client.flushdb()
        topic.say("7")
        until(lambda: client.dbsize() > ROWS, "every row, which no key names")
        until(lambda: kept(shop)["offsets"] == {"0": 1})
        assert [one.counts.read for one in made.done] == [ROWS, 1, ROWS]


def test_so_many_keys_that_the_whole_mart_is_cheaper_become_one_run(shop: Workshop, topic: Topic) -> None:
    shop.sync("users", when=f"{{topic: {topic.name}, from: stream, window: 2s}}")
    with running(shop) as made:
        until(lambda: made.done)
        shop.warehouse("UPDATE users SET spend = spend + 1 WHERE user_id <= 20")
        topic.say_many(str(number) for number in range(4000))
        topic.say("1")
        until(lambda: kept(shop)["offsets"] == {"0": 4001})
        assert sum(one.counts.updated for one in made.done[1:]) == 20
        assert made.done[1].counts.read == ROWS, "1,000 keys are a run, and more waited"
        assert len(made.done) <= 3


def test_keys_become_runs_of_a_thousand(shop: Workshop, topic: Topic) -> None:
    shop.warehouse("INSERT INTO users SELECT i, 'x', 1 FROM range(31, 2001) t(i)")
    shop.sync("users", when=f"{{topic: {topic.name}, from: stream, window: 5s}}")
    with running(shop) as made:
        until(lambda: made.done)
        topic.say_many(str(number) for number in range(1, 1501))
        topic.say("1")
        until(lambda: kept(shop)["offsets"] == {"0": 1501})
        until(lambda: sum(one.counts.read for one in made.done[1:]) == 1501)
        read = [one.counts.read for one in made.done[1:]]
        assert (read[0], max(read), len(read) <= 3) == (1000, 1000, True), "a slow reader needs one run more"


def test_two_projects_hear_every_record(
    shop: Workshop, topic: Topic, tmp_path: Path, redis_server: RedisServer
) -> None:
    other = Workshop(tmp_path / "other")
    other.use(redis_server)
    other.write("retl.yml", (shop.folder / "retl.yml").read_text())
    for one, name in ((shop, "users"), (other, "people")):
        one.sync(name, when=topic.trigger)
    with running(shop) as first, running(other) as second:
        until(lambda: first.done and second.done)
        topic.say("1", "2", "3")
        until(lambda: [sum(one.counts.read for one in made.done[1:]) for made in (first, second)] == [3, 3])


def test_a_topic_that_was_made_again_is_read_from_its_end_after_the_whole_mart(
    shop: Workshop, topic: Topic
) -> None:
    shop.sync("users", when=topic.trigger)
    topic.say("1", "2")
    with running(shop) as made:
        until(lambda: made.done)
        topic.say("3")
        until(lambda: kept(shop).get("offsets") == {"0": 3})
    topic.make_again()
    shop.warehouse("UPDATE users SET spend = spend + 1 WHERE user_id = 9")
    with running(shop) as made:
        until(lambda: made.done)
        assert (made.done[0].counts.read, made.done[0].counts.updated) == (ROWS, 1)
        until(lambda: kept(shop)["offsets"] == {"0": 0})
        topic.say("9")
        until(lambda: kept(shop)["offsets"] == {"0": 1})


def test_a_run_that_ends_while_the_watch_stops_confirms_its_keys(shop: Workshop, topic: Topic) -> None:
    shop.sync("users", when=topic.trigger)
    with running(shop) as made:
        until(lambda: made.done and kept(shop).get("offsets") == {"0": 0})
        topic.say("7")
        until(lambda: kept(shop).get("offsets") == {"0": 1})
    topic.say("8")
    with watched(shop) as made:
        until(lambda: made.watch.turn() and made.watch.running)
    assert [one.counts.read for one in made.done] == [1]
    assert kept(shop)["offsets"] == {"0": 2}


def test_after_a_change_of_the_sync_every_row_is_compared(shop: Workshop, topic: Topic) -> None:
    shop.sync("users", when=topic.trigger)
    with running(shop) as made:
        until(lambda: made.done and kept(shop).get("offsets") == {"0": 0})
        shop.sync("users", when=topic.trigger, fields="{spend: spend}")
        made.watch.reload_soon()
        until(lambda: len(made.done) == 2)
        assert made.done[1].counts.updated == ROWS
    shop.sync("users", when=topic.trigger, fields="{spend: spend, email: email}")
    with running(shop) as made:
        until(lambda: made.done)
        assert made.done[0].counts.updated == ROWS
    with running(shop) as made:
        topic.say("7")
        until(lambda: made.done)
        assert made.done[0].counts.read == 1


def test_a_changed_sync_is_remembered_as_changed_until_every_row_was_compared(
    shop: Workshop, topic: Topic
) -> None:
    shop.sync("users", when=topic.trigger)
    with running(shop) as made:
        until(lambda: made.done and kept(shop).get("offsets") == {"0": 0})
    changed = {"when": topic.trigger, "fields": "{spend: spend}"}
    shop.sync("users", **changed, checks="['SELECT 1 FROM source WHERE spend = 1']")
    with running(shop) as made:
        until(lambda: made.done)
        assert made.statuses() == [("users", "REFUSED")]
        made.watch.turn()
    shop.warehouse("UPDATE users SET spend = 100 WHERE spend = 1")
    with running(shop) as made:
        until(lambda: made.done, "the run of the whole mart, which nobody has done yet")
        assert made.done[0].counts.updated == ROWS


def test_a_changed_file_of_the_sync_is_a_change_of_the_sync(shop: Workshop, topic: Topic) -> None:
    shop.write("contracts/users.yml", "user_id: {type: integer}\nemail: {type: string}\n")
    shop.sync("users", when=topic.trigger, contract="contracts/users.yml")
    with running(shop) as made:
        until(lambda: made.done and kept(shop).get("offsets") == {"0": 0})
        assert made.done[0].counts.inserted == ROWS
    shop.write("contracts/users.yml", "user_id: {type: integer}\nspend: {type: float}\n")
    with running(shop) as made:
        until(lambda: made.done)
        assert made.done[0].counts.updated == ROWS


def test_another_query_is_a_change_of_the_sync(shop: Workshop, topic: Topic) -> None:
    shop.write("sql/users.sql", "SELECT user_id, email FROM users")
    shop.sync("users", when=topic.trigger, source="{file: sql/users.sql}")
    with running(shop) as made:
        until(lambda: made.done and kept(shop).get("offsets") == {"0": 0})
    shop.write("sql/users.sql", "SELECT user_id, upper(email) AS email FROM users")
    with running(shop) as made:
        until(lambda: made.done)
        assert made.done[0].counts.updated == ROWS


def test_keys_wait_for_a_sync_that_could_not_begin(shop: Workshop, topic: Topic) -> None:
    shop.sync("users", when=topic.trigger)
    with watched(shop) as made:
        heard = made.watch._topics.of("users")
        assert heard is not None
        until(lambda: heard._has_asked)
        made.turn()
        assert not heard.ended(None, good=False, rest=False), "nothing waits"
        topic.say("7")
        until(lambda: heard._has_asked)
        assert heard.ended(None, good=False, rest=False), (
            "a wrong definition is noticed before keys are taken"
        )
        topic.say("8")
        until(lambda: heard._offsets == {0: 2})
        made.watch._ask_for_keys("users")
        made.turn()
        assert [one.counts.read for one in made.done] == [ROWS, 2]


def test_what_an_unfinished_load_held_is_part_of_the_next(shop: Workshop, topic: Topic) -> None:
    shop.sync("users", when=topic.trigger)
    with watched(shop) as made:
        heard = made.watch._topics.of("users")
        assert heard is not None
        until(lambda: heard._has_asked, "the run of the whole mart")
        whole = heard.take(whole=False)
        assert whole is not None
        assert whole.keys is None
        assert not heard.ended(whole, good=True, rest=False)
        topic.say("1")
        until(lambda: heard._has_asked)
        first = heard.take(whole=False)
        topic.say("2")
        until(lambda: heard._has_asked)
        second = heard.take(whole=False)
        assert second is not None
        assert (sorted(second.keys), dict(second.offsets)) == ([("1",), ("2",)], {0: 2})
        assert not heard.ended(first, good=True, rest=False), "it stands for nothing any more"
        assert heard._confirmed == {0: 0}
        assert heard.ended(second, good=True, rest=True), "only a run of the whole mart deletes"
        third = heard.take(whole=False)
        assert third is not None
        assert third.keys is None
        assert not heard.ended(third, good=True, rest=False)
        assert heard._confirmed == {0: 2}


def test_a_run_for_keys_that_another_run_took_meanwhile_is_none(shop: Workshop, topic: Topic) -> None:
    shop.sync("users", when=topic.trigger)
    with watched(shop) as made:
        heard = made.watch._topics.of("users")
        assert heard is not None
        until(lambda: heard._has_asked)
        made.turn()
        assert [one.status for one in made.done] == ["SUCCESS"]
        made.watch._ask_for_keys("users")  # as a thread does that asks while the run begins
        made.turn()
        assert len(made.done) == 1
        assert made.watch.running == []
        topic.say("7", "8")
        until(lambda: heard._has_asked)
        made.turn()
        assert [one.counts.read for one in made.done] == [ROWS, 2]


def test_a_cluster_that_is_away_is_said_and_keys_come_when_it_is_back(
    shop: Workshop, topic: Topic, kafka_broker: Broker
) -> None:
    user, password = LOGIN
    with Relay(kafka_broker) as relay:

        def write(word: str) -> None:
            login = f"user: {user}, password: {word}, mechanism: PLAIN, connect_timeout: 1s"
            servers = f"servers: '127.0.0.1:{relay.port}'"
            shop.write("retl.yml", f"connections: {{stream: {{type: kafka, {servers}, {login}}}}}\n")

        write("wrong")
        shop.sync("users", when=topic.trigger)
        with running(shop) as made:
            until(lambda: made.watch.health()["deaf"])
            assert made.watch.health()["deaf"] == [f"127.0.0.1:{relay.port}/{topic.name}"]
            sleep(0.5)
            assert made.done == []
            write(password)
            made.watch.reload_soon()
            until(lambda: made.done and not made.watch.health()["deaf"])
            topic.say("7")
            until(lambda: len(made.done) == 2)


@pytest.mark.parametrize(
    ("raw", "columns", "how", "found"),
    [
        (b"7", 1, "text", ("7",)),
        ("ä b".encode(), 1, "text", ("ä b",)),
        (b'{"a": 7}', 1, "text", ('{"a": 7}',)),
        (b"7", 1, "json", ("7",)),
        (b'"x"', 1, "json", ("x",)),
        (b'{"a": 10000000000000000001, "z": [1]}', 1, "json", ("10000000000000000001",)),
        (b'{"b": true, "a": 1.50}', 2, "json", ("1.50", "true")),
        (b'["x", 2]', 2, "json", ("x", "2")),
        (b'{"schema": {}, "payload": {"a": "x", "b": 2}}', 2, "json", ("x", "2")),
        (None, 1, "text", "empty"),
        (b"\xff", 1, "text", "UTF-8"),
        (b"{", 1, "json", "not JSON"),
        (b"NaN", 1, "json", "not JSON"),
        (b"[" * 100_000, 1, "json", "not JSON"),
        (b'{"a": 1}', 2, "json", "it has no b"),
        (b'{"a": null}', 1, "json", "null"),
        (b'{"a": {"b": 1}}', 1, "json", "no single value"),
        (b"[1]", 2, "json", "1 values"),
    ],
)
def test_a_key_is_a_text_or_json(raw: bytes | None, columns: int, how: KeyFormat, found: object) -> None:
    names = ("a", "b")[:columns]
    if isinstance(found, tuple):
        assert parts(raw, names, how) == found
    else:
        with pytest.raises(Unreadable, match=str(found)):
            parts(raw, names, how)


def test_a_key_of_two_columns_may_be_in_the_value(shop: Workshop, topic: Topic) -> None:
    shop.warehouse("ALTER TABLE users ADD COLUMN shop VARCHAR; UPDATE users SET shop = 'a\"b'")
    shop.sync(
        "users",
        key="[shop, user_id]",
        destination='{type: redis, key: "users:{shop}:{user_id}", value: json, ttl: none}',
        when=f"{{topic: {topic.name}, from: stream, part: value, window: 100ms}}",
    )
    with running(shop) as made:
        until(lambda: made.done)
        shop.warehouse("UPDATE users SET spend = spend + 1 WHERE user_id = 7")
        topic.say(None, value='{"user_id": 7, "amount": 12.5, "shop": "a\\"b"}')
        until(lambda: len(made.done) == 2)
        assert (made.done[1].counts.read, made.done[1].counts.updated) == (1, 1)


def test_a_reader_never_waits_longer_than_it_is_told(kafka_broker: Broker, topic: Topic) -> None:
    """The time until records become a run may be over when it is asked for; the client takes a negative time
    for no limit, and the run of the keys would never come."""
    connection = KafkaConnection.model_validate({"servers": kafka_broker.address})
    with closing(TopicReader(connection, topic.name)) as reader:
        reader.begin(None)
        until(lambda: (found := reader.poll(1.0)) is not None and found.is_end)
        begun = monotonic()
        assert reader.poll(-1.0) is None
        assert monotonic() - begun < 5


def test_the_guides_purchase_updates_the_segment_and_nothing_else(
    shop: Workshop, topic: Topic, postgres: Database
) -> None:
    shop.use(postgres=postgres)
    shop.environment["PASSWORD"] = postgres.password
    crm = f"type: postgres, host: {postgres.host}, port: {postgres.port}, dbname: {postgres.dbname}"
    crm += f", user: {postgres.user}, password: '${{PASSWORD}}'"
    known = (shop.folder / "retl.yml").read_text().rstrip().removesuffix("}")
    shop.write("retl.yml", f"{known}, crm_db: {{{crm}}}}}\n")
    text = GUIDE.read_text(encoding="utf-8")
    assert "shop.purchases" in text
    shop.write("syncs/segments.yml", text.replace("shop.purchases", topic.name))
    shop.warehouse(
        "CREATE TABLE mart_segments AS SELECT i AS customer, 'casual' AS segment FROM range(9) t(i)"
    )
    with running(shop) as made:
        until(lambda: made.done and kept(shop, "segments").get("offsets") == {"0": 0})
        shop.warehouse("UPDATE mart_segments SET segment = 'power' WHERE customer IN (7, 8)")
        topic.say(None, value='{"customer": 7, "amount": 12.50}')
        until(lambda: [one for one in made.done if one.counts.read == 1], "the run of this key")
    with postgres.connect() as connection:
        found = connection.execute("SELECT customer FROM crm.segments WHERE segment = 'power'").fetchall()
    assert found == [(7,)]


@pytest.mark.parametrize(
    ("when", "more", "code"),
    [
        ("{topic: t}", {}, "needs `from`"),
        ("{topic: t, from: nowhere}", {}, "CONNECTION_UNKNOWN"),
        ("{topic: t, from: files}", {}, "type kafka"),
        ("{topic: t, from: stream, every: 1h}", {}, "when"),
        ("{topic: t, from: stream, catch_up: skip}", {}, "no effect"),
        ("{topic: t, from: stream, window: 1ms}", {}, "greater than or equal"),
        ("[{topic: t, from: stream}, {topic: u, from: stream}]", {}, "one topic"),
        ("{topic: t, from: stream, format: text}", {"key": "[user_id, email]"}, "one column"),
        (
            "{topic: t, from: stream}",
            {"destination": "{connection: files, path: x, mode: snapshot, format: csv}"},
            "a snapshot has every row",
        ),
    ],
)
def test_a_wrong_topic_is_an_error_before_anything_runs(
    shop: Workshop, when: str, more: dict[str, str], code: str
) -> None:
    known = "{stream: {type: kafka, servers: 'localhost:9'}, files: {type: files, root: out}}"
    shop.write("retl.yml", f"connections: {known}\n")
    shop.sync("users", when=when, **more)
    with pytest.raises(DefinitionError, match=code), watched(shop):
        pass
    said = shop.retl("validate")
    assert said.code == 2
    assert code in said.err + said.out


@pytest.mark.parametrize(("more", "rows"), [({}, 1), ({"guards": "{min_rows: 2}"}, ROWS)])
def test_only_the_rows_of_the_keys_are_kept(
    shop: Workshop, topic: Topic, more: dict[str, str], rows: int
) -> None:
    shop.sync("users", when=topic.trigger, **more)
    with process(shop, RETL_LOG_FORMAT="json") as made:
        made.says('"event": "run_finished"')
        topic.say("7")
        made.says('"event": "run_finished"', times=2)
        frozen = re.findall(r'"rows": (\d+), "event": "mart_frozen"', made.said)
        assert list(map(int, frozen)) == [ROWS, rows]


def test_an_integer_may_be_written_in_any_way_that_is_one(
    shop: Workshop, topic: Topic, kafka_broker: Broker
) -> None:
    large, rows = 2**63 - 1, (7, 8, 9, 2**63 - 1)
    with closing(sqlite3.connect(shop.folder / "people.db")) as file, file:
        file.execute("CREATE TABLE people (id INTEGER, name TEXT)")
        file.executemany("INSERT INTO people VALUES (?, 'a')", [(one,) for one in rows])
    stream = f"connections: {{stream: {{type: kafka, servers: '{kafka_broker.address}'}}}}\n"
    shop.write("retl.yml", f"{stream}sources: {{lite: {{type: sqlite, path: people.db}}}}\n")
    shop.sync(
        "users",
        source="{from: lite, table: people}",
        key="[id]",
        destination='{type: redis, key: "people:{id}", value: json, ttl: none}',
        when=f"{{topic: {topic.name}, from: stream, window: 2s}}",
    )
    with running(shop) as made:
        until(lambda: made.done)
        with closing(sqlite3.connect(shop.folder / "people.db")) as file, file:
            file.execute("UPDATE people SET name = 'b'")
        for texts, updated in ((("007", "no", "+8"), 2), ((str(large),), 1), (("no",), 0)):
            number = len(made.done)
            topic.say(*texts)
            until(lambda number=number: len(made.done) > number)  # type: ignore[misc]
            assert made.done[-1].counts.updated == updated, texts


def test_records_that_were_deleted_before_they_were_read_make_a_run_of_the_whole_mart(
    shop: Workshop, topic: Topic
) -> None:
    """The wheel's broker deletes no records: the place in the ledger is put before the first one instead."""
    shop.sync("users", when=topic.trigger)
    with running(shop) as made:
        until(lambda: made.done and kept(shop).get("offsets") == {"0": 0})
        ledger = made.watch.hold.ledger
        name = topic_name("users")
        said = json.loads(ledger.kept(name) or "")
        ledger.keep(name, json.dumps(said | {"offsets": {"0": -1}}))
    shop.warehouse("UPDATE users SET spend = spend + 1 WHERE user_id = 9")
    with running(shop) as made:
        until(lambda: made.done)
        assert (made.done[0].counts.read, made.done[0].counts.updated) == (ROWS, 1)
        until(lambda: kept(shop)["offsets"] == {"0": 0})


def test_a_topic_in_which_nobody_speaks_costs_little_and_leaves_nothing(shop: Workshop, topic: Topic) -> None:
    shop.sync("users", when=topic.trigger)
    with running(shop) as made:
        until(lambda: made.done and kept(shop).get("offsets") == {"0": 0})
        sleep(1)
        before = resource.getrusage(resource.RUSAGE_SELF)
        sleep(5)
        after = resource.getrusage(resource.RUSAGE_SELF)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"{spent / 5 * 1000:.1f} ms of CPU in a second")
        assert spent / 5 < 0.05
        held = _memory()
        topic.say_many(str(number % 500) for number in range(100_000))
        topic.say("1")
        until(lambda: kept(shop)["offsets"] == {"0": 100_001})
        print(f"{_memory() - held} bytes more after 100,000 records, {len(made.done)} runs")
        assert _memory() - held < 60_000_000


def _memory() -> int:
    """Bytes that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
