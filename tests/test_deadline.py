"""Every wait has an end, encrypted or not, and plaintext stays on this machine."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from retl.model import is_loopback, needs_tls
from retl.net import tls
from retl.net.deadline import Deadline, TimedSocket, hang_up_after
from tests.test_http_client import CERTIFICATE, KEY


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3", "::1", "/var/run/postgresql"]
)
def test_this_machine_needs_no_tls(host: str) -> None:
    assert is_loopback(host)
    assert not needs_tls(host)


@pytest.mark.parametrize(
    "host", ["", "db.internal", "localhost.example.com", "10.0.0.1", "0.0.0.0", "128.0.0.1", "fe80::1"]
)
def test_every_other_needs_it_unless_plaintext_is_allowed(host: str) -> None:
    assert needs_tls(host)
    assert not needs_tls(host, allow_plaintext=True)


@pytest.fixture
def pair() -> Iterator[tuple[TimedSocket, socket.socket]]:
    here, there = socket.socketpair()
    with TimedSocket(fileno=here.detach()) as mine, there:
        yield mine, there


def drip(there: socket.socket, over: threading.Event) -> None:
    with suppress(OSError):
        while not over.wait(0.01):
            there.sendall(b".")


def for_ever(read: Callable[[], object]) -> None:
    while True:
        read()


def read_to_the_end(mine: TimedSocket, there: socket.socket) -> None:
    """Read what comes, in both ways that libraries do, from a peer that sends a byte now and then."""
    over = threading.Event()
    thread = threading.Thread(target=drip, args=[there, over], daemon=True)
    thread.start()
    try:
        for read in (lambda: mine.recv(10), lambda: mine.makefile("rb").read(1)):
            mine.wait_until(Deadline(0.1), idle=5)
            with pytest.raises(TimeoutError):
                for_ever(read)
    finally:
        over.set()
        thread.join()


def test_a_peer_that_drips_is_read_until_the_deadline(pair: tuple[TimedSocket, socket.socket]) -> None:
    read_to_the_end(*pair)


def test_a_silent_peer_is_waited_for_until_idle_is_over(pair: tuple[TimedSocket, socket.socket]) -> None:
    mine, _ = pair
    mine.wait_until(Deadline(3600), idle=0.01)
    with pytest.raises(TimeoutError):
        mine.recv(1)


def test_a_peer_that_takes_nothing_ends_a_sending(pair: tuple[TimedSocket, socket.socket]) -> None:
    mine, _ = pair
    mine.wait_until(Deadline(0.1))
    with pytest.raises(TimeoutError):
        mine.sendall(b"x" * 10_000_000)


def test_all_that_is_sent_arrives(pair: tuple[TimedSocket, socket.socket]) -> None:
    mine, there = pair
    sent = bytes(range(256)) * 10_000
    mine.wait_until(Deadline(60))
    thread = threading.Thread(target=mine.sendall, args=[sent])
    thread.start()
    with there.makefile("rb") as file:
        assert file.read(len(sent)) == sent
    thread.join()


def test_without_a_deadline_nothing_is_waited_for(pair: tuple[TimedSocket, socket.socket]) -> None:
    with pytest.raises(TimeoutError):
        pair[0].recv(1)


def test_what_a_server_says_unasked_is_seen(pair: tuple[TimedSocket, socket.socket]) -> None:
    mine, there = pair
    assert mine.is_quiet()
    there.close()
    assert not mine.is_quiet()


def test_a_library_s_own_socket_is_hung_up() -> None:
    here, there = socket.socketpair()
    with here, there:
        with hang_up_after(0.01, here.fileno()):
            assert here.recv(1) == b""
        with hang_up_after(3600, there.fileno()):
            assert there.recv(1) == b""


def test_an_encrypted_connection_keeps_its_deadline(tmp_path: Path) -> None:
    pem, authority = tmp_path / "server.pem", tmp_path / "authority.pem"
    pem.write_text(KEY + CERTIFICATE)
    authority.write_text(CERTIFICATE)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            accepted.append(server.wrap_socket(listener.accept()[0], server_side=True))

        thread = threading.Thread(target=accept)
        thread.start()
        port = listener.getsockname()[1]
        context = tls.context(str(authority))
        mine = tls.connect("127.0.0.1", port, Deadline(30), server="a server", context=context)
        thread.join()
    with mine, accepted[0]:
        read_to_the_end(mine, accepted[0])


def test_a_handshake_that_never_ends_ends() -> None:
    context = tls.context()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(TimeoutError):
            tls.connect("127.0.0.1", port, Deadline(0.1), server="a server", context=context)
