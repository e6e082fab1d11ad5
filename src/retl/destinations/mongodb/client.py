"""Speaks with MongoDB for one lane, and puts its errors into our own words.

It knows operations and no rows. No error repeats what MongoDB answered, because an answer may quote values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from pymongo import MongoClient
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WriteConcernError,
    WTimeoutError,
)
from pymongo.monitoring import CommandListener
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from retl.destinations.batch import Kind, Order, RowResult
from retl.destinations.mongodb.connection import MongoDBConnection
from retl.destinations.mongodb.documents import CODEC, Operation
from retl.errors import Ambiguous, Systemic, TargetError, Unavailable

Document = dict[str, Any]
_LOGIN = (11, 18, 31, 8000)
_FORBIDDEN = (13,)
_UNTOUCHED = (10107, 13435, 13436)  # it is not the primary, and did nothing
_NO_TRANSACTIONS = (20, 263, 303)
# Of a request, or of one row: a conflict, or a primary that goes.
_LATER = frozenset({6, 7, 24, 50, 89, 91, 112, 133, 189, 225, 246, 251, 262, 9001, 11600, 11602, *_UNTOUCHED})
_EXISTS, _CONFLICT, _INVALID, _DUPLICATE = 48, 112, 121, 11000
_CHECKED = "compare the account, the servers and the database of the connection"


class Answer(NamedTuple):
    """How many documents were found or made, and by their position in the request those that were made, and
    the rows that were refused."""

    matched: int
    made: frozenset[int]
    refused: Mapping[int, RowResult]


class _Sent(CommandListener):
    """How many requests that write have been sent."""

    def __init__(self) -> None:
        self.count = 0

    def started(self, event: Any) -> None:
        self.count += event.command_name in ("insert", "update", "delete", "commitTransaction")

    def succeeded(self, event: Any) -> None:
        """Of no interest, as is what failed."""

    def failed(self, event: Any) -> None:
        """The exception says it."""


class Client:
    """One lane. `key_names`: the fields of an index, an error of which is no row's fault."""

    def __init__(self, connection: MongoDBConnection, key_names: Sequence[str]) -> None:
        self._connection, self._key_names, self._sent = connection, list(key_names), _Sent()
        self.server = connection.servers
        with self.speaking():
            self._client: MongoClient[Document] = MongoClient(
                **connection.keywords(), connect=False, event_listeners=[self._sent]
            )

    @property
    def database(self) -> Database[Document]:
        return self._client.get_database(
            self._connection.name, codec_options=CODEC, read_concern=ReadConcern("majority")
        )

    def collection(self, name: str) -> Collection[Document]:
        return self.database[name]

    def make(self, name: str) -> None:
        """The collection, unless it is there."""
        with self.speaking():
            try:
                self.database.create_collection(name, check_exists=False)
            except OperationFailure as problem:
                if problem.code != _EXISTS:
                    raise

    def hello(self) -> Document:
        with self.speaking():
            found: Document = self._client.admin.command("hello")
        return found

    @contextmanager
    def transaction(self) -> Iterator[ClientSession]:
        """Ends with a commit; after an error nothing was applied. Ambiguous if the commit has no answer."""
        with self.speaking(), self._client.start_session() as session:
            session.start_transaction(ReadConcern("snapshot"), WriteConcern("majority", j=True))
            yield session
            with self.speaking(doubt=True):
                session.commit_transaction()

    @contextmanager
    def speaking(self, *, doubt: bool = False) -> Iterator[None]:
        """Errors in our words. `doubt`: a request that gets no answer may have been applied."""
        before = self._sent.count
        try:
            yield
        except PyMongoError as problem:
            raise self._known(problem, self._sent.count - before if doubt else 0) from None

    def write(
        self, name: str, operations: Sequence[Operation], session: ClientSession | None = None
    ) -> Answer:
        """In a session in order, until one is refused; else each for itself. TargetError."""
        with self.speaking(doubt=session is None):
            try:
                result = self.collection(name).bulk_write(
                    operations, ordered=session is not None, session=session
                )
            except BulkWriteError as problem:
                said = dict(problem.details or {})
                if said.get("writeConcernErrors") or problem.has_error_label("TransientTransactionError"):
                    raise
                made = frozenset(one["index"] for one in said["upserted"])
                refused = {one["index"]: self._refusal(one) for one in said["writeErrors"]}
                return Answer(said["nMatched"] + len(made), made, refused)
        made = frozenset(result.upserted_ids or ())
        return Answer(result.matched_count + len(made), made, {})

    def _refusal(self, error: Mapping[str, Any]) -> RowResult:
        code, names = error.get("code", 0), list(error.get("keyPattern", ()))
        if code in _LATER or (code == _DUPLICATE and self._key_names and set(names) == set(self._key_names)):
            return RowResult(Kind.RETRY, "CONCURRENT_WRITE", "others write the same document at this moment")
        if code == _DUPLICATE:
            listed = ", ".join(names) or "a unique index"
            order = Order(tuple(names)) if names else None
            return RowResult(
                Kind.REJECTED, "11000", f"{listed}: another document has the same value", order=order
            )
        if code == _INVALID:
            names = _rules(error.get("errInfo", {}).get("details", {}))
            listed = f" ({', '.join(names)})" if names else ""
            return RowResult(Kind.REJECTED, "121", f"the collection's validator refuses it{listed}")
        return RowResult(Kind.REJECTED, "DOCUMENT_REFUSED", f"MongoDB refuses the row (error {code})")

    def _known(self, problem: PyMongoError, sent: int) -> TargetError:
        """`sent`: how many requests that write have been sent, if that leaves a doubt."""
        at = f"MongoDB at {self.server}"
        code = getattr(problem, "code", None) or (getattr(problem, "details", None) or {}).get("code")
        if code in _LOGIN and not isinstance(problem, BulkWriteError):
            return Systemic("MONGODB_LOGIN", f"{at} refuses the account", hint=_CHECKED)
        if code in _FORBIDDEN:
            return Systemic(
                "NOPERM", f"{at}: this account may not do that", hint="allow what the target's page lists"
            )
        if problem.has_error_label("UnknownTransactionCommitResult"):
            return Ambiguous("NO_ANSWER", f"{at}: the commit has no answer")
        if code in _NO_TRANSACTIONS:
            return no_transactions(at)
        if isinstance(problem, WTimeoutError | WriteConcernError | BulkWriteError):
            return Ambiguous("NO_MAJORITY", f"{at}: most members have not confirmed the write in time")
        if code == _CONFLICT and not sent:
            return Unavailable("CONCURRENT_WRITE", f"{at}: others write the same documents at this moment")
        passing = isinstance(problem, AutoReconnect) or code in _LATER
        if passing and sent and not (code in _UNTOUCHED and sent == 1):
            return Ambiguous("NO_ANSWER", f"{at}: no answer")
        if isinstance(problem, ServerSelectionTimeoutError) and "CERTIFICATE_VERIFY_FAILED" in str(problem):
            return Systemic("TLS", f"{at} is not who it claims to be", hint="check `tls_ca_file` and `hosts`")
        if passing or problem.has_error_label("TransientTransactionError"):
            return Unavailable("UNREACHABLE", f"{at} has no primary that answers now")
        named = code if code is not None else type(problem).__name__
        return Systemic("MONGODB_REFUSED", f"{at} refuses the request (error {named})", hint=_CHECKED)

    def close(self) -> None:
        self._client.close()


def no_transactions(at: str) -> Systemic:
    return Systemic(
        "NO_TRANSACTIONS",
        f"{at} is no replica set, so it has no transactions",
        hint="make it a replica set (one member is enough), or set `transactions: false`",
    )


def _rules(details: Any) -> list[str]:
    """The names of fields that a validator names: no values."""
    found: list[str] = []
    if isinstance(details, list):
        for one in details:
            found += _rules(one)
    elif isinstance(details, Mapping):
        if isinstance(name := details.get("propertyName"), str):
            found.append(name)
        found += [one for one in details.get("missingProperties", ()) if isinstance(one, str)]
        for under in ("schemaRulesNotSatisfied", "propertiesNotSatisfied"):
            found += _rules(details.get(under))
    return list(dict.fromkeys(found))
