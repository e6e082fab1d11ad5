"""The topic of a sync and that of its marks: are they there, may we write, what was committed. It sends
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from retl.destinations.batch import Shape
from retl.destinations.kafka.client import SLICE, Cluster
from retl.destinations.kafka.marks import Marks
from retl.errors import Mismatch, Systemic
from retl.net.deadline import Deadline

if TYPE_CHECKING:
    from retl.destinations.kafka.adapter import KafkaOptions

_PATIENCE = 5.0  # seconds for a transaction to end that a reader finds open
_COMPACTED = {"cleanup.policy": "compact"}


class There(NamedTuple):
    """What the cluster has. `id`: of the topic, empty if it is missing or has none."""

    id: str
    topic: bool
    marks: bool


class Topics:
    """Both topics of a sync."""

    def __init__(self, options: KafkaOptions, shape: Shape) -> None:
        self.cluster = Cluster(options.connection)
        self._options, self._shape = options, shape
        self._there: There | None = None

    def check(self) -> There:
        """Mismatch TARGET_DRIFT without a topic that nobody makes, Systemic NOPERM without the right to write
        to it."""
        there = self._described()
        topic = self._options.topic
        if not (there.topic or self._options.create):
            raise Mismatch(
                "TARGET_DRIFT",
                f"there is no topic {topic} at {self._options.connection.name}",
                hint="`create: true` makes it; or fix the name",
            )
        return there

    def create(self) -> None:
        """Make what is missing. Systemic if that is refused."""
        from confluent_kafka import KafkaError
        from confluent_kafka.admin import NewTopic

        there, wanted = self.check(), list[NewTopic]()
        replication = self._options.replication or -1
        if not there.topic:
            policy = {} if self._shape.write == "append" else _COMPACTED
            partitions = self._options.partitions or -1
            wanted.append(NewTopic(self._options.topic, partitions, replication, config=policy))
        if not there.marks:
            wanted.append(NewTopic(self._options.beside, 1, replication, config=_COMPACTED))
        if not wanted:
            return
        within = Deadline(self._options.connection.timeout)
        admin = self.cluster.reach(within)
        answers = admin.create_topics(wanted, request_timeout=within.left())
        for error in self.cluster.asked(answers, within).values():
            if isinstance(error, KafkaError) and error.name() != "TOPIC_ALREADY_EXISTS":
                self.cluster.fail(error)
        while not all(self._described()[1:]):  # every broker hears of it a little later
            if within.over:
                raise self.cluster.unreachable()

    def marks(self, there: There, within: Deadline | None = None) -> Marks:
        """The marks that are committed; `whole` if no transaction is open that may add one. With a deadline
        it waits that long for such a transaction to end."""
        found = Marks(self._shape)
        if there.marks:
            end = self._end(within or Deadline(self._options.connection.timeout))
            found.whole = not end or self._read(found, end, within or Deadline(_PATIENCE))
        return found

    def notes(self) -> list[str]:
        from confluent_kafka import KafkaError
        from confluent_kafka.admin import ConfigResource, ResourceType

        within = Deadline(self._options.connection.timeout)
        resource = ConfigResource(ResourceType.TOPIC, self._options.topic)
        answers = self.cluster.reach(within).describe_configs([resource], request_timeout=within.left())
        (found,) = self.cluster.asked(answers, within).values()
        policy = None if isinstance(found, KafkaError) else found.get("cleanup.policy")
        if self._shape.write == "append" or policy is None or "compact" in (policy.value or "delete"):
            return []
        return [
            f"the topic {self._options.topic} is not compacted: it forgets rows after its retention time,"
            " also those that did not change"
        ]

    def close(self) -> None:
        self.cluster.close()

    def _described(self) -> There:
        from confluent_kafka import KafkaError, TopicCollection

        within = Deadline(self._options.connection.connect_timeout)
        names = [self._options.topic, self._options.beside]
        answers = self.cluster.reach(within).describe_topics(
            TopicCollection(names), include_authorized_operations=True, request_timeout=within.left()
        )
        found = self.cluster.asked(answers, within)
        for name, one in found.items():
            if not isinstance(one, KafkaError):
                self._require_right(name, one.authorized_operations)
            elif one.name() not in ("UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC"):
                self.cluster.fail(one)
        topic, marks = (found[name] for name in names)
        there = not isinstance(topic, KafkaError)
        return There(str(topic.topic_id) if there else "", there, not isinstance(marks, KafkaError))

    def _require_right(self, topic: str, operations: Any) -> None:
        """An account that the cluster tells its rights must have that to write."""
        if operations is not None and not {"WRITE", "ALL"} & {one.name for one in operations}:
            raise Systemic(
                "NOPERM",
                f"the account at {self._options.connection.name} may not write to the topic {topic}",
                hint="allow it what the target's page lists",
            )

    def _end(self, within: Deadline) -> int:
        """Where the topic of marks ends, with what is not committed."""
        from confluent_kafka import IsolationLevel, KafkaError, TopicPartition
        from confluent_kafka.admin import OffsetSpec

        answers = self.cluster.reach(within).list_offsets(
            {TopicPartition(self._options.beside, 0): OffsetSpec.latest()},
            isolation_level=IsolationLevel.READ_UNCOMMITTED,
            request_timeout=within.left(),
        )
        (found,) = self.cluster.asked(answers, within).values()
        if isinstance(found, KafkaError):
            self.cluster.fail(found)
        return int(found.offset)

    def _read(self, marks: Marks, end: int, within: Deadline) -> bool:
        """Take what is committed. Whether that is all up to this end."""
        from confluent_kafka import Consumer, KafkaError, TopicPartition

        consumer = self.cluster.made(
            Consumer,
            {
                "group.id": "retl",  # is never used: the partition is assigned, and no offset is stored
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",  # if 0 is no longer there: to ask for it first takes longer
                "fetch.wait.max.ms": 20,
            },
        )
        try:
            consumer.assign([TopicPartition(self._options.beside, 0, 0)])
            while not within.over:
                one = consumer.poll(within.left(SLICE))
                if one is not None and (error := one.error()) is None:
                    marks.take(one.key(), one.value())
                elif one is not None and error.code() != KafkaError._PARTITION_EOF:
                    self.cluster.fail(error)
                elif one is not None and one.offset() >= end:
                    return True
                self.cluster.require_entry()
                self.cluster.go_on()
            return False
        finally:
            consumer.close()
