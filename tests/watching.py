"""`retl watch` for tests: inside this process, one turn at a time, and as a process of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from retl.app.choice import Choice
from retl.app.resolve import open_project
from retl.app.watch import Watch
from retl.observe.summary import Summary
from tests.commands import Workshop

PATIENCE = 60.0  # seconds until a test gives up; none waits that long


def until(holds: Callable[[], Any], what: str = "") -> Any:
    """Wait until it holds, and return what it is."""
    end = monotonic() + PATIENCE
    while not (found := holds()):
        assert monotonic() < end, f"it never came: {what or holds}"
        sleep(0.02)
    return found


class Watched:
    """A watch in this process. `done`: the summaries of its runs."""

    def __init__(self, shop: Workshop, *names: str, jobs: int = 4, listen: str | None = None) -> None:
        self.done: list[Summary] = []
        environment = shop.environ()
        self.watch = Watch(
            lambda: open_project(shop.folder, environ=environment),
            None,
            Choice(names),
            jobs=jobs,
            listen=listen,
            report=self.done.append,
        )

    def turn(self) -> None:
        """One cycle: look at the sources, start what is due, and let it end."""
        self.watch._looks.turn()
        self.watch.turn()
        until(lambda: not self.watch.running, "the end of the runs")

    def statuses(self) -> list[tuple[str, str]]:
        return [(one.sync, one.status) for one in self.done]


@contextmanager
def watched(shop: Workshop, *names: str, jobs: int = 4, listen: str | None = None) -> Iterator[Watched]:
    made = Watched(shop, *names, jobs=jobs, listen=listen)
    with made.watch:
        yield made


class Process:
    """`retl watch` (or serve) as a process; `said` is what it printed so far."""

    def __init__(self, shop: Workshop, *words: str, verb: str = "watch", **more: str) -> None:
        self._log = Path(f"{shop.folder}.watch-{monotonic()}.log")
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                shop.command(verb, *words),
                cwd=shop.folder,
                env=shop.environ(**more),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    def says(self, text: str, times: int = 1) -> None:
        until(lambda: self.said.count(text) >= times or self.process.poll() is not None, text)
        assert self.said.count(text) >= times, self.said

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def end(self, number: int) -> int:
        """Signal it and wait for its end; returns the exit code."""
        self.signal(number)
        return self.process.wait(PATIENCE)


@contextmanager
def process(shop: Workshop, *words: str, **more: str) -> Iterator[Process]:
    made = Process(shop, *words, **more)
    try:
        made.says('"watching"')
        yield made
    finally:
        made.process.kill()
        made.process.wait()
