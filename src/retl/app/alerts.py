"""Alerts: inform people when a sync starts or stops having a problem.

An alert reports a change, once. The current problems of each sync are remembered; only a new problem, or
the end of the last one, is reported. An alert contains counts, codes and messages, never a value of a row.
Nothing here changes a run: an alert that cannot be sent is logged, and the next run tries again.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Protocol

from retl.errors import DefinitionError, Later, LedgerError, RetlError, Unavailable
from retl.observe import log
from retl.observe.redact import redact
from retl.project.definitions import Alert, AlertEvent, Recipient, Sync

TIMEOUT = 15.0  # seconds for one alert, in total
ENDED_WELL = ("SUCCESS", "SUCCESS_WITH_REJECTS")
_PROBLEM: Mapping[str, AlertEvent] = {"FAILED": "failure", "REFUSED": "refusal"}


class Memory(Protocol):
    """Where reported problems are stored: the ledger."""

    def reported(self, alert: str, sync: str) -> frozenset[str] | None: ...

    def remember(self, alert: str, sync: str, troubles: frozenset[str]) -> None: ...


@dataclass(frozen=True)
class Observation:
    """An event of a sync: the end of a run, or its age. Counts and codes, no values of rows."""

    sync: Sync
    status: str  # of a run, or STALE, or FRESH
    run_id: str | None = None
    environment: str | None = None
    counts: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None

    def judged(self) -> frozenset[str]:
        """The kinds of problem that this event decides about."""
        if self.status in ENDED_WELL:
            return frozenset({"failure", "refusal", "rejects", "stale"})
        if self.status in _PROBLEM:
            return frozenset({"failure", "refusal"})
        return frozenset({"stale"}) if self.status in ("STALE", "FRESH") else frozenset()

    def troubles(self, alert: Alert) -> frozenset[str]:
        """The problems the sync has now, by the alert's own limit for rejects."""
        found = {_PROBLEM[self.status]} if self.status in _PROBLEM else set[str]()
        read, rejected = self.counts.get("read", 0), self.counts.get("rejected", 0)
        limits = [when.rate for when in alert.on if when.event == "rejects"]
        if read and any(rejected / read > limit for limit in limits):
            found.add("rejects")
        return frozenset(found | ({"stale"} if self.status == "STALE" else set()))


def require(alerts: Sequence[Alert]) -> None:
    """DefinitionError APPRISE_MISSING if an alert needs apprise and it is not installed."""
    if any(alert.to.apprise for alert in alerts) and importlib.util.find_spec("apprise") is None:
        raise DefinitionError(
            "APPRISE_MISSING",
            "an alert in retl.yml needs apprise, which is not installed",
            hint="run pip install 'retl-cli[alerts]', or use {webhook: https://…}",
            where="retl.yml",
        )


def observe(alerts: Sequence[Alert], seen: Observation, memory: Memory) -> None:
    """Send the alerts for what changed. Never raises."""
    for alert in alerts:
        if not alert.concerns(seen.sync) or not seen.judged():
            continue
        try:
            _observe(alert, seen, memory)
        except Exception as problem:  # noqa: BLE001 - the run has ended, and its status does not change
            why = problem.code if isinstance(problem, RetlError) else type(problem).__name__
            log.event("alert_failed", level="warning", sync=seen.sync.name, why=why)


def event(
    alert: Alert, seen: Observation, before: frozenset[str] | None
) -> tuple[str | None, frozenset[str]]:
    """The event to report, if any, and the current problems of the sync."""
    now = ((before or frozenset()) - seen.judged()) | seen.troubles(alert)
    wanted = [when.event for when in alert.on]
    fresh = now - (before or frozenset())
    if fresh:
        return next((one for one in wanted if one in fresh), None), now
    if not now and before and "recovery" in wanted:
        return "recovery", now
    well = seen.status in ENDED_WELL and not now and (before is None or bool(before))
    return ("success" if well and "success" in wanted else None), now


def _observe(alert: Alert, seen: Observation, memory: Memory) -> None:
    name = _name(alert.to)
    before = None
    with suppress(
        LedgerError, Later
    ):  # without its memory an alert may come twice, which is better than never
        before = memory.reported(name, seen.sync.name)
    name_of_event, now = event(alert, seen, before)
    if name_of_event is not None:
        _send(alert.to, document(name_of_event, seen))
        log.event("alert_sent", sync=seen.sync.name, alert=name_of_event)
    if now != before:
        memory.remember(name, seen.sync.name, now)


def document(name_of_event: str, seen: Observation) -> dict[str, Any]:
    """The alert as JSON."""
    error = seen.error and {part: _clean(seen.error.get(part)) for part in ("code", "message", "hint")}
    return {
        "event": name_of_event,
        "sync": seen.sync.name,
        "run_id": seen.run_id,
        "status": seen.status,
        "environment": seen.environment,
        "counts": dict(seen.counts),
        "error": error,
    }


def sentence(document: Mapping[str, Any]) -> tuple[str, str]:
    """The alert as a title and a text for people."""
    where = f" ({document['environment']})" if document["environment"] else ""
    lines = [f"status {document['status']}" + (f", run {document['run_id']}" if document["run_id"] else "")]
    counts = [f"{name.replace('_', ' ')} {n}" for name, n in document["counts"].items() if n]
    lines += [", ".join(counts)] if counts else []
    if error := document["error"]:
        lines += [f"{error['message']} [{error['code']}]", *([error["hint"]] if error["hint"] else [])]
    return f"retl: {document['event']} of {document['sync']}{where}", "\n".join(lines)


def _clean(text: Any) -> str | None:
    return None if text is None else redact(str(text))


def _name(to: Recipient) -> str:
    """The name under which a recipient is stored: a digest, because its address may be a secret."""
    secret = to.webhook or to.apprise
    assert secret is not None
    return sha256(secret.get_secret_value().encode()).hexdigest()[:16]


def _send(to: Recipient, document: Mapping[str, Any]) -> None:
    """Send it. Unavailable, or the error of the connection, if it did not arrive."""
    if to.webhook is not None:
        return _post(to.webhook.get_secret_value(), document)
    assert to.apprise is not None
    return _apprise(to.apprise.get_secret_value(), document)


def _post(url: str, document: Mapping[str, Any]) -> None:
    from retl.net.auth import WholeUrl
    from retl.net.client import Address, Client, Timeouts
    from retl.net.messages import Request

    auth = WholeUrl.model_validate({"type": "url", "url": url})
    timeouts = Timeouts(connect=TIMEOUT / 3, idle=TIMEOUT, total=TIMEOUT)
    body = json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")
    client = Client(Address.parse(auth.origin), auth, {"Content-Type": "application/json"}, timeouts)
    try:
        reply = client.send(Request("POST", "/", (), body))
    finally:
        client.close()
    if not 200 <= reply.status < 300:
        raise Unavailable(f"HTTP_{reply.status}", "the webhook did not accept the alert")


def _apprise(url: str, document: Mapping[str, Any]) -> None:
    logging.getLogger("apprise").addHandler(logging.NullHandler())  # otherwise it prints addresses to stderr
    logging.getLogger("apprise").propagate = False
    import apprise

    title, body = sentence(document)
    kinds = {"failure": "failure", "refusal": "failure", "success": "success", "recovery": "success"}
    sender = apprise.Apprise()
    if not sender.add(url):
        raise Unavailable("APPRISE_URL", "apprise does not know this kind of URL")
    if not sender.notify(title=title, body=body, notify_type=kinds.get(document["event"], "warning")):
        raise Unavailable("APPRISE_REFUSED", "apprise could not send the alert")
