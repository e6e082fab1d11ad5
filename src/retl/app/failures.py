"""Errors as documents and exit codes, also unexpected ones.

For an unexpected error only its type and place in the code are shown: its text may contain row values.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Sequence
from typing import Any

from retl.errors import RetlError


def each(problem: RetlError) -> Sequence[RetlError]:
    """The single errors of an error that combines several."""
    return getattr(problem, "errors", (problem,))


def described(problem: BaseException) -> dict[str, Any]:
    """An error for a JSON document: code, message, hint, where."""
    if isinstance(problem, RetlError):
        where = None if problem.where is None else str(problem.where)
        return {"code": problem.code, "message": problem.message, "hint": problem.hint, "where": where}
    code, message, hint = _unexpected(problem)
    return {"code": code, "message": message, "hint": hint, "where": None}


def exit_code(problem: BaseException) -> int:
    if isinstance(problem, KeyboardInterrupt):
        return 130
    return problem.exit_code if isinstance(problem, RetlError) else 1


def _unexpected(problem: BaseException) -> tuple[str, str, str | None]:
    if isinstance(problem, KeyboardInterrupt):
        return "SIGINT", "stopped by SIGINT", "run the same command again; it carries on"
    if isinstance(problem, OSError) and problem.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return (
            "FILE_UNWRITABLE",
            f"a file cannot be read or written: {problem.strerror}",
            "let this user write there; --debug shows which file",
        )
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
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
