"""What the target holds as far as it confirmed: every end of a row, and what it makes of the key.

Parts are Parquet as a run leaves them, batches are rows of the ledger, the relation is read in a real
workspace.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from retl.destinations.batch import ABSENT, KEPT, UNKNOWN, WRITTEN, Kind, Outcome, RowResult
from retl.engine import baseline
from retl.engine.baseline import Layer
from retl.engine.change_set import ChangeSet
from retl.engine.workspace import Workspace
from retl.ledger import BatchRow
from retl.observe.signals import Stop

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
def part(tmp_path: Path) -> Any:
    """Writes a run's part; its rows' positions are their places in the list."""

    def write(name: str, rows: Sequence[Row]) -> Path:
        path = tmp_path / f"it's {name}.parquet"
        with duckdb.connect() as con:
            con.execute(
                "CREATE TABLE p (row BIGINT, op VARCHAR, key VARCHAR, hash BLOB, owned BOOLEAN, ref VARCHAR)"
            )
            for number, (op, key, digest, owned, ref) in enumerate(rows):
                blob = digest.encode() if digest is not None else None
                con.execute("INSERT INTO p VALUES (?, ?, ?, ?, ?, ?)", [number, op, key, blob, owned, ref])
            con.execute(f"COPY p TO '{str(path).replace(chr(39), chr(39) * 2)}' (FORMAT parquet)")
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
    assert baseline.lay(workspace, None, []) == 0
    assert held(workspace) == {}


def test_what_was_written_is_confirmed_with_its_hash_and_ours(workspace: Workspace, part: Any) -> None:
    path = part("1", sent("a", "b"))
    assert baseline.lay(workspace, None, [Layer(path, DAYS[0], [batch(0, 1, Outcome(WRITTEN))])]) == 2
    assert held(workspace) == dict.fromkeys("ab", ("v1", True, None, DAYS[0]))


ENDS: Mapping[str, tuple[RowResult | None, Mapping[str, tuple[str | None, bool]]]] = {
    "written": (WRITTEN, {"new": ("v2", True), "old": ("v2", True), "theirs": ("v2", True)}),
    "unknown": (UNKNOWN, {"new": (None, True), "old": (None, True), "theirs": (None, True), "gone": (None, True)}),
    "no answer": (None, {"new": (None, True), "old": (None, True), "theirs": (None, True), "gone": (None, True)}),
    "kept": (KEPT, {"new": ("v2", False), "old": ("v2", True), "theirs": ("v2", False), "gone": ("v1", True)}),
    "absent": (ABSENT, {"old": ("v1", True), "theirs": ("v1", False), "gone": ("v1", True)}),
    "rejected": (BAD, {"old": ("v1", True), "theirs": ("v1", False), "gone": ("v1", True)}),
    "retry": (BUSY, {"old": ("v1", True), "theirs": ("v1", False), "gone": ("v1", True)}),
}  # fmt: skip


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("end", ENDS)
def test_every_end_of_a_row_over_every_state_of_its_key(
    workspace: Workspace, part: Any, tmp_path: Path, end: str, alone: bool
) -> None:
    """`alone`: the answers are all alike; else another row had another end."""
    result, wanted = ENDS[end]
    first = part("1", [*sent("old", "gone"), *sent("theirs")])
    second = part(
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
    layers = [
        Layer(first, DAYS[0], [batch(0, 1, Outcome(WRITTEN)), batch(2, 2, Outcome(KEPT))]),
        Layer(second, DAYS[1], batches),
    ]
    count = baseline.lay(workspace, None, layers)
    found = held(workspace)
    assert count == len(found)
    assert {key: row[:2] for key, row in found.items()} == wanted
    moved = DAYS[1] if end in ("written", "unknown", "no answer", "kept") else DAYS[0]
    assert {row[3] for row in found.values()} == {moved}


def test_rows_no_batch_covers_were_never_attempted(workspace: Workspace, part: Any) -> None:
    path = part("1", sent("a", "b", "c", "d"))
    baseline.lay(
        workspace, None, [Layer(path, DAYS[0], [batch(1, 1, Outcome(WRITTEN)), batch(3, 3, Outcome(KEPT))])]
    )
    assert hashes(workspace) == {"b": "v1", "d": "v1"}
    baseline.lay(workspace, None, [Layer(path, DAYS[0], [])])
    assert held(workspace) == {}
    baseline.lay(workspace, None, [Layer(path, DAYS[0], [batch(1, 2, Outcome(WRITTEN))])])
    assert hashes(workspace) == {"b": "v1", "c": "v1"}


def test_single_rows_have_an_answer_of_their_own(workspace: Workspace, part: Any) -> None:
    answers = {0: UNKNOWN, 2: BAD, 3: KEPT, 4: ABSENT, 5: RowResult(Kind.WRITTEN, ref="id-5")}
    path = part("1", sent(*"xabcdefg"))
    batches = [batch(0, 0, Outcome(WRITTEN)), batch(1, 7, Outcome(WRITTEN, answers))]
    baseline.lay(workspace, None, [Layer(path, DAYS[0], batches)])
    assert held(workspace) == {
        "x": ("v1", True, None, DAYS[0]),
        "a": (None, True, None, DAYS[0]),
        "b": ("v1", True, None, DAYS[0]),
        "d": ("v1", False, None, DAYS[0]),
        "f": ("v1", True, "id-5", DAYS[0]),
        "g": ("v1", True, None, DAYS[0]),
    }


def test_the_targets_own_id_is_kept_until_it_says_another(workspace: Workspace, part: Any) -> None:
    first = part("1", sent("a", "b", "c"))
    told = {row: RowResult(Kind.WRITTEN, ref=f"id-{row}") for row in range(3)}
    layers = [Layer(first, DAYS[0], [batch(0, 2, Outcome(WRITTEN, told))])]
    again = [("update", key, "v2", True, f"id-{row}") for row, key in enumerate("ab")]
    second = part("2", again)
    new = {1: RowResult(Kind.WRITTEN, ref="id-9")}
    layers.append(Layer(second, DAYS[1], [batch(0, 1, Outcome(WRITTEN, new))]))
    baseline.lay(workspace, None, layers)
    assert {key: ref for key, (_, _, ref, _) in held(workspace).items()} == {
        "a": "id-0",
        "b": "id-9",
        "c": "id-2",
    }


def test_halves_count_and_the_batch_they_came_from_does_not(workspace: Workspace, part: Any) -> None:
    path = part("1", sent("a", "b"))
    told = Outcome(UNKNOWN, {0: BAD})  # of the whole: must not be believed
    batches = [batch(0, 1, told, "split"), batch(0, 0, Outcome(WRITTEN)), batch(1, 1, Outcome(BAD))]
    baseline.lay(workspace, None, [Layer(path, DAYS[0], batches)])
    assert hashes(workspace) == {"a": "v1"}


def test_the_newest_run_wins_and_a_deleted_key_may_come_back(workspace: Workspace, part: Any) -> None:
    done = [batch(0, 0, Outcome(WRITTEN))]
    layers = [
        Layer(part("1", sent("a")), DAYS[0], done),
        Layer(part("2", sent("a", op="update", hash="v2", owned=True)), DAYS[1], done),
        Layer(part("3", sent("a", op="delete", owned=True)), DAYS[2], done),
        Layer(part("4", sent("a", hash="v4")), DAYS[3], done),
    ]
    wanted: list[dict[str, str | None]] = [{"a": "v1"}, {"a": "v2"}, {}, {"a": "v4"}]
    for number, found in enumerate(wanted, start=1):
        assert baseline.lay(workspace, None, layers[:number]) == len(found)
        assert hashes(workspace) == found


def test_a_first_run_that_only_deletes_leaves_nothing(workspace: Workspace, part: Any) -> None:
    path = part("1", [*sent("a", op="delete"), *sent("b", op="delete")])
    assert baseline.lay(workspace, None, [Layer(path, DAYS[0], [batch(0, 1, Outcome(WRITTEN))])]) == 0


def test_a_first_part_whose_answers_are_alike_is_read_where_it_lies(workspace: Workspace, part: Any) -> None:
    path = part("1", sent("a", "b"))
    baseline.lay(workspace, None, [Layer(path, DAYS[0], [batch(0, 1, Outcome(WRITTEN))])])
    assert workspace.one("SELECT count(*) FROM overlay") == (0,)
    mixed = [batch(0, 0, Outcome(WRITTEN)), batch(1, 1, Outcome(KEPT))]
    baseline.lay(workspace, None, [Layer(path, DAYS[0], mixed)])
    assert workspace.one("SELECT count(*) FROM overlay") == (2,)
    assert hashes(workspace) == {"a": "v1", "b": "v1"}


def test_a_base_lies_under_all_parts_also_under_the_first(
    workspace: Workspace, part: Any, tmp_path: Path
) -> None:
    done = [batch(0, 1, Outcome(WRITTEN))]
    baseline.lay(workspace, None, [Layer(part("1", sent("a", "b")), DAYS[0], done)])
    base = tmp_path / "it's a base.parquet"
    baseline.compact(workspace, base)
    assert stat.S_IMODE(base.stat().st_mode) == 0o600
    assert baseline.lay(workspace, base, []) == 2
    assert held(workspace) == dict.fromkeys("ab", ("v1", True, None, DAYS[0]))
    second = [("update", "b", "v2", True, None), ("insert", "c", "v2", False, None)]
    layers = [Layer(part("2", second), DAYS[1], done)]
    assert baseline.lay(workspace, base, layers) == 3
    assert held(workspace) == {
        "a": ("v1", True, None, DAYS[0]),
        "b": ("v2", True, None, DAYS[1]),
        "c": ("v2", True, None, DAYS[1]),
    }
    layers.append(
        Layer(part("3", sent("a", op="delete", owned=True)), DAYS[2], [batch(0, 0, Outcome(WRITTEN))])
    )
    assert baseline.lay(workspace, base, layers) == 2
    before = held(workspace)
    again = tmp_path / "again.parquet"
    baseline.compact(workspace, again)
    assert baseline.lay(workspace, again, []) == 2
    assert held(workspace) == before


def test_a_compacted_base_is_nobody_elses_to_read(workspace: Workspace, tmp_path: Path) -> None:
    baseline.lay(workspace, None, [])
    baseline.compact(workspace, tmp_path / "base.parquet")
    assert stat.S_IMODE((tmp_path / "base.parquet").stat().st_mode) == 0o600
    assert baseline.lay(workspace, tmp_path / "base.parquet", []) == 0


def test_a_part_is_nobody_elses_to_read_and_owns_only_what_is_known_to_be_ours(
    workspace: Workspace, tmp_path: Path
) -> None:
    workspace.run(
        "CREATE TABLE changes AS SELECT * FROM (VALUES (0, 'update', 'a', 'v'::BLOB, true, 'id'),"
        " (1, 'insert', 'b', 'v'::BLOB, NULL, NULL)) AS c(pos, op, key, hash, owned, ref)"
    )
    path = tmp_path / "part.parquet"
    change_set: Any = ChangeSet(workspace, None)  # type: ignore[arg-type]
    change_set.write_part(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert workspace.run(f"SELECT * FROM read_parquet('{path}') ORDER BY row") == [
        (0, "update", "a", b"v", True, "id"),
        (1, "insert", "b", b"v", False, None),
    ]


@pytest.mark.parametrize(
    ("base", "parts", "due"),
    [
        (100, [20], False),
        (100, [21], True),
        (100, [10, 11], True),
        (0, [1], True),
        (1000, [1] * 16, False),
        (1000, [1] * 17, True),
    ],
)
def test_the_base_is_made_anew_past_a_fifth_or_past_sixteen_parts(
    base: int, parts: list[int], due: bool
) -> None:
    assert baseline.due(base, parts) is due


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
        ([batch(0, 0, Outcome(KEPT)), batch(1, 1, Outcome(ABSENT))], False),
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
        batch(4, 4, Outcome(KEPT)),
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
    workspace: Workspace, part: Any
) -> None:
    path = part("p", sent("a", "b", "c", "d"))
    alone = {"1": UNKNOWN, "3": UNKNOWN}
    for operation, ours in (("insert_only", False), ("upsert", True)):
        alike = BatchRow("b", 0, operation, 0, 3, "done", Outcome(UNKNOWN))
        single = BatchRow(
            "b", 0, operation, 0, 3, "done", Outcome(WRITTEN, {int(n): r for n, r in alone.items()})
        )
        for of_batch, unanswered in ((alike, "abcd"), (single, "bd")):
            baseline.lay(workspace, None, [Layer(path, DAYS[0], [of_batch])])
            assert {key for key, (_, owned, *_) in held(workspace).items() if not owned} == (
                set() if ours else set(unanswered)
            )


def test_a_delete_without_an_answer_makes_nothing_ours(workspace: Workspace, part: Any) -> None:
    path = part("p", [*sent("a", op="delete"), *sent("b", op="delete", owned=True)])
    baseline.lay(
        workspace, None, [Layer(path, DAYS[0], [BatchRow("b", 0, "delete", 0, 1, "done", Outcome(UNKNOWN))])]
    )
    assert {key: owned for key, (_, owned, *_) in held(workspace).items()} == {"a": False, "b": True}
