"""What the tests of vendors with code of their own have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.delivered import Prove


@pytest.fixture
def prove(request: pytest.FixtureRequest, record_property: Callable[[str, Any], None]) -> Prove:
    """Tells the table at the end of a test run what was proved of the module's destination."""
    name = request.module.__name__.rpartition(".test_")[2]
    return lambda what, count: record_property("proof", [name, what, count])
