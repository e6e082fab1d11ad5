"""The pages of an API: which request comes next, and when the last page was read. No I/O.

A page that is read twice, an address of another server, and an answer without a list are errors: an API that
ignores a parameter must not look like a long, a short or an empty mart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, quote, urlencode, urljoin, urlsplit

import msgspec
from msgspec import Raw, Struct, field
from pydantic import Field, model_validator

from retl.errors import SourceError
from retl.model import Definition
from retl.net.client import Address
from retl.net.messages import Reply

Parameters = list[tuple[str, str]]
Path = Annotated[str, Field(pattern=r"^[^\s]+$")]
_KINDS = ("number", "offset", "cursor", "next", "link")
_LINK = re.compile(r"<([^>]*)>((?:\s*;\s*[^;,\"=\s]+\s*=\s*(?:\"[^\"]*\"|[^;,\"\s]*))*)")
_REL = re.compile(r";\s*rel\s*=\s*(?:\"([^\"]*)\"|([^;,\"\s]*))", re.IGNORECASE)


class Page(Definition):
    """How an API is read page by page: by one of `number`, `offset`, `cursor`, `next` and `link`, or none for
    an API that answers with everything at once."""

    number: str | None = Field(None, description="The parameter with the number of the page.")
    first: int = Field(1, description="The number of the first page.")
    offset: str | None = Field(None, description="The parameter with the number of rows before the page.")
    cursor: Path | None = Field(None, description="Where an answer has the cursor of the next page.")
    param: str = Field("cursor", description="The parameter that sends the cursor back.")
    next: Path | None = Field(None, description="Where an answer has the address of the next page.")
    link: str | None = Field(None, description="The relation in the Link header: `next`.")
    size: Annotated[int, Field(ge=1)] | None = Field(None, description="Rows of a full page.")
    size_param: str | None = Field(None, description="The parameter that asks for `size`.")
    until: Literal["empty", "short"] = Field(
        "empty", description="The last page of `number` or `offset`: the one without rows, or with too few."
    )
    has_more: Path | None = Field(
        None, description="Where an answer says whether there are more: true or false."
    )
    total: Path | None = Field(None, description="Where an answer says how many rows there are on all pages.")

    @model_validator(mode="after")
    def _fits(self) -> Page:
        kinds = [kind for kind in _KINDS if getattr(self, kind) is not None]
        counted = self.number is not None or self.offset is not None
        if len(kinds) > 1:
            raise ValueError(f"a page has one of {', '.join(_KINDS)}; this one has {' and '.join(kinds)}")
        unused = {
            "first": "number" not in kinds,
            "param": "cursor" not in kinds,
            "until": not counted or self.total is not None or self.has_more is not None,
        }
        for option, is_unused in unused.items():
            if is_unused and option in self.model_fields_set:
                raise ValueError(f"`{option}` has no effect here")
        if (self.size is None) and (self.size_param is not None or self.until == "short"):
            raise ValueError("`size_param` and `until: short` need `size`")
        if self.size is not None and self.size_param is None and self.until == "empty":
            raise ValueError("`size` has no effect without `size_param` or `until: short`")
        return self


def wrong(what: str, hint: str | None = None) -> SourceError:
    """The error for an answer that cannot be read safely. It quotes nothing of the answer."""
    return SourceError("MART_UNREADABLE", what, hint=hint)


class Answer:
    """The body of an answer as JSON; numbers keep their digits. SourceError HTTP_NO_JSON."""

    def __init__(self, reply: Reply, where: str) -> None:
        self.reply, self._where = reply, where
        text = reply.body.removeprefix(b"\xef\xbb\xbf").strip()
        try:
            text.decode()  # a Raw value is not checked for UTF-8
            self._body = msgspec.json.decode(text, type=Raw)
            msgspec.json.decode(text, type=dict[str, Raw] | list[Raw])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            kind = "a web page" if reply.is_page else "no JSON object or list"
            raise SourceError(
                "HTTP_NO_JSON", f"{where} answered 200, but with {kind}", hint="check `base_url` and `path`"
            ) from None

    def value(self, path: str) -> bytes:
        """The JSON at a path; `null` if there is none."""
        found = next(self._at(self._body, path), None)
        return b"null" if found is None else bytes(found)

    def items(self, path: str) -> list[Raw]:
        """The rows: the list at a path. `a[].b` are the lists `b` of all items of the list `a`."""
        lists = [self._body]
        *before, last = path.split("[].")
        for step in before:
            lists = [item for one in lists for item in self._list(one, step, path)]
        return [item for one in lists for item in self._list(one, last.removesuffix("[]"), path)]

    def _list(self, raw: Raw, path: str, whole: str) -> list[Raw]:
        found = next(self._at(raw, path), None) if path else raw
        try:
            return msgspec.json.decode(b"null" if found is None else found, type=list[Raw])
        except msgspec.DecodeError:
            at = f"at `items: {whole}`" if whole else "in the body"
            raise wrong(
                f"the answer of {self._where} has no list {at}",
                "`items` is the path of the list of rows, such as `data` or `result.rows`",
            ) from None

    def _at(self, raw: Raw, path: str) -> Iterator[Raw]:
        """The value at a dotted path. A member with the whole path as its name comes first."""
        try:
            members = msgspec.json.decode(raw, type=dict[str, Raw])
        except msgspec.DecodeError:
            return
        if path in members:
            yield members[path]
            return
        step, dot, rest = path.partition(".")
        if dot and step in members:
            yield from self._at(members[step], rest)


class Walk(Struct):
    """One reading of all pages. `total`: what the API said, if it did; `moved`: it said different numbers."""

    page: Page
    address: Address
    path: str  # with the prefix of the address
    query: Parameters
    items: str
    where: str  # method, server and path, for messages
    hidden: str | None = None  # a parameter that the credential adds
    rows: int = 0
    total: int | None = None
    moved: bool = False
    _seen: set[bytes] = field(default_factory=set)

    def pages(self, ask: Callable[[str], Answer]) -> Iterator[list[Raw]]:
        """The rows of each page. `ask` sends a GET for a path with its query."""
        target: str | None = self._target(self._start())
        number = self.page.first
        while target is not None:
            self._notice(b"address", target.encode())
            answer = ask(target)
            items = answer.items(self.items)
            if items:
                self._notice(b"rows", *items)
            self.rows += len(items)
            self._count(answer)
            yield items
            number += 1
            target = self._following(answer, len(items), number, target)

    def _start(self) -> Mapping[str, str]:
        page = self.page
        if page.number is not None:
            return {page.number: str(page.first)}
        return {page.offset: "0"} if page.offset is not None else {}

    def _target(self, more: Mapping[str, str]) -> str:
        """The path with the query of the sync and what the page adds."""
        size = [(self.page.size_param, str(self.page.size))] if self.page.size_param else []
        query = [(n, v) for n, v in [*self.query, *size] if n not in more] + list(more.items())
        return self.path + (f"?{urlencode(query, quote_via=quote)}" if query else "")

    def _following(self, answer: Answer, count: int, number: int, target: str) -> str | None:
        """The path and query of the next page; None after the last one."""
        page, more = self.page, self._has_more(answer)
        if more is False:
            return None
        if page.number is not None or page.offset is not None:
            if count == 0 and more:
                raise wrong(f"{self.where} says that there are more rows, but the page has none")
            if more is None and self._is_last(count):
                return None
            named = {page.number: str(number)} if page.number else {str(page.offset): str(self.rows)}
            return self._target(named)
        found = self._pointer(answer)
        if found:
            return self._target({page.param: found}) if page.cursor else self._local(found, target)
        if more:
            raise wrong(f"{self.where} says that there are more rows, but not where", "set `page`")
        return None

    def _is_last(self, count: int) -> bool:
        if self.total is not None:
            return count == 0 or self.rows >= self.total
        return count == 0 or (self.page.until == "short" and count < (self.page.size or 0))

    def _pointer(self, answer: Answer) -> str:
        """The cursor or the address of the next page; "" if there is none."""
        page = self.page
        if page.link is not None:
            return _linked(answer.reply.headers.get("link", ""), page.link)
        if page.cursor is None and page.next is None:
            return ""
        path = str(page.cursor or page.next)
        value = answer.value(path)
        if value in (b"null", b"false"):
            return ""
        if value[:1] == b'"':
            return msgspec.json.decode(value, type=str)
        if page.next is not None or not re.fullmatch(rb"-?[0-9]+", value):
            raise wrong(f"{self.where} has no text or number at `{path}`, where the next page is named")
        return value.decode()

    def _has_more(self, answer: Answer) -> bool | None:
        if self.page.has_more is None:
            return None
        value = answer.value(self.page.has_more)
        if value not in (b"true", b"false"):
            raise wrong(f"{self.where} has neither true nor false at `has_more: {self.page.has_more}`")
        return value == b"true"

    def _count(self, answer: Answer) -> None:
        if self.page.total is None:
            return
        found = re.fullmatch(rb'("?)([0-9]{1,18})\1', answer.value(self.page.total))
        if found is None:
            raise wrong(f"{self.where} has no number of rows at `total: {self.page.total}`")
        total = int(found[2])
        self.moved = self.moved or (self.total is not None and self.total != total)
        self.total = total

    def _notice(self, *parts: bytes | Raw) -> None:
        """Remember an address or the rows of a page. SourceError if it comes for the second time."""
        digest = blake2b(digest_size=16)
        for part in parts:
            digest.update(part)
            digest.update(b"\0")
        if digest.digest() in self._seen:
            raise wrong(
                f"{self.where} gave the same page twice, so its pages would never end",
                "check `page`: the API may not know its parameter",
            )
        self._seen.add(digest.digest())

    def _local(self, url: str, target: str) -> str:
        """The path and query of an address on our own server. An answer never chooses another one."""
        try:
            parts = urlsplit(urljoin(f"{self.address}{target}", url))
            same = parts.hostname == self.address.host.lower() and parts.username is None
            same = same and parts.scheme in ("http", "https")
            same = same and parts.port in (None, self.address.port)
        except ValueError:
            same = False
        if not same or not re.fullmatch(r"[!-~]+", url):
            raise wrong(f"the address of the next page of {self.where} leads to another server")
        query = parts.query
        if self.hidden is not None:
            known = parse_qsl(query, keep_blank_values=True)
            query = urlencode([(n, v) for n, v in known if n != self.hidden], quote_via=quote)
        return (parts.path or "/") + (f"?{query}" if query else "")


def _linked(header: str, relation: str) -> str:
    """The address of a relation in a Link header; "" if there is none."""
    for url, attributes in _LINK.findall(header):
        for quoted, plain in _REL.findall(attributes):
            if relation in (quoted or plain).split():
                return str(url)
    return ""


def encoded(params: Mapping[str, Any]) -> Parameters:
    """Parameters as they are sent, in their order: a list is sent as several of one name, None not at all."""
    found: Parameters = []
    for name, value in params.items():
        for one in value if isinstance(value, Sequence) and not isinstance(value, str) else (value,):
            if one is not None:
                found.append((name, str(one).lower() if isinstance(one, bool) else str(one)))
    return found
