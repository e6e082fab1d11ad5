"""What costs little of the suite of the world; `make test-world` plays everything and prints the table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import Database
from tests.world import applications
from tests.world.hosts import Hosts
from tests.world.play import remedies
from tests.world.scenes import SCENES
from tests.world.stage import Part, parts, play, servers_of
from tests.world.targets import difference

SHORT = [
    part
    for part in parts()
    if part.kind in part.scene.short and part.server == servers_of(part.kind)[0] and not part.ledger
]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    folder = tmp_path_factory.mktemp("world")
    for path in (folder, *folder.parents):
        if path.name.startswith("pytest-"):
            path.chmod(0o755)
    with Hosts(folder) as found:
        yield found


@pytest.mark.parametrize("part", SHORT, ids=[part.line for part in SHORT])
def test_nothing_is_lost_or_doubled_when_somebody_else_acts(part: Part, hosts: Hosts) -> None:
    assert [line for line in play(part, hosts) if not line.fine] == []


def test_every_kind_of_delivery_has_a_short_scene_and_every_scene_a_line() -> None:
    assert {part.kind for part in SHORT} >= {"upsert", "mirror", "append", "update_only", "snapshot"} | {
        "partitioned append",
        "json",
        "ttl",
        "stream",
        "mongodb append",
        "kafka",
    }
    assert {one.name for one in SCENES if not one.needs} <= {part.scene.name for part in parts()}
    assert len({one.name for one in SCENES}) == len(SCENES)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        ("it was emptied: `--full` sends every row again", [["--full"]]),
        (
            "`retl state rebuild users` reads the target; or --accept STATE_BEHIND",
            [["state", "rebuild", "users", "--yes"], ["--accept", "STATE_BEHIND"]],
        ),
        ("run the same command again: it continues", [[]]),
        ("look into the target", []),
    ],
)
def test_a_hint_is_carried_out_to_the_letter(hint: str, words: list[list[str]]) -> None:
    assert remedies(hint) == words


def test_the_oracle_tells_lost_stale_extra_and_doubled_rows_apart() -> None:
    found = difference([("a", "1"), ("b", "1"), ("c", "1")], [("b", "2"), ("c", "1"), ("c", "1"), ("d", "1")])
    assert str(found) == "LOST 1, STALE 1, EXTRA 1, DOUBLED 1"
    assert not difference([("a", None)], [("a", None)])


@pytest.mark.parametrize("schema", applications.NAMES)
def test_every_mart_of_an_application_fits_its_table_on_both_days(
    schema: str, tmp_path: Path, postgres: Database
) -> None:
    made = applications.Application(schema, tmp_path / schema, postgres)
    assert len(made.marts) > 8
    for day in (1, 2):
        made.fill(day)
        for mart in made.marts:  # PostgreSQL reads every value; the table holds none of them yet
            assert made.difference(mart).startswith("LOST") or mart.says == "write: update_only"
