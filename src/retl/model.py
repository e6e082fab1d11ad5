"""What every options model is made of: frozen definitions, durations, rates, limits, hours, formats, and
which hosts need TLS."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from datetime import time as TimeOfDay
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: object) -> float:
    """'90s', '1h30m', '24h' or a bare number of seconds → seconds. ValueError otherwise."""
    if isinstance(text, int | float) and not isinstance(text, bool) and 0 <= text < float("inf"):
        return float(text)
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text) if isinstance(text, str) else []
    if not parts or "".join(n + u for n, u in parts) != text:
        raise ValueError("a duration must be a number with a unit, such as 90s, 5m, 24h or 1h30m")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


Duration = Annotated[float, BeforeValidator(seconds, json_schema_input_type=str | float)]


def zone(name: str) -> tzinfo:
    """The time zone of this name. ValueError if there is none."""
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (OSError, ValueError, LookupError):
        raise ValueError(f"there is no time zone {name!r}: write it like Europe/Berlin") from None


def _known_zone(name: str) -> str:
    zone(name)
    return name


Timezone = Annotated[str, AfterValidator(_known_zone)]
Rate = Annotated[float, Field(ge=0, le=1)]


class Definition(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    def placed_in(self, folder: Path) -> Self:
        """The same, with paths that were relative to this folder."""
        return self


class Retry(Definition):
    attempts: Annotated[int, Field(ge=1, le=100)] = 5
    budget: Duration = 300.0


class Formats(Definition):
    """How values are written in JSON if the target does not want the standard forms."""

    bigints: Literal["number", "string"] = "number"
    decimals: Literal["number", "string"] = "number"
    dates: Literal["iso", "epoch_ms"] = "iso"
    timestamps: Literal["iso", "epoch_s", "epoch_ms"] = "iso"


class Limits(Definition):
    """The limits of a connection, of which `share` is ours: `requests` in any `per` seconds and `per_day`
    in any 24 hours, for all syncs, processes and hosts of one ledger; `concurrency` at the same time in each
    process."""

    requests: Annotated[int, Field(ge=1)] | None = None
    per: Duration = 1.0
    per_day: Annotated[int, Field(ge=1)] | None = None
    concurrency: Annotated[int, Field(ge=1, le=64)] | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Limits:
        if self.per != 1.0 and self.requests is None:
            raise ValueError("`per` needs `requests`: how many in this time")
        return self


def _of_clock(value: object) -> object:
    """YAML reads 22:00 without quotes as a number."""
    if isinstance(value, TimeOfDay):
        return value
    if not (isinstance(value, str) and re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", value)):
        raise ValueError('a time of the day must be written like "22:00", in quotes')
    return value


Clock = Annotated[TimeOfDay, BeforeValidator(_of_clock, json_schema_input_type=str)]


class Hours(Definition):
    """When something may be sent: every day from one time to another, over midnight if that is earlier."""

    from_: Clock = Field(alias="from")
    to: Clock
    timezone: Timezone = "UTC"

    @model_validator(mode="after")
    def _fits(self) -> Hours:
        if self.from_ == self.to:
            raise ValueError("`hours` from a time to the same time are no limit: leave them out")
        return self

    def closes(self, now: datetime) -> datetime | None:
        """The end of the hours that `now` is in; None outside them."""
        if not self._include(now):
            return None
        return next(moment for moment in self._moments(now) if not self._include(moment))

    def opens(self, now: datetime) -> datetime:
        """The next beginning."""
        moments = pairwise([now, *self._moments(now)])
        return next(after for before, after in moments if self._include(after) and not self._include(before))

    def __str__(self) -> str:
        return f"{self.from_:%H:%M} to {self.to:%H:%M} {self.timezone}"

    def _include(self, moment: datetime) -> bool:
        """What the clock on the wall shows decides, also where it skips or repeats an hour."""
        clock = moment.astimezone(zone(self.timezone)).time()
        if self.from_ < self.to:
            return self.from_ <= clock < self.to
        return not self.to <= clock < self.from_

    def _moments(self, now: datetime) -> list[datetime]:
        """When the hours may begin or end within three days, in UTC: at their own times, and when the clock
        is changed, which happens at quarters of an hour."""
        there = zone(self.timezone)
        today = now.astimezone(there).date()
        own = {
            datetime.combine(today + timedelta(days=day), clock, there).replace(fold=fold).astimezone(UTC)
            for day in range(4)
            for clock in (self.from_, self.to)
            for fold in (0, 1)
        }
        quarter = now.astimezone(UTC).replace(minute=now.minute // 15 * 15, second=0, microsecond=0)
        changes = {quarter + timedelta(minutes=15 * number) for number in range(1, 4 * 24 * 3)}
        return sorted(moment for moment in own | changes if moment > now)


def is_loopback(host: str) -> bool:
    """This machine, by name, address or the path of a socket."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.startswith("/")


def needs_tls(host: str, *, allow_plaintext: bool = False) -> bool:
    """The rule of every connection: verified TLS, except on this machine or where plaintext is allowed."""
    return not (allow_plaintext or is_loopback(host))


def require_endpoint(endpoint: str | None, *, allow_plaintext: bool) -> None:
    """ValueError if the `endpoint` of a store is no address of a server, or is not TLS where it must be."""
    parts = urlsplit(endpoint or "")
    if endpoint and "${" not in endpoint:  # an unset variable is reported later
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ValueError("`endpoint` must look like https://host or https://host:port")
        if parts.scheme == "http" and needs_tls(parts.hostname, allow_plaintext=allow_plaintext):
            raise ValueError("`endpoint` must be https, except on this machine or with allow_plaintext")
    if allow_plaintext and parts.scheme != "http":
        raise ValueError("`allow_plaintext` is for an `endpoint` that begins with http://")
