"""What a client of a target passes through: room for each request, and what the target says of its limits.

This one lets everything pass at once; a lane brings one that keeps the connection's pace. It never waits by
itself and knows no rows.
"""

from __future__ import annotations

from retl.net.auth import Permit, free
from retl.net.waits import Quota


class Gate:
    """Of one destination, for one thread."""

    def permits(self) -> Permit:
        """A client takes this once, when it is made, and then a permit for each request that it sends."""
        return free

    def on_quota(self, quota: Quota) -> None:
        """What an answer said of the target's own limits."""
