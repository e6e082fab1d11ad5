"""Leases of a window and the day's budget, on a clock that the test moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import date, datetime
from itertools import count
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retl.pace.allowance import HOUR, HOURS, USE, Account, Lease, Terms

DAY = 24 * HOUR
START = 500_000 * HOUR + 1800.0


def names() -> Iterator[str]:
    return (f"lease {n}" for n in count())


def taken(account: Account, terms: Terms, now: float, name: str) -> Lease | None:
    grant = account.take(name, terms, now)
    return Lease(name, grant.requests, grant.hour, now + USE) if grant.requests else None


@given(
    limit=st.integers(1, 30),
    window=st.floats(0.5, 20),
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.floats(0, 3), st.floats(0, 1), st.floats(0, 1)), max_size=200
    ),
)
def test_no_window_at_the_target_sees_more_than_the_limit(
    limit: int, window: float, steps: list[tuple[int, float, float, float]]
) -> None:
    """Three holders send one request after another; each arrives at some time before its answer."""
    terms, account, now, fresh = Terms(limit, window), Account(), START, names()
    held: dict[int, Lease] = {}
    arrivals: list[float] = []
    for holder, pause, latency, on_the_way in steps:
        now += pause
        lease = held.get(holder)
        if lease is None or lease.used == lease.requests or now >= lease.ends:
            if lease is not None:
                account.give_back(held.pop(holder), terms, lease.answered)
            account = Account.parse(account.text())
            lease = taken(account, terms, now, next(fresh))
        if lease is None:
            continue
        held[holder] = lease
        lease.used += 1
        arrivals.append(now + latency * on_the_way)
        now += latency
        lease.answered = now
    for first in arrivals:
        assert sum(first <= arrival < first + window * 0.999999 for arrival in arrivals) <= limit


def test_what_was_not_used_is_there_for_others_at_once() -> None:
    account, terms = Account(), Terms(20, 10.0)
    leases = [taken(account, terms, START, name) for name, _ in zip(names(), range(10), strict=False)]
    assert taken(account, terms, START, "more") is None
    for lease in leases:
        assert lease is not None
        account.give_back(lease, terms, 0.0)
    assert account.take("more", terms, START).requests == 2


def test_the_lease_of_one_who_died_is_free_after_its_use_and_a_window() -> None:
    account, terms = Account(), Terms(1, 10.0)
    assert taken(account, terms, START, "dead")
    assert taken(account, terms, START + USE + 9.9, "heir") is None
    assert taken(account, terms, START + USE + 10.1, "heir")


def test_a_clock_that_was_set_back_blocks_nobody_for_longer_than_a_lease() -> None:
    account, terms = Account(), Terms(1, 10.0, day=100)
    assert taken(account, terms, START, "before")
    account.pause(START + 60)
    account.spend(START + DAY)
    back = START - 365 * DAY
    assert account.take("after", terms, back).spent == HOURS * HOUR
    account.spent = account.held = 0.0
    assert taken(account, terms, back, "after") is None
    assert taken(account, terms, back + USE + 10.1, "after")


def test_no_24_hours_see_more_than_the_day_s_budget() -> None:
    account, terms, fresh = Account(), Terms(None, 0.0, day=25), names()
    sent, now = [], START
    while now < START + 3 * DAY:
        lease = taken(account, terms, now, next(fresh))
        if lease is not None:
            lease.used = lease.requests
            sent += [now] * lease.used
            account.give_back(lease, terms, now)
        now += 600
    assert len(sent) > 25
    for moment in sent:
        assert sum(moment <= other < moment + DAY for other in sent) <= 25


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Los_Angeles", "Asia/Kolkata", "Pacific/Auckland"])
@pytest.mark.parametrize("month", [3, 4, 9, 10, 11])
def test_no_day_of_the_vendors_calendar_sees_more_than_its_budget(zone: str, month: int) -> None:
    """The longest day, at the end of daylight saving time, has 25 hours."""
    account, terms, fresh = Account(), Terms(None, 0.0, day=7), names()
    days: Counter[date] = Counter()
    now = datetime(2026, month, 1, tzinfo=ZoneInfo(zone)).timestamp()
    for _ in range(35 * 48):  # greedy: half an hour after the other
        if lease := taken(account, terms, now, next(fresh)):
            lease.used = lease.requests
            days[datetime.fromtimestamp(now, ZoneInfo(zone)).date()] += lease.used
            account.give_back(lease, terms, now)
        now += 1800
    assert max(days.values()) == 7


def test_a_spent_day_says_for_how_long() -> None:
    account, terms = Account(), Terms(None, 0.0, day=5)
    assert account.take("all of it", terms, START).requests == 5
    spent = account.take("more", terms, START + HOUR).spent
    assert spent is not None
    assert account.take("too early", terms, START + HOUR + spent - 1).spent
    assert account.take("then", terms, START + HOUR + spent + 1).requests == 5


def test_a_budget_that_the_target_calls_spent_is_spent_for_all() -> None:
    account = Account()
    account.spend(START + 600)
    again = Account.parse(account.text())
    assert again.take("any", Terms(10, 1.0), START).spent == 600
    assert again.take("any", Terms(10, 1.0), START + 601).requests == 1


@pytest.mark.parametrize(("terms", "part"), [(Terms(500, 1.0), 50), (Terms(3, 1.0), 1), (Terms(day=9), 10)])
def test_a_lease_is_a_tenth_of_the_window(terms: Terms, part: int) -> None:
    assert terms.part == part
