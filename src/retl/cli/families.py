"""The families of commands, in the order of `retl --help`."""

from __future__ import annotations


def register() -> None:
    """Importing a family registers its commands."""
    from retl.cli import (  # noqa: F401
        applying,
        beginning,
        definitions,
        explaining,
        history,
        reserved,
        running,
        state,
    )
