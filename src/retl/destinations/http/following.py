"""A request that no row made: it follows a run, and may have the run's values.

The values are filled in as those of a row are, each escaped for its place. It waits for nothing, retries
nothing and records nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import msgspec

from retl.destinations.batch import RowResult
from retl.destinations.http import texts
from retl.destinations.http.cells import Cast, Cells, exact
from retl.destinations.http.outcome import Sent, interpret
from retl.destinations.http.rules import Rules
from retl.destinations.http.server import client, secrets_of
from retl.errors import DefinitionError
from retl.net.auth import WholeUrl
from retl.net.client import Address
from retl.net.connection import HttpConnection
from retl.net.gate import Gate
from retl.net.messages import Request
from retl.project.then import RUN_VALUES, FollowUp

_RULES = Rules(ok=tuple(range(200, 300)), rows="none")
_FIELDS = tuple(f"run.{name}" for name in RUN_VALUES)
_WORD = re.compile(r"(?<!\$)(?:\$\$)*\$run\b")
_HINT = f"the values of a run are {', '.join(f'$run.{name}' for name in RUN_VALUES)}; `$$` is a dollar sign"


def connection_of(model: Any) -> HttpConnection | None:
    """The HTTP connection of a connection's model, also of a preset's; None if it has none."""
    found = getattr(model, "http", model)
    return found if isinstance(found, HttpConnection) else None


def require(asked: FollowUp, http: HttpConnection) -> None:
    """DefinitionError THEN_PLACEHOLDER for a placeholder that is no value of a run, or stands where it cannot
    be safe; THEN_PATH for a path beside an address that is a secret as a whole."""
    if isinstance(http.auth, WholeUrl) and "path" in asked.model_fields_set:
        what = f"the connection {asked.connection!r} is one whole address: leave out `path`"
        raise DefinitionError("THEN_PATH", what)
    try:
        words = [*texts.address(asked.path)[1::2]]
        for value in asked.headers.values():
            words += texts.of_header(value)[1::2]
    except ValueError as error:
        raise DefinitionError("THEN_PLACEHOLDER", str(error), hint=_HINT) from None
    words += _inside(asked.body)
    for word in map(str, words):
        if word.removeprefix("$").removeprefix("field.") not in _FIELDS:
            raise DefinitionError("THEN_PLACEHOLDER", f"{word!r} is no value of a run", hint=_HINT)
    for text in (asked.path, *asked.headers.values(), *_texts(asked.body)):
        _refuse_unfilled(text)
    _made(asked)


def request(asked: FollowUp, http: HttpConnection, facts: Mapping[str, Any]) -> Request:
    """The request with the values of a run. Poisoned if one does not fit its place."""
    members = {name: msgspec.Raw(exact.encode(facts.get(name[4:]))) for name in _FIELDS}
    row = (exact.encode(members).decode(),)
    path, headers, body = _made(asked)
    given = tuple((name, cell(row, 0, members)) for name, cell in headers)
    content = b"" if body is None else exact.encode(body(row, 0, members))
    if body is not None and "content-type" not in {name.lower() for name in asked.headers}:
        given = (("Content-Type", "application/json"), *given)
    return Request(asked.method, Address.parse(http.base_url).prefix + path(row, 0, members), given, content)


def send(
    http: HttpConnection,
    asked: Request,
    gate: Gate,
    before: Callable[[], None],
    answered: Callable[[int], None],
    secrets: Sequence[str] = (),
) -> RowResult:
    """Send it once, and what the answer means: WRITTEN, or REJECTED with code and reason. `before` is called
    when a connection is open, just before the first byte; `answered` with the status of the answer.

    Unavailable if nothing was done; Ambiguous if that is not known; Systemic, before `answered`, if server
    or credential cannot be used, and after it if the server refuses the request."""
    with closing(client(http, gate)) as connected:
        reply = connected.send(asked, before=before)
        answered(reply.status)
        known = [*secrets_of(http), *secrets]
        return interpret(reply, _RULES, Sent(1, False, lambda to: [], lambda row: known)).result(0)


def _made(asked: FollowUp) -> tuple[Any, list[tuple[str, Any]], Any]:
    """The functions that make path, headers and body."""
    cells = Cells((), _FIELDS, Cast())
    headers = [(name, cells.header(value)) for name, value in asked.headers.items()]
    return cells.path(asked.path), headers, None if asked.body is None else cells.make(asked.body)


def _inside(body: Any) -> Iterator[str]:
    """The placeholders in a body."""
    for text in _texts(body):
        if text.startswith("$") and not text.startswith("$$"):
            yield text
        yield from map(str, texts.inside(text)[1::2])


def _texts(body: Any, member: str | None = None) -> Iterator[str]:
    """The texts of a body in which values are filled in."""
    if isinstance(body, dict):
        for name, part in body.items():
            yield from _texts(part, str(name))
    elif isinstance(body, list | tuple):
        for part in body:
            yield from _texts(part)
    elif isinstance(body, str) and not texts.is_document(member, body):
        yield body


def _refuse_unfilled(text: str) -> None:
    """A value of a run inside a text, but without braces."""
    rest = re.sub(r"\{\$[^{}]*\}", "", text)
    if not re.fullmatch(r"\$run\.\w+", text) and _WORD.search(rest):
        raise DefinitionError(
            "THEN_PLACEHOLDER",
            "a value of a run inside a text or path needs braces",
            hint="write {$run.id}; a dollar sign is $$",
        )
