"""What all HTTP targets share: the client, and soft deletes.

It knows no endpoint and reads no answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from retl.destinations.api import Destination, OptionsT
from retl.destinations.batch import Batch, SoftDelete
from retl.destinations.http.cells import Row, exact
from retl.destinations.http.outcome import Sent
from retl.net.client import Address, Client
from retl.net.connection import HttpConnection
from retl.net.gate import Gate


def client(http: HttpConnection, gate: Gate, longest: int | None = None) -> Client:
    """A client of a connection, for one thread; an answer may have at most `longest` bytes."""
    return Client(
        Address.parse(http.base_url),
        http.auth,
        {name: value.get_secret_value() for name, value in http.headers.items()},
        http.timeouts,
        gate.permits(),
        longest,
        proxy=http.proxy,
        on_status=gate.on_status,
        csrf=http.csrf,
    )


def secrets_of(http: HttpConnection) -> list[str]:
    """Of a connection."""
    return [*(value.get_secret_value() for value in http.headers.values()), *http.auth.secrets()]


class HttpTarget(Destination[OptionsT]):
    """A target with a client, which `_connect` makes."""

    def _connect(self, http: HttpConnection, longest: int | None = None) -> None:
        """Make the client; an answer may have at most `longest` bytes."""
        self._http, self._address = http, Address.parse(http.base_url)
        self._client = client(http, self.gate, longest)

    @property
    def sent(self) -> int:
        return self._client.sent

    def close(self) -> None:
        self._client.close()

    def _known(self) -> list[str]:
        """Secrets, which no text from an answer may contain."""
        return secrets_of(self._http)

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
