"""Jobs in steps: opened empty, given their rows, started once, and asked after also by the next run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from pydantic import ValidationError

from retl.delivery.lanes import Delivery
from retl.destinations.batch import UNKNOWN, WRITTEN, Field, Kind, Outcome, Pending, Shape
from retl.destinations.http import jobs
from retl.destinations.http.adapter import HttpDestination
from retl.destinations.http.jobs import Job
from retl.destinations.http.options import HttpOptions
from retl.errors import Later, Systemic, Unavailable
from retl.model import Limits, Retry
from retl.observe.signals import Stop
from retl.pace.limiter import Pace
from retl.testing import FakeApi
from retl.values.types import Type
from tests.api import Fault, answer, instead, passed, reset
from tests.commands import ROWS as SOURCE_ROWS
from tests.commands import Workshop
from tests.delivered import Memory, deliver
from tests.destinations.rows import Rows

SHAPE = Shape("s", "state", (Field("id", Type("string")),), (Field("n", Type("integer")),), deletes="delete")
ROWS = [("a", 1), ("b", 2), ("c", 3)]
DONE = {"at": "state", "in": ["done"]}
STEPS = {
    "path": "/jobs/$job/rows", "wrap": "", "max_rows": 10,
    "job": {
        "open": {"path": "/jobs", "row": {"name": "retl", "cost": "$$1"}, "id": "id"},
        "start": {"path": "/runs", "row": {"of": "/jobs/{$job}"}, "id": {"at": "uri", "pattern": "([0-9]+)$"}},
        "path": "/runs/$job", "every": "1ms", "done": DONE,
        "outcome": {"rows": "errors_by_index", "at": "job.bad", "code": "code"},
    },
}  # fmt: skip
DELETE = {
    "path": "/gone", "wrap": "ids", "row": "$key", "max_rows": 10,
    "job": {
        "id": "job", "path": "/runs/$job", "every": "1ms", "done": DONE,
        "outcome": {
            "rows": "listed", "at": "job.rows", "match": {"at": "id"}, "row_ok": {"at": "ok", "in": [True]},
            "row_absent": {"at": "ok", "in": ["none"]},
        },
    },
}  # fmt: skip


class Bulk(FakeApi):
    """Rows wait in a job until it is started; a run is done at the second request for its state."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.jobs: list[list[dict[str, Any]]] = []
        self.runs: list[dict[str, Any]] = []

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        content = json.loads(body) if body else None
        match (method, path.split("/")[1:]):
            case ("POST", ["jobs"]):
                assert content == {"name": "retl", "cost": "$1"}
                self.jobs.append([])
                return 201, {"id": len(self.jobs) - 1}
            case ("POST", ["jobs", job, "rows"]):
                self.jobs[int(job)] += content
                return 204, None
            case ("POST", ["runs"]):
                rows = self.jobs[int(content["of"].removeprefix("/jobs/"))]
                bad = [n for n, row in enumerate(rows) if row["id"] in self.refuse]
                self.runs.append({"bad": [{"index": n, "code": "INVALID"} for n in bad], "asked": 0})
                for n, row in enumerate(rows):
                    if n not in bad:
                        self.merge(row["id"], {"n": row["n"]})
                return 201, {"uri": f"/runs/{len(self.runs) - 1}"}
            case ("POST", ["gone"]):
                ended = [(one, self.objects.pop(one, None) is not None) for one in content["ids"]]
                rows = [{"id": one, "ok": known or "none"} for one, known in ended if one not in self.refuse]
                rows += [{"id": one, "ok": False} for one, _ in ended if one in self.refuse]
                self.runs.append({"rows": rows, "asked": 0})
                return 202, {"job": len(self.runs) - 1}
        run = self.runs[int(path.rpartition("/")[2])]
        run["asked"] += 1
        return 200, {**run, "state": "done" if run["asked"] > 1 else "runs"}


@pytest.fixture
def api() -> Iterator[Bulk]:
    with Bulk(refuse=["bad"]) as api:
        yield api


def lane(api: Bulk, **changed: Any) -> HttpDestination:
    upsert = {**STEPS, "job": {**STEPS["job"], **changed}}  # type: ignore[dict-item]
    options = HttpOptions(connection={"base_url": api.url}, upsert=upsert, delete=DELETE)
    return HttpDestination(options, SHAPE)


def test_a_job_in_steps_tells_of_each_row(api: Bulk) -> None:
    results = deliver(lane(api), [*ROWS, ("bad", 4)])
    assert [one.kind for one in results] == [*[Kind.WRITTEN] * 3, Kind.REJECTED]
    assert results[3].code == "INVALID"
    assert api.objects == {key: {"n": n} for key, n in ROWS}
    assert [path for method, path, _, _ in api.seen if method == "POST"] == ["/jobs", "/jobs/0/rows", "/runs"]


@pytest.mark.parametrize(
    ("faults", "jobs", "runs"),
    [
        ([reset(applied=True)], 2, 1),  # opened: an empty job is left behind
        ([answer(500)], 1, 1),
        ([passed, reset(applied=True)], 2, 1),  # its rows are there, perhaps: it is never started
        ([passed, instead(500)], 2, 1),
        ([passed, answer(429), answer(503)], 1, 1),  # they are not: they are sent again
        ([passed, passed, reset(applied=True)], 2, 2),  # started, perhaps: the same rows in another job
        ([passed, passed, answer(429)], 1, 1),
        ([passed, passed, passed, answer(500), reset(applied=False)], 1, 1),  # asked after again
    ],
)
def test_no_step_is_done_twice_in_one_job(api: Bulk, faults: list[Fault], jobs: int, runs: int) -> None:
    api.faults += faults
    assert {one.kind for one in deliver(lane(api), ROWS)} == {Kind.WRITTEN}
    assert api.objects == {key: {"n": n} for key, n in ROWS}
    assert (len(api.jobs), len(api.runs)) == (jobs, runs)
    assert all(len(rows) in (0, len(ROWS)) for rows in api.jobs)


def test_the_next_run_asks_after_a_started_job_and_forgets_an_opened_one(api: Bulk) -> None:
    batch, first = Rows(SHAPE, ROWS).batch(), lane(api)
    handles = []
    answered = first.write(batch)
    while isinstance(answered, Pending) and not answered.handle.startswith("started"):
        handles.append(answered.handle)
        answered = first.resolve(batch, answered.handle)
    assert isinstance(answered, Pending)
    first.close()
    second, sent = lane(api), len(api.seen)
    outcome = second.resolve(batch, handles[0])
    assert isinstance(outcome, Outcome)
    assert outcome.default.kind is Kind.RETRY  # nothing was applied
    assert second.resolve(batch, handles[1]) == Outcome(UNKNOWN)  # it may have been started
    assert len(api.seen) == sent
    found = second.resolve(batch, answered.handle)
    while isinstance(found, Pending):
        found = second.resolve(batch, found.handle)
    assert found == Outcome(WRITTEN)
    assert [method for method, _, _, _ in api.seen].count("POST") == 3
    second.close()


def test_a_refused_step_concerns_no_row(api: Bulk) -> None:
    api.faults.append(answer(400, b'{"message": "no such field"}'))
    with pytest.raises(Systemic) as caught:
        deliver(lane(api), ROWS)
    assert "no such field" in caught.value.message


def test_after_its_patience_the_run_ends_and_the_job_stays(api: Bulk) -> None:
    api.faults += [passed, passed, passed]
    with pytest.raises(Later) as caught:
        deliver(lane(api, patience="0s"), ROWS)
    assert caught.value.code == "JOB_RUNS"
    assert len(api.runs) == 1


def test_deletes_are_jobs_too(api: Bulk) -> None:
    api.objects = {"a": {}, "b": {}, "bad": {}}
    results = deliver(lane(api), [("a",), ("unknown",), ("bad",)], "delete")
    assert [one.kind for one in results] == [Kind.WRITTEN, Kind.WRITTEN, Kind.REJECTED]


class Files(FakeApi):
    """A job is done at once, and names a file of what it refused."""

    file: Any = b""
    count: int | None = None

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if method == "POST":
            self.rows = json.loads(body)
            return 202, {"job": 7}
        if path == "/v1/files/err%20ors?of=7":
            return 200, self.file
        assert path == "/v1/runs/7"
        url = "https://elsewhere.example/v1/files/err ors?of=7" if self.file else None
        return 200, {"state": "done", "bad": {"file": url, "count": self.count}}


def of_files(file: Any, count: int | None = None, **changed: Any) -> tuple[list[Kind], list[str], list[Any]]:
    """What a file of errors says of three rows, with the reasons and the requests that were made."""
    outcome = {"rows": "errors_by_value", "at": "errors", "match": {"at": "Id"}, "reason": "why"}
    job = {
        "id": "job", "path": "/runs/$job", "every": "1ms", "done": DONE, "errors_url": "bad.file",
        "errors_format": "csv", "outcome": outcome, **changed,
    }  # fmt: skip
    with Files() as api:
        api.file, api.count = file, count
        upsert = {"path": "/rows", "wrap": "", "job": job}
        options = HttpOptions(connection={"base_url": f"{api.url}/v1"}, upsert=upsert)
        results = deliver(HttpDestination(options, replace(SHAPE, deletes="keep")), ROWS)
        seen = [path for _, path, _, _ in api.seen]
        return [row.kind for row in results], [row.reason or "" for row in results], seen


def test_errors_in_a_file_name_rows_by_key_or_by_line() -> None:
    bad = [Kind.WRITTEN, Kind.REJECTED, Kind.WRITTEN]
    kinds, reasons, seen = of_files(b'\xef\xbb\xbfId,n,why\r\n"b",2,"no, ""never"""\r\n')
    assert (kinds, reasons[1]) == (bad, 'no, "never"')
    assert seen == ["/v1/rows", "/v1/runs/7", "/v1/files/err%20ors?of=7"]
    by_line = {"rows": "errors_by_index", "at": "errors", "index": "line", "first": 2, "reason": "why"}
    assert of_files(b"line,why\n3,no\n", outcome=by_line)[:2] == (bad, ["", "no", ""])
    assert of_files([{"Id": "b", "why": "no"}], errors_format="json")[:2] == (bad, ["", "no", ""])
    assert of_files(b"") == ([Kind.WRITTEN] * 3, [""] * 3, ["/v1/rows", "/v1/runs/7"])


def test_a_file_is_asked_for_only_if_rows_were_counted_in_it() -> None:
    counted = {"rows": "errors_by_value", "at": "errors", "match": {"at": "Id"}, "failed": "job.bad.count"}
    assert len(of_files(b"Id\nb\n", 0, outcome=counted)[2]) == 2
    kinds, _, seen = of_files(b"Id\nb\n", 1, outcome=counted)
    assert (kinds[1], len(seen)) == (Kind.REJECTED, 3)


def test_a_file_that_names_no_row_of_ours_leaves_no_row_written() -> None:
    assert of_files(b"Id\nstranger\n")[0] == [Kind.REJECTED] * 3  # each alone, after halves
    with pytest.raises(Unavailable):
        of_files({"error": "gone"}, errors_format="json")


class Pages(FakeApi):
    """A job is done at once. Its errors are in pages, by the text behind `?`."""

    def __init__(self, pages: dict[str, Any]) -> None:
        super().__init__()
        self.pages = pages

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if method == "POST":
            return 202, {"job": 7}
        if path.startswith("/runs/7/errors"):
            return 200, self.pages[path.partition("?")[2]]
        return 200, {"state": "done"}


def of_pages(**pages: Any) -> list[Kind]:
    job = {
        "id": "job", "path": "/runs/$job", "every": "1ms", "done": DONE, "errors_path": "/runs/$job/errors",
        "errors_at": "items", "errors_none": {"at": "count", "in": [0]}, "next": "next",
        "outcome": {"rows": "errors_by_value", "at": "errors", "match": {"at": "id"}},
    }  # fmt: skip
    with Pages({"": pages.pop("first"), **pages}) as api:
        upsert = {"path": "/rows", "wrap": "", "job": job}
        options = HttpOptions(connection={"base_url": api.url}, upsert=upsert)
        return [row.kind for row in deliver(HttpDestination(options, replace(SHAPE, deletes="keep")), ROWS)]


def test_errors_are_read_to_their_end_or_no_row_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def page(key: str, after: str | None = None) -> dict[str, Any]:
        return {"items": [{"id": key}], "next": after and f"/runs/7/errors?{after}"}

    good, bad = Kind.WRITTEN, Kind.REJECTED
    assert of_pages(first=page("a", "two"), two=page("c")) == [bad, good, bad]
    assert of_pages(first={"count": 0}) == [good] * 3
    for broken in (b"", {"error": "come again"}, {"items": None}, {"items": {}}, [{"id": "a"}]):
        for pages in ({"first": broken}, {"first": page("a", "two"), "two": broken}):
            with pytest.raises(Unavailable):
                of_pages(**pages)
    monkeypatch.setattr(jobs, "_PAGES", 2)
    with pytest.raises(Unavailable):
        of_pages(first=page("a", "two"), two=page("b", "three"), three=page("c"))


@pytest.mark.parametrize("file", [b'Id,why\n"b', b"Id,why\nb\n", {"Id": "b"}, b"\xff\xfe"])
def test_a_file_that_is_no_table_is_not_believed(file: Any) -> None:
    with pytest.raises(Unavailable):
        of_files(file)


@pytest.mark.parametrize(
    "wrong",
    [
        {"errors_path": "/e", "errors_url": "url"},
        {"errors_format": "csv"},
        {"errors_at": "x"},
        {"next": "x"},
        {"errors_url": "url", "errors_format": "csv", "errors_at": "x"},
        {"errors_path": "/e", "errors_format": "csv", "next": "x"},
    ],
)
def test_errors_that_cannot_be_found_are_a_definition_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="errors"):
        Job(id="id", path="/j/$job", done=DONE, outcome={}, **wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"open": {"path": "/j", "row": {"x": "$name"}, "id": "id"}},
        {"open": {"path": "/j", "row": {"x": "a {$key}"}, "id": "id"}},
        {"open": {"path": "/j/$key", "id": "id"}},
        {"open": {"path": "/j"}},
        {},
    ],
)
def test_a_step_that_cannot_work_is_a_definition_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Job(path="/j/$job", done=DONE, outcome={}, **wrong)


def test_rows_name_the_job_that_was_opened() -> None:
    http = {"base_url": "https://a.example"}
    with pytest.raises(ValueError, match=r"\$job in the path"):
        HttpOptions(connection=http, upsert={**STEPS, "path": "/rows"})
    options = HttpOptions(connection=http, upsert=STEPS, delete=DELETE)
    shown = HttpDestination(options, SHAPE).preview(Rows(SHAPE, ROWS).batch())
    assert shown.startswith(b"POST /jobs/{job}/rows\r\n")


def test_rows_that_were_sent_again_as_a_job_which_still_runs_are_in_doubt(api: Bulk) -> None:
    told = {"state": "done", "rows": [{"id": "a", "ok": "busy"}, {"id": "b", "ok": True}]}
    api.faults += [passed, answer(200, json.dumps(told).encode())]
    outcome = {**DELETE["job"]["outcome"], "row_retry": {"at": "ok", "in": ["busy"]}}  # type: ignore[index]
    delete = {**DELETE, "job": {**DELETE["job"], "patience": "0s", "outcome": outcome}}  # type: ignore[dict-item]
    options = HttpOptions(connection={"base_url": api.url}, upsert=STEPS, delete=delete)
    destination = HttpDestination(options, SHAPE)
    able = replace(destination.capabilities, lanes=1)
    delivery = Delivery(lambda: destination, able, Memory(), Pace(Limits()), Retry(attempts=2), Stop())
    with pytest.raises(Later):
        delivery.drain([Rows(SHAPE, [("a",), ("b",)]).batch("delete")])
    delivery.close()
    (one,) = delivery.answered
    assert one.outcome is not None
    assert [one.outcome.result(n).kind for n in (0, 1)] == [Kind.UNKNOWN, Kind.WRITTEN]


def test_a_run_carries_on_with_the_job_of_the_one_before(tmp_path: Path, api: Bulk) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.write("retl.yml", f'connections: {{tool: {{type: http, base_url: "{api.url}"}}}}\n')

    def run(code: int, **job: Any) -> dict[str, Any]:
        upsert = {**STEPS, "row": {"id": "$key", "n": "$spend"}, "max_rows": 100}
        upsert["job"] = {**STEPS["job"], **job}  # type: ignore[dict-item]
        workshop.sync("users", destination=json.dumps({"connection": "tool", "upsert": upsert}))
        said = workshop.retl("sync", "--output", "json")
        assert said.code == code, said.out + said.err
        return dict(said.document["syncs"][0])

    assert run(75, patience="0s")["error"]["code"] == "JOB_RUNS"
    assert run(0)["unchanged"] == SOURCE_ROWS == len(api.objects)  # the first run's job told of them
    assert (len(api.jobs), len(api.runs)) == (1, 1)
    workshop.warehouse("UPDATE users SET spend = 500")
    api.faults += [passed, answer(403)]  # a job is opened, and gets no rows
    run(1)
    assert run(0)["updated"] == SOURCE_ROWS
    assert (len(api.jobs), len(api.runs)) == (3, 2)
    assert {one["n"] for one in api.objects.values()} == {500}
