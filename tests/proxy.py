"""A TCP proxy that misbehaves on demand: what networks do to a client, between it and a real server.

One fault at a time; every method that sets one is undone by `heal`. It knows bytes, not protocols,
and speaks no TLS.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable

QUIET = 0.2  # seconds without a byte from the server after which its answer is complete


class Proxy:
    """Listens on 127.0.0.1:`port` for as long as the `with` block lasts, and passes bytes on.

    `connections` and `sent` count the connections made and the bytes clients sent, ever.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = "127.0.0.1", 0
        self.connections = self.sent = 0
        self._upstream = (host, port)
        self._listener: socket.socket | None = None
        self._sockets: set[socket.socket] = set()
        self._pumps: list[threading.Thread] = []
        self._unanswered: dict[socket.socket, _Unanswered | None] = {}  # clients whose answer is swallowed
        self._forward: Callable[[bytes], bytes] = bytes
        self._backward: Callable[[bytes], bytes] = bytes

    def __enter__(self) -> Proxy:
        self.heal()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()

    def heal(self) -> None:
        """Pass everything from now on; what `blackhole` swallowed stays lost, so its connections go."""
        if self._forward is _nothing:
            self._reset()
        self._forward = self._backward = bytes
        if self._listener is None:
            self._listener = socket.create_server((self.host, self.port))
            self.port = self._listener.getsockname()[1]
            threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def refuse(self) -> None:
        """Reset every connection and refuse new ones."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept(); close alone does not
            self._listener.close()
            self._listener = None
        self._reset()
        pumps, self._pumps = self._pumps, []
        for pump in pumps:  # while a thread reads from a socket, closing it sends no RST
            if pump is not threading.current_thread():
                pump.join(0.5)

    def lead_to(self, host: str, port: int) -> None:
        """The address now leads to another server; connections to the former one are reset."""
        self._upstream = (host, port)
        self._reset()

    def blackhole(self) -> None:
        """Accept, swallow, never answer."""
        self._forward = self._backward = _nothing

    def slow(self, seconds: float) -> None:
        """Pass everything, each piece so many seconds late."""

        def late(data: bytes) -> bytes:
            time.sleep(seconds)
            return data

        self._forward = self._backward = late

    def cut(self, after: int) -> None:
        """Pass so many more bytes to the server, then reset the connection, once."""
        left = after

        def forward(data: bytes) -> bytes:
            nonlocal left
            data, left = data[:left], left - len(data)
            if left < 0:
                self._forward = bytes
                raise _Cut(data)
            return data

        self._forward = forward

    def drop_reply(
        self, *after: bytes, refuse: bool = False, then: Callable[[], object] = lambda: None
    ) -> None:
        """Once clients have sent these bytes, one after the other: let the server do everything, swallow
        its answer, then reset the connection on which the last of them came, once; or `refuse` from then
        on. `then`: what somebody else does before the reset."""

        def seen(data: bytes) -> bytes:
            raise _Unanswered(data, refuse, then)

        self._forward = self._seeing(list(after), seen)

    def delay_reply(self, *after: bytes, seconds: float) -> None:
        """Once clients have sent these bytes: the next piece of an answer comes so much later."""

        def late(data: bytes) -> bytes:
            self._backward = bytes
            time.sleep(seconds)
            return data

        def seen(data: bytes) -> bytes:
            self._backward = late
            return data

        self._forward = self._seeing(list(after), seen)

    def drop_request(self, *after: bytes) -> None:
        """Reset the connection on which the last of these bytes come, and pass nothing of that piece on."""

        def seen(_: bytes) -> bytes:
            raise _Cut(b"")

        self._forward = self._seeing(list(after), seen)

    def act(self, action: Callable[[], object], *after: bytes) -> None:
        """Once clients have sent these bytes: somebody else acts before the last piece of them passes on."""

        def seen(data: bytes) -> bytes:
            action()
            return data

        self._forward = self._seeing(list(after), seen)

    def _seeing(self, awaited: list[bytes], seen: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        """Passes everything until all awaited bytes have come, in this order; then `seen` once."""
        tail = b""

        def forward(data: bytes) -> bytes:
            nonlocal tail
            tail += data
            while awaited and (at := tail.find(awaited[0])) >= 0:
                tail = tail[at + len(awaited.pop(0)) :]
            if not awaited:
                self._forward = bytes
                return seen(data)
            tail = tail[1 - len(awaited[0]) :] if len(awaited[0]) > 1 else b""
            return data

        return forward

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self.connections += 1
                try:
                    server = socket.create_connection(self._upstream)
                except OSError:
                    client.close()
                    continue
                self._sockets |= {client, server}
                for there, back, to_server in ((client, server, True), (server, client, False)):
                    pump = threading.Thread(target=self._pump, args=[there, back, to_server], daemon=True)
                    pump.start()  # first: `stop` joins what is listed
                    self._pumps.append(pump)

    def _pump(self, reads: socket.socket, writes: socket.socket, to_server: bool) -> None:
        with contextlib.suppress(OSError):
            while data := reads.recv(65536):
                if to_server:
                    self.sent += len(data)
                elif writes in self._unanswered:
                    self._swallow(reads, writes)
                    continue
                try:
                    writes.sendall((self._forward if to_server else self._backward)(data))
                except _Unanswered as request:
                    self._unanswered[reads] = request
                    writes.sendall(request.data)
                except _Cut as cut:
                    writes.sendall(cut.data)
                    _abort(reads)
                    break
        for end, how in ((reads, socket.SHUT_RD), (writes, socket.SHUT_WR)):  # the other way goes on
            with contextlib.suppress(OSError):
                end.shutdown(how)

    def _swallow(self, server: socket.socket, client: socket.socket) -> None:
        """A piece of an answer that never arrives; the first one is followed by the end."""
        request, self._unanswered[client] = self._unanswered[client], None
        if request is None:
            return

        def finish() -> None:
            request.then()
            if request.refuse:
                self.refuse()
            for end in (client, server):
                _abort(end)

        timer = threading.Timer(QUIET, finish)
        timer.daemon = True
        timer.start()

    def _reset(self) -> None:
        doomed, self._sockets = self._sockets, set()
        for end in doomed:
            _abort(end)


class _Cut(Exception):
    """The last bytes that pass before the connection ends."""

    def __init__(self, data: bytes) -> None:
        self.data = data


class _Unanswered(Exception):
    """What is passed on without an answer, whether that is the end of all connections, and what somebody does
    before."""

    def __init__(self, data: bytes, refuse: bool, then: Callable[[], object]) -> None:
        self.data, self.refuse, self.then = data, refuse, then


def _nothing(_: bytes) -> bytes:
    return b""


def _abort(end: socket.socket) -> None:
    """Close with a RST rather than a FIN, and wake whoever is reading from it."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RD)
    end.close()
