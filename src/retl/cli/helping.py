"""`retl help`: what to do about a CODE, and the help of a command."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any

import typer
from msgspec.structs import asdict

from retl.cli.app import app, command
from retl.cli.completing import helped
from retl.cli.invocation import Invocation
from retl.errors import DefinitionError

# docs/errors.md does not list what a target says in its own words.
# Each SQLSTATE that a server makes by itself has a digit; five letters are a word with a typing error.
_FOREIGN = re.compile(r"HTTP_\d{3}|SMTP_\d{3}|(?=.*\d)[0-9A-Z]{5}")


@command(app, "help")
def show_help(
    invocation: Invocation,
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CODE|COMMAND", help="A code of an error, or a command.", autocompletion=helped
        ),
    ] = None,
) -> None:
    """Explain the CODE of an error, or show the help of a command."""
    from retl.cli.codes import codes

    said = [] if words is None else words
    usage = _of_command(context.find_root(), said)
    if usage is not None:
        invocation.show({"help": usage}, lambda: [usage])
        return
    code = " ".join(said).upper()
    known = codes()
    if code in known:
        found = known[code]
        plain = found.text.replace("`", "")
        invocation.show(asdict(found), lambda: [f"{found.code}: {found.kind}\n\n{plain}"])
        return
    if _FOREIGN.fullmatch(code):
        text = f"{code} is a code of the target: its own documentation explains it."
        invocation.show({"code": code, "kind": "the target's", "text": text}, lambda: [text])
        return
    spelled = {name.upper(): name for name in (*known, *_commands(context.find_root()))}
    near = get_close_matches(code, spelled, n=1)
    hint = f"did you mean {spelled[near[0]]!r}?" if near else "retl --help"
    raise DefinitionError("USAGE", f"there is no code and no command {' '.join(said)!r}", hint=hint)


def _commands(root: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = getattr(root.command, "commands", {})
    return found


def _of_command(root: Any, words: list[str]) -> str | None:
    """The help of retl itself, or of the command that these words name."""
    context = root
    for word in words:
        inner = getattr(context.command, "commands", {}).get(word)
        if inner is None:
            return None
        context = inner.make_context(word, [], parent=context, resilient_parsing=True)
    return str(context.command.get_help(context)).rstrip()
