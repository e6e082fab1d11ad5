"""Kill a run around any of its requests: a bulk job is carried on, no job gets a file twice, no row is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.crash_sweep import FailureRate, recover
from tests.crashes import COLUMNS, SECOND, Scene, until
from tests.dataverse import Environment
from tests.presets.oauth import TOKEN, TokenServer
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


class Deadly(TokenServer):
    """Kills its client, `victim`, at the request that `trap` knows: before or after it is done."""

    trap: Callable[[str, str], bool] | None = None
    after = False
    victim = 0

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if self.trap is None or not self.trap(method, path):
            return super().serve(method, path, headers, body)
        self.trap = None
        answer = super().serve(method, path, headers, body) if self.after else (500, None)
        until(lambda: self.victim != 0)
        os.kill(self.victim, signal.SIGKILL)
        return answer


class DeadlyOrg(Deadly, Org):
    pass


class DeadlyEnvironment(Deadly, Environment):
    pass


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


class DataverseScene(Scene):
    sync = """
destination: {connection: environment, table: accounts}
deletes: delete
"""
    connections = """\
  environment: {type: dataverse, org: x, tenant: contoso, client_id: me, client_secret: "${ORG_SECRET}", login: "${ORG_URL}", base_url: "${ORG_URL}"}
"""
    before = (SECOND,)
    server: DeadlyEnvironment | None = None

    def environ(self) -> dict[str, str]:
        assert self.server
        return {"ORG_URL": self.server.url, "ORG_SECRET": TOKEN}

    def empty(self) -> None:
        self.close()
        self.server = DeadlyEnvironment("user_id", set(COLUMNS[1:]))
        self.server.__enter__()

    def close(self) -> None:
        if self.server:
            self.server.__exit__()

    def content(self) -> list[tuple[str | None, ...]]:
        assert self.server
        rows = []
        for key, row in self.server.rows.items():
            money = row["lifetime_value"]
            texts = (row["segment"], str(row["searches"]), None if money is None else f"{money:.2f}")
            rows.append((key, *texts))
        return sorted(rows, key=str)


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
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    scene: BulkScene | DataverseScene = request.param(tmp_path / "project")
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
    jobs, ending = number + (request != "create"), path.format(job=org.named(number))
    die(made, org, lambda m, p: m == method and p.endswith(ending) and len(org.jobs) == jobs, after=after)


JOBS = [BulkScene, InsertScene, DeleteScene]


def die(made: Scene, server: Deadly, trap: Callable[[str, str], bool], *, after: bool) -> None:
    server.trap, server.after, server.victim = trap, after, 0
    running = made.project.start()
    server.victim = running.pid
    assert running.end().code == KILLED, "the request was not reached"


@pytest.mark.parametrize("made", JOBS, indirect=True)
def test_a_job_survives_a_kill_at_any_of_its_requests(made: BulkScene) -> None:
    assert made.org
    failure_rate = FailureRate()
    kills = [(request, after) for request in REQUESTS for after in (False, True)]
    if "RETL_TEST_ALL" not in os.environ:  # each kind of job takes its share of them
        kills = kills[JOBS.index(type(made)) :: len(JOBS)]
    for request, after in kills:
        made.begin()
        kill(made, request, after=after, job=made.job)
        recover(made, f"{'after' if after else 'before'} {request}", failure_rate, again=after)
    assert failure_rate.problems == []
    assert failure_rate.kills == len(kills)
    assert isinstance(made, DeleteScene) == any(
        job.about["operation"] == "delete" for job in made.org.jobs.values()
    )


@pytest.mark.parametrize("made", [DataverseScene], indirect=True)
def test_rows_in_one_batch_survive_a_kill_around_it(made: DataverseScene) -> None:
    failure_rate = FailureRate()
    for number in range(1, 4):  # six upserts in two batches, then the deletes
        for after in (False, True):
            made.begin()
            assert made.server
            seen: list[str] = []

            def trap(method: str, path: str, seen: list[str] = seen, number: int = number) -> bool:
                seen += [path] if path.endswith("$batch") else []
                return len(seen) == number

            die(made, made.server, trap, after=after)
            recover(made, f"{'after' if after else 'before'} batch {number}", failure_rate, again=after)
    assert failure_rate.problems == []


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


@pytest.mark.parametrize("made", [BulkScene, InsertScene], indirect=True)
def test_locked_rows_are_sent_again_now_where_twice_is_once_and_else_by_the_next_run(made: BulkScene) -> None:
    assert made.org
    made.org.locked |= {"user 003", "user 004", "user 020"}
    done = made.project.sync()
    upsert = not isinstance(made, InsertScene)
    assert (done.code, done.summary["not_attempted"]) == ((0, 0) if upsert else (1, 3)), done.stdout
    assert made.project.sync().code == 0
    assert made.content() == made.project.rows()
    assert made.doubled() == []
