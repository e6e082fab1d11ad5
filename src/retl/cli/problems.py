"""Turns errors into text for a person and an exit code for a machine.

What, where, why, what to do next, and a CODE. A traceback only with --debug. For an unexpected error only
its type and its place in the code are shown, because its text may contain row values.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from typing import Any

from retl.app.failures import described, each, exit_code
from retl.cli.output import say
from retl.errors import RetlError


def document(problem: BaseException) -> dict[str, Any]:
    """What `--output json` prints if a command failed."""
    several = each(problem) if isinstance(problem, RetlError) else (problem,)
    return {
        "error": hinted(described(several[0])),
        "errors": [hinted(described(one)) for one in several],
        "exit_code": exit_code(problem),
    }


def report(problem: BaseException, *, debug: bool = False) -> None:
    """Print an error to stderr."""
    for one in each(problem) if isinstance(problem, RetlError) else (problem,):
        tell(described(one))
    for note in getattr(problem, "__notes__", ()):
        say(note)
    if debug:
        from retl.observe import log

        text = "".join(traceback.format_exception(problem)).rstrip()
        if not log.error({"traceback": text}):
            say(text)


def warn(faults: Iterable[RetlError]) -> None:
    """Print what is wrong with files that the command can do without."""
    from retl.observe import log

    for one in map(described, faults):
        if not log.error(hinted(one), "definitions_broken"):
            say(f"warning: {sentence(one)}")


def tell(error: Mapping[str, Any], sync: str | None = None) -> None:
    """Print the result of `described` to stderr: as text for a person, or as an object like the lines of the
    log, if they are JSON, so that a program that reads them can read all."""
    from retl.observe import log

    if not log.error({"sync": sync, **hinted(error)}):
        say(f"error: {sync + ': ' if sync else ''}{sentence(error)}")


def sentence(error: Mapping[str, Any]) -> str:
    """The result of `described` as text: where, what, CODE, and on the next line what to do."""
    where = f"{error['where']}: " if error.get("where") else ""
    said = hinted(error)["hint"]
    hint = f"\n  hint: {said}" if said else ""
    return f"{where}{error['message']} [{error['code']}]{hint}"


def hinted(error: Mapping[str, Any]) -> dict[str, Any]:
    """The result of `described`, with a way on: where the error has no hint, the page about its CODE, unless
    that only refers to the message."""
    from retl.cli.codes import codes

    said = error.get("hint")
    if said is None and (known := codes().get(error["code"])) and "the message" not in known.text:
        said = f"`retl help {error['code']}` says what to do"
    return {**error, "hint": said}
