"""One command line answered inside the tests' own process, as a process of its own would answer it.

Its streams, environment, working directory, secrets, log and imports are its own and are put back
afterwards. It starts no interpreter, so a command costs what it does. What only a process has (signals, a
terminal, a closed stdout, umask, LANG, TZ, crash points, locks between processes) is not for here.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from retl import cli
from retl.cli import problems
from retl.contract import model
from retl.observe import log, redact

# These decide something only while a process starts, or end it.
ONLY_PROCESSES = ("TZ", "LANG", "LC_ALL", "PYTHONHASHSEED", "RETL_CRASH_AT", "LD_PRELOAD", "FAKETIME")


@dataclass(frozen=True)
class Said:
    """What one command left behind. `err` has the errors as a terminal would show them, `raw` as they were
    written: objects like the lines of the log."""

    code: int
    out: str
    raw: str

    @property
    def err(self) -> str:
        return "".join(_shown(line) for line in self.raw.splitlines(keepends=True))

    @property
    def document(self) -> Any:
        """stdout as the one JSON document that it must be."""
        return json.loads(self.out)


def _shown(line: str) -> str:
    if '"event": "error"' not in line or not line.startswith("{"):
        return line
    error = json.loads(line)
    if "traceback" in error:
        return f"{error['traceback']}\n"
    sync = f"{error['sync']}: " if "sync" in error else ""
    return f"error: {sync}{problems.sentence(error)}\n"


def answer(
    words: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    hears: Callable[[str], object] | None = None,
) -> Said:
    """What `retl` with these words, this whole environment and this working directory says and returns.
    `hears` gets each text for stderr in the thread that writes it, which waits for it to return."""
    for name in ONLY_PROCESSES:
        assert environment.get(name) in (None, os.environ.get(name)), f"{name} needs a process of its own"
    out, err = _stream(), _stream() if hears is None else _Overheard(hears)
    with ExitStack() as stack:
        stack.enter_context(own_state())
        stack.enter_context(_own_environment(environment))
        stack.enter_context(chdir(folder))
        stack.enter_context(_own_imports())
        stack.enter_context(_nothing_on_stdin())
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        stack.enter_context(warnings.catch_warnings())
        code = cli.main(words)
    return Said(code, _text(out), _text(err))


class _Overheard(io.TextIOWrapper):
    """A file that is no terminal and that somebody listens to."""

    def __init__(self, hears: Callable[[str], object]) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", errors="backslashreplace", newline="")
        self._hears = hears

    def write(self, text: str) -> int:
        self._hears(text)
        return super().write(text)


def _stream() -> io.TextIOWrapper:
    """A file that is no terminal."""
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", newline="")


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    buffer: Any = stream.buffer
    return buffer.getvalue().decode("utf-8").replace("\r\n", "\n")


@contextmanager
def _own_environment(environment: Mapping[str, str]) -> Iterator[None]:
    former = dict(os.environ)
    _set_environment(environment)
    try:
        yield
    finally:
        _set_environment(former)


def _set_environment(wanted: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(wanted):
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


@contextmanager
def _own_imports() -> Iterator[None]:
    """A project's own modules are imported again by the next command."""
    path, modules, entered = list(sys.path), set(sys.modules), model._entered
    try:
        yield
    finally:
        model._entered = entered
        added = [Path(folder) for folder in sys.path if folder not in path]
        sys.path[:] = path
        for name in set(sys.modules) - modules if added else ():
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and any(Path(file).is_relative_to(folder) for folder in added):
                del sys.modules[name]


@contextmanager
def own_state() -> Iterator[None]:
    """The log and the known secrets as they are when a process starts, and then as they were."""
    logger, least, listeners = log._logger, log._least, list(log._listeners)
    secrets = redact._secrets
    structlog.contextvars.clear_contextvars()
    log._logger, log._least, log._listeners[:] = None, log._SILENT, []
    redact.forget()
    tempfile.tempdir = None  # TMPDIR decides again
    try:
        yield
    finally:
        tempfile.tempdir = None
        log._logger, log._least, log._listeners[:] = logger, least, listeners
        redact.forget()
        redact.register(*secrets)


@contextmanager
def _nothing_on_stdin() -> Iterator[None]:
    former = sys.stdin
    with open(os.devnull, encoding="utf-8") as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = former
