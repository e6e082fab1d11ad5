"""The command line: parse, call, print. `main` turns arguments into an exit code.

All errors end here: what, where, why, what to do next, and a CODE. A command imports what it needs only
when it runs, so `retl --help` loads no driver.
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

GARBAGE_EVERY = 200_000  # objects; with Python's default of 700 the imports alone start a dozen collections


def process() -> NoReturn:
    """`main` as a process that ends at once when it is done. All lanes, files and connections are closed by
    then. A normal interpreter shutdown would take as long as a small sync."""
    gc.set_threshold(GARBAGE_EVERY)
    code = main(begun=BEGUN)
    atexit._run_exitfuncs()  # libraries' own exit functions still run
    os._exit(code)


def main(arguments: Sequence[str] | None = None, *, begun: float | None = None) -> int:
    """Run one command line (`sys.argv` if none is given) and return its exit code. Never raises. `begun` is
    when its time began to count (time.monotonic), now if it is not given."""
    begun = monotonic() if begun is None else begun
    _keep_descriptors()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["--version"], ["-V"]):
        return _finish(_print_version())
    from retl.cli import app

    return _finish(app.run(words, begun, once=arguments is None))


def _print_version() -> int:
    from retl.cli.output import write

    return 0 if write(f"retl {__version__}\n") else 1


def _keep_descriptors() -> None:
    """If stdin, stdout or stderr is closed, the next opened file would get its number, and output would go
    into that file, perhaps into the ledger."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)


def _finish(code: int) -> int:
    """Flush now: if the interpreter's own flush at exit failed, it would replace the exit code."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return code
