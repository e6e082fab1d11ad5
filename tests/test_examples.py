"""The example under the help of each command, run as it stands in the sample project, on real servers."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from retl.cli.grouping import EXAMPLES
from tests import sample, servers
from tests.sample import Sample

STAYING = {"demo", "serve", "watch"}  # they run until they are ended; other tests run them
NEEDS = {  # what the sample project does not have: the answer says so
    "conflicts take": (2, "CONFLICT_UNKNOWN"),
    "conflicts dismiss": (2, "CONFLICT_UNKNOWN"),
    "state mv": (2, "STATE_UNKNOWN"),
    "status": (1, ""),  # a sync with `freshness` that never ran is stale
    "dbt": (1, "DBT_MISSING"),
    "dbt exposures": (1, "DBT_MISSING"),
}
FIRST = ("validate", "check", "test", "plan", "apply", "sync", "rollback", "explain", "rejects", "retry")
LAST = ("state show", "state reset", "state adopt", "erase", "erase start", "erase verify", "presets new", "presets test", "state copy", "state unfence")  # fmt: skip


@pytest.fixture
def project(
    tmp_path: Path,
    postgres: servers.Database,
    redis_server: servers.RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Sample]:
    (tmp_path / "tmp").mkdir()
    with sample.opened(tmp_path / "project", postgres, redis_server, tmp_path / "tmp") as opened:
        monkeypatch.chdir(opened.folder)
        yield opened


def test_every_example_works_when_it_is_copied_into_the_sample_project(project: Sample) -> None:
    path = project.folder / "syncs" / "user_segments.yml"
    path.write_text(path.read_text() + "rollback: {keep: 30d}\n")
    project.mart("UPDATE mart_user_segments SET segment = 'bogus' WHERE user_id = 'u000008'")
    between = [name for name in EXAMPLES if name not in (*FIRST, *LAST) and name not in STAYING]
    wrong = []
    for name in (*FIRST, *between, *LAST):
        if name == "rollback":
            project.mart("UPDATE mart_user_segments SET total_searches = 900 WHERE user_id = 'u000007'")
            assert project.sync("user_segments").code == 0
        words = shlex.split(EXAMPLES[name].split(" > ")[0])[1:]
        said = project.retl(*words)
        code, reason = NEEDS.get(name, (0, ""))
        if said.code != code or reason not in said.err:
            wrong.append(f"{EXAMPLES[name]}: {said.code}: {said.out}{said.err}")
    assert wrong == []
