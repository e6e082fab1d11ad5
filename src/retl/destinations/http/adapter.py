"""Any API that takes JSON, forms or CSV over HTTP, described by hand or by a preset.

The account needs the rights of its operations; `check` can name a harmless request that tests them.
If an answer is lost, upserts, updates and deletes are sent again; inserts only with an idempotency key.
`outcome` says what an answer means; a row that the answer does not account for is in doubt. If an answer
only counts bad rows, or names none of ours, the rows are sent again in halves until each bad row is alone (if
twice is once; a run spends at most 1000 requests on it, the rest stays in doubt). 404 or 410 to
the DELETE or update of one object's own address means that the object is gone, or not there to update;
`outcome.cases` can change that. Redirects and web pages stop the run. If answers to writes contain the
external id of a row (`outcome.ref`), deletes can name rows by it: `$ref` in a path or in a row. `then` of a
delete is the path of a second DELETE that follows it, such as a permanent one.

`find` is for objects that have only the target's own id. A row whose id is known is sent to it by `update`.
For another row, and for an object that is gone, the target is asked for the key: one object is changed, none
is created by `insert`, and several make the row a reject (AMBIGUOUS). So a creation without an answer is
looked for before it is repeated, also after a crash. `settles` is the time that a search may not see a new
object; after a crash, begin the next run later than that. A refusal that tells the id (`means: exists`) is as
good as a search. If `insert` can only create an object with its key (`means: made`), `update` writes its
fields at once, also after a crash in between.

`batch` is for servers of OData: the questions of up to `max_rows` rows that are looked for are sent as one
$batch, and then their writes, each as a change set of its own. Each row has its own part of the answer.

`job` is for an answer that names a job instead of results, in an operation's own words or for every
operation. It is asked after until it is done; after a crash the next run asks, and sends nothing again. In
steps a job is opened (`open`), gets the rows under its id `$job`, and is started (`start`): nothing is
applied before that. If a run died in between, the rows are due again; if it died while it started the job,
they are in doubt. After `patience` the run ends with exit 75, and the next one asks again. Beside `upsert`,
`find` is for deletes. The errors of a job may be a file, also as CSV: `errors_path` or `errors_url` says
where, and `outcome` reads each line as an error that names its row by key or number.

A value of a row never leaves its place. In a path or query it is percent-encoded. Between single quotes of a
path it is a text of OData, `/Customers('{id}')`, and its quotes are doubled; in parentheses without quotes
it must be a number, date, UUID or boolean. `/Orders($predicate)` has the whole key, of one or several
fields, each in the form of its type (`$predicate_v2` for OData 2). Between quotes of a query the placeholder
names their language: `{id:odata}`, `{id:soql}`, `{id:json}`. In `headers`, and inside the texts of `row`, a
placeholder is `{$id}`; a header with one belongs to a single row. A placeholder where none is filled in is
an error; `$$` is a dollar sign. In GraphQL values go into `variables`.

In a `row`, `{$json: $row}` is a part of the row as a JSON text, `$others` an object of the fields that the
request names nowhere else, `{$only: [a, b]}` one of those of these fields that the sync has, and `{$each:
$others, as: {field: $name, value: $value}}` a list with an item for each. With `encoding: ndjson` and `lines:
true` each item of `row` is a line, such as an action and its document. With `encoding: multipart` the rows
are a CSV file in a form, whose other parts are the members of `envelope`.

`read` is how one object is read, and `version` where an answer tells its version. With `conflicts` other
than warehouse_wins a row is created by `insert` or changed by `update`, and `$version` in a header or row of
`update` and `delete` is the condition: they change nothing if the object has another version. Without a
condition the sync must accept the window between look and write. The guide to conflicts has an example.

`write: replace` deletes each row and inserts it, for a target that refuses to insert a key twice: by
`delete` and `insert`, a row at a time. Fields that are not the sync's are lost. If the target refuses the new
version, or does not answer, the row is in doubt, and every run sends it again until it is there.

`idempotency` declares the header of the key, and the `window` in which the target recognises it; or, for
inserts, the path in a `row` of an id by which the target knows the row again (`MessageDeduplicationId`,
`event_id`), which has to be made from the whole key. Then nothing else has to be chosen. The window
begins with the first send of a key. It is measured at each send, by the ledger's clock and by the machine's
clock that counts sleep; the last tenth (at most two minutes) stays unused, because a request takes time to
arrive. After it an insert is not repeated and its rows are in doubt; with `delivery: at_least_once` they are
sent again under a new key.

`auth` of the connection has a `type`. bearer, basic, header, query, body and url send a secret as it is;
oauth2 (client credentials, refresh token, signed claim), google (a service account's key file) and entra ask
for a token; key_pair signs one itself; sigv4 (AWS), hmac, azure_sas and form_digest sign each request. A
secret never becomes part of a request that is shown or stored. A refresh token that the server replaces is
kept in the ledger, encrypted.

`csrf` of the connection is for servers that want a token with each write (SAP): it is asked for with a GET,
and sent with the cookies of its answer. If the server says that it is over, it is asked for again.

`proxy` of the connection is a forward proxy (`http://` or `https://`), also for requests for a token. TLS is
with the server itself, through the proxy. Its user and password are secrets, percent-encoded in the address.
With `proxy: environment` the variables HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY of the process decide;
without `proxy` they are ignored. Compressed answers (gzip, deflate) are read, though retl asks for none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, ClassVar

from msgspec.structs import replace

from retl.destinations.batch import (
    UNKNOWN,
    WRITTEN,
    Answer,
    Batch,
    Capabilities,
    Compares,
    Kind,
    Mode,
    Outcome,
    Peeked,
    RowResult,
    Shape,
    SoftDelete,
    Visit,
    WriteMode,
)
from retl.destinations.http import finding, fitness, line, texts
from retl.destinations.http.about import ABOUT
from retl.destinations.http.body import Endpoint, Template
from retl.destinations.http.cells import Row
from retl.destinations.http.conditional import Conditional, asked
from retl.destinations.http.finding import ById, Find
from retl.destinations.http.jobs import Jobs
from retl.destinations.http.objects import Object, Read
from retl.destinations.http.operations import compares, endpoints, of_key, rules_of, shaping
from retl.destinations.http.options import INSERTS, HttpOptions
from retl.destinations.http.outcome import Sent, interpret
from retl.destinations.http.reading import RowByRow
from retl.destinations.http.rules import Rules
from retl.destinations.http.server import HttpTarget
from retl.destinations.http.steps import Batched, OneRequestEach
from retl.destinations.verdicts import Row as Asked
from retl.errors import Ambiguous, DefinitionError, Expired, Poisoned, RetlError, Systemic, Unavailable
from retl.net.client import Address
from retl.net.connection import HttpConnection
from retl.net.gate import Gate
from retl.net.lookup import text
from retl.net.messages import Reply, Request
from retl.net.waits import Quota, quota

LANES = 4  # at most, if the connection's `concurrency` allows as many
_PROBE = Rules(ok=tuple(range(200, 300)), rows="none")


class HttpDestination(HttpTarget[HttpOptions]):
    Connection = HttpConnection
    Options = HttpOptions
    about = ABOUT
    documented: ClassVar[bool] = False  # what its requests do is known from a vendor's documentation

    def __init__(self, options: HttpOptions, shape: Shape, gate: Gate | None = None) -> None:
        """DefinitionError if no endpoint serves the sync, or an endpoint names a field that it lacks."""
        super().__init__(options, shape, gate)
        self._connect(options.connection)
        fitness.refuse_named_headers(options, shape)
        self._endpoints = endpoints(options, shape)
        self._calls: dict[Mode, tuple[Template, Rules]] = {}
        self._jobs: dict[Mode, Jobs] = {}
        fitness.refuse_conflicts(options, shape)
        fitness.refuse_half_rows(options, shape)
        endpoint = self._call(shape.write)[0].endpoint
        self._line = line.line(endpoint, shape)
        self._sending = self._sender()
        self._by_id = self._finding(options.find) if options.find else None
        self._then: tuple[Template, Rules] | None = None
        self._unanswered: set[str] = set()  # batches whose creation may have been applied
        self._value = Object(shape, options.read, options.version, (options.update or endpoint).cast)
        self._objects = self._reading(options.read) if options.read else None
        comparing = compares(options, shape)
        if shape.cautious and self._objects is not None and comparing != "no":
            self._conditional: Conditional | None = Conditional(
                self._value, self._objects, comparing == "atomic", shape.write == "update_only"
            )
        else:
            self._conditional = None
        if shape.deletes != "keep" or shape.write == "replace":
            self._follow(self._call("delete")[0].endpoint)
        if shape.write == "replace":
            self._call("append")
        fitness.refuse_unused(options, shape, endpoint)
        fitness.refuse_ids(options, shape, endpoint)
        self.capabilities = self._capable(endpoint, comparing)

    def _capable(self, endpoint: Endpoint, comparing: Compares) -> Capabilities:
        options, shape, key = self.options, self.shape, self.options.idempotency
        once = shape.write not in INSERTS or self._finds(shape.write)
        both = shape.write == "upsert" and (shape.cautious or options.find is not None)
        return Capabilities(
            object=HttpDestination.place(options, shape.write),
            modes=frozenset(self._endpoints),
            idempotent=once,
            posts_twice=once and self._is_unproved(endpoint),
            form="documents",
            soft_deletes=True,
            # with an intent before each request, more lanes would only leave more in doubt
            most_lanes=1 if not once or key or endpoint.job else LANES,
            shaping=shaping(endpoint)
            | ({"insert": shaping(options.insert)} if both and options.insert else {}),
            key_window=key.window if key else None,
            nulls_keep=shape.write not in (*INSERTS, "replace"),
            unsent_varies=endpoint.method != "PATCH",
            resolves=key is not None or self._conditional is not None,
            folds=options.folds.of(shape.key),
            by_ref=shape.deletes != "keep" and self._endpoints["delete"].asks_ref and not options.find,
            requests=2 if self._finds(shape.write) or shape.write == "replace" else 1,
            probes=1 if options.check else 0,
            max_rows=self._most(shape.write, endpoint),
            max_deletes=self._most("delete", self._endpoints["delete"])
            if "delete" in self._endpoints
            else None,
            looks=options.read is not None,
            compares=comparing,
        )

    @classmethod
    def place(cls, options: HttpOptions, write: WriteMode) -> str:
        address = Address.parse(options.connection.base_url)
        endpoint = options.endpoint(write)
        return f"{address}{address.prefix}{endpoint.path.partition('?')[0] if endpoint else ''}" + (
            options.connection.auth.mark()
        )

    @classmethod
    def claim(cls, options: HttpOptions, write: WriteMode) -> str | None:
        """The address without the names of its placeholders, and the account of the credential, because
        accounts share servers. An append creates a new object each time."""
        endpoint = options.endpoint(write)
        if write == "append" or endpoint is None:
            return None
        path = "{}".join(texts.split(endpoint.path.partition("?")[0])[::2])
        account = sha256(repr(options.connection.auth.secrets()).encode()).hexdigest()
        return f"{Address.parse(options.connection.base_url).place}{path}#{account}"

    @classmethod
    def learns(cls, options: HttpOptions, write: WriteMode, key: Sequence[str]) -> bool:
        if options.find is not None and not options.upsert:
            return True
        endpoint = options.endpoint(write)
        if endpoint is None:
            return False
        rules = (
            endpoint.job.outcome if endpoint.job else rules_of(endpoint, options.outcome, write, list(key))
        )
        return rules.ref is not None and rules.rows in ("positional", "listed", "all_or_nothing")

    @classmethod
    def comparable(cls, options: HttpOptions) -> bool:
        return options.read is not None

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
        if self._conditional is not None:
            return self._write_conditional(self._conditional, batch)
        if batch.mode == "replace":
            return self._replace(batch)
        try:
            if self._by_id is not None and self._finds(batch.mode):
                return self._by_id.deliver(batch.mode, self._documents(batch), batch.refs())
            request = self._request(batch)
            if (jobs := self._jobs.get(batch.mode)) and jobs.job.open:
                return jobs.begin(request)
        except Poisoned as error:
            if len(batch) > 1:
                raise
            return Outcome(RowResult(Kind.REJECTED, error.code, error.message))
        found = self._judge(self._send(request, batch), request, batch)
        if self._then is not None and batch.operation == "delete" and found == Outcome(WRITTEN):
            (key,), (ref,) = batch.keys(), batch.refs()
            return Outcome(self._second((*key, *([] if ref is None else [ref]))))
        return found

    def _follow(self, endpoint: Endpoint) -> None:
        """Let what follows a delete follow it wherever deletes are sent."""
        if isinstance(self.shape.deletes, SoftDelete) or (second := endpoint.second) is None:
            return
        if endpoint.asks_ref != second.asks_ref:
            raise DefinitionError("HTTP_REF", "`then` names a row as `delete` does: both by $ref, or none")
        keys = [field.name for field in self.shape.key]
        rules = rules_of(second, self.options.outcome, "delete", keys)
        self._then = Template(second, keys, [], self._address.prefix), rules
        for one in (self._by_id, self._objects):
            if one is not None:
                one.then = self._second

    def _second(self, row: Row) -> RowResult:
        """What became of the second request of a delete; an object that is gone is deleted."""
        assert self._then is not None
        template, rules = self._then
        request = template.request([row])
        request = replace(request, headers=(("Host", self._address.authority), *request.headers))
        texts = template.texts(request)
        sent = Sent(1, True, lambda to: [], lambda n: [*texts(n), *self._known()])
        return finding.gone(interpret(self._exchange(request, rules), rules, sent)).result(0)

    def _replace(self, batch: Batch) -> Outcome:
        """Delete the object of the row, and insert it. Once something was deleted only an insert is an
        answer: without it the row is UNKNOWN, so the next run sends it whatever the mart says then."""
        try:
            removal, request = self._replacing(batch)
        except Poisoned as error:
            return Outcome(RowResult(Kind.REJECTED, error.code, error.message))
        removed = batch.id in self._unanswered
        if removal is not None:
            status, ended = self._answered("delete", removal)
            if (result := finding.gone(ended).result(0)).kind is not Kind.WRITTEN:
                return Outcome(result)
            removed = removed or not (batch.new or status in finding.GONE)
        try:
            outcome = self._answered("append", request)[1]
        except (Ambiguous, Unavailable, Systemic, Poisoned) as error:
            if not removed:
                raise
            self._unanswered.add(batch.id)
            told = f"a row was deleted and not inserted again: {error.message}"
            raise Ambiguous(error.code, told) from error
        result = outcome.result(0)
        if result.kind is not Kind.WRITTEN and removed:
            why = ": ".join(filter(None, ("deleted, and its new version was refused", result.reason)))
            return Outcome(RowResult(Kind.UNKNOWN, result.code, why))
        return outcome

    def _replacing(self, batch: Batch) -> tuple[Request | None, Request]:
        """The requests of a row; no delete if it needs an external id that is not known, because there is no
        object of ours then. Poisoned, before anything is sent, if one cannot be made."""
        (row,), width, host = self._documents(batch), len(self.shape.key), ("Host", self._address.authority)
        removal, ref = None, batch.refs()[0]
        template = self._call("delete")[0]
        if ref is not None or not template.endpoint.asks_ref:
            key = row[:width]
            key = finding.with_ref(key, ref, width) if template.endpoint.asks_ref else key
            removal = template.request([key])
            removal = replace(removal, headers=(host, *removal.headers))
        request = self._call("append")[0].request([row])
        return removal, replace(request, headers=(host, *request.headers))

    def _answered(self, mode: Mode, request: Request) -> tuple[int, Outcome]:
        """The status of the answer about one row, and what it means."""
        template, rules = self._call(mode)
        texts = template.texts(request)
        sent = Sent(1, mode == "delete", lambda to: [], lambda row: [*texts(row), *self._known()])
        reply = self._exchange(request, rules)
        return reply.status, interpret(reply, rules, sent)

    def _write_conditional(self, conditional: Conditional, batch: Batch) -> Outcome:
        """If the answer to a creation was lost before, an object that is as it would make it is ours."""
        made = frozenset(range(len(batch))) if batch.id in self._unanswered else frozenset()
        try:
            found = conditional.write(batch, self._begin(batch), made)
        except RetlError:
            if self._read_by().doubtful:
                self._unanswered.add(batch.id)
            raise
        self._unanswered.discard(batch.id)
        return found

    def _begin(self, batch: Batch, *, with_fields: bool = True) -> list[Asked]:
        """The rows of a conditional batch, which are the ones that are read and written next."""
        rows = self._documents(batch) if with_fields else batch.keys()
        self._read_by().begin(rows, self._refs(batch))
        return asked(self._value, batch, rows)

    def _refs(self, batch: Batch) -> Sequence[str | None]:
        asked = self.options.find is not None or self.capabilities.by_ref
        return batch.refs() if asked else [None] * len(batch)

    def _read_by(self) -> RowByRow:
        assert self._objects is not None
        return self._objects

    def peek(self, batch: Batch) -> Iterator[Peeked]:
        assert self._conditional is not None
        return self._conditional.peek(batch, self._begin(batch))

    def read(self, batch: Batch) -> Iterator[Mapping[str, Any] | None]:
        """A key that several objects have is there, and none of them is the row's."""
        objects = self._read_by()
        objects.begin(batch.keys(), self._refs(batch))
        for found in objects.values():
            yield {} if isinstance(found, RowResult) else found

    def differing(self, batch: Batch) -> Iterator[tuple[str, ...] | None]:
        objects, rows = self._read_by(), self._documents(batch)
        objects.begin(rows, self._refs(batch))
        for row, held in zip(rows, objects.helds(), strict=True):
            if isinstance(held, RowResult):
                yield self._value.names
                continue
            yield None if held is None else self._value.differing(held, row[-1])

    def resolve(self, batch: Batch, handle: str | None, *, act: bool = True) -> Answer:
        """The result of the job `handle`. Without a handle: sends the same bytes with the same idempotency
        key, within `key_window`; the answer is that of the first request. UNKNOWN without job and key. A row
        whose object still has the version that we left was not written."""
        if self._conditional is not None:
            return self._conditional.resolve(self._begin(batch, with_fields=False))
        if not act:
            return Outcome(UNKNOWN)
        if handle is not None and batch.mode in self._endpoints and (jobs := self._jobs_of(batch.mode)):
            keys = batch.keys()
            names = [text(value) for key in keys for value in key]
            found = jobs.ask(handle, self._sent(batch, lambda row: [*names, *self._known()]))
            return (
                finding.gone(found) if batch.operation == "delete" and isinstance(found, Outcome) else found
            )
        if (
            self.options.find is not None
            and self.options.find.settles is not None
            and self._finds(batch.mode)
        ):
            raise Unavailable(
                "HTTP_NO_ANSWER", "no answer: the row is looked for", retry_after=self.options.find.settles
            )
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
        if self._conditional is not None:
            firsts = [(self._conditional.sending(row), row.number) for row in self._begin(batch)]
            return self._sending.preview([self._read_by().request(*one) for one in firsts])
        if batch.mode == "replace":
            return b"\r\n\r\n".join(one.dump() for one in self._replacing(batch) if one is not None)
        if self._by_id is None or not self._finds(batch.mode):
            return self._request(batch).dump()
        each = zip(self._documents(batch), batch.refs(), strict=True)
        asked = [self._by_id.requests(batch.mode, row, ref) for row, ref in each]
        if len(asked) == 1:
            return b"\r\n\r\n".join(one.dump() for one in asked[0])
        return self._sending.preview([first for first, *_ in asked])

    def _finding(self, find: Find) -> ById:
        """DefinitionError if it lacks what it needs to create and to change rows."""
        both = self.shape.write == "upsert" and not self.options.upsert
        for mode in ("append", "update_only") if both else (self.shape.write,):
            self._call(mode)
        keys, outcome = [field.name for field in self.shape.key], self.options.outcome
        return ById(find, keys, self._address, self._call, self._sending, self._known, outcome, self._jobs_of)

    def _is_unproved(self, endpoint: Endpoint) -> bool:
        """Whether only `write` says that this request is harmless twice: a POST without a key, that a vendor
        does not document as an upsert or documents as an insert too."""
        options = self.options
        known = self.documented and options.upsert != options.insert
        return endpoint.method == "POST" and not (options.idempotency or options.find or known)

    def _finds(self, operation: Mode) -> bool:
        """Whether the rows of an operation are looked for, one at a time."""
        direct = operation == "append" or (operation != "delete" and self.options.upsert is not None)
        return self.options.find is not None and not direct

    def _most(self, operation: Mode, endpoint: Endpoint) -> int | None:
        """The rows that are delivered at a time."""
        if operation == "replace":
            return 1
        return (
            self._sending.max_rows if self._conditional or self._finds(operation) else endpoint.rows_at_most
        )

    def _sender(self) -> OneRequestEach | Batched:
        if self.options.batch is None:
            return OneRequestEach(self._exchange)
        host = ("Host", self._address.authority)
        prefix, rules = self._address.prefix, self.options.outcome
        return Batched(
            self.options.batch,
            prefix,
            host,
            self._exchange,
            lambda: self._about(2),
            rules,
            self.gate.on_quota,
        )

    def _jobs_of(self, operation: Mode) -> Jobs | None:
        self._call(operation)
        return self._jobs.get(operation)

    def _reading(self, read: Read) -> RowByRow:
        keys = [field.name for field in self.shape.key]
        rules, sending = self.options.outcome, self._sending
        return RowByRow(
            read, self._value, keys, self._address, self._call, sending, self._known, rules, self._by_id
        )

    def _exchange(self, request: Request, rules: Rules) -> Reply:
        reply = self._client.send(request)
        self._heed_quota(reply, rules)
        return reply

    def lacks(self, operation: Mode) -> DefinitionError:
        """The error if no endpoint serves an operation of the sync."""
        return fitness.unserved(operation)

    def rules(self, operation: Mode) -> Rules:
        """How answers to this operation are read."""
        return self._call(operation)[1]

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
                finding.with_ref(row, ref, len(self.shape.key))
                for row, ref in zip(rows, batch.refs(), strict=True)
            ]
        request = template.request(rows)
        return replace(request, headers=(host, *request.headers))

    def _send(self, request: Request, batch: Batch) -> Reply:
        key, value = self.options.idempotency, batch.idempotency_key
        named = {key.header: value} if key and key.header and value else {}
        before = batch.window.use if value and batch.window else lambda: None
        reply = self._client.send(request, named, before)
        self._heed_quota(reply, self._call(batch.mode)[1])
        return reply

    def _heed_quota(self, reply: Reply, rules: Rules) -> None:
        for usage, daily in ((rules.usage, False), (rules.budget, True)):
            if usage and (found := quota(reply.headers, usage, daily=daily)):
                self.gate.on_quota(found)

    def _judge(self, reply: Reply, request: Request, batch: Batch) -> Answer:
        template, rules = self._call(batch.mode)
        jobs = self._jobs.get(batch.mode)
        if jobs:
            rules = rules.model_copy(update={"ref": None})  # the id in the answer is the job's
        texts = template.texts(request)
        outcome = interpret(reply, rules, self._sent(batch, lambda row: [*texts(row), *self._known()]))
        results = (outcome.default, *outcome.exceptions.values())
        if rules.wait and not outcome.divides and any(one.kind is Kind.RETRY for one in results):
            self.gate.on_quota(Quota(0.0, rules.wait))
        if batch.operation == "delete":
            outcome = finding.gone(outcome)
        return jobs.submitted(reply) if jobs and outcome == Outcome(WRITTEN) else outcome

    def _sent(self, batch: Batch, texts: Callable[[int | None], Iterable[str]]) -> Sent:
        """What `interpret` needs to know of the batch."""
        template = self._call(batch.mode)[0]

        def names(to: str) -> list[str]:
            if to == "$row_no":
                return [str(n) for n in range(len(batch))]
            index = 0 if to == "$key" else template.keys.index(to.removeprefix("$"))
            keys = batch.keys()
            return [text(key[index]) for key in keys]

        return Sent(len(batch), batch.mode not in INSERTS, names, texts)

    def _call(self, operation: Mode) -> tuple[Template, Rules]:
        """The template of the operation's endpoint, and the rules for its answers."""
        if operation in self._calls:
            return self._calls[operation]
        if operation not in self._endpoints:
            raise self.lacks(operation)
        endpoint, deletes = self._endpoints[operation], self.shape.deletes
        keys, fields = ([field.name for field in part] for part in (self.shape.key, self.shape.fields))
        learns = operation == "delete" and HttpDestination.learns(self.options, self.shape.write, keys)
        fitness.refuse_unknown_ref(self.options, self.shape, endpoint, operation, learns=learns)
        fitness.refuse_partof_key(self.shape, endpoint, operation)
        if operation == "delete":
            fields = list(deletes.set) if isinstance(deletes, SoftDelete) else []
        template = Template(endpoint, keys, fields, self._address.prefix)
        fitness.refuse_no_place(self.options, template, operation)
        rules = rules_of(endpoint, self.options.outcome, operation, keys)
        self._calls[operation] = template, rules
        if endpoint.job:
            self._jobs[operation] = self._made_jobs(endpoint, template, rules, keys)
        return template, rules

    def _made_jobs(self, endpoint: Endpoint, template: Template, rules: Rules, keys: list[str]) -> Jobs:
        assert endpoint.job is not None
        match = tuple(of_key(one, keys) for one in endpoint.job.outcome.match)
        outcome = endpoint.job.outcome.model_copy(update={"match": match})
        own = template.constant_headers
        named = {name.lower() for name, _ in own}

        def send(request: Request) -> Reply:
            others = [one for one in request.headers if one[0].lower() not in named]
            return self._exchange(replace(request, headers=(*others, *own)), rules)

        return Jobs(endpoint.job.model_copy(update={"outcome": outcome}), send, self._address.prefix, rules)
