"""The server of a target, its client, and its errors in our own words.

It knows requests and no rows. A request is sent once: delivery decides what is sent again. No error repeats
the server's sentence, because that may quote values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from retl.errors import Ambiguous, Poisoned, Systemic, TargetError, Unavailable
from retl.model import Duration
from retl.net import clickhouse
from retl.net.auth import Anonymous
from retl.net.clickhouse import ClickHouseServer, Said
from retl.net.client import Client, Timeouts
from retl.net.gate import Gate
from retl.net.messages import Reply, Request
from retl.net.waits import wait_asked

# The answer comes after the last row; rows are written by the request itself; NULL never becomes a default.
_SETTINGS = {
    "wait_end_of_query": "1",
    "async_insert": "0",
    "insert_null_as_default": "0",
    "input_format_null_as_default": "0",
    "max_partitions_per_insert_block": "0",
}
_READING = {
    "wait_end_of_query": "1",
    "do_not_merge_across_partitions_select_final": "0",
    "output_format_parquet_string_as_string": "1",
    "output_format_json_quote_64bit_integers": "0",
}
_LOGIN = (192, 193, 194, 516)
_FORBIDDEN = (clickhouse.LOCKED, 497)
_MISSING = (60, 81, 218)
_CONSTRAINT = 469
_BAD_ROW = (6, 26, 27, 38, 41, 53, 69, 70, 72, 131, 190, 321, 349, 407, _CONSTRAINT)
_NO_ROOM = 243
_LATER = (202, 242, 252, 439, 745)  # too many queries or parts, a replica that only reads: nothing was done
_BROKEN_OFF = (  # perhaps after some parts; a body that was cut off on its way looks like wrong data
    *(32, 33, 117, 636),
    *clickhouse.BUSY,
    *(159, 225, 236, 241, 285, 286, 319, 394, 735, 1000),
)


class ClickHouseConnection(ClickHouseServer):
    """A server, by its HTTP interface; of a cluster one replica."""

    timeout: Duration = Field(300.0, gt=0, description="Of one request.")
    connect_timeout: Duration = Field(10.0, gt=0)


class Missing(Systemic):
    """There is no such table."""


class Requests:
    """Requests of one lane."""

    def __init__(self, connection: ClickHouseConnection, gate: Gate) -> None:
        limit = connection.timeout
        self._client = Client(
            connection.address,
            Anonymous(),
            connection.account,  # tables are named with their database, which may not be there yet
            Timeouts(connect=connection.connect_timeout, idle=limit, total=limit),
            gate.permits(),
            proxy=connection.proxy,
            ca_file=connection.tls_ca_file,
            on_status=gate.on_status,
        )
        self._server = str(connection.address)

    @property
    def sent(self) -> int:
        """Bytes of all requests, heads included."""
        return self._client.sent

    def ask(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        """The rows of a SELECT by their columns. Systemic, Unavailable; Missing without the table."""
        reply = self._read(f"{sql} FORMAT JSONEachRow", parameters)
        try:
            return [json.loads(line) for line in reply.body.splitlines()]
        except ValueError:
            raise Systemic("HTTP_NO_JSON", f"{self._server} does not answer like ClickHouse") from None

    def fetch(self, sql: str, into: Path) -> None:
        """The rows of a SELECT as a Parquet file."""
        self._read(f"{sql} FORMAT Parquet", {}, into)
        with into.open("rb") as file:
            whole = file.seek(0, 2) > 12 and file.seek(-4, 2) and file.read() == b"PAR1"
        if not whole:
            raise Unavailable("HTTP_CUT_OFF", f"the rows of {self._server} did not arrive whole")

    def do(self, sql: str, **parameters: Any) -> None:
        """A statement that may change something. Ambiguous if nobody knows whether it did."""
        self.insert(sql, b"", **parameters)

    def insert(self, sql: str, body: bytes, **parameters: Any) -> None:
        """A statement with what it inserts. Ambiguous if nobody knows whether it did, Poisoned if it has a
        bad row."""
        reply = self._send(sql, body, _SETTINGS, parameters)
        if (said := clickhouse.refused(reply)) is not None:
            raise self._refusal(said, reply)

    def close(self) -> None:
        self._client.close()

    def _read(self, sql: str, parameters: Mapping[str, Any], into: Path | None = None) -> Reply:
        try:
            if into is None:
                reply = self._send(sql, b"", _READING, parameters)
            else:
                with into.open("wb") as file:
                    reply = self._send(sql, b"", _READING, parameters, file)
            if (said := clickhouse.refused(reply)) is not None:
                raise self._refusal(said, reply)
        except Ambiguous as problem:
            raise Unavailable(problem.code, problem.message) from None
        if not reply.whole:
            raise Unavailable("HTTP_CUT_OFF", f"the answer of {self._server} did not arrive whole")
        return reply

    def _send(
        self,
        sql: str,
        body: bytes,
        settings: Mapping[str, str],
        parameters: Mapping[str, Any],
        into: Any = None,
    ) -> Reply:
        """SQL stands in the address if there is a body, which a proxy may log: it has no values then."""
        given = {**settings, "query": sql} if body else settings
        named = {name: clickhouse.written(value) for name, value in parameters.items()}
        path = clickhouse.target(self._client.address, given, named)
        kind = "application/octet-stream" if body else "text/plain; charset=utf-8"
        text = body or sql.encode(errors="surrogatepass")
        return self._client.send(Request("POST", path, (("Content-Type", kind),), text), into=into)

    def _refusal(self, said: Said, reply: Reply) -> TargetError:
        code, what = said.code, f"ClickHouse at {self._server} refuses it (code {said.named})"
        if not code:
            return self._foreign(reply)
        if code in _LOGIN:
            hint = "check `user` and `password` of the connection"
            return Systemic("CLICKHOUSE_LOGIN", what, hint=hint)
        if code in _FORBIDDEN:
            hint = "GRANT it to the user of the connection; the page of the target lists what it needs"
            return Systemic("NOPERM", what, hint=hint)
        if code in _MISSING:
            return Missing(
                "TABLE_MISSING", f"there is no such table at {self._server}", hint="run `retl check`"
            )
        if code in _BAD_ROW:
            kind = "23514" if code == _CONSTRAINT else "22000"
            return Poisoned(kind, f"ClickHouse, or a constraint, refuses a value (code {said.named})")
        if code in _LATER:
            return Unavailable("TARGET_BUSY", what)
        if code in _BROKEN_OFF:
            return Ambiguous("NO_ANSWER", f"ClickHouse at {self._server} did not finish (code {said.named})")
        hint = "free space on its disk" if code == _NO_ROOM else "run `retl check`"
        return Systemic("CLICKHOUSE_REFUSED", what, hint=hint)

    def _foreign(self, reply: Reply) -> TargetError:
        """An answer that is none of ClickHouse: of something on the way."""
        code, what = f"HTTP_{reply.status}", f"{self._server} answered {reply.status}"
        if reply.status in (425, 429, 503):
            return Unavailable(code, what, retry_after=wait_asked(reply.headers))
        if reply.status in (408, 500, 502, 504):
            return Ambiguous(code, what)
        return Systemic(code, what, hint="it is no answer of ClickHouse: check `base_url` of the connection")
