"""An HTTP request and reply, as they are sent, stored and read."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import msgspec
from msgspec import Struct


class Request(Struct, frozen=True):
    """One request without credentials: it can be shown, and stored before the first send."""

    method: str
    target: str  # the whole path, and the query
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def dump(self) -> bytes:
        head = [f"{self.method} {self.target}", *(f"{name}: {value}" for name, value in self.headers)]
        return "\r\n".join(head).encode() + b"\r\n\r\n" + self.body

    @classmethod
    def load(cls, data: bytes) -> Request:
        head, _, body = data.partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        method, target = first.split(" ", 1)
        headers = tuple((name, value) for name, _, value in (line.partition(": ") for line in rest))
        return cls(method, target, headers, body)


_NO_JSON = object()


class Reply(Struct, frozen=True, dict=True):
    """What came back; `whole` is False if the body was cut off, too long, or compressed in an unknown way."""

    __repr__ = object.__repr__  # a body may be long, and may repeat what was sent

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes = b""
    whole: bool = True

    @cached_property
    def content(self) -> Any:
        """The body as JSON; None if there is none, _NO_JSON if it is something else."""
        text = self.body.removeprefix(BOM_UTF8)
        if not text.strip():
            return None
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _NO_JSON

    @cached_property
    def json_or_text(self) -> Any:
        """The body as JSON, or as text if it is not JSON."""
        return self.body.decode(errors="replace").strip() if self.content is _NO_JSON else self.content

    @property
    def is_page(self) -> bool:
        """A web page, so the answer is not from the API."""
        start = self.body[:64].removeprefix(BOM_UTF8).lstrip().lower()
        return "html" in self.headers.get("content-type", "").lower() or start.startswith(
            (b"<!doctype", b"<html")
        )
