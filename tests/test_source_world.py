"""A table that is kept equal to files, while others act on it: the suite of the world once more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dropped import from_files
from tests.world.hosts import POSTGRES, Hosts
from tests.world.stage import Part, parts, play
from tests.world.targets import TABLES, Mirror

FIRST = next(iter(POSTGRES))
PARTS = [part for part in parts() if part.kind == "mirror" and part.server == FIRST and not part.ledger]


class OfFiles(Mirror):
    made = from_files("ndjson")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    folder: Path = tmp_path_factory.mktemp("world")
    for path in (folder, *folder.parents):  # PgBouncer runs as another user
        if path.name.startswith(("world", "popen-", "pytest-")):
            path.chmod(0o755)
    with Hosts(folder) as found:
        yield found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", PARTS, ids=[part.line for part in PARTS])
def test_nothing_is_lost_or_doubled_when_somebody_else_acts(
    part: Part, hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TABLES, "mirror", OfFiles)
    assert [line for line in play(part, hosts) if not line.fine] == []
