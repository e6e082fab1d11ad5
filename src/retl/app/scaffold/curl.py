"""A curl line as data: the request, and the credential in it, which is never given to anybody.

It knows the options that documentation uses, and refuses others rather than drop them.
"""

from __future__ import annotations

import json
import re
import shlex
from base64 import b64decode
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from msgspec import Struct, field

from retl.errors import DefinitionError

_DATA = ("-d", "--data", "--data-raw", "--data-binary", "--data-ascii", "--json", "--data-urlencode")
_VALUED = {"-X": "method", "--request": "method", "-H": "headers", "--header": "headers", "--url": "url"}
_VALUED |= {"-u": "user", "--user": "user", **dict.fromkeys(_DATA, "data")}
_VALUED |= dict.fromkeys(("-m", "--max-time", "-o", "--output", "--connect-timeout"), "")
_IGNORED = {"-s", "-S", "-i", "-v", "-L", "-k", "--silent", "--show-error", "--include", "--verbose"}
_IGNORED |= {"--location", "--compressed", "--fail", "-f", "--globoff", "-g", "-sS"}
_SHORT = re.compile(r"-([XHdu])(.+)", re.DOTALL)
_SECRET = {
    "token",
    "secret",
    "password",
    "passwd",
    "apikey",
    "signature",
    "sig",
    "credential",
    "authorization",
}
_SECRET |= {"credentials", "cookie", "accesstoken", "authtoken", "appkey", "jwt", "session"}
_OF_KEY = {
    "api",
    "access",
    "app",
    "routing",
    "integration",
    "secret",
    "private",
    "license",
    "subscription",
    "auth",
}
_LOOKS_SECRET = re.compile(r"(sk|pk|rk|xox.|gh.|shp.{2,3}|pat)[_-]\w{8,}|eyJ[\w-]{8,}\.[\w.-]+|AKIA\w{12,}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_UNSENT = {"content-type", "accept", "user-agent", "content-length", "host", "connection"}

Encoding = Literal["json", "form"]


class Call(Struct):
    """One request. `auth` and `headers` have `<name>` where the curl line has a secret, `connection` says
    what these names are, and `secrets` are the values, which must not be written anywhere."""

    __repr__ = object.__repr__  # it has secrets

    method: str
    base_url: str
    path: str
    body: Any = None
    encoding: Encoding = "json"
    auth: dict[str, Any] = field(default_factory=lambda: {"type": "none"})
    headers: dict[str, str] = field(default_factory=dict)
    connection: dict[str, dict[str, Any]] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)


def parse(line: str) -> Call:
    """The call of a curl line. DefinitionError USAGE, without values, if it cannot be understood whole."""
    try:
        words = shlex.split(line.replace("\\\n", " "))
    except ValueError:
        raise _refused("a quote in it is not closed") from None
    if not words or words[0] != "curl":
        raise _refused("it does not begin with `curl`")
    given = _options(words[1:])
    url = urlsplit(given["url"] or "")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise _refused("it has no address that begins with https://")
    host = url.hostname + (f":{url.port}" if url.port else "")
    call = Call(given["method"] or "", f"{url.scheme}://{host}", url.path or "/")
    user = given["user"] or (f"{url.username}:{url.password or ''}" if url.username else None)
    query = parse_qsl(url.query, keep_blank_values=True)
    if given["get"]:
        query += [pair for text in given["data"] for pair in parse_qsl(text, keep_blank_values=True)]
        given["data"] = []
    call.method = call.method or ("POST" if given["data"] else "GET")
    if user is not None:
        _basic(call, unquote(user))
    sent = _headers(call, given["headers"])
    _body(call, given["data"], sent)
    _query(call, query)
    _hidden_in_body(call)
    if call.auth == {"type": "none"}:
        _webhook(call)
    return call


def _options(words: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "method": None,
        "url": None,
        "user": None,
        "get": False,
        "headers": [],
        "data": [],
    }
    rest = iter(words)
    for word in rest:
        name, joined = word, None
        if word.startswith("--") and "=" in word:
            name, _, joined = word.partition("=")
        elif short := _SHORT.fullmatch(word):
            name, joined = f"-{short[1]}", short[2]
        if name in _VALUED:
            value = next(rest, None) if joined is None else joined
            if value is None:
                raise _refused(f"nothing follows {name}")
            _take(found, _VALUED[name], value, name)
        elif name in ("-G", "--get"):
            found["get"] = True
        elif name.startswith("-") and name not in _IGNORED:
            raise _refused(f"retl does not know its option {name[:20]}")
        elif not name.startswith("-"):
            found["url"] = found["url"] or word
    return found


def _take(found: dict[str, Any], part: str, value: str, option: str) -> None:
    """Put the value of an option where it belongs."""
    if part in ("headers", "data"):
        found[part].append(value)
    elif part:
        found[part] = value.upper() if part == "method" else value
    if option == "--json":
        found["headers"].append("Content-Type: application/json")


def _headers(call: Call, lines: list[str]) -> dict[str, str]:
    """Sort the headers into credential, secrets and constants; returns those about the body."""
    about: dict[str, str] = {}
    for line in lines:
        name, _, value = (part.strip() for part in line.partition(":"))
        if name.lower() in _UNSENT:
            about[name.lower()] = value.lower()
        elif name.lower() == "authorization":
            _authorization(call, value)
        elif is_secret(name) or name.lower() in ("x-key", "key") or looks_secret(value):
            if call.auth == {"type": "none"}:
                call.auth = {"type": "header", "name": name, "value": "<token>"}
                _learn(call, "token", f"Value of the header {name}.", value)
            else:
                key = re.sub(r"[^a-z]+", "_", name.lower()).strip("_")
                call.headers[name] = f"<{key}>"
                _learn(call, key, f"Value of the header {name}.", value)
        else:
            call.headers[name] = value
    return about


def _authorization(call: Call, value: str) -> None:
    scheme, _, token = value.partition(" ")
    if scheme.lower() == "basic":
        try:
            _basic(call, b64decode(token).decode())
        except ValueError:
            _basic(call, ":")
        call.secrets.append(token)
        return
    _alone(call)
    if scheme.lower() == "bearer" and token:
        call.auth = {"type": "bearer", "token": "<token>"}
        _learn(call, "token", "Access token.", token)
    else:
        word = f"{scheme} <token>" if token else "<token>"
        call.auth = {"type": "header", "name": "Authorization", "value": word}
        _learn(call, "token", "What follows in the header Authorization.", token or scheme)


def _basic(call: Call, pair: str) -> None:
    _alone(call)
    user, _, password = pair.partition(":")
    if password.lower() in ("", "x"):
        call.auth = {"type": "basic", "username": "<token>", "password": password}
        _learn(call, "token", "API key, which is the user's name.", user)
        return
    call.auth = {"type": "basic", "username": "<user>", "password": "<token>"}
    _learn(call, "user", "Name of the user.", user)
    _learn(call, "token", "Password or API key.", password)


def _alone(call: Call) -> None:
    if call.auth != {"type": "none"}:
        raise _refused("it has two credentials")


def _body(call: Call, data: list[str], sent: dict[str, str]) -> None:
    if not data:
        return
    if any(text.startswith("@") for text in data):
        raise _refused("its body is in a file: write the body into the line")
    whole, content = "&".join(data), sent.get("content-type", "")
    try:
        call.body = json.loads(whole)
    except ValueError:
        if "json" in content:
            raise _refused("its body is not JSON") from None
        call.encoding = "form"
        call.body = nested(parse_qsl(whole, keep_blank_values=True))


def nested(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Form fields as the object that retl writes in this way: a[b]=1."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        first, *inner = re.findall(r"[^\[\]]+", name) or [name]
        at = found
        for step in [first, *inner][:-1]:
            at = at.setdefault(step, {})
        at[[first, *inner][-1]] = value
    return found


def _query(call: Call, query: list[tuple[str, str]]) -> None:
    constants = []
    for name, value in query:
        if is_secret(name) or name.lower() == "key":
            _alone(call)
            call.auth = {"type": "query", "name": name, "value": "<token>"}
            _learn(call, "token", f"Value of the parameter {name}.", value)
        else:
            constants.append((name, value))
    call.path += f"?{urlencode(constants)}" if constants else ""


def _hidden_in_body(call: Call) -> None:
    """Take a credential out of the body's first level; refuse one that is deeper."""
    if isinstance(call.body, dict):
        for name in [name for name, value in call.body.items() if is_secret(name) and isinstance(value, str)]:
            _alone(call)
            call.auth = {"type": "body", "name": name, "value": "<token>"}
            _learn(call, "token", f"Value of {name} in the body.", call.body.pop(name))
    for name, value in leaves(call.body):
        if isinstance(value, str) and (is_secret(name) or looks_secret(value)):
            raise _refused(f"{name!r} in its body looks like a secret: write another value there")


def _webhook(call: Call) -> None:
    """Take an address that is the secret itself."""
    parts = [part for part in call.path.partition("?")[0].split("/") if _hidden(part)]
    if parts:
        call.secrets += [*parts, call.base_url + call.path]
        call.auth = {"type": "url", "url": "<url>"}
        call.connection["url"] = {"about": "The whole address, which is the secret.", "secret": True}
        call.path = "/"


def _hidden(part: str) -> bool:
    mixed = re.search(r"[0-9]", part) and re.search(r"[A-Za-z]", part)
    return bool(len(part) >= 16 and mixed and re.fullmatch(r"[\w-]+", part) and not _UUID.fullmatch(part))


def _learn(call: Call, name: str, about: str, value: str) -> None:
    call.connection[name] = {"about": about, "secret": True}
    call.secrets.append(value)


def is_secret(name: str) -> bool:
    """Whether a member, header or parameter of this name has a secret."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
    pairs = set(pairwise(words))
    return bool(_SECRET & {*words, "".join(words)}) or any((one, "key") in pairs for one in _OF_KEY)


def looks_secret(value: str) -> bool:
    return bool(_LOOKS_SECRET.search(value))


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar of a body, with the name of the member that it is in."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, key)
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part, name)
    else:
        yield name, value


def _refused(why: str) -> DefinitionError:
    return DefinitionError("USAGE", f"the curl line cannot be used: {why}", hint="retl presets new --help")
