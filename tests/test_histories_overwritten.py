"""Random histories at targets that cannot compare: the mart wins over every edit, and keys, numbers and what others
have in their own column are those of an oracle that knows all values, whatever was killed or erased."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.commands import Workshop
from tests.databases import SHELLS, MySQLShell, Shell
from tests.mysql_server import AVAILABLE
from tests.test_conflict_history import POINTS, People, agree
from tests.test_conflicts import Held

KINDS = (*SHELLS, *(["mysql"] if AVAILABLE else []))


class Table:
    """The rows of a table, as others see and edit them. The database's file, if it is one, is in the project."""

    versioned, reversible, points, strategies = False, False, POINTS, ("warehouse_wins",)

    def __init__(self, kind: str, request: pytest.FixtureRequest) -> None:
        self.kind, self.request = kind, request
        self.shell: Shell

    def project(self, folder: Path, conflicts: str, **parts: str) -> Workshop:
        workshop = Workshop(folder)
        if self.kind == "mysql":
            self.shell = MySQLShell(self.request.getfixturevalue("mysql"))
            self.shell.execute("DROP TABLE IF EXISTS people, retl_applied")
        else:
            self.shell = SHELLS[self.kind](folder)
        text = self.shell.text
        self.shell.execute(
            f"CREATE TABLE people (id {text} PRIMARY KEY, phone {text}, score BIGINT, note {text})"
        )
        workshop.write("retl.yml", f"connections:\n  sql: {self.shell.connection}\n")
        given = {
            "source": "{table: people}",
            "key": "[id]",
            "fields": "{phone: phone, score: score}",
            "destination": "{connection: sql, table: people}",
            "deletes": "delete",
            "conflicts": conflicts,
        } | parts
        workshop.sync("people", **given)
        return workshop

    def edit(self, key: str, what: str) -> None:
        match what.split(" ", 1):
            case ["DELETE"]:
                self.shell.execute(f"DELETE FROM people WHERE id = '{key}'")
            case ["INSERT", values]:
                values = values.strip("()")
                self.shell.execute(f"INSERT INTO people (id, phone, score) VALUES ('{key}', {values})")
            case _:
                self.shell.execute(f"UPDATE people {what} WHERE id = '{key}'")

    def held(self) -> dict[str, Held]:
        found = self.shell.execute("SELECT id, phone, score, note FROM people")
        return {key: (phone, score, note) for key, phone, score, note in found}


@contextmanager
def tables(kind: str, request: pytest.FixtureRequest) -> Iterator[People]:
    yield Table(kind, request)


@pytest.mark.parametrize("kind", KINDS if os.environ.get("RETL_TEST_ALL") else ["sqlite"])
def test_random_histories_agree_with_an_oracle_that_knows_all_values(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    agree(partial(tables, kind, request), tmp_path)
