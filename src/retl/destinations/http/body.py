"""Makes requests from rows: the path with its placeholders, the rows in the body, the bytes sent.

A row's values cannot change host or path: each is percent-encoded inside its own segment. `cells` makes
the row itself.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import cache
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode

import msgspec
from pydantic import Field, model_validator

from retl.destinations.http import csvbody
from retl.destinations.http.cells import OF_ALL_ROWS, Cast, Cells, Members, Row, exact, split
from retl.destinations.http.rules import Rules
from retl.errors import Poisoned
from retl.model import Definition
from retl.net.auth import HeaderName
from retl.net.lookup import look, text
from retl.net.messages import Request

_PATH = re.compile(r"(?:/(?!/)[A-Za-z0-9._~!$&'()*+,;=:@%-]*)+(?:\?[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?")
_CONTENT = {
    "json": "application/json",
    "ndjson": "application/x-ndjson",
    "form": "application/x-www-form-urlencoded",
    "csv": "text/csv; charset=utf-8",
}
_LINES = ("ndjson", "csv")  # a row is a line
_PIECES = re.compile(r"[/?&=]")
_REPEATED = re.compile(r"[^?&=]+%5B%5D=$")

Part = Callable[[Sequence[Row], Members, bytes], str]

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_exactly = msgspec.json.Decoder(float_hook=str)


class Endpoint(Definition):
    """The requests of one operation.

    `wrap` is the dotted path of the list of rows inside the body ("" = the body is that list); without
    it the row is the body and there is one row per request. `envelope` is the rest of the body. In the
    query `$keys` are the keys of all rows and `$refs` their external ids, separated by commas; if the
    parameter's name ends in %5B%5D, which is [], each is a parameter of its own. `$body` moves the body
    into the query. `encoding: csv` sends a header line with the names of the row's members.
    """

    method: Literal["POST", "PUT", "PATCH", "DELETE"] = "POST"
    path: str
    wrap: str | None = None
    envelope: dict[str, Any] = Field(default={})
    row: Any = None
    cast: Cast = Cast()
    encoding: Literal["json", "ndjson", "form", "csv"] = "json"
    headers: dict[HeaderName, str] = Field(default={})
    max_rows: Annotated[int, Field(ge=1)] | None = None
    max_bytes: Annotated[int, Field(ge=1)] | None = None
    max_row_bytes: Annotated[int, Field(ge=1)] | None = None
    outcome: Rules | None = None  # replaces the destination's

    @property
    def words(self) -> list[str]:
        """The placeholders of the path, as `$` words."""
        return split(self.path)[1::2]

    @property
    def rows_at_most(self) -> int | None:
        in_path = bool({"$keys", "$refs"} & set(self.words))
        listed = self.wrap is not None or self.encoding in _LINES or in_path
        single = set(self.words) - set(OF_ALL_ROWS) or not listed
        return 1 if single else self.max_rows

    @property
    def asks_ref(self) -> bool:
        """Whether it names objects by their external ids."""
        inner = [word for text in _leaves(self.row) if text.startswith("/") for word in split(text)]
        return bool({"$ref", "$refs"} & {*self.words, *_leaves(self.row), *inner})

    @model_validator(mode="after")
    def _fits(self) -> Endpoint:
        plain = "".join("x" if n % 2 else part for n, part in enumerate(split(self.path)))
        if mistaken := [word for word in self.words if word.startswith("$field.$")]:
            word = mistaken[0].removeprefix("$field.")
            raise ValueError(f"write {word} without braces in a path: {{…}} is for names of fields")
        if not _PATH.fullmatch(plain) or {".", ".."} & set(plain.partition("?")[0].split("/")):
            raise ValueError(
                "a path begins with one /, is percent-encoded and has no dot segments, host or #"
            )
        if (self.max_rows or 1) > 1 and self.rows_at_most == 1:
            raise ValueError("several rows per request need `wrap` and a path without values of a row")
        if self.envelope and not self.wrap:
            raise ValueError("an `envelope` needs `wrap`: the path of the rows in it")
        if self.encoding != "json" and self.wrap is not None:
            raise ValueError(f"`wrap` needs `encoding: json`, not {self.encoding}")
        if self.encoding == "csv" and not (
            isinstance(self.row, dict) or self.row in (None, "$row", "$fields")
        ):
            raise ValueError("`encoding: csv` needs a `row` that is an object: its members are the columns")
        if any(not text.isascii() or not text.isprintable() for text in self.headers.values()):
            raise ValueError("a header's value is printable ASCII on one line")
        _around(self)
        return self


class Template:
    """Makes an endpoint's requests for rows with these key and other fields.

    DefinitionError HTTP_PLACEHOLDER if it names a field that the rows lack.
    """

    def __init__(
        self, endpoint: Endpoint, keys: Sequence[str], fields: Sequence[str], prefix: str = ""
    ) -> None:
        self.endpoint, self.keys = endpoint, tuple(keys)
        cells = Cells(keys, fields, endpoint.cast, refs=endpoint.asks_ref)
        self._head = cells.head
        self._path = _path(prefix + endpoint.path, cells)
        self._in_query = "$body" in endpoint.words
        bare = endpoint.row is None and endpoint.wrap is None and endpoint.method == "DELETE"
        shape = "$row" if endpoint.row is None else endpoint.row
        self._row = None if bare else cells.make(shape)
        self._members_asked = cells.members
        self._constants = set(_leaves([shape, endpoint.envelope]))
        self._has_base64 = "$base64" in repr(shape)
        self._literals = set(_PIECES.split("/".join(split(prefix + endpoint.path)[::2])))
        self._before, self._after = _around(endpoint)
        content = (("Content-Type", _CONTENT[endpoint.encoding]),) if self._row else ()
        given = {name.lower() for name in endpoint.headers}
        self._headers = tuple(endpoint.headers.items()) + (content if "content-type" not in given else ())

    def request(self, rows: Sequence[Row]) -> Request:
        """One request for these rows. Poisoned, before anything is sent, if they are too many or too large
        for one request, or if a value does not fit its place."""
        self._refuse_more(len(rows))
        try:
            members = [self._members(row) for row in rows]
            body = self._body(rows, members) if self._row else b""
            target = "".join(part(rows, members[0], body) for part in self._path)
        except UnicodeEncodeError:
            raise _not_unicode() from None
        if self._in_query:
            body = b""
        return self._whole(target, body)

    def of_lines(self, lines: Sequence[str]) -> Request:
        """One request for rows that SQL has made by the `line` of this endpoint. Poisoned as in `request`."""
        self._refuse_more(len(lines))
        target = "".join(part([], {}, b"") for part in self._path)  # it has no values of rows
        try:
            if self.endpoint.max_row_bytes is not None:
                self._refuse_longer(max(len(line.encode()) for line in lines))
            if self.endpoint.encoding == "ndjson":
                return self._whole(target, "".join(f"{line}\n" for line in lines).encode())
            rows = ",".join(lines).encode()
        except UnicodeEncodeError:
            raise _not_unicode() from None
        wrapped = self.endpoint.wrap is not None
        return self._whole(target, self._before + b"[" + rows + b"]" + self._after if wrapped else rows)

    def _refuse_more(self, rows: int) -> None:
        limit = self.endpoint.rows_at_most
        if limit is not None and rows > limit:
            raise Poisoned("TOO_MANY_ROWS", f"{rows} rows, but a request takes {limit}")

    def _refuse_longer(self, longest: int) -> None:
        if (most := self.endpoint.max_row_bytes) is not None and longest > most:
            raise Poisoned("TOO_LARGE", f"a row has more than the {most} bytes that the target takes")

    def _whole(self, target: str, body: bytes) -> Request:
        if self.endpoint.max_bytes is not None and len(body) > self.endpoint.max_bytes:
            raise Poisoned("TOO_LARGE", f"{len(body)} bytes, but a request takes {self.endpoint.max_bytes}")
        return Request(self.endpoint.method, target, self._headers, body)

    def texts(self, request: Request) -> Callable[[int | None], set[str]]:
        """The texts sent for a row of this request (None: for all), without constants."""
        pieces = set(_PIECES.split(request.target)) - self._literals
        path = {unquote(piece) for piece in pieces}

        @cache
        def sent() -> Any:
            if self.endpoint.encoding == "form":
                return [value for _, value in parse_qsl(request.body.decode())]
            if self.endpoint.encoding == "csv":
                return csvbody.read(request.body)
            if self.endpoint.encoding == "ndjson":
                return [_exactly.decode(line) for line in request.body.splitlines()]
            return look(_exactly.decode(request.body), self.endpoint.wrap or "") if request.body else None

        def texts(row: int | None) -> set[str]:
            one = row is not None and self.endpoint.rows_at_most != 1
            found = set(_leaves(sent()[row] if one else sent())) - self._constants
            return path | found | {inner for leaf in found for inner in self._hidden(leaf)}

        return texts

    def _hidden(self, leaf: str) -> set[str]:
        """The texts inside a base64 text of a row."""
        if not self._has_base64 or not leaf.startswith("ey"):  # {" in base64
            return set()
        return set(_leaves(_exactly.decode(b64decode(leaf))))

    def _members(self, row: Row) -> Members:
        return _members.decode(row[-1]) if self._members_asked and len(row) > self._head else {}

    def _body(self, rows: Sequence[Row], members: Sequence[Members]) -> bytes:
        assert self._row is not None
        cell = self._row
        made = [cell(row, n, members[n]) for n, row in enumerate(rows)]
        if self.endpoint.max_row_bytes is not None:
            made = [msgspec.Raw(exact.encode(one)) for one in made]
            self._refuse_longer(max(len(bytes(one)) for one in made))
        match self.endpoint.encoding:
            case "csv":
                return csvbody.write([exact.encode(one) for one in made])
            case "ndjson":
                return b"".join(exact.encode(one) + b"\n" for one in made)
            case "form":
                return urlencode(list(_flat(_exactly.decode(exact.encode(made[0])), ""))).encode()
        whole = exact.encode(made)
        return whole[1:-1] if self.endpoint.wrap is None else self._before + whole + self._after


def _not_unicode() -> Poisoned:
    return Poisoned("NOT_UNICODE", "a text holds half a surrogate pair, which UTF-8 cannot encode")


def _path(path: str, cells: Cells) -> list[Part]:
    """The parts of a path: functions of the rows, the first row's members, and the body."""
    parts: list[Part] = []
    constants, words = split(path)[::2], split(path)[1::2]
    for constant, word in zip(constants, [*words, None], strict=True):
        repeated = _REPEATED.search(constant) if word in ("$keys", "$refs") else None
        name = repeated[0] if repeated else ""
        parts.append(_constant(constant.removesuffix(name)))
        if word == "$body":
            parts.append(lambda rows, members, body: quote(body, safe=""))
        elif word in OF_ALL_ROWS:
            parts.append(_listed(name, 0 if word == "$keys" else len(cells.keys)))
        elif word is not None:
            parts.append(_first(cells.segment(word)))
    return parts


def _constant(text: str) -> Part:
    return lambda rows, members, body: text


def _first(segment: Callable[[Row, int, Members], str]) -> Part:
    return lambda rows, members, body: segment(rows[0], 0, members)


def _listed(name: str, index: int) -> Part:
    """A value of all rows: separated by commas, or with a name one parameter for each."""

    def values(rows: Sequence[Row], members: Members, body: bytes) -> str:
        return ("&" if name else ",").join(name + quote(text(row[index]), safe="") for row in rows)

    return values


def _around(endpoint: Endpoint) -> tuple[bytes, bytes]:
    """The body before and after its list of rows. ValueError if `wrap` cannot be reached."""
    if not endpoint.wrap:
        return b"", b""
    *way, last = endpoint.wrap.split(".")
    body = at = deepcopy(endpoint.envelope)
    for step in way:
        at = at.setdefault(step, {})
        if not isinstance(at, dict):
            raise ValueError(f"`wrap` contains {step!r}, which is not an object in `envelope`")
    if last in at:
        raise ValueError(f"`envelope` already has something at {endpoint.wrap!r}")
    at[last] = msgspec.Raw(b"\0")  # a byte that JSON never contains
    before, after = exact.encode(body).split(b"\0")
    return before, after


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Nested values as form fields: a[b]=1, c[0]=2; null is empty."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(part, f"{name}[{key}]" if name else key)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _flat(part, f"{name}[{index}]")
    else:
        yield name, "" if value is None else text(value)


def _leaves(value: Any) -> Iterator[str]:
    """Every scalar inside, as text; without names, true, false and null."""
    if isinstance(value, dict):
        for part in value.values():
            yield from _leaves(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    elif value is not None and not isinstance(value, bool):
        yield text(value)
