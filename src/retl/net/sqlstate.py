"""Maps PostgreSQL's error codes to our errors, which say whether to retry.

It uses SQLSTATE, because exception classes are not precise enough. Only messages that cannot contain a row's
values are kept: never DETAIL, never CONTEXT, never the text of an error about a row.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from retl.errors import Ambiguous, Systemic, TargetError, Unavailable

if TYPE_CHECKING:
    import psycopg

_RETRY = {"40001", "40P01", "55P03", "57P03", "53300", "57P01", "57P02", "57P05", "57014", "25P03", "25P04"}
_UNKNOWN = {"08007", "40003"}
_SAFE = ("08", "0A", "25", "28", "3D", "40", "42", "53", "54011", "55", "57")  # their texts contain no values
_WAITS = {
    "55P03": "another session keeps rows or the table locked: run again when it has ended; pg_locks names it"
}
_HINTS = {
    "28": "check user, password and the server's pg_hba.conf",
    "3D": "check dbname",
    "42": "run `retl check`: it reports what is missing",
    "53": "the server has run out of a resource: see its log",
}


def is_lost(error: psycopg.Error, session: psycopg.Connection[Any]) -> bool:
    """Whether the error means that the connection is gone. Its status is not enough: if poll reports nothing
    but an error of the socket, as it can at the moment a reset arrives, psycopg raises "connection socket
    closed" and leaves the connection's status at OK."""
    import psycopg

    return session.closed or (error.sqlstate is None and isinstance(error, psycopg.OperationalError))


def failure(error: psycopg.Error, *, lost: bool) -> TargetError:
    """The TargetError for an error before COMMIT was sent; `lost`: the connection is lost too. Raise it
    `from None`, because the original contains values."""
    code = error.sqlstate
    if code is None and lost:
        return Unavailable(
            "CONNECTION_LOST", "PostgreSQL closed the connection or stopped answering; nothing was applied"
        )
    if code is None:
        return Systemic("UNREADABLE", "PostgreSQL's answer cannot be read: a value outside Python's range?")
    message = words(error)
    if code in _UNKNOWN:
        return Ambiguous(code, f"PostgreSQL does not know what became of the transaction{message}")
    if code in _RETRY or code.startswith("08"):
        return Unavailable(code, f"PostgreSQL cannot do it now{message}", hint=_WAITS.get(code))
    return Systemic(code, f"PostgreSQL refuses (SQLSTATE {code}){message}", hint=_HINTS.get(code[:2]))


def words(error: psycopg.Error) -> str:
    """The server's message after a colon; empty if it could contain values."""
    code, message = error.sqlstate or "", error.diag.message_primary
    return f": {message}" if message and code.startswith(_SAFE) else ""


def doubt() -> Ambiguous:
    return Ambiguous("COMMIT_UNANSWERED", "the connection to PostgreSQL was lost after COMMIT was sent")


# libpq has no SQLSTATE if a connection was never opened, so its text is all there is.
_BUSY = re.compile(r"starting up|shutting down|recovery mode|too many (clients|connections)|connection slots")
_UNREACHED = (
    (r"refused", "nothing listens there"),
    (r"translate host name|resolve", "the host has no address"),
    (r"timeout|timed out", "no answer came in time"),
    (_BUSY.pattern, "it is busy or starting"),
)
_LOGIN = r"password|authentication|pg_hba\.conf|SASL|role .* (does not exist|is not permitted)|no such user"
_UNSET = "it asks for a password, and none is set for the login"
_REFUSED = (
    (r"no password supplied", "28000", _UNSET),
    (_LOGIN, "28000", "it does not accept the login"),
    (r"database .* does not exist|no such database", "3D000", "it has no such database"),
    (r"permission denied", "42501", "no right to connect to the database"),
    (r"certificate|SSL|TLS", "TLS", "there was no verified TLS connection"),
    (r"\w:  ", "REFUSED", "it refuses the connection"),  # "FATAL:  …", in the server's language
)
_CONNECTING = {
    "TLS": "sslmode, sslrootcert and the server's certificate",
    _UNSET: "set POSTGRES_PASSWORD, or `password` of the connection in retl.yml",
}


def unconnected(error: psycopg.Error, server: str, user: str, login: str | None = None) -> TargetError:
    """The TargetError for a session that was not opened; `server` is its name in messages, `login` the hint
    of a refused login: where user and password are set."""
    if error.sqlstate is not None:
        return failure(error, lost=True)
    text = re.sub(r'"[^"]*"', "", str(error))  # names may contain any word
    if not _BUSY.search(text):
        for pattern, code, reason in _REFUSED:
            if re.search(pattern, text):
                hint = (
                    _CONNECTING.get(reason) or _CONNECTING.get(code) or (login if code == "28000" else None)
                )
                message = f"{server}: {reason}" + (f" of {user}" if code == "28000" else f" (user {user})")
                return Systemic(code, message, hint=hint or _HINTS.get(code[:2]))
    why = next((reason for pattern, reason in _UNREACHED if re.search(pattern, text)), "the network is down")
    return Unavailable(
        "UNREACHABLE",
        f"{server} cannot be reached now: {why}",
        hint="check host and port, and that the server runs; then run again",
    )
