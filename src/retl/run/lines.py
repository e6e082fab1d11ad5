"""Lines between a run and its shards: a pipe on one machine, and TLS to another.

A shard elsewhere has a ticket, which is good for one line: a second task with the same ticket waits until the
first has ended, and does nothing. The run makes its own certificate, and the ticket has it: nobody else can
listen or answer. Both ends of a line see an ordinary Connection. Nothing here knows what is told.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from importlib import metadata
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from select import POLLIN, poll
from typing import Protocol

from msgspec import Struct, field

from retl.observe.signals import Stop

_BEGIN = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from retl.run.shard import main; main()"
_DOWN, _UP = b"d", b"u"  # to the shard, and from it: TLS in one direction needs no turns
_PATIENCE = 30.0  # seconds to connect, and to say which line is meant
_LOOK = 1.0  # seconds between two looks whether a shard is there that has not answered yet
_SILENCE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}  # a machine that is gone is noticed
TOKEN = 32  # bytes
_READY = b""  # the first message to a shard: the line is its own


def begun(line: Connection, keep: Sequence[int]) -> subprocess.Popen[bytes]:
    """A process that serves at the other end of this line, and keeps these descriptors open."""
    return subprocess.Popen(  # noqa: S603 - this very Python
        [sys.executable, "-P", "-c", _BEGIN, str(line.fileno()), json.dumps(sys.path)],
        pass_fds=(line.fileno(), *keep),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


class Ticket(Struct, frozen=True):
    """What a shard needs to reach its run, once. Who has it can act as that shard."""

    __repr__ = object.__repr__  # token and certificate are secrets

    host: str
    port: int
    certificate: str  # PEM
    token: bytes
    versions: str = field(default_factory=lambda: versions())


def versions() -> str:
    """What must be the same on all machines: rows are cut by a hash that is DuckDB's own."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in ("retl-cli", "duckdb"))


class Served(Protocol):
    """The run's end of connections that have one token."""

    def serve(self, sock: ssl.SSLSocket, direction: bytes) -> None: ...
    def hang_up(self) -> None: ...


class Line:
    """The run's end of a line, before and while a shard has it."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.ours, self._theirs = Pipe()
        self.ended = threading.Event()
        self._taken: set[bytes] = set()
        self._turn = threading.Lock()
        self._waiting: SimpleQueue[bytes | None] = SimpleQueue()
        threading.Thread(target=self._listen, name="retl-line", daemon=True).start()

    def serve(self, sock: ssl.SSLSocket, direction: bytes) -> None:
        """Carry one direction until an end hangs up."""
        with self._turn:
            late = direction in self._taken or self.ended.is_set()
            self._taken.add(direction)
        if late:
            self.ended.wait()
            return
        try:
            for message in self._said(sock) if direction == _DOWN else _received(sock):
                if direction == _DOWN:
                    _send(sock, message)
                else:
                    self._theirs.send_bytes(message)
        finally:
            if direction == _UP or _UP not in self._taken:  # else what comes up is heard to its end
                self.hang_up()

    def _said(self, sock: ssl.SSLSocket) -> Iterator[bytes]:
        """What the run says, while somebody is there: a shard says nothing in this direction, not even that
        it ends."""
        yield _READY
        ended = poll()
        ended.register(sock, POLLIN)
        while True:
            try:
                message = self._waiting.get(timeout=_LOOK)
            except Empty:
                if ended.poll(0):
                    return
                continue
            if message is None:
                return
            yield message

    def hang_up(self) -> None:
        """End the line: the run hears that the shard is gone."""
        if not self.ended.is_set():
            self.ended.set()
            self._waiting.put(None)
            shut(self._theirs)  # not closed: another thread may be writing to it

    def _listen(self) -> None:
        """What the run says waits here, so that it never waits for a shard that has not begun."""
        with suppress(EOFError, OSError):
            while True:
                self._waiting.put(self._theirs.recv_bytes())
        self.hang_up()


class Exchange:
    """Where shards on other machines reach the runs of this process."""

    def __init__(self, host: str, bind: str, port: int = 0) -> None:
        """`host`: under which other machines reach this one; `bind`: the address to listen at; `port`: 0 for
        any. OSError if it cannot be listened at."""
        certificate, key = _certificate()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.num_tickets = 0  # nothing is sent against the direction of a connection
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(key + certificate)
            file.flush()
            self._context.load_cert_chain(file.name)
        family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        self._socket = socket.create_server((bind, port), family=family, backlog=128)
        self._host, self._port, self._certificate = host, self._socket.getsockname()[1], certificate
        self._served: dict[bytes, Served] = {}
        threading.Thread(target=self._accept, name="retl-exchange", daemon=True).start()

    def line(self) -> Line:
        """A new line, with a ticket for its other end."""
        line = Line(self._ticket())
        self._served[line.ticket.token] = line
        return line

    def ticket(self, served: Served) -> Ticket:
        """A ticket for any number of connections, which this serves."""
        made = self._ticket()
        self._served[made.token] = served
        return made

    def forget(self, line: Line) -> None:
        """Its ticket is good for nothing any more."""
        line.hang_up()
        self._served.pop(line.ticket.token, None)

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        while self._served:
            self._served.popitem()[1].hang_up()

    def _ticket(self) -> Ticket:
        return Ticket(self._host, self._port, self._certificate, secrets.token_bytes(TOKEN))

    def _accept(self) -> None:
        with suppress(OSError):  # it was closed
            while True:
                sock, _ = self._socket.accept()
                threading.Thread(target=self._welcome, args=(sock,), name="retl-line", daemon=True).start()

    def _welcome(self, plain: socket.socket) -> None:
        with suppress(OSError, EOFError), plain:
            plain.settimeout(_PATIENCE)
            _keep_alive(plain)
            with self._context.wrap_socket(plain, server_side=True) as sock:
                first = exactly(sock, TOKEN + 1)
                sock.settimeout(None)
                if served := self._served.get(first[:TOKEN]):
                    served.serve(sock, first[TOKEN:])


def attend(ticket: Ticket, stop: Stop | None = None) -> bool:
    """Be the shard of a ticket: a process on this machine serves until the line or the process ends; a stop
    ends both. False if another one has the ticket, or the run does not know it any more. OSError if the run
    cannot be reached, RuntimeError if it has other versions, Stopped."""
    if ticket.versions != versions():
        here = f"{socket.gethostname()} has {versions()}, and the run has {ticket.versions}"
        raise RuntimeError(f"{here}: install the same on all machines")
    with dialled(ticket, _DOWN) as down, stop.interrupting(lambda: shut(down)) if stop else nullcontext():
        heard = _received(down)
        if next(heard, None) != _READY:
            return False
        with dialled(ticket, _UP) as up:
            ours, theirs = Pipe()
            with theirs:
                process = begun(theirs, ())
            speaking = threading.Thread(target=_speak, args=(ours, up), daemon=True)
            speaking.start()
            with suppress(OSError):  # the process is gone
                for message in heard:
                    ours.send_bytes(message)
            shut(ours, socket.SHUT_WR)  # the process hears that its run is gone
            process.wait()
            speaking.join()
            ours.close()
    return True


def _speak(ours: Connection, up: ssl.SSLSocket) -> None:
    """Tell the run what the process says; then hang up."""
    with suppress(EOFError, OSError):
        while True:
            _send(up, ours.recv_bytes())
    with suppress(OSError):
        up.shutdown(socket.SHUT_RDWR)


def dialled(ticket: Ticket, direction: bytes) -> ssl.SSLSocket:
    """A connection to a run. OSError if it cannot be reached."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # this very certificate is asked for
    context.load_verify_locations(cadata=ticket.certificate)
    plain = socket.create_connection((ticket.host, ticket.port), _PATIENCE)
    _keep_alive(plain)
    sock = context.wrap_socket(plain)
    sock.sendall(ticket.token + direction)
    sock.settimeout(None)
    return sock


def shut(end: Connection | socket.socket, how: int = socket.SHUT_RDWR) -> None:
    """End a pipe or a connection, also while another thread waits at it."""
    with suppress(OSError, ValueError), socket.socket(fileno=os.dup(end.fileno())) as same:
        same.shutdown(how)


def _keep_alive(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in _SILENCE.items():
        if hasattr(socket, name):  # not on every system
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _send(sock: ssl.SSLSocket, message: bytes) -> None:
    sock.sendall(len(message).to_bytes(8, "big"))
    sock.sendall(message)


def _received(sock: ssl.SSLSocket) -> Iterator[bytes]:
    """The messages of a connection, until it ends."""
    with suppress(EOFError, OSError):
        while True:
            yield exactly(sock, int.from_bytes(exactly(sock, 8), "big"))


def exactly(sock: ssl.SSLSocket, size: int) -> bytes:
    """So many bytes. EOFError if the connection ends before."""
    found = bytearray()
    while len(found) < size:
        part = sock.recv(min(size - len(found), 1 << 20))
        if not part:
            raise EOFError
        found += part
    return bytes(found)


def _certificate() -> tuple[str, str]:
    """A new certificate and its private key, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "retl run")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    written = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    return made.public_bytes(pem).decode(), written.decode()
