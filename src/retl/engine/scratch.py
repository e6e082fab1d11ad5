"""A run's scratch folder: only this user can read it, and it is removed after the run.

It can contain the frozen mart. A killed process cannot remove its folder, so the next process removes it: a
living owner has a kernel lock on its folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from retl.errors import Failure

PREFIX = "retl-run-"
_YOUNG = 30.0  # seconds in which a new folder may have no lock yet


@contextlib.contextmanager
def private_directory() -> Iterator[Path]:
    """An empty folder in the temporary directory, mode 0700, removed at the end."""
    with contextlib.ExitStack() as stack:
        try:
            _sweep(Path(tempfile.gettempdir()))
            made = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
            path = Path(stack.enter_context(made))
            stack.enter_context(_held(path))
            path.chmod(0o700)  # a umask may have removed our own rights
        except OSError as problem:
            raise unwritable(tempfile.tempdir or "the temporary folder", problem) from problem
        yield path


def unwritable(place: Path | str, problem: Exception) -> Failure:
    """Failure DISK_FULL: a folder for temporary files cannot be written."""
    named = re.search(r'": ([^"]+)', str(problem))  # DuckDB's words follow the file's name
    why = problem.strerror if isinstance(problem, OSError) else named and named[1]
    return Failure(
        "DISK_FULL",
        f"temporary files cannot be written in {place}: {why or type(problem).__name__}",
        hint="free space and inodes there, or set TMPDIR to another folder; then run again",
    )


@contextlib.contextmanager
def _held(name: str | Path) -> Iterator[bool]:
    """Lock a folder while the body runs; False if another process has the lock."""
    folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False
    finally:
        os.close(folder)


def _sweep(parent: Path) -> None:
    """Remove the folders of this user that no process has locked."""
    for path in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # removed meanwhile, or of another user
            found = path.lstat()
            if found.st_uid == os.geteuid() and time.time() - found.st_mtime > _YOUNG:
                with _held(path) as dead:
                    if dead:
                        shutil.rmtree(path, ignore_errors=True)
