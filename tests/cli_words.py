"""Command lines of retl in texts and files: found, and held against the CLI's own parser."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import typer

from retl.cli import families

_TEMPLATE = re.compile(r"\$?\{\{.*?\}\}")
_BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(retl [^`]*)`")
# retl at the beginning of a line of shell, of a crontab, or of a run: in YAML
_COMMAND = re.compile(r"^(?:\$ |[\d*/,]+ [\d*/,]+ \S+ \S+ \S+ |exec )?(?:\S*/)?retl(?:-cron)? (.*)")


def in_shell(text: str) -> Iterator[list[str]]:
    """The words after `retl` in every line that is a command of it."""
    for line in text.replace("\\\n", " ").splitlines():
        if found := _COMMAND.match(line.strip()):
            yield _words(found[1])


def in_page(text: str) -> Iterator[list[str]]:
    """The same for the shell blocks of a Markdown page."""
    for language, block in _BLOCK.findall(text):
        if language in ("console", "bash", "sh"):
            yield from in_shell(block)


def in_prose(text: str) -> Iterator[list[str]]:
    """The same for what stands between backticks, where arguments may be left out."""
    for said in _INLINE.findall(_BLOCK.sub("", text)):
        yield _words(said.removeprefix("retl "))


def assert_known(words: list[str], *, whole: bool = True) -> None:
    """The CLI's parser takes these words; without `whole` it may miss some."""
    command = families.commands()
    name, context = "retl", None
    try:
        while True:
            context = command.make_context(name, words, parent=context)
            words = [*getattr(context, "_protected_args", []), *context.args]
            if not (words and hasattr(command, "resolve_command")):
                return
            name, command, words = command.resolve_command(context, words)
            assert not command.hidden, f"`{context.command_path} {name}` is reserved"
    except typer.TyperException as problem:
        if whole or type(problem).__name__ not in ("MissingParameter", "BadOptionUsage", "NoArgsIsHelpError"):
            raise AssertionError(f"retl … {name} {words}: {problem}") from problem


def _words(line: str) -> list[str]:
    """The words of a command up to the first operator or redirection of the shell."""
    parts = shlex.shlex(_TEMPLATE.sub("X", line), posix=True, punctuation_chars=True)
    parts.whitespace_split = True
    parts.commenters = "#…"
    found: list[str] = []
    for part in parts:
        if set(part) <= set("|&;<>()"):
            return found[:-1] if part.startswith(">") and found[-1:] == ["2"] else found
        found.append(part)
    return found
