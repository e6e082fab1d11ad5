"""`shards: N`: a run in several processes does what one process does, whatever N, and nothing is lost with one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from retl.observe import log
from retl.run import processes, shard
from tests import test_trace
from tests.commands import Workshop
from tests.crashes import Append, PostgresScene, until
from tests.servers import Database, RedisServer

GUARDS = "{max_reject_rate: 1, max_delete_rate: 1, max_row_drop: 1, max_failed_rate: 1}"
SYNC = """
source: {table: people}
key: [id]
contract:
  id: {type: string}
  name: {type: string, max_length: 6}
  points: {type: integer, ge: 0}
destination: {type: postgres, table: public.people, create: false}
batch: {rows: 3}
"""
TABLE = "CREATE TABLE people (id text {key}, name varchar(6), points bigint {check}, gone text)"
FIRST = """
CREATE OR REPLACE TABLE people AS SELECT 'p' || i AS id, 'n' || i AS name, i::HUGEINT AS points,
  DATE '2026-01-01' + i::INTEGER AS day FROM range(40) t(i);
INSERT INTO people VALUES ('twice', 'a', 1, '2026-01-01'), ('twice', 'b', 2, '2026-01-01'),
  ('long', 'much too long', 1, '2026-01-01'), ('refused', 'r', 666, '2026-01-01')"""
THEN = """
UPDATE people SET points = points + 100 WHERE id LIKE '%7'; DELETE FROM people WHERE id IN ('p3', 'p4', 'p5');
UPDATE people SET name = 'short', day = '2026-06-01' WHERE id = 'long';
DELETE FROM people WHERE id = 'twice' AND name = 'a';
INSERT INTO people VALUES ('new', 'n', 1, '2026-06-01')"""


class Thread(threading.Thread):
    """A shard in a thread, as `subprocess.Popen` shows a process."""

    returncode = 0

    def __init__(self, line: Connection, _keep: Sequence[int]) -> None:
        super().__init__(daemon=True)
        self._line = Connection(os.dup(line.fileno()))
        self.start()

    def run(self) -> None:
        work = self._line.recv()
        shard.serve(self._line, shard.Inbox(self._line, lambda _code: None), work)

    def wait(self, seconds: float | None = None) -> None:
        self.join(seconds)
        assert not self.is_alive()

    def kill(self) -> None:
        self._line.close()

    def hang_up(self) -> None:
        """End the connection, also while another thread listens to it."""
        with socket.socket(fileno=os.dup(self._line.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)


class Partitioned(Thread):
    """The first shard that comes to `point` stops there, and its run takes it for gone. When the run is about
    to commit, it goes on."""

    point = ""
    zombie: Partitioned | None = None
    number = 0

    def __init__(self, line: Connection, keep: Sequence[int]) -> None:
        kind = type(self)
        if not kind.number:
            log.listen(self._listen)
        kind.number += 1
        self.told: list[Any] = []
        self._waits = threading.Event()
        super().__init__(line, keep)

    def run(self) -> None:
        work = self._line.recv()
        inbox = shard.Inbox(self._line, lambda _code: inbox._steps.put(None))
        told = self.told

        class Heard(shard.Shard):
            def tell(self, message: object) -> None:
                told.append(message)
                with contextlib.suppress(OSError):  # nobody hears it
                    self.line.send(message)

        Heard(self._line, inbox, work).serve()

    def wait(self, seconds: float | None = None) -> None:
        if self is not type(self).zombie:
            super().wait(seconds)

    def _listen(self, name: str, _fields: object) -> None:
        kind, one = type(self), threading.current_thread()
        if name == kind.point and kind.zombie is None and isinstance(one, Partitioned):
            kind.zombie = one
            one.hang_up()
            one._waits.wait(20)
        if name == "committing" and kind.zombie is not None:
            kind.zombie._waits.set()
            kind.zombie.join(20)


class Ending(Thread):
    """Every shard ends at `point` without a word."""

    point = ""

    def run(self) -> None:
        log.listen(self._listen)
        if self.point != "shards_started":
            with contextlib.suppress(SystemExit, OSError):
                super().run()
        self.hang_up()

    def _listen(self, name: str, _fields: object) -> None:
        if name == self.point and threading.current_thread() is self:
            raise SystemExit


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are threads of the tests' process: the same code, without the time of so many interpreters."""
    monkeypatch.setattr(processes, "begun", Thread)


class Crowd:
    """One project, and what its runs said and left, with N shards."""

    def __init__(self, folder: Path, database: Database, sync: str, table: str) -> None:
        self.workshop, self.database = Workshop(folder), database
        self.workshop.use(postgres=database)
        self.sync = sync
        with database.connect() as connection:
            connection.execute(f"DROP TABLE IF EXISTS people, public.retl_applied; {table}")

    def run(self, number: int, *words: str) -> dict[str, Any]:
        """The summary of a run, without times, and what the target has then."""
        self.workshop.write("syncs/people.yml", self.sync + f"shards: {number}\n")
        said = self.workshop.retl("sync", *words, "--output", "json")
        (summary,) = said.document["syncs"]
        for name in ("run_id", "seconds", "phases", "rows_per_second", "batches", "bytes", "retries"):
            summary.pop(name)
        with self.database.connect() as connection:
            held = connection.execute("SELECT * FROM people ORDER BY id, name").fetchall()
        rejects = self.workshop.json("rejects")["rejects"]
        kept = sorted((one["key"], one["stage"], one["code"], one["state"]) for one in rejects)
        return {**summary, "held": held, "rejects kept": kept}


def history(crowd: Crowd, numbers: Sequence[int], steps: Sequence[tuple[str, Sequence[str]]]) -> list[Any]:
    """What each step said: SQL on the mart, then a run with these words. Each with the next N."""
    told = []
    for step, (sql, words) in enumerate(steps):
        if sql:
            crowd.workshop.warehouse(sql)
        told.append(crowd.run(numbers[step % len(numbers)], *words))
    return told


KEYED = TABLE.format(key="PRIMARY KEY", check="CHECK (points <> 666)")
LOOSE = TABLE.format(key="", check="")
COLLIDES = "INSERT INTO people VALUES ('P1', 'upper', 1, '2026-06-02')"
HEALS = "UPDATE people SET points = 5 WHERE id = 'refused'; DELETE FROM people WHERE id = 'P1'"
BACK = "INSERT INTO people VALUES ('p3', 'n3', 3, '2026-06-01')"
KEYLESS = "INSERT INTO people VALUES (NULL, 'x', 1, '2026-06-01'); DELETE FROM people WHERE id = 'p9'"
KINDS = {
    "deletes": (
        SYNC
        + f"fields: {{id: {{column: id, transform: [lower]}}, '*': '*'}}\ndeletes: delete\nguards: {GUARDS}\n",
        KEYED,
        [
            (FIRST + ";" + COLLIDES, ("--limit", "5")),
            ("", ()),
            (THEN + ";" + KEYLESS, ("--key", "p7", "--key", "p0")),
            ("", ("--dry-run",)),
            ("DELETE FROM people WHERE id IS NULL; " + HEALS, ()),
            ("", ("--full",)),
        ],
    ),
    "soft deletes": (
        SYNC + f"deletes: {{set: {{gone: 'yes'}}, restore: {{gone: 'no'}}}}\nguards: {GUARDS}\n",
        KEYED,
        [(FIRST, ()), (THEN, ()), (BACK, ())],
    ),
    "append": (
        SYNC + f"write: append\nfirst_run: send\nguards: {GUARDS}\n",
        LOOSE,
        [(FIRST, ("--limit", "7")), ("", ()), (THEN, ()), (BACK, ())],
    ),
    "watermark, images kept": (
        SYNC
        + "changes: {watermark: day}\nconflicts: target_wins\nrollback: {keep: 30d}\n"
        + f"guards: {GUARDS}\n",
        KEYED,
        [(FIRST, ()), (THEN, ())],
    ),
}


@pytest.mark.parametrize("kind", KINDS if os.environ.get("RETL_TEST_ALL") else ["deletes"])
def test_the_number_of_shards_changes_nothing(
    kind: str, tmp_path: Path, postgres: Database, in_threads: None
) -> None:
    sync, table, steps = KINDS[kind]
    told = [
        history(Crowd(tmp_path / str(at), postgres, sync, table), numbers, steps)
        for at, numbers in enumerate(([1], [2, 5]))  # a baseline made with one number is read with another
    ]
    for one, many in zip(*told, strict=True):
        assert many == one
    if kind == "deletes":
        codes = {code for one in told[0] for _, _, code, _ in one["rejects kept"]}
        assert {"KEY_DUPLICATE", "KEY_COLLIDES", "23514"} <= codes
        assert told[0][3]["deletes"]["not_attempted"] == 4  # a row without a key holds them, in every share
        assert told[0][4]["deleted"] == 4


class SharedAppend(Append):
    """Two shards; the run that follows a killed one has none."""

    sync = Append.sync + "shards: 2\n"


def healed(scene: PostgresScene) -> None:
    """One plain run without shards makes it good."""
    scene.project.define(scene.sync.replace("shards: 2\n", ""))
    until(lambda: scene.project.sync().code == 0)
    assert scene.content() == scene.wanted()
    assert scene.doubled() == []


@pytest.mark.parametrize(
    ("kind", "point"),
    [
        ("append", "batch_sending"),  # it has opened this batch: the target refuses it
        ("append", "batch_acknowledged"),  # it wants to open the next one: the ledger refuses it
        *([("soft deletes", "batch_sending")] if os.environ.get("RETL_TEST_ALL") else []),
    ],
)
def test_an_attempt_that_was_taken_for_gone_writes_nothing_after_its_successor(
    kind: str, point: str, tmp_path: Path, postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = type("Gone", (Partitioned,), {"point": point})
    monkeypatch.setattr(processes, "begun", gone)
    sync, table, _ = KINDS[kind]
    crowd = Crowd(tmp_path / "project", postgres, sync, table)
    crowd.workshop.warehouse(FIRST)
    summary = crowd.run(2)
    assert (summary["exit_code"], summary["inserted"]) == (0, 41 if kind == "append" else 40)
    assert gone.zombie is not None, "no shard came to this point"
    assert [one.problem.code for one in gone.zombie.told if isinstance(one, shard.Failed)] == ["LOCK_LOST"]
    keys = [row[0] for row in summary["held"]]
    assert len(keys) == len(set(keys)) == summary["inserted"]
    again = crowd.run(1)
    assert (again["held"], again["inserted"], again["updated"]) == (summary["held"], 0, 0)


@pytest.mark.parametrize(
    "point", ["batch_sending", *(["shards_started"] if os.environ.get("RETL_TEST_ALL") else [])]
)
def test_a_run_whose_shard_is_lost_again_and_again_fails_and_the_next_makes_it_good(
    point: str, tmp_path: Path, postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "begun", type("Ending", (Ending,), {"point": point}))
    sync, table, _ = KINDS["append"]
    crowd = Crowd(tmp_path / "project", postgres, sync, table)
    crowd.workshop.warehouse(FIRST)
    failed = crowd.run(2)
    assert (failed["exit_code"], failed["error"]["code"]) == (1, "SHARD_LOST")
    assert bool(failed["in_doubt"]) is (point == "batch_sending")
    monkeypatch.setattr(processes, "begun", None)  # one process is enough now
    summary = crowd.run(1)
    assert (summary["exit_code"], len(summary["held"])) == (0, 41)
    assert len({row[0] for row in summary["held"]}) == 41


def test_shards_die_with_their_run_and_the_next_appends_no_row_twice(
    tmp_path: Path, postgres: Database
) -> None:
    scene = SharedAppend(tmp_path / "project", postgres)
    scene.begin()
    assert scene.project.sync(RETL_CRASH_AT="answers_heard:3").code == -signal.SIGKILL
    healed(scene)
    assert scene.project.statuses() == ["ABANDONED", "SUCCESS"]


def test_a_shard_that_is_killed_gets_another_process_which_carries_on_and_a_stop_is_made_good(
    tmp_path: Path, postgres: Database
) -> None:
    scene = SharedAppend(tmp_path / "project", postgres, postgres.url)
    scene.begin()
    ended = scene.project.sync(RETL_CRASH_AT="batch_sending:4")  # which only shards tell
    assert (ended.code, ended.summary["inserted"]) == (0, 40), ended.stderr
    assert ended.points()["shard_began_again"]
    assert scene.content() == scene.wanted()
    assert scene.doubled() == []
    scene.project.mart("INSERT INTO mart SELECT 'more ' || i, 'new', i, NULL FROM range(400) t(i)")
    run = scene.project.start()
    run.saying('"batch_acknowledged"')
    os.kill(run.pid, signal.SIGTERM)
    ended = run.end()
    assert (ended.code, ended.summary["status"]) == (128 + signal.SIGTERM, "INTERRUPTED"), ended.stderr
    assert ended.summary["inserted"], "nothing was sent before the stop"
    assert ended.summary["not_attempted"], "all was sent before the stop"
    healed(scene)
    assert scene.project.statuses() == ["SUCCESS", "INTERRUPTED", "SUCCESS"]


def test_rows_that_wait_for_rows_of_another_shard_arrive(
    tmp_path: Path, postgres: Database, in_threads: None
) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.use(postgres=postgres)
    with postgres.connect() as connection:
        connection.execute(
            "CREATE TABLE tree (id bigint PRIMARY KEY, parent bigint REFERENCES tree, code text UNIQUE)"
        )
    tree = (
        "CREATE OR REPLACE TABLE tree AS SELECT i AS id, nullif(i + 1, 13) AS parent, 'c' || {code} AS code"
    )
    workshop.warehouse(f"{tree.format(code='i')} FROM range(1, 13) t(i)")
    workshop.write(
        "syncs/tree.yml",
        "source: {table: tree}\nkey: [id]\ndestination: {type: postgres, table: public.tree}\nbatch: {rows: 2}\nshards: 3\n",
    )
    (summary,) = workshop.json("sync")["syncs"]
    assert (summary["inserted"], summary["rejected"]) == (12, 0)
    workshop.warehouse(f"{tree.format(code='(i + 1)')} FROM range(1, 13) t(i)")  # each has another's code
    (summary,) = workshop.json("sync")["syncs"]
    assert (summary["updated"], summary["rejected"]) == (12, 0)


def test_what_shards_cannot_do_is_an_error_of_the_definition(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.write("retl.yml", "engine: {shards: 4}\nconnections: {out: {type: files, root: out}}\n")
    workshop.sync("users", destination="{connection: out, path: users, format: csv}")
    said = workshop.retl("validate")
    assert said.code == 2
    assert "only PostgreSQL and Redis" in said.err
    assert "SHARDS_UNSUPPORTED" in said.err
    workshop.sync("users", destination="{connection: out, path: users, format: csv}", shards="1")
    assert workshop.retl("validate").code == 0


def test_redis_and_one_limit_for_all_shards(
    tmp_path: Path, redis_server: RedisServer, in_threads: None
) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.use(redis=redis_server)
    workshop.write(
        "retl.yml", "connections: {redis: {type: redis, limits: {requests: 1000, per: 1s, concurrency: 1}}}\n"
    )
    workshop.sync(
        "users",
        destination='{connection: redis, key: "u:{user_id}", value: json, ttl: none}',
        shards="3",
        batch="{rows: 4}",
    )
    (summary,) = workshop.json("sync")["syncs"]
    assert summary["inserted"] == 30
    with redis_server.client() as client:
        held = {int(key.decode()[2:]): json.loads(client.get(key)) for key in client.keys("u:*")}
    assert held == {i: {"email": f"u{i}@example.com", "spend": float(i)} for i in range(1, 31)}
    (again,) = workshop.json("sync")["syncs"]
    assert (again["unchanged"], again["batches"]) == (30, 0)


RESTORED = {
    "ledger, append": test_trace.test_a_restored_ledger_appends_nothing_twice,
    "target, append": test_trace.test_a_restored_target_of_an_append_gets_exactly_what_it_lost,
    "ledger, mirror": test_trace.test_a_restored_ledger_believes_nothing_that_it_missed,
    "target, mirror": partial(test_trace.test_a_restored_target_gets_what_it_lost, remedy="accept"),
}


@pytest.mark.parametrize("what", list(RESTORED)[: None if os.environ.get("RETL_TEST_ALL") else 1])
def test_a_restored_ledger_or_target_is_noticed_as_by_one_process(
    what: str, tmp_path: Path, postgres: Database, in_threads: None
) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.use(postgres=postgres)
    workshop.write("retl.yml", "engine: {shards: 2}\n")
    RESTORED[what](workshop, postgres)


if os.environ.get("RETL_TEST_ALL"):

    def test_a_run_of_shards_is_compared_shown_and_taken_back_like_any(
        tmp_path: Path, postgres: Database, in_threads: None
    ) -> None:
        crowd = Crowd(
            tmp_path / "project", postgres, SYNC + f"rollback: {{keep: 30d}}\nguards: {GUARDS}\n", KEYED
        )
        crowd.workshop.warehouse(FIRST)
        before = crowd.run(3)["held"]
        crowd.workshop.warehouse(THEN)
        assert crowd.run(2)["updated"]
        run = crowd.workshop.json("runs")["runs"][0]["run_id"]
        assert crowd.workshop.retl("reconcile", "people").code == 0
        assert crowd.workshop.retl("show", run).code == 0
        assert crowd.workshop.retl("report", "--out", str(tmp_path / "page.html")).code == 0
        assert crowd.workshop.retl("log", "verify").code == 0
        said = crowd.workshop.retl("rollback", run, "--no-pause")
        assert said.code == 0, said.err
        with postgres.connect() as connection:
            held = connection.execute("SELECT * FROM people ORDER BY id, name").fetchall()
        assert held == before
        said = crowd.workshop.retl("erase", "--sync", "people", "--key", "p1", "--reason", "asked")
        assert said.code == 0, said.err
        assert "p1" not in {row[0] for row in crowd.run(5)["held"]}
