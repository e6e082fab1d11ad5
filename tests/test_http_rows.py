"""Each row over HTTP is written, skipped, refused or deleted by its own key, also where answers name no row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from msgspec.structs import replace

from retl.delivery import lanes
from retl.destinations.batch import WRITTEN, Field, Kind, Outcome, Shape, SoftDelete, WriteMode
from retl.destinations.http.adapter import HttpDestination
from retl.destinations.http.options import HttpOptions
from retl.errors import DefinitionError, Systemic, Unavailable
from retl.net.gate import Gate
from retl.net.waits import Quota
from retl.values.types import Type
from tests.api import Api, answer, reset
from tests.commands import ROWS, Workshop
from tests.destinations.rows import Rows


class Counting(Api):
    """Counts the rows that it refuses and names none.

    POST   /o            {"rows": [{"id", …}]}  merges all but those with `spend` below zero
    POST   /new          {"id", …}              a new object each time
    DELETE /o?ids=1,2                           deletes all with these ids
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: list[dict[str, Any]] = []

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        content = json.loads(body) if body else {}
        if method == "DELETE":
            for one in parse_qs(urlsplit(path).query)["ids"][0].split(","):
                self.users.pop(one, None)
            return 200, {}
        if path == "/new":
            self.made.append(content)
            return 201, {"id": len(self.made)}
        good = [row for row in content["rows"] if row["spend"] >= 0]
        for row in good:
            self.merge(str(row["id"]), row)
        return 200, {"failed": len(content["rows"]) - len(good), "message": "some were no good"}


UPSERT = "{path: /o, wrap: rows, max_rows: 100, row: {$merge: [{id: $key}, $fields]}}"
DELETE = '{method: DELETE, path: "/o?ids=$keys", max_rows: 100, outcome: {}}'
COUNTED = f"{{connection: tool, upsert: {UPSERT}, delete: {DELETE}, outcome: {{rows: counts_only, failed: failed}}}}"
INSERT = "{connection: tool, insert: {path: /new, row: $row}}"


TEXT = Type("string")
PAIRS = Shape("sync", "state", (Field("a", TEXT), Field("b", TEXT)), (Field("v", TEXT),))


@pytest.fixture
def api() -> Iterator[Counting]:
    with Counting() as running:
        yield running


@pytest.fixture
def workshop(tmp_path: Path, api: Counting) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.write("retl.yml", f'connections: {{tool: {{type: http, base_url: "{api.url}"}}}}\n')
    return made


def run(workshop: Workshop, *words: str, code: int = 0) -> dict[str, Any]:
    said = workshop.retl("sync", *words, "--output", "json")
    assert said.code == code, said.out + said.err
    (found,) = said.document["syncs"]
    return dict(found)


# a row that was inserted


def test_a_row_that_was_inserted_is_not_inserted_again(workshop: Workshop, api: Counting) -> None:
    parts = {"write": "insert_only", "first_run": "send", "delivery": "at_least_once"}
    workshop.sync("users", destination=INSERT, **parts)
    assert run(workshop)["inserted"] == ROWS
    workshop.warehouse("UPDATE users SET spend = 77 WHERE user_id = 7")
    foreseen, done = run(workshop, "--dry-run"), run(workshop)
    assert [(one["updated"], one["skipped"], one["unchanged"]) for one in (foreseen, done)] == [
        (0, 1, ROWS - 1)
    ] * 2
    workshop.warehouse("DELETE FROM users WHERE user_id = 8; INSERT INTO users VALUES (99, 'new', 1)")
    assert run(workshop)["inserted"] == 1
    workshop.warehouse("INSERT INTO users VALUES (8, 'back', 1)")
    assert run(workshop)["skipped"] == 2
    refused = workshop.retl("sync", "--full")
    assert (refused.code, "FULL_APPEND" in refused.err) == (2, True)
    assert sorted(one["user_id"] for one in api.made) == [*range(1, ROWS + 1), 99]


def test_an_insert_that_got_no_answer_is_sent_again_only_where_that_is_asked_for(
    workshop: Workshop, api: Counting
) -> None:
    workshop.warehouse("DELETE FROM users WHERE user_id > 1")
    parts = {"destination": INSERT, "write": "insert_only", "first_run": "send"}
    workshop.sync("users", **parts, delivery="at_most_once")
    api.faults.append(answer(500, b""))
    assert run(workshop, code=1)["in_doubt"] == 1
    assert run(workshop, code=1)["in_doubt"] == 1
    workshop.sync("users", **parts, delivery="at_least_once")
    assert run(workshop)["inserted"] == 1
    assert [one["user_id"] for one in api.made] == [1]


# a delete names the whole key


ROW = {"path": "/gone", "wrap": "rows"}


def refused(shape: Shape, **options: Any) -> str:
    """The code with which a destination is refused."""
    with pytest.raises(DefinitionError) as caught:
        HttpDestination(HttpOptions(connection={"base_url": "http://127.0.0.1"}, **options), shape)
    return caught.value.code


@pytest.mark.parametrize(
    "delete",
    [
        {"method": "DELETE", "path": "/o?ids=$keys", "max_rows": 10},
        {"method": "DELETE", "path": "/o?ids%5B%5D=$keys", "max_rows": 10},
        {"method": "DELETE", "path": "/o/{a}"},
        {"method": "DELETE", "path": "/o"},
        {**ROW, "row": {"id": "$a"}},
        {**ROW, "row": {"url": {"$path": "/o/$a"}}},
    ],
)
def test_a_delete_that_names_a_part_of_the_key_is_a_definition_error(delete: dict[str, Any]) -> None:
    assert refused(replace(PAIRS, deletes="delete"), upsert=ROW, delete=delete) == "HTTP_KEY"


def test_an_upsert_that_names_a_part_of_the_key_is_a_definition_error() -> None:
    upsert = {"method": "PUT", "path": "/o/{a}", "row": "$fields"}
    assert refused(PAIRS, upsert=upsert) == "HTTP_KEY"
    assert refused(replace(PAIRS, write="update_only"), update=upsert) == "HTTP_KEY"
    soft = replace(PAIRS, deletes=SoftDelete({"v": "gone"}))
    assert refused(soft, upsert={"path": "/o", "row": "$fields"}) == "HTTP_KEY"


# a key is one key


def test_a_comma_in_a_key_deletes_nobody_else(workshop: Workshop, api: Counting) -> None:
    workshop.warehouse("CREATE OR REPLACE TABLE users AS SELECT * FROM (VALUES ('a', 1), ('b', 1), ('c', 1),"
                       " ('a,b', 1)) t(id, spend)")  # fmt: skip
    workshop.sync("users", key="[id]", destination=COUNTED, deletes="delete")
    assert run(workshop)["inserted"] == 4
    workshop.warehouse("DELETE FROM users WHERE id IN ('a,b', 'c')")
    done = run(workshop)
    assert (done["deleted"], done["deletes"]["rejected"], done["rejects"][0]["code"]) == (
        1,
        1,
        "KEY_CHARACTER",
    )
    assert sorted(api.users) == ["a", "a,b", "b"]


# answers that only count


def test_a_row_that_is_only_counted_is_found_and_deletes_do_not_wait_for_it(
    workshop: Workshop, api: Counting
) -> None:
    workshop.sync("users", destination=COUNTED, deletes="delete")
    run(workshop)
    workshop.warehouse(
        "UPDATE users SET spend = spend + 1; UPDATE users SET spend = -1 WHERE user_id = 17;"
        "DELETE FROM users WHERE user_id = 3"
    )
    before = len(api.seen)
    done = run(workshop)
    assert (done["status"], done["in_doubt"], done["deleted"]) == ("SUCCESS_WITH_REJECTS", 0, 1)
    assert (done["updated"], done["rejected"]) == (ROWS - 2, 1)
    (reject,) = done["rejects"]
    assert (reject["key"], reject["reason"]) == ("17", "some were no good")
    assert "3" not in api.users
    assert len(api.seen) - before < 14
    assert {one["spend"] for name, one in api.users.items() if name == "17"} == {17}
    workshop.warehouse("UPDATE users SET spend = 5 WHERE user_id = 17")
    assert (run(workshop)["updated"], run(workshop)["unchanged"]) == (1, ROWS - 1)


def test_a_refusal_that_names_no_row_is_quoted_and_its_row_is_found(
    workshop: Workshop, api: Counting
) -> None:
    outcome = "{ok: [200], partial: [400], rows: errors_by_index, at: failed, reason: error}"
    workshop.sync("users", destination=f"{{connection: tool, upsert: {UPSERT}, outcome: {outcome}}}")

    def serve(method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        rows = json.loads(body)["rows"]
        if any(row["id"] == 5 for row in rows):
            return 400, {"error": "an id must not be five"}
        return 200, api.users.update({row["id"]: row for row in rows})

    api.serve = serve  # type: ignore[method-assign]
    done = run(workshop)
    assert (done["inserted"], done["rejected"], done["in_doubt"]) == (ROWS - 1, 1, 0)
    assert done["rejects"][0]["reason"] == "an id must not be five"


def test_an_insert_that_only_some_rows_survived_says_what_was_answered(
    workshop: Workshop, api: Counting
) -> None:
    insert = UPSERT.replace("/o", "/new/many")
    outcome = "{rows: counts_only, failed: failed, code: none}"
    workshop.sync("users", destination=f"{{connection: tool, insert: {insert}, outcome: {outcome}}}",
                  write="append", first_run="send", delivery="at_most_once")  # fmt: skip
    api.faults.append(answer(200, b'{"failed": 1, "message": "one is no good"}'))
    done = run(workshop, code=1)
    assert (done["in_doubt"], done["error"]["code"]) == (ROWS, "IN_DOUBT")
    said = f"{ROWS} rows are in doubt: the target refused 1 of {ROWS} rows and named none: one is no good"
    assert done["error"]["message"] == said
    assert len(api.seen) == 1
    assert run(workshop, code=1)["in_doubt"] == ROWS
    assert len(api.seen) == 1


def test_the_search_for_bad_rows_ends_and_the_next_run_goes_on(
    workshop: Workshop, api: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "SEARCHES", 3)
    workshop.sync("users", destination=COUNTED)
    workshop.warehouse("UPDATE users SET spend = -1 WHERE user_id = 17")
    done = run(workshop, code=1)
    assert len(api.seen) == 4
    assert done["in_doubt"] == 15
    assert "refused 1 of" in done["error"]["message"]
    monkeypatch.undo()
    healed = run(workshop)
    assert (healed["rejected"], healed["in_doubt"]) == (1, 0)
    assert len(api.users) == ROWS - 1


# refusals that name their rows


NAMED = "outcome: {rows: errors_by_index, at: errors, index: field, reason: message}"


def refuse(api: Counting, *bad: int) -> None:
    """Let the API refuse a whole request for these rows, and name the first of them."""

    def serve(method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        rows = json.loads(body)["rows"]
        found = [n for n, row in enumerate(rows) if row["id"] in bad]
        if found:
            return 400, {"errors": [{"field": f"rows[{n}].spend", "message": "too much"} for n in found[:2]]}
        api.made += rows
        return 200, {}

    api.serve = serve  # type: ignore[method-assign]


@pytest.mark.parametrize("write", ["upsert", "append"])
def test_a_refusal_that_names_its_row_costs_one_request_more_per_part(
    workshop: Workshop, api: Counting, write: str
) -> None:
    refuse(api, 13)
    operation = "upsert" if write == "upsert" else "insert"
    parts = {} if write == "upsert" else {"first_run": "send", "delivery": "at_most_once"}
    workshop.sync(
        "users", destination=f"{{connection: tool, {operation}: {UPSERT}, {NAMED}}}", write=write, **parts
    )
    done = run(workshop)
    assert (done["inserted"], done["rejected"], done["in_doubt"]) == (ROWS - 1, 1, 0)
    assert (done["rejects"][0]["key"], done["rejects"][0]["reason"]) == ("13", "too much")
    assert len(api.seen) == 3
    assert sorted(row["id"] for row in api.made) == [n for n in range(1, ROWS + 1) if n != 13]
    again = run(workshop, code=1)  # the same row, and nothing else
    assert (again["unchanged"], again["rejected"], len(api.seen)) == (ROWS - 1, 1, 4)


def test_a_refusal_that_names_some_of_the_bad_rows_is_followed_to_its_end(
    workshop: Workshop, api: Counting
) -> None:
    refuse(api, 3, 4, 13, 14, 30)
    workshop.sync("users", destination=f"{{connection: tool, upsert: {UPSERT}, {NAMED}}}")
    done = run(workshop)
    assert (done["inserted"], done["rejected"]) == (ROWS - 5, 5)
    assert len(api.made) == ROWS - 5


def test_a_refusal_that_names_every_row_is_the_answer(workshop: Workshop, api: Counting) -> None:
    workshop.warehouse("DELETE FROM users WHERE user_id > 2")
    refuse(api, 1, 2)
    workshop.sync("users", destination=f"{{connection: tool, upsert: {UPSERT}, {NAMED}}}")
    assert run(workshop, code=1)["rejected"] == 2
    assert len(api.seen) == 1


# what is not there


def test_a_row_that_should_be_created_is_never_taken_for_one_that_is_gone(api: Counting) -> None:
    outcome = {"cases": [{"status": [404], "means": "absent"}]}  # also a wrong account, or a wrong object
    upsert = {"path": "/o", "row": "$row"}
    options = HttpOptions(connection={"base_url": api.url}, upsert=upsert, outcome=outcome)
    shape = Shape("sync", "state", (Field("id", Type("integer")),), ())
    destination, batch = HttpDestination(options, shape), Rows(shape, [(1,)]).batch()
    api.faults.append(answer(404, b'{"message": "no such object"}'))
    with pytest.raises(Systemic, match="no such object"):
        destination.write(batch)
    destination.close()


# throttles


class Paused(Gate):
    def __init__(self) -> None:
        self.pauses: list[float | None] = []

    def on_quota(self, quota: Quota) -> None:
        self.pauses.append(quota.restart if quota.left == 0 else None)


def test_a_row_that_is_throttled_alone_pauses_the_connection_too(api: Counting) -> None:
    outcome = {
        "rows": "positional", "at": "rows", "wait": "30s", "row_ok": {"at": "status", "in": ["ok"]},
        "row_retry": {"at": "status", "in": ["slow"]},
    }  # fmt: skip
    upsert = {"path": "/o", "wrap": "rows", "max_rows": 2}
    options = HttpOptions(connection={"base_url": api.url}, upsert=upsert, outcome=outcome)
    shape, gate = Shape("sync", "state", (Field("id", Type("integer")),), ()), Paused()
    destination, batch = HttpDestination(options, shape, gate), Rows(shape, [(1,), (2,)]).batch()
    for statuses, pauses in ((["ok", "ok"], []), (["ok", "slow"], [30.0])):
        rows = [{"status": one} for one in statuses]
        api.faults.append(answer(200, json.dumps({"rows": rows}).encode()))
        destination.write(batch)
        assert gate.pauses == pauses
    destination.close()


def test_a_look_at_a_job_is_throttled_by_the_same_rules(api: Counting) -> None:
    job = {
        "id": "job", "path": "/jobs/$job", "done": {"at": "state", "in": ["done"]},
        "failed": {"at": "state", "in": ["failed"]}, "outcome": {"rows": "none"},
    }  # fmt: skip
    slow = {"status": [200], "when": {"at": "code", "in": ["slow"]}, "means": "unavailable", "wait": "9s"}
    outcome = {"wait": "30s", "cases": [slow, {"status": [200], "means": "written"}]}
    upsert = {"path": "/o", "wrap": "rows", "max_rows": 2, "job": job}
    options = HttpOptions(connection={"base_url": api.url}, upsert=upsert, outcome=outcome)
    shape = Shape("sync", "state", (Field("id", Type("integer")),), ())
    destination, batch = HttpDestination(options, shape), Rows(shape, [(1,), (2,)]).batch()
    for told, seconds in ((answer(200, b'{"code": "slow"}'), 9.0), (answer(429, b""), 30.0)):
        api.faults.append(told)
        with pytest.raises(Unavailable) as caught:
            destination.resolve(batch, "7")
        assert caught.value.retry_after == seconds
    api.faults.append(answer(200, b'{"state": "failed", "message": "the file was too old"}'))
    failed = destination.resolve(batch, "7")
    assert isinstance(failed, Outcome)
    assert (failed.default.kind, failed.default.reason) == (
        Kind.UNKNOWN,
        "the job failed: the file was too old",
    )
    api.faults.append(answer(200, b'{"state": "done"}'))
    assert destination.resolve(batch, "7") == Outcome(WRITTEN)
    destination.close()


# ids in the row by which the target knows it again


class Queue(Api):
    """Takes messages, each id once."""

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        for one in json.loads(body)["messages"]:
            self.users.setdefault(one["dedupe"], []).append(one["body"])
        return 200, {}


ONCE = (
    "{connection: tool, insert: {path: /m, wrap: messages, max_rows: 10, row: {dedupe: %s, body: $row}},"
    " idempotency: {row: dedupe, window: 5m}}"
)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[tuple[Workshop, Queue]]:
    with Queue() as running:
        made = Workshop(tmp_path / "queued")
        made.write("retl.yml", f'connections: {{tool: {{type: http, base_url: "{running.url}"}}}}\n')
        yield made, running


@pytest.mark.parametrize("write", ["append", "insert_only"])
def test_an_id_in_the_row_makes_a_second_send_harmless(queue: tuple[Workshop, Queue], write: str) -> None:
    workshop, api = queue
    workshop.sync("users", destination=ONCE % "$key", write=write, first_run="send")
    api.faults.extend([reset(applied=True), answer(500, b"")])
    done = run(workshop)
    assert (done["inserted"], done["in_doubt"]) == (ROWS, 0)
    assert api.users.keys() == set(range(1, ROWS + 1))
    assert {len(found) for found in api.users.values()} == {1, 2}  # the lost batch came twice, and is known
    first, second, third, *_ = (body for _, _, _, body in api.seen)
    assert first == second == third
    workshop.warehouse("UPDATE users SET spend = 0")
    assert run(workshop)["skipped"] == ROWS


@pytest.mark.parametrize(
    ("row", "at", "write"),
    [
        ({"dedupe": "other"}, "dedupe", "append"),
        ({"dedupe": "$row_no"}, "dedupe", "append"),
        ({"dedupe": "$a"}, "dedupe", "append"),  # a part of the key
        ({"dedupe": {"$path": "/$a/$b"}}, "dedup", "append"),
        ({"dedupe": {"$path": "/$a/$b"}}, "dedupe", "upsert"),
    ],
)
def test_an_id_that_does_not_name_its_row_is_a_definition_error(row: Any, at: str, write: WriteMode) -> None:
    endpoint = {"path": "/m", "row": {**row, "body": "$row"}}
    operation = {"upsert" if write == "upsert" else "insert": endpoint}
    assert refused(replace(PAIRS, write=write), **operation, idempotency={"row": at}) == "HTTP_IDEMPOTENCY"
