"""docs/reference/commands.md: every command with its arguments and options, from its own help."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from retl.cli import families
from retl.cli.app import SHARED

_SHARED = {*SHARED, "reveal", "version"}


def page() -> str:
    group = families.commands()
    top = group.make_context("retl", [], resilient_parsing=True)
    parts = ["# Commands", "`retl COMMAND --help` prints the same.", "## Options of every command"]
    parts += [_grid(top, (one for one in group.params if one.name in _SHARED))]
    parts += [
        "Put these before or after the command. Commands that show values also have `--reveal`: it shows sensitive values."
        " With `--output json` stdout is one JSON document and nothing else; logs go to stderr."
    ]
    for command, context in _commands(group, top):
        usage = " ".join(command.collect_usage_pieces(context))
        own = [one for one in command.params if one.name not in _SHARED]
        parts += [f"## {context.command_path}", command.help or ""]
        parts += [f"```text\n{context.command_path} {usage}\n```", _grid(context, own)]
        if command.epilog:
            parts += [f"```console\n$ {command.epilog.removeprefix('Example: ')}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _commands(group: Any, context: Any) -> Iterator[tuple[Any, Any]]:
    for name, command in group.commands.items():
        if not command.hidden:
            inner = command.make_context(name, [], parent=context, resilient_parsing=True)
            yield command, inner
            if hasattr(command, "commands"):
                yield from _commands(command, inner)


def _grid(context: Any, parameters: Iterable[Any]) -> str:
    rows = []
    for one in parameters:
        if record := one.get_help_record(context):
            names, text = (" ".join(part.split()).replace("|", "\\|") for part in record)
            rows.append(f"| `{names}` | {text} |")
    return "\n".join(["| | |", "|---|---|", *rows]) if rows else ""
