"""Rows that take requests of their own: one row after the other, or the requests of many rows in one $batch.

A row is a generator: it gives a request and the rules for its answer, gets the answer, and returns what
became of the row. So the order of a row's requests is written once, and holds for both ways. It knows no
connection.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from itertools import islice
from typing import Annotated, NoReturn, TypeVar

from pydantic import Field, field_validator

from retl.destinations.batch import Kind, RowResult
from retl.destinations.http import odata, texts
from retl.destinations.http.outcome import Sent, interpret
from retl.destinations.http.rules import Rules
from retl.errors import Ambiguous, Poisoned, RetlError, TargetError, Unavailable
from retl.model import Definition
from retl.net.auth import HeaderName
from retl.net.messages import Reply, Request
from retl.net.waits import Quota

T = TypeVar("T")
Step = tuple[Request, Rules]
Steps = Generator[Step, Reply, T]
Send = Callable[[Request, Rules], Reply]
Failed = Callable[[TargetError], T]  # what becomes of a row whose part failed, or an error
_NOT_DONE = Reply(503, {})  # of a part that the server did not come to
_OF_ROWS = (Unavailable, Ambiguous, Poisoned)


class Together(Definition):
    """The address below base_url that takes many requests as one OData $batch, each write a change set of its
    own, and how many rows it gets at a time."""

    path: str
    max_rows: Annotated[int, Field(ge=2)]
    headers: dict[HeaderName, str] = Field(default={})

    @field_validator("path")
    @classmethod
    def _constant(cls, path: str) -> str:
        if len(pieces := texts.split(path)) > 1:
            raise ValueError("`batch` belongs to no row: its path has no placeholders ($$ is a dollar sign)")
        return pieces[0]


class OneRequestEach:
    """Sends the requests of rows as they are."""

    max_rows = 1

    def __init__(self, send: Send) -> None:
        self._send = send

    def run(self, rows: Sequence[Steps[T]], failed: Failed[T]) -> Iterator[T]:
        """The end of each row, one after the other. What fails is raised."""
        for row in rows:
            yield self._run(row)

    def _run(self, row: Steps[T]) -> T:
        try:
            step = next(row)
            while True:
                try:
                    reply = self._send(*step)
                except RetlError as error:
                    step = row.throw(error)
                else:
                    step = row.send(reply)
        except StopIteration as end:
            found: T = end.value
            return found

    def preview(self, requests: Sequence[Request]) -> bytes:
        return b"\r\n\r\n".join(one.dump() for one in requests)


class Batched:
    """Sends the next requests of all rows in one $batch, until each row has its end. `about`: what is
    known of an answer that names no row."""

    def __init__(
        self,
        together: Together,
        prefix: str,
        host: tuple[str, str],
        send: Send,
        about: Callable[[], Sent],
        rules: Rules,
        on_quota: Callable[[Quota], None],
    ) -> None:
        self._path, self._host, self._send, self._about = prefix + together.path, host, send, about
        self._named = tuple(together.headers.items())
        self._whole = rules.model_copy(update={"ok": (), "partial": (), "rows": "none"})
        self._on_quota, self.max_rows = on_quota, together.max_rows

    def run(self, rows: Sequence[Steps[T]], failed: Failed[T]) -> Iterator[T]:
        """The end of each row. What concerns the whole $batch is raised."""
        waiting = iter(rows)
        while page := list(islice(waiting, self.max_rows)):
            yield from self._page(page, failed)

    def _page(self, rows: Sequence[Steps[T]], failed: Failed[T]) -> list[T]:
        found: dict[int, T] = {}
        asking: dict[int, Step] = {}

        def move(n: int, on: Callable[[], Step]) -> None:
            try:
                asking[n] = on()
            except StopIteration as end:
                found[n] = end.value
            except _OF_ROWS as error:
                found[n] = failed(error)

        for n, row in enumerate(rows):
            move(n, partial(next, row))
        while asking:
            asked, asking = asking, {}
            try:
                replies = self._answers([request for request, _ in asked.values()])
            except RetlError as error:
                raise _thrown([rows[n] for n in asked], error) from error
            for n, reply in zip(asked, replies, strict=True):
                move(n, partial(rows[n].send, reply))
        return [found[n] for n in range(len(rows))]

    def _answers(self, requests: Sequence[Request]) -> list[Reply]:
        reply = self._send(self.request(requests), self._whole)
        if reply.status not in (200, 202) or not reply.headers.get("content-type", "").startswith(
            "multipart/"
        ):
            interpret(reply, self._whole, self._about())
        parts = odata.replies(reply, sets=True)
        if len(parts) < len(requests) and parts and parts[-1].status >= 400:  # OData 4 may end at an error
            parts += [_NOT_DONE] * (len(requests) - len(parts))
        if len(parts) != len(requests):
            raise Ambiguous(
                "HTTP_NO_PARTS", f"the answer to a $batch has {len(parts)} parts for {len(requests)} requests"
            )
        if wait := odata.pause(parts):
            self._on_quota(Quota(0.0, wait))
        return parts

    def request(self, requests: Sequence[Request]) -> Request:
        parts = [_inner(one) for one in requests]
        name = sha256(b"".join(one.dump() for one in parts)).hexdigest()[:32]
        content = ("Content-Type", f'multipart/mixed; boundary="batch_{name}"')
        headers = (self._host, content, ("Accept", "multipart/mixed"), *self._named)
        return Request("POST", self._path, headers, odata.multipart(parts, f"batch_{name}", sets=True))

    def preview(self, requests: Sequence[Request]) -> bytes:
        return self.request(requests).dump()


def _inner(request: Request) -> Request:
    """A request as a part: the host is that of the $batch."""
    own = tuple(one for one in request.headers if one[0].lower() != "host")
    return Request(request.method, request.target, (*own, ("Accept", "application/json")), request.body)


def _thrown(rows: Sequence[Steps[T]], error: RetlError) -> RetlError:
    """The error of a whole $batch as its rows see it: in doubt if one of them is. What a row would make of it
    on its own is not asked: the refusal of many requests is not about one."""
    found: list[RetlError] = []
    for row in rows:
        try:
            with suppress(StopIteration):
                row.throw(error)
        except RetlError as seen:
            found.append(seen)
    return next((one for one in found if isinstance(one, Ambiguous)), found[0] if found else error)


def ended(error: TargetError) -> RowResult:
    """The result of a row whose part failed. A part that was not done is sent again."""
    kinds: Mapping[type, Kind] = {Unavailable: Kind.RETRY, Ambiguous: Kind.UNKNOWN}
    return RowResult(kinds.get(type(error), Kind.REJECTED), error.code, error.message)


def again(error: TargetError) -> RowResult:
    """The same for a row that is looked for before it is sent: one in doubt is looked for again."""
    found = ended(error)
    return RowResult(Kind.RETRY, found.code, found.reason) if found.kind is Kind.UNKNOWN else found


def raised(error: TargetError) -> NoReturn:
    """For questions: what fails is no answer."""
    raise error
