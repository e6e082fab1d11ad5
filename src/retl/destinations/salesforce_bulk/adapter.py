"""Salesforce records through Bulk API 2.0: each batch is an asynchronous job with one CSV file.

For many rows; for some thousands the type `salesforce` is faster. The connection takes the same keys. The
key's field is the external id named by `match`; several syncs may own fields of one object. A job is created
empty, its id is stored, and then its file is sent, once. After a crash the next run asks the job. A job that
was not released is aborted, so nothing is applied twice, not even with `write: append` (an insert). Three
result files list the rows; a row in none of them is in doubt. A locked row is sent again. NULL empties a
field, `nulls: keep` leaves it unchanged. Salesforce has no empty text and reads `#N/A` as NULL: rows with
such a text are rejects, and so are rows with a text of more than 32,000 characters.
External ids that differ only in upper and lower case are one record, unless the field was defined to treat
them as different values: then set `case_sensitive: true`.
Deletes need record ids. Ids that are not known from earlier answers are looked up with SOQL (100 keys a
request). After the job the look-up is repeated: a record that is no longer found is deleted.

The account needs a connected app with the client credentials or the JWT bearer flow, and a user with API
Enabled who may write the object and read its external id. `batch: {rows: …}` is the size of a job. The vendor
limits a file to 100 MB, an account to 15,000 batches of 10,000 rows and 150 million rows a day. Results are
kept for seven days; after that the rows of a dead run's job are in doubt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import msgspec
from pydantic import Field

from retl.destinations.api import About
from retl.destinations.batch import (
    UNKNOWN,
    WRITTEN,
    Answer,
    Batch,
    Capabilities,
    Kind,
    Outcome,
    Pending,
    RowResult,
    Shape,
    SoftDelete,
    Visit,
    WriteMode,
)
from retl.destinations.http.cells import exact
from retl.destinations.http.folds import KeyFolds
from retl.destinations.http.outcome import interpret
from retl.destinations.http.rules import Case, Rules
from retl.destinations.http.server import HttpTarget
from retl.destinations.presets import PresetConnection
from retl.destinations.presets import read as preset
from retl.destinations.salesforce_bulk import csvjob, soql
from retl.errors import Ambiguous, DefinitionError, Mismatch, Poisoned
from retl.model import Definition, Duration, Limits
from retl.net.client import Address
from retl.net.gate import Gate
from retl.net.lookup import Match, look, text
from retl.net.messages import Reply, Request
from retl.net.scrub import scrub

LONGEST_FILE = 100_000_000  # bytes; the vendor's 150 MB are after base64
_LONGEST_TEXT, _LONGEST_ROW = 32_000, 400_000  # characters
_NULL = "#N/A"
_OPERATIONS = {"upsert": "upsert", "append": "insert"}
_FILES = ("successfulResults", "failedResults", "unprocessedrecords")
_LATER = frozenset({"UNABLE_TO_LOCK_ROW", "SERVER_UNAVAILABLE", "REQUEST_RUNNING_TOO_LONG", "ExceededQuota"})
_SPENT = Case(
    status=(403,),
    when=Match.model_validate({"at": "0.errorCode", "in": ["REQUEST_LIMIT_EXCEEDED"]}),
    means="unavailable",
)
_NOT_OF_ROWS = Case(status=(400, 409, 422), means="systemic")
_RULES = Rules(rows="none", code=("0.errorCode",), reason=(), cases=(_SPENT, _NOT_OF_ROWS))
_FILE_RULES = _RULES.model_copy(update={"cases": (_SPENT,)})  # a refused file has bad rows

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


class SalesforceBulkOptions(Definition):
    connection: PresetConnection
    object: str = Field(pattern=r"^\w+$", description="API name of the object, such as Contact.")
    match: str = Field(pattern=r"^\w+$", description="External id field, such as ExtId__c; the key's field.")
    case_sensitive: bool = Field(
        False, description="Whether the external id field distinguishes upper and lower case."
    )
    version: str = Field("v62.0", pattern=r"^v\d+\.\d+$", description="API version.")
    every: Duration = Field(5.0, description="Time between two polls of a job.")


class SalesforceBulk(HttpTarget[SalesforceBulkOptions]):
    Connection = preset("salesforce").destination.Connection
    Options = SalesforceBulkOptions
    about = About(
        limits=Limits(concurrency=5, share=0.5),
        evidence=("contract", "golden", "docs"),
        source="https://developer.salesforce.com/docs/atlas.en-us.api_asynch.meta/api_asynch/datafiles_prepare_csv.htm",
        checked_on=date(2026, 11, 21),
        limits_source="https://developer.salesforce.com/docs/atlas.en-us.api_asynch.meta/api_bulk_v2/"
        "datafiles_understanding_bulk2_ingest.htm",
        example="source: {table: mart_contacts}\nkey: [ExtId__c]\nbatch: {rows: 50000}\n"
        "destination: {connection: salesforce_bulk, object: Contact, match: ExtId__c}\n",
    )

    def __init__(self, options: SalesforceBulkOptions, shape: Shape, gate: Gate | None = None) -> None:
        super().__init__(options, shape, gate)
        if [field.name for field in shape.key] != [options.match]:
            raise DefinitionError(
                "HTTP_MATCH", f"the key must be the field in `match`: `key: [{options.match}]`"
            )
        self._connect(options.connection.http, 2 * LONGEST_FILE)
        self._data = f"{self._address.prefix}/services/data/{options.version}"
        words = csvjob.Words(
            f"{self._data}/jobs/ingest", "/batches", "Open", "UploadComplete", "Aborted",
            frozenset({"JobComplete", "Failed", "Aborted"}),
        )  # fmt: skip
        self._job = csvjob.Job(words, self._ask, options.every)
        self._refused: tuple[str, dict[int, RowResult]] = "", {}  # rows left out of a job's file
        self._json = frozenset(field.name for field in shape.fields if field.type.name == "json")
        self._columns = [options.match, *(field.name for field in shape.fields)]
        self.capabilities = Capabilities(
            object=self.place(options, shape.write),
            modes=frozenset({"upsert", "append", "delete"}),
            idempotent=shape.write != "append",
            form="documents",
            probes=1,
            soft_deletes=True,
            nulls_keep=shape.write != "append",
            resolves=True,
            folds=KeyFolds(case=not (options.case_sensitive or options.match == "Id")).of(shape.key),
        )

    @classmethod
    def learns(cls, options: SalesforceBulkOptions, write: WriteMode, key: Sequence[str]) -> bool:
        return True

    @classmethod
    def place(cls, options: SalesforceBulkOptions, write: WriteMode) -> str:
        address = Address.parse(options.connection.http.base_url)
        return f"{address}{address.prefix}/bulk/{options.object}/{options.match}"

    @classmethod
    def claim(cls, options: SalesforceBulkOptions, write: WriteMode) -> str | None:
        """The same as for the type `salesforce`."""
        return f"{Address.parse(options.connection.http.base_url).place}/{options.object}"

    def check(self, visit: Visit) -> None:
        """Reads the object's description. Mismatch TARGET_DRIFT if it lacks a field."""
        path = f"{self._data}/sobjects/{self.options.object}/describe"
        reply = self._send(Request("GET", path, (), b""))
        listed = look(reply.content, "fields")
        fields = {one["name"]: one for one in listed} if isinstance(listed, list) else {}
        lacking = [name for name in self._columns if "." not in name and name not in fields]
        if lacking:
            named = ", ".join(lacking)
            raise Mismatch("TARGET_DRIFT", f"{self.options.object} has no field {named} visible to this user")
        if self.options.match != "Id" and not fields[self.options.match].get("externalId"):
            raise Mismatch("TARGET_DRIFT", f"{self.options.match} is not an external id field")

    def write(self, batch: Batch) -> Answer:
        """Creates the job. `resolve` sends its file, after the ledger has stored its id."""
        content, refused = self._deletions(batch) if self._removes(batch) else self._file(batch)
        if content is None:
            return Outcome(WRITTEN, refused)
        if len(content) > LONGEST_FILE:
            raise Poisoned("TOO_LARGE", f"{len(content)} bytes, but a job takes {LONGEST_FILE}")
        pending = self._job.make(self._described(batch), content)
        self._refused = pending.handle, refused
        return pending

    def resolve(self, batch: Batch, handle: str | None, *, act: bool = True) -> Answer:
        """The result of the job. Without a handle nothing was applied, because the file was not sent."""
        if not act:  # polling an open job would send its file
            return Outcome(UNKNOWN)
        if handle is None:
            return Outcome(csvjob.NOT_APPLIED)
        found = self._job.ask(handle)
        if isinstance(found, Pending):
            return found
        if isinstance(found, RowResult):
            return Outcome(found)
        outcome = self._results(batch, handle, found)
        refused = self._refused[1] if self._refused[0] == handle else {}
        return Outcome(outcome.default, {**outcome.exceptions, **refused})

    def preview(self, batch: Batch) -> bytes:
        """The job and its file; for deletes with keys instead of ids, which only the target knows."""
        keys = [[name] for name in self._names(batch)]
        content = csvjob.write([self.options.match], keys) if self._removes(batch) else self._file(batch)[0]
        job = Request("POST", f"{self._data}/jobs/ingest", (), exact.encode(self._described(batch)))
        return job.dump() + b"\r\n\r\n" + (content or b"")

    # --- requests

    def _names(self, batch: Batch) -> list[str]:
        keys = batch.keys()
        return [text(name) for name, *_ in keys]

    def _removes(self, batch: Batch) -> bool:
        return batch.operation == "delete" and not self._is_soft(batch)

    def _described(self, batch: Batch) -> dict[str, str]:
        """The body that creates the job."""
        operation = "delete" if self._removes(batch) else _OPERATIONS[self.shape.write]
        named = {"externalIdFieldName": self.options.match} if operation == "upsert" else {}
        form = {"contentType": "CSV", "columnDelimiter": "COMMA", "lineEnding": "LF"}
        return {"object": self.options.object, "operation": operation, **named, **form}

    def _file(self, batch: Batch) -> tuple[bytes | None, dict[int, RowResult]]:
        """The rows as CSV, or None, and the rejections of rows that CSV cannot hold exactly."""
        columns = self._columns
        if batch.operation == "delete" and isinstance(self.shape.deletes, SoftDelete):
            columns = [columns[0], *self.shape.deletes.set]
        lines: list[csvjob.Cells] = []
        refused: dict[int, RowResult] = {}
        for number, (key, document) in enumerate(self._documents(batch)):
            try:
                lines.append(_line(key, document, columns[1:], self._json))
            except Poisoned as error:
                refused[number] = RowResult(Kind.REJECTED, error.code, error.message)
        return csvjob.write(columns, lines) if lines else None, refused

    def _deletions(self, batch: Batch) -> tuple[bytes | None, dict[int, RowResult]]:
        """The ids of the records as CSV, or None, and the rejections of keys that match several records."""
        ids = self._ids(batch)
        refused = {row: one for row, one in enumerate(ids) if isinstance(one, RowResult)}
        lines = [[one] for one in dict.fromkeys(ids) if isinstance(one, str)]
        return csvjob.write(["Id"], lines) if lines else None, refused

    def _ids(self, batch: Batch) -> list[str | RowResult | None]:
        """The record id of each key: None if there is no record, a rejection if it is ambiguous. Known ids
        are not looked up."""
        names, match = self._names(batch), self.options.match
        if match == "Id":
            return list(names)
        known = batch.refs()
        looked = iter(self._look_up([name for name, id in zip(names, known, strict=True) if id is None]))
        return [next(looked) if id is None else id for id in known]

    def _look_up(self, names: Sequence[str]) -> list[str | RowResult | None]:
        records, match = list[dict[str, Any]](), self.options.match
        numbers = self.shape.key[0].type.name == "integer"
        for query in soql.lookups(self.options.object, match, names, numbers=numbers):
            content = self._send(Request("GET", f"{self._data}/query?q={query}", (), b"")).content
            found = look(content, "records")
            if not isinstance(found, list) or look(content, "done") is not True:
                raise Ambiguous("HTTP_CUT_OFF", "the answer to a look-up of ids is incomplete")
            records += found
        return [_COLLIDES if isinstance(one, tuple) else one for one in soql.ids(match, names, records)]

    def _send(self, request: Request) -> Reply:
        """The answer, if it is a success; else an error is raised."""
        reply = self._client.send(request)
        interpret(reply, _FILE_RULES if request.method == "PUT" else _RULES, self._about(2))
        return reply

    def _ask(self, request: Request) -> Reply:
        """Like `_send`, but 404 and 410 to a GET are returned."""
        reply = self._client.send(request)
        if request.method != "GET" or reply.status not in (404, 410):
            interpret(reply, _FILE_RULES if request.method == "PUT" else _RULES, self._about(2))
        return reply

    # --- results

    def _results(self, batch: Batch, handle: str, job: Mapping[str, object]) -> Outcome:
        """The results of the rows, from the three result files; if they are empty, from the job."""
        path = self._job.path(handle)
        written, failed, left = (
            csvjob.read(self._ask(Request("GET", f"{path}/{name}", _CSV, b""))) for name in _FILES
        )
        waiting, unnamed = _unmentioned(job, self._columns, nothing=not written and not failed)
        if self._removes(batch) and self.options.match != "Id":
            results = {row.get("Id", ""): WRITTEN for row in written}
            results |= {row.get("Id", ""): _judged(row) for row in failed}
            ends = [
                WRITTEN if one is None else results.get(one, waiting) if isinstance(one, str) else one
                for one in self._ids(batch)
            ]
            return Outcome(UNKNOWN, dict(enumerate(ends)))
        column = "Id" if self._removes(batch) else self.options.match
        found = [(row.get(column, ""), RowResult(Kind.WRITTEN, ref=row.get("sf__Id"))) for row in written]
        found += [(row.get(column, ""), _judged(row)) for row in failed]
        found += [(row.get(column, ""), waiting) for row in left]
        return csvjob.match(self._names(batch), found, unnamed)


_CSV = (("Accept", "text/csv"),)
_COLLIDES = RowResult(
    Kind.REJECTED,
    "KEY_COLLIDES",
    "the key does not name one record: the keys of others are the same, or differ only in case",
)


def _line(key: Any, document: str, fields: Sequence[str], json: frozenset[str]) -> csvjob.Cells:
    """A row of the file. Poisoned if it would not arrive unchanged."""
    try:
        members = _members.decode(document.encode())
        values = (_value(members[name], name in json) if name in members else None for name in fields)
        line = [_cell(text(key)), *values]
    except UnicodeEncodeError:
        raise Poisoned("NOT_UNICODE", "a text holds half a surrogate pair, not valid in UTF-8") from None
    if sum(len(cell) for cell in line if cell is not None) > _LONGEST_ROW:
        raise Poisoned("TOO_LARGE", f"a row has more than {_LONGEST_ROW} characters")
    return line


def _value(member: msgspec.Raw, is_json: bool) -> str:
    plain = bytes(member)
    if plain == b"null":
        return _NULL
    is_text = plain.startswith(b'"') and not is_json
    return _cell(msgspec.json.decode(plain, type=str) if is_text else plain.decode())


def _cell(value: str) -> str:
    if value == "":
        raise Poisoned("EMPTY_TEXT", "Salesforce has no empty text: make it NULL in the mart")
    if value == _NULL:
        raise Poisoned("RESERVED_TEXT", f"Salesforce reads the text {_NULL} as NULL")
    value.encode()
    if len(value) > _LONGEST_TEXT:
        raise Poisoned("TOO_LARGE", f"a text has more than {_LONGEST_TEXT} characters")
    return value


def _judged(row: Mapping[str, str]) -> RowResult:
    """The result of a row of failedResults, where sf__Error is CODE:sentence:fields --."""
    code, _, rest = row.get("sf__Error", "").partition(":")
    if not re.fullmatch(r"[A-Z][A-Z_]{2,63}", code):
        code, rest = "REFUSED", row.get("sf__Error", "")
    if code == "ENTITY_IS_DELETED" and row.keys() == {"sf__Id", "sf__Error", "Id"}:
        return WRITTEN
    known = [value for name, value in row.items() if not name.startswith("sf__")]
    reason = scrub(rest.rstrip(" -").rstrip(":"), known) or "the target refused the row"
    return RowResult(Kind.RETRY if code in _LATER else Kind.REJECTED, code, reason)


def _unmentioned(
    job: Mapping[str, object], columns: Sequence[str], *, nothing: bool
) -> tuple[RowResult, RowResult]:
    """The results of unprocessed rows, and of rows that no file names. If a job failed before its first
    row, its error concerns all rows."""
    if job["state"] == "JobComplete" or not nothing or job.get("numberRecordsProcessed") != 0:
        return csvjob.NOT_APPLIED, UNKNOWN
    message = str(job.get("errorMessage") or "")
    found = re.match(r"[A-Za-z]{3,64}", message)
    if job["state"] == "Aborted" or found is None or found[0] in _LATER:
        return csvjob.NOT_APPLIED, csvjob.NOT_APPLIED
    last = message.rpartition(":")[2]
    named = [name for name in columns if re.search(rf"\b{re.escape(name)}\b", last)]
    about = f" at {', '.join(named)}" if named else ""
    refused = RowResult(Kind.REJECTED, found[0], f"the job failed before its first row{about}")
    return refused, refused
