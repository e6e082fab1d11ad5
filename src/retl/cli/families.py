"""The modules with commands, in the order of `retl --help`."""

from __future__ import annotations

from importlib import import_module

FAMILIES = (
    "beginning",
    "definitions",
    "testing",
    "running",
    "applying",
    "explaining",
    "history",
    "reporting",
    "state",
    "reserved",
)


def register() -> None:
    """Import each module, which registers its commands."""
    for name in FAMILIES:
        import_module(f"retl.cli.{name}")
