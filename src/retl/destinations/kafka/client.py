"""The client of a cluster: connections that are verified, waits that end, errors in our own words.

It knows topics and transactions, and no rows. librdkafka repeats what it may repeat by itself, within the
connection's timeouts; every wait here is made of short ones, so that a stop request ends it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from retl.destinations.api import needs
from retl.destinations.kafka.registry import RegistryConnection
from retl.errors import Poisoned, Systemic, TargetError, Unavailable
from retl.model import Definition, Duration, needs_tls
from retl.net.deadline import Deadline

if TYPE_CHECKING:
    from confluent_kafka import KafkaError
    from confluent_kafka.admin import AdminClient

T = TypeVar("T")
_LOGGER = logging.getLogger("retl.kafka")  # of the client, which else writes to stderr
_LOGGER.addHandler(logging.NullHandler())
_LOGGER.propagate = False
Record = tuple[bytes, bytes | None]  # key and value
SLICE = 0.2  # seconds that one wait of the client takes at most
_ABORT = 2.0  # seconds to end a failed transaction; if that fails, the next producer of its name ends it
_CHECKED = "compare host, port, user and password of the connection with the cluster"
_LOGIN = {"_AUTHENTICATION", "SASL_AUTHENTICATION_FAILED", "UNSUPPORTED_SASL_MECHANISM"}
_PASSING = (
    "transport failure",
    "Disconnected",
    "timed out",
)  # in the client's words for a login that was cut
_GONE = {"UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION", "UNKNOWN_TOPIC_ID"}
_REFUSED = {
    "TOPIC_AUTHORIZATION_FAILED": "it may not do this with the topic",
    "CLUSTER_AUTHORIZATION_FAILED": "it may not do this with the cluster",
    "GROUP_AUTHORIZATION_FAILED": "it may not read the topic of marks",
    "TRANSACTIONAL_ID_AUTHORIZATION_FAILED": "it may not use the transactional id",
}
_NEVER = {
    "UNSUPPORTED_VERSION": "it does not know a request that is needed",
    "_UNSUPPORTED_FEATURE": "it supports no transactions",
    "INVALID_TRANSACTION_TIMEOUT": "it allows only shorter transactions: lower `timeout`",
    "POLICY_VIOLATION": "its policy forbids this topic",
    "INVALID_REPLICATION_FACTOR": "it has too few brokers for `replication`",
}
_TOO_LARGE = {"MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE"}
_BAD_ROW = {"INVALID_RECORD", "INVALID_MSG", "INVALID_TIMESTAMP", "_INVALID_ARG"}


def _listed(given: Any) -> Any:
    return tuple(one.strip() for one in given.split(",")) if isinstance(given, str) else given


class KafkaConnection(Definition):
    """A cluster and the account."""

    servers: Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)] = Field(
        ("localhost:9092",), description="One or more brokers, `host:port`; they name the others."
    )
    user: str | None = None
    password: SecretStr | None = None
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="How SASL sends user and password."
    )
    tls: bool = False
    tls_ca_file: str | None = Field(None, description="The authorities of the brokers, if not the system's.")
    tls_cert_file: str | None = Field(None, description="Our own certificate, if the brokers ask for one.")
    tls_key_file: str | None = Field(None, description="The key of `tls_cert_file`.")
    allow_plaintext: bool = False
    connect_timeout: Duration = 10.0
    timeout: Duration = Field(60.0, description="For one batch: its rows, and then its commit.")
    registry: RegistryConnection | None = Field(
        None,
        description="The schema registry, asked only for `value: avro` and `value: json_schema`.",
    )

    @model_validator(mode="after")
    def _fits(self) -> KafkaConnection:
        for server in self.servers:
            host, _, port = server.rpartition(":")
            if not host or not port.isdigit() or "@" in host or "/" in host:
                raise ValueError("`servers` are written host:port")
            if not self.tls and needs_tls(host.strip("[]"), allow_plaintext=self.allow_plaintext):
                raise ValueError("brokers on another machine need `tls: true` (or `allow_plaintext: true`)")
        if (self.user is None) != (self.password is None):
            raise ValueError("`user` and `password` belong together")
        if "mechanism" in self.model_fields_set and self.user is None:
            raise ValueError("`mechanism` is for a `user` with a `password`")
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("`tls_cert_file` and `tls_key_file` belong together")
        if not self.tls and (self.tls_ca_file or self.tls_cert_file):
            raise ValueError("`tls_ca_file` and `tls_cert_file` need `tls: true`")
        if not 1 <= self.timeout <= 400:
            raise ValueError("`timeout` is 1s to 400s: brokers end transactions that last longer")
        return self

    def placed_in(self, folder: Path) -> KafkaConnection:
        names = ("tls_ca_file", "tls_cert_file", "tls_key_file")
        paths = {name: str(folder / path) for name in names if (path := getattr(self, name)) is not None}
        registry = self.registry and self.registry.placed_in(folder)
        return self.model_copy(update={**paths, "registry": registry})

    @property
    def name(self) -> str:
        """The cluster as errors and places name it."""
        return ",".join(sorted({server.lower() for server in self.servers}))

    def settings(self) -> dict[str, Any]:
        """The client's own settings."""
        sasl = self.user is not None
        found: dict[str, Any] = {
            "bootstrap.servers": ",".join(self.servers),
            "client.id": "retl",
            "security.protocol": ("sasl_" if sasl else "") + ("ssl" if self.tls else "plaintext"),
            "socket.connection.setup.timeout.ms": max(1000, int(self.connect_timeout * 1000)),
            "reconnect.backoff.max.ms": 1000,
        }
        if self.password is not None:
            found |= {"sasl.mechanism": self.mechanism, "sasl.username": self.user}
            found["sasl.password"] = self.password.get_secret_value()
        if self.tls:
            found["ssl.ca.location"] = self.tls_ca_file or os.environ.get("SSL_CERT_FILE") or "probe"
        if self.tls_cert_file is not None:
            found |= {"ssl.certificate.location": self.tls_cert_file, "ssl.key.location": self.tls_key_file}
        return found


class Cluster:
    """What the clients of one lane share. `interrupted`: the run was asked to stop."""

    def __init__(self, connection: KafkaConnection) -> None:
        self.connection = connection
        self.interrupted = False
        self._admin: AdminClient | None = None
        self._refused: KafkaError | None = None  # why the cluster will never let us in

    def made(self, kind: Callable[..., T], settings: Mapping[str, Any] = MappingProxyType({})) -> T:
        """A client of this kind. Systemic if a file of the connection is missing."""
        from confluent_kafka import KafkaException

        try:
            own = {**self.connection.settings(), **settings, "error_cb": self._heard}
            return kind(own, logger=_LOGGER)
        except KafkaException as problem:
            if "ssl." not in str(problem):
                raise
            message = "a file of `tls_ca_file`, `tls_cert_file` or `tls_key_file` cannot be used"
            raise Systemic("TLS_UNVERIFIED", message) from None

    def reach(self, within: Deadline) -> AdminClient:
        """A client that the cluster has let in. Systemic, Unavailable."""
        with needs("kafka"):
            from confluent_kafka.admin import AdminClient
        if self._admin is None:
            admin = self.made(AdminClient)
            self.wait(admin, within, lambda seconds: admin.list_topics(timeout=seconds))
            self._admin = admin
        return self._admin

    def wait(self, client: Any, within: Deadline, step: Callable[[float], T]) -> T:
        """Repeat a step that waits so many seconds at most, until it ends, or the deadline, or the run."""
        from confluent_kafka import KafkaException

        while True:
            try:
                return step(within.left(SLICE))
            except KafkaException as problem:
                error = problem.args[0]
                client.poll(0)
                self.require_entry()
                again = error.retriable() or error.name() in ("_TRANSPORT", "_TIMED_OUT", "_ALL_BROKERS_DOWN")
                if within.over or not again:
                    self.fail(error)
                self.go_on()

    def go_on(self) -> None:
        """Unavailable if the run was asked to stop."""
        if self.interrupted:
            raise Unavailable("UNAVAILABLE", "the run was asked to stop")

    def asked(self, answers: dict[Any, Any], within: Deadline) -> dict[Any, Any]:
        """The results of an admin client's request; an error stands for itself."""
        from concurrent.futures import TimeoutError

        from confluent_kafka import KafkaException

        found: dict[Any, Any] = {}
        for name, answer in answers.items():
            try:
                found[name] = answer.result(within.left())
            except KafkaException as problem:
                found[name] = problem.args[0]
            except TimeoutError:
                raise self.unreachable() from None
        return found

    def fail(self, error: KafkaError) -> NoReturn:
        raise self.judged(error)

    def judged(self, error: KafkaError) -> TargetError:
        """Our own error for one of the client's; nothing was applied."""
        name = error.name()
        if name in _LOGIN or name == "_SSL":
            return self._closed(error)
        if name in _REFUSED:
            return Systemic(
                "NOPERM",
                f"the account at {self.connection.name} lacks a right: {_REFUSED[name]}",
                hint="allow it what the target's page lists",
            )
        if name in _GONE:
            return Systemic(
                "TARGET_DRIFT", f"the topic, or that of its marks, is gone from {self.connection.name}"
            )
        if name in _NEVER:
            return Systemic("KAFKA_REFUSED", f"{self.connection.name} refuses: {_NEVER[name]}")
        if name in _TOO_LARGE:
            return Poisoned("TOO_LARGE", "the topic takes no record of this size")
        if name in _BAD_ROW:
            return Poisoned("RECORD_REFUSED", "the topic refuses the record")
        if name in ("_TRANSPORT", "_TIMED_OUT", "_MSG_TIMED_OUT", "_ALL_BROKERS_DOWN", "_RESOLVE"):
            return self.unreachable()
        return Unavailable(
            "UNAVAILABLE", f"{self.connection.name} did not take the batch ({name.lstrip('_')})"
        )

    def close(self) -> None:
        self._admin = None

    def unreachable(self) -> Unavailable:
        return Unavailable(
            "UNREACHABLE",
            f"{self.connection.name} does not answer",
            hint="check hosts and ports, and that the brokers run; then run again",
        )

    def _heard(self, error: KafkaError) -> None:
        """The client reports an error of a connection, and goes on trying."""
        said, name = error.str(), error.name()
        login = name in _LOGIN and not any(words in said for words in _PASSING)
        if login or (name == "_SSL" and ("certificate" in said or "wrong version" in said)):
            self._refused = error

    def require_entry(self) -> None:
        """Systemic if the cluster refuses us."""
        refused, self._refused = self._refused, None
        if refused is not None:
            raise self._closed(refused)

    def _closed(self, error: KafkaError) -> Systemic:
        if error.name() == "_SSL":
            return Systemic(
                "TLS_UNVERIFIED",
                f"TLS with {self.connection.name} failed, or its certificate is not valid",
                hint="compare `tls` and `tls_ca_file` with the cluster; verification cannot be turned off",
            )
        return Systemic(
            "KAFKA_LOGIN",
            f"{self.connection.name} refuses the user, the password or the mechanism",
            hint=_CHECKED,
        )


class Transactions:
    """A producer with a transactional id. To make one ends what an older one of this id left open, and fences
    it off: it can never commit again. After an error it cannot be used any more."""

    def __init__(self, cluster: Cluster, name: str, compression: str, within: Deadline) -> None:
        """Systemic, Unavailable."""
        from confluent_kafka import Producer

        self._cluster, self._errors = cluster, list["KafkaError"]()
        seconds = cluster.connection.timeout
        self._producer = cluster.made(
            Producer,
            {
                "transactional.id": name,
                "transaction.timeout.ms": int(2 * seconds * 1000),
                "message.timeout.ms": int(seconds * 1000),
                "socket.timeout.ms": int(seconds * 1000),
                "message.max.bytes": 100_000_000,  # the topic decides
                "queue.buffering.max.kbytes": 65536,
                "compression.type": compression,
                "partitioner": "murmur2_random",  # Java's: a key has one partition for all writers
                "delivery.report.only.error": True,
                "on_delivery": self._reported,
            },
        )
        self._open = False
        cluster.wait(self._producer, within, self._producer.init_transactions)

    def begin(self) -> None:
        """What is sent from now on belongs to a transaction."""
        from confluent_kafka import KafkaException

        try:
            self._producer.begin_transaction()
        except KafkaException as problem:
            self._cluster.fail(problem.args[0])
        self._open = True

    def send(self, topic: str, records: Iterable[Record], **place: Any) -> None:
        """Put records into the transaction; `headers` and `partition` of all of them."""
        from confluent_kafka import KafkaException

        produce = self._producer.produce
        try:
            for key, value in records:
                while True:
                    try:
                        produce(topic, value, key, **place)
                        break
                    except BufferError:  # wait until some are sent
                        self._producer.poll(SLICE)
                        self._look()
        except KafkaException as problem:
            self._cluster.fail(problem.args[0])

    def flush(self, within: Deadline) -> None:
        """Until every record was acknowledged. A TargetError: nothing of the transaction is applied."""
        from confluent_kafka import KafkaException

        try:
            while self._producer.flush(within.left(SLICE)):
                self._look()
                if within.over:
                    raise self._cluster.unreachable()
        except KafkaException as problem:  # a newer producer has fenced us off
            self._cluster.fail(problem.args[0])
        self._look()

    def commit(self, within: Deadline) -> bool:
        """Whether it is committed; if not, nobody knows. A TargetError if it surely is not."""
        from confluent_kafka import KafkaException

        while True:
            try:
                self._producer.commit_transaction(within.left(SLICE))
            except KafkaException as problem:
                error = problem.args[0]
                if error.txn_requires_abort():
                    self._look()
                    self._cluster.fail(error)
                if error.fatal() or not error.retriable() or within.over:
                    return False
            else:
                self._open = False
                return True

    def close(self) -> None:
        """End what is open, if that can be done at once."""
        from confluent_kafka import KafkaException

        if self._open:
            with suppress(KafkaException):
                self._producer.purge()
                self._producer.abort_transaction(_ABORT)
        self._open = False

    def _reported(self, error: KafkaError | None, _message: Any) -> None:
        if error is not None:
            self._errors.append(error)

    def _look(self) -> None:
        """Raise what a record that could not be delivered says."""
        self._cluster.require_entry()
        if self._errors:
            named = [one for one in self._errors if not one.name().startswith("_PURGE")]
            raise self._cluster.judged((named or self._errors)[0])
        self._cluster.go_on()
