"""What is shown in the place of a value that must not be seen."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

MASK = "***"


def hide(name: str, value: Any, hidden: Collection[str]) -> Any:
    """The value of a field, masked if its name is among `hidden`. No value and `?` hide nothing."""
    return MASK if name in hidden and value not in (None, "?") else value
