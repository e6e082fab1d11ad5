"""What every destination promises, as tests that none of them can leave out.

A destination joins by a module `test_<type>.py` beside this one, with a `Target` (how to make the
destination, how to look into the real server behind it, how to make that server refuse) and a class
`Test…(Suite)` whose `target` fixture yields one on an empty server. A destination with several ways
to write has a class for each. What a test asks for follows from `capabilities`, from nothing else.
"""

from __future__ import annotations

import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from msgspec.structs import replace

from retl.destinations import load
from retl.destinations.api import Destination
from retl.destinations.batch import Answer, Batch, Field, Kind, Pending, RowResult, Shape, Visit, WriteMode
from retl.errors import Ambiguous, Mismatch, Poisoned, RetlError, Systemic, TargetError, Unavailable
from retl.values.types import Type
from tests.destinations import rows as written
from tests.destinations.rows import Row, plain
from tests.proxy import Proxy

Contents = dict[Row, dict[str, Any]]

STRING, INTEGER, MONEY = Type("string"), Type("integer"), Type("decimal", 12, 2)
FIELDS = (Field("name", STRING), Field("amount", MONEY), Field("visits", INTEGER))
VISIT = Visit("run-1", 1)
CANARY = "canary-8b0f1e"

EVERY_TYPE = (
    Field("text", STRING),
    Field("uuid", Type("uuid")),
    Field("whole", INTEGER),
    Field("exact", Type("decimal", 38, 10)),
    Field("real", Type("float")),
    Field("flag", Type("boolean")),
    Field("day", Type("date")),
    Field("naive", Type("timestamp")),
    Field("moment", Type("timestamptz")),
    Field("data", Type("json")),
    Field("tags", Type("list", items="string")),
)
VALUES: tuple[Row, ...] = (
    ("low", "", UUID(int=0), -(2**63), Decimal("-9999999999999999999999999999.9999999999"), -1.7976931348623157e308, False, date(1, 1, 1), datetime(1900, 1, 1), datetime(1900, 1, 1, tzinfo=UTC), "{}", []),
    ("high", "é𝄞\u200d", UUID(int=2**128 - 1), 2**63 - 1, Decimal("9999999999999999999999999999.9999999999"), 5e-324, True, date(9999, 12, 31), datetime(9999, 12, 31, 23, 59, 59, 999999), datetime(9999, 12, 31, 23, 59, 59, 999999, UTC), '{"a":[1,{"b":null}],"c":1.10}', ["", "a,b", '"', "{}", "NULL", "\\"]),
    ("edge", "NULL", UUID(int=1), 2**53 + 1, Decimal("0.0000000001"), 0.1, False, date(2024, 2, 29), datetime(2026, 3, 29, 2, 30), datetime(2026, 3, 29, 2, 30, tzinfo=timezone(timedelta(hours=2))), '"text"', ["é"]),
    ("null", *[None] * len(EVERY_TYPE)),
)  # fmt: skip
HOSTILE = (
    "", " ", "  both  ", "NULL", "null", "\\N", "\\.", "\\", "a\\nb", "0", "01", "1e3", "true", "nan",
    "a,b", 'a"b', '"', "'", "''", "a\nb", "\r\n", "\t", "\x00", "a\x00b", "\x01\x7f", "\x1b[31m", "\ufeffbom",
    "{}", "{id}", "%s", "%25", "%", "a:b", "*", "$1", "${HOME}", "$5\r\nHELLO\r\n", "'; DROP TABLE x; --",
    "../../etc/passwd", "?a=b&c#d", "<b>&amp;", "=1+1", "é", "e\u0301", "日本語", "👩‍👩‍👧", "\u202eabc", "\ud800",
    "x" * 100_000,
)  # fmt: skip


def narrowed(shape: Shape, rows: Sequence[Row]) -> list[Row]:
    """The rows without those of FIELDS that this shape lacks."""
    width, names = len(shape.key), [field.name for field in FIELDS]
    taken = [names.index(field.name) for field in shape.fields if field in FIELDS]
    if len(taken) < len(shape.fields) or len(taken) == len(FIELDS):
        return list(rows)
    return [
        (*row[:width], *(row[width + n] for n in taken)) if len(row) == width + len(FIELDS) else row
        for row in rows
    ]


class Rows(written.Rows):
    """Rows of FIELDS, or of those that the shape has."""

    def __init__(self, shape: Shape, rows: Sequence[Row]) -> None:
        super().__init__(shape, narrowed(shape, rows))


class Target(ABC):
    """One destination under test: made through a proxy, looked into past it."""

    type: str  # its name in `destinations.names()`
    write: WriteMode = "upsert"
    fields = FIELDS  # those that an object can hold here; with fewer, it has tests of its own for their types
    proxy: Proxy  # every destination made connects through this one
    counts_all = True  # every byte of a batch is counted, not only its rows
    commit: bytes  # once a request held these bytes, all of the batch is on its way to the server

    @abstractmethod
    def make(self, shape: Shape, *, secret: str | None = None) -> Destination[Any]:
        """A destination for this shape with timeouts of about a second, the place it writes to made if
        need be (tables …). `secret` takes the place of the right password or token."""

    @abstractmethod
    def contents(self) -> Contents:
        """All the server holds of the last shape made: key values → fields, each as `rows.plain` gives
        it (None for a field that is empty there). By a connection of the test's own."""

    @abstractmethod
    def poison(self, row: Row) -> Row:
        """A row with the same key that the server will refuse for a reason of its own; what has to be
        arranged on the server for that, is. No connection is lost for it."""

    @abstractmethod
    def forbid(self) -> None:
        """Take from the account the right to write, on the server."""

    @abstractmethod
    def annotate(self, key: Row) -> Callable[[], bool] | None:
        """As somebody else, put something of their own into the object with this key; the answer says
        whether it is still there. None if an object here is one value with no room for others'."""


def sample(count: int, name: str = "name") -> list[Row]:
    return [(f"k{n}", f"{name} {n}", Decimal(n) / 100, n) for n in range(count)]


def telling(row: Row) -> str:
    """The first field of a row, or its key if it has no other."""
    return str(row[min(1, len(row) - 1)])


def few(destination: Destination[Any], count: int = 3) -> list[Row]:
    """So many rows, or as many as the destination takes at once."""
    return sample(min(count, destination.capabilities.max_rows or count))


def as_contents(shape: Shape, rows: list[Row]) -> Contents:
    """What a server holds after these rows were delivered."""
    width = len(shape.key)
    return {
        row[:width]: {
            f.name: plain(value, f.type) for f, value in zip(shape.fields, row[width:], strict=True)
        }
        for row in narrowed(shape, rows)
    }


def deliver(destination: Destination[Any], batch: Batch) -> list[RowResult]:
    """What became of each row, with the halving and waiting delivery does; nothing is sent again."""
    try:
        return results(destination, batch, destination.write(batch))
    except Poisoned as error:
        if len(batch) == 1:
            return [RowResult(Kind.REJECTED, error.code, error.message)]
        first, second = batch.halves()
        return deliver(destination, first) + deliver(destination, second)


def results(destination: Destination[Any], batch: Batch, answer: Answer) -> list[RowResult]:
    lost = 0
    while isinstance(answer, Pending):
        time.sleep(min(answer.look_again, 0.05))
        try:
            answer = destination.resolve(batch, answer.handle)
        except Ambiguous:  # asking changes nothing, so delivery asks again
            lost += 1
            assert lost < 3
    assert set(answer.exceptions) <= set(range(len(batch)))
    return [answer.result(number) for number in range(len(batch))]


def kinds(of: list[RowResult]) -> list[Kind]:
    return [result.kind for result in of]


def told(error: RetlError) -> str:
    """All a log could ever print of an error."""
    return f"{error!r} {error} {error.hint} {''.join(traceback.format_exception(error))}"


class Suite:
    """The promises."""

    @pytest.fixture
    def target(self) -> Iterator[Target]:
        raise NotImplementedError("a fixture of the subclass")

    @pytest.fixture
    def make(self, target: Target) -> Iterator[Callable[..., Destination[Any]]]:
        """`target.make`; what it made is closed afterwards."""
        made: list[Destination[Any]] = []

        def make(shape: Shape, **options: Any) -> Destination[Any]:
            made.append(target.make(shape, **options))
            return made[-1]

        yield make
        for destination in made:
            destination.close()
            destination.close()

    @pytest.fixture
    def shape(self, target: Target) -> Shape:
        return Shape("suite", "state-1", (Field("id", STRING),), target.fields, target.write)

    @pytest.fixture
    def destination(self, make: Callable[..., Destination[Any]], shape: Shape) -> Destination[Any]:
        """Ready to write."""
        destination = make(shape)
        destination.check(VISIT)
        destination.prepare(VISIT)
        return destination

    # what it says of itself

    def test_it_is_the_registered_class(self, target: Target, destination: Destination[Any]) -> None:
        assert type(destination) is load(target.type)

    def test_capabilities_need_no_network(self, target: Target, make: Any, shape: Shape) -> None:
        before = target.proxy.connections
        capabilities = make(shape, secret=CANARY).capabilities
        assert target.write in capabilities.modes
        assert CANARY not in repr(capabilities)
        assert capabilities == make(shape).capabilities
        assert target.proxy.connections == before

    def test_check_writes_nothing(self, target: Target, make: Any, shape: Shape) -> None:
        destination = make(shape)
        before = target.contents()
        destination.check(VISIT)
        destination.check(VISIT)
        assert target.contents() == before == {}

    # rows

    @pytest.mark.parametrize("count", [1, 2, 3, 1000])
    def test_rows_arrive(
        self, target: Target, destination: Destination[Any], shape: Shape, count: int
    ) -> None:
        rows = Rows(shape, sample(min(count, destination.capabilities.max_rows or count)))
        assert kinds(deliver(destination, rows.batch(target.write))) == [Kind.WRITTEN] * len(rows.rows)
        assert target.contents() == as_contents(shape, rows.rows)
        assert rows.asked == {destination.capabilities.form}

    def test_a_batch_is_exactly_its_rows(
        self, target: Target, destination: Destination[Any], shape: Shape
    ) -> None:
        rows = Rows(shape, sample(5))
        deliver(destination, rows.batch(target.write, first=1, last=3))
        assert target.contents() == as_contents(shape, rows.rows[1:4])

    def test_twice_equals_once(self, target: Target, destination: Destination[Any], shape: Shape) -> None:
        rows = Rows(shape, sample(3))
        if destination.capabilities.idempotent:
            deliver(destination, rows.batch(target.write))
        assert kinds(deliver(destination, rows.batch(target.write))) == [Kind.WRITTEN] * 3
        assert target.contents() == as_contents(shape, rows.rows)

    def test_a_changed_row_replaces_its_object(
        self, target: Target, destination: Destination[Any], shape: Shape
    ) -> None:
        if target.write != "upsert":
            return
        deliver(destination, Rows(shape, sample(3)).batch())
        changed = [("k1", "other", None, 7)]
        assert kinds(deliver(destination, Rows(shape, changed).batch(run_id="run-2"))) == [Kind.WRITTEN]
        kept = {} if destination.capabilities.whole else as_contents(shape, sample(3))
        assert target.contents() == kept | as_contents(shape, changed)

    def test_one_key_twice_harms_no_other_row(
        self, target: Target, destination: Destination[Any], shape: Shape
    ) -> None:
        rows = [("a", "one", None, 1), ("b", "two", None, 2), ("a", "three", None, 3)]
        outcome = deliver(destination, Rows(shape, rows).batch(target.write))
        assert outcome[1].kind == Kind.WRITTEN
        contents = target.contents()
        assert contents.pop(("b",)) == as_contents(shape, rows)["b",]
        assert contents.keys() <= {("a",)}

    def test_every_type_arrives_exactly(self, target: Target, make: Any, shape: Shape) -> None:
        if len(target.fields) < len(FIELDS):
            return
        self.exact_or_rejected(target, make, replace(shape, fields=EVERY_TYPE), list(VALUES))

    def test_hostile_values_arrive_exactly_or_are_rejected(
        self, target: Target, make: Any, shape: Shape
    ) -> None:
        rows = [(f"k{n}", value, None, n) for n, value in enumerate(HOSTILE)]
        self.exact_or_rejected(target, make, shape, rows)

    def test_hostile_keys_stay_apart(self, target: Target, make: Any, shape: Shape) -> None:
        rows = [(key, f"name {n}", None, n) for n, key in enumerate(HOSTILE[:-1]) if key]
        self.exact_or_rejected(target, make, shape, rows)

    def exact_or_rejected(self, target: Target, make: Any, shape: Shape, rows: list[Row]) -> None:
        destination = make(shape)
        destination.check(VISIT)
        destination.prepare(VISIT)
        batch = Rows(shape, rows).batch(target.write)
        size = destination.capabilities.max_rows or len(rows)
        outcome = [
            result
            for first in range(0, len(rows), size)
            for result in deliver(
                destination, replace(batch, first=first, last=min(first + size, len(rows)) - 1)
            )
        ]
        assert set(kinds(outcome)) <= {Kind.WRITTEN, Kind.REJECTED}
        assert Kind.WRITTEN in kinds(outcome)
        written = [row for row, result in zip(rows, outcome, strict=True) if result.kind == Kind.WRITTEN]
        assert target.contents() == as_contents(shape, written)

    def test_it_counts_the_bytes_that_went_out(
        self, target: Target, destination: Destination[Any], shape: Shape
    ) -> None:
        size = len(few(destination, 2))
        rows = Rows(shape, sample(2 * size))
        deliver(destination, rows.batch(target.write, first=0, last=size - 1))
        counted, passed = destination.sent, target.proxy.sent
        assert counted > 0
        deliver(destination, rows.batch(target.write, first=size, last=2 * size - 1))
        least = sum(len(telling(row)) for row in rows.rows[size : 2 * size])
        most = target.proxy.sent - passed
        assert least <= destination.sent - counted <= most
        if target.counts_all:
            assert destination.sent - counted == most

    # rows the server refuses

    @pytest.mark.parametrize(
        "bad", [[0], [4], [2, 3], [0, 1, 2, 3, 4]], ids=["first", "last", "adjacent", "all"]
    )
    def test_a_bad_row_costs_only_itself(
        self, target: Target, destination: Destination[Any], shape: Shape, bad: list[int]
    ) -> None:
        rows = [target.poison(row) if n in bad else row for n, row in enumerate(sample(5, CANARY))]
        outcome = deliver(destination, Rows(shape, rows).batch(target.write))
        assert kinds(outcome) == [Kind.REJECTED if n in bad else Kind.WRITTEN for n in range(5)]
        assert target.contents() == as_contents(shape, [row for n, row in enumerate(rows) if n not in bad])
        for number in bad:
            assert outcome[number].code
            assert outcome[number].reason
            assert CANARY not in str(outcome[number])

    # deletes and what is not ours

    def test_deletes_exactly_those_keys(self, target: Target, make: Any, shape: Shape) -> None:
        shape = replace(shape, deletes="delete" if target.write != "append" else "keep")
        destination = make(shape)
        if "delete" not in destination.capabilities.modes:
            return
        destination.check(VISIT)
        destination.prepare(VISIT)
        rows = Rows(shape, sample(5))
        deliver(destination, rows.batch(target.write))
        if destination.capabilities.whole:  # what is not sent is gone
            deliver(destination, Rows(shape, [rows.rows[n] for n in (0, 3, 4)]).batch(target.write))
        gone = rows.batch("delete", first=1, last=2)
        assert set(kinds(deliver(destination, gone))) == {Kind.WRITTEN}
        assert target.contents() == as_contents(shape, [rows.rows[n] for n in (0, 3, 4)])
        assert set(kinds(deliver(destination, gone))) <= {Kind.WRITTEN, Kind.SKIPPED}
        assert target.contents() == as_contents(shape, [rows.rows[n] for n in (0, 3, 4)])

    def test_fields_not_in_the_sync_keep_their_value(
        self, target: Target, destination: Destination[Any], shape: Shape
    ) -> None:
        if target.write != "upsert":
            return
        deliver(destination, Rows(shape, sample(2)).batch())
        still_there = target.annotate(("k1",))
        changed = [("k1", None, None, 9)]
        assert kinds(deliver(destination, Rows(shape, changed).batch(run_id="run-2"))) == [Kind.WRITTEN]
        assert target.contents()["k1",] == as_contents(shape, changed)["k1",]
        assert still_there is None or still_there()

    def test_a_null_field_that_keeps_leaves_the_value(self, target: Target, make: Any, shape: Shape) -> None:
        keeps = tuple(replace(field, nulls="keep") for field in shape.fields)
        destination = make(replace(shape, fields=keeps))
        if not destination.capabilities.nulls_keep:
            return
        destination.check(VISIT)
        destination.prepare(VISIT)
        deliver(destination, Rows(destination.shape, sample(1)).batch(target.write))
        deliver(
            destination, Rows(destination.shape, [("k0", None, None, 5)]).batch(target.write, run_id="run-2")
        )
        assert target.contents() == as_contents(shape, [("k0", "name 0", Decimal(0), 5)])

    # reading

    def test_it_reads_what_it_wrote(
        self, target: Target, destination: Destination[Any], shape: Shape
    ) -> None:
        if not destination.capabilities.readable:
            return
        rows = Rows(shape, sample(4))
        deliver(destination, rows.batch(target.write, first=0, last=1))
        found = list(destination.read(rows.batch(target.write)))
        assert [row is None for row in found] == [False, False, True, True]
        assert all(set(row) == {field.name for field in shape.fields} for row in found if row is not None)

    def test_it_compares_what_it_holds_with_what_it_would_write(
        self, target: Target, destination: Destination[Any], shape: Shape
    ) -> None:
        if not destination.comparable(destination.options):
            return
        rows = Rows(shape, sample(4))
        deliver(destination, rows.batch(target.write, first=0, last=2))
        changed = Rows(shape, [rows.rows[0], ("k1", "other", None, 7), rows.rows[2], rows.rows[3]])
        held = target.contents()
        same, different, again, lacking = destination.differing(changed.batch(target.write))
        assert (same, again, lacking) == ((), (), None)
        assert bool(different) == bool(shape.fields)
        assert set(different) <= {field.name for field in shape.fields}
        assert list(destination.differing(changed.batch(target.write, first=1, last=3))) == [
            different,
            (),
            None,
        ]
        assert target.contents() == held

    def test_it_finds_every_key_and_no_value_different(self, target: Target, make: Any, shape: Shape) -> None:
        every = len(target.fields) == len(FIELDS)
        destination = make(replace(shape, fields=EVERY_TYPE) if every else shape)
        if type(destination).scan is Destination.scan or not destination.comparable(destination.options):
            return
        destination.check(VISIT)
        destination.prepare(VISIT)
        assert list(destination.scan()) == []
        batch = Rows(destination.shape, list(VALUES) if every else sample(4)).batch(target.write)
        outcome = deliver(destination, batch)
        found = list(destination.differing(batch))
        assert found == [() if one.kind is Kind.WRITTEN else None for one in outcome]
        assert set(destination.scan()) == set(target.contents())

    def test_a_request_is_shown_without_being_sent(self, target: Target, make: Any, shape: Shape) -> None:
        destination = make(shape, secret=CANARY)
        batch = Rows(shape, few(destination)).batch(target.write)
        shown = destination.preview(batch)
        assert b"k0" in shown
        assert telling(narrowed(shape, sample(len(batch)))[-1]).encode() in shown
        assert CANARY.encode() not in shown
        assert shown == make(shape, secret=CANARY).preview(batch)
        assert target.proxy.connections == 0

    # servers and networks that fail

    def test_refused_connections_are_unavailable_then_all_is_well(
        self, target: Target, make: Any, destination: Destination[Any], shape: Shape
    ) -> None:
        rows = Rows(shape, few(destination))
        batch = rows.batch(target.write)
        target.proxy.refuse()
        fresh = make(shape)
        for _ in range(2):
            with pytest.raises(Unavailable):
                fresh.write(batch)
        assert target.contents() == {}
        target.proxy.heal()
        assert kinds(deliver(fresh, batch)) == [Kind.WRITTEN] * len(batch)
        assert target.contents() == as_contents(shape, rows.rows)

    def test_a_connection_lost_between_batches_loses_nothing(
        self, target: Target, destination: Destination[Any], shape: Shape
    ) -> None:
        size = len(few(destination, 2))
        rows = Rows(shape, sample(2 * size))
        deliver(destination, rows.batch(target.write, first=0, last=size - 1))
        target.proxy.refuse()
        target.proxy.heal()
        second = rows.batch(target.write, first=size)
        outcome = self.resolved(target, destination, second)
        assert set(kinds(outcome)) <= {Kind.WRITTEN, Kind.UNKNOWN}
        if destination.capabilities.idempotent:
            assert kinds(deliver(destination, second)) == [Kind.WRITTEN] * size
            kept = rows.rows[size:] if destination.capabilities.whole else rows.rows
            assert target.contents() == as_contents(shape, kept)

    def test_a_lost_answer_is_resolved_or_unknown(
        self, target: Target, destination: Destination[Any], shape: Shape
    ) -> None:
        rows = Rows(shape, few(destination))
        batch = rows.batch(target.write)
        target.proxy.drop_reply(target.commit)
        outcome = self.resolved(target, destination, batch)
        expected = {Kind.WRITTEN} if destination.capabilities.resolves else {Kind.UNKNOWN, Kind.WRITTEN}
        assert set(kinds(outcome)) <= expected
        assert target.contents() == as_contents(shape, rows.rows)
        if destination.capabilities.idempotent:
            assert kinds(deliver(destination, batch)) == [Kind.WRITTEN] * len(batch)
            assert target.contents() == as_contents(shape, rows.rows)

    def test_silence_ends_in_time_and_is_no_success(
        self, target: Target, destination: Destination[Any], shape: Shape
    ) -> None:
        rows = Rows(shape, few(destination))
        batch = rows.batch(target.write)
        target.proxy.blackhole()
        with pytest.raises((Ambiguous, Unavailable)):
            destination.write(batch)
        assert target.contents() == {}
        target.proxy.heal()
        if destination.capabilities.idempotent:
            try:
                found = deliver(destination, batch)
            except Unavailable:  # a client may still have a connection from before; delivery tries again
                found = deliver(destination, batch)
            assert kinds(found) == [Kind.WRITTEN] * len(batch)
            assert target.contents() == as_contents(shape, rows.rows)

    @pytest.mark.parametrize("after", [1, 50, 500, 5000])
    def test_a_request_cut_short_is_told_truly(
        self, target: Target, destination: Destination[Any], shape: Shape, after: int
    ) -> None:
        rows = Rows(shape, sample(min(1000, destination.capabilities.max_rows or 1000), "x" * 50))
        batch = rows.batch(target.write)
        target.proxy.cut(after)
        try:
            found = kinds(results(destination, batch, destination.write(batch)))
        except Unavailable:
            assert target.contents() == {}
        except Ambiguous:
            assert target.contents().items() <= as_contents(shape, rows.rows).items()
        else:  # the cut fell before the first byte of the batch was sent, or after its last, or in a job
            assert set(found) in ({Kind.WRITTEN}, {Kind.RETRY})
            assert target.contents() == (as_contents(shape, rows.rows) if Kind.WRITTEN in found else {})
        target.proxy.heal()
        if destination.capabilities.idempotent:
            assert kinds(deliver(destination, batch)) == [Kind.WRITTEN] * len(batch)
            assert target.contents() == as_contents(shape, rows.rows)

    def test_a_slow_server_is_no_error(
        self, target: Target, destination: Destination[Any], shape: Shape
    ) -> None:
        target.proxy.slow(0.02)
        assert kinds(deliver(destination, Rows(shape, sample(3)).batch(target.write))) == [Kind.WRITTEN] * 3
        assert target.contents() == as_contents(shape, sample(3))

    def resolved(self, target: Target, destination: Destination[Any], batch: Batch) -> list[RowResult]:
        """What became of a batch whose answer may be lost on the way."""
        try:
            return results(destination, batch, destination.write(batch))
        except Ambiguous:
            return results(destination, batch, destination.resolve(batch, None))
        except Unavailable:
            return deliver(destination, batch)

    # credentials

    def test_without_the_right_to_write_it_stops(
        self, target: Target, destination: Destination[Any], make: Any, shape: Shape
    ) -> None:
        target.forbid()
        fresh = make(shape)
        with pytest.raises((Systemic, Mismatch)):
            fresh.check(VISIT)
        before = target.contents()
        with pytest.raises(Systemic):
            fresh.write(Rows(shape, few(destination)).batch(target.write))
        assert target.contents() == before == {}

    def test_a_wrong_secret_stops_and_is_never_told(self, target: Target, make: Any, shape: Shape) -> None:
        destination = make(shape, secret=CANARY)
        attempts: list[Callable[[], object]] = [
            lambda: destination.check(VISIT),
            lambda: destination.write(Rows(shape, sample(1)).batch(target.write)),
        ]
        for attempt in attempts:
            with pytest.raises(Systemic) as caught:
                attempt()
            assert CANARY not in told(caught.value)
        assert CANARY not in repr(destination.options)

    def test_no_error_tells_a_value(
        self, target: Target, destination: Destination[Any], shape: Shape
    ) -> None:
        batch = Rows(shape, [(CANARY, CANARY, None, 1)]).batch(target.write)
        for fault in (target.proxy.blackhole, target.proxy.refuse):
            fault()
            with pytest.raises(TargetError) as caught:
                destination.write(batch)
            assert CANARY not in told(caught.value)
