"""Sentinels: they name the primary of a service, and are asked for it before each connection.

After a failover the connection to the older primary is gone, or the server is read-only; the next connection
goes to the server that the Sentinels name then. What that server lacks is noticed by the stamp.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from retl.destinations.redis.resp import Account, Refusal, Wire, stops
from retl.errors import Systemic, Unavailable
from retl.model import needs_tls

Address = tuple[str, int]


class Sentinels:
    def __init__(
        self, addresses: Sequence[Address], service: str, account: Account, *, allow_plaintext: bool
    ) -> None:
        self._addresses, self._service, self._account = list(addresses), service, account
        self._allow_plaintext = allow_plaintext

    def primary(self) -> Address:
        """The address of the primary, from the first Sentinel that knows it. Unavailable if none answers,
        Systemic if they answer and know no such service."""
        unanswered: Unavailable | None = None
        for address in list(self._addresses):
            try:
                found = self._asked(address)
            except Unavailable as error:
                unanswered = error
                continue
            if found is not None:
                self._addresses.remove(address)
                self._addresses.insert(0, address)
                return encrypted(
                    found,
                    self._account,
                    "SENTINEL_PLAINTEXT",
                    "the Sentinels name a primary",
                    allow_plaintext=self._allow_plaintext,
                )
        if unanswered is not None:
            raise unanswered
        raise Systemic("SENTINEL_SERVICE", f"the Sentinels know no service {self._service!r}")

    def _asked(self, address: Address) -> Address | None:
        name = f"redis://{address[0]}:{address[1]}"
        with closing(Wire(name, lambda: address, self._account, mode="sentinel")) as wire:
            (reply,) = wire.ask([("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)])
        if isinstance(reply, Refusal):
            raise stops(name, reply, mode="sentinel")
        return (reply[0].decode(), int(reply[1])) if reply else None


def encrypted(at: Address, account: Account, code: str, named: str, *, allow_plaintext: bool) -> Address:
    """The address that other servers `named`, if it may be connected to; else Systemic with this code."""
    host, port = at
    if not account.tls and needs_tls(host, allow_plaintext=allow_plaintext):
        raise Systemic(
            code,
            f"{named} on another machine, {host}:{port}, and there is no TLS",
            hint="set `tls: true` (or `allow_plaintext: true`)",
        )
    return at
