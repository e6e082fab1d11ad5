"""Errors of PyIceberg and the libraries below it: each becomes one sentence.

Their messages are not shown where they may quote a row or a credential.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from retl.errors import RetlError, SourceError
from retl.observe.redact import redact
from retl.sources.api import unsupported

_LONGEST_TEXT = 200  # characters of a library's own message

# The class of an error, or a base of it → code, what happened, what to do.
_CREDENTIAL = "check the credential, and the rights that it has in the catalog"
_LATER = "run again; if it happens again, look at the catalog's own log"
_KINDS = {
    "NoSuchTableError": (
        "MART_MISSING",
        "is not in the catalog",
        "correct `table`, `catalog` or `warehouse`",
    ),
    "NoSuchNamespaceError": ("MART_MISSING", "is in no namespace of the catalog", "correct `table`"),
    "NoSuchIdentifierError": ("MART_MISSING", "is not in the catalog", "correct `table`"),
    "UnauthorizedError": (
        "MART_UNREADABLE",
        "cannot be read: the catalog refuses the credential",
        _CREDENTIAL,
    ),
    "AuthorizationExpiredError": (
        "MART_UNREADABLE",
        "cannot be read: the credential has expired",
        _CREDENTIAL,
    ),
    "OAuthError": ("MART_UNREADABLE", "cannot be read: no token for this credential", _CREDENTIAL),
    "ForbiddenError": ("MART_UNREADABLE", "cannot be read: the catalog does not permit it", _CREDENTIAL),
    "NoCredentialsError": ("MART_UNREADABLE", "cannot be read: there is no credential", _CREDENTIAL),
    "TooManyRequestsError": ("MART_UNREADABLE", "cannot be read: the catalog has too much to do", _LATER),
    "ServiceUnavailableError": ("MART_UNREADABLE", "cannot be read: the catalog is not available", _LATER),
    "ServerError": ("MART_UNREADABLE", "cannot be read: the catalog has failed", _LATER),
    "SSLError": (
        "MART_UNREADABLE",
        "cannot be read: the certificate of the server cannot be verified",
        "set SSL_CERT_FILE to the authority that signed it; verification cannot be turned off",
    ),
    "Redirected": ("MART_UNREADABLE", "cannot be read: the catalog redirects", "correct `catalog.uri`"),
    "Timeout": ("MART_UNREADABLE", "cannot be read: the catalog did not answer in time", _LATER),
    "TimeoutError": ("MART_UNREADABLE", "cannot be read: there was no answer in time", _LATER),
    "EndpointConnectionError": ("MART_UNREADABLE", "cannot be read: the catalog cannot be reached", _LATER),
    "TTransportException": ("MART_UNREADABLE", "cannot be read: the catalog cannot be reached", _LATER),
    "ConnectionError": (
        "MART_UNREADABLE",
        "cannot be read: the catalog cannot be reached",
        "check `catalog.uri` and the network",
    ),
    "SQLAlchemyError": (
        "MART_UNREADABLE",
        "cannot be read: the database of the catalog cannot be read, or is no catalog",
        "check `catalog`",
    ),
    "PermissionError": (
        "MART_UNREADABLE",
        "cannot be read: the storage does not permit it",
        "check `storage` and the rights of its key",
    ),
}


class Gone(SourceError):
    """A file that the table names is not there."""


class Redirected(Exception):
    """The catalog sent us elsewhere; a credential is not sent after it."""


def failure(problem: BaseException, table: str, *, may_quote: bool = False) -> RetlError:
    """A library's error as ours. `may_quote`: its message may contain values of rows."""
    if isinstance(problem, RetlError):
        return problem
    if isinstance(problem, FileNotFoundError):
        return Gone(
            "MART_UNREADABLE",
            f"{table} cannot be read: one of its files is gone",
            hint="somebody removed files or expired the snapshot: run again, or repair the table",
        )
    if isinstance(problem, OSError) and _refused(str(problem)):
        problem = PermissionError()
    for kind in type(problem).__mro__:
        if known := _KINDS.get(kind.__name__):
            code, what, hint = known
            return SourceError(code, f"{table} {what}", hint=hint)
    name = type(problem).__name__
    if found := re.search(r"Unsupported field type: '?(\w+)", str(problem)):
        hint = "read it with an engine that knows the type, or take the column into another table"
        return unsupported(table, f"a column of type {found[1]}", hint)
    if isinstance(problem, OSError):
        return SourceError(
            "MART_UNREADABLE",
            f"{table} cannot be read: the storage did not give one of its files ({name})",
            hint="check `storage` and the network, and run again",
        )
    text = "" if may_quote else f": {redact(' '.join(str(problem).split()))[:_LONGEST_TEXT]}"
    return SourceError("MART_UNREADABLE", f"{table} cannot be read ({name}{text})")


def _refused(text: str) -> bool:
    """Whether a message of the storage says that we may not read."""
    return any(
        word in text for word in ("ACCESS_DENIED", "Access Denied", "AccessDenied", "HTTP response code 403")
    )


@contextmanager
def explained(table: str, *, may_quote: bool = False) -> Iterator[None]:
    """Errors of the libraries become ours."""
    try:
        yield
    except Exception as problem:  # noqa: BLE001 - the libraries have no common base
        raise failure(problem, table, may_quote=may_quote) from None
