"""Events of a run, one line each on stderr.

JSON if stderr is not a terminal, otherwise text, with control characters escaped so that no value can forge
a line or control the terminal. Every text passes `redact`. Other parts (progress, traces, the crash point
of tests) listen to events. It never writes to stdout.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from math import isfinite
from threading import Lock
from typing import Any, Literal, TextIO, cast

from retl.observe.redact import redact

# if rich is installed, structlog imports it for tracebacks that we never show: a tenth of our start time
_rich = sys.modules.get("rich")
sys.modules["rich"] = cast(Any, None)  # hides rich during the import
import structlog  # noqa: E402
from structlog.typing import EventDict, WrappedLogger  # noqa: E402

if _rich is None:
    del sys.modules["rich"]
else:
    sys.modules["rich"] = _rich

Format = Literal["json", "console"]
Level = Literal["debug", "info", "warning", "error"]
Listener = Callable[[str, Mapping[str, Any]], None]

NOTABLE = 1.0  # seconds of a wait that a person wants to know of

_LEVELS: dict[Level, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_listeners: list[Listener] = []
_SILENT = 100  # no level is as high
_least = _SILENT  # lowest level that is written; checked here because structlog needs 5 µs for it
_logger: structlog.typing.FilteringBoundLogger | None = None
_face: Format = "json"  # of the configured log
_crash_at: str | None = None


def configure(
    format: Format | None = None, level: Level = "info", *, color: bool = True, crash_at: str | None = None
) -> None:
    """Configure the log of this process; before that nothing is written. With format None, stderr decides.
    The program's own use of structlog is left alone.

    `crash_at` is `event:n`, for tests only: the process kills itself directly after the n-th event of that
    name."""
    global _crash_at, _face, _least, _logger
    _crash_at = crash_at
    _least = _LEVELS[level]
    terminal = sys.stderr is not None and sys.stderr.isatty()
    chosen: Format = format or ("console" if terminal else "json")
    _face = chosen
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redacted,
    ]
    face: list[structlog.typing.Processor] = (
        [structlog.processors.JSONRenderer(ensure_ascii=False)]
        if chosen == "json"
        else [escaped, structlog.dev.ConsoleRenderer(colors=terminal and color)]
    )
    _logger = structlog.wrap_logger(
        structlog.PrintLogger(cast(TextIO, _Stderr())),
        processors=shared + face,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
    )
    _listeners.clear()
    if crash_at is not None:
        listen(_crash_point(crash_at))


def elsewhere() -> dict[str, Any] | None:
    """What `configure` takes in a process of ours whose events we tell ourselves; None before `configure`."""
    if _logger is None:
        return None
    level = next((name for name, number in _LEVELS.items() if number >= max(_least, 20)), "error")
    return {"format": _face, "level": level, "crash_at": _crash_at}


class _Stderr:
    """stderr for the log. A closed stderr must not fail a run."""

    def write(self, text: str) -> int:
        if sys.stderr is not None:
            with suppress(OSError, ValueError):  # a closed pipe, a full disk; a closed file
                sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        if sys.stderr is not None:
            with suppress(OSError, ValueError):
                sys.stderr.flush()


def get() -> structlog.typing.FilteringBoundLogger:
    """The logger, for lines that are not events."""
    if _logger is not None:
        return _logger
    silent = structlog.make_filtering_bound_logger(_LEVELS["error"] + 10)
    logger: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        structlog.ReturnLogger(), processors=[], wrapper_class=silent
    )
    return logger


def error(fields: Mapping[str, Any], name: str = "error") -> bool:
    """Write an error that ends a command as a line of the log, if its lines are JSON; else False, and it is
    to be told as a text. `name`: the event, for an error that ends nothing. An error of the project's files
    comes before the log is configured."""
    if _logger is None:
        asked = os.environ.get("RETL_LOG_FORMAT")
        configure(cast(Format, asked) if asked in ("json", "console") else None, "error")
    if _face == "json":
        get().error(name, **{key: value for key, value in fields.items() if value is not None})
    return _face == "json"


def event(name: str, /, *, level: Level = "info", **fields: Any) -> None:
    """Emit an event: to the log if the level allows it, and always to every listener.

    Fields hold counts, names and ids, never row values, which could not be recognised here. A listener that
    fails is removed; the caller goes on.
    """
    if _LEVELS[level] >= _least:
        get().log(_LEVELS[level], name, **fields)
    for listener in tuple(_listeners):
        try:
            listener(name, fields)
        except Exception as problem:  # noqa: BLE001 - an observer must not change the run
            with suppress(ValueError):  # another thread removed it already
                _listeners.remove(listener)
            why = f"{type(listener).__name__}: {type(problem).__name__}"
            get().warning("observer_failed", code="OBSERVER_FAILED", why=why)


def listen(listener: Listener) -> None:
    """Call `listener(name, fields)` at every later event, in the thread that emits it."""
    _listeners.append(listener)


def unlisten(listener: Listener) -> None:
    """The opposite; a listener that failed is gone already."""
    with suppress(ValueError):
        _listeners.remove(listener)


def heard() -> bool:
    """Whether anybody listens to events."""
    return bool(_listeners)


def bound(**fields: Any) -> AbstractContextManager[Any]:
    """While open, every line of this thread has these fields (run_id, sync …)."""
    return structlog.contextvars.bound_contextvars(**fields)


def redacted(logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
    """A structlog processor: remove secrets; convert everything except numbers to text."""
    return {name: _clean(value) for name, value in event_dict.items()}


def escaped(logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
    """A structlog processor: escape control characters, and characters that reorder text."""
    return {
        name: _UNSAFE.sub(lambda found: repr(found[0])[1:-1], value) if isinstance(value, str) else value
        for name, value in event_dict.items()
    }


def _clean(value: Any) -> Any:
    if value is None or isinstance(value, int) or (isinstance(value, float) and isfinite(value)):
        return value
    if isinstance(value, dict):
        return {redact(str(name)): _clean(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in value]
    return redact(str(value))


def _crash_point(crash_at: str) -> Listener:
    name, _, number = crash_at.partition(":")
    countdown = int(number or 1)
    lock = Lock()

    def crash(event_name: str, fields: Mapping[str, Any]) -> None:
        nonlocal countdown
        if event_name != name:
            return
        with lock:
            countdown -= 1
            if countdown == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return crash
