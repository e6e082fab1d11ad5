"""Objects read and written by requests of their own for each row.

It knows no connection, and decides nothing about a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec.structs import replace

from retl.destinations.batch import Kind, Mode, RowResult
from retl.destinations.http.body import Endpoint, Template
from retl.destinations.http.cells import Row, exact
from retl.destinations.http.conditional import Sending, Told
from retl.destinations.http.finding import AMBIGUOUS, GONE, ById, Calls, Then, gone, with_ref, with_version
from retl.destinations.http.objects import Object, Read
from retl.destinations.http.outcome import Sent, interpret
from retl.destinations.http.rules import Rules
from retl.destinations.http.steps import Batched, OneRequestEach, Steps, ended, raised
from retl.destinations.http.texts import split
from retl.destinations.value import Held
from retl.destinations.verdicts import Row as Asked
from retl.errors import Ambiguous, DefinitionError, Poisoned, Unavailable
from retl.net.client import Address
from retl.net.lookup import text
from retl.net.messages import Reply, Request

_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


class RowByRow:
    """The objects of rows. `begin` says which rows they are of: with their documents and external ids."""

    def __init__(
        self,
        read: Read,
        value: Object,
        keys: Sequence[str],
        address: Address,
        calls: Calls,
        sending: OneRequestEach | Batched,
        known: Callable[[], list[str]],
        rules: Rules,
        by_id: ById | None,
    ) -> None:
        read = read.model_copy(update={"path": _with_names(read.path, [*keys, *value.ours])})
        named = read.named(keys)
        if lacks := [name for name in keys if name not in named]:
            raise DefinitionError("HTTP_KEY", f"`read` lacks {', '.join(lacks)} of the key")
        self._read, self._value, self._keys = read, value, keys
        self._calls, self._sending, self._known, self._by_id = calls, sending, known, by_id
        self._rules = (read.outcome or rules).of_looks.model_copy(update={"ok": (200, 204)})
        self._host = ("Host", address.authority)
        self._question = Template(read, keys, [], address.prefix)
        self._rows: Sequence[Row] = ()
        self._refs: list[str | None] = []
        self.doubtful = False  # the last creation got no answer
        self.then: Then | None = None

    def begin(self, rows: Sequence[Row], refs: Sequence[str | None]) -> None:
        self._rows, self._refs, self.doubtful = rows, list(refs), False

    def look(self, rows: Sequence[Asked]) -> list[Held | RowResult]:
        return list(self._sending.run([self._looked(row.number) for row in rows], ended))

    def send(self, rows: Sequence[Sending]) -> list[Told]:
        return list(self._sending.run([self._sent(one) for one in rows], lambda error: Told(ended(error))))

    def helds(self) -> Iterator[Held | RowResult]:
        """What the object of each row holds; what fails is raised."""
        return self._sending.run([self._held(n) for n in range(len(self._rows))], raised)

    def values(self) -> Iterator[dict[str, Any] | RowResult | None]:
        """Our fields of the object of each row, for people; what fails is raised."""
        return self._sending.run([self._valued(n) for n in range(len(self._rows))], raised)

    def _valued(self, number: int) -> Steps[dict[str, Any] | RowResult | None]:
        reply = yield from self._asked(number)
        try:
            return self._value.values(reply) if isinstance(reply, Reply) else reply
        except ValueError:
            return AMBIGUOUS

    def request(self, one: Sending | None, number: int) -> Request:
        """What is sent first: the row, or the question for its object."""
        if one is not None:
            return self._written(one)[2]
        if self._by_id is not None and self._refs[number] is None:
            return self._by_id.asked(self._rows[number][: len(self._keys)])
        return self._asking(number)

    def _looked(self, number: int) -> Steps[Held | RowResult]:
        try:
            return (yield from self._held(number))
        except Poisoned as error:
            return RowResult(Kind.REJECTED, error.code, error.message)

    def _held(self, number: int) -> Steps[Held | RowResult]:
        reply = yield from self._asked(number)
        try:
            return self._value.held(reply) if isinstance(reply, Reply) else reply
        except ValueError:
            return AMBIGUOUS

    def _asked(self, number: int) -> Steps[Reply | RowResult | None]:
        """The answer that has the object; None if there is none. A question writes nothing, so without an
        answer it is asked again."""
        for known in (True, False):
            if self._by_id is not None and not (known and self._refs[number] is not None):
                found = yield from self._by_id.found(self._rows[number][: len(self._keys)])
                if len(found) > 1:
                    return AMBIGUOUS
                self._refs[number] = found[0] if found else None
                if not found:
                    return None
            try:
                reply = yield self._asking(number), self._rules
            except Ambiguous as error:
                raise Unavailable(error.code, error.message) from error
            named = bool(split(self._read.path.partition("?")[0])[1::2])
            if not (reply.status in GONE and named and not reply.is_page):
                break
            if self._by_id is None or not known:
                return None
        texts = [*map(text, self._rows[number]), *self._known()]
        found_out = interpret(reply, self._rules, Sent(1, True, lambda to: [], lambda row: texts)).default
        if found_out.kind is not Kind.WRITTEN:
            raise Poisoned(found_out.code or "REFUSED", found_out.reason or "the object cannot be read")
        return reply

    def _asking(self, number: int) -> Request:
        row = self._rows[number][: len(self._keys)]
        if self._read.asks_ref:
            row = with_ref(row, self._refs[number], len(self._keys))
        return self._hosted(self._question.request([row]))

    def _sent(self, one: Sending) -> Steps[Told]:
        try:
            mode, template, request = self._written(one)
        except Poisoned as error:
            return Told(RowResult(Kind.REJECTED, error.code, error.message))
        rules = self._calls(mode)[1]
        texts = template.texts(request)
        sent = Sent(1, mode != "append", lambda to: [], lambda row: [*texts(row), *self._known()])
        try:
            reply = yield request, rules
            outcome = interpret(reply, rules, sent)
        except Ambiguous:
            self.doubtful |= one.creates
            raise
        result = (gone(outcome) if one.deletes else outcome).result(0)
        if one.deletes and self.then is not None and result.kind is Kind.WRITTEN:
            ref = self._refs[one.row.number]
            key = self._rows[one.row.number][: len(self._keys)]
            return Told(self.then((*key, *([] if ref is None else [ref]))))
        if result.kind is not Kind.WRITTEN:
            return Told(result)
        known = self._refs[one.row.number] if not one.creates else None
        try:
            held = self._value.held(reply, written=True)
        except ValueError:
            held = None
        return Told(replace(result, ref=result.ref or known), held)

    def _written(self, one: Sending) -> tuple[Mode, Template, Request]:
        """The request of a row, with the fields that are sent. Poisoned if it cannot be made."""
        mode: Mode = "delete" if one.deletes else "append" if one.creates else "update_only"
        template, width = self._calls(mode)[0], len(self._keys)
        row = self._rows[one.row.number]
        if not one.deletes and one.names != one.row.texts.keys():
            members = _MEMBERS.decode(row[width])
            kept = {name: member for name, member in members.items() if name in one.names}
            row = (*row[:width], exact.encode(kept).decode())
        if template.endpoint.asks_version:
            row = with_version(row, one.version, width)
        if template.endpoint.asks_ref:
            row = with_ref(row, self._refs[one.row.number], width)
        return mode, template, self._hosted(template.request([row]))

    def _hosted(self, request: Request) -> Request:
        return replace(request, headers=(self._host, *request.headers))


def _with_names(path: str, names: Sequence[str]) -> str:
    """A path with these names for `$names`, separated by commas."""
    before, word, after = path.partition("$names")
    return before + ",".join(quote(name, safe="") for name in names) + after if word else path


def unconditional(endpoint: Endpoint, any_version: str | None) -> Endpoint:
    """The endpoint without the conditions in it: `$version` is what stands for any version, or is left out,
    in a `$merge` with the whole object that has it. DefinitionError HTTP_VERSION if it is in the path and
    nothing stands for it."""

    def stays(part: Any) -> bool:
        return part != "$version" or any_version is not None

    def without(part: Any) -> Any:
        if isinstance(part, dict) and isinstance(merged := part.get("$merge"), list):
            kept = [
                one for one in merged if all(map(stays, one.values() if isinstance(one, dict) else [one]))
            ]
            return {"$merge": [without(one) for one in kept]}
        if isinstance(part, dict):
            return {name: without(value) for name, value in part.items() if stays(value)}
        if isinstance(part, list | tuple):
            return [without(value) for value in part if stays(value)]
        return (any_version or "").replace("$", "$$") if part == "$version" else part

    if not endpoint.asks_version:
        return endpoint
    made = endpoint.model_copy(update={"headers": without(endpoint.headers), "row": without(endpoint.row)})
    if made.asks_version:
        raise DefinitionError(
            "HTTP_VERSION",
            "`$version` stands in a path or inside a text, and this sync writes whatever version there is",
            hint="put it into a header, or into a member of `row` of its own",
        )
    return made
