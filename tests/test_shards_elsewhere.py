"""Shards on other machines: their lines to the run, the folder that all share, and what a cluster needs.

Here the machines are threads that have the tickets, lines and folders that Spark's tasks have. What only Spark
can show is in tests/test_spark.py.
"""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from retl.errors import DefinitionError, Failure
from retl.run import lines, processes, shard, shards, spark
from retl.run.depot import Depot, lent
from retl.run.lines import Exchange, Line, attend
from tests import test_shards
from tests.commands import Workshop
from tests.servers import Database
from tests.test_shards import FIRST, KEYLESS, KINDS, THEN, Crowd, history


class Machine(threading.Thread):
    """Another machine that has a shard, as `subprocess.Popen` shows a process."""

    returncode = "the machine ended"

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(daemon=True)
        self.exchange, self.line = exchange, exchange.line()
        self.start()

    def run(self) -> None:
        attend(self.line.ticket)
        self.exchange.forget(self.line)

    def wait(self, seconds: float | None = None) -> None:
        self.join(seconds)
        if self.is_alive():
            raise subprocess.TimeoutExpired("machine", seconds or 0)

    def kill(self) -> None:
        self.exchange.forget(self.line)


class Machines:
    """A cluster of such machines."""

    def __init__(self, _master: str | None, folder: Path | None, _port: int) -> None:
        self.folder, self.exchange = folder, Exchange("127.0.0.1", "127.0.0.1")
        self.begun: list[str] = []

    @contextmanager
    def open(self, _depot: Depot) -> Iterator[None]:
        yield

    def begin(self, name: str) -> tuple[Connection, Machine]:
        self.begun.append(name)
        machine = Machine(self.exchange)
        return machine.line.ours, machine

    def close(self) -> None:
        self.exchange.close()


class Served(test_shards.Thread):
    """A shard in a thread, which hangs up at its end as a process does."""

    def run(self) -> None:
        try:
            super().run()
        except (EOFError, OSError):
            pass
        finally:
            self.hang_up()


class Lost(Served):
    """The first shard that comes to send is lost."""

    sent = 0

    def run(self) -> None:
        kind = type(self)
        work = self._line.recv()
        first = work.sends and not kind.sent
        kind.sent += work.sends
        if not first:
            shard.serve(self._line, shard.Inbox(self._line, lambda _code: None), work)
        self.hang_up()


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spark, "SparkCluster", Machines)
    monkeypatch.setattr(lines, "begun", Served)


ENGINE = "engine: {type: spark, shards: 2, master: local, folder: ../shared}\n"


class Elsewhere(Crowd):
    """Two or more shards run on other machines, one on this."""

    def __init__(self, folder: Path, database: Database, sync: str, table: str) -> None:
        super().__init__(folder, database, sync, table)
        self.workshop.environment["RETL_STATE_URL"] = database.url
        self.workshop.write("retl.yml", ENGINE)


@pytest.mark.parametrize("kind", KINDS if os.environ.get("RETL_TEST_ALL") else ["deletes"])
def test_a_cluster_does_what_one_process_does_and_leaves_no_file(
    kind: str, tmp_path: Path, postgres: Database, machines: None
) -> None:
    sync, table, steps = KINDS[kind]
    steps = steps if os.environ.get("RETL_TEST_ALL") else [(FIRST, ("--limit", "30")), (THEN, ())]
    one = history(Crowd(tmp_path / "one", postgres, sync, table), [1], steps)
    many = history(Elsewhere(tmp_path / "many", postgres, sync, table), [2, 3], steps)
    assert many == one
    assert os.environ.get("RETL_TEST_ALL") or one[1]["deleted"] == 1
    assert not list((tmp_path / "shared").iterdir())


MART = """
source: {from: lake, path: "mart/*.parquet"}
key: [id]
contract:
  id: {type: string}
  name: {type: string, max_length: 6}
  points: {type: integer, ge: 0}
"""


def test_files_that_all_see_are_read_where_the_shards_are(
    tmp_path: Path, postgres: Database, machines: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each shard reads a part, here of two files for three shards; a baseline of one process is read too."""
    sync, table, _ = KINDS["deletes"]
    sync = MART + sync[sync.index("destination:") :]
    told, counted, read = [], [], shards.Shards.read

    def spied(self: shards.Shards, *parts: Any) -> int:
        counted.append(read(self, *parts))
        return counted[-1]

    monkeypatch.setattr(shards.Shards, "read", spied)
    for kind, numbers in ((Crowd, [1, 1, 1]), (Elsewhere, [1, 3, 2])):
        folder = tmp_path / str(len(told))
        crowd = kind(folder / "project", postgres, sync, table)
        sources = f"sources: {{lake: {{type: files, root: {folder}/shared}}}}\n"
        crowd.workshop.write("retl.yml", sources + (ENGINE if kind is Elsewhere else ""))
        (folder / "shared" / "mart").mkdir(parents=True)
        steps = []
        for number, rows in zip(numbers, (FIRST, THEN, KEYLESS), strict=True):
            crowd.workshop.warehouse(rows.replace("HUGEINT", "BIGINT"))
            written = "COPY (FROM people WHERE hash(id) % 2 = {0}) TO '{1}/shared/mart/{0}.parquet'"
            for half in (0, 1):
                crowd.workshop.warehouse(written.format(half, folder))
            steps.append(crowd.run(number))
        told.append(steps)
    assert told[1] == told[0]
    assert counted == [41, 41]
    assert told[0][2]["deletes"]["not_attempted"], "a row without a key holds deletes in every share"
    assert told[0][1]["deleted"]


def test_a_shard_that_is_lost_elsewhere_begins_again(
    tmp_path: Path, postgres: Database, machines: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type("LostOnce", (Lost,), {})
    monkeypatch.setattr(lines, "begun", kind)
    sync, table, _ = KINDS["append"]
    crowd = Elsewhere(tmp_path / "project", postgres, sync, table)
    crowd.workshop.warehouse(FIRST)
    summary = crowd.run(2)
    assert (summary["exit_code"], len(summary["held"])) == (0, 41)
    assert len({row[0] for row in summary["held"]}) == 41
    assert kind.sent == 3


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    with closing(Exchange("127.0.0.1", "127.0.0.1")) as made:
        yield made


class Echo(threading.Thread):
    """The process of a shard that repeats what it hears."""

    def __init__(self, line: Connection, _keep: Sequence[int]) -> None:
        super().__init__(daemon=True)
        self.heard: list[Any] = []
        self._line = Connection(os.dup(line.fileno()))
        self.start()

    def run(self) -> None:
        with closing(self._line):
            while (message := self._line.recv()) is not None:
                self._line.send(message)

    def wait(self) -> None:
        self.join()


def attending(line: Line) -> tuple[threading.Thread, list[bool]]:
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(attend(line.ticket)), daemon=True)
    thread.start()
    return thread, done


def test_a_line_carries_messages_of_any_size_and_a_ticket_is_good_once(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "begun", Echo)
    line = exchange.line()
    line.ours.send(b"before anybody listens" * 1_000_000)  # does not wait for the shard
    first, served = attending(line)
    assert line.ours.recv() == b"before anybody listens" * 1_000_000
    second, refused = attending(line)  # what speculation does
    line.ours.send("while it waits")
    assert line.ours.recv() == "while it waits"
    assert second.is_alive()
    line.ours.send(None)
    with pytest.raises(EOFError):
        line.ours.recv()
    first.join(20)
    second.join(20)
    assert (served, refused) == ([True], [False])
    assert attend(line.ticket) is False  # what a second attempt of the same task does
    exchange.forget(line)
    assert attend(line.ticket) is False


def test_a_shard_that_dies_before_its_first_word_is_noticed(exchange: Exchange) -> None:
    line = exchange.line()
    with lines.dialled(line.ticket, b"d") as down:
        assert next(lines._received(down)) == b""
        another, refused = attending(line)  # Spark runs the task once more before it knows
    with pytest.raises(EOFError):
        line.ours.recv()
    another.join(20)
    assert refused == [False]


def test_a_stranger_hears_nothing(exchange: Exchange) -> None:
    line = exchange.line()
    line.ours.send("a secret")
    guessed = lines.Ticket("127.0.0.1", line.ticket.port, line.ticket.certificate, b"0" * 32)
    assert attend(guessed) is False
    with socket.create_connection(("127.0.0.1", line.ticket.port)) as plain:
        plain.sendall(line.ticket.token + b"d" + b"x" * 600)
        plain.settimeout(20)
        with suppress(ConnectionResetError):
            assert b"secret" not in plain.recv(1000)
    with closing(Exchange("127.0.0.1", "127.0.0.1")) as other:  # it has another certificate
        false = lines.Ticket(
            "127.0.0.1", other.line().ticket.port, line.ticket.certificate, line.ticket.token
        )
        with pytest.raises(ssl.SSLCertVerificationError):
            attend(false)
    assert "a secret" not in repr(line.ticket)
    assert line.ticket.token.hex() not in repr(line.ticket)


def test_a_machine_with_other_versions_gets_no_work(exchange: Exchange) -> None:
    """DuckDB's hash decides in which share a key is: two hashes would part a row and its baseline."""
    ticket = replace(exchange.line().ticket, versions="retl-cli 0.1.0, duckdb 0.9.0")
    with pytest.raises(RuntimeError, match="the run has retl-cli 0"):
        attend(ticket)


def test_what_a_killed_run_left_in_the_folder_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "dead").mkdir()
    (tmp_path / "dead" / "0.share.duckdb").write_bytes(b"rows")
    with lent(tmp_path, None):  # a dry run has no lock: it knows of no run that it is dead
        assert (tmp_path / "dead").exists()
    with lent(tmp_path, "run") as depot:
        assert [one.name for one in tmp_path.iterdir()] == ["run"]
        with pytest.raises(Failure, match="does not see"):
            depot.get("0.share.duckdb", tmp_path)
    assert not (tmp_path / "run").exists()
    with pytest.raises(Failure, match="cannot be written"):
        Depot(tmp_path / "gone").put(Path(__file__))


class Client:
    """A session of Spark Connect, which refuses its context as pyspark's does."""

    @property
    def sparkContext(self) -> Any:
        raise AttributeError("[JVM_ATTRIBUTE_NOT_SUPPORTED]")


def test_a_session_that_cannot_run_shards_is_refused(tmp_path: Path) -> None:
    there: Any = SimpleNamespace(sparkContext=SimpleNamespace(master="yarn"))
    with pytest.raises(DefinitionError, match="yarn has several machines") as refused:
        spark.require_shared(there, None)
    assert refused.value.code == "SPARK_FOLDER"
    spark.require_shared(there, tmp_path)
    client: Any = Client()
    with pytest.raises(DefinitionError) as refused:
        spark.require_shared(client, tmp_path)
    assert refused.value.code == "SPARK_CONNECT"


def told(workshop: Workshop, *words: str, **environment: str) -> str:
    said = workshop.retl("sync", *words, **environment)
    assert said.code in (1, 2), said.err
    return said.err


def test_what_a_cluster_lacks_is_one_clear_sentence(
    tmp_path: Path, postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "begun", test_shards.Thread)
    workshop = Workshop(tmp_path / "project")
    workshop.use(postgres=postgres)
    workshop.write("syncs/people.yml", KINDS["append"][0])
    assert "SPARK_SHARDS" in told(workshop, "--engine", "spark", "--dry-run")
    workshop.write("retl.yml", "engine: {type: spark}\n")
    assert "`type: spark` needs `shards`, 2 or more" in told(workshop)
    workshop.write("retl.yml", "engine: {type: spark, shards: 2, master: 'spark://127.0.0.1:1'}\n")
    said = told(workshop)
    assert "SPARK_LEDGER" in said
    assert "RETL_STATE_URL=postgresql://" in said
    workshop.environment["RETL_STATE_URL"] = postgres.url
    with postgres.connect() as connection:
        connection.execute(KINDS["append"][1])
    workshop.warehouse(FIRST)
    monkeypatch.setitem(sys.modules, "pyspark", None)
    said = told(workshop)
    assert "SPARK_MISSING" in said
    assert "pip install 'retl-cli[spark]'" in said
    with postgres.connect() as connection:
        assert connection.execute("SELECT count(*) FROM people").fetchone() == (0,)
    said = workshop.json("sync", "--engine", "local")["syncs"][0]
    assert (said["exit_code"], said["inserted"]) == (0, 41)
