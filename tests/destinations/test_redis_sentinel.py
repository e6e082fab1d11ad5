"""Redis behind Sentinels: the primary is the one that they name, and a failover loses nothing unnoticed."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from retl.destinations.batch import Kind
from retl.destinations.redis.adapter import Redis
from retl.destinations.redis.connection import RedisConnection
from retl.errors import Systemic, Unavailable
from retl_demo.process import LOOPBACK
from tests.commands import ROWS, Workshop
from tests.crashes import Project
from tests.destinations.suite import VISIT, Rows, deliver, kinds, sample
from tests.destinations.test_redis import SHAPE, options
from tests.test_plans_and_state import run
from tests.world.hosts import Cache, Replica


class Sentinel(Cache):
    """Watches one primary, and decides alone that another server takes its place."""

    name = "sentinel"

    def __init__(self, directory: Path, primary: Cache) -> None:
        super().__init__(directory)
        self.primary = primary

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        settings, of = self.directory / "sentinel.conf", self.primary
        settings.write_text(
            f"port {port}\nbind {LOOPBACK}\nrequirepass {self.password}\n"
            f"sentinel monitor cache {of.host} {of.port} 1\nsentinel auth-pass cache {of.password}\n"
            "sentinel down-after-milliseconds cache 1000\nsentinel failover-timeout cache 2000\n"
        )
        return self._popen([str(self._binary), str(settings), "--sentinel"], self.directory)


@dataclass
class Service:
    """A primary, a replica of it, and a Sentinel that watches both."""

    primary: Cache
    replica: Replica
    sentinel: Sentinel

    @property
    def connection(self) -> dict[str, Any]:
        return {
            "sentinels": f"127.0.0.1:1, {self.sentinel.host}:{self.sentinel.port}",  # nobody is at the first
            "service": "cache",
            "sentinel_password": self.sentinel.password,
            "password": self.primary.password,
            "timeout": "5s",
            "connect_timeout": "1s",
        }

    def make(self, **settings: Any) -> Redis:
        return Redis(options(key="s:{id}", connection=self.connection | settings), SHAPE)

    def named(self) -> int:
        """The port of the primary, as the Sentinel says."""
        with self.sentinel.client() as client:
            return int(client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "cache")[1])

    def lag(self) -> None:
        """From now on the replica gets nothing more."""
        self.replica.caught_up(self.primary)
        with self.replica.client() as client:
            client.config_set("masterauth", "wrong")
            client.client_kill_filter(_type="master")
            until(lambda: client.info("replication")["master_link_status"] == "down")

    def fail_over(self) -> None:
        """The primary dies, and the replica takes its place."""
        assert self.primary._process
        self.primary._process.kill()
        until(lambda: self.named() == self.replica.port)
        with self.replica.client() as client:
            until(lambda: client.info("replication")["role"] == "master")


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


@contextmanager
def started(folder: Path) -> Iterator[Service]:
    with Cache(folder / "primary").start() as primary:
        replica = Replica(folder / "replica")
        replica.password = primary.password
        with replica.start():
            with primary.client() as client:
                client.config_set("repl-diskless-sync-delay", 0)
            replica.follow(primary, primary.port)
            with Sentinel(folder / "sentinel", primary).start() as sentinel:
                with sentinel.client() as client:
                    until(lambda: bool(client.execute_command("SENTINEL", "REPLICAS", "cache")))
                yield Service(primary, replica, sentinel)


def made(folder: Path, service: Service) -> Project:
    """A project that delivers texts to the service."""
    listed = ", ".join(f'{name}: "{value}"' for name, value in service.connection.items())
    folder.mkdir()
    destination = '{connection: watched, key: "user:{user_id}", value: json, ttl: none}'
    sync = f"destination: {destination}\n"
    return Project(folder, sync, {}, connections=f"  watched: {{type: redis, {listed}}}\n")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """One that may fail over."""
    with started(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One whose primary stays."""
    with started(tmp_path_factory.mktemp("sentinels")) as made:
        yield made


def test_the_sentinels_name_the_primary_and_after_a_failover_the_other_one(service: Service) -> None:
    destination, rows = service.make(), Rows(SHAPE, sample(4))
    destination.check(VISIT)
    first, second = rows.batch(first=0, last=1), rows.batch(first=2, last=3)
    assert kinds(deliver(destination, first)) == [Kind.WRITTEN] * 2
    service.replica.caught_up(service.primary)
    service.fail_over()
    assert kinds(deliver(destination, second)) == [Kind.WRITTEN] * 2
    with service.replica.client() as client:
        assert len(client.keys("s:*")) == 4
    seen = destination.check(VISIT)
    assert seen is not None
    assert seen.batches == {(one.run_id, one.id) for one in (first, second)}
    destination.close()


def test_a_primary_that_became_a_replica_is_left_for_the_one_that_is_named(lasting: Service) -> None:
    destination, batch = lasting.make(), Rows(SHAPE, sample(2)).batch()
    destination.check(VISIT)
    with lasting.primary.client() as client:
        client.replicaof("127.0.0.1", 1)
        with pytest.raises(Unavailable) as caught:
            destination.write(batch)
        assert caught.value.code == "NO_PRIMARY"
        with pytest.raises(Unavailable) as again:
            destination.write(batch)
        assert again.value.code == "NO_PRIMARY"
        client.replicaof("NO", "ONE")
    assert kinds(deliver(destination, batch)) == [Kind.WRITTEN] * 2


def test_what_the_sentinels_do_not_know_is_told(lasting: Service) -> None:
    at = f"{lasting.sentinel.host}:{lasting.sentinel.port}"
    cache = f"{lasting.primary.host}:{lasting.primary.port}"
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"sentinels": at, "service": "other"}, Systemic, "SENTINEL_SERVICE"),
        ({"sentinels": "127.0.0.1:1"}, Unavailable, "CONNECT"),
        ({"sentinels": cache, "sentinel_password": lasting.primary.password}, Systemic, "REDIS_SENTINEL"),
        ({"sentinel_password": "wrong"}, Systemic, "WRONGPASS"),
    ]
    for settings, kind, code in cases:
        with pytest.raises(kind) as caught:
            lasting.make(**settings).check(VISIT)
        assert getattr(caught.value, "code", None) == code
        if code == "WRONGPASS":
            assert "check `sentinel_password`" in str(getattr(caught.value, "hint", None))


def test_a_primary_on_another_machine_needs_tls(lasting: Service) -> None:
    with lasting.sentinel.client() as client:
        client.execute_command("SENTINEL", "MONITOR", "far", "192.0.2.1", "6379", "1")
    with pytest.raises(Systemic) as caught:
        lasting.make(service="far").check(VISIT)
    assert caught.value.code == "SENTINEL_PLAINTEXT"


if "RETL_TEST_ALL" in os.environ:

    def test_runs_follow_a_failover_and_what_the_new_primary_lacks_is_noticed(
        service: Service, tmp_path: Path
    ) -> None:
        workshop = Workshop(tmp_path / "project")
        listed = ", ".join(f'{name}: "{value}"' for name, value in service.connection.items())
        workshop.write("retl.yml", f"connections: {{cache: {{type: redis, {listed}}}}}\n")
        workshop.sync(
            "users", destination='{connection: cache, key: "users:{user_id}", value: json, ttl: none}'
        )
        assert run(workshop)["inserted"] == ROWS
        service.lag()
        workshop.warehouse("UPDATE users SET spend = spend + 1 WHERE user_id <= 3")
        assert run(workshop)["updated"] == 3
        service.fail_over()
        refused = run(workshop)
        assert (refused["status"], refused["error"]["code"]) == ("REFUSED", "TARGET_LOST")
        assert run(workshop, "--full")["updated"] == ROWS
        after = run(workshop)
        assert (after["status"], after["unchanged"]) == ("SUCCESS", ROWS)
        with service.replica.client() as client:
            assert b'"spend":4.00' in client.get("users:3")

    def test_a_failover_in_the_middle_of_a_run_is_noticed_before_its_end(
        service: Service, tmp_path: Path
    ) -> None:
        project = made(tmp_path / "project", service)
        assert project.sync().code == 0
        service.lag()
        project.mart("UPDATE mart SET searches = searches + 1")
        left = [2]

        def hears(line: str) -> None:
            if '"batch_acknowledged"' in line:
                left[0] -= 1
                if left[0] == 0:
                    service.fail_over()

        ended = project.answered("sync", "--sync", "users", "--output", "json", hears=hears)
        assert left[0] < 0
        assert ended.code == 1, ended.stdout
        assert ended.summary["error"]["code"] == "TARGET_RESET"
        again = project.sync()
        again = again if again.code == 0 else project.sync("--full")
        assert again.code == 0, again.stdout
        with service.replica.client() as client:
            keys = sorted(client.keys("user:*"))
            held = [json.loads(value, parse_float=str)["searches"] for value in client.mget(keys)]
        assert [str(one) for one in held] == [row[2] for row in project.rows()]


# options


def test_the_first_sentinel_names_the_target() -> None:
    def place(**connection: Any) -> str:
        return Redis.place(options(connection=connection), "upsert")

    given = {"sentinels": "S1:26379, localhost:2", "service": "cache", "allow_plaintext": True}
    assert place(**given) == "redis://cache@s1:26379/0/a:{id}"
    assert place(**given | {"sentinels": "s1:26379"}) == place(**given)
    assert place(**given | {"service": "other"}) != place(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"sentinels": "localhost:26379"},
        {"service": "cache"},
        {"sentinel_password": "x"},
        {"sentinels": "localhost:26379", "service": "cache", "host": "localhost"},
        {"sentinels": "localhost:26379", "service": "cache", "port": 6379},
        {"sentinels": "localhost", "service": "cache"},
        {"sentinels": "localhost:0", "service": "cache"},
        {"sentinels": "sentinel-1:26379", "service": "cache"},
    ],
)
def test_sentinels_that_do_not_fit_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RedisConnection.model_validate(given)
