"""Asynchronous jobs of a target: submit a batch, poll the job, fetch its errors.

The job's id is the handle that delivery stores, so after a crash the job is polled and not submitted again. A
job in steps is opened empty, gets the rows, and is started: each id is stored before the next step, and no
step is done twice. It decides nothing about how rows become requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit

import msgspec
from msgspec.structs import replace
from pydantic import BeforeValidator, field_validator, model_validator

from retl.destinations.batch import UNKNOWN, WRITTEN, Answer, Kind, Outcome, Pending, RowResult
from retl.destinations.http import csvbody, texts
from retl.destinations.http.cells import exact
from retl.destinations.http.outcome import Sent, interpret, unsure
from retl.destinations.http.rules import Case, Rules
from retl.errors import Ambiguous, Later, Systemic, Unavailable
from retl.model import Definition, Duration
from retl.net.lookup import Found, Match, look
from retl.net.messages import Reply, Request

JOB = "$job"
PLACE = "{job}"  # in a prepared request, where the job's id comes later; no value of a row can look like it
_PAGES = 1000
_WORD = texts.Word(JOB)
_NOT_APPLIED = RowResult(Kind.RETRY)
_NOT_OF_ROWS = Case(status=(400, 409, 413, 414, 422), means="systemic")

Id = Annotated[Found, BeforeValidator(lambda value: {"at": value} if isinstance(value, str) else value)]


def _of_the_job(path: str | None) -> str | None:
    if path and set(texts.split(path)[1::2]) - {JOB}:
        raise ValueError("a job belongs to many rows: its paths take only $job")
    return path


class Step(Definition):
    """A request of a job beside its rows. `$job` in `path`, and in texts of `row` as `{$job}` too, is the
    newest id; `id` is where the answer has the next one, if it has one."""

    method: Literal["POST", "PUT", "PATCH"] = "POST"
    path: str
    row: Any = None
    id: Id | None = None

    _path = field_validator("path")(_of_the_job)

    @model_validator(mode="after")
    def _fits(self) -> Step:
        filled(self.row, "")
        return self


class Job(Definition):
    """An answer to rows that names a job instead of results, at `id`. The job is polled at `path` (with
    `$job`) until the answer matches `done`, or `failed`, which makes its rows unknown. `patience`: after it
    the run ends, and the next one asks again. The errors of a finished job are the lists at `errors_at` in
    `errors_path` and in the following pages, linked by `next`; an answer without a list there must fit
    `errors_none`, because only then no row was refused. Or they are in the file whose address the last answer
    has at `errors_url` (it is fetched from the connection's server, whatever its host). With `errors_format:
    csv` the file is a table with a header line, and an error is an object of the texts of a line by their
    columns; it is not fetched if `outcome.failed` counts none. `outcome` reads {"job": the last answer,
    "errors": all of them}.

    In steps: `open` makes an empty job, whose id is `$job` in the path of the rows; `start` lets the job
    begin. A job that was opened and not started has applied nothing."""

    open: Step | None = None
    start: Step | None = None
    id: Id | None = None
    path: str
    every: Duration = 5.0
    patience: Duration | None = None
    done: Match
    failed: Match | None = None
    errors_path: str | None = None
    errors_url: str | None = None
    errors_format: Literal["json", "csv"] = "json"
    errors_at: str = ""
    errors_none: Match | None = None
    next: str | None = None
    outcome: Rules

    _paths = field_validator("path", "errors_path")(_of_the_job)

    @model_validator(mode="after")
    def _fits(self) -> Job:
        if self.open is not None and (self.open.id is None or JOB in self.open.path):
            raise ValueError("`open` needs `id`: where its answer has the id of the job, and no $job itself")
        if self.open is None and self.id is None:
            raise ValueError("a job needs `id`: where the answer to the rows has its id")
        if self.errors_path is not None and self.errors_url is not None:
            raise ValueError("the errors of a job are at `errors_path`, or at `errors_url`")
        if (given := self.errors_path or self.errors_url) is None and self._of_errors:
            raise ValueError(f"`{self._of_errors[0]}` needs `errors_path` or `errors_url`")
        if given and self.errors_format == "csv" and (self.errors_at or self.next or self.errors_none):
            raise ValueError(
                "`errors_format: csv` takes no `errors_at`, `errors_none` and `next`: a file is one table"
            )
        return self

    @property
    def _of_errors(self) -> list[str]:
        return sorted({"errors_format", "errors_at", "errors_none", "next"} & self.model_fields_set)


def filled(part: Any, job: str) -> Any:
    """A part of a step's row with the job's id. ValueError if it has another placeholder."""
    match part:
        case dict():
            return {name: filled(inner, job) for name, inner in part.items()}
        case list() | tuple():
            return [filled(inner, job) for inner in part]
        case "$job":
            return job
        case str():
            pieces = texts.inside(part)
            whole = part.startswith("$") and not part.startswith("$$")
            if wrong := [word for word in (*pieces[1::2], *([part] if whole else [])) if word != _WORD]:
                raise ValueError(f"a step belongs to many rows: it takes {{$job}}, not {wrong[0]}")
            return "".join(job if n % 2 else str(piece) for n, piece in enumerate(pieces))
    return part


class Jobs:
    """The jobs of one operation. `send` sends a request with the operation's headers and heeds the quota in
    its answer; `limits` are the rules for answers that concern no row."""

    def __init__(self, job: Job, send: Callable[[Request], Reply], prefix: str, rules: Rules) -> None:
        self.job, self._send, self._prefix = job, send, prefix
        self._rules = rules.model_copy(update={"ref": None})  # an id in the answer to rows is the job's
        self._limits = rules.of_looks
        self._mine: tuple[str, Request | None] = "", None  # the step of this process, and rows not yet sent
        self._asked: tuple[str, float] = "", 0.0  # a job, and when it was asked after first

    def begin(self, request: Request) -> Pending:
        """Open a job for these rows. Nothing is applied yet, so a lost answer is Unavailable."""
        assert self.job.open is not None
        assert self.job.open.id is not None
        reply = self._step(self.job.open, "")
        if reply is None:
            raise Unavailable("HTTP_NO_ANSWER", "no answer to the opening of a job")
        id = self.job.open.id.of(reply.content)
        if id is None:
            raise Systemic("HTTP_NO_JOB", "the target opened a job and did not name it")
        return self._reached("opened", id, request)

    def submitted(self, reply: Reply, former: str | None = None) -> Pending:
        """Ambiguous if the answer names no job: the batch may have been accepted anyway."""
        name = self.job.id.of(reply.content) if self.job.id else former
        if name is None:
            raise Ambiguous("HTTP_NO_JOB", "the target accepted the batch and did not name the job")
        return self._reached("loaded" if self.job.start else "started", name, None)

    def ask(self, handle: str, sent: Sent) -> Answer:
        """The next step of the job, or its state or result. Of a dead run's job only the last is asked:
        what it opened applied nothing, and whether it was started in its last moment is UNKNOWN."""
        stage, _, id = handle.partition(":") if self.job.open or self.job.start else ("started", "", handle)
        mine, request = self._mine
        if stage == "started":
            return self._result(handle, id, sent)
        if mine != handle:
            return Outcome(_NOT_APPLIED if stage == "opened" else UNKNOWN)
        if stage == "opened":
            assert request is not None
            return self._load(request, id, sent)
        assert self.job.start is not None
        reply = self._step(self.job.start, id)
        if reply is None:  # it may have been started: the same rows in another job are as good
            return Outcome(_NOT_APPLIED if sent.idempotent else UNKNOWN)
        id = (self.job.start.id.of(reply.content) if self.job.start.id else id) or ""
        return self._reached("started", id, None) if id else Outcome(UNKNOWN)

    def _load(self, request: Request, id: str, sent: Sent) -> Answer:
        """Send the rows to the opened job, once."""
        target = request.target.replace(PLACE, quote(id, safe=""))
        try:
            reply = self._send(replace(request, target=target))
            outcome = interpret(reply, self._rules, replace(sent, idempotent=False))
            return self.submitted(reply, id) if outcome == Outcome(WRITTEN) else outcome
        except Ambiguous:  # it is not started, and never will be
            return Outcome(_NOT_APPLIED)

    def _reached(self, stage: str, id: str, request: Request | None) -> Pending:
        steps = self.job.open or self.job.start
        handle = f"{stage}:{id}" if steps else id
        self._mine = handle, request
        return Pending(handle, self.job.every if stage == "started" else 0.0)

    def _step(self, step: Step, job: str) -> Reply | None:
        """The answer to a step that was accepted; None if it is lost. A refusal concerns no row: Systemic."""
        path = self._prefix + step.path.replace(JOB, quote(job, safe=""))
        body = b"" if step.row is None else exact.encode(filled(step.row, job))
        content = (("Content-Type", "application/json"),) if body else ()
        rules = self._limits.model_copy(
            update={"ok": tuple(range(200, 300)), "cases": (*self._limits.cases, _NOT_OF_ROWS)}
        )
        try:
            reply = self._send(Request(step.method, path, content, body))
            interpret(reply, rules, Sent(2, False, lambda to: [], lambda row: []))
        except Ambiguous:
            return None
        return reply

    def _result(self, handle: str, id: str, sent: Sent) -> Answer:
        """The state or result of the job, by requests that change nothing. UNKNOWN if the target no longer
        knows the job. Errors of these requests are raised as usual."""
        job, path = self.job, self._prefix + self.job.path.replace(JOB, quote(id, safe=""))
        reply = self._send(Request("GET", path, (), b""))
        if reply.status in (404, 410):
            return Outcome(UNKNOWN)
        interpret(reply, self._limits, sent)
        if job.failed is not None and job.failed.fits(reply.content):
            return unsure("the job failed", reply.content, self._limits, sent)
        if not job.done.fits(reply.content):
            self._keep_patience(handle)
            return Pending(handle, job.every)
        errors = list(self._errors(id, reply.content, sent))
        whole = msgspec.json.encode({"job": reply.content, "errors": errors})
        return interpret(Reply(200, reply.headers, whole), job.outcome, sent)

    def _errors(self, id: str, ended: Any, sent: Sent) -> Iterator[Any]:
        """The errors of a job whose last answer is this. Ambiguous if they cannot be read, all of them."""
        job, path = self.job, self.job.errors_path
        target = path and self._prefix + path.replace(JOB, quote(id, safe=""))
        target = _local(look(ended, job.errors_url)) if job.errors_url else target
        table = job.errors_format == "csv"
        rules = self._limits.model_copy(update={"rows": "none"}) if table else self._limits
        if table and job.outcome.failed and job.outcome.failed.of({"job": ended}) == 0:
            return
        for _ in range(_PAGES):
            if not target:
                return
            page = self._send(Request("GET", target, (), b""))
            interpret(page, rules, sent)
            if table:
                yield from _table(page)
                return
            found = look(page.content, job.errors_at)
            if not isinstance(found, list) and not (job.errors_none and job.errors_none.fits(page.content)):
                raise Ambiguous("JOB_RESULTS", "an answer about the errors of a job has no list of them")
            yield from found if isinstance(found, list) else []
            target = _local(look(page.content, job.next)) if job.next else None
        if target:
            raise Ambiguous("JOB_RESULTS", f"the errors of a job have more than {_PAGES:,} pages")

    def _keep_patience(self, handle: str) -> None:
        """Later JOB_RUNS if the job has been asked after for too long."""
        if self._asked[0] != handle:
            self._asked = handle, time.monotonic()
        if self.job.patience is not None and time.monotonic() - self._asked[1] >= self.job.patience:
            raise Later(
                "JOB_RUNS",
                f"the target still works on a job after {self.job.patience:g} seconds",
                hint="run again later: the job is asked after, and nothing of it is sent again",
            )


def _table(page: Reply) -> list[dict[str, str]]:
    """The lines of a file of errors. Ambiguous if it is no table: an answer in JSON is no file."""
    if isinstance(page.content, dict | list):
        raise Ambiguous("JOB_RESULTS", "the errors of a job are no table")
    return csvbody.table(page)


def _local(url: Any) -> str | None:
    """Path and query of a link. Its host is ignored: only the connection's own server is asked."""
    if not isinstance(url, str) or not url:
        return None
    parts = urlsplit(url)
    return quote(parts.path, safe="/%:@") + (f"?{quote(parts.query, safe='=&%[]:,')}" if parts.query else "")
