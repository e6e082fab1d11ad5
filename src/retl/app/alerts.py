"""Alerts: inform people when a sync starts or stops having a problem.

An alert reports a change, once. The current problems of each sync are remembered; only a new problem, or
the end of the last one, is reported. An alert contains counts, codes and messages, never a value of a row.
Nothing here changes a run: an alert that cannot be sent is logged, and the next run tries again.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urlsplit

from msgspec import Struct, field

from retl.errors import DefinitionError, Later, LedgerError, RetlError, Unavailable
from retl.model import Limits
from retl.observe import log
from retl.observe.redact import redact
from retl.project.alerts import Alert, AlertEvent
from retl.project.definitions import Sync

if TYPE_CHECKING:
    from retl.engine.mapping import Run
    from retl.pace.limiter import Book
    from retl.run.job import Target

    class Memory(Book, Protocol):
        """Where reported problems and the accounts of connections are stored: the ledger."""

        def reported(self, alert: str, sync: str) -> frozenset[str] | None: ...

        def remember(self, alert: str, sync: str, troubles: frozenset[str]) -> None: ...


TIMEOUT = 15.0  # seconds for one alert, in total
ENDED_WELL = ("SUCCESS", "SUCCESS_WITH_REJECTS")
KEY = "id"  # of an alert as a row
SAMPLE: Mapping[str, Any] = {
    KEY: "test",
    "event": "test",
    "sync": "test",
    "run_id": None,
    "status": "TEST",
    "environment": None,
    "counts": {},
    "error": None,
}
_REFUSED = "refused:"  # of a failure because every row was refused: how many, no event of its own
_PROBLEM: Mapping[str, AlertEvent] = {"FAILED": "failure", "REFUSED": "refusal"}


class Observation(Struct, frozen=True):
    """An event of a sync: the end of a run, or its age. Counts and codes, no values of rows."""

    sync: Sync
    status: str  # of a run, or STALE, or FRESH
    run_id: str | None = None
    environment: str | None = None
    counts: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None
    guards: Sequence[Mapping[str, Any]] = ()  # all that refused the run; `error` is the first of them

    def judged(self) -> frozenset[str]:
        """The kinds of problem that this event decides about."""
        if self.status in ENDED_WELL:
            return frozenset({"failure", "refusal", "rejects", "stale", "assert"})
        if self.status in _PROBLEM:
            return frozenset({"failure", "refusal"} | ({"assert"} if self.asserted else set()))
        return frozenset({"stale"}) if self.status in ("STALE", "FRESH") else frozenset()

    @property
    def asserted(self) -> bool:
        """Whether the run failed only because an assertion does not hold."""
        return self.error is not None and self.error.get("code") == "ASSERT_FAILED"

    def persists(self, before: frozenset[str]) -> bool:
        """Whether the rows whose refusal failed a run before are still refused beside others that arrived."""
        refused = [int(one.removeprefix(_REFUSED)) for one in before if one.startswith(_REFUSED)]
        return self.status == "SUCCESS_WITH_REJECTS" and any(one <= self._rejected for one in refused)

    @property
    def _rejected(self) -> int:
        """Rows of the mart that were rejected; deletes are not counted here."""
        return int(self.counts.get("rejected", 0))

    def troubles(self, alert: Alert) -> frozenset[str]:
        """The problems the sync has now, by the alert's own limit for rejects."""
        found = {str(_PROBLEM[self.status])} if self.status in _PROBLEM else set[str]()
        if self.error is not None and self.error.get("code") == "ALL_REFUSED":
            found.add(f"{_REFUSED}{self._rejected}")
        found |= {"assert"} if self.asserted else set()
        read, rejected = self.counts.get("read", 0), self.counts.get("rejected", 0)
        limits = [when.rate for when in alert.on if when.event == "rejects"]
        if read and any(rejected / read > limit for limit in limits):
            found.add("rejects")
        return frozenset(found | ({"stale"} if self.status == "STALE" else set()))


class Route(Struct, frozen=True):
    """An alert with the target of its connection and the limits of that, if it has one."""

    alert: Alert
    target: Target | None = None
    limits: Limits = field(default_factory=Limits)


class Digest(Struct):
    """The events that wait for the end of a command: alert, document, and what to remember of its sync."""

    waiting: list[tuple[Route, dict[str, Any], frozenset[str]]] = field(default_factory=list)

    def send(self, memory: Memory) -> None:
        """One alert per recipient for all that waited. Never raises."""
        waiting, self.waiting = self.waiting, []
        for route in {id(route): route for route, _, _ in waiting}.values():
            mine = [(document, now) for one, document, now in waiting if one is route]
            try:
                _send(route, mine[0][0] if len(mine) == 1 else together([one for one, _ in mine]), memory)
                log.event("alert_sent", syncs=[one["sync"] for one, _ in mine], alert="digest")
                for document, now in mine:
                    memory.remember(_name(route), document["sync"], now)
            except Exception as problem:  # noqa: BLE001 - as in `observe`
                why = problem.code if isinstance(problem, RetlError) else type(problem).__name__
                log.event("alert_failed", level="warning", to=recipient(route.alert), why=why)


def require(routes: Sequence[Route]) -> None:
    """DefinitionError APPRISE_MISSING if an alert needs apprise and it is not installed."""
    if any(one.alert.to.apprise for one in routes) and importlib.util.find_spec("apprise") is None:
        raise DefinitionError(
            "APPRISE_MISSING",
            "an alert in retl.yml needs apprise, which is not installed",
            hint="run pip install 'retl-cli[alerts]', or use {webhook: https://…}",
            where="retl.yml",
        )


def require_fit(target: Target) -> None:
    """DefinitionError if a target cannot take alerts."""
    from retl.run import message

    message.letter(target, KEY, list(row(SAMPLE)), _run()).destination.close()


def observe(routes: Sequence[Route], seen: Observation, memory: Memory, digest: Digest) -> None:
    """Send the alerts for what changed, or let them wait for their digest. Never raises."""
    for route in routes:
        if not route.alert.concerns(seen.sync.name, seen.sync.tags) or not seen.judged():
            continue
        try:
            _observe(route, seen, memory, digest)
        except Exception as problem:  # noqa: BLE001 - the run has ended, and its status does not change
            why = problem.code if isinstance(problem, RetlError) else type(problem).__name__
            to = recipient(route.alert)
            log.event("alert_failed", level="warning", sync=seen.sync.name, to=to, why=why)


def event(
    alert: Alert, seen: Observation, before: frozenset[str] | None
) -> tuple[str | None, frozenset[str]]:
    """The event to report, if any, and the current problems of the sync."""
    before_it, judged = before or frozenset(), seen.judged()
    if seen.persists(before_it):
        judged -= {"failure"}
    elif "failure" in judged:
        judged |= {one for one in before_it if one.startswith(_REFUSED)}
    now = (before_it - judged) | seen.troubles(alert)
    wanted = [when.event for when in alert.on]
    fresh = {one for one in now - before_it if not one.startswith(_REFUSED)}
    if fresh:
        return next((one for one in wanted if one in fresh), None), now
    if not now and before and "recovery" in wanted:
        return "recovery", now
    well = seen.status in ENDED_WELL and not now and (before is None or bool(before))
    return ("success" if well and "success" in wanted else None), now


def _observe(route: Route, seen: Observation, memory: Memory, digest: Digest) -> None:
    name = _name(route)
    before = None
    with suppress(
        LedgerError, Later
    ):  # without its memory an alert may come twice, which is better than never
        before = memory.reported(name, seen.sync.name)
    name_of_event, now = event(route.alert, seen, before)
    if name_of_event is not None:
        made = document(name_of_event, seen, route.alert.link)
        if route.alert.digest:
            digest.waiting.append((route, made, now))
            return
        _send(route, made, memory)
        log.event("alert_sent", sync=seen.sync.name, alert=name_of_event)
    if now != before:
        memory.remember(name, seen.sync.name, now)


def test(route: Route, environment: str | None) -> None:
    """Send one alert that says it is a test. DefinitionError or TargetError if it did not arrive."""
    link = route.alert.link
    _send(
        route,
        {
            **SAMPLE,
            KEY: _id("test", "test"),
            "environment": environment,
            "link": _linked(link, "test", "test"),
        },
        None,
    )


def document(name_of_event: str, seen: Observation, link: str | None = None) -> dict[str, Any]:
    """The alert as JSON."""
    error = seen.error and _cleaned(seen.error)
    return {
        KEY: _id(seen.sync.name, name_of_event, seen.run_id),
        "event": name_of_event,
        "sync": seen.sync.name,
        "run_id": seen.run_id,
        "status": seen.status,
        "environment": seen.environment,
        "counts": dict(seen.counts),
        "error": error,
        **({"guards": [_cleaned(one) for one in seen.guards]} if seen.guards else {}),
        **({"link": _linked(link, seen.run_id, seen.sync.name)} if link else {}),
    }


def _id(sync: str, event: str, run_id: str | None = None) -> str:
    """By this a recipient knows an alert that comes twice. One without a run is never taken for another."""
    return f"{run_id}-{event}" if run_id else f"{sync}-{event}-{secrets.token_hex(8)}"


def _linked(link: str | None, run_id: str | None, sync: str) -> str | None:
    filled = {"{run_id}": run_id or "", "{sync}": sync}
    return link and re.sub(r"\{run_id\}|\{sync\}", lambda found: quote(filled[found[0]], safe=""), link)


def together(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several alerts as one."""
    ids = "\n".join(one[KEY] for one in documents)
    return {
        KEY: f"digest-{sha256(ids.encode()).hexdigest()[:16]}",
        "event": "digest",
        "sync": None,
        "run_id": None,
        "status": None,
        "environment": documents[0]["environment"],
        "counts": {},
        "error": None,
        "alerts": list(documents),
    }


def row(document: Mapping[str, Any]) -> dict[str, str | None]:
    """The alert as a row for a connection: texts."""
    title, text = sentence(document)
    error = document["error"] or {}
    plain = (KEY, "event", "sync", "run_id", "status", "environment")
    return {
        **{name: document[name] for name in plain},
        "title": title,
        "summary": title,
        "text": f"{title}\n{text}",
        "code": error.get("code"),
        "message": error.get("message"),
        "hint": error.get("hint"),
        "counts": json.dumps(document["counts"]),
        "link": document.get("link"),
    }


def sentence(document: Mapping[str, Any]) -> tuple[str, str]:
    """The alert as a title and a text for people."""
    if several := document.get("alerts"):
        texts = [sentence(one) for one in several]
        return f"retl: {len(several)} alerts", "\n\n".join(f"{title}\n{text}" for title, text in texts)
    where = f" ({document['environment']})" if document["environment"] else ""
    lines = [f"status {document['status']}" + (f", run {document['run_id']}" if document["run_id"] else "")]
    counts = [f"{name.replace('_', ' ')} {n}" for name, n in document["counts"].items() if n]
    lines += [", ".join(counts)] if counts else []
    error = document["error"]
    for one in document.get("guards") or ([error] if error else []):
        lines += [f"{one['message']} [{one['code']}]", *([one["hint"]] if one["hint"] else [])]
    lines += [document["link"]] if document.get("link") else []
    return f"retl: {document['event']} of {document['sync']}{where}", "\n".join(lines)


def _cleaned(error: Mapping[str, Any]) -> dict[str, str | None]:
    return {part: _clean(error.get(part)) for part in ("code", "message", "hint")}


def _clean(text: Any) -> str | None:
    return None if text is None else redact(str(text))


def _name(route: Route) -> str:
    """The name under which a recipient is stored: a digest, because its address may be a secret."""
    to = route.alert.to
    secret = to.webhook or to.apprise
    text = secret.get_secret_value() if secret else json.dumps([to.connection, to.options], sort_keys=True)
    return sha256(text.encode()).hexdigest()[:16]


def recipient(alert: Alert) -> str:
    """Who gets an alert, for people: a connection's name, or the host of an address without the rest of it,
    which may be a secret."""
    to = alert.to
    if to.webhook is not None:
        return f"webhook {urlsplit(to.webhook.get_secret_value()).hostname or '?'}"
    if to.apprise is not None:
        service = to.apprise.get_secret_value().partition(":")[0]
        return f"apprise {'?' if '${' in service else service}"
    return str(to.connection)


def _send(route: Route, document: Mapping[str, Any], book: Book | None) -> None:
    """Send it, through a connection under the limits that its syncs share. Unavailable or Later, or the error
    of the connection, if it did not arrive."""
    to = route.alert.to
    if to.webhook is not None:
        return _post(to.webhook.get_secret_value(), document)
    if to.apprise is not None:
        return _apprise(to.apprise.get_secret_value(), document)
    assert route.target is not None
    from retl.pace.limiter import Pace
    from retl.run import message

    with closing(Pace(route.limits, book=book, connection=route.target.connection)) as pace:
        return message.send(route.target, KEY, row(document), _run(), TIMEOUT, pace)


def _run() -> Run:
    from retl.engine.mapping import Run

    return Run(f"alert-{secrets.token_hex(8)}", datetime.now(UTC))


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
