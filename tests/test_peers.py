"""`retl sync SYNC --shard K/N`: commands in processes of their own are one run, and nothing is lost with any."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from retl.errors import Failure
from retl.ledger import Ledger, RejectChanges, RunEnd, RunStart, open_ledger
from retl.run import depot, lines, peers
from retl.run.depot import Depot
from retl.run.desk import Desk, Step, work
from retl.run.lines import Exchange, Ticket
from tests.commands import Workshop
from tests.crashes import Append, Ended, Running, until
from tests.servers import Database
from tests.test_shards import KINDS
from tests.test_shards_elsewhere import Echo, told

WHOLE = bool(os.environ.get("RETL_TEST_ALL"))
SLOW = """
  slow: {type: postgres, host: 127.0.0.1, port: "${PG_PORT}", dbname: "${PG_DB}", user: "${PG_USER}", password: "${PG_PASSWORD}", limits: {requests: 1, per: 1s}}
engine: {folder: ../shared}
"""


PAYLOAD = "rejects: {payload: true}\n"


class Peers(Append):
    """One request a second, so that there is time to kill; it appends to a table without a key."""

    sync = Append.sync.replace("connection: db", "connection: slow")
    connections = SLOW

    def start(self, number: int, of: int = 2, job: str = "monday") -> Running:
        return self.project.start("--shard", f"{number}/{of}", RETL_CORRELATION_ID=job)

    def answer(self, number: int, of: int = 2, job: str = "monday", *more: str) -> Ended:
        return self.project.sync("--shard", f"{number}/{of}", *more, RETL_CORRELATION_ID=job)

    def both(self) -> tuple[Running, Running]:
        """Two commands: the run, and the one that works for it, while it sends something."""
        found = [self.start(1), self.start(2)]
        until(lambda: any(says(one, "peer_joins") for one in found))
        other, run = sorted(found, key=lambda one: not says(one, "peer_joins"))
        run.saying('"batch_acknowledged"')
        until(lambda: has_shard(other) or not run.alive)
        assert has_shard(other), run.err.read_text()
        return run, other

    def hurry(self) -> None:
        """Commands that begin from now on need not be killed in time."""
        path = self.folder / "retl.yml"
        path.write_text(path.read_text().replace("{requests: 1,", "{requests: 50,"))

    def is_whole(self) -> bool:
        return self.content() == self.wanted() and self.doubled() == []


def has_shard(run: Running) -> bool:
    """Whether a process below this one is a shard's."""
    children = [
        one for path in Path(f"/proc/{run.pid}/task").glob("*/children") for one in path.read_text().split()
    ]
    return any(b"retl.run.shard" in Path(f"/proc/{one}/cmdline").read_bytes() for one in children)


def says(run: Running, event: str) -> bool:
    return f'"{event}"' in run.err.read_text()


@pytest.fixture
def scene(tmp_path: Path, postgres: Database) -> Peers:
    made = Peers(tmp_path / "project", postgres, postgres.url)
    made.begin()
    return made


def test_a_command_that_is_killed_and_the_run_that_is_killed_are_made_good(scene: Peers) -> None:
    run, other = scene.both()
    scene.hurry()
    os.kill(other.pid, signal.SIGKILL)
    assert other.end().code == -signal.SIGKILL
    run.saying('"shard_began_again"')
    again = scene.start(2)
    again.saying('"peer_joins"')
    os.kill(run.pid, signal.SIGKILL)
    assert run.end().code == -signal.SIGKILL
    ended = again.end(150)
    assert ended.code == 0, ended.stderr
    assert scene.is_whole()
    assert scene.project.statuses() == ["ABANDONED", "SUCCESS"]
    late = scene.answer(1)
    assert (late.code, late.summary["run_id"]) == (0, ended.summary["run_id"])
    for name in ("read", "inserted", "unchanged", "batches"):
        assert late.summary[name] == ended.summary[name]
    assert "this was command 1 of 2: the run was that of pid" in late.summary["notes"][0]
    assert scene.project.statuses() == ["ABANDONED", "SUCCESS"], "there was nothing left to do"
    assert not list((scene.folder.parent / "shared").iterdir())


if WHOLE:

    @pytest.mark.parametrize("commands", [1, 3])
    def test_any_number_of_the_commands_is_enough(commands: int, scene: Peers) -> None:
        scene.hurry()
        ended = [one.end(120) for one in [scene.start(number + 1, 3) for number in range(commands)]]
        assert [one.code for one in ended] == [0] * commands, ended
        assert len({one.summary["run_id"] for one in ended}) == 1
        assert scene.is_whole()
        assert scene.project.statuses() == ["SUCCESS"]

    @pytest.mark.parametrize("who", ["run", "other"])
    def test_a_command_that_is_stopped_leaves_the_work_to_the_others(who: str, scene: Peers) -> None:
        run, other = scene.both()
        stopped, stays = (run, other) if who == "run" else (other, run)
        os.kill(stopped.pid, signal.SIGTERM)
        ended = stopped.end()
        assert (ended.code, ended.summary["status"]) == (143, "INTERRUPTED"), ended.stderr
        ended = stays.end(150)
        assert (ended.code, ended.summary["status"]) == (0, "SUCCESS"), ended.stderr
        assert scene.is_whole()
        assert scene.project.statuses() == (["INTERRUPTED", "SUCCESS"] if who == "run" else ["SUCCESS"])

    def test_a_retry_after_a_failed_run_begins_another(scene: Peers) -> None:
        scene.hurry()
        scene.project.define(scene.sync.replace("crm.users", "crm.nobody"))
        ended = [scene.answer(1), scene.answer(2)]
        assert [one.code for one in ended] == [3, 3]
        assert ended[0].summary["run_id"] != ended[1].summary["run_id"]
        scene.project.define(scene.sync)
        assert scene.answer(2).code == 0
        assert scene.is_whole()


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    with closing(Exchange("127.0.0.1", "127.0.0.1")) as made:
        yield made


class Other(threading.Thread):
    """Somebody who works for a desk."""

    def __init__(self, ticket: Ticket) -> None:
        super().__init__(daemon=True)
        self.ticket = ticket
        self.start()

    def run(self) -> None:
        work(self.ticket)


def test_a_desk_gives_each_step_to_one_who_is_there(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "begun", Echo)
    desk = Desk()
    ticket = exchange.ticket(desk)
    steps = [Step(exchange, str(number)) for number in range(3)]
    steps[0].kill()  # before anybody has it
    for one in steps:
        desk.put(one)
    gone = lines.dialled(ticket, b"a")
    assert lines.exactly(gone, lines.TOKEN) == steps[1].line.ticket.token
    with pytest.raises(subprocess.TimeoutExpired):
        steps[1].wait(0.01)
    gone.close()
    steps[1].wait(20)
    assert steps[1].returncode == "the command that had it is gone"
    with pytest.raises(EOFError):
        steps[1].line.ours.recv()
    other = Other(ticket)
    steps[2].line.ours.send("work")
    assert steps[2].line.ours.recv() == "work"
    steps[2].line.ours.send(None)
    steps[2].wait(20)
    assert steps[2].returncode == "its process ended"
    exchange.close()
    other.join(20)
    assert not other.is_alive(), "the run is over"
    with pytest.raises(OSError, match="refused"):
        work(ticket)


def test_a_command_trusts_no_other_user(tmp_path: Path, exchange: Exchange) -> None:
    ticket = exchange.ticket(Desk())
    assert peers._read(tmp_path) is None
    peers._write(ticket, Depot(tmp_path))
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert peers._read(tmp_path) == ticket
    path.chmod(0o644)  # somebody else may have read it; another owner is told apart in the same way
    with pytest.raises(Failure, match="does not trust it") as refused:
        peers._read(tmp_path)
    assert refused.value.code == "PEERS_FOREIGN"


def test_a_run_that_nobody_can_reach_says_so(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        cluster = peers.PeerCluster(tmp_path, "127.0.0.1", taken.getsockname()[1])
        with pytest.raises(Failure, match="cannot be listened at") as refused, cluster.open(Depot(tmp_path)):
            pass
    assert refused.value.code == "PEERS_PORT"
    cluster = peers.PeerCluster(tmp_path, "127.0.0.1", 0)
    with cluster.open(Depot(tmp_path)):
        cluster._exchange.close()  # as where a firewall keeps this machine from itself
        until(cluster._broken.is_set)
        with pytest.raises(Failure, match="does not reach itself") as refused:
            cluster.begin("a step")
    assert refused.value.code == "PEERS_HOST"


def test_what_the_commands_lack_is_one_clear_sentence(tmp_path: Path, postgres: Database) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.use(postgres=postgres)
    workshop.write("syncs/people.yml", KINDS["append"][0])
    for wrong in ("0/2", "3/2", "1/1", "1/65", "two", "1/2/3", "1"):
        assert "--shard takes K/N, such as 3/16: N from 2 to 64" in told(workshop, "--shard", wrong)
    said = told(workshop, "people", "--shard", "1/2")
    for code in ("PEERS_LEDGER", "PEERS_FOLDER", "PEERS_JOB"):
        assert code in said
    workshop.write("retl.yml", "engine: {folder: ../shared}\n")
    workshop.environment |= {"RETL_STATE_URL": postgres.url, "RETL_CORRELATION_ID": "monday"}
    assert "leave out --dry-run" in told(workshop, "people", "--shard", "1/2", "--dry-run")
    assert "leave out --engine spark" in told(workshop, "people", "--shard", "1/2", "--engine", "spark")
    workshop.write("syncs/others.yml", KINDS["append"][0].replace("public.people", "public.others"))
    assert "--shard shares the rows of one sync, and 2 are chosen" in told(workshop, "--shard", "1/2")
    workshop.write("syncs/others.yml", KINDS["append"][0].replace("public.people", "public.others") + PAYLOAD)
    said = told(workshop, "others", "--shard", "1/2")
    assert "SHARDS_UNSUPPORTED" in said
    assert "--shard is not possible here: `rejects: {payload: true}`" in said


@pytest.fixture
def held(scene: Peers, postgres: Database) -> Iterator[Ledger]:
    """The ledger, in which a run of this process has the lock of the sync."""
    with (
        closing(open_ledger(postgres.url, scene.folder, environment=None)) as ledger,
        ledger.lock(["users"], sync="users", host="elsewhere", pid=7) as lock,
    ):
        started = datetime.now(UTC)
        run = RunStart(
            *("run", "users", "object", "sync", None, "monday", lock.epoch, started, {}, {}, {}),
            *("elsewhere", 7, "user", "0.1"),
            options={"accept": [], "allow_deletes": None, "shards": 2},
        )
        ledger.begin(run)
        yield ledger


def test_a_command_of_another_job_or_with_another_n_does_nothing(scene: Peers, held: Ledger) -> None:
    other_n, full, foreign = (
        scene.answer(2, 3),
        scene.answer(1, 2, "monday", "--limit", "3"),
        scene.answer(1, 2, "tuesday"),
    )
    assert (other_n.code, other_n.summary["error"]["code"]) == (2, "PEERS_DIFFER")
    assert "is one of 2 commands, and this command is 2 of 3" in other_n.summary["error"]["message"]
    assert (full.code, full.summary["error"]["code"]) == (2, "PEERS_DIFFER")
    assert "was asked for with other options" in full.summary["error"]["message"]
    assert (foreign.code, foreign.summary["error"]["code"]) == (75, "LOCK_HELD")
    assert [one.run_id for one in held.runs("users")] == ["run"]


def test_a_run_that_cannot_be_reached_and_one_of_another_version_are_named(
    scene: Peers, held: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "REACHING", 0.5)
    with closing(Exchange("127.0.0.1", "127.0.0.1")) as exchange:
        ticket = exchange.ticket(Desk())
    place = Depot(depot.root(scene.folder.parent / "shared", held.state_id, "users") / "run")
    place.folder.mkdir(parents=True)
    peers._write(ticket, place)
    ended = scene.answer(1)
    assert (ended.code, ended.summary["error"]["code"]) == (75, "PEERS_UNREACHABLE")
    assert f"pid 7 on elsewhere has the run, and was not reached at 127.0.0.1:{ticket.port}" in ended.stdout
    peers._write(replace(ticket, versions="retl-cli 0.1.0, duckdb 0.9.0"), place)
    ended = scene.answer(1)
    assert (ended.code, ended.summary["error"]["code"]) == (2, "PEERS_VERSIONS")


def test_the_end_of_a_run_is_that_of_every_command_that_waited_for_it(scene: Peers, held: Ledger) -> None:
    """It is refused before it has said where it is."""
    one = scene.start(1)
    one.saying('"peer_waits"')
    error = {"code": "EMPTY_SOURCE", "message": "no rows", "hint": None}
    end = RunEnd("run", held.runs("users")[0].epoch, "REFUSED", {"read": 40}, error=error)
    held.finish(end, None, RejectChanges())
    held.keep("peers users", json.dumps({"job": "monday", "run_id": "run", "exit_code": 3}))
    ended = one.end()
    assert ended.code == 3, ended.stderr
    summary = ended.summary
    assert (summary["run_id"], summary["status"], summary["read"]) == ("run", "REFUSED", 40)
    assert summary["error"] == error
