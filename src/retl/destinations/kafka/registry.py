"""A schema registry with Confluent's interface: what a subject has, what fits it, a new version of it.

It knows schemas as texts, and no rows. A request is sent once. Each may be repeated: to register a schema
that is there already changes nothing.
"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from pydantic import Field, SecretStr, model_validator

from retl.errors import Ambiguous, Mismatch, RetlError, Systemic, Unavailable
from retl.model import Definition, Duration, needs_tls
from retl.net.auth import Anonymous, Basic
from retl.net.client import Address, Client, Timeouts
from retl.net.messages import Reply, Request
from retl.net.proxy import Setting
from retl.net.scrub import scrub
from retl.net.waits import wait_asked

Kind = Literal["AVRO", "JSON"]
_TYPE = "application/vnd.schemaregistry.v1+json"
_HEADERS = {"Accept": f"{_TYPE}, application/json"}
_NO_SUBJECT, _NO_VERSION, _NO_SCHEMA = 40401, 40402, 40403
_MISSING = (_NO_SUBJECT, _NO_VERSION, _NO_SCHEMA)
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_MOST = 3  # sentences of the registry that a message has


class RegistryConnection(Definition):
    """A schema registry and the account."""

    url: str = Field(description="Its address, such as https://registry.internal:8081.")
    user: str | None = Field(None, description="The account's name, or the name of an API key.")
    password: SecretStr | None = Field(None, description="The account's password, or the API key's secret.")
    tls_ca_file: str | None = Field(None, description="The authorities of the registry, if not the system's.")
    proxy: Setting = Field(None, description="A forward proxy on the way to it.")
    allow_plaintext: bool = Field(False, description="Ask it without TLS although it is another machine.")
    timeout: Duration = Field(30.0, gt=0, description="Of one request.")

    @model_validator(mode="after")
    def _fits(self) -> RegistryConnection:
        address = Address.parse(self.url)
        if address.scheme == "http" and needs_tls(address.host, allow_plaintext=self.allow_plaintext):
            raise ValueError("the registry's `url` must be https, or set `allow_plaintext: true` there")
        if address.scheme == "http" and self.tls_ca_file:
            raise ValueError("`tls_ca_file` is for a `url` that begins with https://")
        if (self.user is None) != (self.password is None):
            raise ValueError("`user` and `password` of the registry belong together")
        return self

    def placed_in(self, folder: Path) -> RegistryConnection:
        if self.tls_ca_file is None:
            return self
        return self.model_copy(update={"tls_ca_file": str(folder / self.tls_ca_file)})

    @property
    def auth(self) -> Anonymous:
        if self.user is None or self.password is None:
            return Anonymous()
        return Basic(type="basic", username=SecretStr(self.user), password=self.password)


class Version(NamedTuple):
    """A schema of a subject. `refers`: it needs other schemas of the registry."""

    id: int
    number: int
    kind: str
    schema: str
    refers: bool


class Registry:
    """Its errors are Systemic (REGISTRY_LOGIN, NOPERM, REGISTRY_REFUSED) and Unavailable."""

    def __init__(self, connection: RegistryConnection) -> None:
        self._connection, self._auth = connection, connection.auth
        self._address = Address.parse(connection.url)
        self.name = f"the schema registry {self._address}"

    def latest(self, subject: str) -> Version | None:
        """The newest version of a subject; None if there is none."""
        found = self._asked("GET", f"/subjects/{_part(subject)}/versions/latest")
        if found is None:
            return None
        return Version(
            self._number(found, "id"),
            self._number(found, "version"),
            str(found.get("schemaType", "AVRO")),
            str(found.get("schema")),
            bool(found.get("references")),
        )

    def find(self, subject: str, kind: Kind, schema: str) -> int | None:
        """The id of this schema, if the subject has it."""
        found = self._asked("POST", f"/subjects/{_part(subject)}", _body(kind, schema))
        return None if found is None else self._number(found, "id")

    def objections(self, subject: str, kind: Kind, schema: str) -> str | None:
        """Why the schema does not go together with the newest version of the subject, in the registry's own
        words; None if it does."""
        path = f"/compatibility/subjects/{_part(subject)}/versions/latest?verbose=true"
        found = self._asked("POST", path, _body(kind, schema))
        if found is None or found.get("is_compatible") is True:
            return None
        said = [str(one) for one in found.get("messages") or () if not str(one).startswith("{oldSchema")]
        return "; ".join(filter(None, map(self._shown, said[:_MOST]))) or "it does not say why"

    def register(self, subject: str, kind: Kind, schema: str) -> int:
        """The id of the schema, which is now a version of the subject. Mismatch TARGET_DRIFT if it does not
        go together with older ones."""
        found = self._asked("POST", f"/subjects/{_part(subject)}/versions", _body(kind, schema))
        if found is None:
            raise self._foreign()
        return self._number(found, "id")

    def _asked(self, method: str, path: str, body: bytes = b"") -> dict[str, Any] | None:
        """The object in the answer; None if the registry has no such subject, version or schema."""
        limit = self._connection.timeout
        timeouts = Timeouts(connect=min(10.0, limit), idle=limit, total=limit)
        made = Client(
            self._address,
            self._auth,
            _HEADERS,
            timeouts,
            proxy=self._connection.proxy,
            ca_file=self._connection.tls_ca_file,
        )
        headers = (("Content-Type", _TYPE),) if body else ()
        try:
            with closing(made) as client:
                reply = client.send(Request(method, self._address.prefix + path, headers, body))
        except (Ambiguous, Unavailable):
            raise self._away("does not answer") from None
        if not reply.whole:
            raise self._away("did not answer in full")
        content = reply.content if isinstance(reply.content, dict) else {}
        if reply.status == 404 and content.get("error_code") in _MISSING:
            return None
        if reply.status != 200:
            raise self._refusal(reply, content)
        if not content:
            raise self._foreign()
        return content

    def _refusal(self, reply: Reply, content: dict[str, Any]) -> RetlError:
        said = self._shown(str(content.get("message") or "")) or "it does not say why"
        if reply.status == 401:
            hint = "check `user` and `password` under `registry` of the connection"
            return Systemic("REGISTRY_LOGIN", f"{self.name} refuses the user or the password", hint=hint)
        if reply.status == 403:
            hint = "allow its account what the target's page lists"
            return Systemic("NOPERM", f"the account at {self.name} lacks a right", hint=hint)
        if reply.status == 409:
            return Mismatch("TARGET_DRIFT", said)
        if reply.status in _BUSY:
            return self._away(f"answered {reply.status}", wait_asked(reply.headers))
        if "error_code" not in content:
            return self._foreign()
        return Systemic("REGISTRY_REFUSED", f"{self.name} refuses this ({content['error_code']}): {said}")

    def _away(self, what: str, retry_after: float | None = None) -> Unavailable:
        hint = "check `registry` of the connection, and that it runs; then run again. Nothing was sent"
        return Unavailable("REGISTRY_UNREACHED", f"{self.name} {what}", retry_after=retry_after, hint=hint)

    def _foreign(self) -> Systemic:
        hint = "check `url` under `registry` of the connection, with its path"
        return Systemic("REGISTRY_REFUSED", f"{self.name} does not answer like a schema registry", hint=hint)

    def _number(self, found: dict[str, Any], name: str) -> int:
        number = found.get(name)
        if not isinstance(number, int) or not 0 <= number < 2**31:
            raise self._foreign()
        return number

    def _shown(self, sentence: str) -> str | None:
        return scrub(sentence, self._auth.secrets())


def _part(subject: str) -> str:
    return quote(subject, safe="")


def _body(kind: Kind, schema: str) -> bytes:
    """Registries that know only Avro refuse the name of a type."""
    return json.dumps({"schema": schema} | ({} if kind == "AVRO" else {"schemaType": kind})).encode()
