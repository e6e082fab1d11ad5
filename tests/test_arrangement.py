"""In which order rows that wait for each other may follow, and which wait in vain."""

from __future__ import annotations

from retl.destinations.batch import Kind, RowResult
from retl.destinations.postgres.arrangement import Arrangement, Rival, Wait, arrange
from retl.destinations.postgres.rules import Unique

NO_PARENT = RowResult(Kind.REJECTED, "23503", "parent: it forbids it")
TAKEN = RowResult(Kind.REJECTED, "23505", "rank: another row has the same value")
RANK = Unique("rank", ("rank",), True, (True,), ("integer",))
SLOT = Unique("slot", ("slot",), True, (True,), ("integer",))


def found(*waits: Wait, rivals: tuple[Rival, ...] = (), lift: bool = True) -> Arrangement:
    return arrange(waits, rivals, lambda _unique: lift)


def moves(row: int, other: int | None, unique: Unique = RANK) -> Wait:
    return Wait(row, other, TAKEN, unique)


def test_a_chain_begins_at_the_row_that_nobody_stands_before() -> None:
    assert found(moves(0, 1), moves(1, 2), moves(2, 3)).order == [3, 2, 1, 0]


def test_what_waits_for_a_row_that_waits_in_vain_does_so_too() -> None:
    waits = [Wait(0, 1, NO_PARENT), Wait(1, 2, NO_PARENT), Wait(2, None, NO_PARENT), moves(5, 1), moves(6, 7)]
    made = found(*waits)
    assert made.blocked.keys() == {0, 1, 2, 5}
    assert made.blocked[5] == TAKEN
    assert made.order == [7, 6]


def test_of_rows_that_wait_for_each_other_one_gives_up_its_value() -> None:
    made = found(moves(0, 1), moves(1, 2), moves(2, 0), moves(8, 9), moves(9, 8), moves(7, 8))
    assert len(made.lifted) == 2
    assert sorted(made.order) == [0, 1, 2, 7, 8, 9]
    assert made.blocked == {}


def test_rows_that_swap_two_values_give_up_both() -> None:
    made = found(moves(0, 1), moves(1, 0), moves(0, 1, SLOT), moves(1, 0, SLOT))
    assert {unique for _, unique in made.lifted} == {RANK, SLOT}
    assert sorted(made.order) == [0, 1]


def test_without_a_value_for_a_moment_the_swap_is_refused_and_the_rest_is_not() -> None:
    made = found(moves(0, 1), moves(1, 0), moves(2, 1), moves(3, 4), lift=False)
    assert made.blocked.keys() == {0, 1, 2}
    assert "swap" in str(made.blocked[0].reason)
    assert "swap" in str(made.blocked[1].reason)
    assert made.order == [4, 3]


def test_of_rivals_the_one_that_has_the_value_keeps_it_or_else_the_first_gets_it() -> None:
    def rival(row: int, group: int, *, holds: bool = False) -> Rival:
        return Rival(("rank", group), row, holds, TAKEN)

    made = found(
        moves(0, None),
        rivals=(rival(0, 0), rival(1, 0), rival(2, 0), rival(3, 3), rival(4, 3, holds=True)),
    )
    assert made.blocked.keys() == {0, 2, 3}
