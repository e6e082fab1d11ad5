"""`make test-world`: play every scene on every target, and print what came of it.

`python -m tests.world PART…` plays the lines that contain every PART, and none of those given as -PART.
`python -m tests.world applications` delivers into the schemas of applications only, `python -m tests.world sources
PART…` plays what happens to sources. Ends with 1 if anything was
lost, doubled, refused without a reason or stuck, or if a scene could not be played.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.world import applications, hosts, sources
from tests.world.stage import Line, Part, parts, play_all
from tests.world.targets import fresh

WORKERS = 2


def main(words: Sequence[str]) -> int:
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    if list(words) == ["applications"]:
        return _applications()
    if words and words[0] == "sources":
        return _sources(words[1:])
    chosen = [part for part in parts() if all(_fits(word, part.line) for word in words)]
    began = time.monotonic()
    shares = [chosen[number::WORKERS] for number in range(WORKERS)]
    with ProcessPoolExecutor(WORKERS) as pool:
        lines = [line for found in pool.map(_share, shares) for line in found]
    print(table(lines, time.monotonic() - began))
    refused = 0 if words else _applications() + _sources()
    return refused or (0 if all(line.fine for line in lines) else 1)


def _applications() -> int:
    """Marts into schemas of applications; prints what was refused."""
    with _folder() as folder, hosts.Hosts(folder) as servers:
        server = servers.postgres(next(iter(hosts.POSTGRES))).address()
        outcomes = list(applications.everything(folder, lambda: fresh(server)))
    print(applications.table(outcomes))
    fine = sum(one.fine for one in outcomes)
    print(f"\n{len(outcomes)} tables: {fine} ok, {len(outcomes) - fine} not")
    return 0 if fine == len(outcomes) else 1


def _sources(words: Sequence[str] = ()) -> int:
    """Sources that change, vanish or are lost while they are read."""
    began = time.monotonic()
    with _folder() as folder:
        outcomes = []
        for one in sources.everything(folder, words):
            print(one, flush=True)
            outcomes.append(one)
    fine = sum(one.fine for one in outcomes)
    print(
        f"\n{len(outcomes)} lines in {time.monotonic() - began:.0f} s: {fine} ok, {len(outcomes) - fine} not"
    )
    return 0 if fine == len(outcomes) else 1


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="retl-world-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def _fits(word: str, line: str) -> bool:
    return word[1:] not in line if word.startswith("-") else word in line


def _share(chosen: list[Part]) -> list[Line]:
    with _folder() as folder:
        return play_all(chosen, folder)


def table(lines: Sequence[Line], seconds: float) -> str:
    """Every scene × target with its outcome, and their sum."""
    shown = sorted(lines, key=lambda line: line.order)
    widths = [max((len(column) for column in columns), default=0) for columns in _columns(shown)]
    texts = [f"{line.scene:{widths[0]}}  {line.target:{widths[1]}}  {line.outcome}" for line in shown]
    counts = Counter(line.verdict for line in shown)
    texts += [f"{name}: not run here" for name in sorted(hosts.absent())]
    texts.append(
        f"\n{len(shown)} lines in {seconds:.0f} s: {counts['ok']} ok, {counts['lost']} lost, "
        f"{counts['doubled']} doubled, {counts['false refusal']} false refusals, {counts['stuck']} stuck, "
        f"{counts['error']} not played"
    )
    return "\n".join(texts)


def _columns(lines: Sequence[Line]) -> list[list[str]]:
    return [[line.scene for line in lines], [line.target for line in lines]]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
