"""Random histories of mart changes, edits by others, runs and killed runs, held against an oracle that knows all
values: what the target holds and every number agree after every run."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.commands import Workshop
from tests.crashes import Running, _forked
from tests.servers import Database, Databases
from tests.test_conflicts import NEW, OLD, STRATEGIES, TABLE, Held, edit, held, numbers, project, run

KEYS = "abcd"  # so few that their loss is not the target's
OTHERS = 400
EXAMPLES, STEPS = (25, 60) if os.environ.get("RETL_TEST_ALL") else (2, 14)
NEVER = object()  # no value is equal to it
# Where a run is killed: before anything is sent, between COMMIT and its answer, after all answers.
POINTS = ("delta_written", "batches_opened", "batch_answered", "committing")
keys, phones, scores = st.sampled_from(KEYS), st.sampled_from("pqr"), st.integers(1, 2)


@dataclass
class Left:
    """What retl knows of a key: the mart's row that it last dealt with, what it left in each column (None: not
    known), and whether it may delete the row."""

    dealt: tuple[str, int]
    seen: list[Any] | None
    note: Any
    owned: bool


@dataclass
class Oracle:
    """Values where retl has hashes and digests."""

    strategy: str
    mart: dict[str, tuple[str, int]] = field(default_factory=dict)
    newer: set[str] = field(default_factory=set)  # keys whose mart row is later than the target's
    target: dict[str, list[Any]] = field(default_factory=dict)  # phone, score, note
    left: dict[str, Left] = field(default_factory=dict)

    def run(self, *, upserts: bool = True, deletes: bool = True, told: bool = True) -> Counter[str]:
        """What becomes of each row, as numbers; of phases that are not carried out nothing becomes. Without
        `told` the answers are lost."""
        ends = Counter[str]()
        due = {k: m for k, m in self.mart.items() if self._due(k, m)}
        gone = [k for k, one in self.left.items() if one.owned and k not in self.mart]
        ends["unchanged"] = OTHERS + len(self.mart) - len(due)
        for key, row in due.items() if upserts else ():
            ends[self._upsert(key, row, told)] += 1
        for key in gone if deletes else ():
            ends[self._delete(key)] += 1
        return ends

    def phases(self) -> tuple[bool, bool]:
        """Whether a run would send upserts, and deletes."""
        gone = [k for k, one in self.left.items() if one.owned and k not in self.mart]
        return any(self._due(k, m) for k, m in self.mart.items()), bool(gone)

    def _due(self, key: str, row: tuple[str, int]) -> bool:
        known = self.left.get(key)
        return known is None or known.dealt != row or known.seen is None

    def _upsert(self, key: str, row: tuple[str, int], told: bool) -> str:
        known, there = self.left.get(key), self.target.get(key)
        seen = [NEVER, NEVER] if known is None or known.seen is None else list(known.seen)
        if there is None:
            if known is None:
                self.target[key] = [*row, None]
                self.left[key] = Left(row, list(row) if told else None, None, True)
                return "inserted"
            if self.strategy == "manual":
                return "queued"
            known.dealt, known.seen = row, seen
            return "kept"
        differs = [there[i] != row[i] for i in (0, 1)]
        clash = [differs[i] and there[i] != seen[i] for i in (0, 1)]
        changed = [row[i] != seen[i] for i in (0, 1)]
        wins = [self.strategy == "newest_wins" and changed[i] and key in self.newer for i in (0, 1)]
        if self.strategy == "manual" and any(clash[i] and changed[i] for i in (0, 1)):
            return "queued"
        kept = [clash[i] and not wins[i] for i in (0, 1)]
        writes = any(differs[i] and not kept[i] for i in (0, 1))
        for i in (0, 1):
            there[i] = there[i] if kept[i] else row[i]
        end = ("merged" if writes else "kept") if any(kept) else "written"
        now: list[Any] | None = [seen[i] if kept[i] else there[i] for i in (0, 1)]
        note: Any = there[2]
        if not told:  # of rows that were left alone at least what was known stays
            now, note = (seen, known.note if known else NEVER) if end == "kept" else (None, NEVER)
        self.left[key] = Left(row, now, note, known.owned if known else False)
        if end == "kept":
            return "kept"
        return ("inserted" if known is None else "updated") + ("+" if end == "merged" else "")

    def _delete(self, key: str) -> str:
        known, there = self.left[key], self.target.get(key)
        if there is not None and (known.seen is None or there[:2] != known.seen or there[2] != known.note):
            if self.strategy == "manual":
                return "delete queued"
            known.owned, known.seen = False, known.seen or [NEVER, NEVER]
            return "delete kept"
        self.target.pop(key, None)
        del self.left[key]
        return "deleted"


def expected(ends: Counter[str]) -> tuple[tuple[int, ...], ...]:
    merged = ends["inserted+"] + ends["updated+"]
    return (
        (ends["unchanged"], ends["inserted"] + ends["inserted+"], ends["updated"] + ends["updated+"],
         ends["kept"], ends["queued"]),
        (merged, ends["kept"], ends["queued"]),
        (ends["deleted"], ends["delete kept"], ends["delete queued"]),
    )  # fmt: skip


class Histories(RuleBasedStateMachine):
    def __init__(self, databases: Databases, folder: Path, numbers: count[int]) -> None:
        super().__init__()
        self.lent = databases.lend()
        self.database: Database = self.lent.__enter__()
        self.folder = folder / str(next(numbers))
        self.kills = count()

    def teardown(self) -> None:
        self.lent.__exit__(None, None, None)

    @initialize(strategy=st.sampled_from(["target_wins", "newest_wins", "manual"]))
    def begin(self, strategy: str) -> None:
        self.oracle = Oracle(strategy)
        with self.database.connect() as connection:
            connection.execute(TABLE)
        guards = "{max_row_drop: 1}"
        self.workshop: Workshop = project(self.folder, self.database, STRATEGIES[strategy], guards=guards)
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
            edit(self.database, key, "DELETE")
        else:
            self.oracle.target[key] = [phone, 1, None]
            edit(self.database, key, f"INSERT ('{phone}', 1)")

    def _edit(self, key: str, at: int, column: str, value: Any) -> None:
        if key in self.oracle.target:
            self.oracle.target[key][at] = value
            text = "NULL" if value is None else f"'{value}'"
            edit(self.database, key, f"SET {column} = {text}")

    @rule()
    def sync(self) -> None:
        self._build()
        wanted = expected(self.oracle.run())
        found = run(self.workshop)
        assert found["error"] is None, found["error"]
        assert numbers(found) == wanted
        self._agree()

    @rule(point=st.sampled_from(POINTS))
    def sync_is_killed(self, point: str) -> None:
        self._build()
        upserts, deletes = self.oracle.phases()
        out, err = (self.folder / f"{name}.{next(self.kills)}" for name in ("out", "err"))
        environ = self.workshop.environ(RETL_CRASH_AT=point, RETL_LOG_LEVEL="debug")
        words = ["--project", str(self.folder), "sync", "--sync", "people"]
        ended = Running(_forked(words, dict(environ), out, err), out, err).end()
        sends = upserts or deletes
        assert ended.code == (-9 if sends or point == "committing" else 0), ended.stderr
        if ended.code == 0 or point == "committing":
            self.oracle.run()
        elif point == "batch_answered":  # of the first batch
            self.oracle.run(upserts=upserts, deletes=not upserts, told=False)
        self._agree()

    def _agree(self) -> None:
        found = {key: row for key, row in held(self.database).items() if key in KEYS}
        wanted: dict[str, Held] = {key: tuple(row) for key, row in self.oracle.target.items()}  # type: ignore[misc]
        assert found == wanted


def test_random_histories_agree_with_an_oracle_that_knows_all_values(
    postgres_databases: Databases, tmp_path: Path
) -> None:
    machine = partial(Histories, postgres_databases, tmp_path, count())
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
