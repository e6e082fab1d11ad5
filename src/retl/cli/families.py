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
    "log",
    "reporting",
    "state",
    "conflicts",
    "rebuilding",
    "reconciling",
    "undoing",
    "reserved",
)


def register() -> None:
    """Import each module, which registers its commands, and put them in the order of FAMILIES: a program may
    have imported one of the modules before."""
    from retl.cli.app import app

    modules = [import_module(f"retl.cli.{name}").__name__ for name in FAMILIES]
    app.registered_commands.sort(key=lambda one: modules.index(getattr(one.callback, "__module__", "")))
