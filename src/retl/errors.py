"""All errors that retl raises on purpose, as one tree.

The type is the policy: it decides the exit code and, for an error of a target, what delivery does next. Any
other exception is a bug and stops the run.

::

    RetlError                 what, where, why, what to do; a CODE
    ├── DefinitionError       2   a file or an argument is wrong; nothing was written
    │   └── Misasked              the command asks for rows that cannot be; there is no run
    ├── Mismatch              3   source and target do not fit the sync: a guard, nothing was written
    ├── Later                 75  nothing is wrong: lock held, breaker open
    │   └── Spent                 the target says that the daily budget is used up
    ├── Stopped               130/143  a signal asked the run to stop; resumable
    └── Failure               1   the run could not be done
        ├── SourceError           the mart cannot be read
        ├── LedgerError           retl's own state cannot be read or written
        ├── InvariantBroken       numbers do not add up: a bug, reported as a failure
        └── TargetError           an error of a destination, or of a whole batch
            ├── Systemic              credentials, permission, missing table, disk: stop, one attempt
            ├── Unavailable           nothing was applied: try again, not before `retry_after` seconds
            ├── Ambiguous             sent, no answer: resolve before anything else
            │   └── Expired               and the idempotency key must not be used again
            └── Poisoned              at least one row is bad and nothing was applied: halve
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from msgspec import Struct


class Place(Struct, frozen=True):
    """A position in a file the user wrote; line and column count from 1."""

    file: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)


class RetlError(Exception):
    """What happened (`message`), where (`where`), what to do (`hint`), under a stable CODE.

    The texts must not contain row values or secrets.
    """

    exit_code = 1

    def __init__(
        self, code: str, message: str, *, hint: str | None = None, where: Place | str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.where = where

    def __reduce__(self) -> tuple[Any, ...]:
        """The same error in another process."""
        return _again, (type(self), self.args, self.__dict__)

    def __str__(self) -> str:
        head = f"{self.where}: {self.message}" if self.where else self.message
        return f"{head} [{self.code}]"


def _again(kind: type[RetlError], args: tuple[Any, ...], state: dict[str, Any]) -> RetlError:
    made = kind.__new__(kind, *args)
    made.__dict__.update(state)
    return made


class DefinitionError(RetlError):
    """A definition or an argument is wrong. Nothing ran, or if only a mart told, nothing of this sync was
    written."""

    exit_code = 2


class Misasked(DefinitionError):
    """The command asks for rows that the mart does not have, or in a way that does not fit it. The run that
    found this is not recorded."""


class Mismatch(RetlError):
    """Source or target do not fit the sync: judged as a guard, before the first write. `column`: what the
    contract calls the column that it is about."""

    exit_code = 3

    def __init__(
        self,
        code: str,
        message: str,
        *,
        hint: str | None = None,
        where: Place | str | None = None,
        column: str | None = None,
    ) -> None:
        super().__init__(code, message, hint=hint, where=where)
        self.column = column


class Later(RetlError):
    """Nothing is wrong, run again later."""

    exit_code = 75


class Spent(Later):
    """Nothing of the request was applied, and no request will be until the budget starts again in `restart`
    seconds (None if unknown)."""

    def __init__(self, message: str, *, restart: float | None = None) -> None:
        super().__init__("BUDGET_SPENT", message, hint="run again when the target's day is over")
        self.restart = restart


class Stopped(RetlError):
    """A signal asked the run to stop; the next run carries on."""

    def __init__(self, signum: int) -> None:
        name = signal.Signals(signum).name
        super().__init__(name, f"stopped by {name}", hint="run the same command again; it carries on")
        self.signum = signum
        self.exit_code = 128 + signum


class Failure(RetlError):
    """The run could not be done."""


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Failure FILE_UNWRITABLE for a file that a user named and that cannot be written."""
    try:
        yield
    except OSError as problem:
        message = f"{path} cannot be written: {problem.strerror}"
        raise Failure("FILE_UNWRITABLE", message, hint="name a file in a folder that is there") from None


class SourceError(Failure):
    """The mart cannot be read."""


class LedgerError(Failure):
    """retl's own state cannot be read or written."""


def damaged_state(place: str, reason: str) -> LedgerError:
    """Damaged state is never reset by itself: the hint says how to recover."""
    return LedgerError(
        "STATE_UNREADABLE",
        f"{place}: {reason}",
        hint="restore it from a backup; without one, move it away and take the mart as delivered "
        "with `retl state adopt`, or let the next run send every row",
    )


def former_format(place: str) -> LedgerError:
    """State of another format is neither guessed at nor changed: the hint names the way out."""
    return LedgerError(
        "STATE_FORMAT",
        f"{place} has a format that this retl does not read",
        hint="move the old state aside and keep it, or name another RETL_STATE_URL; then"
        " `retl state adopt SYNC` takes the mart as delivered",
    )


class InvariantBroken(Failure):
    """The run's numbers do not add up: reported as a failure, never as a success."""


class TargetError(Failure):
    """An error of a destination, or of a whole batch."""


class Systemic(TargetError):
    """No batch can succeed until a person fixes something: stop after one attempt."""


class Unavailable(TargetError):
    """Nothing was applied; the same request may succeed later. `retry_after` is in seconds."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retry_after: float | None = None,
        hint: str | None = None,
        where: Place | str | None = None,
    ) -> None:
        super().__init__(code, message, hint=hint, where=where)
        self.retry_after = retry_after


class Ambiguous(TargetError):
    """The request was sent and no answer came: find out what happened, never guess."""


class Expired(Ambiguous):
    """Sent before, and not repeated now, because the window of its idempotency key is over."""


class Poisoned(TargetError):
    """At least one row is bad (or the request is too large) and nothing was applied: halve the batch."""
