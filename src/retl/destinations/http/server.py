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


class HttpTarget(Destination[OptionsT]):
    """A target with a client, which `_connect` makes."""

    def _connect(self, http: HttpConnection, longest: int | None = None) -> None:
        """Make the client; an answer may have at most `longest` bytes."""
        self._http, self._address = http, Address.parse(http.base_url)
        headers = {name: value.get_secret_value() for name, value in http.headers.items()}
        self._client = Client(
            self._address,
            http.auth,
            headers,
            http.timeouts,
            self.gate.permits(),
            longest,
            proxy=http.proxy,
            on_status=self.gate.on_status,
            csrf=http.csrf,
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
