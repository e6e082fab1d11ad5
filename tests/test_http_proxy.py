"""Requests go through a forward proxy where a connection asks for one, and otherwise never."""

from __future__ import annotations

import select
import socket
import ssl
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from retl.destinations.batch import WRITTEN, Outcome
from retl.destinations.dataverse.adapter import DataverseConnection
from retl.destinations.http.adapter import HttpDestination
from retl.destinations.http.options import HttpOptions
from retl.destinations.presets import read as preset
from retl.errors import Ambiguous, RetlError, Systemic, Unavailable
from retl.net.connection import HttpConnection
from retl.net.proxy import Proxy, on_the_way
from retl.observe import redact
from tests import inprocess
from tests.api import TOKEN, Api
from tests.destinations.suite import VISIT
from tests.test_http_client import CERTIFICATE, KEY, ROWS, SHAPE, batch, told

UPSERT = {"upsert": {"path": "/v1/users/{id}", "row": "$fields", "method": "PUT"}}
ONE = ROWS[:1]


class ForwardProxy:
    """Relays what it is asked for; `answer` is sent instead. `asked` are the first lines and credentials."""

    def __init__(self, context: ssl.SSLContext | None = None, answer: bytes | None = None) -> None:
        self.context, self.answer = context, answer
        self.asked: list[tuple[str, str | None]] = []
        self.relayed = b""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self.port}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        with suppress(OSError):
            while True:
                peer = self.listener.accept()[0]
                threading.Thread(target=self.handle, args=[peer], daemon=True).start()

    def handle(self, peer: socket.socket) -> None:
        with suppress(OSError):
            client = self.context.wrap_socket(peer, server_side=True) if self.context else peer
            with client:
                while self.one(client):
                    pass

    def one(self, client: socket.socket) -> bool:
        """Serve one request; whether the connection stays."""
        head = b""
        while b"\r\n\r\n" not in head:
            if not (data := client.recv(65536)):
                return False
            head += data
        first, *lines = head.partition(b"\r\n\r\n")[0].decode().split("\r\n")
        given = dict(line.split(": ", 1) for line in lines)
        self.asked.append((first, given.get("Proxy-Authorization")))
        if self.answer is not None:
            client.sendall(self.answer)
            return False
        method, target, _ = first.split(" ")
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            with socket.create_connection((host, int(port))) as server:
                client.sendall(b"HTTP/1.1 200 Connection established\r\nVia: p\r\n\r\n")
                self.relay(client, server)
            return False
        return self.forward(client, head, target)

    def forward(self, client: socket.socket, head: bytes, target: str) -> bool:
        server_name, _, path = target.removeprefix("http://").partition("/")
        host, _, port = server_name.partition(":")
        with socket.create_connection((host, int(port))) as server:
            self.relayed += head
            server.sendall(head.replace(target.encode(), f"/{path}".encode(), 1))
            client.sendall(server.recv(65536))
        return True

    def relay(self, client: socket.socket, server: socket.socket) -> None:
        while True:
            waiting = isinstance(client, ssl.SSLSocket) and client.pending()
            ready = [client] if waiting else select.select([client, server], [], [])[0]
            reads, writes = (client, server) if client in ready else (server, client)
            data = reads.recv(65536)
            if not data:
                return
            self.relayed += data
            writes.sendall(data)

    def close(self) -> None:
        self.listener.close()


@pytest.fixture
def secured(tmp_path: Path) -> ssl.SSLContext:
    """A server's side of TLS for 127.0.0.1."""
    pem = tmp_path / "server.pem"
    pem.write_text(KEY + CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = tmp_path / "authority.pem"
    authority.write_text(CERTIFICATE)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as api:
        yield api


@pytest.fixture
def tls_api(secured: ssl.SSLContext) -> Iterator[Api]:
    with Api() as api:
        listener = api._server.socket
        api._server.socket = secured.wrap_socket(listener, server_side=True)
        yield api


def to(url: str, **connection: Any) -> HttpDestination:
    given = {
        "base_url": url,
        "auth": {"type": "bearer", "token": TOKEN},
        "timeouts": {"connect": 5, "total": 9},
    }
    return HttpDestination(HttpOptions(connection={**given, **connection}, **UPSERT), SHAPE)


def test_a_server_without_tls_is_asked_for_by_its_whole_address(api: Api) -> None:
    with closing(ForwardProxy()) as proxy, closing(to(api.url, proxy=proxy.url)) as destination:
        for _ in range(2):
            assert destination.write(batch(rows=ONE)) == Outcome(WRITTEN)
        assert proxy.asked == [(f"PUT {api.url}/v1/users/a HTTP/1.1", None)] * 2
    assert api.users == {"a": {"name": "Ann", "visits": 1}}


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("encrypted", [False, True])
def test_a_server_with_tls_is_reached_through_a_tunnel_that_sees_nothing(
    tls_api: Api, secured: ssl.SSLContext, encrypted: bool
) -> None:
    url = tls_api.url.replace("http:", "https:")
    with closing(ForwardProxy(secured if encrypted else None)) as proxy:
        with closing(to(url, proxy=proxy.url.replace("://", "://ann:p%40ss-canary@"))) as destination:
            destination.check(VISIT)
            for _ in range(3):
                assert destination.write(batch(rows=ONE)) == Outcome(WRITTEN)
            big = [("b", "x" * 300_000, 1)]
            assert destination.write(batch(rows=big)) == Outcome(WRITTEN)
        (first, credential), *_ = proxy.asked
        assert first == f"CONNECT 127.0.0.1:{tls_api.port} HTTP/1.1"
        assert credential is not None
        assert b64decode(credential.removeprefix("Basic ")) == b"ann:p@ss-canary"
        assert len(proxy.asked) == 2  # the check, and one kept connection for all writes
        assert TOKEN.encode() not in proxy.relayed
    assert len(tls_api.users["b"]["name"]) == 300_000


@pytest.mark.parametrize("encrypted", [False, True])
def test_the_certificate_that_counts_is_the_servers(
    tls_api: Api, secured: ssl.SSLContext, encrypted: bool
) -> None:
    url = tls_api.url.replace("http:", "https:")
    with closing(ForwardProxy(secured if encrypted else None)) as proxy:
        with closing(to(url, proxy=proxy.url)) as destination, pytest.raises(Systemic) as caught:
            destination.write(batch(rows=ONE))
        assert caught.value.code == "TLS_UNVERIFIED"
        assert ("the proxy" in caught.value.message) is encrypted
    assert tls_api.users == {}


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(
    ("answer", "error", "code", "said"),
    [
        (b"HTTP/1.1 407 Auth\r\nProxy-Authenticate: Basic\r\n\r\n", Systemic, "PROXY_REFUSED", "407 Proxy Auth"),
        (b"HTTP/1.1 403 secret words\r\n\r\n<html>", Systemic, "PROXY_REFUSED", "403 Forbidden"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://x/\r\n\r\n", Systemic, "PROXY_REFUSED", "302 Found"),
        (b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\n\r\n", Unavailable, "PROXY_UNREACHED", "503 Service"),
        (b"HTTP/1.1 502 Bad\r\n\r\n", Unavailable, "PROXY_UNREACHED", "502 Bad Gateway"),
        (b"SSH-2.0\r\n", Unavailable, "PROXY_UNREACHED", "did not answer"),
        (b"", Unavailable, "PROXY_UNREACHED", "did not answer"),
        (b"HTTP/1.1 200 OK\r\n\r\nnot TLS", Unavailable, "HTTP_UNREACHED", "cannot be reached"),
    ],
)  # fmt: skip
def test_a_proxy_that_refuses_is_one_sentence_and_nothing_is_in_doubt(
    answer: bytes, error: type[RetlError], code: str, said: str
) -> None:
    with closing(ForwardProxy(answer=answer)) as proxy:
        address = proxy.url.replace("://", "://ann:pw-canary@")
        with closing(to("https://127.0.0.1:9", proxy=address)) as destination, pytest.raises(error) as caught:
            destination.write(batch(rows=ONE))
        assert caught.value.code == code
        assert said in caught.value.message
        assert "nothing was sent" in caught.value.message
        assert "canary" not in told(caught.value)
        assert "secret words" not in told(caught.value)
        if isinstance(caught.value, Unavailable) and said.startswith("503"):
            assert caught.value.retry_after == 7


def test_a_proxy_that_is_not_there_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    said = r"the proxy .* cannot be reached, nothing was sent"
    nowhere = to("https://127.0.0.1:9", proxy=f"http://127.0.0.1:{port}")
    with closing(nowhere) as destination, pytest.raises(Unavailable, match=said) as caught:
        destination.write(batch(rows=ONE))
    assert caught.value.code == "PROXY_UNREACHED"


@pytest.mark.usefixtures("trusted")
def test_a_tunnel_that_breaks_after_the_request_is_ambiguous(tls_api: Api) -> None:
    from tests.api import reset

    url = tls_api.url.replace("http:", "https:")
    with closing(ForwardProxy()) as proxy, closing(to(url, proxy=proxy.url)) as destination:
        destination.write(batch(rows=ONE))
        tls_api.faults.append(reset(applied=True))
        with pytest.raises(Ambiguous):
            destination.write(batch(rows=ONE))


def test_a_token_takes_the_same_way(api: Api) -> None:
    auth = {
        "type": "oauth2", "token_url": f"{api.url}/token", "client_id": "me", "client_secret": "s3cret",
    }  # fmt: skip
    with closing(ForwardProxy()) as proxy, closing(to(api.url, proxy=proxy.url, auth=auth)) as destination:
        with pytest.raises(Systemic, match="gave no token"):
            destination.write(batch(rows=ONE))
        assert proxy.asked == [(f"POST {api.url}/token HTTP/1.1", None)]


# settings


def test_the_environment_counts_only_where_it_is_asked_for(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(ForwardProxy()) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        with closing(to(api.url)) as destination:
            destination.write(batch(rows=ONE))
        assert proxy.asked == []
        with closing(to(api.url, proxy="environment")) as destination:
            destination.write(batch(rows=ONE))
        assert len(proxy.asked) == 1
        for none in ("127.0.0.1", "example.com,127.0.0.1", f"127.0.0.1:{api.port}", "*"):
            monkeypatch.setenv("NO_PROXY", none)
            monkeypatch.setenv("no_proxy", none)
            with closing(to(api.url, proxy="environment")) as destination:
                destination.write(batch(rows=ONE))
        assert len(proxy.asked) == 1


def test_each_kind_of_server_has_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    from pydantic import SecretStr

    from retl.net.client import Address

    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "proxy.internal:3128")
    monkeypatch.setenv("NO_PROXY", ".corp.example")
    setting = SecretStr("environment")
    assert on_the_way(setting, Address.parse("https://api.example.com")) == Proxy(
        "http", "proxy.internal", 3128
    )
    assert on_the_way(setting, Address.parse("https://api.corp.example")) is None
    assert on_the_way(setting, Address.parse("http://127.0.0.1:1")) is None
    monkeypatch.setenv("HTTPS_PROXY", "socks5://u:pw-canary@proxy.internal")
    with pytest.raises(Systemic, match="HTTPS_PROXY in the environment cannot be used") as caught:
        on_the_way(setting, Address.parse("https://api.example.com"))
    assert "canary" not in told(caught.value)


@pytest.mark.parametrize(
    "wrong",
    ["socks5://proxy:1080", "proxy:3128", "http://", "http://u:canary@proxy/path", "http://proxy:99999",
     "http://u:canary@proxy\r\nX: y", "http://u:canary@[::1", "Environment", "http://proxy/?canary"],
)  # fmt: skip
def test_a_proxy_that_cannot_work_is_refused(wrong: str) -> None:
    with pytest.raises(ValidationError, match="a proxy looks like") as caught:
        HttpConnection(base_url="https://api.example.com", proxy=wrong)
    shown = str(caught.value.errors(include_input=False, include_url=False, include_context=False))
    assert "canary" not in shown


def test_the_password_of_a_proxy_is_shown_nowhere() -> None:
    with inprocess.own_state():
        proxy = Proxy.parse("http://ann:p%40ss-canary@proxy.internal:3128")
        connection = HttpConnection(
            base_url="https://api.example.com", proxy="http://ann:p%40ss-canary@proxy.internal:3128"
        )
        assert str(proxy) == "http://proxy.internal:3128"
        assert "canary" not in f"{proxy!r} {connection!r}"
        sent = proxy.headers["Proxy-Authorization"]
        said = redact.redact(f"{sent} p@ss-canary p%40ss-canary")
        assert "canary" not in said
        assert sent.removeprefix("Basic ") not in said


def test_every_type_with_a_client_takes_a_proxy() -> None:
    salesforce = preset("hubspot").destination.Connection
    made = salesforce.model_validate({"token": "t0ken", "proxy": "http://proxy.internal:3128"})
    assert made.http.proxy is not None  # type: ignore[attr-defined]
    dataverse = DataverseConnection(
        org="a.example.com", tenant="t", client_id="c", client_secret="s", proxy="environment"
    )
    assert dataverse.http.proxy is not None
