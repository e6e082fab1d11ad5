"""The modules with commands, in the order of `retl --help`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

# The first words of the commands in each module. `help` is told of all commands.
FAMILIES: dict[str, tuple[str, ...]] = {
    "beginning": ("init", "demo"),
    "dbt": ("dbt",),
    "definitions": ("list", "validate", "check", "schema", "destinations", "sources"),
    "contract": ("contract",),
    "testing": ("test",),
    "presets": ("presets",),
    "running": ("sync", "plan"),
    "watching": ("watch",),
    "applying": ("apply", "resolve"),
    "explaining": ("explain",),
    "history": ("runs", "show", "status"),
    "log": ("log",),
    "reporting": ("report", "docs"),
    "serving": ("serve",),
    "alerting": ("alerts",),
    "state": ("state",),
    "rejecting": ("rejects", "retry"),
    "moving": ("state",),
    "conflicts": ("conflicts",),
    "rebuilding": ("state",),
    "reconciling": ("reconcile",),
    "undoing": ("rollback",),
    "erasing": ("erase",),
    "helping": (),
}


def command_of(words: Sequence[str]) -> Any:
    """`retl` with the commands that this command line can name: those of its first word, or all."""
    own = tuple(name for name, firsts in FAMILIES.items() if words and words[0] in firsts)
    return _made(own) if own else commands()


def commands() -> Any:
    """`retl` with all its commands. Making it takes as long as a small command."""
    return _made(tuple(FAMILIES))


@cache
def _made(names: tuple[str, ...]) -> Any:
    """`retl` with the commands of these modules, which register them when they are imported, in the order of
    FAMILIES: a program may have imported one of the modules before."""
    import typer

    from retl.cli.app import app
    from retl.cli.grouping import give_examples

    for name in names:
        import_module(f"retl.cli.{name}")
    order = [f"retl.cli.{name}" for name in FAMILIES]
    app.registered_commands.sort(key=lambda one: order.index(getattr(one.callback, "__module__", "")))
    give_examples(app)
    return typer.main.get_command(app)
