"""Turns errors into text for a person and an exit code for a machine.

What, where, why, what to do next, and a CODE. A traceback only with --debug. For an unexpected error only
its type and its place in the code are shown, because its text may contain row values.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from retl.cli.output import say
from retl.errors import RetlError


def each(problem: RetlError) -> Sequence[RetlError]:
    """The single errors of an error that holds several."""
    return getattr(problem, "errors", (problem,))


def described(problem: BaseException) -> dict[str, Any]:
    """The JSON form of an error: code, message, hint, where."""
    if isinstance(problem, RetlError):
        where = None if problem.where is None else str(problem.where)
        return {"code": problem.code, "message": problem.message, "hint": problem.hint, "where": where}
    code, message, hint = _unexpected(problem)
    return {"code": code, "message": message, "hint": hint, "where": None}


def exit_code(problem: BaseException) -> int:
    if isinstance(problem, KeyboardInterrupt):
        return 130
    return problem.exit_code if isinstance(problem, RetlError) else 1


def document(problem: BaseException) -> dict[str, Any]:
    """What `--output json` prints if a command failed."""
    several = each(problem) if isinstance(problem, RetlError) else (problem,)
    return {
        "error": described(several[0]),
        "errors": [described(one) for one in several],
        "exit_code": exit_code(problem),
    }


def report(problem: BaseException, *, debug: bool = False) -> None:
    """Print an error to stderr."""
    for one in each(problem) if isinstance(problem, RetlError) else (problem,):
        say(f"error: {sentence(described(one))}")
    if debug:
        say("".join(traceback.format_exception(problem)).rstrip())


def sentence(error: Mapping[str, Any]) -> str:
    """The result of `described` as text: where, what, CODE, and on the next line what to do."""
    where = f"{error['where']}: " if error.get("where") else ""
    hint = f"\n  hint: {error['hint']}" if error.get("hint") else ""
    return f"{where}{error['message']} [{error['code']}]{hint}"


def _unexpected(problem: BaseException) -> tuple[str, str, str | None]:
    if isinstance(problem, KeyboardInterrupt):
        return "SIGINT", "stopped by SIGINT", "run the same command again; it carries on"
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return "DISK_FULL", f"a file cannot be written: {problem.strerror}", "free space and run again"
    if isinstance(problem, MemoryError):
        return "OUT_OF_MEMORY", "there is not enough memory", None
    frames = traceback.extract_tb(problem.__traceback__)
    ours = [frame for frame in frames if "retl" in frame.filename] or frames
    place = f" in {ours[-1].name}, line {ours[-1].lineno}" if ours else ""
    return (
        "BUG",
        f"a bug in retl: {type(problem).__name__}{place}",
        "run again with --debug and report the output; what was delivered stays recorded",
    )
