"""Makes requests from rows: the path with its placeholders, the rows in the body, the bytes sent.

A row's values cannot change host, path or headers: each is escaped for its own place (`escape`). `cells`
makes the row itself.
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

from retl.destinations.http import csvbody, escape, formdata, texts
from retl.destinations.http.cells import Cast, Cells, Members, Row, exact
from retl.destinations.http.jobs import JOB, PLACE, Job
from retl.destinations.http.rules import Rules
from retl.destinations.http.texts import OF_ALL_ROWS, Word, split
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
_TABLES = ("csv", "multipart")  # a row is a line under a header
_BARE = ("DELETE", "GET")  # without a body, if none is asked for
_OF_THE_CLIENT = ("host", "content-length", "transfer-encoding", "connection")
_PIECES = re.compile(r"[/?&=(),']")
_REPEATED = re.compile(r"[^?&=]+%5B%5D=$")

Part = Callable[[Sequence[Row], Members, bytes], str]

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_exactly = msgspec.json.Decoder(float_hook=str)
_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
BREAK = "\x1e"  # between the lines of a row that SQL makes: JSON never has it


class Endpoint(Definition):
    """The requests of one operation.

    `wrap` is the dotted path of the list of rows inside the body ("" = the body is that list; a number is an
    item of a list in `envelope`); without it the row is the body and there is one row per request. `envelope`
    is the rest of the body. In the query `$keys` are the keys of all rows and `$refs` their external ids,
    separated by commas; if the parameter's name ends in %5B%5D, which is [], each is a parameter of its own.
    `$body` moves the body into the query. `encoding: csv` sends a header line with the names of the row's
    members. With `encoding: ndjson` a row is a line; with `lines: true` its `row` is a list, and each item is
    a line. `encoding: multipart` sends a form with a file: the rows as CSV in the part that `wrap` names, and
    a part before it for each member of `envelope`. `then` is the path of one more DELETE, after a delete of
    one row that succeeded.
    """

    method: Literal["POST", "PUT", "PATCH", "DELETE"] = "POST"
    path: str
    wrap: str | None = None
    envelope: dict[str, Any] = Field(default={})
    row: Any = None
    cast: Cast = Cast()
    encoding: Literal["json", "ndjson", "form", "csv", "multipart"] = "json"
    lines: bool = False
    headers: dict[HeaderName, str] = Field(default={})
    then: str | None = None
    max_rows: Annotated[int, Field(ge=1)] | None = None
    max_bytes: Annotated[int, Field(ge=1)] | None = None
    max_row_bytes: Annotated[int, Field(ge=1)] | None = None
    outcome: Rules | None = None  # replaces the destination's
    job: Job | None = None  # if the answer names a job instead of results

    @property
    def opens(self) -> bool:
        """Whether a job is made before it gets the rows: then `$job` in the path is its id."""
        return self.job is not None and self.job.open is not None

    @property
    def second(self) -> Endpoint | None:
        """The request after a delete."""
        return Endpoint(method="DELETE", path=self.then, outcome=self.outcome) if self.then else None

    @property
    def words(self) -> list[str]:
        """The placeholders of the path, as `$` words."""
        return split(self.path)[1::2]

    @property
    def named_in_headers(self) -> list[str]:
        """The placeholders of the headers, as `$` words."""
        pieces = (piece for value in self.headers.values() for piece in texts.of_header(value))
        return [piece.name for piece in pieces if isinstance(piece, Word)]

    @property
    def rows_at_most(self) -> int | None:
        in_path = bool({"$keys", "$refs"} & set(self.words))
        listed = self.wrap is not None or self.encoding in _LINES or in_path
        shared = {*OF_ALL_ROWS, JOB} if self.opens else set(OF_ALL_ROWS)
        single = set(self.words) - shared or self.named_in_headers or not listed
        return 1 if single else self.max_rows

    @property
    def asks_ref(self) -> bool:
        """Whether it names objects by their external ids."""
        return bool({"$ref", "$refs"} & self._all_words)

    @property
    def asks_version(self) -> bool:
        """Whether it names the version that an object must still have."""
        return "$version" in self._all_words

    @property
    def _all_words(self) -> set[str]:
        inner = [word for text in _leaves(self.row) for word in split(text)[1::2]]
        return {*self.words, *self.named_in_headers, *inner}

    def named(self, keys: Sequence[str]) -> set[str]:
        """The fields of this key that a request names, itself or by the external id."""
        bare = self.row is None and self.wrap is None and self.method in _BARE
        row = "$row" if self.row is None and not bare else self.row
        return named([self.path, row, list(self.headers.values())], keys)

    def names_rows_at(self, path: str, keys: Sequence[str]) -> bool:
        """Whether a row has its whole key at this path, and nothing else that would change it."""
        if self.row in (None, "$row"):
            return [path] == list(keys)
        return named(look(self.row, path), keys) == set(keys)

    @model_validator(mode="after")
    def _fits(self) -> Endpoint:
        plain = "".join("x" if n % 2 else part for n, part in enumerate(split(self.path)))
        texts.address(self.path)
        if not _PATH.fullmatch(plain) or {".", ".."} & set(plain.partition("?")[0].split("/")):
            raise ValueError(
                "a path begins with one /, is percent-encoded and has no dot segments, host or #"
            )
        if self.opens and JOB not in self.words:
            raise ValueError("`job.open` needs $job in the path of the rows: which job they belong to")
        if "" in split(self.path)[2:-1:2]:
            raise ValueError("two values of a path need something between them")
        if (self.max_rows or 1) > 1 and self.rows_at_most == 1:
            raise ValueError("several rows per request need `wrap` and a path without values of a row")
        if self.envelope and not self.wrap:
            raise ValueError("an `envelope` needs `wrap`: the path of the rows in it")
        if self.then is not None and (self.method != "DELETE" or self.rows_at_most != 1 or self.job):
            raise ValueError("`then` follows a DELETE of one row, without `job`")
        if self.encoding not in ("json", "multipart") and self.wrap is not None:
            raise ValueError(f"`wrap` needs `encoding: json` or multipart, not {self.encoding}")
        if self.lines and not (self.encoding == "ndjson" and isinstance(self.row, list) and self.row):
            raise ValueError("`lines` needs `encoding: ndjson` and a `row` that is a list of its lines")
        if self.encoding in _TABLES and not (
            isinstance(self.row, dict) or self.row in (None, "$row", "$fields")
        ):
            raise ValueError(
                f"`encoding: {self.encoding}` needs a `row` that is an object: its members are the columns"
            )
        if self.encoding == "multipart":
            self._refuse_no_form()
        for name in self.headers:
            if name.lower() in _OF_THE_CLIENT:
                raise ValueError(f"the header {name} is made by retl itself")
        if set(self.named_in_headers) & {*OF_ALL_ROWS, "$row", "$fields"}:
            raise ValueError("a header takes values of one row, such as $key or {$name}")
        _around(self.wrap, self.envelope)
        return self

    def _refuse_no_form(self) -> None:
        """ValueError if the parts cannot be those of a form."""
        if not self.wrap or "." in self.wrap:
            raise ValueError("`encoding: multipart` needs `wrap`: the name of the part with the rows")
        if any(isinstance(value, dict | list) or value is None for value in self.envelope.values()):
            raise ValueError("with `encoding: multipart` a member of `envelope` is a part: one value")
        if "content-type" in {name.lower() for name in self.headers}:
            raise ValueError("the header Content-Type has the boundary of the parts, which retl makes")


class Template:
    """Makes an endpoint's requests for rows with these key and other fields.

    DefinitionError HTTP_PLACEHOLDER if it names a field that the rows lack.
    """

    def __init__(
        self, endpoint: Endpoint, keys: Sequence[str], fields: Sequence[str], prefix: str = ""
    ) -> None:
        self.endpoint, self.keys = endpoint, tuple(keys)
        used = {*_used([endpoint.path, list(endpoint.headers.values()), endpoint.row])}
        others = [name for name in fields if name not in used]
        cells = Cells(
            keys, fields, endpoint.cast, refs=endpoint.asks_ref, versions=endpoint.asks_version, others=others
        )
        self._head = cells.head
        self._path = _path(prefix + endpoint.path, cells, opens=endpoint.opens)
        self._in_query = "$body" in endpoint.words
        bare = endpoint.row is None and endpoint.wrap is None and endpoint.method in _BARE
        shape = "$row" if endpoint.row is None else endpoint.row
        self._row = None if bare else cells.make(shape)
        self._named = [(name, cells.header(value)) for name, value in endpoint.headers.items()]
        self._members_asked = cells.members
        self._filled = {name for name, value in endpoint.headers.items() if len(texts.of_header(value)) > 1}
        self._constants = set(_leaves([shape, endpoint.envelope]))
        self._has_forms = any(form in repr(shape) for form in ("$base64", "$json"))
        self._literals = set(_PIECES.split("/".join(split(prefix + endpoint.path)[::2])))
        envelope = cells.constants(endpoint.envelope)
        self._before, self._after = _around(endpoint.wrap, envelope)
        in_parts = endpoint.encoding == "multipart"  # and the header has their boundary
        self._parts = {name: text(value) for name, value in envelope.items()} if in_parts else {}
        content = (("Content-Type", _CONTENT[endpoint.encoding]),) if self._row and not in_parts else ()
        given = {name.lower() for name in endpoint.headers}
        self._headers = content if "content-type" not in given else ()

    def refuses_member(self, name: str) -> bool:
        """Whether a body certainly has no place for one more member of this name in its objects."""
        shape = "$row" if self.endpoint.row is None else self.endpoint.row
        if self._row is None or self._in_query or self.endpoint.encoding in _TABLES:
            return True
        if self.endpoint.wrap:
            return name in self.endpoint.envelope or name == self.endpoint.wrap.partition(".")[0]
        if isinstance(shape, dict):
            return name in shape or bool(set(shape) & {"$json", "$base64", "$path", "$each"})
        return shape not in ("$row", "$fields") and not (
            isinstance(shape, str) and self._may_be_object(shape)
        )

    def _may_be_object(self, word: str) -> bool:
        """Whether a `$` word is a field beside the key, which may be json."""
        name = word[1:].removeprefix("field.")
        return word.startswith("$") and name not in ("key", "ref", "version", "row_no", *self.keys)

    @property
    def constant_headers(self) -> tuple[tuple[str, str], ...]:
        """The headers without values of a row."""
        return tuple((name, value((), 0, {})) for name, value in self._named if name not in self._filled)

    def request(self, rows: Sequence[Row]) -> Request:
        """One request for these rows. Poisoned, before anything is sent, if they are too many or too large
        for one request, or if a value does not fit its place."""
        self._refuse_more(len(rows))
        try:
            members = [self._members(row) for row in rows]
            body = self._body(rows, members) if self._row else b""
            target = "".join(part(rows, members[0], body) for part in self._path)
            headers = self._headed(rows, members[0])
        except UnicodeEncodeError:
            raise _not_unicode() from None
        if self.endpoint.encoding == "multipart":
            headers = (*headers, ("Content-Type", formdata.content_type(body)))
        if self._in_query:
            body = b""
        return self._whole(target, body, headers)

    def of_lines(self, lines: Sequence[str]) -> Request:
        """One request for rows that SQL has made by the `line` of this endpoint. Poisoned as in `request`."""
        self._refuse_more(len(lines))
        target = "".join(part([], {}, b"") for part in self._path)  # it has no values of rows
        headers = self._headed([()], {})
        try:
            if self.endpoint.max_row_bytes is not None:
                self._refuse_longer(max(len(line.encode()) for line in lines))
            if self.endpoint.encoding == "ndjson":
                whole = "".join(f"{escape.line(line)}\n" for line in lines).replace(BREAK, "\n")
                return self._whole(target, whole.encode(), headers)
            rows = ",".join(lines).encode()
        except UnicodeEncodeError:
            raise _not_unicode() from None
        wrapped = self.endpoint.wrap is not None
        body = self._before + b"[" + rows + b"]" + self._after if wrapped else rows
        return self._whole(target, body, headers)

    def _headed(self, rows: Sequence[Row], members: Members) -> tuple[tuple[str, str], ...]:
        """The headers; if they have values of a row, there is only one."""
        return (*((name, value(rows[0], 0, members)) for name, value in self._named), *self._headers)

    def _refuse_more(self, rows: int) -> None:
        limit = self.endpoint.rows_at_most
        if limit is not None and rows > limit:
            raise Poisoned("TOO_MANY_ROWS", f"{rows} rows, but a request takes {limit}")

    def _refuse_longer(self, longest: int) -> None:
        if (most := self.endpoint.max_row_bytes) is not None and longest > most:
            raise Poisoned("TOO_LARGE", f"a row has more than the {most} bytes that the target takes")

    def _whole(self, target: str, body: bytes, headers: tuple[tuple[str, str], ...]) -> Request:
        if self.endpoint.max_bytes is not None and len(body) > self.endpoint.max_bytes:
            raise Poisoned("TOO_LARGE", f"{len(body)} bytes, but a request takes {self.endpoint.max_bytes}")
        return Request(self.endpoint.method, target, headers, body)

    def texts(self, request: Request) -> Callable[[int | None], set[str]]:
        """The texts sent for a row of this request (None: for all), without constants."""
        pieces = set(_PIECES.split(request.target)) - self._literals
        named = {unquote(piece) for piece in pieces}
        path = named | {piece.replace("''", "'") for piece in named}
        path |= {value for name, value in request.headers if name in self._filled}

        @cache
        def sent() -> Any:
            if self.endpoint.encoding == "form":
                return [value for _, value in parse_qsl(request.body.decode())]
            if self.endpoint.encoding == "csv":
                return csvbody.read(request.body)
            if self.endpoint.encoding == "multipart":
                return csvbody.read(formdata.read(request.body))
            if self.endpoint.encoding == "ndjson":
                found = [_exactly.decode(line) for line in request.body.splitlines()]
                width = len(self.endpoint.row) if self.endpoint.lines else 1
                return [found[n : n + width] for n in range(0, len(found), width)]
            return look(_exactly.decode(request.body), self.endpoint.wrap or "") if request.body else None

        def texts(row: int | None) -> set[str]:
            one = row is not None and self.endpoint.rows_at_most != 1
            found = set(_leaves(sent()[row] if one else sent())) - self._constants
            return path | found | {inner for leaf in found for inner in self._hidden(leaf)}

        return texts

    def _hidden(self, leaf: str) -> set[str]:
        """The texts inside a text that is JSON, or base64 of it."""
        if not self._has_forms:
            return set()
        try:
            whole = leaf.encode() if leaf.startswith(("{", "[")) else b64decode(leaf, validate=True)
            return set(_leaves(_exactly.decode(whole)))
        except ValueError:
            return set()

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
            case "multipart":
                assert self.endpoint.wrap is not None
                file = csvbody.write([exact.encode(one) for one in made])
                return formdata.write(self._parts, self.endpoint.wrap, file, _CONTENT["csv"])
            case "ndjson":
                if self.endpoint.lines:
                    made = [line for lines in made for line in _items(exact.encode(lines))]
                return "".join(f"{escape.line(exact.encode(one).decode())}\n" for one in made).encode()
            case "form":
                return urlencode(list(_flat(_exactly.decode(exact.encode(made[0])), ""))).encode()
        whole = exact.encode(made)
        return whole[1:-1] if self.endpoint.wrap is None else self._before + whole + self._after


def named(part: Any, keys: Sequence[str]) -> set[str]:
    """The fields of this key that a part of a request names, itself or by the external id."""
    words = {word for text in _leaves(part) for word in split(text)[1::2]}
    if words & {"$row", "$ref", "$refs", *texts.PREDICATES} or (len(keys) == 1 and words & {"$key", "$keys"}):
        return set(keys)
    return {word[1:].removeprefix("field.") for word in words} & set(keys)


def _used(part: Any) -> Iterator[str]:
    """The names in a part of a request that may be those of fields."""
    if isinstance(part, dict):
        only = part.get("$only")
        yield from map(str, only if isinstance(only, list) else ())
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _used(inner)
    if isinstance(part, str):
        yield from (word[1:].removeprefix("field.") for word in split(part)[1::2])


def _not_unicode() -> Poisoned:
    return Poisoned("NOT_UNICODE", "a text holds half a surrogate pair, which UTF-8 cannot encode")


def _path(path: str, cells: Cells, *, opens: bool = False) -> list[Part]:
    """The parts of a path: functions of the rows, the first row's members, and the body. `opens`: `$job` is
    left open, for the id of a job."""
    parts: list[Part] = []
    pieces = texts.address(path)
    for constant, word in zip(pieces[::2], [*pieces[1::2], None], strict=True):
        assert isinstance(constant, str)
        name = word.name if isinstance(word, Word) else None
        repeated = _REPEATED.search(constant) if name in ("$keys", "$refs") else None
        parameter = repeated[0] if repeated else ""
        parts.append(_constant(constant.removesuffix(parameter)))
        if name == "$body":
            parts.append(lambda rows, members, body: quote(body, safe=""))
        elif name == JOB and opens:
            parts.append(_constant(PLACE))
        elif name in OF_ALL_ROWS:
            parts.append(_listed(parameter, 0 if name == "$keys" else len(cells.keys)))
        elif word is not None:
            parts.append(_first(cells.part(word)))
    return parts


def _constant(text: str) -> Part:
    return lambda rows, members, body: text


def _first(segment: Callable[[Row, int, Members], str]) -> Part:
    return lambda rows, members, body: segment(rows[0], 0, members)


def _listed(name: str, index: int) -> Part:
    """A value of all rows: separated by commas, or with a name one parameter for each. Poisoned if it is
    empty, or if a comma in it would make it two values."""

    def values(rows: Sequence[Row], members: Members, body: bytes) -> str:
        found = [text(row[index]) for row in rows]
        if not all(found):
            raise Poisoned("NO_PATH", "a value of the path is empty")
        if not name and any("," in one for one in found):
            raise Poisoned("KEY_CHARACTER", "a value has a comma, and commas separate the values in the path")
        return ("&" if name else ",").join(name + quote(one, safe="") for one in found)

    return values


def _around(wrap: str | None, envelope: dict[str, Any]) -> tuple[bytes, bytes]:
    """The body before and after its list of rows. ValueError if `wrap` cannot be reached."""
    if not wrap:
        return b"", b""
    *way, last = wrap.split(".")
    body = deepcopy(envelope)
    at: Any = body
    for step in way:
        listed = isinstance(at, list) and step.isdecimal() and int(step) < len(at)
        at = at[int(step)] if listed else at.setdefault(step, {}) if isinstance(at, dict) else None
    if not isinstance(at, dict):
        raise ValueError(f"`wrap` leads through {wrap!r}, which `envelope` has no object for")
    if last in at:
        raise ValueError(f"`envelope` already has something at {wrap!r}")
    at[last] = msgspec.Raw(b"\0")  # a byte that JSON never contains
    before, after = exact.encode(body).split(b"\0")
    return before, after


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Nested values as form fields: a[b]=1, c[0]=2; null is empty."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(part, f"{name}[{escape.member(key)}]" if name else key)
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
