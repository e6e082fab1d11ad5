"""Reads from headers how long a target asks us to wait, and how much of its quota is left. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Any, Literal

from msgspec import Struct
from pydantic import model_validator

from retl.model import Definition
from retl.net.lookup import look

LONGEST_WAIT = 3600.0  # seconds; after a longer wait we ask again
_UNITS = {"s": 1.0, "ms": 0.001, "epoch_s": 1.0}


class HeaderWait(Definition):
    """What else than Retry-After says how long to wait: a header, or the path `at` in the answer. In seconds,
    milliseconds (also of the whole window), or a moment."""

    header: str | None = None
    at: str | None = None
    unit: Literal["s", "ms", "epoch_s"] = "s"

    @model_validator(mode="after")
    def _fits(self) -> HeaderWait:
        if (self.header is None) == (self.at is None):
            raise ValueError("a time to wait is in a `header`, or at a path: `at`")
        return self

    def found(self, headers: Mapping[str, str], content: Any = None) -> float | None:
        """The number in the header or in the content of the answer."""
        if self.header is not None:
            return _number(headers.get(self.header.lower(), ""))
        value = look(content, self.at or "")
        return _number(str(value)) if type(value) in (int, float, str) else None


class Usage(Definition):
    """The headers that report how much of a quota is left, and when it restarts: `limit` and `remaining`,
    or one `header` in which the pattern `used` finds what is used and what is allowed."""

    limit: str | None = None
    remaining: str | None = None
    header: str | None = None
    used: str | None = None
    reset: HeaderWait | None = None

    @model_validator(mode="after")
    def _fits(self) -> Usage:
        if bool(self.limit and self.remaining) == bool(self.header and self.used):
            raise ValueError("usage needs `limit` and `remaining`, or `header` and `used`")
        return self


class Quota(Struct, frozen=True):
    """A target's own quota, as an answer reported it: the part that is left (0 to 1), and the seconds until
    it restarts, if known. A daily quota is a budget: when it is used up, the run ends."""

    left: float
    restart: float | None = None
    daily: bool = False


def wait_asked(
    headers: Mapping[str, str], header: HeaderWait | None = None, content: Any = None
) -> float | None:
    """Seconds that the target asks us to wait, at most LONGEST_WAIT; None if it does not say. Moments are
    compared with the target's own clock if it sends a date. Header names are in lower case; `content` is the
    answer's JSON."""
    now = _moment(headers.get("date")) or datetime.now(UTC).timestamp()
    seconds = header.found(headers, content) if header else None
    if header is not None and seconds is not None:
        start = now if header.unit == "epoch_s" else 0.0
        wait: float | None = (seconds - start) * _UNITS[header.unit]
    else:
        given = headers.get("retry-after", "")
        moment = _moment(given)
        wait = moment - now if moment is not None else _number(given)
    return None if wait is None else min(max(wait, 0.0), LONGEST_WAIT)


def quota(headers: Mapping[str, str], usage: Usage, *, daily: bool = False) -> Quota | None:
    """The target's quota; None if the headers do not report it."""
    if usage.used is not None:
        found = re.search(usage.used, headers.get((usage.header or "").lower(), ""))
        numbers = [_number(part) for part in found.groups()] if found else []
        limit = numbers[1] if len(numbers) == 2 else None
        left = limit - numbers[0] if limit is not None and numbers[0] is not None else None
    else:
        limit = _number(headers.get((usage.limit or "").lower(), ""))
        left = _number(headers.get((usage.remaining or "").lower(), ""))
    if limit is None or left is None or limit <= 0:
        return None
    restart = None
    if usage.reset is not None and (usage.reset.header or "").lower() in headers:
        restart = wait_asked(headers, usage.reset)
    return Quota(min(max(left / limit, 0.0), 1.0), restart, daily)


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if isfinite(number) else None


def _moment(value: str | None) -> float | None:
    """A date of HTTP, which is in UTC also if it does not say so."""
    try:
        found = parsedate_to_datetime(value) if value else None
        if found is None:
            return None
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, TypeError):
        return None
