"""Processes timed from start to exit, and what their times say side by side."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import ParamSpec

P = ParamSpec("P")


@dataclass(frozen=True)
class Measured:
    """One process: wall-clock seconds, those of a processor, peak resident megabytes, what it printed."""

    seconds: float
    processor: float
    megabytes: float
    output: str


def apart(work: Callable[P, object], *given: P.args, **named: P.kwargs) -> None:
    """Do it in another process: the kernel counts what this one ever held as its children's peak, too."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        other.submit(work, *given, **named).result()


def timed(
    command: Sequence[str | Path],
    *,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    given: str = "",
) -> Measured:
    """Run a command to its end; RuntimeError with what it said where it fails."""
    out, err = folder / "out.txt", folder / "err.txt"
    (folder / "in.txt").write_text(given)
    with (folder / "in.txt").open() as stdin, out.open("w") as stdout, err.open("w") as stderr:
        started = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603 - the commands are this benchmark's own
            command, stdin=stdin, stdout=stdout, stderr=stderr, cwd=folder, env=dict(environment or {})
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        said = err.read_text()[-2000:] + out.read_text()[-2000:]
        raise RuntimeError(f"{command[0]} ended with {process.returncode}: {said}")
    return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, out.read_text())


@dataclass
class Series:
    """One case: its times and those of its floor, a pair per round, and what it should reach."""

    name: str
    bound: float
    goal: float
    unit: str = "×"  # or s: the difference in seconds; or MB
    ours: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)

    def add(self, ours: Measured, floor: float) -> None:
        self.ours.append(ours.seconds)
        self.floor.append(floor)
        self.megabytes.append(ours.megabytes)

    @property
    def ratios(self) -> list[float]:
        """Per round, lowest first."""
        pairs = zip(self.ours, self.floor, strict=True)
        return sorted(ours - floor if self.unit == "s" else ours / floor for ours, floor in pairs)

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    @property
    def verdict(self) -> str:
        if self.ratio <= self.goal:
            return "goal"
        return "ok" if self.ratio <= self.bound else "MISSED"

    def line(self) -> str:
        low, high = self.ratios[0], self.ratios[-1]
        return (
            f"{self.name}: {self.ratio:.2f} {self.unit} (min {low:.2f}, max {high:.2f}); retl"
            f" {median(self.ours):.2f} s, floor {median(self.floor):.2f} s; {self.verdict}"
        )
