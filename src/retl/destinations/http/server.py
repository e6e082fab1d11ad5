"""What all HTTP targets share: connection and credential, the client, and soft deletes.

It knows no endpoint and reads no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, model_validator

from retl.destinations.api import Destination, OptionsT
from retl.destinations.batch import Batch, SoftDelete
from retl.destinations.http.cells import Row, exact
from retl.destinations.http.outcome import Sent
from retl.model import Definition, needs_tls
from retl.net.auth import Anonymous, HeaderName, Secret, WholeUrl
from retl.net.client import Address, Client, Timeouts
from retl.net.oauth import Auth
from retl.net.proxy import Setting


class HttpConnection(Definition):
    """A server and our credential for it. `headers` count as secrets: they are sent and never shown."""

    type: str = "http"
    base_url: str
    auth: Auth = Anonymous()
    headers: dict[HeaderName, Secret] = Field(default={})
    proxy: Setting = None
    timeouts: Timeouts = Timeouts()
    allow_plaintext: bool = False

    @model_validator(mode="before")
    @classmethod
    def _whole_url(cls, given: Any) -> Any:
        """If the whole address is the secret, its origin becomes the base_url."""
        auth = given.get("auth") if isinstance(given, dict) else None
        if isinstance(auth, dict) and auth.get("type") == "url" and not given.get("base_url"):
            return {**given, "base_url": WholeUrl.model_validate(auth).origin}
        return given

    @model_validator(mode="after")
    def _fits(self) -> HttpConnection:
        address = Address.parse(self.base_url)
        if address.scheme == "http" and needs_tls(address.host, allow_plaintext=self.allow_plaintext):
            raise ValueError("base_url must be https, or set `allow_plaintext: true`")
        return self


class HttpTarget(Destination[OptionsT]):
    """A target with a client, which `_connect` makes."""

    def _connect(self, http: HttpConnection, longest: int | None = None) -> None:
        """Make the client; an answer may have at most `longest` bytes."""
        self._http, self._address = http, Address.parse(http.base_url)
        headers = {name: value.get_secret_value() for name, value in http.headers.items()}
        permits = self.gate.permits()
        self._client = Client(
            self._address, http.auth, headers, http.timeouts, permits, longest, proxy=http.proxy
        )

    @property
    def sent(self) -> int:
        return self._client.sent

    def close(self) -> None:
        self._client.close()

    def _known(self) -> list[str]:
        """Secrets, which no text from an answer may contain."""
        headers = (value.get_secret_value() for value in self._http.headers.values())
        return [*headers, *self._http.auth.secrets()]

    def _about(self, rows: int) -> Sent:
        """What `interpret` needs for an answer that names no row."""
        return Sent(rows, True, lambda to: [], lambda row: self._known())

    def _is_soft(self, batch: Batch) -> bool:
        """Whether the batch is a soft delete."""
        return batch.operation == "delete" and isinstance(self.shape.deletes, SoftDelete)

    def _documents(self, batch: Batch) -> Sequence[Row]:
        """The rows with their fields; for soft deletes with the fields of `set`."""
        rows = batch.documents()
        if batch.operation != "delete" or not isinstance(self.shape.deletes, SoftDelete):
            return rows
        fields = exact.encode(self.shape.deletes.set).decode()
        return [(*key, fields) for key in rows]
