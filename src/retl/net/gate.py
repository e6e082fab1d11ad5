"""The interface between a target's client and pacing: permits for requests, and reports of quotas.

This gate never waits; a lane replaces it with one that limits the connection's rate. It knows no rows.
"""

from __future__ import annotations

from retl.net.auth import Permit, free
from retl.net.waits import Quota


class Gate:
    """For one destination and one thread. `http_status` is that of the last answer, if any since it was set
    to None."""

    http_status: int | None = None

    def permits(self) -> Permit:
        """The source of permits. A client takes one permit for each request."""
        return free

    def on_quota(self, quota: Quota) -> None:
        """Called with the target's own quota, as an answer reported it."""

    def on_status(self, status: int) -> None:
        """Called with the status of each answer over HTTP."""
        self.http_status = status
