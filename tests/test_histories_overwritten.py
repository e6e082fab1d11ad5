"""Random histories at targets that cannot compare: the mart wins over every edit. Keys, numbers, verdicts and what
others have in their own column are those of an oracle that knows all values, in every mode of writing, whatever was
killed, lost on its way or erased."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from msgspec.structs import replace

from tests.commands import Workshop
from tests.databases import SHELLS, MySQLShell, Shell
from tests.mysql_server import AVAILABLE
from tests.proxy import Proxy
from tests.test_conflict_history import (
    OTHERS,
    POINTS,
    Histories,
    Left,
    Oracle,
    People,
    agree,
    counted,
    keys,
    phones,
    scores,
)
from tests.test_conflicts import Held, run

KINDS = (*SHELLS, *(["mysql"] if AVAILABLE else []))
WAYS = {  # write, deletes
    "upsert": ("upsert", "delete"),
    "soft": ("upsert", "{set: {score: 9}}"),
    "replace": ("replace", "delete"),
    "update_only": ("update_only", "delete"),
    "insert_only": ("insert_only", "delete"),
}
PLAYED = [(kind, way) for kind in KINDS for way in WAYS]
HISTORIES, STEPS = 200, 15  # of each way: 1,000 of each target
if not os.environ.get("RETL_TEST_ALL"):
    PLAYED = [(kind, way) for kind, way in PLAYED if kind == "sqlite" or way in ("upsert", "replace")]
    HISTORIES, STEPS = 1, 12
CHANGES = ("mart has", "mart lacks", "phone", "score", "note", "row")  # what may happen before a command
changes = st.lists(st.tuples(st.sampled_from(CHANGES), keys, phones, scores), max_size=4)
Changes = list[tuple[str, str, str, int]]
# The COMMIT of the first batch comes after that of the fence.
COMMITTING = (b"`retl_applied` SET epoch", b"\3COMMIT", b"\3COMMIT")


class Table:
    """The rows of a table, as others see and edit them. The database's file, if it is one, is in the project; a
    server is behind a proxy."""

    versioned: bool = False
    reversible: bool = False
    points: tuple[str, ...] = POINTS
    strategies: tuple[str, ...] = ("warehouse_wins",)

    def __init__(self, kind: str, request: pytest.FixtureRequest, hold: ExitStack) -> None:
        self.kind, self.request, self.hold = kind, request, hold
        self.shell: Shell
        self.line: Proxy | None = None

    def project(self, folder: Path, conflicts: str, **parts: str) -> Workshop:
        workshop = Workshop(folder)
        if self.kind == "mysql":
            database = self.request.getfixturevalue("mysql")
            self.line = self.hold.enter_context(Proxy(database.host, database.port))
            self.shell = MySQLShell(replace(database, host=self.line.host, port=self.line.port))
            connection = self.shell.connection
            self.shell = MySQLShell(database)
            self.shell.execute("DROP TABLE IF EXISTS people, retl_applied")
        else:
            self.shell = SHELLS[self.kind](folder)
            connection = self.shell.connection
        text = self.shell.text
        self.shell.execute(
            f"CREATE TABLE people (id {text} PRIMARY KEY, phone {text}, score BIGINT, note {text})"
        )
        workshop.write("retl.yml", f"connections:\n  sql: {connection}\n")
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
    with ExitStack() as hold:
        yield Table(kind, request, hold)


@dataclass
class Overwriting(Oracle):
    """What a run does depends on how it writes, and on nothing that others did. `removed`: keys that retl has
    deleted, and not sent since."""

    write: str = "upsert"
    soft: bool = False
    removed: set[str] = field(default_factory=set)

    def _upsert(self, key: str, row: tuple[str, int]) -> str:
        known, there = self.left.get(key), self.target.get(key)
        if self.write == "update_only" and there is None:
            return "skipped"
        self.removed.discard(key)
        if self.write == "insert_only" and there is not None:
            self.left[key] = Left(row, list(row), None, known.owned if known else False)
            return "skipped"
        self.target[key] = [*row, there[2] if there and self.write != "replace" else None]
        self.left[key] = Left(row, list(row), None, True)
        return "updated" if known or self.write == "update_only" else "inserted"

    def _delete(self, key: str) -> str:
        there = self.target.get(key)
        if self.soft and there is not None:
            there[1] = 9
        if not self.soft:
            self.target.pop(key, None)
        del self.left[key]
        self.removed.add(key)
        return "deleted"

    def erase(self, keys: Any) -> None:
        super().erase(keys)
        self.removed -= set(keys)

    def verdicts(self) -> dict[str, str]:
        """What a reconcile says of each key, as far as it says something."""
        known = {key: self._verdict(key, row) for key, row in self.mart.items() if key not in self.erased}
        for key in (self.target.keys() | self.left.keys()) - known.keys() - self.erased:
            left = self.left.get(key)
            if left is not None and (left.owned or key in self.target):
                known[key] = "due" if left.owned else "kept"
            elif left is None:
                known[key] = "back" if key in self.removed and not self.soft else "extra"
        return known

    def _verdict(self, key: str, row: tuple[str, int]) -> str:
        left, there = self.left.get(key), self.target.get(key)
        if left is None or (there is not None and left.dealt != row):
            return "due"
        if there is None:
            return "missing"
        if tuple(there[:2]) == row:
            return "same"
        return "kept" if self.write == "insert_only" else "edited"


class Overwritten(Histories):
    """Without images and conditions: no run can be taken back, and a repair sends what drifted."""

    oracle: Overwriting
    people: Table

    def __init__(self, way: str, lend: Any, folder: Path, numbers: count[int]) -> None:
        super().__init__(lend, folder, numbers)
        self.way = way

    @initialize(number=counted)
    def begin(self, number: int) -> None:
        assume(number)
        write, deletes = WAYS[self.way]
        self.oracle, self.last = Overwriting("warehouse_wins", write=write, soft="set" in deletes), ""
        self.open = False  # a run was killed and none has ended since
        parts = {"guards": "{max_row_drop: 1}", "write": write, "deletes": deletes, "first_run": "send"}
        self.workshop = self.people.project(self.folder, "warehouse_wins", **parts)
        if write == "update_only":  # it makes no row
            rows = ", ".join(f"('other {i}', 'o', {i})" for i in range(OTHERS))
            self.people.shell.execute(f"INSERT INTO people (id, phone, score) VALUES {rows}")
        self._build()
        found = run(self.workshop)
        assert found["inserted"] + found["updated"] == OTHERS
        self.events = list(POINTS)

    def _happen(self, changes: Changes) -> None:
        for what, key, phone, score in changes:
            match what:
                case "mart has":
                    self.mart_has(key, phone, score, False)
                case "mart lacks":
                    self.mart_lacks(key)
                case "phone":
                    self.somebody_writes_a_phone(key, phone)
                case "score":
                    self.somebody_writes_a_score(key, score)
                case "note":
                    self.somebody_writes_a_note(key)
                case "row":
                    self.somebody_makes_or_removes_a_row(key, phone)

    @rule(changes=changes)
    def sync(self, changes: Changes) -> None:
        self._happen(changes)
        super().sync()
        self.open = False

    @rule()
    def the_last_sync_is_taken_back(self) -> None:
        """It is refused, and changes nothing."""
        if self.last:
            said = self.workshop.retl("rollback", self.last, "--no-pause", "--output", "json")
            assert said.code == 2, said.err
            assert said.document["error"]["code"] == "NOT_REVERSIBLE"
            self._agree()

    @rule(changes=changes)
    def rows_are_compared(self, changes: Changes) -> None:
        self._happen(changes)
        self._build()
        code, found = self._reconciled()
        if not self.open:
            assert self._told(found) == Counter(self.oracle.verdicts().values()) + Counter(same=OTHERS)
            assert code == int(found["drift"] > 0)
        self._agree()

    @rule(changes=changes)
    def rows_are_repaired(self, changes: Changes) -> None:
        self._happen(changes)
        if self.oracle.write == "insert_only":
            return
        self._build()
        if self.open:  # a kill leaves rows due
            run(self.workshop)
            self.oracle.run()
            self.open = False
        before = self.oracle.verdicts()
        _, found = self._reconciled("--repair")
        assert found["error"] is None, found
        ends = Counter(
            self.oracle._upsert(key, self.oracle.mart[key])
            for key, verdict in sorted(before.items())
            if verdict in ("edited", "missing")
        )
        assert found["updated"] + found["inserted"] == ends["updated"] + ends["inserted"]
        self._agree()
        _, found = self._reconciled()
        assert self._told(found) == Counter(self.oracle.verdicts().values()) + Counter(same=OTHERS)

    def _reconciled(self, *words: str) -> tuple[int, dict[str, Any]]:
        said = self.workshop.retl("reconcile", "people", *words, "--output", "json")
        assert said.code in (0, 1), said.err
        return said.code, dict(said.document["sync" if "--repair" in words else "reconcile"])

    def _told(self, found: dict[str, Any]) -> Counter[str]:
        names = ("same", "due", "edited", "missing", "back", "held", "kept", "extra", "duplicate")
        return +Counter({name: found[name] or 0 for name in names})

    @rule(chosen=st.integers(0, 1000), changes=changes)
    def sync_is_killed(self, chosen: int, changes: Changes) -> None:
        """At any event: what was answered before it is at the target."""
        self._happen(changes)
        point = self.events[chosen % len(self.events)]
        self._build()
        phases = sum(self.oracle.phases())
        self.last = ""
        ended = self._killed(["sync", "--sync", "people"], point)
        assert ended.code in (0, -9), ended.stderr
        passed = ended.points()
        self.events = sorted({*self.events, *passed})
        answered = passed["batch_answered"]
        assert answered <= phases
        upserts, deletes = self.oracle.phases()
        self.oracle.run(upserts=upserts and answered > 0, deletes=deletes and answered > int(upserts))
        self.open = ended.code != 0
        self._agree()

    @rule(done=st.booleans(), changes=changes)
    def a_commit_is_lost(self, done: bool, changes: Changes) -> None:
        """With or without its effect, and the run goes on. A file has no line on which it could be lost."""
        if self.people.line is None:
            self.sync(changes)
            return
        lose = self.people.line.drop_reply if done else self.people.line.drop_request
        lose(*COMMITTING)
        try:
            self.sync(changes)
        finally:
            self.people.line.heal()

    def _erase(self, named: list[str]) -> None:
        super()._erase(named)
        self.open = False


@pytest.mark.timeout(3600 if HISTORIES > 1 else 300)
@pytest.mark.parametrize(("kind", "way"), PLAYED)
def test_random_histories_agree_with_an_oracle_that_knows_all_values(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str, way: str
) -> None:
    agree(partial(tables, kind, request), tmp_path, partial(Overwritten, way), HISTORIES, STEPS)
