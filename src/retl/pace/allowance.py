"""How many requests a connection may still send: a sliding window, and a daily budget. Pure.

A sender takes a *lease* for some requests and gives back what it did not use. A lease counts until one
window after its last answer. A request arrives no later than its answer comes back, so no window at the
target, wherever it starts, sees more than the limit. If a sender dies, its lease stays blocked for USE
seconds and one window. All times are seconds on one clock, that of the account's store.
"""

from __future__ import annotations

import json

from msgspec import Struct, field
from msgspec.structs import asdict

USE = 5.0  # seconds after which a lease expires
HOUR, HOURS = 3600, 25  # the daily budget is counted per hour; 25 hours contain any 24 hours
LONGEST_HOLD = 3600.0
PARTS = 10  # a lease is a tenth of the window: the account is used ten times per window, not per request


class Terms(Struct, frozen=True):
    """Our share of what the target allows: `count` requests per `window` seconds, `day` in 24 hours."""

    count: int | None = None
    window: float = 0.0
    day: int | None = None

    @property
    def part(self) -> int:
        return max(1, self.count // PARTS) if self.count is not None else PARTS

    def seconds(self, requests: int) -> float:
        """About how long the window makes a sender need that has it for itself."""
        if self.count is None or requests <= self.count:
            return 0.0
        return requests * self.window / self.count

    def __str__(self) -> str:
        per_window = f"{self.count:,} per {self.window:g} s" if self.count is not None else ""
        per_day = f"{self.day:,} a day" if self.day is not None else ""
        return ", ".join(filter(None, (per_window, per_day)))


class Lease(Struct):
    """Permission for `requests`, as seen by its holder: `ends` and `answered` are on the holder's own
    clock."""

    name: str
    requests: int
    hour: int
    ends: float
    used: int = 0
    flying: int = 0  # requests without an answer yet
    answered: float = 0.0


class Grant(Struct, frozen=True):
    """Permission for `requests`. If 0: try again after `wait` seconds (`held`: the target asked for a
    pause), or the daily budget is `spent` for that many seconds."""

    requests: int
    hour: int = 0
    wait: float = 0.0
    held: bool = False
    spent: float | None = None


class Account(Struct):
    """The leases of one connection. `leases`: name → requests, and the time until which they count. The
    names in `out` may still send. `hours`: requests per hour."""

    leases: dict[str, tuple[int, float]] = field(default_factory=dict)
    out: list[str] = field(default_factory=list)
    hours: dict[int, int] = field(default_factory=dict)
    held: float = 0.0  # nothing is sent before this time
    spent: float = 0.0  # the target said that the daily budget is spent until then

    @classmethod
    def parse(cls, text: str) -> Account:
        given = json.loads(text)
        return cls(
            {name: (requests, until) for name, (requests, until) in given["leases"].items()},
            given["out"],
            {int(hour): requests for hour, requests in given["hours"].items()},
            given["held"],
            given["spent"],
        )

    def text(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    def take(self, name: str, terms: Terms, now: float) -> Grant:
        """Take a lease with that name, as large as the limits allow."""
        grant = self.look(terms, now)
        if grant.requests and terms.count is not None:
            self.leases[name] = grant.requests, now + USE + terms.window
            self.out.append(name)
        if grant.requests and terms.day is not None:
            self.hours[grant.hour] = self.hours.get(grant.hour, 0) + grant.requests
        return grant

    def look(self, terms: Terms, now: float) -> Grant:
        """What `take` would return."""
        self._forget(terms, now)
        if (spent := self.spent_for(terms, now)) is not None:
            return Grant(0, spent=spent)
        if self.held > now:
            return Grant(0, wait=self.held - now, held=True)
        room = terms.part
        if terms.day is not None:
            room = min(room, terms.day - self.today)
        if terms.count is not None:
            room = min(room, terms.count - sum(requests for requests, _ in self.leases.values()))
            if room <= 0:
                return Grant(0, wait=self._seconds_until_retry(terms, now))
        return Grant(room, int(now // HOUR))

    def give_back(self, lease: Lease, terms: Terms, answered: float) -> None:
        """A lease is used up or expired; its last answer came at `answered`."""
        if lease.name in self.out:
            self.out.remove(lease.name)
        self.leases.pop(lease.name, None)
        if lease.used and terms.count is not None:
            self.leases[lease.name] = lease.used, answered + terms.window
        if lease.hour in self.hours:
            self.hours[lease.hour] = max(0, self.hours[lease.hour] - (lease.requests - lease.used))

    def pause(self, until: float) -> None:
        self.held = max(self.held, until)

    def spend(self, until: float) -> None:
        self.spent = max(self.spent, until)

    @property
    def today(self) -> int:
        """Requests within the last 24 to 25 hours."""
        return sum(self.hours.values())

    def spent_for(self, terms: Terms, now: float) -> float | None:
        """Seconds until there is budget again; None if there is budget now."""
        if self.spent > now:
            return self.spent - now
        first = int(now // HOUR) - HOURS
        hours = {hour: requests for hour, requests in self.hours.items() if hour > first and requests}
        if terms.day is None or sum(hours.values()) < terms.day:
            return None
        return float((min(hours) + HOURS) * HOUR) - now

    def _forget(self, terms: Terms, now: float) -> None:
        """Drop what no longer counts, and times that are only possible if the clock was set back."""
        latest = now + USE + terms.window
        self.leases = {
            name: (requests, min(until, latest))
            for name, (requests, until) in self.leases.items()
            if until > now
        }
        self.out = [name for name in self.out if name in self.leases]
        hour = int(now // HOUR)
        self.hours = {at: requests for at, requests in self.hours.items() if hour - HOURS < at <= hour}
        self.held = min(self.held, now + LONGEST_HOLD)
        self.spent = min(self.spent, now + HOURS * HOUR)

    def _seconds_until_retry(self, terms: Terms, now: float) -> float:
        """Seconds until there is room, or until another holder may have given requests back."""
        wait = min(until for _, until in self.leases.values()) - now
        return min(wait, max(0.05, min(terms.window / PARTS, 1.0))) if self.out else wait
