"""A topic read from remembered places: records in the order of each partition, and how many are left.

It is a reader without a group: who keeps the offsets decides where it begins, so nothing is committed to the
cluster and no rebalance takes a partition away. It knows no rows and no keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from retl.destinations.api import needs
from retl.destinations.kafka.client import SLICE, Cluster, KafkaConnection
from retl.errors import Systemic
from retl.net.deadline import Deadline

if TYPE_CHECKING:
    from confluent_kafka import Consumer

_NEW_PARTITIONS = 60.0  # seconds between two looks for partitions that were added
_BUFFER = 4096  # kilobytes of records that wait in this process


class Record(NamedTuple):
    """One record, and the offset after it. At the end of a partition there is none, only the offset."""

    partition: int
    next: int
    key: bytes | None
    value: bytes | None
    is_end: bool = False


class Gone(Exception):
    """Records at a remembered place are not there any more."""


class TopicReader:
    """One topic of a cluster. `interrupt` may be called by another thread, all else by one. Its errors are
    Systemic and Unavailable."""

    def __init__(self, connection: KafkaConnection, topic: str) -> None:
        with needs("kafka"):
            import confluent_kafka  # noqa: F401 - is it there?
        self._cluster, self._topic = Cluster(connection), topic
        self._consumer: Consumer | None = None
        self._partitions = set[int]()
        self._looked = 0.0

    def id(self) -> str:
        """The identity of the topic, which another one of the same name does not have. Systemic TOPIC_MISSING
        if it is not there."""
        from confluent_kafka import KafkaError, TopicCollection

        within = self._within()
        answers = self._cluster.reach(within).describe_topics(
            TopicCollection([self._topic]), request_timeout=within.left()
        )
        (found,) = self._cluster.asked(answers, within).values()
        if isinstance(found, KafkaError):
            if found.name() in ("UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC"):
                raise self._missing()
            self._cluster.fail(found)
        return str(found.topic_id)

    def begin(self, offsets: Mapping[int, int] | None) -> dict[int, int]:
        """Read from these offsets on, and partitions that have none from their beginning; without offsets
        from the end of each. Returns where each partition begins. Gone."""
        from confluent_kafka import Consumer

        self._consumer = self._cluster.made(
            Consumer,
            {
                "group.id": "retl",  # is never used: partitions are assigned, and no offset is stored
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "queued.min.messages": 1000,
                "queued.max.messages.kbytes": _BUFFER,
                "fetch.message.max.bytes": _BUFFER * 256,
            },
        )
        self._partitions = set()
        found = {number: self._bounds(number) for number in self._listed()}
        places = {
            number: high if offsets is None else offsets.get(number, low)
            for number, (low, high) in found.items()
        }
        if any(places[number] < low for number, (low, _) in found.items()):
            raise Gone  # a place after the end is told by the first answer
        self._assign(places)
        return places

    def poll(self, seconds: float) -> Record | None:
        """The next record, if it comes so soon. Gone if the cluster has deleted what is to be read."""
        from confluent_kafka import KafkaError

        one = self._own.poll(max(0.0, min(seconds, SLICE)))  # a negative time would be for ever
        self._cluster.require_entry()
        if one is None:
            return None
        error, partition, offset = one.error(), one.partition() or 0, one.offset() or 0
        if error is None:
            return Record(partition, offset + 1, one.key(), one.value())
        if error.code() == KafkaError._PARTITION_EOF:
            return Record(partition, offset, None, None, is_end=True)
        if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            raise Gone
        raise self._cluster.judged(error)

    def added(self) -> dict[int, int]:
        """Partitions that are new, with where they begin; they are read from now on."""
        if monotonic() - self._looked < _NEW_PARTITIONS:
            return {}
        new = {number: self._bounds(number)[0] for number in self._listed() - self._partitions}
        if new:
            self._assign(new)
        return new

    def ends(self, *, ask: bool) -> dict[int, int]:
        """The offset after the last record of each partition, as the last answer said; with `ask` as it is
        now, and without the records of open transactions."""
        return {number: self._bounds(number, ask=ask)[1] for number in self._partitions}

    def move(self, offsets: Mapping[int, int]) -> None:
        """Read on from there."""
        from confluent_kafka import TopicPartition

        for number, offset in offsets.items():
            self._own.seek(TopicPartition(self._topic, number, offset))

    def interrupt(self) -> None:
        self._cluster.interrupted = True

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
        self._consumer = None
        self._cluster.close()

    @property
    def _own(self) -> Consumer:
        assert self._consumer is not None, "`begin` comes first"
        return self._consumer

    def _within(self) -> Deadline:
        return Deadline(self._cluster.connection.connect_timeout)

    def _listed(self) -> set[int]:
        """The numbers of the partitions."""
        consumer, topic = self._own, self._topic
        found: Any = self._cluster.wait(
            consumer, self._within(), lambda seconds: consumer.list_topics(topic, timeout=seconds)
        )
        self._looked = monotonic()
        there = found.topics.get(topic)
        if there is None or there.error is not None:
            raise self._missing()
        return set(there.partitions)

    def _bounds(self, number: int, *, ask: bool = True) -> tuple[int, int]:
        """The first and the next offset of a partition; of a cached answer that is not there yet 0 and 0."""
        from confluent_kafka import TopicPartition

        consumer, place = self._own, TopicPartition(self._topic, number)
        if not ask:
            low, high = consumer.get_watermark_offsets(place, cached=True) or (0, 0)
            return max(low, 0), max(high, 0)
        low, high = self._cluster.wait(
            consumer,
            self._within(),
            lambda seconds: consumer.get_watermark_offsets(place, timeout=seconds) or (0, 0),
        )
        return low, high

    def _assign(self, places: Mapping[int, int]) -> None:
        from confluent_kafka import TopicPartition

        added = [TopicPartition(self._topic, number, offset) for number, offset in places.items()]
        self._own.incremental_assign(added)
        self._partitions |= places.keys()

    def _missing(self) -> Systemic:
        return Systemic(
            "TOPIC_MISSING",
            f"there is no topic {self._topic} at {self._cluster.connection.name}",
            hint="fix `topic`, or make the topic",
        )
