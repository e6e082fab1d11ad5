"""Values with a schema from a registry: what is registered, what is refused before a row is sent, what arrives."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import UUID

import fastavro
import pytest
from msgspec.structs import replace
from pydantic import ValidationError

from retl.destinations.batch import Field, Kind, Shape, Visit
from retl.destinations.kafka import avro, json_schema
from retl.destinations.kafka.adapter import Kafka, KafkaOptions
from retl.errors import DefinitionError, Mismatch, Systemic, Unavailable
from retl.model import Formats
from retl.testing.faults import Fault, answer, cut, passed
from retl.values.types import Type
from tests.destinations.rows import Rows, plain
from tests.destinations.suite import (
    EVERY_TYPE,
    FIELDS,
    STRING,
    VALUES,
    Contents,
    Suite,
    deliver,
    kinds,
    sample,
)
from tests.destinations.test_kafka import SHAPE, KafkaTarget, Topic, certificate, proxy, relay, topic
from tests.kafka import Broker, Relay
from tests.proxy import Proxy
from tests.schema_registry import SchemaRegistry

__all__ = ["certificate", "proxy", "relay", "topic"]  # fixtures
VISIT = Visit("run-1", 1)
NAMED = {one.name: one for one in EVERY_TYPE}
AMOUNT = {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}


@pytest.fixture
def registry() -> Iterator[SchemaRegistry]:
    with SchemaRegistry() as registry:
        yield registry


class RegistryTarget(KafkaTarget):
    """The same topics, with values that the registry's schemas decode."""

    value = "avro"

    def __init__(self, registry: SchemaRegistry, broker: Broker, relay: Relay, proxy: Proxy) -> None:
        super().__init__(broker, relay, proxy, "upsert")
        self.registry = registry

    def make(self, shape: Shape, *, secret: str | None = None, **options: Any) -> Kafka:
        given = {"value": self.value, "register_schema": True, **options}
        plain = super().make(shape, secret=secret)
        connection = plain.options.connection.model_dump() | {
            "registry": self.registry.connection,
            "password": plain.options.connection.password,
        }
        made = {**plain.options.model_dump(exclude_unset=True), "connection": connection, **given}
        return Kafka(KafkaOptions.model_validate(made), shape)

    def contents(self) -> Contents:
        types = {one.name: one.type for one in (*self.shape.key, *self.shape.fields)}
        found: Contents = {}
        for one in self.broker.committed(self.topic):
            text = bytes(one.key() or b"").decode()
            key = tuple(json.loads(text).values()) if len(self.shape.key) > 1 else (text,)
            if (value := one.value()) is None:
                found.pop(key, None)
            else:
                read = self.registry.decoded(value)
                row = {name: self.told(read[name], types[name]) for name in read}
                assert tuple(row.pop(field.name) for field in self.shape.key) == key
                found[key] = row
        return found

    def told(self, value: Any, type_: Type) -> Any:
        return plain(value, type_)


class JsonTarget(RegistryTarget):
    value = "json_schema"

    def told(self, value: Any, type_: Type) -> Any:
        return value


class TestAvro(Suite):
    @pytest.fixture
    def target(
        self, registry: SchemaRegistry, kafka_broker: Broker, relay: Relay, proxy: Proxy
    ) -> RegistryTarget:
        return RegistryTarget(registry, kafka_broker, relay, proxy)


class Subject:
    """A topic and its subject, reached directly."""

    def __init__(self, topic: Topic, registry: SchemaRegistry) -> None:
        self.topic, self.registry, self.name = topic, registry, f"{topic.name}-value"

    def make(self, shape: Shape = SHAPE, **options: Any) -> Kafka:
        registry = self.registry.connection | options.pop("registry", {})
        connection = {"servers": self.topic.broker.address, "registry": registry}
        made = {"value": "avro", "register_schema": True, "connection": connection, **options}
        return self.topic.make(shape, **made)

    def ready(self, shape: Shape = SHAPE, **options: Any) -> Kafka:
        made = self.make(shape, **options)
        made.check(VISIT)
        made.prepare(VISIT)
        return made

    def values(self) -> list[Any]:
        found = [one.value() for one in self.topic.broker.committed(self.topic.name)]
        return [None if one is None else self.registry.decoded(one) for one in found]


@pytest.fixture
def subject(topic: Topic, registry: SchemaRegistry) -> Subject:
    return Subject(topic, registry)


# what is registered, and what is sent


def test_a_value_is_a_zero_the_id_of_its_schema_and_avro(subject: Subject) -> None:
    key = (Field("id", Type("integer")),)
    shape = replace(SHAPE, key=key, fields=(Field("name", STRING), Field("amount", Type("decimal", 12, 2))))
    destination = subject.ready(shape)
    rows = Rows(shape, [(7, "Zoë", Decimal("-1.10")), (8, None, None)])
    deliver(destination, rows.batch())
    deliver(destination, replace(rows.batch("delete"), last=0))
    head = b"\x00\x00\x00\x00\x01"
    golden = {b"7": head + b"\x0e" + b"\x02\x08Zo\xc3\xab" + b"\x02\x02\x92", b"8": head + b"\x10\x00\x00"}
    found = [(one.key(), one.value()) for one in subject.topic.broker.committed(subject.topic.name)]
    assert sorted(found, key=str) == sorted([*golden.items(), (b"7", None)], key=str)


def test_the_schema_is_that_of_the_contract(subject: Subject) -> None:
    fields = (*(replace(one, nullable=False) for one in EVERY_TYPE[:10]), EVERY_TYPE[10])
    subject.ready(replace(SHAPE, fields=(*fields, Field("note", STRING, description="What they said"))))
    found = subject.registry.newest(subject.name)
    assert found.pop("name") == subject.topic.name.replace("-", "_")
    assert found.pop("type") == "record"
    types = {one["name"]: one["type"] for one in found.pop("fields")}
    assert found == {}
    assert types == {
        "id": "string",
        "text": "string",
        "uuid": {"type": "string", "logicalType": "uuid"},
        "whole": "long",
        "exact": {"type": "bytes", "logicalType": "decimal", "precision": 38, "scale": 10},
        "real": "double",
        "flag": "boolean",
        "day": {"type": "int", "logicalType": "date"},
        "naive": {"type": "long", "logicalType": "local-timestamp-micros"},
        "moment": {"type": "long", "logicalType": "timestamp-micros"},
        "data": "string",
        "tags": ["null", {"type": "array", "items": ["null", "string"]}],
        "note": ["null", "string"],
    }
    note = subject.registry.newest(subject.name)["fields"][-1]
    assert (note["default"], note["doc"]) == (None, "What they said")


def test_every_type_arrives_as_it_was(subject: Subject) -> None:
    shape = replace(SHAPE, fields=EVERY_TYPE)
    deliver(subject.ready(shape), Rows(shape, VALUES).batch())
    found = {row.pop("id"): row for row in subject.values()}
    for key, *values in VALUES:
        told = dict(zip(NAMED, values, strict=True))
        if told["moment"] is not None:
            told["moment"] = told["moment"].astimezone(UTC)
        assert found[key] == told
        assert list(map(type, found[key].values())) == list(map(type, told.values()))


def test_json_has_the_head_too_and_its_schema_takes_it(subject: Subject) -> None:
    shape = replace(SHAPE, fields=EVERY_TYPE)
    for formats in (
        Formats(),
        Formats(bigints="string", decimals="string", dates="epoch_ms", timestamps="epoch_s"),
    ):
        columns = (*shape.key, *shape.fields)
        schema = json_schema.schema_of("x", columns, formats)
        assert list(json_schema.unfit(schema, columns, formats)) == []
    destination = subject.ready(shape, value="json_schema")
    deliver(destination, Rows(shape, VALUES).batch())
    found = {row.pop("id"): row for row in subject.values()}
    assert found["high"]["exact"] == VALUES[1][4]
    assert found["high"]["data"] == {"a": [1, {"b": None}], "c": Decimal("1.10")}
    assert found["null"] == dict.fromkeys(NAMED)
    newest = subject.registry.newest(subject.name)
    assert newest["required"] == ["id"]
    assert newest["additionalProperties"] is False


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "{topic}-value"),
        ({"subject": "record", "record": "crm.Segment"}, "crm.Segment"),
        ({"subject": "topic_record", "record": "crm.Segment"}, "{topic}-crm.Segment"),
        ({"subject": "record"}, "{record}"),
    ],
)
def test_a_subject_is_named_by_topic_record_or_both(
    subject: Subject, options: dict[str, Any], named: str
) -> None:
    subject.ready(**options)
    topic = subject.topic.name
    assert [*subject.registry.subjects] == [named.format(topic=topic, record=topic.replace("-", "_"))]
    found = subject.registry.newest(*subject.registry.subjects)
    whole = ".".join(filter(None, (found.get("namespace"), found["name"])))
    assert whole == options.get("record", topic.replace("-", "_"))


def test_the_registry_is_asked_once_per_run_and_not_by_writes(subject: Subject) -> None:
    checks, prepares, writes = (subject.make() for _ in range(3))
    for lane in (prepares, writes):  # the lanes of a run share the options of its sync
        lane._schemas._options = checks.options  # type: ignore[union-attr]
    checks.check(VISIT)
    prepares.prepare(VISIT)
    asked = [f"POST /subjects/{subject.name}", f"POST /compatibility/subjects/{subject.name}/versions/latest"]
    assert subject.registry.asked == [*asked, f"POST /subjects/{subject.name}/versions"]
    subject.registry.seen.clear()
    for run in range(2):
        deliver(writes, Rows(SHAPE, sample(3)).batch(run_id=f"run-{run}"))
    checks.check(VISIT)
    assert subject.registry.asked == []
    checks.check(Visit("run-2", 2))
    assert subject.registry.asked == [f"POST /subjects/{subject.name}"]


def test_a_look_registers_nothing_and_says_what_a_run_will(subject: Subject) -> None:
    destination = subject.make()
    destination.check(Visit("none", 0))
    assert f"registers the schema of its values as a new version of {subject.name}" in destination.notes()[-1]
    assert subject.registry.subjects == {}
    destination.prepare(VISIT)
    assert all(subject.name not in note for note in destination.notes())


def test_a_preview_asks_nobody(subject: Subject) -> None:
    made = subject.make()
    assert made.preview(Rows(SHAPE, [("a", "b", Decimal("1.10"), None)]).batch()) == (
        b'a\t{"id":"a","name":"b","amount":1.10,"visits":null}\n'
    )
    assert subject.registry.seen == []


# a contract that changes


def test_a_new_optional_field_is_a_new_version_and_a_new_required_one_is_refused(subject: Subject) -> None:
    deliver(subject.ready(), Rows(SHAPE, sample(1)).batch())
    wider = replace(SHAPE, fields=(*FIELDS, Field("note", STRING)))
    deliver(subject.ready(wider), Rows(wider, [("k1", "n", None, None, "hello")]).batch(run_id="run-2"))
    assert subject.registry.subjects[subject.name] == [1, 2]
    assert [row.get("note") for row in subject.values()] == [None, "hello"]
    demanding = replace(wider, fields=(*wider.fields, Field("must", STRING, nullable=False)))
    with pytest.raises(Mismatch) as refused:
        subject.make(demanding).check(VISIT)
    assert refused.value.code == "TARGET_DRIFT"
    assert "READER_FIELD_MISSING_DEFAULT_VALUE" in refused.value.message
    assert "oldSchema: " not in refused.value.message
    assert "nullable: true" in str(refused.value.hint)
    assert "compatibility at the registry" in str(refused.value.hint)
    assert subject.registry.subjects[subject.name] == [1, 2]


def test_a_field_that_is_gone_depends_on_the_schema_and_the_level(subject: Subject) -> None:
    subject.ready()
    narrower = replace(SHAPE, fields=FIELDS[:1])
    subject.ready(narrower)  # readers of Avro with the new schema skip the old field
    assert subject.registry.subjects[subject.name] == [1, 2]
    named = {"value": "json_schema", "subject": "record", "record": "crm.Segment"}
    subject.ready(**named)
    with pytest.raises(Mismatch, match="PROPERTY_REMOVED_FROM_CLOSED_CONTENT_MODEL"):
        subject.ready(narrower, **named)
    subject.registry.levels["crm.Segment"] = "NONE"
    subject.ready(narrower, **named)


def test_json_takes_a_new_optional_field(subject: Subject) -> None:
    subject.ready(value="json_schema")
    wider = replace(SHAPE, fields=(*FIELDS, Field("note", STRING)))
    subject.ready(wider, value="json_schema")
    assert len(subject.registry.subjects[subject.name]) == 2


def test_what_a_registry_refuses_only_when_asked_to_register_is_a_mismatch_too(subject: Subject) -> None:
    """Its level may be one that compares all versions."""
    subject.ready()
    changed = subject.make(replace(SHAPE, fields=(Field("name", Type("integer")),)))
    subject.registry.misbehave(passed, answer(200, '{"is_compatible": true}'))
    changed.check(VISIT)
    with pytest.raises(Mismatch, match="TYPE_MISMATCH") as refused:
        changed.prepare(VISIT)
    assert refused.value.code == "TARGET_DRIFT"
    assert subject.topic.held() == []


# a schema that is there


def record(**types: Any) -> dict[str, Any]:
    fields = [{"name": name, "type": type_} for name, type_ in types.items()]
    return {"type": "record", "name": "Theirs", "namespace": "crm", "fields": fields}


def test_without_registering_the_newest_version_is_used_and_its_defaults_are_sent(subject: Subject) -> None:
    mine = record(visits=["long", "null"], id="string", name=["null", "string"], amount=["null", AMOUNT])
    mine["fields"].append({"name": "source", "type": "string", "default": "theirs"})
    subject.registry.add(subject.name, record(id="string"))
    subject.registry.add(subject.name, mine)
    destination = subject.ready(register_schema=False)
    deliver(destination, Rows(SHAPE, [("a", None, Decimal("1.10"), 3), ("b", "b", None, None)]).batch())
    assert sorted(subject.values(), key=str) == [
        {"visits": 3, "id": "a", "name": None, "amount": Decimal("1.10"), "source": "theirs"},
        {"visits": None, "id": "b", "name": "b", "amount": None, "source": "theirs"},
    ]
    assert {method.split()[0] for method in subject.registry.asked} == {"GET"}


def test_a_subject_that_is_not_there_has_both_ways_out(subject: Subject) -> None:
    with pytest.raises(Mismatch) as refused:
        subject.make(register_schema=False).check(VISIT)
    assert refused.value.code == "TARGET_DRIFT"
    assert f"no subject {subject.name}" in refused.value.message
    assert "register_schema: true" in str(refused.value.hint)


def test_what_the_newest_version_cannot_hold_is_said_before_anything_is_sent(subject: Subject) -> None:
    subject.registry.add(subject.name, record(id="string", name="string", amount="double", extra="int"))
    with pytest.raises(Mismatch) as refused:
        subject.make(register_schema=False).check(VISIT)
    said = refused.value.message
    assert "version 1 of" in said
    assert "its field name takes no null" in said
    assert "its field amount takes no null" in said
    assert "it has no field visits" in said
    assert "and 1 more" in said
    assert "register a version there that fits" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("type_", "held", "refused"),
    [
        (STRING, ["string"], ["bytes", {"type": "string", "logicalType": "uuid"}, {"type": "enum", "name": "e", "symbols": ["a"]}]),
        (Type("uuid"), ["string", {"type": "string", "logicalType": "uuid"}], [{"type": "fixed", "name": "f", "size": 16, "logicalType": "uuid"}]),
        (Type("integer"), ["long"], ["int", "double", {"type": "long", "logicalType": "timestamp-micros"}]),
        (Type("decimal", 12, 2), [AMOUNT, AMOUNT | {"precision": 14, "scale": 4}, {"type": "fixed", "name": "f", "size": 6, "logicalType": "decimal", "precision": 12, "scale": 2}],
         ["double", "string", "bytes", AMOUNT | {"scale": 1}, AMOUNT | {"scale": 4}, {"type": "fixed", "name": "f", "size": 5, "logicalType": "decimal", "precision": 12, "scale": 2}]),
        (Type("float"), ["double"], ["float", "string"]),
        (Type("boolean"), ["boolean"], ["int"]),
        (Type("date"), [{"type": "int", "logicalType": "date"}], ["int", "string", {"type": "long", "logicalType": "timestamp-micros"}]),
        (Type("timestamp"), [{"type": "long", "logicalType": "local-timestamp-micros"}], ["long", {"type": "long", "logicalType": "timestamp-micros"}, {"type": "long", "logicalType": "local-timestamp-millis"}]),
        (Type("timestamptz"), [{"type": "long", "logicalType": "timestamp-micros"}], [{"type": "long", "logicalType": "timestamp-millis"}, {"type": "long", "logicalType": "local-timestamp-micros"}]),
        (Type("json"), ["string"], [{"type": "map", "values": "string"}]),
        (Type("list", items="string"), [{"type": "array", "items": ["null", "string"]}], ["string", {"type": "array", "items": "string"}, {"type": "array", "items": ["null", "long"]}]),
    ],
)  # fmt: skip
def test_a_type_of_avro_holds_every_value_or_is_refused(
    type_: Type, held: list[Any], refused: list[Any]
) -> None:
    column = (Field("x", type_, nullable=False),)
    values = [row[1 + n] for row in VALUES for n, one in enumerate(EVERY_TYPE) if one.type.name == type_.name]
    if type_.name == "decimal":
        values = [Decimal("9999999999.99"), Decimal("-9999999999.99"), Decimal("0.00"), Decimal("-0.01")]
    for avro_type in held:
        for offered in (avro_type, ["null", avro_type]):
            schema = json.dumps(record(x=offered))
            assert list(avro.unfit(schema, column)) == []
            encode = avro.encoder(schema, column, b"", values=1)
            for value in values:
                if value is None:
                    continue
                found = fastavro.schemaless_reader(BytesIO(encode((value,))), json.loads(schema), None)["x"]
                assert plain(found, type_) == plain(value, type_)
    for avro_type in refused:
        assert len(list(avro.unfit(json.dumps(record(x=avro_type)), column))) == 1
    assert "takes no null" in next(avro.unfit(json.dumps(record(x=held[0])), (Field("x", type_),)))
    assert "several types" in next(avro.unfit(json.dumps(record(x=[held[0], "null", "float"])), column))


@pytest.mark.parametrize(
    ("type_", "taken", "refused"),
    [
        (STRING, [{"type": "string"}, {}, True, {"type": ["string", "null"], "title": "t"}], [{"type": "number"}, {"type": "string", "maxLength": 3}, {"type": "string", "format": "email"}, {"enum": ["a"]}]),
        (Type("uuid"), [{"type": "string", "format": "uuid"}], [{"type": "string", "format": "date"}]),
        (Type("integer"), [{"type": "integer"}, {"type": "number", "connect.type": "int64"}], [{"type": "integer", "minimum": 0}, {"oneOf": [{"type": "integer"}, {"type": "number"}]}]),
        (Type("decimal", 12, 2), [{"type": "number"}], [{"type": "integer"}, {"type": "string"}]),
        (Type("date"), [{"type": "string", "format": "date"}], [{"type": "integer"}, {"type": "string", "format": "date-time"}]),
        (Type("json"), [{}], [{"type": "object"}, {"type": ["object", "null"]}]),
        (Type("list", items="string"), [{"type": "array"}, {"type": "array", "items": {"type": ["null", "string"]}}], [{"type": "array", "items": {"type": "string"}}, {"type": "array", "maxItems": 2}, {"type": "string"}]),
    ],
)  # fmt: skip
def test_a_json_schema_takes_every_value_or_is_refused(
    type_: Type, taken: list[Any], refused: list[Any]
) -> None:
    def unfit(schema: Any, *, nullable: bool = False) -> list[str]:
        whole = json.dumps({"type": "object", "properties": {"x": schema}})
        return list(json_schema.unfit(whole, (Field("x", type_, nullable=nullable),), Formats()))

    for schema in taken:
        assert unfit(schema) == []
    if taken[0]:
        assert unfit({"anyOf": [{"type": "null"}, taken[0]]}, nullable=True) == []
    for schema in refused:
        assert len(unfit(schema)) == 1
    if taken[0]:
        assert unfit(taken[0], nullable=True) == ["its property x takes no null"]


@pytest.mark.parametrize(
    ("schema", "kind", "words"),
    [
        ({"type": "string"}, "AVRO", "it is no record"),
        ({"type": "object"}, "JSON", "it is JSON, and `value: avro` writes AVRO"),
        ("syntax = 'proto3';", "PROTOBUF", "it is PROTOBUF"),
        ("not JSON", "AVRO", "no valid schema"),
        ({"type": "record", "fields": [{}]}, "AVRO", "no valid schema"),
        ([], "AVRO", "it is no record"),
    ],
)
def test_a_schema_that_is_none_of_rows_is_refused(
    subject: Subject, schema: Any, kind: str, words: str
) -> None:
    subject.registry.add(subject.name, schema, kind)
    with pytest.raises(Mismatch, match=words):
        subject.make(register_schema=False).check(VISIT)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "array"}, "it is not of `type: object`"),
        ({"type": "object", "properties": {"id": {}}, "allOf": []}, "what its allOf refuses"),
        ({"type": "object", "properties": {}}, "it has no property id"),
        ({"type": "object", "properties": {"id": {}}, "required": ["id", "x"]}, "property x is required"),
    ],
)
def test_a_json_schema_that_may_refuse_a_row_is_refused(subject: Subject, schema: Any, words: str) -> None:
    subject.registry.add(subject.name, schema, "JSON")
    made = subject.make(replace(SHAPE, fields=()), value="json_schema", register_schema=False)
    with pytest.raises(Mismatch, match=words):
        made.check(VISIT)


@pytest.mark.parametrize(
    ("avro_type", "value", "told"),
    [
        ("null", None, None),
        ("boolean", True, True),
        ("int", -3, -3),
        ("long", 2**40, 2**40),
        ("float", 1, 1.0),
        ("double", 0.1, 0.1),
        ("string", "Zoë", "Zoë"),
        ("bytes", "\u00ff\u0000", b"\xff\x00"),
        ({"type": "fixed", "name": "f", "size": 2}, "\u00ffa", b"\xffa"),
        ({"type": "enum", "name": "e", "symbols": ["a", "b"]}, "b", "b"),
        ({"type": "array", "items": "int"}, [], []),
        ({"type": "map", "values": "int"}, {}, {}),
        (["null", "int"], None, None),
        (["string", "null"], None, None),
        (["null", "string"], "x", "x"),
    ],
)
def test_a_field_that_the_sync_lacks_gets_its_default(avro_type: Any, value: Any, told: Any) -> None:
    column = (Field("x", STRING, nullable=False),)
    schema = record(x="string")
    schema["fields"].insert(0, {"name": "theirs", "type": avro_type, "default": value})
    assert list(avro.unfit(json.dumps(schema), column)) == []
    whole = avro.encoder(json.dumps(schema), column, b"")(("here",))
    assert fastavro.schemaless_reader(BytesIO(whole), schema, None) == {"theirs": told, "x": "here"}


def test_a_default_that_cannot_be_written_is_a_reason() -> None:
    column = (Field("x", STRING, nullable=False),)
    for avro_type, value in (
        ({"type": "array", "items": "int"}, [1]),
        ({"type": "record", "name": "r", "fields": []}, {}),
        ({"type": "enum", "name": "e", "symbols": ["a"]}, "z"),
        (["null", "int"], "z"),
        ("crm.Named", "z"),
    ):
        schema = record(x="string")
        schema["fields"].append({"name": "theirs", "type": avro_type, "default": value})
        (reason,) = avro.unfit(json.dumps(schema), column)
        assert "theirs has a default that retl cannot write" in reason


# a registry that is away, or refuses


def test_a_registry_that_is_away_is_unavailable_before_a_topic_is_made(subject: Subject) -> None:
    made = subject.make()
    busy = answer(503, '{"error_code": 50003, "message": "no leader"}', Retry_After="3")
    subject.registry.misbehave(cut(), busy)
    for asked in (None, 3):
        with pytest.raises(Unavailable) as away:
            made.prepare(VISIT)
        assert (away.value.code, away.value.retry_after) == ("REGISTRY_UNREACHED", asked)
        assert subject.topic.name not in subject.topic.broker.admin.list_topics(timeout=10).topics
    gone = subject.make(registry={"url": "http://127.0.0.1:9"})
    with pytest.raises(Unavailable):
        gone.check(VISIT)
    made.prepare(VISIT)


def test_who_may_not_ask_or_register_is_told_so_without_the_password(subject: Subject) -> None:
    with pytest.raises(Systemic) as refused:
        subject.make(registry={"password": "canary-77"}).check(VISIT)
    assert refused.value.code == "REGISTRY_LOGIN"
    assert "canary" not in str(refused.value) + repr(refused.value.hint)
    subject.registry.readonly = True
    made = subject.make()
    made.check(VISIT)
    with pytest.raises(Systemic) as refused:
        made.prepare(VISIT)
    assert refused.value.code == "NOPERM"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (answer(404, '{"message": "nothing here"}'), "does not answer like a schema registry"),
        (answer(200, "<html>"), "does not answer like a schema registry"),
        (answer(200, '{"id": "seven"}'), "does not answer like a schema registry"),
        (answer(302, Location="http://127.0.0.1:9/"), "does not answer like a schema registry"),
        (answer(422, '{"error_code": 42201, "message": "Invalid only-tests"}'), r"\(42201\): Invalid …"),
    ],
)
def test_an_answer_of_something_else_is_a_failure(subject: Subject, fault: Fault, words: str) -> None:
    subject.registry.misbehave(fault)
    with pytest.raises(Systemic, match=words) as refused:
        subject.make().check(VISIT)
    assert refused.value.code == "REGISTRY_REFUSED"


def test_the_registry_is_verified_by_its_own_authorities(topic: Topic, certificate: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with SchemaRegistry(tls=tls) as registry:
        subject = Subject(topic, registry)
        subject.make(registry={"tls_ca_file": str(certificate)}).check(VISIT)
        with pytest.raises(Systemic) as refused:
            subject.make().check(VISIT)
        assert refused.value.code == "TLS_UNVERIFIED"


# options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"value": "avro"}, "needs the `registry`"),
        ({"value": "protobuf"}, "'json', 'avro' or 'json_schema'"),
        ({"register_schema": True}, "are for `value: avro`"),
        ({"subject": "record"}, "are for `value: avro`"),
        ({"connection": {"registry": {"url": "http://registry"}}}, "must be https"),
        ({"connection": {"registry": {"url": "https://u:p@registry"}}}, "no user, password"),
        ({"connection": {"registry": {"url": "https://registry", "user": "u"}}}, "belong together"),
        ({"connection": {"registry": {"url": "http://localhost", "tls_ca_file": "a"}}}, "begins with https"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        KafkaOptions.model_validate({"topic": "x"} | options)


def test_names_that_avro_does_not_have_are_refused_before_anything_is_asked(subject: Subject) -> None:
    for name in ("e-mail", "1st", "a.b", "größe", ""):
        with pytest.raises(DefinitionError, match="no field of an Avro record"):
            subject.make(replace(SHAPE, fields=(Field(name, STRING),)))
        subject.make(replace(SHAPE, fields=(Field(name, STRING),)), value="json_schema")
    with pytest.raises(DefinitionError, match="no Avro record can be called"):
        subject.make(record="crm.a-b")
    assert subject.registry.seen == []


def test_files_of_the_registry_are_relative_to_the_project(tmp_path: Path) -> None:
    registry = {"url": "https://registry", "tls_ca_file": "ca.pem"}
    options = KafkaOptions.model_validate({"topic": "x", "connection": {"registry": registry}})
    placed = options.connection.placed_in(tmp_path).registry
    assert placed is not None
    assert placed.tls_ca_file == str(tmp_path / "ca.pem")


def test_a_row_that_is_no_text_costs_only_itself(subject: Subject) -> None:
    rows = Rows(SHAPE, [("a", "\ud800", None, 1), ("b", "b", None, 2)])
    assert kinds(deliver(subject.ready(), rows.batch())) == [Kind.REJECTED, Kind.WRITTEN]


def test_dates_of_the_first_and_the_last_year_are_the_same_days() -> None:
    columns = (Field("day", Type("date"), nullable=False), Field("naive", Type("timestamp"), nullable=False))
    schema = avro.schema_of("x", columns)
    for year in (1, 1969, 9999):
        row = date(year, 12, 31), datetime(year, 12, 31, 23, 59, 59, 999999)
        found = fastavro.schemaless_reader(
            BytesIO(avro.encoder(schema, columns, b"", values=len(columns))(row)), json.loads(schema), None
        )
        assert (found["day"], found["naive"]) == row


def test_lists_have_items_of_every_type(subject: Subject) -> None:
    types = ("uuid", "date", "timestamp", "timestamptz", "integer", "float", "boolean")
    fields = tuple(Field(one, Type("list", items=one)) for one in types)  # type: ignore[arg-type]
    shape = replace(SHAPE, fields=fields)
    values = {
        "uuid": UUID(int=8),
        "date": date(2026, 2, 28),
        "timestamp": datetime(1, 1, 1, 0, 0, 0, 1),
        "timestamptz": datetime(2026, 3, 29, 1, 30, tzinfo=UTC),
        "integer": -(2**63),
        "float": 0.1,
        "boolean": True,
    }
    row = [[values[one], None] for one in types]
    deliver(subject.ready(shape), Rows(shape, [("a", *row), ("b", *[[] for _ in types])]).batch())
    found = {one.pop("id"): one for one in subject.values()}
    assert found == {"a": dict(zip(types, row, strict=True)), "b": {one: [] for one in types}}


def test_a_key_of_several_types_is_the_same_in_key_and_value(subject: Subject) -> None:
    names = ("text", "uuid", "whole", "exact", "flag", "day", "naive", "moment")
    shape = replace(SHAPE, key=tuple(NAMED[name] for name in names), fields=(Field("n", Type("integer")),))
    row = dict(zip(NAMED, VALUES[1][1:], strict=True))
    deliver(subject.ready(shape), Rows(shape, [(*(row[name] for name in names), 7)]).batch())
    assert subject.values() == [{name: row[name] for name in names} | {"n": 7}]
    (record,) = subject.topic.broker.committed(subject.topic.name)
    key = json.loads(record.key() or b"", parse_float=Decimal)
    assert key.pop("naive") == "9999-12-31T23:59:59.999999"
    assert key == {name: plain(row[name], NAMED[name].type) for name in names if name != "naive"}
