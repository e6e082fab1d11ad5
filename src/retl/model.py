"""What every options model is made of: frozen definitions, durations, rates, limits, formats, and which
hosts need TLS."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

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


Rate = Annotated[float, Field(ge=0, le=1)]


class Definition(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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


def is_loopback(host: str) -> bool:
    """This machine, by name, address or the path of a socket."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.startswith("/")


def needs_tls(host: str, *, allow_plaintext: bool = False) -> bool:
    """The rule of every connection: verified TLS, except on this machine or where plaintext is allowed."""
    return not (allow_plaintext or is_loopback(host))
