"""Kafka passes the suite, and keeps the promises that are its own: whole batches, marks, fences."""

from __future__ import annotations

import json
import os
import secrets
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace
from pydantic import ValidationError

from retl.destinations.batch import (
    UNKNOWN,
    Batch,
    Field,
    Kind,
    Mode,
    Outcome,
    Shape,
    Trace,
    Visit,
    WriteMode,
)
from retl.destinations.kafka.adapter import Kafka, KafkaOptions
from retl.errors import Ambiguous, Mismatch, Systemic, Unavailable
from retl.values.types import Type
from tests.destinations.rows import Row, Rows
from tests.destinations.suite import FIELDS, STRING, Contents, Suite, Target, deliver, kinds, sample
from tests.kafka import ELSEWHERE, LOGIN, Broker, Relay, headers
from tests.proxy import Proxy

SHAPE = Shape("suite", "state-1", (Field("id", STRING),), FIELDS, "upsert", "delete")
ROOM = 1 << 17  # bytes of a record, in place of the real limit


class KafkaTarget(Target):
    """A topic of its own, reached through a proxy."""

    type = "kafka"
    counts_all = False
    commit = b"\x00\x1a\x00\x01"  # EndTxn

    def __init__(self, broker: Broker, relay: Relay, proxy: Proxy, write: WriteMode) -> None:
        self.broker, self.relay, self.proxy, self.write = broker, relay, proxy, write
        self.shape, self.topic = SHAPE, f"users-{secrets.token_hex(6)}"

    def make(self, shape: Shape, *, secret: str | None = None, **options: Any) -> Kafka:
        self.shape = shape
        user, password = LOGIN
        connection = {
            "servers": f"{self.proxy.host}:{self.proxy.port}",
            "user": user,
            "password": secret or password,
            "mechanism": "PLAIN",
            "timeout": 1,
            "connect_timeout": 1,
        }
        made = {
            "connection": connection,
            "topic": self.topic,
            "create": True,
            "partitions": 2,
            "compression": "none",
        }
        return Kafka(KafkaOptions.model_validate(made | {"max_message_bytes": ROOM} | options), shape)

    def contents(self) -> Contents:
        found: Contents = {}
        for one in self.broker.committed(self.topic):
            text = bytes(one.key() or b"").decode()
            key = tuple(json.loads(text).values()) if len(self.shape.key) > 1 else (text,)
            if (value := one.value()) is None:
                found.pop(key, None)
            else:
                row = json.loads(value, parse_float=Decimal)
                assert tuple(row.pop(field.name) for field in self.shape.key) == key
                found[key] = row
        return found

    def poison(self, row: Row) -> Row:
        return (row[0], row[1] + "x" * ROOM, *row[2:])

    def forbid(self) -> None:
        self.relay.readonly = True

    def annotate(self, key: Row) -> Callable[[], bool] | None:
        return None


@pytest.fixture
def relay(kafka_broker: Broker) -> Iterator[Relay]:
    with Relay(kafka_broker) as relay:
        yield relay


@pytest.fixture
def proxy(relay: Relay) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", relay.port) as proxy:
        relay.public = proxy.port
        yield proxy


class TestUpsert(Suite):
    @pytest.fixture
    def target(self, kafka_broker: Broker, relay: Relay, proxy: Proxy) -> KafkaTarget:
        return KafkaTarget(kafka_broker, relay, proxy, "upsert")


if os.environ.get("RETL_TEST_ALL"):  # the same requests and marks; only a row that changed is not sent

    class TestAppend(Suite):
        @pytest.fixture
        def target(self, kafka_broker: Broker, relay: Relay, proxy: Proxy) -> KafkaTarget:
            return KafkaTarget(kafka_broker, relay, proxy, "append")


# what no suite asks for


class Topic:
    """A topic of the test, reached directly."""

    def __init__(self, broker: Broker) -> None:
        self.broker, self.name = broker, f"users-{secrets.token_hex(6)}"

    def make(self, shape: Shape = SHAPE, **options: Any) -> Kafka:
        made = {"connection": {"servers": self.broker.address}, "topic": self.name, "create": True}
        return Kafka(KafkaOptions.model_validate(made | options), shape)

    def ready(self, epoch: int = 1, marks: frozenset[str] = frozenset(), shape: Shape = SHAPE) -> Kafka:
        made = self.make(shape)
        made.check(Visit(f"run-{epoch}", epoch))
        made.prepare(Visit(f"run-{epoch}", epoch, marks))
        return made

    def held(self) -> list[str]:
        return sorted(bytes(one.key() or b"").decode() for one in self.broker.committed(self.name))


@pytest.fixture
def topic(kafka_broker: Broker) -> Topic:
    return Topic(kafka_broker)


def batch(run: int = 1, count: int = 3, first: int = 0, mode: Mode = "append") -> Batch:
    rows = Rows(SHAPE, sample(first + count))
    return replace(rows.batch(mode, first=first, run_id=f"run-{run}"), epoch=run)


def test_a_record_has_the_key_the_row_and_headers(topic: Topic) -> None:
    shape = replace(SHAPE, key=(Field("id", Type("integer")), Field("day", Type("date"))))
    destination = topic.ready(shape=shape)
    rows = Rows(shape, [(7, date(2026, 11, 21), "Zoë", Decimal("1.10"), None)])
    deliver(destination, rows.batch())
    deliver(destination, rows.batch("delete"))
    written, gone = topic.broker.committed(topic.name)
    assert written.key() == gone.key() == b'{"id":7,"day":"2026-11-21"}'
    assert written.value() == (
        '{"id":7,"day":"2026-11-21","name":"Zoë","amount":1.10,"visits":null}'.encode()
    )
    assert gone.value() is None
    said = headers(written)
    assert said.pop("retl-batch").startswith(rows.batch().id)
    assert said == {"retl-run": "run-1", "retl-op": "upsert", "retl-version": "1"}
    assert headers(gone)["retl-op"] == "delete"


def test_a_batch_that_was_not_applied_goes_again_and_one_that_was_does_not(topic: Topic) -> None:
    destination = topic.ready()
    assert topic.make().resolve(batch(), None, act=False).default.kind is Kind.RETRY
    assert destination.resolve(batch(), None).default.kind is Kind.RETRY
    assert kinds(deliver(destination, batch())) == [Kind.WRITTEN] * 3
    for later in (topic.make(), destination):
        assert later.resolve(batch(), None, act=False).default.kind is Kind.WRITTEN
        assert later.resolve(batch(), None).default.kind is Kind.WRITTEN
        assert kinds(deliver(later, batch())) == [Kind.WRITTEN] * 3
    assert topic.held() == ["k0", "k1", "k2"]


def test_a_commit_without_an_answer_is_in_doubt_until_the_marks_are_read(
    topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = topic.ready()
    session = destination._open(1)

    def unanswered(within: object) -> bool:
        commit(within)
        return False

    commit = session.producer.commit
    monkeypatch.setattr(session.producer, "commit", unanswered)
    with pytest.raises(Ambiguous):
        destination.write(batch())
    assert destination.resolve(batch(), None).default.kind is Kind.WRITTEN
    assert topic.held() == ["k0", "k1", "k2"]


def test_a_row_that_no_record_can_be_keeps_its_answer(topic: Topic) -> None:
    rows = Rows(SHAPE, [("a", "x" * 2000, None, 1), ("b", "\ud800", None, 2), ("c", "c", None, 3)])
    destination = topic.make(max_message_bytes=1000)
    destination.prepare(Visit("run-1", 1))
    codes = [one.code for one in deliver(destination, rows.batch())]
    assert codes == ["TOO_LARGE", "NOT_UNICODE", None]
    found = topic.make().resolve(rows.batch(), None)
    assert [found.result(row).code for row in range(3)] == codes


def test_an_older_run_that_wakes_up_writes_nothing(topic: Topic) -> None:
    old = topic.ready(1)
    deliver(old, batch(1))
    new = topic.ready(2, frozenset({"run-1"}))
    for _ in range(2):  # fenced off by the broker, and then by what it reads when it tries again
        with pytest.raises((Unavailable, Systemic)) as fenced:
            old.write(batch(1, first=3))
    assert fenced.value.code == "VOIDED"
    with pytest.raises(Systemic):
        topic.ready(1)
    deliver(new, batch(2, first=3))
    assert topic.held() == ["k0", "k1", "k2", "k3", "k4", "k5"]
    assert {run for run, _ in new.check(Visit("run-3", 3)).batches} == {"run-1", "run-2"}


def test_a_batch_that_a_newer_run_resolved_is_never_applied_later(topic: Topic) -> None:
    old = topic.ready(1)
    assert topic.make().resolve(replace(batch(1), epoch=2), None).default.kind is Kind.RETRY
    for _ in range(2):
        with pytest.raises((Unavailable, Systemic)) as fenced:
            old.write(batch(1))
    assert fenced.value.code == "VOIDED"
    assert topic.held() == []


def test_another_ledger_is_seen_and_whoever_begins_last_writes(topic: Topic) -> None:
    ours = topic.ready()
    deliver(ours, batch())
    theirs = topic.make(replace(SHAPE, state_id="state-2"))
    trace = theirs.check(Visit("run-9", 1))
    assert trace.strangers
    assert trace.batches == frozenset()
    theirs.prepare(Visit("run-9", 1))
    for _ in range(2):
        with pytest.raises((Unavailable, Systemic)) as fenced:
            ours.write(batch(first=3))
    assert fenced.value.code == "VOIDED"
    again = topic.make().check(Visit("run-2", 2))
    assert (len(again.batches), again.strangers) == (1, False)


def test_marks_that_the_ledger_no_longer_needs_are_dropped(topic: Topic) -> None:
    for run in (1, 2, 3):
        deliver(topic.ready(run, frozenset({f"run-{run - 1}"})), batch(run, first=3 * run))
    trace = topic.make().check(Visit("run-4", 4))
    assert {run for run, _ in trace.batches} == {"run-2", "run-3"}
    assert trace.epoch == 3


def test_a_topic_that_was_made_again_has_no_marks(topic: Topic) -> None:
    deliver(topic.ready(), batch())
    assert len(topic.make().check(Visit("run-2", 2)).batches) == 1
    (gone,) = topic.broker.admin.delete_topics([topic.name], operation_timeout=10).values()
    gone.result(10)
    assert topic.make().check(Visit("run-2", 2)).batches == frozenset()
    topic.make().prepare(Visit("run-2", 2))
    assert topic.make().check(Visit("run-2", 2)).batches == frozenset()


def test_a_run_that_was_asked_to_stop_ends_before_its_commit(topic: Topic) -> None:
    destination = topic.ready()
    destination.interrupt()
    with pytest.raises(Unavailable):
        destination.write(batch())
    assert topic.held() == []


def test_a_transaction_that_is_open_leaves_a_look_without_evidence(topic: Topic) -> None:
    destination = topic.ready()
    open_ = Producer(topic.broker.quiet | {"transactional.id": f"retl/{topic.name}"})
    open_.init_transactions(10)
    open_.begin_transaction()
    open_.produce(f"{topic.name}.retl", b'{"epoch":0}', b'["fence","state-1","other"]', partition=0)
    open_.flush(10)
    looked = destination.resolve(batch(), None, act=False)
    assert looked == Outcome(UNKNOWN) or not ELSEWHERE  # Tansu shows what is not committed
    assert destination.resolve(batch(), None).default.kind is Kind.RETRY


if ELSEWHERE:

    def test_what_is_aborted_is_seen_by_nobody(topic: Topic, monkeypatch: pytest.MonkeyPatch) -> None:
        destination = topic.ready()
        monkeypatch.setattr(destination._open(1).producer, "commit", lambda _: False)
        with pytest.raises(Ambiguous):
            destination.write(batch())
        assert destination.resolve(batch(), None).default.kind is Kind.RETRY
        assert topic.broker.records(topic.name) == []
        deliver(destination, batch())
        assert len(topic.broker.records(topic.name)) == 3


# TLS


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that signs itself; its key is in the same file."""
    key, name, now = ec.generate_private_key(ec.SECP256R1()), x509.Name([]), datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder(
        name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1)
    )
    made = made.add_extension(address, critical=True)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    signed = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path = tmp_path / "broker.pem"
    path.write_bytes(signed + key.private_bytes(serialization.Encoding.PEM, *private))
    return path


def test_brokers_are_verified_and_nothing_turns_that_off(relay: Relay, certificate: Path) -> None:
    relay.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    relay.tls.load_cert_chain(certificate)
    user, password = LOGIN
    login = {"user": user, "password": password, "mechanism": "PLAIN", "timeout": 2, "connect_timeout": 2}

    def check(host: str = "127.0.0.1", **connection: Any) -> Trace:
        to = login | {"servers": f"{host}:{relay.port}"} | connection
        options = KafkaOptions.model_validate({"connection": to, "topic": "x", "create": True})
        return Kafka(options, SHAPE).check(Visit("run-1", 1))

    assert check(tls=True, tls_ca_file=str(certificate)) == Trace()
    for host, file in (("127.0.0.1", None), ("localhost", certificate), ("127.0.0.1", certificate / "none")):
        with pytest.raises(Systemic) as caught:
            check(host, tls=True, tls_ca_file=file and str(file))
        assert caught.value.code == "TLS_UNVERIFIED"
    with pytest.raises(Unavailable):
        check()


# options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"topic": "a b"}, "letters, digits"),
        ({"topic": ".."}, "letters, digits"),
        ({"marks": "x"}, "another topic"),
        ({"partitions": 3}, "`partitions` is for"),
        ({"connection": {"servers": "kafka-1:9092"}}, "need `tls: true`"),
        ({"connection": {"servers": "kafka-1", "tls": True}}, "host:port"),
        ({"connection": {"servers": "u:p@kafka-1:9092", "tls": True}}, "host:port"),
        ({"connection": {"user": "a"}}, "belong together"),
        ({"connection": {"mechanism": "PLAIN"}}, "is for a `user`"),
        ({"connection": {"tls": True, "tls_cert_file": "a"}}, "belong together"),
        ({"connection": {"tls_ca_file": "a"}}, "need `tls: true`"),
        ({"connection": {"timeout": "20m"}}, "1s to 400s"),
        ({"schema_registry": "http://localhost"}, "Extra inputs"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        KafkaOptions.model_validate({"topic": "x"} | options)


def test_a_topic_that_nobody_makes_is_a_mismatch(topic: Topic) -> None:
    with pytest.raises(Mismatch) as caught:
        topic.make(create=False).check(Visit("run-1", 1))
    assert caught.value.code == "TARGET_DRIFT"


def test_a_place_is_the_cluster_and_the_topic_and_never_a_secret() -> None:
    connection = {"servers": ["B:9093", "a:9093"], "tls": True, "user": "u", "password": "p"}
    options = KafkaOptions.model_validate({"connection": connection, "topic": "T.x"})
    assert Kafka.place(options, "append") == "kafka:a:9093,b:9093/T.x"
