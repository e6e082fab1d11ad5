"""Any API that takes JSON, forms or CSV over HTTP, described by hand or by a preset.

The account needs the rights of its operations; `check` can name a harmless request that tests them.
If an answer is lost, upserts, updates and deletes are sent again; inserts only with an idempotency key.
`outcome` says what an answer means; a row that the answer does not account for is in doubt. 404 or 410 to
the DELETE or update of one object's own address means that the object is gone, or not there to update;
`outcome.cases` can change that. Redirects and web pages stop the run. If answers to writes contain the
external id of a row (`outcome.ref`), deletes can name rows by it: `$ref` in a path or in a row.

`idempotency` declares the header of the key, and the `window` in which the target recognises it. The window
begins with the first send of a key. It is measured at each send, by the ledger's clock and by the machine's
clock that counts sleep; the last tenth (at most two minutes) stays unused, because a request takes time to
arrive. After it an insert is not repeated and its rows are in doubt; with `delivery: at_least_once` they are
sent again under a new key.

`proxy` of the connection is a forward proxy (`http://` or `https://`), also for requests for a token. TLS is
with the server itself, through the proxy. Its user and password are secrets, percent-encoded in the address.
With `proxy: environment` the variables HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY of the process decide;
without `proxy` they are ignored. Compressed answers (gzip, deflate) are read, though retl asks for none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Annotated, Literal

from pydantic import Field

from retl.destinations.batch import (
    ABSENT,
    UNKNOWN,
    WRITTEN,
    Answer,
    Batch,
    Capabilities,
    Folds,
    Kind,
    Mode,
    Outcome,
    RowResult,
    Shape,
    SoftDelete,
    Visit,
    WriteMode,
)
from retl.destinations.http import line
from retl.destinations.http.body import Endpoint, Template
from retl.destinations.http.cells import Row, split
from retl.destinations.http.folds import KeyFolds
from retl.destinations.http.jobs import Job
from retl.destinations.http.outcome import Sent, interpret
from retl.destinations.http.rules import Case, Identity, Rules
from retl.destinations.http.server import HttpTarget
from retl.errors import DefinitionError, Expired, Poisoned, Systemic
from retl.model import Definition, Duration
from retl.net.auth import HeaderName
from retl.net.client import Address
from retl.net.connection import HttpConnection
from retl.net.gate import Gate
from retl.net.lookup import text
from retl.net.messages import Reply, Request
from retl.net.waits import quota

OPERATION_NAMES: dict[Mode, str] = {
    "upsert": "upsert",
    "insert_only": "insert",
    "append": "insert",
    "update_only": "update",
    "delete": "delete",
}
_INSERTS = ("insert_only", "append")
LANES = 4  # at most, if the connection's `concurrency` allows as many
_PROBE = Rules(ok=tuple(range(200, 300)), rows="none")


class Probe(Definition):
    """A request that changes nothing and needs the same credential as writes."""

    method: Literal["GET", "HEAD", "OPTIONS"] = "GET"
    path: Annotated[str, Field(pattern=r"^/[!-~]*$")]


class Idempotency(Definition):
    """The header by which a target recognises a repeated request, and for how long after the first one."""

    header: HeaderName
    window: Duration = 86400.0


class HttpOptions(Definition):
    connection: HttpConnection
    upsert: Endpoint | None = None
    insert: Endpoint | None = None
    update: Endpoint | None = None
    delete: Endpoint | None = None
    outcome: Rules = Rules()
    job: Job | None = None  # if the answer to an upsert names a job instead of results
    idempotency: Idempotency | None = None
    check: Probe | None = None
    folds: KeyFolds = KeyFolds()


class HttpDestination(HttpTarget[HttpOptions]):
    Connection = HttpConnection
    Options = HttpOptions

    def __init__(self, options: HttpOptions, shape: Shape, gate: Gate | None = None) -> None:
        """DefinitionError if no endpoint serves the sync, or an endpoint names a field that it lacks."""
        super().__init__(options, shape, gate)
        self._connect(options.connection)
        self._endpoints = _endpoints(options, shape)
        self._calls: dict[Mode, tuple[Template, Rules]] = {}
        endpoint = self._call(shape.write)[0].endpoint
        self._line = line.line(endpoint, shape)
        if shape.deletes != "keep":
            self._call("delete")
        key = options.idempotency
        self.capabilities = Capabilities(
            object=HttpDestination.place(options, shape.write),
            modes=frozenset(self._endpoints),
            idempotent=shape.write not in _INSERTS,
            form="documents",
            # with an intent before each request, more lanes would only leave more in doubt
            most_lanes=1 if shape.write in _INSERTS or key or options.job else LANES,
            shaping=endpoint.model_dump(
                mode="json", exclude={"outcome", "max_rows", "max_bytes", "max_row_bytes"}
            ),
            key_window=key.window if key else None,
            nulls_keep=shape.write not in _INSERTS,
            resolves=key is not None,
            folds=self._folds(),
            by_ref=shape.deletes != "keep" and self._endpoints["delete"].asks_ref,
            max_rows=endpoint.rows_at_most,
            max_deletes=self._endpoints["delete"].rows_at_most if "delete" in self._endpoints else None,
        )

    @classmethod
    def place(cls, options: HttpOptions, write: WriteMode) -> str:
        address = Address.parse(options.connection.base_url)
        endpoint: Endpoint | None = getattr(options, OPERATION_NAMES[write])
        return f"{address}{address.prefix}{endpoint.path.partition('?')[0] if endpoint else ''}" + (
            options.connection.auth.mark()
        )

    @classmethod
    def claim(cls, options: HttpOptions, write: WriteMode) -> str | None:
        """The address without the names of its placeholders, and the account of the credential, because
        accounts share servers. An append creates a new object each time."""
        endpoint: Endpoint | None = getattr(options, OPERATION_NAMES[write])
        if write == "append" or endpoint is None:
            return None
        path = "{}".join(split(endpoint.path.partition("?")[0])[::2])
        account = sha256(repr(options.connection.auth.secrets()).encode()).hexdigest()
        return f"{Address.parse(options.connection.base_url).place}{path}#{account}"

    @classmethod
    def learns(cls, options: HttpOptions, write: WriteMode, key: Sequence[str]) -> bool:
        endpoint: Endpoint | None = getattr(options, OPERATION_NAMES[write])
        if endpoint is None or options.job is not None:
            return False
        rules = _rules(endpoint, options.outcome, write, list(key))
        return rules.ref is not None and rules.rows in ("positional", "listed", "all_or_nothing")

    def check(self, visit: Visit) -> None:
        probe = self.options.check
        if probe is None:
            self._client.connect()
            return
        reply = self._client.send(Request(probe.method, self._address.prefix + probe.path, (), b""))
        found = interpret(reply, _PROBE, self._about(1)).default
        if found.kind is Kind.REJECTED:
            raise Systemic("HTTP_CHECK", f"the target refuses `check`: {found.code}: {found.reason}")

    def write(self, batch: Batch) -> Answer:
        try:
            request = self._request(batch)
        except Poisoned as error:
            if len(batch) > 1:
                raise
            return Outcome(RowResult(Kind.REJECTED, error.code, error.message))
        return self._judge(self._send(request, batch), request, batch)

    def resolve(self, batch: Batch, handle: str | None, *, act: bool = True) -> Answer:
        """The result of the job `handle`. Without a handle: sends the same bytes with the same idempotency
        key, within `key_window`; the answer is that of the first request. UNKNOWN without job and key."""
        if not act:
            return Outcome(UNKNOWN)
        if handle is not None and self.options.job is not None:
            sent = self._sent(batch, lambda row: self._known())
            return self.options.job.ask(handle, sent, self._ask, self._address.prefix)
        if batch.request is None or batch.idempotency_key is None or self.options.idempotency is None:
            return Outcome(UNKNOWN)
        request = self._request(batch)
        try:
            reply = self._send(request, batch)
        except Expired:
            return Outcome(UNKNOWN)
        if reply.status == 409:  # the first request is still in progress, or another one used its key
            return Outcome(UNKNOWN)
        return self._judge(reply, request, batch)

    def preview(self, batch: Batch) -> bytes:
        return self._request(batch).dump()

    def _folds(self) -> tuple[Folds, ...]:
        """How the target compares keys. DefinitionError OPTION_UNUSED if the option fits no key."""
        self.options.folds.refuse_unused(self.shape.key)
        return self.options.folds.of(self.shape.key)

    def rules(self, operation: Mode) -> Rules:
        """How answers to this operation are read."""
        return self._call(operation)[1]

    def lacks(self, operation: Mode) -> DefinitionError:
        """The error if no endpoint serves an operation of the sync."""
        word = "deletes" if operation == "delete" else f"write: {operation}"
        name = OPERATION_NAMES[operation]
        return DefinitionError(
            "HTTP_OPERATION",
            f"`{word}` needs `{name}` under `destination`",
            hint=f"{name}: {{method: …, path: /…}}",
        )

    def _refuse_unknown_ref(self, operation: Mode) -> None:
        """DefinitionError HTTP_REF if an operation needs external ids that no answer contains."""
        if not self._endpoints[operation].asks_ref:
            return
        writes = OPERATION_NAMES[self.shape.write]
        keys = [field.name for field in self.shape.key]
        if operation != "delete":
            raise DefinitionError(
                "HTTP_REF",
                f"`$ref` cannot be used in `{writes}`: only its answer contains the id of a row",
                hint="for the external id from another sync use a field: {ref: SYNC, by: COLUMN}",
            )
        if not HttpDestination.learns(self.options, self.shape.write, keys):
            raise DefinitionError(
                "HTTP_REF",
                f"`$ref` in a delete needs answers to `{writes}` with the id of each row",
                hint="set `outcome.ref` to the path of the id, `outcome.match` to how an item names its row",
            )

    def _request(self, batch: Batch) -> Request:
        """The prepared request of the batch, or a new one. Poisoned if its rows cannot be one request."""
        host = ("Host", self._address.authority)
        if batch.request is not None:
            request = Request.load(batch.request)
            if request.headers[:1] != (host,):
                raise Systemic("HTTP_MOVED", "base_url is not the server that this request was prepared for")
            return request
        template, text = self._call(batch.mode)[0], self._line
        if text is not None and batch.operation != "delete":
            request = template.of_lines(batch.lines(text))
            return replace(request, headers=(host, *request.headers))
        rows = self._documents(batch)
        if template.endpoint.asks_ref:
            rows = [
                _with_ref(row, ref, len(self.shape.key)) for row, ref in zip(rows, batch.refs(), strict=True)
            ]
        request = template.request(rows)
        return replace(request, headers=(host, *request.headers))

    def _send(self, request: Request, batch: Batch) -> Reply:
        key = self.options.idempotency
        named = {key.header: batch.idempotency_key} if key and batch.idempotency_key else {}
        before = batch.window.use if named and batch.window else lambda: None
        reply = self._client.send(request, named, before)
        rules = self._call(batch.mode)[1]
        for usage, daily in ((rules.usage, False), (rules.budget, True)):
            if usage and (found := quota(reply.headers, usage, daily=daily)):
                self.gate.on_quota(found)
        return reply

    def _ask(self, request: Request) -> Reply:
        return self._client.send(
            replace(request, headers=tuple(self._call("upsert")[0].endpoint.headers.items()))
        )

    def _judge(self, reply: Reply, request: Request, batch: Batch) -> Answer:
        template, rules = self._call(batch.mode)
        job = self.options.job if batch.mode == "upsert" else None
        if job:
            rules = rules.model_copy(update={"ref": None})  # the id in the answer is the job's
        texts = template.texts(request)
        outcome = interpret(reply, rules, self._sent(batch, lambda row: [*texts(row), *self._known()]))
        if batch.operation == "delete":
            outcome = _gone(outcome)
        return job.submitted(reply) if job and outcome == Outcome(WRITTEN) else outcome

    def _sent(self, batch: Batch, texts: Callable[[int | None], Iterable[str]]) -> Sent:
        """What `interpret` needs to know of the batch."""
        template = self._call(batch.mode)[0]

        def names(to: str) -> list[str]:
            if to == "$row_no":
                return [str(n) for n in range(len(batch))]
            index = 0 if to == "$key" else template.keys.index(to.removeprefix("$"))
            keys = batch.keys()
            return [text(key[index]) for key in keys]

        return Sent(len(batch), batch.mode not in _INSERTS, names, texts)

    def _call(self, operation: Mode) -> tuple[Template, Rules]:
        """The template of the operation's endpoint, and the rules for its answers."""
        if operation in self._calls:
            return self._calls[operation]
        if operation not in self._endpoints:
            raise self.lacks(operation)
        self._refuse_unknown_ref(operation)
        endpoint, deletes = self._endpoints[operation], self.shape.deletes
        keys, fields = ([field.name for field in part] for part in (self.shape.key, self.shape.fields))
        if operation == "delete":
            fields = list(deletes.set) if isinstance(deletes, SoftDelete) else []
        template = Template(endpoint, keys, fields, self._address.prefix)
        rules = _rules(endpoint, self.options.outcome, operation, keys)
        self._calls[operation] = template, rules
        return template, rules


def _gone(outcome: Outcome) -> Outcome:
    """The outcome of a delete: a row that was not there is deleted."""

    def ended(result: RowResult) -> RowResult:
        return WRITTEN if result == ABSENT else result

    ends = {row: ended(result) for row, result in outcome.exceptions.items()}
    return Outcome(ended(outcome.default), ends)


def _with_ref(row: Row, ref: str | None, keys: int) -> Row:
    """The row with its external id after the key. Poisoned if the id is not known."""
    if ref is None:
        raise Poisoned("REF_UNKNOWN", "the external id of this row is not known")
    return (*row[:keys], ref, *row[keys:])


def _rules(endpoint: Endpoint, shared: Rules, operation: Mode, keys: list[str]) -> Rules:
    """The endpoint's own rules, or the shared ones; an endpoint for single rows gets no rules about lists.
    404 or 410 at one object's own address is success for a delete, and ABSENT for an update."""
    rules = endpoint.outcome or shared
    if endpoint.outcome is None and endpoint.wrap is None and endpoint.rows_at_most == 1:
        how = "none" if rules.rows == "none" else "all_or_nothing"
        ok = (*rules.ok, *Rules().ok) if rules.ok else ()  # without `ok` only `cases` decide
        rules = rules.model_copy(update={"rows": how, "partial": (), "ok": ok})
    rules = rules.model_copy(update={"match": tuple(_of_key(one, keys) for one in rules.match)})
    for to in (identity.to for identity in rules.match if rules.rows in ("listed", "errors_by_value")):
        if not (to == "$row_no" or to.removeprefix("$") in keys or (to == "$key" and len(keys) == 1)):
            raise DefinitionError("HTTP_MATCH", f"`match.to: {to}` is no field of the key and not $row_no")
    if (
        rules.rows == "all_or_nothing"
        and endpoint.rows_at_most != 1
        and (len(keys) != 1 or rules.match == (Identity(),))
    ):
        rules = rules.model_copy(update={"ref": None})  # no item can name its row
    if operation not in ("delete", "update_only"):
        return rules.model_copy(update={"row_absent": None})
    if not _addressed(endpoint, keys):
        return rules
    none = Case(status=(404, 410), means="written" if operation == "delete" else "absent")
    return rules.model_copy(update={"cases": (*rules.cases, none)})


def _of_key(identity: Identity, keys: list[str]) -> Identity:
    """`$key` in `at`, replaced by the name of the key's field."""
    if len(keys) != 1:
        return identity
    at = (".".join(keys[0] if step == "$key" else step for step in path.split(".")) for path in identity.at)
    return identity.model_copy(update={"at": tuple(at)})


def _addressed(endpoint: Endpoint, keys: list[str]) -> bool:
    names = {word[1:].removeprefix("field.") for word in endpoint.words}
    return set(keys) <= names or bool({"$key", "$ref"} & set(endpoint.words))


def _endpoints(options: HttpOptions, shape: Shape) -> dict[Mode, Endpoint]:
    """The endpoint of each operation that the destination supports."""
    given = {name: getattr(options, name) for name in ("upsert", "insert", "update", "delete")}
    if isinstance(shape.deletes, SoftDelete):
        given["delete"] = options.update or options.upsert
    return {op: given[name] for op, name in OPERATION_NAMES.items() if given[name] is not None}
