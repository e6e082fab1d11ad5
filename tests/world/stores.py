"""Deliveries into MongoDB, Kafka and a Redis Cluster, and what a backup, an operator or an application does there.

MongoDB is the emulator of the tests, Kafka the broker of the wheel; a cluster is a real one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tests import scenes
from tests.kafka import Broker
from tests.mongo import DATABASE, Mongo
from tests.redis_cluster import SECRET, RedisCluster
from tests.servers import RedisServer
from tests.world.targets import CacheMirror, Expiring, InRedis, Ranking, Stream, Target


class InCollection(scenes.Documents, Target):
    """Documents by key, in transactions."""

    sync = 'destination: {connection: app, collection: "${COLLECTION}"}\n'
    before = ()

    def __init__(self, folder: Path, server: Mongo, state: str | None = None) -> None:
        super().__init__(folder, server)
        self.state, self.reached = state, server.port

    def environ(self) -> dict[str, str]:
        state = {"RETL_STATE_URL": self.state} if self.state else {}
        url = self.server.url(self.server.writer, port=self.reached)
        return super().environ() | state | {"MONGODB_URL": url}

    @contextmanager
    def database(self) -> Iterator[Any]:
        with self.server.client() as client:
            yield client[DATABASE]

    def empty(self) -> None:
        super().empty()
        with self.database() as database:
            database.create_collection(self.collection)

    def lose_all(self) -> None:
        with self.database() as database:
            database[self.collection].delete_many({})

    def make_anew(self) -> None:
        """Its marks stay."""
        with self.database() as database:
            database.drop_collection(self.collection)
            database.create_collection(self.collection)

    def lose(self, share: float) -> None:
        with self.database() as database:
            found = sorted((one["_id"] for one in database[self.collection].find({}, {"_id": 1})), key=str)
            for name in found[: max(1, round(len(found) * share))]:
                database[self.collection].delete_one({"_id": name})

    def keep(self) -> Any:
        return self.server.store.backup()

    def restore(self, kept: Any) -> None:
        self.server.store.restore(kept)

    @property
    def address(self) -> tuple[str, int]:
        return self.server.host, self.reached

    def reach(self, host: str, port: int) -> None:
        self.reached = port
        self.project.environ |= self.environ()

    @property
    def places(self) -> tuple[str, str]:
        with self.database() as database:
            database.create_collection(f"{self.collection}_b")
        return "${COLLECTION}", "${COLLECTION}_b"


class CollectionMirror(InCollection):
    sync = InCollection.sync + "deletes: delete\n"
    deletes = True


class CollectionAlone(CollectionMirror):
    """Each document for itself, without marks."""

    sync = CollectionMirror.sync.replace('}"}', '}", transactions: false}')


class CollectionAppend(InCollection):
    sync = InCollection.sync + "write: append\nfirst_run: send\n"
    changes = False
    doubled = scenes.DocumentsAppended.doubled


class InTopic(scenes.Records, Target):
    """Records of a compacted topic. What is restored was copied into new topics, as a mirror does it."""

    before = ()
    sync = scenes.Records.sync
    deletes = True
    lists = False

    def __init__(self, folder: Path, broker: Broker, state: str | None = None) -> None:
        super().__init__(folder, broker)
        self.state = state

    def environ(self) -> dict[str, str]:
        return super().environ() | ({"RETL_STATE_URL": self.state} if self.state else {})

    @property
    def topics(self) -> tuple[str, str]:
        return self.topic, f"{self.topic}.retl"

    def lose_all(self) -> None:
        """Both topics are deleted."""
        self._drop(*self.topics)

    def make_anew(self) -> None:
        """Its marks stay."""
        self._drop(self.topic)

    def _drop(self, *names: str) -> None:
        """By a client that ends: one that still knows a topic breaks when the broker no longer does."""
        there = AdminClient(self.broker.quiet).list_topics(timeout=10).topics
        self.broker.consumer.close()
        for client in ("consumer", "admin"):
            vars(self.broker).pop(client, None)
        admin = AdminClient(self.broker.quiet)
        for one in admin.delete_topics([name for name in names if name in there]).values():
            one.result(10)

    def lose(self, share: float) -> None:
        raise NotImplementedError  # nobody edits single records

    def keep(self) -> Any:
        """The records that count, and all marks."""
        rows = self.broker.committed(self.topic)
        marks = self.broker.records(f"{self.topic}.retl")
        return {self.topics[0]: rows, self.topics[1]: marks}

    def restore(self, kept: Any) -> None:
        self._drop(*self.topics)
        there = self.broker.admin
        for one in there.create_topics([NewTopic(name, 1) for name in kept]).values():
            one.result(10)
        producer = Producer(self.broker.quiet)
        for name, records in kept.items():
            for one in records:
                producer.produce(name, one.value(), one.key(), headers=one.headers())
        assert producer.flush(10) == 0

    @property
    def places(self) -> tuple[str, str]:
        return "${TOPIC}", "${TOPIC}-b"


class TopicAppend(InTopic):
    sync = scenes.RecordsAppended.sync
    deletes = changes = False
    doubled = scenes.RecordsAppended.doubled


class _Whole(redis.RedisCluster):
    """Of all servers."""

    def keys(self, pattern: str) -> Any:
        return super().keys(pattern, target_nodes=self.PRIMARIES)

    def flushall(self) -> Any:
        return super().flushall(target_nodes=self.PRIMARIES)


class InCluster(InRedis):
    """JSON texts in a cluster; a client gives its first address."""

    connections = '  shards: {type: redis, cluster: ["127.0.0.1:${SEED_PORT}"], password: "${SEED_PASSWORD}", timeout: 5s}\n'
    sync = InRedis.sync.replace("cache", "shards")

    def __init__(self, folder: Path, cluster: RedisCluster, state: str | None = None) -> None:
        first = cluster.masters[0]
        Target.__init__(self, folder)
        self.nodes, self.state = cluster, state
        self.server = self.reached = RedisServer(first.host, first.port, SECRET)

    def environ(self) -> dict[str, str]:
        state = {"RETL_STATE_URL": self.state} if self.state else {}
        return state | {"SEED_PORT": str(self.reached.port), "SEED_PASSWORD": SECRET}

    @contextmanager
    def client(self) -> Iterator[Any]:
        client = _Whole(host=self.server.host, port=self.server.port, password=SECRET)
        try:
            yield client
        finally:
            client.close()


class ClusterExpiring(InCluster):
    sync = Expiring.sync.replace("cache", "shards")


class ClusterMirror(InCluster):
    sync = CacheMirror.sync.replace("cache", "shards")
    deletes = True


class ClusterRanking(InCluster, Ranking):
    sync = Ranking.sync.replace("cache", "shards")


class ClusterStream(InCluster, Stream):
    sync = Stream.sync.replace("cache", "shards")


COLLECTIONS: dict[str, type[InCollection]] = {
    "mongodb": InCollection,
    "mongodb mirror": CollectionMirror,
    "mongodb alone": CollectionAlone,
    "mongodb append": CollectionAppend,
}
TOPICS: dict[str, type[InTopic]] = {"kafka": InTopic, "kafka append": TopicAppend}
CLUSTERED: dict[str, type[InCluster]] = {
    "cluster json": InCluster,
    "cluster ttl": ClusterExpiring,
    "cluster mirror": ClusterMirror,
    "cluster ranking": ClusterRanking,
    "cluster stream": ClusterStream,
}
