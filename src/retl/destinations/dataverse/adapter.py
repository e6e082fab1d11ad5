"""Dataverse and Dynamics 365: rows by alternate key, many in one $batch, with an answer for each row.

`table` is the entity set's name, such as accounts. The sync's key is an alternate key of it (or the primary
key); its columns are not sent as fields. An upsert is a PATCH; `write: update_only` adds If-Match: *,
`insert_only` adds If-None-Match: *. A delete is a DELETE; a record that is already gone counts as deleted.
NULL empties a column, `nulls: keep` leaves it unchanged. A lookup is a field such as
`parentaccountid@odata.bind`. A throttled part is sent again after its Retry-After, and the connection pauses
until then. Dataverse does not accept key values with any of < > * % & : / \\ ? + in them: such rows are
rejects. Keys that differ only in upper and lower case are one row there. So are keys that differ only in
accents, unless the collation of the environment's language is accent-sensitive (_AS in Microsoft's list of
language collations): then set `accent_sensitive: true`.

With `conflicts` each part of a $batch names the ETag of its record, and is refused if somebody changed it.

The account needs an application user with a security role that may create, write, read and delete rows of the
table. The vendor limits an application user, on each web server, to 6,000 requests and 20 minutes of work in
5 minutes, 52 requests at a time, and a $batch to 1,000 requests. retl sends only `rows` in one, because they
run one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from hashlib import sha256
from typing import Any, Literal
from urllib.parse import unquote

import msgspec
from pydantic import Field, PrivateAttr, SecretStr, ValidationError, model_validator

from retl.destinations.api import About
from retl.destinations.batch import (
    UNKNOWN,
    WRITTEN,
    Answer,
    Batch,
    Capabilities,
    Kind,
    Mode,
    Outcome,
    Peeked,
    RowResult,
    Shape,
    Visit,
    WriteMode,
)
from retl.destinations.dataverse import records
from retl.destinations.http import odata
from retl.destinations.http.conditional import Conditional, asked
from retl.destinations.http.folds import KeyFolds
from retl.destinations.http.outcome import Sent, interpret
from retl.destinations.http.rules import Case, Rules
from retl.destinations.http.server import HttpTarget
from retl.destinations.verdicts import Row
from retl.errors import Ambiguous, DefinitionError, Mismatch, Poisoned, TargetError, Unavailable
from retl.model import Definition, Limits
from retl.net.client import Address, Timeouts
from retl.net.connection import HttpConnection
from retl.net.gate import Gate
from retl.net.lookup import Match, text
from retl.net.messages import Reply, Request
from retl.net.proxy import Setting
from retl.net.waits import Quota

_QUOTED = {"string": True, "uuid": False, "integer": False, "decimal": False, "date": False}
_NOT_IN_KEYS = re.compile(r"[<>*%&:/\\?+]")
_LONGEST_ADDRESS = 65_536  # characters, in a $batch
_HOST = r"^[A-Za-z0-9.-]+$"
_JSON = (("Content-Type", "application/json; type=entry"),)
_ODATA = (("OData-MaxVersion", "4.0"), ("OData-Version", "4.0"))
_CONDITION: dict[Mode, tuple[tuple[str, str], ...]] = {
    "update_only": (("If-Match", "*"),),
    "insert_only": (("If-None-Match", "*"),),
    "delete": (("If-Match", "*"),),
}
_REF = re.compile(r"\(([0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})\)$")
_MISSING = Match.model_validate({"at": "error.code", "in": ["0x80060891", "0x80040217"]})
_OF_ROWS = Case(status=(403, 404, 405, 412), means="refused")


def _without(means: Literal["absent", "written"]) -> Rules:
    """For operations that need the record; with If-Match: * a 412 means that it is missing."""
    gone = (Case(status=(404,), when=_MISSING, means=means), Case(status=(412,), means=means))
    return Rules(rows="none", cases=(*gone, _OF_ROWS))


_RULES: dict[Mode, Rules] = {
    "upsert": Rules(rows="none", cases=(_OF_ROWS,)),
    "update_only": _without("absent"),
    "insert_only": Rules(rows="none", cases=(Case(status=(412,), means="kept"), _OF_ROWS)),
    "delete": _without("written"),
}
_CONDITIONAL = Rules(  # for a part that reads, or that names the ETag of its record
    rows="none",
    ok=(200, 201, 204),
    cases=(
        Case(status=(404,), when=_MISSING, means="absent"),
        Case(status=(412,), means="changed"),
        _OF_ROWS,
    ),
)
_WHOLE = Rules(ok=())  # for an answer that is not multipart: never a success


class DataverseConnection(Definition):
    org: str = Field(pattern=_HOST, description="The environment's host, such as example.crm4.dynamics.com.")
    tenant: str = Field(pattern=_HOST, description="The directory's id or domain.")
    client_id: str = Field(description="The app registration's id.")
    client_secret: SecretStr = Field(description="Its secret.")
    login: str = Field("https://login.microsoftonline.com", description="Another address in national clouds.")
    base_url: str | None = Field(None, description="Another address: a gateway.")
    proxy: Setting = None
    timeouts: Timeouts = Timeouts()
    allow_plaintext: bool = False
    _http: HttpConnection = PrivateAttr()

    @model_validator(mode="after")
    def _fits(self) -> DataverseConnection:
        auth = {
            "type": "oauth2",
            "token_url": f"{self.login}/{self.tenant}/oauth2/v2.0/token",
            "client_id": self.client_id,
            "client_secret": self.client_secret,
            "scope": f"https://{self.org}/.default",
        }
        more = {name: getattr(self, name) for name in ("proxy", "timeouts", "allow_plaintext")}
        try:
            self._http = HttpConnection.model_validate(
                {"base_url": self.base_url or f"https://{self.org}", "auth": auth, **more}
            )
        except ValidationError as error:
            message = error.errors(include_input=False, include_url=False, include_context=False)[0]["msg"]
            raise ValueError(message.removeprefix("Value error, ")) from None
        return self

    @property
    def http(self) -> HttpConnection:
        return self._http


class DataverseOptions(Definition):
    connection: DataverseConnection
    table: str = Field(pattern=r"^\w+$", description="Entity set name of the table, such as accounts.")
    version: str = Field("v9.2", pattern=r"^v\d+\.\d+$", description="Web API version.")
    accent_sensitive: bool = Field(
        False, description="Whether the environment's collation distinguishes accents (_AS)."
    )
    rows: int = Field(100, ge=1, le=1000, description="Rows in one $batch.")


class Dataverse(HttpTarget[DataverseOptions]):
    Connection = DataverseConnection
    Options = DataverseOptions
    about = About(
        limits=Limits(requests=6000, per=300.0, concurrency=52, share=0.5),
        evidence=("golden", "docs"),
        source="https://learn.microsoft.com/en-us/power-apps/developer/data-platform/webapi/"
        "execute-batch-operations-using-web-api",
        checked_on=date(2026, 11, 21),
        limits_source="https://learn.microsoft.com/en-us/power-apps/developer/data-platform/api-limits",
        example="source: {table: mart_accounts}\nkey: [accountnumber]\n"
        "destination: {connection: dataverse, table: accounts}\n",
    )

    def __init__(self, options: DataverseOptions, shape: Shape, gate: Gate | None = None) -> None:
        super().__init__(options, shape, gate)
        self._quoted = {field.name: _QUOTED.get(field.type.name) for field in shape.key}
        if wrong := [name for name, quoted in self._quoted.items() if quoted is None]:
            raise DefinitionError("KEY_TYPE", f"{wrong[0]} has a type that an alternate key cannot have")
        self._connect(options.connection.http)
        self._data = f"{self._address.prefix}/api/data/{options.version}"
        self.capabilities = Capabilities(
            object=self.place(options, shape.write),
            modes=frozenset(_RULES),
            idempotent=True,
            form="documents",
            probes=1,
            soft_deletes=True,
            nulls_keep=shape.write in ("upsert", "update_only"),
            folds=KeyFolds(case=True, accents=not options.accent_sensitive).of(shape.key),
            max_rows=options.rows,
            resolves=shape.cautious,
            looks=True,
            compares="no" if shape.write == "insert_only" else "atomic",
        )
        self._value = records.value(shape)
        self._records = records.Records(self._value, self._part, self._ask)
        self._unanswered: set[str] = set()  # batches without an answer
        self._conditional = None
        if shape.cautious and shape.write != "insert_only":
            changes_only = shape.write == "update_only"
            self._conditional = Conditional(self._value, self._records, True, changes_only)

    @classmethod
    def place(cls, options: DataverseOptions, write: WriteMode) -> str:
        address = Address.parse(options.connection.http.base_url)
        return f"{address}{address.prefix}/{options.table}"

    def check(self, visit: Visit) -> None:
        """Reads one row. Mismatch TARGET_DRIFT if the table lacks a column."""
        names = [field.name for field in (*self.shape.key, *self.shape.fields) if "@" not in field.name]
        path = f"{self._data}/{self.options.table}?$select={','.join(names)}&$top=1"
        reply = self._client.send(Request("GET", path, _ODATA, b""))
        try:
            interpret(reply, Rules(ok=(200,)), self._about(2))
        except Poisoned as error:
            raise Mismatch("TARGET_DRIFT", f"{self.options.table} lacks a column: {error.message}") from None

    def write(self, batch: Batch) -> Answer:
        if self._conditional is not None:
            return self._write_conditional(self._conditional, batch)
        requests, refused = self._requests(batch)
        if not requests:
            return Outcome(WRITTEN, refused)
        reply = self._client.send(self._whole(batch.id, list(requests.values())))
        if reply.status != 200 or not reply.headers.get("content-type", "").startswith("multipart/"):
            interpret(reply, _WHOLE, self._about(2))
        answers = odata.replies(reply)
        if len(answers) != len(requests):
            told = f"the answer to a $batch has {len(answers)} parts for {len(requests)} rows"
            return Outcome(RowResult(Kind.UNKNOWN, reason=told), refused)
        self._pause(answers)
        results = {
            row: self._judged(answer, _RULES[batch.mode], requests[row])
            for row, answer in zip(requests, answers, strict=True)
        }
        return Outcome(UNKNOWN, refused | results)

    def _write_conditional(self, conditional: Conditional, batch: Batch) -> Outcome:
        """If the answer to a batch was lost before, a record that is as it would make it is ours."""
        made = frozenset(range(len(batch))) if batch.id in self._unanswered else frozenset()
        try:
            found = conditional.write(batch, self._begin(batch), made)
        except Ambiguous:
            self._unanswered.add(batch.id)
            raise
        self._unanswered.discard(batch.id)
        return found

    def _begin(self, batch: Batch, *, with_fields: bool = True) -> list[Row]:
        rows = self._documents(batch) if with_fields else batch.keys()
        self._records.begin(rows)
        return asked(self._value, batch, rows)

    def _ask(self, requests: Mapping[int, Request]) -> dict[int, tuple[RowResult, Reply]]:
        """What became of each part of a $batch, with its answer. Ambiguous if it cannot be read."""
        parts = list(requests.values())
        name = sha256(b"".join(one.dump() for one in parts)).hexdigest()[:32]
        reply = self._client.send(self._whole(name, parts))
        if reply.status != 200 or not reply.headers.get("content-type", "").startswith("multipart/"):
            interpret(reply, _WHOLE, self._about(2))
        answers = odata.replies(reply)
        if len(answers) != len(parts):
            raise Ambiguous("HTTP_NO_PARTS", "the answer to a $batch has other parts than were sent")
        self._pause(answers)
        return {
            n: (self._judged(answer, _CONDITIONAL, requests[n]), answer)
            for n, answer in zip(requests, answers, strict=True)
        }

    def resolve(self, batch: Batch, handle: str | None, *, act: bool = True) -> Answer:
        """A record that still has the ETag that we left was not written."""
        if self._conditional is None:
            return Outcome(UNKNOWN)
        return self._conditional.resolve(self._begin(batch, with_fields=False))

    def peek(self, batch: Batch) -> Iterator[Peeked]:
        assert self._conditional is not None
        return self._conditional.peek(batch, self._begin(batch))

    def read(self, batch: Batch) -> Iterator[Mapping[str, Any] | None]:
        for found in self._pages(batch.keys()):
            if isinstance(found, RowResult):
                raise Poisoned(found.code or "REFUSED", found.reason or "a record cannot be read")
            yield None if found is None else self._value.values(found)

    def differing(self, batch: Batch) -> Iterator[tuple[str, ...] | None]:
        rows = self._documents(batch)
        for row, found in zip(rows, self._pages(rows), strict=True):
            if isinstance(found, RowResult):
                yield self._value.names
                continue
            held = None if found is None else self._value.held(found)
            yield None if held is None else self._value.differing(held, row[-1])

    def _pages(self, rows: Sequence[tuple[Any, ...]]) -> Iterator[Reply | RowResult | None]:
        """The records of these rows, as many in a $batch as a batch has."""
        for first in range(0, len(rows), self.options.rows):
            page = rows[first : first + self.options.rows]
            self._records.begin(page)
            yield from self._records.read(range(len(page)))

    def preview(self, batch: Batch) -> bytes:
        if self._conditional is not None:
            rows = [(self._conditional.sending(row), row.number) for row in self._begin(batch)]
            return self._whole(batch.id, [self._records.first(*one) for one in rows]).dump()
        return self._whole(batch.id, list(self._requests(batch)[0].values())).dump()

    def _requests(self, batch: Batch) -> tuple[dict[int, Request], dict[int, RowResult]]:
        """The request of each row, and the rejections of rows that cannot be sent."""
        mode: Mode = "update_only" if self._is_soft(batch) else batch.mode
        requests: dict[int, Request] = {}
        refused: dict[int, RowResult] = {}
        for number, row in enumerate(self._documents(batch)):
            try:
                requests[number] = self._one(row, mode)
            except Poisoned as error:
                refused[number] = RowResult(Kind.REJECTED, error.code, error.message)
        return requests, refused

    def _one(self, row: tuple[Any, ...], mode: Mode) -> Request:
        """The part of a row that is written whatever its record has."""
        return self._part(row, "DELETE" if mode == "delete" else "PATCH", "", _CONDITION.get(mode, ()))

    def _part(
        self, row: tuple[Any, ...], method: str, query: str, headers: tuple[tuple[str, str], ...]
    ) -> Request:
        """Poisoned if the key cannot be an address, or a text is not Unicode."""
        values = {name: text(value) for name, value in zip(self._quoted, row, strict=False)}
        if any(not value or _NOT_IN_KEYS.search(value) for value in values.values()):
            raise Poisoned("KEY_CHARACTER", "a key value is empty or holds one of < > * % & : / \\ ? +")
        quoted = {name: bool(one) for name, one in self._quoted.items()}
        try:
            target = f"{self._data}/{odata.address(self.options.table, values, quoted)}{query}"
            body = row[-1].encode() if method == "PATCH" else b""
        except UnicodeEncodeError:
            raise Poisoned(
                "NOT_UNICODE", "a text holds half a surrogate pair, which UTF-8 cannot encode"
            ) from None
        if len(target) > _LONGEST_ADDRESS:
            raise Poisoned("TOO_LARGE", f"an address has more than {_LONGEST_ADDRESS} characters")
        return Request(method, target, (_JSON if body else ()) + headers, body)

    def _whole(self, name: str, requests: Sequence[Request]) -> Request:
        boundary = f"batch_{name}"
        content = ("Content-Type", f'multipart/mixed; boundary="{boundary}"')
        headers = (content, *_ODATA, ("Prefer", "odata.continue-on-error"))
        return Request("POST", f"{self._data}/$batch", headers, odata.multipart(requests, boundary))

    def _pause(self, answers: Sequence[Reply]) -> None:
        """Pause the connection for as long as throttled parts ask. Unavailable if all parts are throttled."""
        if wait := odata.pause(answers):
            self.gate.on_quota(Quota(0.0, wait))

    def _judged(self, answer: Reply, rules: Rules, request: Request) -> RowResult:
        """The result of a row, from its part of the answer."""
        sent = Sent(1, True, lambda to: [], lambda row: [*_leaves(request), *self._known()])
        try:
            result = interpret(answer, rules, sent).default
        except TargetError as error:
            kinds: Mapping[type, Kind] = {Unavailable: Kind.RETRY, Ambiguous: Kind.UNKNOWN}
            return RowResult(kinds.get(type(error), Kind.REJECTED), error.code, error.message)
        found = _REF.search(answer.headers.get("odata-entityid", ""))
        return RowResult(Kind.WRITTEN, ref=found[1]) if result == WRITTEN and found else result


def _leaves(request: Request) -> Iterator[str]:
    """The texts that a row was sent with."""
    yield from (unquote(part).strip("'") for part in re.split(r"[(),=]", request.target.rpartition("(")[2]))
    waiting: list[Any] = [msgspec.json.decode(request.body)] if request.body else []
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict | list):
            waiting += one.values() if isinstance(one, dict) else one
        elif one is not None and not isinstance(one, bool):
            yield text(one)
