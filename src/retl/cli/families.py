"""The modules with commands, in the order of `retl --help`."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

FAMILIES = (
    "beginning",
    "dbt",
    "definitions",
    "contract",
    "testing",
    "presets",
    "running",
    "watching",
    "applying",
    "explaining",
    "history",
    "log",
    "reporting",
    "serving",
    "alerting",
    "state",
    "rejecting",
    "moving",
    "conflicts",
    "rebuilding",
    "reconciling",
    "undoing",
    "erasing",
    "helping",
)


@cache
def commands() -> Any:
    """`retl` with all its commands, as it reads a command line. Making it takes as long as a small command: a
    process makes one."""
    import typer

    from retl.cli.app import app

    _register(app)
    return typer.main.get_command(app)


def _register(app: Any) -> None:
    """Import each module, which registers its commands, and put them in the order of FAMILIES: a program may
    have imported one of the modules before."""
    from retl.cli.grouping import give_examples

    modules = [import_module(f"retl.cli.{name}").__name__ for name in FAMILIES]
    app.registered_commands.sort(key=lambda one: modules.index(getattr(one.callback, "__module__", "")))
    give_examples(app)
