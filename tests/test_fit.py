"""What a sync asks of a target that cannot do it is refused offline, in the words of the sync."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import Workshop

CONNECTIONS = """connections:
  topics: {type: kafka, servers: "127.0.0.1:1"}
  exports: {type: files, root: out}
  app: {type: sqlite, path: app.db}
"""
COLUMNS = "{user_id: {type: integer}, email: {type: string, nullable: true}}"
MARKED = "{set: {email: null}}"
REDIS = '{type: redis, key: "u:{user_id}", value: hash, ttl: none}'


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.write("retl.yml", CONNECTIONS)
    return made


@pytest.mark.parametrize(
    "destination",
    [REDIS, "{connection: exports, path: users, format: [csv]}", "{connection: topics, topic: u}"],
)
def test_a_row_that_is_written_whole_is_not_marked_in_the_place_of_a_delete(
    workshop: Workshop, destination: str
) -> None:
    """One capability of the target decides, the same for each of them."""
    workshop.sync("users", contract=COLUMNS, destination=destination, deletes=MARKED)
    said = workshop.retl("validate")
    assert (said.code, "OPERATION_UNSUPPORTED" in said.err) == (2, True), said.err
    assert "cannot mark a row" in said.err
    workshop.sync("users", contract=COLUMNS, destination=destination, deletes="delete")
    assert workshop.retl("validate").code == 0


def test_a_table_marks_a_row_in_the_place_of_a_delete(workshop: Workshop) -> None:
    table = "{connection: app, table: users, create: true}"
    workshop.sync("users", contract=COLUMNS, destination=table, deletes=MARKED)
    assert workshop.retl("validate").code == 0
