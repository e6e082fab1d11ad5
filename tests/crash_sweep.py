"""The long version of test_crash.py and test_source_kills.py: `python -m tests.crash_sweep`, or `make test-crash`.

Kills at events of a run, at events of the recovery after a kill, and at system calls of the main thread or
a lane, and prints per kind of delivery what was lost and what came twice. What there is no time for is left
out evenly, never at the end, and the table says how much of what there is was tried. Ends with 1 if
anything was lost or doubled, or a run did not end as it should.

`python -m tests.crash_sweep WORD…` kills only deliveries whose kind contains a word, in the same time, so that each
gets more of it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tests import mysql_server, servers, sourced
from tests.crashes import PATIENCE, Append, Ended, PostgresScene, Scene, until
from tests.databases import MYSQL
from tests.scenes import KINDS, scene

CALLS = (
    "sendto", "recvfrom", "write", "fsync", "fdatasync", "pwrite64", "rename", "unlink", "ftruncate", "poll",
)  # fmt: skip
KILLED = -9
LOST_ANSWER = "batch_answered:2"  # the target has the batch, and the ledger does not know it
MINUTES = 11.0
RACES = 50  # of two runs of one ledger
LEDGER_RACES = 20
WORKERS = 2

T = TypeVar("T")
Point = tuple[str, int]  # an event or a system call, and which occurrence of it


@dataclass
class FailureRate:
    """What a series of kills came to."""

    kills: int = 0
    lost: int = 0
    doubled: int = 0
    problems: list[str] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)


def recover(made: Scene, what: str, failure_rate: FailureRate, *, again: bool = True) -> None:
    """One plain sync after a kill must bring the target where it should be; another one must find nothing
    to do."""
    project = made.project
    done = project.sync()
    wanted, found = made.wanted(), made.content()
    lost = set(wanted) ^ set(found)
    failure_rate.kills += 1
    failure_rate.lost += bool(lost)
    doubled = made.doubled()
    failure_rate.doubled += bool(doubled)
    if lost or doubled or len(wanted) != len(found):
        failure_rate.problems.append(f"{what}: differs {sorted(lost, key=str)[:4]}, doubled {doubled[:4]}")
    elif done.code or done.summary["status"] != "SUCCESS":
        failure_rate.problems.append(f"{what}: exit {done.code}\n{done.stdout}\n{done.stderr[-1500:]}")
    elif again:
        third = project.sync()
        moved = sum(third.summary[name] for name in ("inserted", "updated", "deleted", "refreshed"))
        if third.code or moved or made.content() != found:
            failure_rate.problems.append(f"{what}: a third run was not idle: {third.stdout}")


def evenly(things: Sequence[T], most: int) -> list[T]:
    """At most so many of them, at even distances."""
    if len(things) <= most:
        return list(things)
    return [things[int((i + 0.5) * len(things) / most)] for i in range(most)]


def sampled(counts: Mapping[str, int], most: int) -> list[Point]:
    """Occurrences of every name, `most` in all: of those that come often as many as of those that do not,
    as far as there are, each evenly spread. Where even one of each is too much, evenly some names."""
    each = max((n for n in range(1, most + 1) if _total(counts, n) <= most), default=1)
    points = [
        (name, number)
        for name, count in sorted(counts.items())
        for number in evenly(range(1, count + 1), each)
    ]
    return evenly(points, most)


def _total(counts: Mapping[str, int], each: int) -> int:
    return sum(min(count, each) for count in counts.values())


def in_turn(counts: Mapping[str, int], most: int, turn: int) -> list[Point]:
    """At most so many names; those who take their turns one after the other get to all of them."""
    stride = -(-len(counts) // most)
    return [(name, 1) for name in sorted(counts)[turn % stride :: stride]]


def sweep_events(made: Scene, failure_rate: FailureRate, most: int, turn: int | None = None) -> None:
    """Kill at `most` events of a run; with a `turn` each time at others."""
    faultless = made.project.sync()
    assert faultless.code == 0, faultless.stderr
    assert made.content() == made.wanted()
    counts = faultless.points()
    points = sampled(counts, most) if turn is None else in_turn(counts, most, turn)

    def kill(point: str) -> None:
        killed = made.project.sync(RETL_CRASH_AT=point)
        assert killed.code == KILLED, f"{point} was not reached"

    _sweep(made, "events", counts, points, kill, failure_rate)


def sweep_recovery(made: Scene, failure_rate: FailureRate, most: int) -> None:
    """Kill a run before it knows of an answer, and then the run that makes it good, at `most` events."""
    made.begin()
    assert made.project.sync(RETL_CRASH_AT=LOST_ANSWER).code == KILLED
    recovery = made.project.sync()
    assert recovery.code == 0, recovery.stderr

    def kill(point: str) -> None:
        for at in (LOST_ANSWER, point):
            killed = made.project.sync(RETL_CRASH_AT=at)
            assert killed.code == KILLED, f"{at} was not reached"

    counts = recovery.points()
    _sweep(made, "recovery", counts, sampled(counts, most), kill, failure_rate)


def sweep_calls(made: Scene, calls: Sequence[str], failure_rate: FailureRate, most: int) -> None:
    """Kill at `most` of these system calls. A run may need fewer of them than the one that was counted:
    then it gets through."""
    made.begin()
    counts = counted(made, calls)

    def kill(point: str) -> None:
        call, _, k = point.partition(":")
        ended = killed_at(made, call, int(k))
        assert ended.code in (0, KILLED), f"exit {ended.code}: {ended.stderr}"

    _sweep(made, "system calls", counts, sampled(counts, most), kill, failure_rate)


def _sweep(
    made: Scene,
    what: str,
    counts: Mapping[str, int],
    points: Sequence[Point],
    kill: Callable[[str], None],
    failure_rate: FailureRate,
) -> None:
    for number, (name, n) in enumerate(points):
        made.begin()
        kill(f"{name}:{n}")
        recover(made, f"{what}, {name}:{n}", failure_rate, again=number % 4 == 0)
    tried = Counter(name for name, _ in points)
    parts = ", ".join(f"{name} {tried[name]}/{count}" for name, count in sorted(counts.items()))
    failure_rate.tried.append(f"{what} {len(points)} of {sum(counts.values())} ({parts})")


# system calls


def traceable() -> str | None:
    """Why system calls cannot be traced here; None if they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"strace cannot trace: {tried.stderr.strip()}"


def killed_at(made: Scene, call: str, k: int) -> Ended:
    """One run, killed when a thread of it makes this call for the k-th time, if it ever does."""
    inject = f"inject={call}:signal=KILL:when={k}"
    return _traced_run(made, "-o", "/dev/null", "-e", f"trace={call}", "-e", inject)


def counted(made: Scene, calls: Sequence[str]) -> dict[str, int]:
    """How often the busiest thread of a run that nobody kills makes each of these calls."""
    log = made.folder / "calls"
    ended = _traced_run(made, "-o", str(log), "-e", f"trace={','.join(calls)}")
    assert ended.code == 0, ended.stderr
    made_by = Counter(re.findall(r"^(\d+) +(\w+)\(", log.read_text(errors="replace"), re.MULTILINE))
    most = {call: max((n for (_, name), n in made_by.items() if name == call), default=0) for call in calls}
    return {call: count for call, count in most.items() if count}


def _traced_run(made: Scene, *options: str) -> Ended:
    go = made.folder / "go"
    go.unlink(missing_ok=True)
    run = made.project.start(WAIT_FOR=str(go))
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", *options, "-p", str(run.pid)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        until(lambda: _traced(run.pid) or tracer.poll() is not None)
        assert tracer.poll() is None or not run.alive, tracer.communicate()
        go.touch()
        return run.end(PATIENCE)
    finally:
        tracer.wait(PATIENCE)
        assert tracer.stderr
        tracer.stderr.close()


def _traced(pid: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return True
    return any(line.startswith("TracerPid:") and line.split()[1] != "0" for line in lines)


# the long version


FROM = "from "  # a kind: rows of this source into PostgreSQL
SOURCES = tuple(f"{FROM}{kind}" for kind in sourced.KINDS if kind != "duckdb")


@contextmanager
def _source(kind: str, folder: Path) -> Iterator[Scene]:
    """Rows of another source than DuckDB."""
    with ExitStack() as hold:
        server = hold.enter_context(servers.postgres_server(folder / "postgres"))
        given = sourced.Servers(hold.enter_context(servers.fresh_database(server)))
        if kind in sourced.BUCKETS:
            given.objectstore = hold.enter_context(servers.ObjectStore(folder / "objectstore").start())
        if kind == "mysql":
            own = hold.enter_context(mysql_server.mysql_server(folder / "mysql"))
            given.mysql = hold.enter_context(mysql_server.fresh(own))
        made = hold.enter_context(sourced.mart_in(kind, given))
        yield sourced.FromSource(folder / "project", given.postgres, made)


@contextmanager
def _scene(kind: str, folder: Path) -> Iterator[Scene]:
    for name in ("postgres", "redis", "mysql", "objectstore"):
        (folder / name).mkdir()
    folder.chmod(0o755)
    if kind.startswith(FROM):
        with _source(kind.removeprefix(FROM), folder) as made:
            yield made
        return
    with ExitStack() as hold:
        postgres = hold.enter_context(servers.postgres_server(folder / "postgres"))
        redis = hold.enter_context(servers.redis_server(folder / "redis"))
        database = hold.enter_context(servers.fresh_database(postgres))
        mysql = None
        if kind in MYSQL:
            server = hold.enter_context(mysql_server.mysql_server(folder / "mysql"))
            mysql = hold.enter_context(mysql_server.fresh(server))
        yield hold.enter_context(scene(kind, folder / "project", database, redis, mysql))


def long(kind: str, share: float) -> tuple[str, dict[str, FailureRate]]:
    """One kind of delivery in about `share` seconds: what a kill costs is measured, and so many are made."""
    end = time.monotonic() + share
    tallies = {name: FailureRate() for name in ("events", "recovery", "system calls")}
    sweeps: list[tuple[str, float, Callable[[int], None]]]
    with tempfile.TemporaryDirectory(prefix="retl-crash-") as name, _scene(kind, Path(name)) as made:
        sweeps = [
            ("events", 0.4, lambda most: sweep_events(made, tallies["events"], most)),
            ("recovery", 0.3, lambda most: sweep_recovery(made, tallies["recovery"], most)),
            ("system calls", 1.0, lambda most: sweep_calls(made, CALLS, tallies["system calls"], most)),
        ]
        if traceable() is not None:
            sweeps.pop()
        started, cost = time.monotonic(), FailureRate()
        sweep_recovery(made, cost, 1)
        each = (time.monotonic() - started) / 2  # a recovery without a kill, and one with two
        for name, part, sweep in sweeps:
            started = time.monotonic()
            made.begin()
            sweep(max(1, int(part * (end - started) / each)))
            each = (time.monotonic() - started) / (tallies[name].kills + 1)
        assert "RUNNING" not in made.project.statuses()[:-1]
    return kind, tallies


def races(number: int) -> tuple[str, int, int]:
    """Of two runs of one ledger: races, and how many ended otherwise than with one delivery."""
    from tests.test_one_writer import race

    lost = 0
    with tempfile.TemporaryDirectory(prefix="retl-race-") as name, _scene("append", Path(name)) as made:
        assert isinstance(made, Append)
        for _ in range(number):
            made.begin()
            lost += _lost(lambda: race(made))
    return "two runs", number, lost


def ledger_races(number: int) -> tuple[str, int, int]:
    """The same of two ledgers that know nothing of each other."""
    from tests.test_exclusion import another, race

    lost = 0
    with tempfile.TemporaryDirectory(prefix="retl-race-") as name, _scene("upsert", Path(name)) as made:
        assert isinstance(made, PostgresScene)
        for n in range(number):
            made.begin()
            lost += _lost(lambda n=n: race(made, another(made, f"other.{n}")))
    return "two ledgers", number, lost


def _lost(race: Callable[[], None]) -> bool:
    try:
        race()
    except AssertionError as error:
        print(f"  race: {error}", flush=True)
        return True
    return False


def chosen(words: Sequence[str]) -> tuple[str, ...]:
    """The kinds of delivery that contain one of the words; without words all."""
    return tuple(k for k in (*KINDS, *SOURCES) if not words or any(word in k for word in words))


def main(words: Sequence[str] = ()) -> int:
    kinds = chosen(words)
    if not kinds:
        print(f"no kind contains one of {', '.join(words)}: {', '.join(chosen(()))}", file=sys.stderr)
        return 2
    why = traceable()
    if why:
        print(f"no system calls: {why}", file=sys.stderr)
        if os.environ.get("CI"):
            return 1
    started = time.monotonic()
    share = 60 * MINUTES * WORKERS / len(kinds)
    print(f"{'target':<26}{'kills at':<14}{'kills':>7}{'lost':>7}{'doubled':>9}")
    bad = 0
    with ProcessPoolExecutor(WORKERS) as pool:
        raced = [pool.submit(races, RACES), pool.submit(ledger_races, LEDGER_RACES)] if not words else []
        for kind, tallies in pool.map(long, kinds, [share] * len(kinds)):
            for name, failure_rate in tallies.items():
                print(
                    f"{kind:<26}{name:<14}{failure_rate.kills:>7}{failure_rate.lost:>7}{failure_rate.doubled:>9}",
                    flush=True,
                )
                for problem in failure_rate.problems:
                    print(f"  {problem}")
                bad += len(failure_rate.problems)
            for tried in (one for failure_rate in tallies.values() for one in failure_rate.tried):
                print(f"  tried: {tried}", flush=True)
        for what, number, lost in (one.result() for one in raced):
            print(f"{number} races of {what}, {lost} without exactly one delivery")
            bad += lost
    print(f"{round(time.monotonic() - started)} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
