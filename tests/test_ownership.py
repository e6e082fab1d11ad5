"""What a run may delete: nothing it cannot show to have delivered, and nothing for one bad row's sake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api import TOKEN, Api, reset
from tests.commands import Workshop

INSERTS = """
  connection: api
  insert: {method: POST, path: /v1/users/batch, wrap: users, max_rows: 100, row: {id: "$user_id", attributes: $fields}}
  delete: {method: DELETE, path: "/v1/users/{user_id}"}
  outcome: {ok: [200], partial: [207], rows: positional, at: results, row_ok: {at: status, in: [updated]}}"""


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as running:
        yield running


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path / "project")


def reach(workshop: Workshop, api: Api) -> None:
    workshop.write(
        "retl.yml",
        f'connections: {{api: {{type: http, base_url: "{api.url}", auth: {{type: bearer, token: "${{TOKEN}}"}}}}}}\n',
    )
    workshop.environment["TOKEN"] = TOKEN


def run(workshop: Workshop, *words: str, **more: str) -> dict[str, Any]:
    (found,) = workshop.retl("sync", *words, "--output", "json", **more).document["syncs"]
    return dict(found)


@pytest.mark.parametrize("end", ["crash", "no answer"])
def test_a_row_nobody_answered_for_is_not_ours_to_delete_where_keys_that_exist_are_kept(
    workshop: Workshop, api: Api, end: str
) -> None:
    reach(workshop, api)
    workshop.sync(
        "users",
        destination=INSERTS,
        write="insert_only",
        deletes="delete",
        first_run="send",
        delivery="at_most_once",
        batch="{rows: 10}",
    )
    if end == "crash":
        assert workshop.retl("sync", RETL_CRASH_AT="batch_sending:2").code == -9
    else:
        api.faults.extend([lambda _: False, reset(applied=False)])
        assert run(workshop)["in_doubt"] == 10
    first = run(workshop)
    assert first["in_doubt"] == 10
    assert "13" not in api.users
    workshop.warehouse("DELETE FROM users WHERE user_id IN (3, 13)")  # 13 was never answered for
    api.seen.clear()
    run(workshop)
    deleted = [path for method, path, *_ in api.seen if method == "DELETE"]
    assert deleted == ["/v1/users/3"]
