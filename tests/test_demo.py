"""`retl demo` does what it shows, against servers it starts itself, and leaves nothing running."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from rich.console import Console

from retl_demo import oracle, servers, stage, warehouse
from retl_demo.oracle import LANDINGS, Difference, Motion
from retl_demo.show import Story
from tests.commands import Workshop

FOREIGN = {  # what a user's own environment may say, and the demo must never act on
    "POSTGRES_HOST": "203.0.113.1",
    "POSTGRES_PASSWORD": "theirs",
    "REDIS_HOST": "203.0.113.1",
    "CAMPAIGN_URL": "http://203.0.113.1",
    "RETL_STATE_URL": "file:/proc/nowhere",
    "DUCKDB_PATH": "/proc/nowhere.duckdb",
    "PGSSLMODE": "verify-full",
}
USER_SEGMENTS = LANDINGS[0]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A place for temporary files that PostgreSQL's own user may walk through; the demo leaves it empty."""
    folder = Path(tempfile.mkdtemp(prefix="retl-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def environment(temporary: Path) -> dict[str, str]:
    return {**os.environ, **FOREIGN, "TMPDIR": str(temporary)}


def start(*words: str, env: Mapping[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "retl", "demo", *words]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def processes() -> dict[str, tuple[str, str]]:
    """Every process: id → (its parent's id, when it began)."""
    listed = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,lstart="], capture_output=True, text=True, check=True
    ).stdout
    found = (line.split(maxsplit=2) for line in listed.splitlines())
    return {pid: (parent, since) for pid, parent, since in found}


def descendants(pid: int) -> dict[str, tuple[str, str]]:
    everybody, family = processes(), {str(pid)}
    while more := {one for one, (parent, _) in everybody.items() if parent in family} - family:
        family |= more
    return {one: everybody[one] for one in family & everybody.keys() if one != str(pid)}


def alive(family: Mapping[str, tuple[str, str]]) -> list[str]:
    """Which of these processes still run; a number may belong to a newer process by now."""
    now = processes()
    return [one for one, (_, since) in family.items() if one in now and now[one][1] == since]


def left(family: Mapping[str, tuple[str, str]]) -> list[str]:
    """Which of them outlive their parents by more than the moment in which a server's own children end."""
    deadline = time.monotonic() + 10
    while (found := alive(family)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def test_the_demo_ends_well_and_says_so(tmp_path: Path, temporary: Path) -> None:
    folder = tmp_path / "project"
    demo = start(str(folder), "--keep", env=environment(temporary))
    said, errors = demo.communicate(timeout=240)
    assert demo.returncode == 0, said + errors
    assert errors == ""
    assert said.count("0 lost, 0 doubled.") == 2
    assert said.count("kill -9: ") == 3
    assert "200 of 20,000 users searched and spent more" in said
    assert "1,474 of 164,696 rows were written, each of them due." in said
    assert "the person's number stays" in said
    assert "every value as it was; the sync waits" in said
    assert "1 row deleted, read back: gone" in said
    assert "topic crm.users: 2001 records, the newest of each key is a row of the mart" in said
    assert "latest.json leads a page to JSON, a BI tool to Parquet" in said
    assert "Nothing lost, nothing doubled, and only what changed has moved." in said
    assert "WRONG" not in said
    assert f"The project stays in {folder.resolve()}." in said
    latest = json.loads((folder / "dashboard" / "latest.json").read_text())
    assert all((folder / "dashboard" / one["path"]).is_file() for one in latest["files"])
    assert "latest.json" in (folder / "dashboard" / "index.html").read_text()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("width", [80, 110])
def test_no_number_is_cut_on_a_narrow_terminal(width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    numbers = [164_696, 93_345, 18_669, 2_020, 12, 3.4]
    headers = ("sync", "read", "unchanged", "inserted", "updated", "deleted", "seconds")
    Story(console).table(headers, [["product_recommendations", *numbers]], "retl sync --all")
    drawn = console.export_text()
    assert all(cell in drawn for cell in ("164,696", "93,345", "18,669", "2,020", "12", "3.4")), drawn


def test_the_project_it_leaves_behind_is_whole(tmp_path: Path) -> None:
    with stage.project(tmp_path / "project", keep=True) as folder:
        pass
    env = {name: value for name, value in os.environ.items() if not name.startswith(("POSTGRES_", "RETL_"))}
    done = subprocess.run(
        [sys.executable, "-m", "retl", "--project", str(folder), "validate"],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "CAMPAIGN_TOKEN" in done.stdout
    assert (folder / "config.example.env").is_file()


def test_without_a_broker_there_is_none_and_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an installation without the client of Kafka: the demo then says what it lacks."""
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "confluent_kafka", raising=False)
    assert servers.tansu(tmp_path / "broker") is None
    assert not (tmp_path / "broker").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["sigint", "sigterm"])
def test_a_demo_that_is_stopped_stops_all_it_started(temporary: Path, number: signal.Signals) -> None:
    demo = start(env=environment(temporary))
    assert demo.stdout
    for line in demo.stdout:
        if line.strip().startswith("campaign tool"):  # the servers are up, and the first run begins
            break
    family = descendants(demo.pid)
    deadline = time.monotonic() + 60
    while len(family) < 3 and demo.poll() is None and time.monotonic() < deadline:
        family = descendants(demo.pid)
    demo.send_signal(number)
    _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 128 + number
    assert f"stopped by {number.name}" in errors
    assert "Traceback" not in errors
    assert len(family) >= 3
    assert left(family) == []
    assert list(temporary.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    demo = start(str(tmp_path), env=dict(os.environ))
    _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 2
    assert "DEMO_DIRECTORY" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_oracle_sees_each_kind_of_fault() -> None:
    wanted = {("a",): ("1",), ("b",): ("2",), ("c",): ("3",)}
    right = [("a", "1"), ("b", "2"), ("c", "3")]

    def compare(*found: tuple[str, str]) -> Difference:
        return oracle.compare(wanted, found, USER_SEGMENTS)

    assert not compare(*right)
    assert compare(*right[1:]) == Difference(lost=1, doubled=0, altered=0, foreign=0)
    assert compare(*right, right[0]) == Difference(lost=0, doubled=1, altered=0, foreign=0)
    assert compare(("a", "0"), *right[1:]) == Difference(lost=0, doubled=0, altered=1, foreign=0)
    assert compare(*right, ("d", "4")) == Difference(lost=0, doubled=0, altered=0, foreign=1)
    assert compare() == Difference(lost=3, doubled=0, altered=0, foreign=0)


def test_the_oracle_asks_the_warehouse_and_knows_what_stays(tmp_path: Path) -> None:
    path = tmp_path / "warehouse.duckdb"
    warehouse.build(path, users=1000)
    before = {one.sync: oracle.expected(path, one) for one in LANDINGS}
    assert len(before["user_segments"]) == 1000
    assert all(before.values())
    warehouse.change(path, 0.1)
    after = {one.sync: oracle.expected(path, one, before[one.sync]) for one in LANDINGS}
    moved = {name: oracle.motion(before[name], after[name]) for name in before}
    assert moved["user_segments"] == Motion(updated=100)
    assert moved["product_recommendations"].deleted > 0
    assert [moved[one.sync].deleted for one in LANDINGS if not one.deletes] == [0] * 5


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Workshop]:
    """A project of a user whose servers, if any, end with the test."""
    made = Workshop(tmp_path / "project", {"XDG_STATE_HOME": str(tmp_path / "state")})
    try:
        yield made
    finally:
        made.retl("demo", "stop")


def test_servers_that_stay_outlive_the_terminal_and_a_kill_and_end_only_when_told(serving: Workshop) -> None:
    begun = serving.json("demo", "--serve")
    again = serving.json("demo", "--serve")
    assert (begun.pop("already"), again.pop("already")) == (False, True)
    assert begun == again
    keeper, variables = begun["pid"], begun["variables"]
    assert os.getsid(keeper) == keeper  # the end of a terminal reaches only its own session
    os.kill(keeper, signal.SIGHUP)
    if sys.platform == "linux":
        assert listened(variables) == {"127.0.0.1"}
    if "RETL_TEST_ALL" in os.environ:
        keeper = killed(serving, keeper, variables)
    family = descendants(keeper) | {str(keeper): processes()[str(keeper)]}
    assert len(family) >= 3
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert serving.json("demo", "stop") == {"stopped": True}
        assert left(family) == []
        assert other.poll() is None
        other.communicate(b"\n", timeout=20)
    assert serving.json("demo", "stop") == {"stopped": False}


@pytest.mark.parametrize("words", [["--serve", "--keep"], ["shop", "--serve"], ["stop", "--keep"]])
def test_servers_that_stay_take_no_folder(serving: Workshop, words: list[str]) -> None:
    said = serving.retl("demo", *words)
    assert (said.code, "[USAGE]" in said.err) == (2, True)


def killed(serving: Workshop, keeper: int, variables: Mapping[str, str]) -> int:
    """The keeper after a kill, which ends the servers, too: they begin again where they were."""
    family = descendants(keeper)
    os.kill(keeper, signal.SIGKILL)
    assert left(family) == []
    again = serving.json("demo", "--serve")
    assert (again["already"], again["variables"]) == (False, variables)
    return int(again["pid"])


def listened(variables: Mapping[str, str]) -> set[str]:
    """The addresses on which somebody listens at the ports of these variables."""
    ports = {int(variables[f"{name}_PORT"]) for name in ("POSTGRES", "REDIS")}
    ports |= {int(variables[f"{name}_URL"].split("/")[2].rpartition(":")[2]) for name in ("HUBSPOT", "SLACK")}
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            address, _, port = line.split()[1].partition(":")
            if line.split()[3] == "0A" and int(port, 16) in ports:
                found[int(port, 16)] = (
                    socket.inet_ntoa(bytes.fromhex(address)[::-1]) if table == "tcp" else "any"
                )
    assert found.keys() == ports
    return set(found.values())
