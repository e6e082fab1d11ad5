"""Command names reserved for later versions: they do nothing and exit with code 2."""

from __future__ import annotations

from typing import Annotated

import typer

from retl.cli.app import app, command
from retl.cli.invocation import Invocation
from retl.errors import DefinitionError

COMMANDS = ("erase", "watch")


def _reserve(name: str) -> None:
    def reserved(
        invocation: Invocation,
        words: Annotated[list[str] | None, typer.Argument(metavar="…", show_default=False)] = None,
    ) -> None:
        raise DefinitionError("RESERVED", f"`retl {name}` is reserved for a later version of retl")

    reserved.__doc__ = "Reserved for a later version."
    command(app, name, reserved=True)(reserved)


for _name in COMMANDS:
    _reserve(_name)
