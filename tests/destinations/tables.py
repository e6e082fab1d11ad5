"""What every table target of the common way promises beside the suite: modes, `create`, marks."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

from retl.destinations.batch import ABSENT, PRESENT, Field, Kind, Shape, SoftDelete, Visit
from retl.errors import Mismatch, Systemic
from tests.destinations.rows import Rows
from tests.destinations.suite import FIELDS, INTEGER, STRING, VISIT, as_contents, deliver, kinds, sample

SHAPE = Shape("suite", "state-1", (Field("id", STRING),), FIELDS)


class TableSuite:
    """A class of tests beside `Suite`, with its `target`. `kind`: the class of the destination. A target has
    `options`, and `execute` as somebody else."""

    kind: Any

    def ready(self, target: Any, shape: Shape = SHAPE, visit: Visit = VISIT, **options: Any) -> Any:
        destination = target.make(shape, **options)
        destination.check(visit)
        destination.prepare(visit)
        return destination

    def test_each_mode_says_what_became_of_each_row(self, target: Any) -> None:
        deliver(self.ready(target), Rows(SHAPE, sample(2)).batch())
        changed = Rows(SHAPE, [("k1", "other", None, 7), ("k9", "new", None, 9)])
        updates = self.ready(target, replace(SHAPE, write="update_only"))
        assert deliver(updates, changed.batch("update_only", run_id="run-2"))[1] == ABSENT
        assert target.contents() == as_contents(SHAPE, [*sample(1), ("k1", "other", None, 7)])
        inserts = self.ready(target, replace(SHAPE, write="insert_only"))
        again = Rows(SHAPE, [("k1", "third", None, 3), ("k9", "new", None, 9)])
        assert deliver(inserts, again.batch("insert_only", run_id="run-3"))[0] == PRESENT
        assert target.contents() == as_contents(
            SHAPE, [*sample(1), ("k1", "other", None, 7), ("k9", "new", None, 9)]
        )

    def test_a_soft_delete_marks_rows_and_leaves_the_others(self, target: Any) -> None:
        shape = replace(SHAPE, deletes=SoftDelete({"name": "it's gone", "visits": None}))
        destination = self.ready(target, shape)
        rows = Rows(shape, sample(3))
        deliver(destination, rows.batch())
        assert set(kinds(deliver(destination, rows.batch("delete", first=1, last=1)))) == {Kind.WRITTEN}
        gone = ("k1", "it's gone", Decimal("0.01"), None)
        assert target.contents() == as_contents(SHAPE, [rows.rows[0], gone, rows.rows[2]])

    def test_a_field_that_is_only_filled_if_empty_keeps_a_value(self, target: Any) -> None:
        careful = replace(FIELDS[0], only_if_empty=True)
        destination = self.ready(target, replace(SHAPE, fields=(careful, *FIELDS[1:])))
        deliver(destination, Rows(destination.shape, [("a", "kept", None, 1), ("b", None, None, 1)]).batch())
        later = Rows(destination.shape, [("a", "late", None, 2), ("b", "late", None, 2)])
        deliver(destination, later.batch(run_id="run-2"))
        assert {key: row["name"] for (key,), row in target.contents().items()} == {"a": "kept", "b": "late"}

    def test_create_makes_the_file_its_table_and_later_its_columns(self, target: Any) -> None:
        destination = self.kind(target.options(create=True), SHAPE)
        assert destination.check(VISIT) is not None
        assert list(destination.read(Rows(SHAPE, sample(1)).batch())) == [None]
        assert not (hasattr(target, "file") and target.file.exists())
        destination.prepare(VISIT)
        deliver(destination, Rows(SHAPE, sample(2)).batch())
        destination.close()
        wider = replace(SHAPE, fields=(*FIELDS, Field("more", INTEGER)))
        second = self.kind(target.options(create=True), wider)
        target.shape = wider
        rows = Rows(wider, [(*row, n) for n, row in enumerate(sample(3))])
        assert list(second.differing(rows.batch())) == [tuple(f.name for f in wider.fields)] * 2 + [None]
        second.prepare(VISIT)
        deliver(second, rows.batch(run_id="run-2"))
        assert target.contents() == as_contents(wider, rows.rows)
        second.close()

    def test_a_missing_table_names_the_statement_that_makes_it(self, target: Any) -> None:
        target.execute("CREATE TABLE other (a INTEGER)")
        with pytest.raises(Mismatch) as caught:
            self.kind(target.options(), SHAPE).check(VISIT)
        statement = str(caught.value.hint).partition(";")[0]
        target.execute(statement)
        self.kind(target.options(), SHAPE).check(VISIT)

    def test_a_mark_tells_what_became_of_a_batch_and_an_abort_keeps_it_out(self, target: Any) -> None:
        destination, batch = self.ready(target), Rows(SHAPE, sample(3)).batch()
        other = self.ready(target)
        assert kinds(self.other_results(other, batch, act=False)) == [Kind.RETRY] * 3
        assert kinds(self.other_results(other, batch)) == [Kind.RETRY] * 3
        with pytest.raises(Systemic, match="newer run"):
            destination.write(batch)
        assert target.contents() == {}
        again = Rows(SHAPE, sample(3)).batch(run_id="run-2")
        destination.write(again)
        target.execute("DELETE FROM people")
        for one in (destination.write(again), destination.resolve(again, None), other.resolve(again, None)):
            assert isinstance(one.default.kind, Kind)  # type: ignore[union-attr]
            assert one.default.kind is Kind.WRITTEN  # type: ignore[union-attr]
        assert target.contents() == {}

    def other_results(self, destination: Any, batch: Any, *, act: bool = True) -> list[Any]:
        answer = destination.resolve(batch, None, act=act)
        return [answer.result(n) for n in range(len(batch))]

    def test_an_older_run_is_fenced_off_and_its_marks_are_pruned(self, target: Any) -> None:
        destination = self.ready(target)
        destination.write(Rows(SHAPE, sample(1)).batch())
        later = self.ready(target, visit=Visit("run-2", 2, frozenset({"run-1"})))
        trace = later.check(VISIT)
        assert trace is not None
        assert (trace.epoch, {run for run, _ in trace.batches}) == (2, {"run-1"})
        with pytest.raises(Systemic, match="newer run"):
            destination.write(Rows(SHAPE, sample(2)).batch())
        with pytest.raises(Systemic, match="newer run"):
            destination.prepare(VISIT)
        later.prepare(Visit("run-3", 3))
        assert target.execute("SELECT count(*) FROM retl_applied WHERE state = 'applied'") == [(0,)]

    def test_an_append_whose_table_is_empty_has_lost_its_rows(self, target: Any) -> None:
        shape = replace(SHAPE, write="append")
        destination = self.ready(target, shape)
        destination.write(Rows(shape, sample(2)).batch("append"))
        assert not destination.check(VISIT).replaced  # type: ignore[union-attr]
        target.execute("DELETE FROM people")
        assert destination.check(VISIT).replaced  # type: ignore[union-attr]
