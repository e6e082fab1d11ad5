"""How long a target asks us to wait, and how much of its quota is left: read from headers, pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite

from retl.destinations.batch import Quota
from retl.destinations.http.rules import (HeaderWait, Usage)

LONGEST_WAIT = 3600.0  # seconds; a target that asks for more is asked again after this
_UNITS = {"s": 1.0, "ms": 0.001, "epoch_s": 1.0}


def wait_asked(headers: Mapping[str, str], header: HeaderWait | None = None) -> float | None:
    """Seconds the target asks us to wait, at most LONGEST_WAIT; None if it does not say. Moments are
    held against the target's own clock where it tells the time. Header names are in lower case."""
    now = _moment(headers.get("date")) or datetime.now(UTC).timestamp()
    given = headers.get(header.header.lower()) if header else None
    if header is not None and given is not None:
        seconds = _number(given)
        start = now if header.unit == "epoch_s" else 0.0
        wait = None if seconds is None else (seconds - start) * _UNITS[header.unit]
    else:
        given = headers.get("retry-after", "")
        moment = _moment(given)
        wait = moment - now if moment is not None else _number(given)
    return None if wait is None else min(max(wait, 0.0), LONGEST_WAIT)


def quota(headers: Mapping[str, str], usage: Usage, *, daily: bool = False) -> Quota | None:
    """What is left of the target's quota and when it begins anew; None if the headers do not say."""
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
    anew = None
    if usage.reset is not None and usage.reset.header.lower() in headers:
        anew = wait_asked(headers, usage.reset)
    return Quota(min(max(left / limit, 0.0), 1.0), anew, daily)


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if isfinite(number) else None


def _moment(value: str | None) -> float | None:
    try:
        return parsedate_to_datetime(value).timestamp() if value else None
    except ValueError:
        return None
