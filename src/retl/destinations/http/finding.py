"""Objects that have only the target's own id: find the object of a key, then create or change it.

A row whose external id is known is sent to it. For any other, and for an object that is gone, the target is
asked for its key. So a row whose creation got no answer is looked for before anything is sent again. It knows
no connection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from msgspec.structs import replace
from pydantic import model_validator

from retl.destinations.batch import ABSENT, PRESENT, WRITTEN, Answer, Kind, Mode, Outcome, Pending, RowResult
from retl.destinations.http.body import Endpoint, Template
from retl.destinations.http.cells import Row
from retl.destinations.http.jobs import Jobs
from retl.destinations.http.outcome import MADE, Sent, interpret
from retl.destinations.http.rules import Identity, Rules
from retl.destinations.http.steps import Batched, OneRequestEach, Steps, again
from retl.destinations.http.texts import split
from retl.errors import Ambiguous, DefinitionError, Poisoned, Unavailable
from retl.model import Duration
from retl.net.client import Address
from retl.net.lookup import every, look, text
from retl.net.messages import Request

Send = Callable[[Mode, str | None], Steps[RowResult]]
Calls = Callable[[Mode], tuple[Template, Rules]]  # how an operation is sent, and its answers read
Then = Callable[[Row], RowResult]  # what follows a delete of a row: its key, and its external id
AMBIGUOUS = RowResult(Kind.REJECTED, "AMBIGUOUS", "the target has several objects with this key")
STALE = RowResult(Kind.REJECTED, "STALE", "the target found an object that is gone")
GONE = (404, 410)  # answers to a question for one object that mean: there is none


class Find(Endpoint):
    """The question for the object of a key. Its answer has objects at `at`, a list or one object; `ref` is
    the path of the id in each; a step `*` of `at` is each member. If the search is not exact, `match` says
    which of them have the key. `nothing`: statuses that mean that there is none, as 404 does anyway where the
    address has the key. `settles`: how long the target may not find an object after it was created."""

    method: Literal["GET", "POST"] = "GET"  # type: ignore[assignment]
    at: str = ""
    ref: str
    match: Identity | None = None
    settles: Duration | None = None
    nothing: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _asks(self) -> Find:
        if self.job is not None:
            raise ValueError("`find` takes no `job`")
        return self

    def refs(self, content: Any, name: str) -> list[str]:
        """The ids of the objects in an answer that have the key `name`, each once."""
        found = every(content, self.at) if "*" in self.at else look(content, self.at)
        objects = found if isinstance(found, list) else [] if found is None else [found]
        if self.match is not None:
            objects = [one for one in objects if _names(self.match, one, name)]
        ids = (look(one, self.ref) for one in objects)
        return list(dict.fromkeys(text(one) for one in ids if one is not None and text(one)))


def _names(match: Identity, item: Any, name: str) -> bool:
    value = next((v for path in match.at if (v := look(item, path)) is not None), None)
    return value is not None and text(value) == name


def settled(
    mode: Mode, ref: str | None, find: Callable[[], Steps[list[str]]], send: Send
) -> Steps[RowResult]:
    """What became of one row. `send` sends it as `append` (create), `update_only` or `delete`, to an external
    id or to none."""
    change: Mode = "delete" if mode == "delete" else "update_only"
    if ref is not None and mode != "insert_only":
        result = yield from send(change, ref)
        if result != ABSENT:
            return _known(result, ref)
    found = yield from find()
    if len(found) > 1:
        return AMBIGUOUS
    if found:
        return (yield from _changed(mode, change, found[0], send))
    if mode in ("update_only", "delete"):
        return ABSENT if mode == "update_only" else WRITTEN
    result = yield from send("append", None)
    if result.kind is Kind.SKIPPED and result.ref:  # it is there, and the answer has its id
        return (yield from _changed(mode, change, result.ref, send))
    if result.code == MADE.code and result.ref:  # it is there, without its fields
        return (yield from _changed(mode, change, result.ref, send))
    return result


def _changed(mode: Mode, change: Mode, ref: str, send: Send) -> Steps[RowResult]:
    """The result for an object that was found."""
    if mode == "insert_only":
        return replace(PRESENT, ref=ref)
    result = yield from send(change, ref)
    return STALE if result == ABSENT else _known(result, ref)


def _known(result: RowResult, ref: str) -> RowResult:
    return replace(result, ref=result.ref or ref) if result.kind is Kind.WRITTEN else result


class ById:
    """Delivers rows to their objects, as `sending` sends requests. `known` are secrets; `rules` are for
    answers to questions. DefinitionError HTTP_KEY if a question lacks a part of the key."""

    def __init__(
        self,
        find: Find,
        keys: Sequence[str],
        address: Address,
        calls: Calls,
        sending: OneRequestEach | Batched,
        known: Callable[[], list[str]],
        rules: Rules,
        jobs: Callable[[Mode], Jobs | None],
    ) -> None:
        if lacks := [name for name in keys if name not in find.named(keys)]:
            raise DefinitionError("HTTP_KEY", f"`find` lacks {', '.join(lacks)} of the key")
        self._find, self._keys, self._calls, self._known = find, keys, calls, known
        self.sending = sending
        self._jobs, self._pending = jobs, list[Pending]()
        self._rules = (find.outcome or rules).of_looks.model_copy(update={"ok": (200, 204)})
        self._host = ("Host", address.authority)
        self._question = Template(find, keys, [], address.prefix)
        self.then: Then | None = None

    def deliver(self, mode: Mode, rows: Sequence[Row], refs: Sequence[str | None]) -> Answer:
        each = [self._settled(mode, row, ref) for row, ref in zip(rows, refs, strict=True)]
        results = list(self.sending.run(each, again))
        if self._pending:
            return self._pending.pop()
        default = replace(results[0], ref=None)
        return Outcome(default, {n: one for n, one in enumerate(results) if one != default})

    def _settled(self, mode: Mode, row: Row, ref: str | None) -> Steps[RowResult]:
        key = row[: len(self._keys)]
        return settled(mode, ref, lambda: self.found(key), lambda how, to: self._one(how, row, to))

    def requests(self, mode: Mode, row: Row, ref: str | None) -> list[Request]:
        """What would be sent first: to a known id, or the question and then what creates the object."""
        if ref is not None and mode != "insert_only":
            return [self._request("delete" if mode == "delete" else "update_only", row, ref)]
        asked = [self.asked(row[: len(self._keys)])]
        return asked + ([self._request("append", row, None)] if mode in ("upsert", "insert_only") else [])

    def found(self, key: Row) -> Steps[list[str]]:
        """The ids of the objects with this key. A question writes nothing, so without an answer it is asked
        again. 404 says that there is none only if the address itself has the key."""
        find = self._find
        try:
            reply = yield self.asked(key), self._rules
        except Ambiguous as error:
            raise Unavailable(error.code, error.message) from error
        none = (*find.nothing, *(GONE if split(find.path.partition("?")[0])[1::2] else ()))
        if reply.status in none and not reply.is_page:
            return []
        texts = [*map(text, key), *self._known()]
        found = interpret(reply, self._rules, Sent(1, True, lambda to: [], lambda row: texts)).default
        if found.kind is not Kind.WRITTEN:
            raise Poisoned(found.code or "REFUSED", found.reason or "the key cannot be looked for")
        to = find.match.to.removeprefix("$") if find.match else ""
        return find.refs(reply.content, text(key[self._keys.index(to) if to in self._keys else 0]))

    def _one(self, mode: Mode, row: Row, ref: str | None) -> Steps[RowResult]:
        """What became of a row that was sent to this id, or created."""
        template, rules = self._calls(mode)
        request = self._request(mode, row, ref)
        reply = yield request, rules
        texts = template.texts(request)
        sent = Sent(1, mode != "append", lambda to: [], lambda row: [*texts(row), *self._known()])
        outcome = interpret(reply, rules, sent)
        if (jobs := self._jobs(mode)) and outcome == Outcome(WRITTEN):
            self._pending = [jobs.submitted(reply)]
        result = (gone(outcome) if mode == "delete" else outcome).result(0)
        if mode == "delete" and self.then is not None and result.kind is Kind.WRITTEN:
            return self.then((*row[: len(self._keys)], *([] if ref is None else [ref])))
        return result

    def _request(self, mode: Mode, row: Row, ref: str | None) -> Request:
        template = self._calls(mode)[0]
        return self._hosted(
            template.request([with_ref(row, ref, len(self._keys)) if template.endpoint.asks_ref else row])
        )

    def asked(self, key: Row) -> Request:
        return self._hosted(self._question.request([key]))

    def _hosted(self, request: Request) -> Request:
        return replace(request, headers=(self._host, *request.headers))


def gone(outcome: Outcome) -> Outcome:
    """The outcome of a delete: a row that was not there is deleted."""

    def ended(result: RowResult) -> RowResult:
        return WRITTEN if result == ABSENT else result

    ends = {row: ended(result) for row, result in outcome.exceptions.items()}
    return replace(outcome, default=ended(outcome.default), exceptions=ends)


def with_ref(row: Row, ref: str | None, keys: int) -> Row:
    """The row with its external id after the key. Poisoned if the id is not known."""
    if ref is None:
        raise Poisoned("REF_UNKNOWN", "the external id of this row is not known")
    return (*row[:keys], ref, *row[keys:])


def with_version(row: Row, version: bytes | None, at: int) -> Row:
    """The row with a version at this position. Poisoned if it is not known."""
    if version is None:
        raise Poisoned("VERSION_UNKNOWN", "the target did not tell the version of this row's object")
    return (*row[:at], version, *row[at:])
