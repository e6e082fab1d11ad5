"""An idempotency key is used only inside its window, whatever the clocks and pauses do in between."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tenacity import wait_none

from retl.delivery.lanes import Delivery
from retl.delivery.paced import Paced
from retl.destinations import window
from retl.destinations.batch import UNKNOWN, WRITTEN, Field, Outcome, Shape
from retl.destinations.http.adapter import HttpDestination
from retl.destinations.http.options import HttpOptions
from retl.destinations.window import KeyWindow, Moment
from retl.errors import Ambiguous, Expired, Unavailable
from retl.ledger import open_ledger
from retl.model import Limits, Retry
from retl.observe.signals import Stop
from retl.pace import limiter
from retl.pace.limiter import Pace
from retl.run.journal import RunJournal
from retl.values.types import Type
from tests.api import TOKEN, Api, answer, instead, reset
from tests.destinations.rows import Rows
from tests.target import Scene, begin

HOUR = timedelta(hours=1)


class Clocks:
    """The ledger's clock, and the machine's, which counts sleep."""

    def __init__(self) -> None:
        self.ledger, self.machine, self.boot = datetime(2026, 11, 28, 2, tzinfo=UTC), 5000.0, "this boot"

    def pass_(self, time: timedelta) -> None:
        self.ledger += time
        self.machine += time.total_seconds()

    def now(self) -> datetime:
        return self.ledger


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks()
    monkeypatch.setattr(window, "_seconds", lambda: clocks.machine)
    monkeypatch.setattr(window, "_boot", lambda: clocks.boot)
    return clocks


def may_send(key: KeyWindow) -> bool:
    try:
        key.use()
    except Expired:
        return False
    return True


def test_the_window_begins_with_the_first_send(clocks: Clocks) -> None:
    key = KeyWindow(3600, clocks.now)
    clocks.pass_(100 * HOUR)  # the batch waits for its turn
    assert may_send(key)
    clocks.pass_(HOUR / 2)
    assert may_send(key)
    clocks.pass_(HOUR / 2)
    assert not may_send(key)


def test_a_request_gets_time_to_arrive(clocks: Clocks) -> None:
    for seconds, usable in ((100, 90), (86400, 86280)):
        key = KeyWindow(seconds, clocks.now)
        assert may_send(key)
        clocks.pass_(timedelta(seconds=usable - 1))
        assert may_send(key)
        clocks.pass_(timedelta(seconds=1))
        assert not may_send(key)


def test_a_window_of_nothing_is_for_one_send(clocks: Clocks) -> None:
    key = KeyWindow(0, clocks.now)
    assert may_send(key)
    assert not may_send(key)


@pytest.mark.parametrize(
    ("ledger", "machine", "within"),
    [
        (timedelta(0), 2 * HOUR, False),  # the clock was set back meanwhile
        (-48 * HOUR, 2 * HOUR, False),
        (2 * HOUR, timedelta(0), False),  # a virtual machine stood still, or the clock jumped ahead
        (-48 * HOUR, HOUR / 4, True),
        (HOUR / 4, HOUR / 4, True),
    ],
)
def test_every_clock_may_end_a_window_and_none_may_prolong_it(
    clocks: Clocks, ledger: timedelta, machine: timedelta, within: bool
) -> None:
    key = KeyWindow(3600, clocks.now)
    key.use()
    clocks.ledger += ledger
    clocks.machine += machine.total_seconds()
    assert may_send(key) is within
    assert key.over is not within


@pytest.mark.parametrize(
    ("ledger", "within"), [(HOUR / 4, True), (2 * HOUR, False), (-HOUR / 4, False), (timedelta(0), True)]
)
def test_another_machine_has_only_the_clock_of_the_ledger(
    clocks: Clocks, ledger: timedelta, within: bool
) -> None:
    stored = json.loads(json.dumps(Moment.now(clocks.now()).dump()))
    clocks.boot, clocks.machine = "another boot", 3.0
    clocks.ledger += ledger
    assert may_send(KeyWindow(3600, clocks.now, Moment.load(stored))) is within


def test_the_machine_has_a_clock_that_names_its_boot() -> None:
    first, then = (Moment.now(datetime.now(UTC)) for _ in range(2))
    assert first.boot
    assert first.boot == then.boot
    assert 0 <= then.since(first) < 60


# deliveries: each send is measured

EVENTS = {
    "insert": {"path": "/v1/events", "wrap": "events", "max_rows": 100},
    "idempotency": {"header": "Idempotency-Key", "window": "1h"},
}
SHAPE = Shape("sync", "state", (Field("id", Type("string")),), (), "append")
ROWS = [("a",), ("b",)]
Step = Callable[[Any], bool]


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as api:
        yield api


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(limiter, "_PAUSES", wait_none())
    ledger = open_ledger("file:.retl", tmp_path, environment=None)
    made = begin(ledger, tmp_path / ".retl")
    yield made
    made.lock.__exit__(None, None, None)
    ledger.close()


def deliver(scene: Scene, api: Api, shape: Shape = SHAPE, *, resend: bool = False, **options: Any) -> Any:
    connection = {"base_url": api.url, "auth": {"type": "bearer", "token": TOKEN}}
    given = HttpOptions(connection=connection, **{**EVENTS, **options})
    pace, stop = Pace(Limits()), Stop()
    delivery = Delivery(
        lane=lambda: Paced(lambda gate: HttpDestination(given, shape, gate), pace, stop),
        capabilities=HttpDestination(given, shape).capabilities,
        journal=RunJournal(scene.ledger, scene.lock, "run-1", every=True),
        pace=pace,
        retry=Retry(attempts=4),
        stop=stop,
        resend_unknown=resend,
    )
    with closing(delivery):
        delivery.drain([Rows(shape, ROWS).batch(shape.write)])
    return [(one.batch.idempotency_key, one.outcome) for one in delivery.answered]


def after(clocks: Clocks, time: timedelta, fault: Step) -> Step:
    """A fault, and time that passes: in a pause, or asleep."""

    def step(exchange: Any) -> bool:
        clocks.pass_(time)
        return fault(exchange)

    return step


def keys(api: Api) -> list[str]:
    return [headers["idempotency-key"] for _, _, headers, _ in api.seen]


def test_inside_the_window_an_unanswered_insert_is_repeated(scene: Scene, api: Api, clocks: Clocks) -> None:
    api.misbehave(after(clocks, HOUR / 2, reset(applied=True)))
    ((key, outcome),) = deliver(scene, api)
    assert outcome == Outcome(WRITTEN)
    assert keys(api) == [key, key]
    assert len(api.events) == 2


@pytest.mark.parametrize(
    "faults",
    [
        [(HOUR, reset(applied=True))],
        [(HOUR / 2, reset(applied=True)), (HOUR / 2, answer(429, Retry_After="1"))],
        [(HOUR, instead(503, Retry_After="1"))],
        [(HOUR, instead(500))],
    ],
)
def test_past_its_window_nothing_is_sent_and_the_rows_are_in_doubt(
    scene: Scene, api: Api, clocks: Clocks, faults: list[tuple[timedelta, Step]]
) -> None:
    api.misbehave(*(after(clocks, *one) for one in faults))
    ((_, outcome),) = deliver(scene, api)
    assert outcome == Outcome(UNKNOWN)
    assert len(api.seen) == len(faults)
    assert len(api.events) == 2
    (open_,) = scene.recorded
    assert open_.status == "open"


@pytest.mark.parametrize("resend", [True, False])
def test_where_twice_is_asked_for_or_is_once_the_rows_get_a_new_key(
    scene: Scene, api: Api, clocks: Clocks, resend: bool
) -> None:
    upsert = {"insert": None, "upsert": {"path": "/v1/users/batch", "wrap": "users", "row": {"id": "$id", "attributes": "$fields"}}}  # fmt: skip
    api.misbehave(after(clocks, HOUR, reset(applied=True)))
    shape = SHAPE if resend else replace(SHAPE, write="upsert")
    former, latter = deliver(scene, api, shape, resend=resend, **({} if resend else upsert))
    assert (former[1], latter[1]) == (None, Outcome(WRITTEN))
    assert keys(api) == [former[0], latter[0]]
    assert former[0] != latter[0]
    assert [one.status for one in scene.recorded] == ["split", "done"]


def test_keys_that_expire_again_and_again_end_the_run(scene: Scene, api: Api, clocks: Clocks) -> None:
    api.misbehave(*[after(clocks, HOUR, answer(503))] * 9)
    with pytest.raises(Unavailable):
        deliver(scene, api, resend=True)
    assert len(api.seen) == 2


# the next run


def test_the_ledger_knows_when_a_key_was_first_used(scene: Scene, api: Api, clocks: Clocks) -> None:
    api.misbehave(after(clocks, HOUR, reset(applied=True)))
    deliver(scene, api)
    (found,) = scene.recorded
    assert found.intent is not None
    intent = Moment.load(found.intent)
    assert (intent.boot, intent.seconds) == ("this boot", 5000.0)
    assert abs(intent.at - scene.ledger.now()) < HOUR


def test_a_resolving_send_past_the_window_leaves_the_batch_in_doubt(api: Api, clocks: Clocks) -> None:
    connection = {"base_url": api.url, "auth": {"type": "bearer", "token": TOKEN}}
    with closing(HttpDestination(HttpOptions(connection=connection, **EVENTS), SHAPE)) as destination:
        batch = Rows(SHAPE, ROWS).batch("append")
        key = KeyWindow(3600, clocks.now)
        batch = replace(batch, request=destination.preview(batch), idempotency_key=batch.id, window=key)
        api.misbehave(reset(applied=True))
        with pytest.raises(Ambiguous):
            destination.write(batch)
        assert destination.resolve(batch, None) == Outcome(WRITTEN)
        clocks.pass_(HOUR)
        assert destination.resolve(batch, None) == Outcome(UNKNOWN)
        assert len(api.seen) == 2
