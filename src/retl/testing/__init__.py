"""Vendors to test syncs against: fakes on a real socket that remember, refuse and misbehave on demand.

    from retl.testing import FakeHubSpot, reset, throttled

    with FakeHubSpot(refuse=["bad@example.com"]) as hubspot:
        hubspot.misbehave(throttled(3), reset(applied=True))
        ...  # run a sync whose connection has base_url: hubspot.url and token: hubspot.token
        assert hubspot.objects["ann@example.com"] == {"firstname": "Ann"}

A fake enforces the vendor's known rules (credentials, rows per request, the forms of values) and answers
like the vendor. It listens only on the loopback interface and needs only the standard library. It does not
prove that a vendor accepts your rows: it does not know an account's properties, permissions or plan.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retl.testing.faults import answer, changed, cut, dripping, instead, passed, reset, slow, throttled
    from retl.testing.hubspot import FakeHubSpot, FakeHubSpotLists
    from retl.testing.iterable import FakeIterable, FakeIterableLists
    from retl.testing.marketing import FakeAirtable, FakeBraze, FakeKlaviyo, FakeMailchimp, FakeSegment
    from retl.testing.messages import FakePagerDuty, FakeSlack, FakeTeams, FakeWebhook
    from retl.testing.server import TOKEN, FakeApi, Fault
    from retl.testing.servicenow import FakeServiceNow

__all__ = [
    "TOKEN",
    "FakeAirtable",
    "FakeApi",
    "FakeBraze",
    "FakeHubSpot",
    "FakeHubSpotLists",
    "FakeIterable",
    "FakeIterableLists",
    "FakeKlaviyo",
    "FakeMailchimp",
    "FakePagerDuty",
    "FakeSegment",
    "FakeServiceNow",
    "FakeSlack",
    "FakeTeams",
    "FakeWebhook",
    "Fault",
    "answer",
    "changed",
    "cut",
    "dripping",
    "instead",
    "passed",
    "reset",
    "slow",
    "throttled",
]

_MODULES = ("server", "faults", "hubspot", "iterable", "marketing", "messages", "servicenow")


def __getattr__(name: str) -> Any:
    """A name of `__all__`, imported on first use from the first module that has it."""
    if name in __all__:
        for module in _MODULES:
            found = getattr(import_module(f"{__name__}.{module}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
