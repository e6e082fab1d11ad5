"""A job's file, its results, and whose row is whose."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retl.destinations.batch import UNKNOWN, WRITTEN, Kind, Outcome, RowResult
from retl.destinations.salesforce_bulk import csvjob
from retl.errors import Ambiguous
from retl.net.messages import Reply

BAD = RowResult(Kind.REJECTED, "BAD")


@given(st.lists(st.tuples(st.text(min_size=1), st.none() | st.text(min_size=1)), max_size=5))
def test_another_reader_reads_the_same_rows(rows: list[tuple[str, str | None]]) -> None:
    try:
        file = csvjob.write(["a", "b"], rows).decode()
    except UnicodeEncodeError:
        return
    read = list(csv.reader(io.StringIO(file, newline=""), strict=True))
    assert read == [["a", "b"], *([first, second or ""] for first, second in rows)]
    again = csvjob.read(Reply(200, {}, file.encode()))
    assert again == [{"a": first, "b": second or ""} for first, second in rows]


def test_nothing_said_is_nothing_between_commas() -> None:
    assert csvjob.write(["a", "b", "c"], [("1", None, "#N/A"), (" x", "", 'y"')]) == (
        b'a,b,c\n1,,#N/A\n" x","","y"""\n'
    )


@pytest.mark.parametrize(
    "body", [b'a,b\n1,2\n"3', b"a,b\n1\n", b"a,a\n1,2\n", b"a,b\n1,2,3\n", b"\xff\xfe", b'a,b\n"1"x,2\n']
)
def test_a_file_that_is_no_table_is_read_again_rather_than_believed(body: bytes) -> None:
    with pytest.raises(Ambiguous):
        csvjob.read(Reply(200, {}, body))


def test_a_file_cut_off_is_read_again_rather_than_believed() -> None:
    with pytest.raises(Ambiguous):
        csvjob.read(Reply(200, {}, b"a,b\n1,2\n", whole=False))


def test_an_empty_file_and_none_at_all_hold_no_rows() -> None:
    for reply in (
        Reply(200, {}, b""),
        Reply(200, {}, b"a,b\n"),
        Reply(404, {}, b'{"error":1}'),
        Reply(204, {}),
    ):
        assert csvjob.read(reply) == []


def test_results_find_their_rows_by_name_in_any_order() -> None:
    outcome = csvjob.match(["a", "b", "c"], [("c", BAD), ("stranger", WRITTEN), ("a", WRITTEN)])
    assert outcome == Outcome(UNKNOWN, {0: WRITTEN, 2: BAD})


def test_rows_of_one_name_count_only_where_all_their_results_agree() -> None:
    names = ["a", "b", "a"]
    agreed = csvjob.match(names, [("a", WRITTEN), ("b", WRITTEN), ("a", WRITTEN)])
    assert [agreed.result(n).kind for n in range(3)] == [Kind.WRITTEN] * 3
    for told in ([("a", WRITTEN)], [("a", WRITTEN), ("a", BAD)], [("a", WRITTEN)] * 3):
        found = csvjob.match(names, [*told, ("b", WRITTEN)])
        assert [found.result(n).kind for n in range(3)] == [Kind.UNKNOWN, Kind.WRITTEN, Kind.UNKNOWN]
