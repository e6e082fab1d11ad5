"""Passes the end of a run, or the age of a sync, to the project's alerts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from retl.cli.invocation import Invocation

if TYPE_CHECKING:
    from retl.ledger import Ledger
    from retl.observe.summary import Summary
    from retl.project.definitions import Sync


def require(invocation: Invocation) -> None:
    """DefinitionError if this installation cannot send an alert."""
    if alerts := invocation.project.definitions.alerts:
        from retl.app.alerts import require

        require(alerts)


def report_end(invocation: Invocation, sync: Sync, ledger: Ledger, summary: Summary) -> None:
    """Report that a run ended."""
    if not (alerts := invocation.project.definitions.alerts):
        return
    from retl.app.alerts import Observation, observe

    document = summary.document()
    counted = ("read", "unchanged", "inserted", "updated", "refreshed", "deleted", "rejected", "skipped")
    counts = {name: document[name] for name in (*counted, "in_doubt", "not_attempted")}
    seen = Observation(sync, summary.status, summary.run_id, invocation.environment, counts, summary.error)
    observe(alerts, seen, ledger)


def report_ages(invocation: Invocation, ledger: Ledger, states: Iterable[Mapping[str, Any]]) -> None:
    """Report the age of every sync that has a `freshness`."""
    from retl.app.alerts import Observation, observe

    project = invocation.project
    for one in states:
        if one["enabled"] and one["freshness_seconds"] is not None:
            age = "never succeeded" if one["age_seconds"] is None else f"{one['age_seconds']:.0f} s old"
            limit = f"{one['freshness_seconds']:.0f} s is the limit"
            error = {
                "code": "STALE",
                "message": f"{one['sync']} is stale: {age}, {limit}",
                "hint": one["next"],
            }
            seen = Observation(
                project.syncs[one["sync"]],
                "STALE" if one["stale"] else "FRESH",
                one["last_run"],
                invocation.environment,
                error=error if one["stale"] else None,
            )
            observe(project.definitions.alerts, seen, ledger)
