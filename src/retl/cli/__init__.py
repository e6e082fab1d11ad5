"""The command line: parse, call, print. `main` turns arguments into an exit code.

Every error ends here and nowhere else, as what, where, why, what to do and a CODE. Nothing that a command
needs only while it works is imported before it works, so that `retl --help` loads no driver.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import NoReturn

from retl import BEGUN, __version__

GARBAGE_EVERY = 200_000  # objects; at Python's own 700 the imports alone are searched a dozen times over


def process() -> NoReturn:
    """`main` as a process of its own, which ends the moment it has answered: every lane, file and connection
    is closed by then, and to take its modules apart would cost the interpreter as much as a small sync."""
    gc.set_threshold(GARBAGE_EVERY)
    code = main(begun=BEGUN)
    atexit._run_exitfuncs()  # what libraries want done at the end still is
    os._exit(code)


def main(arguments: Sequence[str] | None = None, *, begun: float | None = None) -> int:
    """Run one command line (`sys.argv` if none is given) and return its exit code. Never raises. `begun` is
    when its time began to count (time.monotonic), now if it is not given."""
    begun = monotonic() if begun is None else begun
    _keep_descriptors()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["--version"], ["-V"]):
        return _finish(_say_version())
    from retl.cli import app

    return _finish(app.run(words, begun))


def _say_version() -> int:
    from retl.cli.output import write

    return 0 if write(f"retl {__version__}\n") else 1


def _keep_descriptors() -> None:
    """Where stdin, stdout or stderr is closed, the next file opened would get its number, and whatever is
    printed would land in that file, perhaps the ledger."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)


def _finish(code: int) -> int:
    """The interpreter flushes once more at its end and would replace the exit code if that failed."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return code
