"""Random histories of mart changes, edits by others, runs, rollbacks, reconciles and erasures, and of kills, held
against an oracle that knows all values: what the target holds and every number agree after every run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import duckdb
from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests import forked
from tests.commands import Workshop
from tests.crashes import Ended, Running
from tests.servers import Database, Databases
from tests.test_conflicts import NEW, OLD, STRATEGIES, TABLE, Held, edit, held, numbers, project, run

KEYS = "abcd"  # so few that their loss is not the target's
OTHERS = 400
EXAMPLES, STEPS = (20, 50) if os.environ.get("RETL_TEST_ALL") else (1, 12)
NEVER = object()  # no value is equal to it
# Where a run is killed: before anything is sent, before its COMMIT, between COMMIT and its answer, after all answers.
POINTS = ("delta_written", "batches_opened", "batch_answered", "committing")
IMAGED = (*POINTS, "images_kept", "digests_kept")
ERASING = ("erasure_begun", "batch_answered", "target_erased", "file_replaced", "rows_erased", "committing")
KEEPING = ("target_wins", "newest_wins", "manual")
EVENTS = {"RETL_LOG_LEVEL": "debug", "RETL_LOG_FORMAT": "json"}  # of a process that tells its events
ABSENT: list[Any] = []  # seen: a rollback removed the row
# Hypothesis begins with the simplest history, which repeats one command: it is none, and the next one is random.
counted = st.integers(0, 9)
keys, phones, scores = st.sampled_from(KEYS), st.sampled_from("pqr"), st.integers(1, 2)


@dataclass
class Left:
    """What retl knows of a key: the mart's row that it last dealt with, what it left in each column (None: not
    known), and whether it may delete the row."""

    dealt: tuple[str, int]
    seen: list[Any] | None
    note: Any
    owned: bool
    whole: tuple[Any, ...] | None = None  # the row, if nobody's edit was left in it


@dataclass
class Oracle:
    """Values where retl has hashes and digests."""

    strategy: str
    versioned: bool = False  # a delete asks whether anything changed since, also back and forth
    mart: dict[str, tuple[str, int]] = field(default_factory=dict)
    newer: set[str] = field(default_factory=set)  # keys whose mart row is later than the target's
    target: dict[str, list[Any]] = field(default_factory=dict)  # phone, score, note
    left: dict[str, Left] = field(default_factory=dict)
    erased: set[str] = field(default_factory=set)
    images: dict[str, list[Any] | None] = field(
        default_factory=dict
    )  # rows before the last run that wrote them

    def run(self, *, upserts: bool = True, deletes: bool = True) -> Counter[str]:
        """What becomes of each row, as numbers; of phases that are not carried out nothing becomes."""
        ends, self.images = Counter[str](), {}
        due, gone = self._sent()
        ends["erased"] = len(self.erased & self.mart.keys())
        ends["unchanged"] = OTHERS + len(self.mart) - len(due) - ends["erased"]
        for key, row in due.items() if upserts else ():
            ends[self._upsert(key, row)] += 1
        for key in gone if deletes else ():
            ends[self._delete(key)] += 1
        return ends

    def phases(self) -> tuple[bool, bool]:
        """Whether a run would send upserts, and deletes."""
        due, gone = self._sent()
        return bool(due), bool(gone)

    def _sent(self) -> tuple[dict[str, tuple[str, int]], list[str]]:
        """The rows that a run would send, and the keys that it would delete."""
        due = {k: m for k, m in self.mart.items() if k not in self.erased and self._due(k, m)}
        return due, [k for k, one in self.left.items() if one.owned and k not in self.mart]

    def erase(self, keys: Collection[str]) -> None:
        for key in keys:
            for of in (self.target, self.left, self.images):
                of.pop(key, None)  # type: ignore[attr-defined]
        self.erased |= set(keys)

    def roll_back(self) -> Counter[str]:
        """The last run is taken back: what became of each row that it wrote."""
        ends = Counter[str]()
        for key, image in self.images.items():
            ends[self._restore(key, image)] += 1
        self.images = {}
        return ends

    def _restore(self, key: str, image: list[Any] | None) -> str:
        known, there = self.left.get(key), self.target.get(key)
        if known is None:  # the run deleted it
            if there is not None or image is None:
                return "kept" if there is not None else "nothing"
            self.target[key] = list(image)
            self.left[key] = Left(("", 0), list(image[:2]), image[2], False, tuple(image))
            return "restored"
        seen = known.seen or [NEVER, NEVER]
        if image is None:
            if there is not None and self._touched(known, there):
                return "kept"
            self.target.pop(key, None)
            known.seen, known.owned = ABSENT, False
            return "restored"
        if there is None:
            return "kept"
        kept = [there[i] != image[i] and there[i] != seen[i] for i in (0, 1)]
        writes = any(there[i] != image[i] and not kept[i] for i in (0, 1))
        if any(kept) and not writes:
            return "kept"
        for i in (0, 1):
            there[i] = there[i] if kept[i] else image[i]
        known.seen, known.note = [seen[i] if kept[i] else there[i] for i in (0, 1)], there[2]
        return "merged" if any(kept) else "restored"

    def _due(self, key: str, row: tuple[str, int]) -> bool:
        known = self.left.get(key)
        return known is None or known.dealt != row or known.seen is None

    def _upsert(self, key: str, row: tuple[str, int]) -> str:
        known, there = self.left.get(key), self.target.get(key)
        if self.strategy == "warehouse_wins":  # it looks at nothing, and marks tell what a lost answer was
            self.target[key] = [*row, there[2] if there else None]
            self.left[key] = Left(row, list(row), None, True)
            return "updated" if known else "inserted"
        seen = list((known and known.seen) or [NEVER, NEVER])
        if there is None:
            if known is None or known.seen is ABSENT:
                self.images[key] = None
                self.target[key] = [*row, None]
                self.left[key] = Left(row, list(row), None, True, (*row, None))
                return "inserted" if known is None else "updated"
            if self.strategy == "manual":
                return "queued"
            known.dealt, known.seen, known.whole = row, seen, None
            return "kept"
        differs = [there[i] != row[i] for i in (0, 1)]
        clash = [differs[i] and there[i] != seen[i] for i in (0, 1)]
        changed = [row[i] != seen[i] for i in (0, 1)]
        wins = [self.strategy == "newest_wins" and changed[i] and key in self.newer for i in (0, 1)]
        if self.strategy == "manual" and any(clash[i] and changed[i] for i in (0, 1)):
            return "queued"
        kept = [clash[i] and not wins[i] for i in (0, 1)]
        writes = any(differs[i] and not kept[i] for i in (0, 1))
        if writes or not any(kept):
            self.images[key] = list(there)
        for i in (0, 1):
            there[i] = there[i] if kept[i] else row[i]
        end = ("merged" if writes else "kept") if any(kept) else "written"
        now = [seen[i] if kept[i] else there[i] for i in (0, 1)]
        whole = tuple(there) if end == "written" else None
        self.left[key] = Left(row, now, there[2], known.owned if known else False, whole)
        if end == "kept":
            return "kept"
        return ("inserted" if known is None else "updated") + ("+" if end == "merged" else "")

    def _delete(self, key: str) -> str:
        known, there = self.left[key], self.target.get(key)
        wins = self.strategy == "warehouse_wins"
        if there is not None and not wins and self._touched(known, there):
            if self.strategy == "manual":
                return "delete queued"
            known.owned, known.seen = False, known.seen or [NEVER, NEVER]
            return "delete kept"
        self.images[key] = there
        self.target.pop(key, None)
        del self.left[key]
        return "deleted"

    def _touched(self, known: Left, there: list[Any]) -> bool:
        if self.versioned:
            return tuple(there) != known.whole
        return known.seen is None or there[:2] != known.seen or there[2] != known.note


def expected(ends: Counter[str]) -> tuple[tuple[int, ...], ...]:
    merged = ends["inserted+"] + ends["updated+"]
    return (
        (ends["unchanged"], ends["inserted"] + ends["inserted+"], ends["updated"] + ends["updated+"],
         ends["kept"] + ends["erased"] + ends["skipped"], ends["queued"]),
        (merged, ends["kept"], ends["queued"]),
        (ends["deleted"], ends["delete kept"], ends["delete queued"]),
    )  # fmt: skip


class People(Protocol):
    """The rows at the target, as others see and edit them. `versioned`: an edit is known by a version of the
    row. `points`: where a run may be killed. `reversible`: a run can be taken back. `strategies`: those that
    the target has."""

    versioned: bool
    reversible: bool
    points: tuple[str, ...]
    strategies: tuple[str, ...]

    def project(self, folder: Path, conflicts: str, **parts: str) -> Workshop: ...

    def edit(self, key: str, what: str) -> None: ...

    def held(self) -> dict[str, Held]: ...


@dataclass
class Table:
    database: Database
    versioned: bool = False
    reversible: bool = True
    points: tuple[str, ...] = IMAGED
    strategies: tuple[str, ...] = KEEPING

    def project(self, folder: Path, conflicts: str, **parts: str) -> Workshop:
        with self.database.connect() as connection:
            connection.execute(TABLE)
        return project(folder, self.database, conflicts, **parts)

    def edit(self, key: str, what: str) -> None:
        edit(self.database, key, what)

    def held(self) -> dict[str, Held]:
        return held(self.database)


@contextmanager
def tables(databases: Databases) -> Iterator[People]:
    with databases.lend() as database:
        yield Table(database)


class Histories(RuleBasedStateMachine):
    def __init__(
        self, lend: Callable[[], AbstractContextManager[People]], folder: Path, numbers: count[int]
    ) -> None:
        super().__init__()
        self.lent = lend()
        self.people = self.lent.__enter__()
        self.folder = folder / str(next(numbers))
        self.kills = count()

    def teardown(self) -> None:
        self.lent.__exit__(None, None, None)

    @initialize(chosen=st.sampled_from(range(len(KEEPING))), number=counted)
    def begin(self, chosen: int, number: int) -> None:
        assume(number)
        strategy = self.people.strategies[chosen % len(self.people.strategies)]
        self.oracle, self.last = Oracle(strategy, self.people.versioned), ""
        parts = {"guards": "{max_row_drop: 1}"}
        if self.people.reversible:
            parts["rollback"] = "{keep: 30d}"
        self.workshop = self.people.project(self.folder, STRATEGIES[strategy], **parts)
        self._build()
        assert run(self.workshop)["inserted"] == OTHERS

    def _build(self) -> None:
        listed = "".join(
            f" UNION ALL SELECT '{key}', '{phone}', {score}, TIMESTAMPTZ '{NEW if key in self.oracle.newer else OLD}'"
            for key, (phone, score) in self.oracle.mart.items()
        )
        others = (
            f"SELECT 'other ' || i AS id, 'o' AS phone, i AS score, NULL AS changed FROM range({OTHERS}) t(i)"
        )
        self.workshop.warehouse(f"CREATE OR REPLACE TABLE people AS {others}{listed}")

    @rule(key=keys, phone=phones, score=scores, newer=st.booleans())
    def mart_has(self, key: str, phone: str, score: int, newer: bool) -> None:
        self.oracle.mart[key] = (phone, score)
        self.oracle.newer = self.oracle.newer - {key} | ({key} if newer else set())

    @rule(key=keys)
    def mart_lacks(self, key: str) -> None:
        self.oracle.mart.pop(key, None)

    @rule(key=keys, phone=phones | st.none())
    def somebody_writes_a_phone(self, key: str, phone: str | None) -> None:
        self._edit(key, 0, "phone", phone)

    @rule(key=keys, score=scores)
    def somebody_writes_a_score(self, key: str, score: int) -> None:
        self._edit(key, 1, "score", score)

    @rule(key=keys)
    def somebody_writes_a_note(self, key: str) -> None:
        self._edit(key, 2, "note", "n")

    @rule(key=keys, phone=phones)
    def somebody_makes_or_removes_a_row(self, key: str, phone: str) -> None:
        if self.oracle.target.pop(key, None) is not None:
            self.people.edit(key, "DELETE")
        else:
            self.oracle.target[key] = [phone, 1, None]
            self.people.edit(key, f"INSERT ('{phone}', 1)")

    def _edit(self, key: str, at: int, column: str, value: Any) -> None:
        if key in self.oracle.target:
            self.oracle.target[key][at] = value
            text = "NULL" if value is None else f"'{value}'"
            self.people.edit(key, f"SET {column} = {text}")

    @rule()
    def sync(self) -> None:
        self._build()
        wanted = expected(self.oracle.run())
        found = run(self.workshop)
        assert found["error"] is None, found["error"]
        assert numbers(found) == wanted
        self.last = found["run_id"]
        self._agree()

    @rule()
    def the_last_sync_is_taken_back(self) -> None:
        if not (self.people.reversible and self.last):
            return
        wrote = bool(self.oracle.images)
        wanted = self.oracle.roll_back()
        said = self.workshop.retl("rollback", self.last, "--no-pause", "--output", "json")
        self.last = ""
        if not wrote:
            assert said.code in (0, 2), said.err
            return
        (found,) = said.document["syncs"]
        assert found["error"] is None, found["error"]
        restored = found["updated"] + found["inserted"] + found["deleted"]
        assert (restored, found["conflicts"]["merged"]) == (
            wanted["restored"] + wanted["merged"] + wanted["nothing"], wanted["merged"]
        )  # fmt: skip
        self._agree()

    @rule()
    def rows_are_compared(self) -> None:
        said = self.workshop.retl("reconcile", "people")
        assert said.code in (0, 1), said.err
        self._agree()

    @rule(named=st.lists(keys, min_size=1, max_size=2, unique=True))
    def people_are_erased(self, named: list[str]) -> None:
        self._build()
        self.oracle.erase(named)
        self._erase(named)
        self._agree()

    @rule(named=keys, point=st.sampled_from(ERASING))
    def an_erasure_is_killed_and_repeated(self, named: str, point: str) -> None:
        self._build()
        self.oracle.erase([named])
        self._killed(["erase", *_named([named])], point)
        self._erase([named])
        self._agree()

    @rule(key=keys)
    def a_key_may_be_sent_again(self, key: str) -> None:
        if key in self.oracle.erased:
            self.oracle.erased.remove(key)
            self.workshop.json("erase", "--lift", *_named([key]))

    def _erase(self, named: list[str]) -> None:
        said = self.workshop.retl("erase", *_named(named))
        assert said.code == 0, said.err
        kept = [path for path in (self.folder / ".retl").rglob("*.parquet") if path.is_file()]
        with duckdb.connect() as connection:
            for path in kept:
                columns = [one for one, *_ in connection.execute(f"DESCRIBE FROM '{path}'").fetchall()]
                if "key" in columns:
                    of = connection.execute(f"SELECT key FROM '{path}' WHERE key IS NOT NULL").fetchall()
                    assert not {key for (key,) in of} & self.oracle.erased, path.name

    @rule(chosen=st.sampled_from(range(60)))
    def sync_is_killed(self, chosen: int) -> None:
        point = self.people.points[chosen % len(self.people.points)]
        self._build()
        upserts, deletes = self.oracle.phases()
        self.last = ""
        ended = self._killed(["sync", "--sync", "people"], point)
        sends = upserts or deletes
        assert ended.code == (-9 if sends or point == "committing" else 0), ended.stderr
        if ended.code == 0 or point == "committing":
            self.oracle.run()
        elif point == "batch_answered":  # of the first batch
            self.oracle.run(upserts=upserts, deletes=not upserts)
        self._agree()

    def _killed(self, words: list[str], point: str) -> Ended:
        """A command in a process that dies at this event, if it comes to it."""
        out, err = (self.folder / f"{name}.{next(self.kills)}" for name in ("out", "err"))
        environ = self.workshop.environ(RETL_CRASH_AT=point, **EVENTS)
        named = ["--project", str(self.folder), *words]
        return Running(forked.started(named, dict(environ), out, err), out, err).end()

    def _agree(self) -> None:
        found = {key: row for key, row in self.people.held().items() if key in KEYS}
        wanted: dict[str, Held] = {key: tuple(row) for key, row in self.oracle.target.items()}  # type: ignore[misc]
        assert found == wanted


def _named(keys: list[str]) -> list[str]:
    listed = [word for key in keys for word in ("--key", key)]
    return ["--sync", "people", *listed, "--reason", "ticket 4711"]


def agree(
    lend: Callable[[], AbstractContextManager[People]],
    folder: Path,
    machine: Callable[..., Histories] = Histories,
    examples: int = EXAMPLES,
    steps: int = STEPS,
) -> None:
    """Play random histories. One that disagrees is not made shorter: each attempt would take seconds."""
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        partial(machine, lend, folder, count()),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=(Phase.explicit, Phase.reuse, Phase.generate),
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_random_histories_agree_with_an_oracle_that_knows_all_values(
    postgres_databases: Databases, tmp_path: Path
) -> None:
    agree(partial(tables, postgres_databases), tmp_path)
