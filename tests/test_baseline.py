"""What the target holds as far as it confirmed: every end of a row, and what it makes of the key.

Deltas are Parquet as a run leaves them, batches are rows of the ledger, the relation is read in a real
workspace.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from retl.contract.judge import build
from retl.destinations.batch import ABSENT, PRESENT, UNKNOWN, WRITTEN, Kind, Outcome, RowResult
from retl.engine import baseline, mapping
from retl.engine.baseline import DELTA, Delta, Distrust
from retl.engine.change_set import ChangeSet
from retl.engine.mapping import Run
from retl.engine.workspace import Workspace
from retl.errors import LedgerError
from retl.ledger import BatchRow
from retl.observe.signals import Stop
from retl.project.definitions import Sync
from tests import duckdb_files

DAYS = [datetime(2026, 11, day, 6, tzinfo=UTC) for day in range(1, 5)]
BAD = RowResult(Kind.REJECTED, "23514", "a check says no")
BUSY = RowResult(Kind.RETRY, "LOCKED")
Row = tuple[str, str, str | None, bool, str | None]  # op, key, hash, owned, ref
Held = dict[str, tuple[str | None, bool, str | None, datetime]]  # key: hash, owned, ref, confirmed_at


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    made = Workspace(tmp_path, Stop())
    yield made
    made.close()


@pytest.fixture
def delta(tmp_path: Path) -> Any:
    """Writes a run's delta; its rows' positions are their places in the list. A `moved` key shares that of the
    row before it."""

    def write(name: str, rows: Sequence[Row], format: str = DELTA) -> Path:
        path = tmp_path / f"it's {name}.parquet"
        with duckdb_files.scratch() as con:
            con.execute(
                'CREATE TEMP TABLE p ("partition" INTEGER, batch BIGINT, row BIGINT, op VARCHAR, key VARCHAR,'
                " hash BLOB, owned BOOLEAN, ref VARCHAR, seen BLOB,"
                " dropped MAP(VARCHAR, BLOB))"
            )
            number = -1
            for op, key, digest, owned, ref in rows:
                number += op != "moved"
                blob = digest.encode() if digest is not None else None
                seen = f"seen {key}".encode()
                con.execute(
                    "INSERT INTO p VALUES (0, NULL, ?, ?, ?, ?, ?, ?, ?, NULL)",
                    [number, op, key, blob, owned, ref, seen],
                )
            file = str(path).replace("'", "''")
            con.execute(f"COPY p TO '{file}' (FORMAT parquet, KV_METADATA {{retl: '{format}'}})")
        return path

    return write


def sent(*keys: str, op: str = "insert", hash: str | None = "v1", owned: bool = False) -> list[Row]:
    return [(op, key, None if op == "delete" else hash, owned, None) for key in keys]


def batch(
    first: int, last: int, outcome: Outcome | None = None, status: Any = "done", **exceptions: RowResult
) -> BatchRow:
    return BatchRow(f"b{first}-{last}", first, "upsert", first, last, status, outcome)


def held(workspace: Workspace) -> Held:
    rows = workspace.run("SELECT key, hash, owned, ref, confirmed_at FROM baseline")
    assert len({row[0] for row in rows}) == len(rows), "a key stands there twice"
    return {
        key: (digest.decode() if digest is not None else None, owned, ref, at)
        for key, digest, owned, ref, at in rows
    }


def hashes(workspace: Workspace) -> dict[str, str | None]:
    return {key: digest for key, (digest, *_) in held(workspace).items()}


def test_without_a_run_nothing_is_held(workspace: Workspace) -> None:
    assert baseline.build(workspace, None, []) == 0
    assert held(workspace) == {}


def test_what_was_written_is_confirmed_with_its_hash_and_ours(workspace: Workspace, delta: Any) -> None:
    path = delta("1", sent("a", "b"))
    assert baseline.build(workspace, None, [Delta(path, DAYS[0], [batch(0, 1, Outcome(WRITTEN))])]) == 2
    assert held(workspace) == dict.fromkeys("ab", ("v1", True, None, DAYS[0]))


@pytest.mark.parametrize(
    ("result", "wanted"),
    [
        (WRITTEN, {"new": ("v2", True), "other": ("v2", True)}),
        (PRESENT, {"new": ("v2", True), "other": ("v2", True)}),
        (UNKNOWN, {"new": (None, True), "old": (None, True), "other": ("v2", True)}),
        (None, {"new": (None, True), "old": (None, True), "other": ("v2", True)}),
        (BAD, {"old": ("v1", True), "other": ("v2", True)}),
        (BUSY, {"old": ("v1", True), "other": ("v2", True)}),
    ],
)
def test_a_moved_key_leaves_with_the_answer_of_the_row_at_its_position(
    workspace: Workspace, delta: Any, result: RowResult | None, wanted: dict[str, tuple[str | None, bool]]
) -> None:
    first = delta("1", sent("old"))
    rows = [*sent("other", hash="v2"), *sent("new", op="update", hash="v2", owned=True)]
    second = delta("2", [*rows, *sent("old", op="moved", hash=None, owned=True)])
    outcome = Outcome(result) if result is not None else None
    batches = [batch(0, 0, Outcome(WRITTEN)), batch(1, 1, outcome)]
    deltas = [Delta(first, DAYS[0], [batch(0, 0, Outcome(WRITTEN))]), Delta(second, DAYS[1], batches)]
    baseline.build(workspace, None, deltas)
    assert {key: one[:2] for key, one in held(workspace).items()} == wanted


ENDS: Mapping[str, tuple[RowResult | None, Mapping[str, tuple[str | None, bool]]]] = {
    "written": (WRITTEN, {"new": ("v2", True), "old": ("v2", True), "theirs": ("v2", True)}),
    "unknown": (UNKNOWN, {"new": (None, True), "old": (None, True), "theirs": (None, True), "gone": (None, True)}),
    "no answer": (None, {"new": (None, True), "old": (None, True), "theirs": (None, True), "gone": (None, True)}),
    "kept": (PRESENT, {"new": ("v2", False), "old": ("v2", True), "theirs": ("v2", False), "gone": ("v1", True)}),
    "absent": (ABSENT, {"old": ("v1", True), "theirs": ("v1", False), "gone": ("v1", True)}),
    "rejected": (BAD, {"old": ("v1", True), "theirs": ("v1", False), "gone": ("v1", True)}),
    "retry": (BUSY, {"old": ("v1", True), "theirs": ("v1", False), "gone": ("v1", True)}),
}  # fmt: skip


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("end", ENDS)
def test_every_end_of_a_row_over_every_state_of_its_key(
    workspace: Workspace, delta: Any, tmp_path: Path, end: str, alone: bool
) -> None:
    """`alone`: the answers are all alike; else another row had another end."""
    result, wanted = ENDS[end]
    first = delta("1", [*sent("old", "gone"), *sent("theirs")])
    second = delta(
        "2",
        [
            ("insert", "new", "v2", False, None),
            ("update", "old", "v2", True, None),
            ("update", "theirs", "v2", False, None),
            ("delete", "gone", "v1", True, None),
            ("insert", "other", "v2", False, None),
        ],
    )
    outcome = Outcome(result) if result is not None else None
    other = Outcome(BAD) if end != "rejected" else Outcome(BUSY)
    batches = [batch(0, 3, outcome, "done" if outcome else "open")]
    if not alone:
        batches.append(batch(4, 4, other))
    deltas = [
        Delta(first, DAYS[0], [batch(0, 1, Outcome(WRITTEN)), batch(2, 2, Outcome(PRESENT))]),
        Delta(second, DAYS[1], batches),
    ]
    count = baseline.build(workspace, None, deltas)
    found = held(workspace)
    assert count == len(found)
    assert {key: row[:2] for key, row in found.items()} == wanted
    moved = DAYS[1] if end in ("written", "unknown", "no answer", "kept") else DAYS[0]
    assert {row[3] for row in found.values()} == {moved}


def test_rows_no_batch_covers_were_never_attempted(workspace: Workspace, delta: Any) -> None:
    path = delta("1", sent("a", "b", "c", "d"))
    baseline.build(
        workspace,
        None,
        [Delta(path, DAYS[0], [batch(1, 1, Outcome(WRITTEN)), batch(3, 3, Outcome(PRESENT))])],
    )
    assert hashes(workspace) == {"b": "v1", "d": "v1"}
    baseline.build(workspace, None, [Delta(path, DAYS[0], [])])
    assert held(workspace) == {}
    baseline.build(workspace, None, [Delta(path, DAYS[0], [batch(1, 2, Outcome(WRITTEN))])])
    assert hashes(workspace) == {"b": "v1", "c": "v1"}


def test_single_rows_have_an_answer_of_their_own(workspace: Workspace, delta: Any) -> None:
    answers = {0: UNKNOWN, 2: BAD, 3: PRESENT, 4: ABSENT, 5: RowResult(Kind.WRITTEN, ref="id-5")}
    path = delta("1", sent(*"xabcdefg"))
    batches = [batch(0, 0, Outcome(WRITTEN)), batch(1, 7, Outcome(WRITTEN, answers))]
    baseline.build(workspace, None, [Delta(path, DAYS[0], batches)])
    assert held(workspace) == {
        "x": ("v1", True, None, DAYS[0]),
        "a": (None, True, None, DAYS[0]),
        "b": ("v1", True, None, DAYS[0]),
        "d": ("v1", False, None, DAYS[0]),
        "f": ("v1", True, "id-5", DAYS[0]),
        "g": ("v1", True, None, DAYS[0]),
    }


def test_the_targets_own_id_is_kept_until_it_says_another(workspace: Workspace, delta: Any) -> None:
    first = delta("1", sent("a", "b", "c"))
    told = {row: RowResult(Kind.WRITTEN, ref=f"id-{row}") for row in range(3)}
    deltas = [Delta(first, DAYS[0], [batch(0, 2, Outcome(WRITTEN, told))])]
    again = [("update", key, "v2", True, f"id-{row}") for row, key in enumerate("ab")]
    second = delta("2", again)
    new = {1: RowResult(Kind.WRITTEN, ref="id-9")}
    deltas.append(Delta(second, DAYS[1], [batch(0, 1, Outcome(WRITTEN, new))]))
    baseline.build(workspace, None, deltas)
    assert {key: ref for key, (_, _, ref, _) in held(workspace).items()} == {
        "a": "id-0",
        "b": "id-9",
        "c": "id-2",
    }


def test_halves_count_and_the_batch_they_came_from_does_not(workspace: Workspace, delta: Any) -> None:
    path = delta("1", sent("a", "b"))
    told = Outcome(UNKNOWN, {0: BAD})  # of the whole: must not be believed
    batches = [batch(0, 1, told, "split"), batch(0, 0, Outcome(WRITTEN)), batch(1, 1, Outcome(BAD))]
    baseline.build(workspace, None, [Delta(path, DAYS[0], batches)])
    assert hashes(workspace) == {"a": "v1"}


def test_the_newest_run_wins_and_a_deleted_key_may_come_back(workspace: Workspace, delta: Any) -> None:
    done = [batch(0, 0, Outcome(WRITTEN))]
    deltas = [
        Delta(delta("1", sent("a")), DAYS[0], done),
        Delta(delta("2", sent("a", op="update", hash="v2", owned=True)), DAYS[1], done),
        Delta(delta("3", sent("a", op="delete", owned=True)), DAYS[2], done),
        Delta(delta("4", sent("a", hash="v4")), DAYS[3], done),
    ]
    wanted: list[dict[str, str | None]] = [{"a": "v1"}, {"a": "v2"}, {}, {"a": "v4"}]
    for number, found in enumerate(wanted, start=1):
        assert baseline.build(workspace, None, deltas[:number]) == len(found)
        assert hashes(workspace) == found


def test_small_deltas_read_at_once_are_what_they_are_one_after_the_other(
    workspace: Workspace, delta: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs with answers of every kind, some with several, on few keys; some found that the target had lost."""
    chance = random.Random(7)
    results = (WRITTEN, WRITTEN, PRESENT, ABSENT, UNKNOWN, BAD, None)
    deltas = []
    for number in range(24):
        keys = chance.sample("abcdef", chance.randint(1, 4))
        rows = [one for key in keys for one in sent(key, op=chance.choice(["insert", "update", "delete"]))]
        ends = [chance.choice(results)] * len(keys)
        if number % 6 == 5:
            ends = [chance.choice(results) for _ in keys]
        batches = [batch(n, n, Outcome(end) if end else None) for n, end in enumerate(ends)]
        lost = Distrust(number - 2, back=["a"], own=number % 2 > 0) if number % 9 == 8 else None
        deltas.append(Delta(delta(str(number), rows), DAYS[number % 4], batches, number, lost))
    assert len(list(baseline._groups(deltas))) < len(deltas) / 2
    for count in (14, 24):
        found = []
        for at_once in (baseline.AT_ONCE, 0):
            with monkeypatch.context() as patch:
                patch.setattr(baseline, "AT_ONCE", at_once)
                baseline.build(workspace, None, deltas[:count])
                found.append(workspace.run("SELECT * FROM entries ORDER BY key"))
        assert found[0] == found[1]


def test_a_first_run_that_only_deletes_leaves_nothing(workspace: Workspace, delta: Any) -> None:
    path = delta("1", [*sent("a", op="delete"), *sent("b", op="delete")])
    assert baseline.build(workspace, None, [Delta(path, DAYS[0], [batch(0, 1, Outcome(WRITTEN))])]) == 0


def test_a_first_part_whose_answers_are_alike_is_read_where_it_lies(workspace: Workspace, delta: Any) -> None:
    path = delta("1", sent("a", "b"))
    baseline.build(workspace, None, [Delta(path, DAYS[0], [batch(0, 1, Outcome(WRITTEN))])])
    assert workspace.one("SELECT count(*) FROM overlay") == (0,)
    mixed = [batch(0, 0, Outcome(WRITTEN)), batch(1, 1, Outcome(PRESENT))]
    baseline.build(workspace, None, [Delta(path, DAYS[0], mixed)])
    assert workspace.one("SELECT count(*) FROM overlay") == (2,)
    assert hashes(workspace) == {"a": "v1", "b": "v1"}


def test_a_snapshot_is_older_than_every_delta_also_than_the_first(
    workspace: Workspace, delta: Any, tmp_path: Path
) -> None:
    done = [batch(0, 1, Outcome(WRITTEN))]
    baseline.build(workspace, None, [Delta(delta("1", sent("a", "b")), DAYS[0], done)])
    snapshot = tmp_path / "it's a snapshot.parquet"
    baseline.compact(workspace, snapshot)
    assert stat.S_IMODE(snapshot.stat().st_mode) == 0o600
    assert baseline.build(workspace, snapshot, []) == 2
    assert held(workspace) == dict.fromkeys("ab", ("v1", True, None, DAYS[0]))
    second = [("update", "b", "v2", True, None), ("insert", "c", "v2", False, None)]
    deltas = [Delta(delta("2", second), DAYS[1], done)]
    assert baseline.build(workspace, snapshot, deltas) == 3
    assert held(workspace) == {
        "a": ("v1", True, None, DAYS[0]),
        "b": ("v2", True, None, DAYS[1]),
        "c": ("v2", True, None, DAYS[1]),
    }
    deltas.append(
        Delta(delta("3", sent("a", op="delete", owned=True)), DAYS[2], [batch(0, 0, Outcome(WRITTEN))])
    )
    assert baseline.build(workspace, snapshot, deltas) == 2
    before = held(workspace)
    again = tmp_path / "again.parquet"
    baseline.compact(workspace, again)
    assert baseline.build(workspace, again, []) == 2
    assert held(workspace) == before


def test_a_snapshot_is_nobody_elses_to_read(workspace: Workspace, tmp_path: Path) -> None:
    baseline.build(workspace, None, [])
    baseline.compact(workspace, tmp_path / "snapshot.parquet")
    assert stat.S_IMODE((tmp_path / "snapshot.parquet").stat().st_mode) == 0o600
    assert baseline.build(workspace, tmp_path / "snapshot.parquet", []) == 0


def test_a_delta_is_nobody_elses_to_read_and_owns_only_what_is_known_to_be_ours(
    workspace: Workspace, tmp_path: Path
) -> None:
    workspace.run(
        "CREATE TABLE changes AS SELECT * FROM (VALUES"
        " (0, 'update', 'a', 'v'::BLOB, true, 'id', NULL, NULL, 1),"
        " (1, 'insert', 'b', 'v'::BLOB, NULL, NULL, NULL, NULL, NULL),"
        " (2, 'update', 'c', 'v'::BLOB, false, NULL, 's'::BLOB, MAP {'x': 'd'::BLOB}, 1)"
        ") AS c(pos, op, key, hash, owned, ref, seen, dropped, f0)"
    )
    path = tmp_path / "delta.parquet"
    definition = Sync.model_validate(
        {
            "name": "s",
            "source": {"table": "mart"},
            "key": ["k"],
            "fields": {"n": {"column": "n", "nulls": "keep"}},
            "destination": {},
        }
    )
    contract = build(None, {"k": "VARCHAR", "n": "BIGINT"}, Path(), ("k",), "UTC")
    field_map = mapping.build(definition, contract, Run("r", DAYS[0]), state_id="s", timezone="UTC")
    change_set = ChangeSet(workspace, field_map)
    change_set.write_delta(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert workspace.run(f"SELECT * FROM read_parquet('{path}') ORDER BY row") == [
        (0, None, 0, "update", "a", b"v", True, "id", None, None, []),
        (0, None, 1, "insert", "b", b"v", False, None, None, None, ["n"]),
        (0, None, 2, "update", "c", b"v", False, None, b"s", {"x": b"d"}, []),
    ]
    change_set.write_delta(path, compares=True)  # what somebody else made never becomes ours
    owned = workspace.run(f"SELECT owned FROM read_parquet('{path}') ORDER BY row")
    assert owned == [(True,), (False,), (None,)]
    assert workspace.run(f"SELECT name, type FROM (DESCRIBE FROM '{path}') AS d(name, type)") == [
        ("partition", "INTEGER"),
        ("batch", "BIGINT"),
        ("row", "BIGINT"),
        ("op", "VARCHAR"),
        ("key", "VARCHAR"),
        ("hash", "BLOB"),
        ("owned", "BOOLEAN"),
        ("ref", "VARCHAR"),
        ("seen", "BLOB"),
        ("dropped", "MAP(VARCHAR, BLOB)"),
        ("unsent", "VARCHAR[]"),
    ]


def test_what_the_target_held_stays_for_rows_that_were_not_written_and_outlives_compaction(
    workspace: Workspace, delta: Any, tmp_path: Path
) -> None:
    answers = [batch(0, 0, Outcome(PRESENT)), batch(1, 1), batch(2, 2, Outcome(WRITTEN))]
    baseline.build(workspace, None, [Delta(delta("1", sent("a", "b", "c")), DAYS[0], answers)])
    known = [("a", b"seen a"), ("b", None), ("c", None)]  # of c nothing was returned
    assert workspace.run("SELECT key, seen FROM baseline ORDER BY key") == known
    snapshot = tmp_path / "snapshot.parquet"
    baseline.compact(workspace, snapshot)
    assert workspace.run(f"SELECT name, type FROM (DESCRIBE FROM '{snapshot}') AS d(name, type)") == [
        ("key", "VARCHAR"),
        ("gone", "BOOLEAN"),
        ("hash", "BLOB"),
        ("owned", "BOOLEAN"),
        ("ref", "VARCHAR"),
        ("confirmed_at", "TIMESTAMP WITH TIME ZONE"),
        ("seen", "BLOB"),
        ("dropped", "MAP(VARCHAR, BLOB)"),
        ("epoch", "BIGINT"),
    ]
    baseline.build(workspace, snapshot, [])
    assert workspace.run("SELECT key, seen FROM baseline ORDER BY key") == known


@pytest.mark.parametrize("format", ["delta 2", "delta 4", "snapshot 2"])
def test_a_file_of_another_format_is_refused_with_the_way_out(
    workspace: Workspace, delta: Any, tmp_path: Path, format: str
) -> None:
    path = delta("1", sent("a"), format)
    with pytest.raises(LedgerError) as caught:
        baseline.build(workspace, None, [Delta(path, DAYS[0], [batch(0, 0, Outcome(WRITTEN))])])
    assert (caught.value.code, "retl state adopt" in str(caught.value.hint)) == ("STATE_FORMAT", True)


@pytest.mark.parametrize("left", [0, 60, -1])
def test_a_file_that_was_cut_off_is_named(workspace: Workspace, delta: Any, left: int) -> None:
    answers = [batch(0, 0, Outcome(WRITTEN))]
    whole = Delta(delta("1", sent("a")), DAYS[0], answers)
    path = delta("2", sent("b"))
    os.truncate(path, left if left >= 0 else path.stat().st_size - 1)
    with pytest.raises(LedgerError) as caught:
        baseline.build(workspace, None, [whole, Delta(path, DAYS[1], answers, 1)])
    assert caught.value.code == "STATE_UNREADABLE"
    assert caught.value.message.startswith(f"{path.name}: ")
    assert "backup" in str(caught.value.hint)


def test_a_file_that_names_no_format_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "former.parquet"
    workspace.run(f"COPY (SELECT 0 AS row, 'insert' AS op, 'a' AS key) TO '{path}'")
    for snapshot, deltas in ((path, []), (None, [Delta(path, DAYS[0], [])])):
        with pytest.raises(LedgerError) as caught:
            baseline.build(workspace, snapshot, deltas)
        assert caught.value.code == "STATE_FORMAT"


@pytest.mark.parametrize(
    ("snapshot", "deltas", "due"),
    [
        (100, [20], False),
        (100, [21], True),
        (100, [10, 11], True),
        (0, [1], True),
        (1000, [1] * 16, False),
        (1000, [1] * 17, True),
    ],
)
def test_a_snapshot_is_due_past_a_fifth_or_past_sixteen_deltas(
    snapshot: int, deltas: list[int], due: bool
) -> None:
    assert baseline.due(snapshot, deltas) is due


@pytest.mark.parametrize(
    ("batches", "alike"),
    [
        ([], False),
        ([batch(0, 1, Outcome(WRITTEN))], True),
        ([batch(2, 3, Outcome(WRITTEN)), batch(0, 1, Outcome(WRITTEN))], True),
        ([batch(0, 1, Outcome(WRITTEN)), batch(3, 3, Outcome(WRITTEN))], False),
        ([batch(0, 1, Outcome(WRITTEN)), batch(2, 3, Outcome(BAD))], False),
        ([batch(0, 1, Outcome(WRITTEN, {0: BAD}))], False),
        ([batch(0, 1, None, "open"), batch(2, 2, Outcome(UNKNOWN))], True),
        ([batch(0, 1, Outcome(WRITTEN, {0: BAD}), "split"), batch(0, 0, Outcome(BAD)), batch(1, 1, Outcome(BAD))], True),
        ([batch(0, 0, Outcome(BAD)), batch(1, 1, Outcome(RowResult(Kind.REJECTED, "23514", "another")))], False),
        ([batch(0, 0, Outcome(PRESENT)), batch(1, 1, Outcome(ABSENT))], False),
    ],
)  # fmt: skip
def test_answers_are_alike_where_every_row_without_a_gap_met_one_end(
    batches: list[BatchRow], alike: bool
) -> None:
    assert baseline.alike(batches) is alike


def told(workspace: Workspace, rows: str, batches: Sequence[BatchRow]) -> list[tuple[Any, ...]]:
    names = "row, kind, settled, code, reason, new_ref"
    return workspace.run(f"SELECT {names} FROM ({baseline.answered(workspace, rows, batches)}) ORDER BY row")


def test_every_row_of_a_batch_is_told_its_answer(workspace: Workspace) -> None:
    rows = "(SELECT range AS row FROM range(9))"
    assert told(workspace, rows, [batch(2, 3, Outcome(BAD)), batch(4, 4, Outcome(BAD))]) == [
        (row, "rejected", True, "23514", "a check says no", None) for row in (2, 3, 4)
    ]
    assert told(workspace, rows, [batch(7, 8, None, "open")]) == [
        (row, "unknown", True, None, None, None) for row in (7, 8)
    ]
    mixed = [
        batch(7, 7, None, "open"),
        batch(0, 3, Outcome(BAD, {1: RowResult(Kind.WRITTEN, ref="id-1"), 2: ABSENT})),
        batch(4, 4, Outcome(PRESENT)),
        batch(5, 5, Outcome(WRITTEN)),
    ]
    assert told(workspace, rows, mixed) == [
        (0, "rejected", True, "23514", "a check says no", None),
        (1, "written", True, None, None, "id-1"),
        (2, "skipped", False, None, None, None),
        (3, "rejected", True, "23514", "a check says no", None),
        (4, "skipped", True, None, None, None),
        (5, "written", True, None, None, None),
        (7, "unknown", True, None, None, None),
    ]


def test_a_batch_that_answers_alike_but_for_a_quote_is_told_exactly(workspace: Workspace) -> None:
    odd = Outcome(RowResult(Kind.REJECTED, "it's", "NULL"))
    assert told(workspace, "(SELECT 0 AS row)", [batch(0, 0, odd)]) == [
        (0, "rejected", True, "it's", "NULL", None)
    ]


def test_the_columns_keep_their_types_whether_the_answers_are_alike_or_not(workspace: Workspace) -> None:
    rows = "(SELECT range AS row FROM range(3))"
    one, other = [batch(0, 2, Outcome(WRITTEN))], [batch(0, 1, Outcome(WRITTEN)), batch(2, 2, Outcome(BAD))]
    found = [
        [
            row[1]
            for row in workspace.run(
                f"DESCRIBE SELECT * FROM ({baseline.answered(workspace, rows, batches)})"
            )
        ]
        for batches in (one, other)
    ]
    assert found[0] == found[1] == ["BIGINT", "VARCHAR", "BOOLEAN", "BOOLEAN", *["VARCHAR"] * 3]


def test_what_got_no_answer_is_ours_unless_it_may_have_been_there_before(
    workspace: Workspace, delta: Any
) -> None:
    path = delta("p", sent("a", "b", "c", "d"))
    alone = {"1": UNKNOWN, "3": UNKNOWN}
    for operation, ours in (("insert_only", False), ("upsert", True)):
        alike = BatchRow("b", 0, operation, 0, 3, "done", Outcome(UNKNOWN))
        single = BatchRow(
            "b", 0, operation, 0, 3, "done", Outcome(WRITTEN, {int(n): r for n, r in alone.items()})
        )
        for of_batch, unanswered in ((alike, "abcd"), (single, "bd")):
            baseline.build(workspace, None, [Delta(path, DAYS[0], [of_batch])])
            assert {key for key, (_, owned, *_) in held(workspace).items() if not owned} == (
                set() if ours else set(unanswered)
            )


def test_a_delete_without_an_answer_makes_nothing_ours(workspace: Workspace, delta: Any) -> None:
    path = delta("p", [*sent("a", op="delete"), *sent("b", op="delete", owned=True)])
    baseline.build(
        workspace, None, [Delta(path, DAYS[0], [BatchRow("b", 0, "delete", 0, 1, "done", Outcome(UNKNOWN))])]
    )
    assert {key: owned for key, (_, owned, *_) in held(workspace).items()} == {"a": False, "b": True}
