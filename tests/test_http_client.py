"""One lane against a server that misbehaves on schedule: what is said of a batch is what happened to it."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import threading
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from pydantic import ValidationError

from retl.destinations.batch import (
    ABSENT,
    UNKNOWN,
    WRITTEN,
    Batch,
    Field,
    Kind,
    Outcome,
    RowResult,
    Shape,
    SoftDelete,
)
from retl.destinations.http.adapter import HttpDestination
from retl.destinations.http.options import HttpOptions
from retl.errors import Ambiguous, DefinitionError, Poisoned, RetlError, Systemic, Unavailable
from retl.net import client
from retl.net.client import Address
from retl.net.connection import HttpConnection
from retl.values.types import Type
from tests import api as fake
from tests.api import TOKEN, Api
from tests.destinations.rows import Row, Rows
from tests.destinations.suite import VISIT

BATCH: dict[str, Any] = {
    "upsert": {
        "path": "/v1/users/batch",
        "wrap": "users",
        "row": {"id": "$id", "attributes": "$fields"},
        "max_rows": 100,
    },
    "outcome": {
        "ok": [200],
        "partial": [207],
        "rows": "positional",
        "at": "results",
        "row_ok": {"at": "status", "in": ["updated"]},
        "ref": "id",
    },
}
EVENTS = {
    "insert": {"path": "/v1/events", "wrap": "events", "max_rows": 100},
    "idempotency": {"header": "Idempotency-Key", "window": "24h"},
}
USER = {"path": "/v1/users/{id}", "row": "$fields"}
SHAPE = Shape("sync", "state", (Field("id", Type("string")),), (Field("name", Type("string")), Field("visits", Type("integer"))))  # fmt: skip
ROWS: list[Row] = [("a", "Ann", 1), ("b", "Bob", 2), ("c", "Cem", 3)]
Make = Callable[..., HttpDestination]


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as api:
        yield api


@pytest.fixture
def make(api: Api) -> Iterator[Make]:
    made: list[HttpDestination] = []

    def make(options: dict[str, Any] = BATCH, shape: Shape = SHAPE, **connection: Any) -> HttpDestination:
        given = {
            "base_url": api.url,
            "auth": {"type": "bearer", "token": TOKEN},
            "timeouts": {"connect": 5, "idle": 0.5, "total": 1},
        }
        made.append(HttpDestination(HttpOptions(connection={**given, **connection}, **options), shape))
        return made[-1]

    yield make
    for destination in made:
        destination.close()


def batch(operation: Any = "upsert", rows: list[Row] = ROWS, shape: Shape = SHAPE) -> Batch:
    return Rows(shape, rows).batch(operation)


def write(destination: HttpDestination, of: Batch) -> Outcome:
    answer = destination.write(of)
    assert isinstance(answer, Outcome)
    return answer


def kinds(outcome: Any, count: int = 3) -> list[Kind]:
    return [outcome.result(n).kind for n in range(count)]


def told(error: RetlError) -> str:
    return f"{error!r} {error} {error.hint} {''.join(traceback.format_exception(error))}"


# the schedule of faults


@pytest.mark.parametrize("status", [429, 503])
def test_a_storm_of_refusals_applies_nothing_and_passes(api: Api, make: Make, status: int) -> None:
    destination = make()
    api.faults += [fake.answer(status, "slow down", Retry_After="7"), fake.answer(status)]
    waits = []
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            destination.write(batch())
        waits.append(caught.value.retry_after)
    assert waits == [7.0, None]
    assert api.users == {}
    assert kinds(destination.write(batch())) == [Kind.WRITTEN] * 3


def test_a_500_after_the_commit_costs_nothing_where_twice_is_once(api: Api, make: Make) -> None:
    destination = make()
    api.faults.append(fake.instead(500, "{}"))
    with pytest.raises(Unavailable):
        destination.write(batch())
    assert kinds(destination.write(batch())) == [Kind.WRITTEN] * 3
    assert sorted(api.users) == ["a", "b", "c"]


@pytest.mark.parametrize("applied", [True, False])
def test_a_broken_connection_is_ambiguous_whatever_was_applied(api: Api, make: Make, applied: bool) -> None:
    destination = make()
    destination.write(batch(rows=ROWS[:1]))  # a kept connection …
    api.faults.append(fake.reset(applied=applied))
    with pytest.raises(Ambiguous):
        destination.write(batch())
    assert len(api.users) == (3 if applied else 1)
    assert len(api.seen) == 2  # … that breaks is not tried again behind anybody's back
    assert destination.resolve(batch(), None) == Outcome(UNKNOWN)
    assert kinds(destination.write(batch())) == [Kind.WRITTEN] * 3


def test_results_in_another_order_or_number_are_never_believed(api: Api, make: Make) -> None:
    destination = make()
    api.faults += [
        fake.changed(lambda content: {"results": content["results"][:-1]}),
        fake.changed(lambda content: {}),
    ]
    for _ in range(2):
        assert kinds(destination.write(batch())) == [Kind.UNKNOWN] * 3
    rules = {"rows": "listed", "at": "results", "match": {"at": "id", "to": "$id"}, "ok": [200]}
    api.faults.append(
        fake.changed(
            lambda content: {"results": [{"id": one["id"][2:]} for one in content["results"][::-1]][1:]}
        )
    )
    assert kinds(make({**BATCH, "outcome": rules}).write(batch())) == [
        Kind.WRITTEN,
        Kind.WRITTEN,
        Kind.UNKNOWN,
    ]


def test_a_bad_row_is_told_apart_and_its_name_is_not_told(api: Api, make: Make) -> None:
    outcome = write(make(), batch(rows=[ROWS[0], ("b", "Bob the Builder", -1), ROWS[2]]))
    assert outcome.result(0) == RowResult(Kind.WRITTEN, ref="u-a")
    assert outcome.result(1) == RowResult(Kind.REJECTED, "invalid", "user … has visits below zero")
    assert outcome.result(2) == RowResult(Kind.WRITTEN, ref="u-c")


def test_an_error_inside_a_200_is_no_success(api: Api, make: Make) -> None:
    rules = {"ok_when": {"at": "ok", "in": [True]}}
    destination = make({**BATCH, "outcome": rules})
    api.faults += [fake.answer(200, '{"ok": false, "error": "Ann is invalid"}')] * 2
    with pytest.raises(Poisoned) as caught:
        destination.write(batch())
    assert "Ann" not in told(caught.value)
    assert kinds(destination.write(batch(rows=ROWS[:1])), 1) == [Kind.REJECTED]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_error_and_the_token_goes_nowhere(api: Api, make: Make, status: int) -> None:
    with Api() as other:
        api.faults.append(fake.answer(status, Location=f"{other.url}/v1/users/batch"))
        with pytest.raises(Systemic):
            make().write(batch())
        assert other.seen == []


def test_a_web_page_stops_the_run(api: Api, make: Make) -> None:
    api.faults.append(fake.answer(200, "<html>Please sign in</html>", Content_Type="text/html"))
    with pytest.raises(Systemic):
        make().write(batch())


def test_an_endless_answer_is_cut_off(api: Api, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LONGEST_REPLY", 1000)
    destination = make()
    api.faults += [fake.instead(200, "x" * 1001), fake.answer(422, "x" * 1001)]
    with pytest.raises(Ambiguous):
        destination.write(batch())
    with pytest.raises(Poisoned):
        destination.write(batch())
    assert kinds(destination.write(batch())) == [Kind.WRITTEN] * 3


@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"]
)
def test_an_answer_that_drips_ends_at_the_deadline(api: Api, make: Make, head: bytes) -> None:
    """Each byte comes well within the idle timeout, so that nothing but the deadline can end it."""
    destination = make()
    api.faults.append(fake.dripping(head, 20))
    with pytest.raises(Ambiguous):
        destination.write(batch())
    assert kinds(destination.write(batch())) == [Kind.WRITTEN] * 3


def test_a_status_counts_although_its_body_broke_off(api: Api, make: Make) -> None:
    destination = make()
    api.faults.append(fake.dripping(b"HTTP/1.1 429 No\r\nRetry-After: 3\r\nContent-Length: 1000\r\n\r\n", 0))
    with pytest.raises(Unavailable) as caught:
        destination.write(batch())
    assert caught.value.retry_after == 3


# answers that HTTP allows and few servers send


def raw(*parts: bytes, close: bool = False) -> fake.Fault:
    """Process the request, and send these bytes."""

    def fault(exchange: Any) -> bool:
        exchange.perform()
        for part in parts:
            exchange.wfile.write(part)
        exchange.close_connection = close
        return True

    return fault


DONE = json.dumps({"results": [{"status": "updated", "id": f"u-{n}"} for n in "abc"]}).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % len(DONE)


def encoded(body: bytes, encoding: bytes) -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n" % (encoding, len(body))
        + body
    )


def deflated(body: bytes, bits: int) -> bytes:
    stream = zlib.compressobj(wbits=bits)
    return stream.compress(body) + stream.flush()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKS = b"".join(
    b"%x;x=y\r\n%s\r\n" % (len(DONE[n : n + 7]), DONE[n : n + 7]) for n in range(0, len(DONE), 7)
)
GZIP = gzip.compress(DONE)


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"\r\n" + DONE,
        b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"\r\n" + DONE,
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 7\r\n\r\n" * 3 + HEAD + b"\r\n" + DONE,
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 100 Go\r\n\r\nHTTP/1.1 199 ?\r\n\r\n" + CHUNKED + CHUNKS + b"0\r\n\r\n",
        CHUNKED + CHUNKS + b"0\r\nX-Checksum: abc\r\nX-More: d\r\n\r\n",
        encoded(b"\xef\xbb\xbf" + DONE, b"identity"),
        encoded(GZIP, b"gzip"),
        encoded(GZIP + gzip.compress(b"\n"), b"X-Gzip"),
        encoded(deflated(DONE, 15), b"deflate"),
        encoded(deflated(DONE, -15), b"deflate"),
        encoded(gzip.compress(GZIP), b"gzip, gzip"),
    ],
)  # fmt: skip
def test_every_form_of_an_answer_is_read_and_the_connection_kept(api: Api, make: Make, answer: bytes) -> None:
    destination = make()
    api.faults += [raw(answer), raw(answer)]
    assert kinds(write(destination, batch())) == [Kind.WRITTEN] * 3
    kept = destination._client._kept
    for _ in range(2):
        assert kinds(write(destination, batch())) == [Kind.WRITTEN] * 3
    assert destination._client._kept is kept


def test_an_answer_in_many_packets_is_one_answer(api: Api, make: Make) -> None:
    whole = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + CHUNKED + CHUNKS + b"0\r\nX: y\r\n\r\n"
    api.faults.append(raw(*(whole[n : n + 1] for n in range(len(whole)))))
    assert kinds(write(make(), batch())) == [Kind.WRITTEN] * 3


def test_without_a_length_the_end_of_the_connection_ends_the_answer(api: Api, make: Make) -> None:
    destination = make()
    for version in (b"1.0", b"1.1"):
        api.faults.append(raw(b"HTTP/%s 200 OK\r\n\r\n" % version, DONE, close=True))
        assert kinds(write(destination, batch())) == [Kind.WRITTEN] * 3


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",  # and no answer
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n" + HEAD + b"\r\n" + DONE,
        HEAD + b"\r\n" + DONE[:-1],
        CHUNKED + CHUNKS,
        CHUNKED + b"-5\r\n" + DONE,
        CHUNKED + b"zz\r\n" + DONE,
        encoded(GZIP[:-1], b"gzip"),
        encoded(GZIP[:-9], b"gzip"),
        encoded(GZIP[:20] + b"x" + GZIP[21:], b"gzip"),
        encoded(DONE, b"gzip"),
        encoded(deflated(DONE, 15)[:-1], b"deflate"),
        encoded(b"\x0b\x02\x80 not read", b"br"),
        encoded(gzip.compress(b" " * 20_000_000), b"gzip"),  # a bomb: 19 kB
        encoded(gzip.compress(gzip.compress(b" " * 50_000_000)), b"gzip, gzip"),
        b"HTTP/1.1 200 OK\r\n\r\n" + DONE[:-1],
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    ],
)
def test_an_answer_that_cannot_be_read_is_ambiguous(api: Api, make: Make, answer: bytes) -> None:
    destination = make()
    api.faults.append(raw(answer, close=True))
    with pytest.raises(Ambiguous):
        destination.write(batch())
    assert kinds(write(destination, batch())) == [Kind.WRITTEN] * 3


@pytest.mark.parametrize(
    ("head", "again"),
    [(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"), (CHUNKED + CHUNKS + b"0\r\n", b"X-Trailer: y\r\n")],
)
def test_bytes_that_never_stop_coming_end_at_the_deadline(
    api: Api, make: Make, head: bytes, again: bytes
) -> None:
    def endless(exchange: Any) -> bool:
        with suppress(OSError):  # the client closed the connection
            exchange.wfile.write(head)
            while True:
                exchange.wfile.write(again)
        exchange.close_connection = True
        return True

    api.faults.append(endless)
    with pytest.raises(Ambiguous):
        make().write(batch())


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_may_have_no_body_has_none(api: Api, make: Make, status: int) -> None:
    destination = make({"upsert": USER, "outcome": {"ok": [204], "rows": "none"}})
    head = b"HTTP/1.1 %d X\r\nContent-Length: 9\r\nContent-Encoding: gzip\r\n\r\n" % status
    api.faults.append(raw(head))
    if status == 304:
        with pytest.raises(Systemic):
            destination.write(batch(rows=ROWS[:1]))
    else:
        assert write(destination, batch(rows=ROWS[:1])) == Outcome(WRITTEN)
        api.faults.append(raw(head + b"unwanted!"))  # bytes of no answer are never the next answer
        assert write(destination, batch(rows=ROWS[:1])) == Outcome(WRITTEN)
    api.faults.append(fake.answer(204))
    assert write(destination, batch(rows=ROWS[1:2])) == Outcome(WRITTEN)


def test_an_encoding_that_cannot_be_read_is_named(api: Api, make: Make) -> None:
    api.faults.append(raw(encoded(b"\x0b\x02\x80", b"br")))
    with pytest.raises(Ambiguous, match="its encoding 'br' cannot be read"):
        make().write(batch())
    rules = {"rows": "none", "ok": [200]}  # the body says nothing then
    api.faults.append(raw(encoded(GZIP, b"gzip")))
    assert write(make({**BATCH, "outcome": rules}), batch()) == Outcome(WRITTEN)


def test_a_kept_connection_that_the_server_closed_is_replaced(api: Api, make: Make) -> None:
    destination = make()
    api.faults.append(fake.answer(503, Connection="close"))
    with pytest.raises(Unavailable):
        destination.write(batch())
    assert kinds(destination.write(batch())) == [Kind.WRITTEN] * 3


def test_nobody_there_means_nothing_was_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for host in (f"127.0.0.1:{port}", "nowhere.invalid"):
        connection = {"base_url": f"http://{host}", "allow_plaintext": True, "auth": {"type": "none"}}
        destination = HttpDestination(HttpOptions(connection=connection, **BATCH), SHAPE)
        for attempt in (lambda: destination.check(VISIT), lambda: destination.write(batch())):  # noqa: B023
            with pytest.raises(Unavailable) as caught:
                attempt()
            assert "nothing was sent" in caught.value.message


# credentials


@pytest.mark.parametrize(
    ("auth", "header"),
    [
        ({"type": "bearer", "token": TOKEN}, ("authorization", f"Bearer {TOKEN}")),
        ({"type": "basic", "username": "u", "password": "p:q"}, ("authorization", "Basic dTpwOnE=")),
        ({"type": "header", "name": "X-Api-Key", "value": "k3y"}, ("x-api-key", "k3y")),
    ],
)
def test_credentials_are_sent_and_shown_nowhere(api: Api, make: Make, auth: Any, header: Any) -> None:
    destination = make(auth=auth, headers={"X-Tenant": "tenant-secret"})
    api.faults.append(fake.answer(401, json.dumps({"error": f"{header[1]} tenant-secret no"})))
    with pytest.raises(Systemic) as caught:
        destination.write(batch())
    _, _, headers, _ = api.seen[0]
    assert headers[header[0]] == header[1]
    assert headers["x-tenant"] == "tenant-secret"
    shown = f"{told(caught.value)} {destination.options!r} {destination.capabilities!r} {destination.preview(batch())!r}"
    for secret in (TOKEN, "p:q", "dTpwOnE=", "k3y", "tenant-secret"):
        assert secret not in shown


def test_a_secret_in_the_query_stays_out_of_everything_else(api: Api, make: Make) -> None:
    upsert = {**BATCH["upsert"], "path": "/v1/users/batch?dry=0"}
    auth = {"type": "query", "name": "api key", "value": "s&cr=t"}
    destination = make({**BATCH, "upsert": upsert}, auth=auth)
    with pytest.raises(Systemic) as caught:
        destination.write(batch())
    assert api.seen[0][1] == "/v1/users/batch?dry=0&api%20key=s%26cr%3Dt"
    shown = f"{told(caught.value)} {destination.capabilities!r} {destination.preview(batch())!r}"
    assert "s%26cr" not in shown
    assert "s&cr" not in shown
    assert destination.capabilities.object == f"{api.url}/v1/users/batch"


def test_check_asks_with_the_credential(api: Api, make: Make) -> None:
    make().check(VISIT)
    assert api.seen == []
    asking = {**BATCH, "check": {"path": "/v1/me"}}
    make(asking).check(VISIT)
    assert [(method, path) for method, path, _, _ in api.seen] == [("GET", "/v1/me")]
    with pytest.raises(Systemic):
        make(asking, auth={"type": "none"}).check(VISIT)
    for status, error in ((503, Unavailable), (500, Unavailable), (400, Systemic), (404, Systemic)):
        api.faults.append(fake.answer(status))
        with pytest.raises(error):
            make(asking).check(VISIT)


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "http://api.example.com"},
        {"base_url": "ftp://api.example.com"},
        {"base_url": "https://user:hunter2@api.example.com"},
        {"base_url": "https://api.example.com/?key=hunter2"},
        {"base_url": "https://api.example.com/../x"},
        {"base_url": "https://api.example.com/a b"},
        {"base_url": "https://"},
        {"auth": {"type": "bearer", "token": "hunter2\r\nX: y"}},
        {"auth": {"type": "bearer", "token": ""}},
        {"auth": {"type": "header", "name": "X Y", "value": "hunter2"}},
        {"headers": {"X": "hunter2\n"}},
        {"timeout": 3},
    ],
)
def test_connections_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        HttpConnection(**{"base_url": "https://api.example.com", **wrong})
    told = str(caught.value.errors(include_input=False, include_url=False, include_context=False))
    assert "hunter2" not in told


def test_an_address_is_told_without_its_usual_port() -> None:
    told = {
        "https://api.example.com/v1/": ("https://api.example.com", "/v1"),
        "https://api.example.com:443": ("https://api.example.com", ""),
        "http://127.0.0.1:8080/a": ("http://127.0.0.1:8080", "/a"),
        "http://[::1]:80": ("http://[::1]", ""),
    }
    assert {url: (str(Address.parse(url)), Address.parse(url).prefix) for url in told} == told


# certificates

# A key and a certificate for 127.0.0.1 that nobody's authority signed.
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgnB/sn52UDdTajdyS
sL12UNirCb985gjV23uwHnCray2hRANCAAQMjZ/HIvr1pmEBwV1wKkEKC0MxXoIx
Mi5QZN7m7OPaFfFirtWUKXWs15gzJmg0rOpnsRlIfQUIizNjD9MbUUUV
-----END PRIVATE KEY-----
"""
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBjjCCATagAwIBAgIUHZkhw99xxmZ61p7cFKQ1j3QMnIcwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJMTI3LjAuMC4xMCAXDTI2MTEyMTAyNTY1NFoYDzIxMjYxMDI4
MDI1NjU0WjAUMRIwEAYDVQQDDAkxMjcuMC4wLjEwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQMjZ/HIvr1pmEBwV1wKkEKC0MxXoIxMi5QZN7m7OPaFfFirtWUKXWs
15gzJmg0rOpnsRlIfQUIizNjD9MbUUUVo2QwYjAdBgNVHQ4EFgQUSrTFMtYiOHsp
1Yko8qyUgfMJIgwwHwYDVR0jBBgwFoAUSrTFMtYiOHsp1Yko8qyUgfMJIgwwDwYD
VR0TAQH/BAUwAwEB/zAPBgNVHREECDAGhwR/AAABMAoGCCqGSM49BAMCA0YAMEMC
HwzUxh8iAMOqqz0Zqc+mFtFaB3avCenHBUlxgjAkziQCIHeC4iGaC1hGxYvfvKQE
09txyL8YN6FlZniJ7cCe3hcP
-----END CERTIFICATE-----
"""


@pytest.fixture
def tls_port(tmp_path: Path) -> Iterator[int]:
    """A server that shows the certificate and answers 204 to everything, once per connection."""
    pem = tmp_path / "server.pem"
    pem.write_text(KEY + CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(connection, server_side=True) as secured:
                    secured.recv(65536)
                    secured.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            except OSError:
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=[listener], daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def test_an_unverified_certificate_stops_the_run(
    make: Make, tls_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = {"upsert": {"method": "DELETE", "path": "/v1/users/{id}"}}
    secured = f"https://127.0.0.1:{tls_port}"
    for attempt in (
        lambda: make(single, base_url=secured).check(VISIT),
        lambda: make(single, base_url=secured).write(batch(rows=ROWS[:1])),
    ):
        with pytest.raises(Systemic) as caught:
            attempt()
        assert caught.value.code == "TLS_UNVERIFIED"
    authority = tmp_path / "authority.pem"
    authority.write_text(CERTIFICATE)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    make(single, base_url=secured).check(VISIT)
    assert make(single, base_url=secured).write(batch(rows=ROWS[:1])) == Outcome(WRITTEN)
    wrong_name = make(single, base_url=f"https://localhost:{tls_port}")
    with pytest.raises(Systemic):
        wrong_name.check(VISIT)


# keys, deletes, updates


def test_the_same_key_and_bytes_again_settle_what_became_of_an_insert(api: Api, make: Make) -> None:
    shape = replace(SHAPE, write="append")
    destination = make(EVENTS, shape)
    assert destination.capabilities.resolves
    assert destination.capabilities.key_window == 86400
    assert not destination.capabilities.idempotent
    first = batch("append")
    prepared = replace(first, request=destination.preview(first), idempotency_key="key-1")
    api.faults.append(fake.reset(applied=True))
    with pytest.raises(Ambiguous):
        destination.write(prepared)
    recovered = replace(prepared, rows=Rows(shape, [("z", "later", 9)] * 3))
    assert kinds(make(EVENTS, shape).resolve(recovered, None)) == [Kind.WRITTEN] * 3
    assert [event["id"] for event in api.events] == ["a", "b", "c"]
    assert api.seen[0][3] == api.seen[1][3]
    assert {headers["idempotency-key"] for _, _, headers, _ in api.seen} == {"key-1"}


def test_settling_without_evidence_stays_unknown(api: Api, make: Make) -> None:
    shape = replace(SHAPE, write="append")
    destination = make(EVENTS, shape)
    first = batch("append")
    assert destination.resolve(first, None) == Outcome(UNKNOWN)
    assert api.seen == []
    prepared = replace(first, request=destination.preview(first), idempotency_key="key-1")
    api.faults.append(fake.answer(409, '{"error": "still at it"}'))
    assert destination.resolve(prepared, None) == Outcome(UNKNOWN)
    api.faults.append(fake.answer(500))
    with pytest.raises(Ambiguous):
        destination.resolve(prepared, None)


def test_prepared_bytes_go_to_no_other_server(api: Api, make: Make) -> None:
    destination = make()
    prepared = replace(batch(), request=destination.preview(batch()).replace(b"127.0.0.1", b"127.0.0.2"))
    with pytest.raises(Systemic):
        destination.write(prepared)
    assert api.seen == []


def test_what_is_shown_is_what_is_sent(api: Api, make: Make) -> None:
    upsert = {**BATCH["upsert"], "headers": {"X-Revision": "7"}}
    destination = make({**BATCH, "upsert": upsert}, base_url=f"{api.url}/v1")
    shown = destination.preview(batch())
    with pytest.raises(Systemic):  # /v1/v1 is nowhere
        destination.write(batch())
    method, path, headers, body = api.seen[0]
    head = [
        f"{method} {path}",
        *(f"{name}: {headers[name.lower()]}" for name in ("Host", "X-Revision", "Content-Type")),
    ]
    assert shown == "\r\n".join(head).encode() + b"\r\n\r\n" + body


def test_deleting_what_is_gone_is_done_and_updating_it_stays_open(api: Api, make: Make) -> None:
    options = {
        "update": {"method": "PATCH", **USER},
        "delete": {"method": "DELETE", "path": "/v1/users/{id}"},
    }
    destination = make(options, replace(SHAPE, write="update_only", deletes="delete"))
    one = ROWS[:1]
    assert destination.write(batch("update_only", one)) == Outcome(ABSENT)
    api.users["a"] = {}
    assert destination.write(batch("update_only", one)) == Outcome(WRITTEN)
    assert destination.write(batch("delete", one)) == Outcome(WRITTEN)
    assert api.users == {}
    assert destination.write(batch("delete", one)) == Outcome(WRITTEN)
    api.faults.append(fake.answer(404, "<html>", Content_Type="text/html"))
    with pytest.raises(Systemic):
        destination.write(batch("delete", one))
    strict = {**options, "outcome": {"cases": [{"status": [404], "means": "systemic"}]}}
    with pytest.raises(Systemic):
        make(strict, destination.shape).write(batch("delete", one))


def test_a_soft_delete_writes_its_values_and_no_others(api: Api, make: Make) -> None:
    api.users["a"] = {"name": "Ann", "visits": 1}
    shape = replace(SHAPE, deletes=SoftDelete({"name": None, "visits": 0}))
    options = {"upsert": {**USER, "method": "PUT"}, "delete": {"method": "DELETE", "path": "/v1/users/{id}"}}
    assert make(options, shape).write(batch("delete", ROWS[:1])) == Outcome(WRITTEN)
    assert api.users == {"a": {"name": None, "visits": 0}}


def test_a_row_that_cannot_be_sent_is_rejected_alone(api: Api, make: Make) -> None:
    destination = make({"upsert": {**USER, "method": "PUT"}})
    assert destination.capabilities.max_rows == 1
    with pytest.raises(Poisoned):
        destination.write(batch())
    outcome = write(destination, batch(rows=[("..", "Ann", 1)]))
    assert outcome.result(0).kind is Kind.REJECTED
    assert outcome.result(0).code == "NO_PATH"
    assert api.seen == []


@pytest.mark.parametrize(
    ("options", "shape", "code"),
    [
        ({"delete": {"path": "/x"}}, SHAPE, "HTTP_OPERATION"),
        (BATCH, replace(SHAPE, deletes="delete"), "HTTP_OPERATION"),
        (BATCH, replace(SHAPE, write="append"), "HTTP_OPERATION"),
        ({"upsert": {"path": "/x/{nobody}"}}, SHAPE, "HTTP_PLACEHOLDER"),
        (
            {"upsert": {"path": "/x", "wrap": "x"}, "outcome": {"rows": "listed", "match": {"to": "$name"}}},
            SHAPE,
            "HTTP_MATCH",
        ),
    ],
)
def test_a_sync_that_cannot_work_is_refused_without_network(
    make: Make, options: Any, shape: Shape, code: str
) -> None:
    with pytest.raises(DefinitionError) as caught:
        make(options, shape)
    assert caught.value.code == code


def test_capabilities_know_what_shapes_the_bytes(make: Make) -> None:
    shaping = make().capabilities.shaping
    assert shaping == make(headers={"X": "y"}, timeouts={"total": 9}).capabilities.shaping
    smaller = {**BATCH, "upsert": {**BATCH["upsert"], "max_rows": 7, "max_bytes": 9}, "outcome": {}}
    assert make(smaller).capabilities.shaping == shaping
    other = {**BATCH, "upsert": {**BATCH["upsert"], "row": "$row"}}
    assert make(other).capabilities.shaping != shaping
    assert json.loads(json.dumps(shaping)) == shaping
