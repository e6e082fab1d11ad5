"""Kill a run at its requests to Kafka: one more plain sync, and every row is there once.

The relay before the broker ends the run, before a request is passed on or before its answer is: at each step of
a transaction, which no event of a run can tell.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from retl.testing.faults import passed
from retl.testing.server import Exchange
from tests.crashes import COLUMNS
from tests.kafka import ADD, END, INIT, LOGIN, PRODUCE, Broker, Relay
from tests.scenes import RecordsAppended
from tests.schema_registry import SchemaRegistry

EVERYTHING = bool(os.environ.get("RETL_TEST_ALL"))
STEPS = {"begin": INIT, "partitions": ADD, "rows": PRODUCE, "commit": END}
# The first transaction is that of the run itself; of a batch's produce requests the last one has the mark.
POINTS = [
    (name, number, answered)
    for name in STEPS
    for number in ((1, 2) if name == "begin" else (1, 2, 3, 4, 5, 6, 7))
    for answered in (False, True)
]
SOME = [("commit", 3, True)]  # applied, and the answer is lost


class Watched(RecordsAppended):
    """Rows go through a relay."""

    connections = (
        '  stream: {type: kafka, servers: "${KAFKA}", user: '
        f"{LOGIN[0]}, password: {LOGIN[1]}, mechanism: PLAIN}}\n"
    )

    def __init__(self, folder: Path, broker: Broker, relay: Relay) -> None:
        super().__init__(folder, broker)
        self.relay = relay

    def environ(self) -> dict[str, str]:
        return super().environ() | {"KAFKA": f"127.0.0.1:{self.relay.port}"}

    def kill_at(self, request: int, number: int, answered: bool) -> int | None:
        """The exit code of a run that is killed at its so manieth request of a kind."""
        left, running = number, self.project.start()

        def heard(one: int, with_answer: bool) -> None:
            nonlocal left
            if (one, with_answer) == (request, answered):
                left -= 1
                if left == 0:
                    os.kill(running.pid, signal.SIGKILL)

        self.relay.heard = heard
        code = running.end().code
        self.relay.heard = lambda _request, _answered: None
        return code


class WatchedAvro(Watched):
    """Rows with a schema that the run itself registers."""

    sync = RecordsAppended.sync.replace("create: true", "create: true, value: avro, register_schema: true")

    def __init__(self, folder: Path, broker: Broker, relay: Relay, registry: SchemaRegistry) -> None:
        super().__init__(folder, broker, relay)
        self.registry = registry
        self.connections = self.connections.replace(
            "}\n", f", registry: {json.dumps(registry.connection)}}}\n"
        )

    def content(self) -> list[tuple[str | None, ...]]:
        found = [self.registry.decoded(one.value() or b"") for one in self.broker.committed(self.topic)]
        rows = [tuple(None if row[name] is None else str(row[name]) for name in COLUMNS) for row in found]
        return sorted(rows, key=str)


@pytest.fixture
def registry() -> Iterator[SchemaRegistry]:
    with SchemaRegistry() as registry:
        yield registry


@pytest.fixture
def watched(kafka_broker: Broker, tmp_path: Path) -> Iterator[Watched]:
    with Relay(kafka_broker) as relay:
        made = Watched(tmp_path / "project", kafka_broker, relay)
        made.begin()
        yield made


@pytest.mark.parametrize(("step", "number", "answered"), POINTS if EVERYTHING else SOME)
def test_a_run_killed_at_any_request_is_made_good_by_the_next(
    watched: Watched, step: str, number: int, answered: bool
) -> None:
    assert watched.kill_at(STEPS[step], number, answered) == -signal.SIGKILL
    again = watched.project.sync()
    assert (again.code, again.summary["status"]) == (0, "SUCCESS"), again.stderr
    assert watched.content() == watched.wanted()
    assert watched.doubled() == []
    idle = watched.project.sync()
    assert (idle.code, idle.summary["inserted"]) == (0, 0)


@pytest.mark.parametrize(("step", "number", "answered"), POINTS if EVERYTHING else SOME)
def test_rows_with_a_schema_are_made_good_too_and_no_version_is_registered_twice(
    kafka_broker: Broker, tmp_path: Path, registry: SchemaRegistry, step: str, number: int, answered: bool
) -> None:
    with Relay(kafka_broker) as relay:
        watched = WatchedAvro(tmp_path / "project", kafka_broker, relay, registry)
        watched.begin()
        assert watched.kill_at(STEPS[step], number, answered) == -signal.SIGKILL
        again = watched.project.sync()
        assert (again.code, again.summary["status"]) == (0, "SUCCESS"), again.stderr
        assert watched.content() == watched.wanted()
        assert watched.doubled() == []
        assert registry.subjects == {f"{watched.topic}-value": [1]}


@pytest.mark.parametrize("applied", [False, True])
def test_a_run_killed_while_it_registers_is_made_good_by_the_next(
    kafka_broker: Broker, tmp_path: Path, registry: SchemaRegistry, applied: bool
) -> None:
    with Relay(kafka_broker) as relay:
        watched = WatchedAvro(tmp_path / "project", kafka_broker, relay, registry)
        watched.begin()
        running = watched.project.start()

        def killed(exchange: Exchange) -> bool:
            if applied:
                exchange.perform()
            os.kill(running.pid, signal.SIGKILL)
            exchange.close_connection = True
            return True

        registry.misbehave(passed, passed, killed)
        assert running.end().code == -signal.SIGKILL
        assert len(registry.subjects) == applied
        assert watched.broker.committed(watched.topic) == []
        again = watched.project.sync()
        assert (again.code, again.summary["status"]) == (0, "SUCCESS"), again.stderr
        assert watched.content() == watched.wanted()
        assert registry.subjects == {f"{watched.topic}-value": [1]}
