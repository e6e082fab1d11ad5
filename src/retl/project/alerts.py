"""Who gets an alert for which events, as a user writes it."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from retl.model import Definition, Rate, needs_tls

AlertEvent = Literal["failure", "refusal", "rejects", "stale", "success", "recovery", "assert"]


class When(Definition):
    """The event of an alert. `rejects`: more than this fraction of the rows read was rejected."""

    event: AlertEvent
    rate: Rate = 0.0


def _when(value: object) -> object:
    """`failure` or `{rejects: {rate: 0.01}}` → the fields of When."""
    if isinstance(value, str):
        return {"event": value}
    rejects = value.get("rejects") if isinstance(value, dict) and value.keys() == {"rejects"} else None
    if not isinstance(rejects, dict) or rejects.keys() != {"rate"}:
        raise ValueError(
            "`on` must be a list of failure, refusal, stale, assert, success, recovery,"
            " {rejects: {rate: 0.01}}"
        )
    return {"event": "rejects", **rejects}


class Recipient(Definition):
    """The recipient of an alert: a webhook's address, a URL of apprise (both may contain a secret), or a
    connection with the options that a sync's `destination` would have there."""

    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)

    webhook: SecretStr | None = None
    apprise: SecretStr | None = None
    connection: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Of the connection."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _one(self) -> Recipient:
        given = [one for one in (self.webhook, self.apprise, self.connection) if one is not None]
        if len(given) != 1 or (self.options and self.connection is None):
            raise ValueError(
                "`to` must be {connection: NAME}, {webhook: https://…}, or a URL that apprise knows"
            )
        text = self.webhook.get_secret_value() if self.webhook else ""
        parts = urlsplit(text)
        if self.webhook and "${" not in text:  # an unset variable is reported later
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("a webhook's address must look like https://host/path")
            if parts.scheme == "http" and needs_tls(parts.hostname):
                raise ValueError("a webhook's address must be https, except on this machine")
        return self


def _unset(text: str) -> set[str]:
    """The variables in a text, which are filled in later."""
    return set(re.findall(r"\$\{(.*?)\}", text))


class Alert(Definition):
    """Who gets an alert for which events; without syncs and tags for every sync."""

    to: Annotated[Recipient, BeforeValidator(lambda to: {"apprise": to} if isinstance(to, str) else to)]
    on: Annotated[
        tuple[Annotated[When, BeforeValidator(_when)], ...],
        BeforeValidator(lambda on: [on] if isinstance(on, str | dict) else on),
        Field(min_length=1),
    ]
    digest: bool = False  # one alert for all syncs of a command
    link: str | None = None  # the address of a report: {run_id} and {sync} are filled in
    syncs: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    @field_validator("link")
    @classmethod
    def _filled(cls, link: str | None) -> str | None:
        if link is not None and set(re.findall(r"\{(.*?)\}", link)) - {"run_id", "sync"} - _unset(link):
            raise ValueError("`link` may have {run_id} and {sync} in it, and nothing else in braces")
        return link

    def concerns(self, sync: str, tags: Collection[str]) -> bool:
        everything = not self.syncs and not self.tags
        return everything or sync in self.syncs or bool({*self.tags} & {*tags})
