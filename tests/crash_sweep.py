"""The long version of test_crash.py: `python -m tests.crash_sweep`, or `make test-crash`.

Kills at every event of a run, then at every k-th system call of its main thread or its lanes, and prints
what was lost and what came twice, per target. Ends with 1 if anything did.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests import servers
from tests.crashes import KINDS, PATIENCE, Append, Ended, Scene, Tally, recover, sampled, scene, until

CALLS = (
    "sendto", "recvfrom", "write", "fsync", "fdatasync", "pwrite64", "rename", "unlink", "ftruncate", "poll",
)  # fmt: skip
EVERY = 10**6
MINUTES = 8.0
RACES = 50
WORKERS = 2


def traceable() -> str | None:
    """Why system calls cannot be traced here; None if they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"strace cannot trace: {tried.stderr.strip()}"


def killed_at(made: Scene, call: str, k: int) -> Ended:
    """One run, killed when a thread of it makes this call for the k-th time, if it ever does."""
    go = made.folder / "go"
    go.unlink(missing_ok=True)
    run = made.project.start(WAIT_FOR=str(go))
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e"]
    command += [f"inject={call}:signal=KILL:when={k}", "-p", str(run.pid)]
    tracer = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
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


def sweep_events(made: Scene, tally: Tally, most: int = EVERY, end: float | None = None) -> bool:
    """Kill at every event of a run that nobody kills, up to `most` times at one that comes often; False if
    time ended first."""
    faultless = made.project.sync()
    assert faultless.code == 0, faultless.stderr
    assert made.content() == made.project.rows()
    for number, (event, n) in enumerate(sampled(faultless.points(), most)):
        if end is not None and time.monotonic() > end:
            return False
        made.begin()
        killed = made.project.sync(RETL_CRASH_AT=f"{event}:{n}")
        assert killed.code == -9, f"{event}:{n} was not reached"
        recover(made, f"{event}:{n}", tally, again=number % 4 == 0)
    return True


def sweep_calls(made: Scene, call: str, tally: Tally, ks: Iterator[int], end: float | None = None) -> bool:
    """Kill at the k-th of these calls, k after k, until a run gets through; False if time or `ks` ended
    first."""
    for k in ks:
        if end is not None and time.monotonic() > end:
            return False
        made.begin()
        ended = killed_at(made, call, k)
        if ended.code != -9:
            assert ended.code == 0, f"exit {ended.code}: {ended.stderr}"
            return True
        recover(made, f"{call}:{k}", tally, again=False)
    return False


def growing(step: float) -> Iterator[int]:
    """1, 2, 3 …, with growing gaps: by a `step`-th part of k."""
    k = 1
    while True:
        yield k
        k += max(1, int(k * step))


@contextmanager
def _scene(kind: str, folder: Path) -> Iterator[Scene]:
    for name in ("postgres", "redis"):
        (folder / name).mkdir()
    folder.chmod(0o755)
    with (
        servers.postgres_server(folder / "postgres") as postgres,
        servers.redis_server(folder / "redis") as redis,
        servers.fresh_database(postgres) as database,
        scene(kind, folder / "project", database, redis) as made,
    ):
        yield made


def long(kind: str, share: float) -> tuple[str, Tally, Tally, list[str]]:
    """Everything for one target in about `share` seconds."""
    events, calls, reached = Tally(), Tally(), list[str]()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="retl-crash-") as name, _scene(kind, Path(name)) as made:
        through = sweep_events(made, events, end=started + share / 2)
        reached.append(f"events{'' if through else ' (time ended)'}")
        if traceable() is None:
            for number, call in enumerate(CALLS):
                left = share - (time.monotonic() - started)
                end = time.monotonic() + left / (len(CALLS) - number)
                through = sweep_calls(made, call, calls, growing(0.12), end)
                reached.append(f"{call}{'' if through else ' (time ended)'}")
        assert "RUNNING" not in made.project.statuses()[:-1]
    return kind, events, calls, reached


def races(number: int) -> tuple[int, int]:
    """(races, how many of them ended otherwise than with one delivery)."""
    from tests.test_one_writer import race

    lost = 0
    with tempfile.TemporaryDirectory(prefix="retl-race-") as name, _scene("append", Path(name)) as made:
        assert isinstance(made, Append)
        for _ in range(number):
            made.begin()
            try:
                race(made)
            except AssertionError as error:
                print(f"  race: {error}", flush=True)
                lost += 1
    return number, lost


def main() -> int:
    why = traceable()
    if why:
        print(f"no system calls: {why}", file=sys.stderr)
        if os.environ.get("CI"):
            return 1
    share = 60 * MINUTES * WORKERS / len(KINDS)
    print(f"{'target':<26}{'kills at':<14}{'kills':>7}{'lost':>7}{'doubled':>9}")
    bad = 0
    with ProcessPoolExecutor(WORKERS) as pool:
        raced = pool.submit(races, RACES)
        for kind, events, calls, reached in pool.map(long, KINDS, [share] * len(KINDS)):
            for name, tally in (("events", events), ("system calls", calls)):
                print(f"{kind:<26}{name:<14}{tally.kills:>7}{tally.lost:>7}{tally.doubled:>9}", flush=True)
                for problem in tally.problems:
                    print(f"  {problem}")
                bad += len(tally.problems)
            print(f"  swept: {', '.join(reached)}", flush=True)
        number, lost = raced.result()
        print(f"{number} races of two runs, {lost} without exactly one delivery")
        bad += lost
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
