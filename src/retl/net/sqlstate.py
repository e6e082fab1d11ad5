"""What PostgreSQL's error codes mean: whose fault it is, and whether to try again.

Judged by SQLSTATE, never by exception class, which does not tell. Of the server's words only those go
on that cannot hold a row's values: never DETAIL, never CONTEXT, never the text of a row's error.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from retl.errors import Ambiguous, Systemic, TargetError, Unavailable

if TYPE_CHECKING:
    import psycopg

_AGAIN = {"40001", "40P01", "55P03", "57P03", "53300", "57P01", "57P02", "57P05", "57014", "25P03", "25P04"}
_UNKNOWN = {"08007", "40003"}
_TELLABLE = ("08", "0A", "25", "28", "3D", "40", "42", "53", "55", "57")  # their texts hold no values
_HINTS = {
    "28": "check user, password and the server's pg_hba.conf",
    "3D": "check dbname",
    "42": "run `retl check`: it names what is missing",
    "53": "the server is out of a resource: see its log",
}


def failure(error: psycopg.Error, *, lost: bool) -> TargetError:
    """The policy for an error before COMMIT was sent, `lost` with the connection or not. Raise it
    `from None`: the original tells values."""
    code = error.sqlstate
    if code is None and lost:
        return Unavailable("CONNECTION_LOST", "PostgreSQL fell silent or hung up; nothing was applied")
    if code is None:
        return Systemic(
            "UNREADABLE", "PostgreSQL's answer cannot be read: a value outside of Python's range?"
        )
    said = words(error)
    if code in _UNKNOWN:
        return Ambiguous(code, f"PostgreSQL does not know what became of the transaction{said}")
    if code in _AGAIN or code.startswith("08"):
        return Unavailable(code, f"PostgreSQL cannot do it now{said}")
    return Systemic(code, f"PostgreSQL refuses (SQLSTATE {code}){said}", hint=_HINTS.get(code[:2]))


def words(error: psycopg.Error) -> str:
    """What the server said, after a colon; nothing where its text might hold values."""
    code, said = error.sqlstate or "", error.diag.message_primary
    return f": {said}" if said and code.startswith(_TELLABLE) else ""


def doubt() -> Ambiguous:
    return Ambiguous("COMMIT_UNANSWERED", "the connection to PostgreSQL was lost after COMMIT was sent")


# libpq keeps no SQLSTATE of a connection that was never made: its words are all there is.
_BUSY = re.compile(r"starting up|shutting down|recovery mode|too many (clients|connections)|connection slots")
_UNREACHED = (
    (r"refused", "nothing listens there"),
    (r"translate host name|resolve", "the host has no address"),
    (r"timeout|timed out", "no answer came in time"),
    (_BUSY.pattern, "it is busy or starting"),
)
_REFUSED = (
    (r"password|authentication|pg_hba\.conf|role .* does not exist", "28000", "it does not accept the login"),
    (r"database .* does not exist", "3D000", "it has no such database"),
    (r"certificate|SSL|TLS", "TLS", "no verified TLS connection came about"),
    (r"FATAL:", "REFUSED", "it refuses the connection"),
)


def unconnected(error: psycopg.Error, server: str, user: str) -> TargetError:
    """The policy for a session that was not made, with `server` as errors call it."""
    if error.sqlstate is not None:
        return failure(error, lost=True)
    text = re.sub(r'"[^"]*"', "", str(error))  # names may hold any word
    if not _BUSY.search(text):
        for pattern, code, reason in _REFUSED:
            if re.search(pattern, text):
                hint = "sslmode, sslrootcert and the server's certificate" if code == "TLS" else None
                told = f"{server}: {reason}" + (f" of {user}" if code == "28000" else "")
                return Systemic(code, told, hint=hint or _HINTS.get(code[:2]))
    why = next((reason for pattern, reason in _UNREACHED if re.search(pattern, text)), "the network is down")
    return Unavailable(
        "UNREACHABLE",
        f"{server} cannot be reached now: {why}",
        hint="check host, port and that it runs, then run again",
    )
