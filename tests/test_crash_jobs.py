"""Kill a run around any request of a bulk job: the next one carries the job on, and no job gets a file twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.crashes import COLUMNS, SECOND, Scene, Tally, recover, until
from tests.presets.oauth import TOKEN
from tests.salesforce import Org

KILLED = -9
REQUESTS = {
    "create": ("POST", "/jobs/ingest"),
    "upload": ("PUT", "{job}/batches"),
    "complete": ("PATCH", "{job}"),
    "poll": ("GET", "{job}"),
    "successes": ("GET", "{job}/successfulResults"),
    "failures": ("GET", "{job}/failedResults"),
    "unprocessed": ("GET", "{job}/unprocessedrecords"),
}


class DeadlyOrg(Org):
    """Kills its client, `victim`, at a request that ends like `trap` while there are `trapped_jobs`: before or
    after it is done."""

    trap: tuple[str, str] | None = None
    after = False
    trapped_jobs = 0
    victim = 0

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        hit = self.trap is not None and method == self.trap[0] and path.endswith(self.trap[1])
        if not hit or len(self.jobs) != self.trapped_jobs:
            return super().serve(method, path, headers, body)
        self.trap = None
        answer = super().serve(method, path, headers, body) if self.after else (500, None)
        until(lambda: self.victim != 0)
        os.kill(self.victim, signal.SIGKILL)
        return answer


class BulkScene(Scene):
    sync = """
destination: {connection: org, object: Contact, match: user_id, every: 10ms}
first_run: send
"""
    connections = '  org: {type: salesforce_bulk, client_id: me, client_secret: "${ORG_SECRET}", domain: x, base_url: "${ORG_URL}"}\n'
    org: DeadlyOrg | None = None
    job = 1  # of a run, whose requests are the last ones

    def environ(self) -> dict[str, str]:
        assert self.org
        return {"ORG_URL": self.org.url, "ORG_SECRET": TOKEN}

    def empty(self) -> None:
        self.close()
        self.org = DeadlyOrg("user_id", set(COLUMNS))
        self.org.__enter__()

    def close(self) -> None:
        if self.org:
            self.org.__exit__()

    def content(self) -> list[tuple[str | None, ...]]:
        assert self.org
        rows = []
        for held in self.org.records.values():
            money = held["lifetime_value"]
            rows.append((*(held[name] for name in COLUMNS[:3]), money and f"{Decimal(money):.2f}"))
        return sorted(rows, key=str)

    def doubled(self) -> list[str]:
        """Jobs that got two files, and rows that were applied twice."""
        assert self.org
        counts = {**self.org.uploads, **{str(row): n for row, n in self.org.applied.items()}}
        return [what for what, n in counts.items() if n > 1]


class InsertScene(BulkScene):
    sync = BulkScene.sync + "write: append\n"


class DeleteScene(BulkScene):
    sync = BulkScene.sync + 'deletes: delete\nfields: {"*": "*"}\n'
    before = (SECOND,)
    job = 2  # of three; the others are upserts

    def begin(self) -> None:
        super().begin()
        assert self.org
        self.org.applied.clear()


@pytest.fixture
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BulkScene]:
    scene: BulkScene = request.param(tmp_path / "project")
    try:
        scene.begin()
        yield scene
    finally:
        scene.close()


def kill(made: BulkScene, request: str, *, after: bool, job: int) -> None:
    """A run that dies at this request about its `job`-th job (the first is 0)."""
    org = made.org
    assert org
    number = len(org.jobs) + job
    method, path = REQUESTS[request]
    org.trap, org.after, org.victim = (method, path.format(job=org.named(number))), after, 0
    org.trapped_jobs = number + (request != "create")
    running = made.project.start()
    org.victim = running.pid
    assert running.end().code == KILLED, f"{request} was not reached"


@pytest.mark.parametrize("made", [BulkScene, InsertScene, DeleteScene], indirect=True)
def test_a_job_survives_a_kill_at_any_of_its_requests(made: BulkScene) -> None:
    assert made.org
    tally = Tally()
    for request in REQUESTS:
        for after in (False, True):
            made.begin()
            kill(made, request, after=after, job=made.job)
            recover(made, f"{'after' if after else 'before'} {request}", tally, again=after)
    assert tally.problems == []
    assert tally.kills == 2 * len(REQUESTS)
    assert isinstance(made, DeleteScene) == any(
        job.about["operation"] == "delete" for job in made.org.jobs.values()
    )


@pytest.mark.parametrize("made", [BulkScene], indirect=True)
def test_the_next_run_asks_after_the_job_and_makes_no_other_for_its_rows(made: BulkScene) -> None:
    assert made.org
    kill(made, "poll", after=False, job=0)
    (first,) = made.org.jobs
    done = made.project.sync()
    assert (done.code, done.summary["status"]) == (0, "SUCCESS")
    assert done.summary["unchanged"] == 5, "the rows of the job were sent again"
    assert made.org.jobs[first].about["state"] == "JobComplete"
    assert len(made.org.jobs) == 8


@pytest.mark.parametrize("made", [BulkScene], indirect=True)
def test_a_job_whose_file_never_came_is_aborted_so_that_nobody_can_release_it(made: BulkScene) -> None:
    assert made.org
    kill(made, "complete", after=False, job=0)
    (first,) = made.org.jobs
    assert made.project.sync().code == 0
    assert made.org.jobs[first].about["state"] == "Aborted"
    assert len(made.org.jobs) == 9


@pytest.mark.parametrize("made", [BulkScene], indirect=True)
def test_the_ledger_knows_a_job_before_its_file_is_sent(made: BulkScene) -> None:
    import sqlite3

    kill(made, "upload", after=False, job=0)
    assert made.org
    (job,) = made.org.jobs
    with sqlite3.connect(made.folder / ".retl" / "ledger.db") as ledger:
        assert ("open", job) in ledger.execute("SELECT status, handle FROM retl_batches").fetchall()
    assert made.org.uploads == {}


@pytest.mark.parametrize("made", [InsertScene], indirect=True)
def test_a_job_that_failed_half_way_is_taken_up_where_it_stopped(made: BulkScene) -> None:
    assert made.org
    made.org.dies_after = 2
    done = made.project.sync()
    assert done.summary["status"] == "FAILED"
    assert (done.summary["inserted"], done.summary["not_attempted"]) == (37, 3)
    assert made.project.sync().code == 0
    assert made.content() == made.project.rows()
    assert made.doubled() == []
