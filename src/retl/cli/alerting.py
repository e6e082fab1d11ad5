"""`retl alerts`: who is told what, and whether a message arrives."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import typer

from retl.app.failures import described
from retl.cli import problems
from retl.cli.app import command
from retl.cli.invocation import Invocation
from retl.cli.output import Table
from retl.cli.state import group
from retl.errors import RetlError

if TYPE_CHECKING:
    from retl.project.alerts import Alert

alerts = typer.Typer(help="Show who gets alerts, or send a test to each.", invoke_without_command=True)


def list_alerts(invocation: Invocation) -> None:
    """Show who gets which alerts; of an address only the host, because the rest may be a secret."""
    known, lacking = invocation.project.alerts
    filled = iter(known)
    shown = [
        one if any(one is other for other, _ in lacking) else next(filled).alert
        for one in invocation.project.definitions.alerts
    ]
    found = [
        {
            "to": _named(invocation, one),
            "on": [when.event for when in one.on],
            "syncs": [*one.syncs, *(f"tag:{tag}" for tag in one.tags)] or ["all"],
            "digest": one.digest,
        }
        for one in shown
    ]
    rows = [tuple(one.values()) for one in found]
    invocation.show(
        {"alerts": found},
        lambda: [Table(("to", "on", "syncs", "digest"), rows)] if rows else ["no alerts in retl.yml"],
    )


def _named(invocation: Invocation, alert: Alert) -> str:
    """Who gets an alert, and which variables of an address are not set."""
    from retl.app.alerts import recipient

    secret, has = alert.to.webhook or alert.to.apprise, invocation.project.environment.has
    names = re.findall(r"\$\{(\w+)\}", secret.get_secret_value()) if secret else []
    unset = [name for name in names if not has(name)]
    return recipient(alert) + (f" (not set: {', '.join(unset)})" if unset else "")


@command(alerts, "test")
def test(invocation: Invocation) -> int:
    """Send every recipient an alert that says it is a test."""
    from retl.app.alerts import recipient, require
    from retl.app.alerts import test as send

    known, lacking = invocation.project.alerts
    require(known)
    found: list[dict[str, Any]] = [
        {"to": _named(invocation, alert), "sent": False, "error": described(problem)}
        for alert, problem in lacking
    ]
    for route in known:
        error = None
        try:
            send(route, invocation.environment)
        except RetlError as problem:
            error = described(problem)
        found.append({"to": recipient(route.alert), "sent": error is None, "error": error})
    code = int(any(not one["sent"] for one in found))
    rows = [(one["to"], "sent" if one["sent"] else one["error"]["code"]) for one in found]
    invocation.show(
        {"alerts": found, "exit_code": code},
        lambda: [Table(("to", "result"), rows)] if rows else ["no alerts in retl.yml"],
    )
    for one in found:
        if one["error"]:
            problems.tell(one["error"])
    return code or int(invocation.output_lost)


group(alerts, "alerts", list_alerts, "list", reveals=False)
