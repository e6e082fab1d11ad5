"""A topic of a Kafka cluster: a row is a record, a batch is a transaction.

The key of a record is the key of the sync: the text of its value, or with several columns a JSON object of
them. The value is a JSON object of key and fields. `write: upsert` sends the newest state of a row, and a
delete is a record without a value (a tombstone), so the topic should be compacted (`cleanup.policy=compact`).
`write: append` sends each key once, ever. Headers: `retl-run` (the run's id), `retl-op` (`upsert`, `append`,
`delete`), `retl-version` (the number of the run, which only grows) and `retl-batch`. Records are spread over
partitions as Java's clients do it. If partitions are added later, keys move, and older records stay where
they were.

**Readers must use `isolation.level=read_committed`**, else they see what was aborted.

**Exactly once**: all records of a batch and one mark are a transaction. Marks are in a topic beside it,
`TOPIC.retl`, with one partition, compacted. If a commit got no answer, the next attempt or run opens a new
producer with the same transactional id, `retl/TOPIC`: the cluster then ends what was open, and the older
producer can never commit again. After that the marks tell for good whether the batch was applied. The same
marks tell whether the topic was deleted and made again, and whether the ledger was restored. An older run, or
another ledger, that wakes up late is fenced off.

    connections:
      stream:
        type: kafka
        servers: "kafka-1:9093,kafka-2:9093"
        tls: true
        user: retl
        password: "${KAFKA_PASSWORD}"

    destination: {connection: stream, topic: crm.segments, create: true}
    write: upsert
    deletes: delete

**Values with a schema**: `value: avro` and `value: json_schema` write what Confluent's deserializers read: a
zero byte, the id of the schema in four bytes, and then Avro or the JSON object. Keys stay as they are, and so
do deletes. The schema is in a registry with Confluent's interface, which is asked only for these values:

    connections:
      stream:
        type: kafka
        servers: "kafka-1:9093,kafka-2:9093"
        tls: true
        user: retl
        password: "${KAFKA_PASSWORD}"
        registry: {url: "https://registry.internal:8081", user: retl, password: "${REGISTRY_PASSWORD}"}

    destination: {connection: stream, topic: crm.segments, create: true, value: avro, register_schema: true}
    write: upsert
    deletes: delete

Without `register_schema: true` the newest version of the subject is used. It must hold every row exactly, and
fields that the sync does not send need a default; else the run is refused (`TARGET_DRIFT`) with what differs.
With it, the schema is made of the contract, and the registry is asked whether it is compatible with the
newest version. If not, the run is refused with the registry's own words, in `retl check` and `retl plan` too.
If it is, the run registers it before it sends the first row. The registry is asked at the start of a run, and
not by batches: if it is away, nothing is sent.

In Avro integers are `long`, floats `double`, decimals `bytes` with their precision and scale, dates `date`, a
timestamptz `timestamp-micros`, a naive timestamp `local-timestamp-micros`, a uuid a `string` with that
logical type, JSON a `string`, and lists arrays of values or null. What may be NULL is a union with null, and
null by default. So a new field with `nullable: true` is compatible where the level is BACKWARD, the default
of registries. The description of a column is its `doc`, so a new description is a new version too. Names of
fields have letters, digits and `_` only: rename others under `fields`. `formats` are for JSON. Its schema is
closed (`additionalProperties: false`), because registries take a new property of an open schema for
incompatible; for the same reason a property that goes is incompatible there. A JSON Schema of others is
refused if it has a keyword of which retl cannot say which values it refuses, such as `pattern` or `minimum`.
Many readers take a number of JSON for a double: `formats: {decimals: string}` keeps the digits of decimals.

A new version at the registry is used by the next run. Records with an older id stay as they are, because the
registry keeps older versions. `retl explain` shows Avro as JSON, and asks no registry.

Not supported: Protobuf, schemas that refer to others, keys with a schema, a registry that asks for a client
certificate or for OAuth.

`create: true` makes the topic (`partitions`, `replication`; compacted for upsert). The topic of marks is made
if it is missing. Except on this machine, TLS is required and verified, unless the connection says
`allow_plaintext: true`; `tls_cert_file` and `tls_key_file` are for brokers that ask for a certificate. SASL
is PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.

The account needs: Describe and Write on the topic; Describe, Read and Write on the topic of marks; Create on
both, if they are to be made; Describe and Write on the transactional id `retl/TOPIC`. To read a topic of keys
for `retl watch` it needs Describe and Read there. The account at the registry needs to read the subject, with
its compatibility, and to write to it for `register_schema`.

What it cannot do: fields that other writers own (a record is a whole row), soft deletes, `retl reconcile`. A
tombstone removes older records only when the cluster compacts the topic, so `retl erase` leaves that to a
person. A row of more than `max_message_bytes` is a reject. A topic without compaction forgets rows after its
retention time, also those that did not change. After a kill, readers wait at what was open until the next
run, or for twice the connection's `timeout`.

Evidence: every step of exactly once, with runs that were killed, against a broker that speaks Kafka's
protocol (Tansu). **Isolation was not run on Apache Kafka.** That broker shows readers what was aborted, so
these runs prove the steps, and not what other readers see. SCRAM and client certificates were not run
either, nor rights by ACL, nor for topics of keys records that the cluster deleted. Values are read back with
fastavro and jsonschema, and the registry of the tests is our own, built from Confluent's documentation: **no
registry of Confluent, Redpanda, Apicurio or Karapace was run.**
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple
from uuid import uuid4

import msgspec
from pydantic import Field, PrivateAttr, model_validator

from retl.destinations.api import About, Destination
from retl.destinations.batch import (
    LINE_KEYS,
    UNKNOWN,
    Batch,
    Capabilities,
    Cell,
    FieldText,
    KeyText,
    Line,
    Outcome,
    Piece,
    Shape,
    Trace,
    Visit,
    WriteMode,
)
from retl.destinations.kafka.client import KafkaConnection, Record, Transactions
from retl.destinations.kafka.marks import Marks
from retl.destinations.kafka.registry import RegistryConnection
from retl.destinations.kafka.schemas import Known, Schemas
from retl.destinations.kafka.topics import Topics
from retl.destinations.marks import NOT_APPLIED, rejecting
from retl.errors import Ambiguous, Unavailable
from retl.model import Definition
from retl.net.deadline import Deadline
from retl.net.gate import Gate

_NAME = r"[A-Za-z0-9._-]{1,240}"
_OVERHEAD = 250  # bytes of a record beside key and value: our headers and Kafka's own
_REASONS = {
    "TOO_LARGE": "the record would be larger than `max_message_bytes`",
    "NOT_UNICODE": "a text is not valid Unicode",
}
Value = Callable[[Sequence[Any], bytes], bytes]  # of a row and the beginning of its JSON: the value
Make = Callable[[Sequence[Any]], Record]
_exact = msgspec.json.Encoder(decimal_format="number")  # Decimals keep their digits


class KafkaOptions(Definition):
    """The topic of the sync. `known`: what its run has found at the schema registry."""

    connection: KafkaConnection = KafkaConnection()
    topic: str
    marks: str = Field("", description="The topic of marks; `TOPIC.retl` if not given.")
    create: bool = Field(False, description="Make the topic if it is missing.")
    partitions: int | None = Field(None, ge=1, le=10_000, description="create: else the cluster's default.")
    replication: int | None = Field(
        None, ge=1, le=100, description="Of topics that are made: else the cluster's default."
    )
    value: Literal["json", "avro", "json_schema"] = Field(
        "json", description="`json`; or Avro, or JSON with a schema: both need the connection's `registry`."
    )
    register_schema: bool = Field(
        False, description="Register the schema of the contract; else the subject's newest one is used."
    )
    subject: Literal["topic", "record", "topic_record"] = Field(
        "topic", description="The schema's subject: `TOPIC-value`, `RECORD` or `TOPIC-RECORD`."
    )
    record: str = Field(
        "", description="The record's full name, or the title in JSON; else made of the topic's."
    )
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "zstd"
    max_message_bytes: int = Field(
        1_000_000, ge=1000, le=100_000_000, description="As the topic's `max.message.bytes`, or less."
    )

    _known: dict[str, Known] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> KafkaOptions:
        for name in (self.topic, self.beside):
            if not re.fullmatch(_NAME, name) or name in (".", ".."):
                raise ValueError("a topic's name has letters, digits, `.`, `_` and `-`")
        if self.beside == self.topic:
            raise ValueError("`marks` is another topic than `topic`")
        if self.partitions is not None and not self.create:
            raise ValueError("`partitions` is for `create: true`")
        if self.value == "json" and self.model_fields_set & {"register_schema", "subject", "record"}:
            raise ValueError(
                "`register_schema`, `subject` and `record` are for `value: avro` and `json_schema`"
            )
        if self.value != "json" and self.connection.registry is None:
            raise ValueError(f"`value: {self.value}` needs the `registry` of the connection")
        return self

    @property
    def beside(self) -> str:
        """The topic of marks."""
        return self.marks or f"{self.topic}.retl"

    @property
    def known(self) -> dict[str, Known]:
        return self._known

    @property
    def named_record(self) -> str:
        """`record`, or the topic's name with `_` for what no name has."""
        parts = [re.sub(r"\W", "_", part, flags=re.ASCII) for part in self.topic.split(".") if part]
        made = ".".join(f"_{part}" if part[0].isdigit() else part for part in parts)
        return self.record or made

    @property
    def named_subject(self) -> str:
        named = {
            "topic": f"{self.topic}-value",
            "record": self.named_record,
            "topic_record": f"{self.topic}-{self.named_record}",
        }
        return named[self.subject]


class _Session(NamedTuple):
    """A producer that has fenced off all others, and the marks as it found them and added to them. `topic`:
    the id of the topic."""

    producer: Transactions
    marks: Marks
    topic: str


class Kafka(Destination[KafkaOptions]):
    """One topic, with that of its marks."""

    Connection = KafkaConnection
    Options = KafkaOptions
    about: ClassVar[About] = About(parts={"Under `registry` of the connection": RegistryConnection})
    keeps_marks = True

    def __init__(self, options: KafkaOptions, shape: Shape, gate: Gate | None = None) -> None:
        super().__init__(options, shape, gate)
        self._topics = Topics(options, shape)
        self._cluster = self._topics.cluster
        self._session: _Session | None = None
        self._names = [  # what precedes each value of a key in a JSON object
            (b"," if number else b"{") + _exact.encode(one.name) + b":"
            for number, one in enumerate(shape.key)
        ]
        self._cells: list[Cell] = ["value" for _ in shape.key]
        self._cells += ["stored" for _ in shape.fields]
        self._schemas = None if options.value == "json" else Schemas(options, shape)
        self._lines = None if options.value == "avro" else _lines(shape)
        append = shape.write == "append"
        self.capabilities = Capabilities(
            object=self.place(options, shape.write),
            modes=frozenset({"append"} if append else {"upsert", "delete"}),
            idempotent=not append,
            form="cells" if options.value == "avro" else "documents",
            shaping={} if options.value == "json" else {"value": options.value},
            resolves=True,
        )

    @classmethod
    def forgets(cls, options: KafkaOptions) -> bool:
        return False  # older records stay until the cluster compacts the topic

    @classmethod
    def place(cls, options: KafkaOptions, write: WriteMode) -> str:
        return f"kafka:{options.connection.name}/{options.topic}"

    # --- check and prepare

    def check(self, visit: Visit) -> Trace:
        """Reads the marks, and the schema. Systemic NOPERM, KAFKA_LOGIN, REGISTRY_LOGIN, TLS_UNVERIFIED;
        Mismatch TARGET_DRIFT."""
        there = self._topics.check()
        if self._schemas is not None:
            self._schemas.check(visit)
        return self._topics.marks(there).trace(there.id)

    def notes(self) -> list[str]:
        news = self._schemas.note() if self._schemas is not None else None
        return [*self._topics.notes(), *([news] if news else [])]

    def prepare(self, visit: Visit) -> None:
        """Registers a schema and makes topics that are missing, fences off older runs and other ledgers,
        drops marks that are no longer needed."""
        if self._schemas is not None:
            self._schemas.prepare(visit)
        self._topics.create()
        self._open(visit.epoch, visit.keep)

    # --- write

    def write(self, batch: Batch) -> Outcome:
        """The records and the mark, in one transaction. If there is a mark already, nothing is sent."""
        session = self._open(batch.epoch)
        if (found := session.marks.of(batch)) is not None:
            return rejecting(found["rejected"], _REASONS)
        records, rejected = self._records(*self._made(batch))
        if records:
            attempt = uuid4().hex[:12]
            said = {
                "topic": session.topic,
                "rows": len(records),
                "rejected": rejected,
                "attempt": attempt,
            }
            mark = session.marks.mark(batch, **said)
            try:
                self._send(session.producer, batch, records, mark, attempt)
            except BaseException:
                self._drop()
                raise
            session.marks.take(*mark)
            self._bytes += sum(len(key) + len(value or b"") for key, value in records)
        return rejecting(rejected, _REASONS)

    def _send(
        self,
        producer: Transactions,
        batch: Batch,
        records: Sequence[Record],
        mark: tuple[bytes, bytes],
        attempt: str,
    ) -> None:
        """Ambiguous if nobody knows whether it is committed; any other error: it is not."""
        within, headers = Deadline(self.options.connection.timeout), _headers(batch, attempt)
        producer.begin()
        producer.send(self.options.topic, records, headers=headers)
        producer.flush(within)
        producer.send(self.options.beside, [mark], partition=0)
        if not producer.commit(Deadline(self.options.connection.timeout)):
            raise Ambiguous(
                "NO_ANSWER", f"{self.options.connection.name} did not answer to the commit of a batch"
            )

    def _records(self, make: Make, rows: Iterable[Sequence[Any]]) -> tuple[list[Record], dict[int, str]]:
        """What is sent, and the rows that cannot be a record, with the code of the reason."""
        records, rejected = list[Record](), dict[int, str]()
        most = self.options.max_message_bytes - _OVERHEAD
        for number, row in enumerate(rows):
            try:
                record = make(row)
            except UnicodeEncodeError:
                rejected[number] = "NOT_UNICODE"
                continue
            if len(record[0]) + len(record[1] or b"") > most:
                rejected[number] = "TOO_LARGE"
            else:
                records.append(record)
        return records, rejected

    def _made(self, batch: Batch) -> tuple[Make, Iterable[Sequence[Any]]]:
        """How a row becomes a record, and the rows."""
        if batch.operation == "delete":
            return self._tombstone, batch.keys()
        if self.options.value == "avro":
            return self._recorded(self._value), batch.cells(tuple(self._cells))
        if self._lines is None:
            return self._recorded(self._value), batch.documents()
        before = self._schemas.head() if self._schemas is not None else b""
        return lambda texts: (texts[0].encode(), before + texts[1].encode()), batch.tuples_of(self._lines)

    def _recorded(self, value: Value) -> Make:
        def make(row: Sequence[Any]) -> Record:
            head = self._head(row)
            return self._key(row, head), value(row, head)

        return make

    def _tombstone(self, row: Sequence[Any]) -> Record:
        return self._key(row, self._head(row)), None

    @cached_property
    def _value(self) -> Value:
        """What makes the value of a record, as readers get it."""
        schemas = self._schemas
        if schemas is None:
            return _json
        if self.options.value == "json_schema":
            before = schemas.head()
            return lambda row, head: before + _json(row, head)
        encode = schemas.encoder()
        return lambda row, _: encode(row)

    def _head(self, row: Sequence[Any]) -> bytes:
        """The JSON object of the key, without its end."""
        if len(self._names) == 1:
            return self._names[0] + _exact.encode(row[0])
        return b"".join([name + _exact.encode(value) for name, value in zip(self._names, row, strict=False)])

    def _key(self, row: Sequence[Any], head: bytes) -> bytes:
        """The key of a record: the text of the one value, or the JSON object."""
        if len(self._names) > 1:
            return head + b"}"
        return row[0].encode() if isinstance(row[0], str) else head[len(self._names[0]) :].strip(b'"')

    # --- resolve

    def resolve(self, batch: Batch, handle: str | None, *, act: bool = True) -> Outcome:
        """What the marks say of the batch, after every older producer was fenced off. Without `act` the marks
        are only read."""
        marks = self._open(batch.epoch).marks if act else self._topics.marks(self._topics.check())
        if (found := marks.of(batch)) is not None:
            return rejecting(found["rejected"], _REASONS)
        return Outcome(NOT_APPLIED if marks.whole else UNKNOWN)

    # --- the producer

    def _open(self, epoch: int, keep: frozenset[str] | None = None) -> _Session:
        """The producer of this run. It reads the marks only after it has fenced off all others, so nobody
        adds one later: then they tell who may write, and what was applied. `keep`: drop the marks of other
        runs. Systemic VOIDED."""
        if self._session is None:
            there, seconds = self._topics.check(), self.options.connection.timeout
            self._topics.marks(there).began(epoch)  # a newer run must not be fenced off
            name, compression = f"retl/{self.options.topic}", self.options.compression
            producer = Transactions(self._cluster, name, compression, Deadline(seconds))
            self._session = _Session(producer, Marks(self.shape), there.id)
            try:
                marks = self._topics.marks(there, Deadline(seconds))
                if not marks.whole:
                    raise Unavailable(
                        "UNAVAILABLE", f"the topic {self.options.beside} was not read to its end in time"
                    )
                self._session = _Session(producer, marks, there.id)
            except BaseException:
                self._drop()
                raise
        try:
            self._begin(self._session, epoch, keep)
        except BaseException:
            self._drop()
            raise
        return self._session

    def _begin(self, session: _Session, epoch: int, keep: frozenset[str] | None) -> None:
        """Leave the record of this run, if it has none yet."""
        producer, marks, _ = session
        records: list[tuple[bytes, bytes | None]] = [] if marks.began(epoch) else [marks.fence(epoch)]
        if keep is not None:
            records += [(key, None) for key in marks.old(keep)]
        if not records:
            return
        producer.begin()
        producer.send(self.options.beside, records, partition=0)
        if not producer.commit(Deadline(self.options.connection.timeout)):
            raise self._cluster.unreachable()
        for record in records:
            marks.take(*record)

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.producer.close()
        self._topics.close()  # its connection may be as lost as that of the producer

    # --- preview, interrupt

    def preview(self, batch: Batch) -> bytes:
        """Per record a line: its key, a tab, and its value (`null`: a tombstone). Avro is shown as JSON, and
        the id of a schema is not shown, because only the registry knows it."""
        if batch.operation == "delete":
            records, _ = self._records(self._tombstone, batch.keys())
        elif self.options.value == "avro":
            records, _ = self._records(self._recorded(self._shown), batch.tuples())
        else:
            records, _ = self._records(self._recorded(_json), batch.documents())
        return b"".join(b"%b\t%b\n" % (key, b"null" if value is None else value) for key, value in records)

    def _shown(self, row: Sequence[Any], _: bytes) -> bytes:
        names = [one.name for one in (*self.shape.key, *self.shape.fields)]
        return _exact.encode(dict(zip(names, row, strict=True)))

    def interrupt(self) -> None:
        """End before the commit: nothing of the batch is applied."""
        self._cluster.interrupted = True

    def close(self) -> None:
        self._drop()


def _json(row: Sequence[Any], head: bytes) -> bytes:
    """The JSON object of key and fields, of a row whose last value is that of the fields."""
    fields: bytes = row[-1].encode()
    return head + (b"," if len(fields) > 2 else b"") + fields[1:]


def _lines(shape: Shape) -> tuple[Line, Line] | None:
    """Key and JSON of a record, made in SQL; None if Python must make them: where fields may be left out, and
    where SQL might spell a key in another way than its tombstone has it."""
    if len(shape.key) > 1 or shape.key[0].type.name not in LINE_KEYS:
        return None
    if any(one.nulls == "keep" for one in shape.fields):
        return None
    names = [_exact.encode(one.name).decode() for one in (*shape.key, *shape.fields)]
    value: list[Piece] = [f"{{{names[0]}:", KeyText(0, "json")]
    for index, name in enumerate(names[1:]):
        value += [f",{name}:", FieldText(index)]
    return (KeyText(0, "text"),), (*value, "}")


def _headers(batch: Batch, attempt: str) -> list[tuple[str, bytes]]:
    texts = {
        "retl-run": batch.run_id,
        "retl-op": batch.operation,
        "retl-version": str(batch.epoch),
        "retl-batch": f"{batch.id}/{attempt}",  # its mark says which attempt was committed
    }
    return [(name, text.encode()) for name, text in texts.items()]
