"""The promises over SMTP, into a real mail server: one message per row, and nothing a value could add to it."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from retl.destinations.api import Destination
from retl.destinations.batch import Field, Kind, RowResult, Shape
from retl.destinations.smtp.adapter import Smtp, SmtpConnection, SmtpOptions
from retl.errors import Ambiguous, DefinitionError, Systemic, Unavailable
from retl.values.types import Type
from tests.clock import waited
from tests.destinations.rows import Row, Rows
from tests.destinations.suite import CANARY, HOSTILE, VISIT, Contents, Suite, Target, deliver, kinds
from tests.destinations.test_redis import certificate
from tests.mailserver import PASSWORD, USER, MailServer
from tests.proxy import Proxy

__all__ = ["certificate"]  # a fixture
TEXT = Type("string")
SHAPE = Shape("mail", "state-1", (Field("id", TEXT),), (Field("name", TEXT),), "append")
ROW: Row = ("k1", "Ann")


class Strict(MailServer):
    """Refuses a message whose `visits` are below zero, and repeats its name, as careless servers do."""

    def judge(self, message: EmailMessage) -> str | None:
        fields = json.loads(body_of(message))
        return f"554 5.6.0 no mail for {fields['name']}" if (fields.get("visits") or 0) < 0 else None


def body_of(message: EmailMessage, kind: str = "plain") -> str:
    part = message.get_body((kind,))
    assert part is not None
    content: str = part.get_content()
    return content.replace("\r\n", "\n").removesuffix("\n")


class MailTarget(Target):
    counts_all = False
    type = "smtp"
    write = "append"
    commit = b"\r\n.\r\n"

    def __init__(self, server: MailServer, proxy: Proxy) -> None:
        self.server, self.proxy = server, proxy

    def make(self, shape: Shape, *, secret: str | None = None, **given: Any) -> Destination[Any]:
        templates = {
            "from": "Reports <reports@example.com>",
            "to": "someone@example.org",
            "subject": "{id}",
            "body": "{$fields}",
        }
        return Smtp(
            SmtpOptions(
                connection={
                    "host": "127.0.0.1",
                    "port": self.proxy.port,
                    "tls": "none",
                    "user": USER,
                    "password": secret or PASSWORD,
                    "connect_timeout": 1,
                    "timeout": 1,
                },
                **{**templates, **given},
            ),
            shape,
        )

    def contents(self) -> Contents:
        return {
            (message["subject"],): json.loads(body_of(message), parse_float=Decimal)
            for _, _, message in self.server.taken
        }

    def poison(self, row: Row) -> Row:
        return (*row[:-1], -1)

    def forbid(self) -> None:
        self.server.forbidden = True

    def annotate(self, key: Row) -> Callable[[], bool] | None:
        return None


class TestSmtp(Suite):
    @pytest.fixture
    def target(self) -> Iterator[Target]:
        with Strict() as server, Proxy("127.0.0.1", server.port) as proxy:
            yield MailTarget(server, proxy)


@pytest.fixture
def target() -> Iterator[MailTarget]:
    with MailServer() as server, Proxy("127.0.0.1", server.port) as proxy:
        yield MailTarget(server, proxy)


Send = Callable[..., list[RowResult]]


@pytest.fixture
def send(target: MailTarget) -> Iterator[Send]:
    """What becomes of these rows under these templates."""
    made = []

    def send(*rows: Row, run_id: str = "run-1", **templates: Any) -> list[RowResult]:
        made.append(target.make(SHAPE, **{"body": "Hello {name}", **templates}))
        return deliver(made[-1], Rows(SHAPE, rows or [ROW]).batch("append", run_id=run_id))

    yield send
    for destination in made:
        destination.close()


# messages


def test_a_message_is_what_the_templates_say(target: MailTarget, send: Send) -> None:
    templates = {
        "to": "{name} <{id}@example.org>",
        "subject": "For {name} {{sic}}",
        "reply_to": "no@example.com",
    }
    assert kinds(send(("ann", 'Änne, Dr. "A"'), **templates)) == [Kind.WRITTEN]
    ((sender, recipients, message),) = target.server.taken
    assert (sender, recipients) == ("reports@example.com", ["ann@example.org"])
    assert message["from"] == "Reports <reports@example.com>"
    (to,) = message["to"].addresses
    assert (to.display_name, to.addr_spec) == ('Änne, Dr. "A"', "ann@example.org")
    assert message["subject"] == 'For Änne, Dr. "A" {sic}'
    assert message["reply-to"] == "no@example.com"
    assert message["date"].datetime.isoformat() == "2026-11-21T06:00:00+00:00"
    assert body_of(message) == 'Hello Änne, Dr. "A"'
    assert message.get_content_type() == "text/plain"


@pytest.mark.parametrize("value", [text for text in HOSTILE if len(text) < 1000], ids=ascii)
def test_a_value_adds_no_header_no_recipient_and_no_markup(
    target: MailTarget, send: Send, value: str
) -> None:
    templates = {"subject": "<{name}>", "to": "{name} <a@example.org>", "html": "<p>{name}</p>"}
    (result,) = send(("k", value), body="{name}.", **templates)
    for _, recipients, message in target.server.taken:
        assert recipients == ["a@example.org"]
        assert [address.addr_spec for address in message["to"].addresses] == ["a@example.org"]
        assert set(message.keys()) == {
            "Message-ID", "From", "To", "Subject", "Date", "Auto-Submitted", "MIME-Version", "Content-Type"
        }  # fmt: skip
        assert message["subject"] == f"<{value}>"
        assert body_of(message) == f"{value}."
        assert body_of(message, "html").count("<") == 2
    has_control = any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in value)
    assert result.kind is (Kind.REJECTED if has_control else Kind.WRITTEN)
    assert bool(target.server.taken) is not has_control


@pytest.mark.parametrize(
    "address", ["", "nobody", "a@b@c", "a@x.io, b@x.io", "a b@x.io", "a@x.io>", "é@x.io", "a@x..io", "<a@x.io>",
                "a@x.io\nBcc: b@x.io", f"{'a' * 65}@x.io"],
)  # fmt: skip
def test_what_is_no_address_rejects_its_row_alone(target: MailTarget, send: Send, address: str) -> None:
    results = send(("k1", address), ("k2", "ann@example.org"), to="{name}", body="Hello")
    assert kinds(results) == [Kind.REJECTED, Kind.WRITTEN]
    assert results[0].code in ("MAIL_ADDRESS", "MAIL_CONTROL")
    assert [recipients for _, recipients, _ in target.server.taken] == [["ann@example.org"]]


def test_a_resend_carries_the_same_message_id_and_another_row_another(target: MailTarget, send: Send) -> None:
    send(ROW, ("k2", "Bob"))
    send(ROW, run_id="run-2")
    first, other, again = [message["message-id"] for _, _, message in target.server.taken]
    assert first == again != other
    assert first.endswith("@example.com>")


def test_lines_that_begin_with_a_dot_keep_it(target: MailTarget, send: Send) -> None:
    send(("k", "..\n.\n.end"), body="{name}")
    assert body_of(target.server.taken[0][2]) == "..\n.\n.end"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"to": "{email"}, "brace"),
        ({"to": "a@x.io, b@x.io"}, "not an address"),
        ({"from": "nobody"}, "not an address"),
        ({"from": "A <a@x.io> B"}, "looks like"),
        ({"subject": "a\nBcc: b@x.io"}, "line break"),
    ],
)
def test_templates_that_cannot_be_are_definition_errors(
    target: MailTarget, given: dict[str, str], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        target.make(SHAPE, **given)


def test_a_template_names_fields_and_nothing_else(target: MailTarget) -> None:
    for name in ("email", "name.__class__", "name!r", "name:>10", "0", ""):
        with pytest.raises(DefinitionError) as caught:
            target.make(SHAPE, body=f"{{{name}}}")
        assert caught.value.code == "MAIL_PLACEHOLDER"


# refusals


@pytest.mark.parametrize(
    ("command", "reply", "kind"),
    [
        ("RCPT", "550 5.1.1 <someone@example.org> is unknown", Kind.REJECTED),
        ("RCPT", "501 5.1.3 bad address", Kind.REJECTED),
        ("RCPT", "450 4.2.0 greylisted", Kind.RETRY),
        ("RCPT", "450 not now", Kind.RETRY),
        ("RCPT", "452 4.2.2 mailbox full", Kind.RETRY),
        ("DATA", "554 5.7.1 looks like spam", Kind.REJECTED),
        ("MAIL", "552 5.3.4 too large", Kind.REJECTED),
    ],
)
def test_a_refusal_of_one_message_costs_only_its_row(
    target: MailTarget, send: Send, command: str, reply: str, kind: Kind
) -> None:
    target.server.refusals[command].append(reply)
    results = send(ROW, ("k2", "Bob"))
    assert kinds(results) == [kind, Kind.WRITTEN]
    assert results[0].code == f"SMTP_{reply[:3]}"
    assert "someone" not in (results[0].reason or "")
    assert [message["subject"] for _, _, message in target.server.taken] == ["k2"]


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("reply", ["421 4.3.2 closing down", "451 4.3.0 try later", "452 out of storage"])
def test_a_server_in_trouble_is_unavailable_and_took_nothing(
    target: MailTarget, send: Send, command: str, reply: str
) -> None:
    target.server.refusals[command].append(reply)
    with pytest.raises(Unavailable):
        send()
    assert not target.server.taken
    assert kinds(send()) == [Kind.WRITTEN]


@pytest.mark.parametrize(
    ("command", "reply"), [("MAIL", "550 5.7.1 not as that"), ("RCPT", "530 5.7.0 log in")]
)
def test_a_refusal_of_the_account_stops_the_run(
    target: MailTarget, send: Send, command: str, reply: str
) -> None:
    target.server.refusals[command].append(reply)
    with pytest.raises(Systemic):
        send()


def test_a_sender_from_the_row_is_the_row_s_fault(target: MailTarget, send: Send) -> None:
    target.server.refusals["MAIL"].append("550 5.7.1 not as that")
    assert kinds(send(ROW, ("k2", "Bob"), **{"from": "{name}@example.com"})) == [Kind.REJECTED, Kind.WRITTEN]


def test_a_reply_lost_after_the_message_is_nobody_s_to_guess(target: MailTarget, send: Send) -> None:
    target.proxy.drop_reply(b"\r\n.\r\n")
    with pytest.raises(Ambiguous) as caught:
        send(("k1", CANARY))
    assert CANARY not in str(caught.value)
    assert len(target.server.taken) == 1


def test_a_connection_lost_before_the_last_line_is_no_doubt(target: MailTarget, send: Send) -> None:
    target.proxy.drop_request(b"DATA")
    with pytest.raises(Unavailable):
        send()
    assert not target.server.taken


def test_a_server_that_drips_cannot_keep_a_run() -> None:
    def drip(listener: socket.socket) -> None:
        with listener.accept()[0] as client, suppress(OSError):
            while True:
                client.sendall(b"220-wait\r\n")
                time.sleep(0.02)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, args=[listener], daemon=True).start()
        port = listener.getsockname()[1]
        connection = {"host": "127.0.0.1", "port": port, "tls": "none", "timeout": 5, "total": 0.3}
        texts = {"from": "a@example.com", "to": "b@example.com", "subject": "s", "body": "b"}
        destination = Smtp(SmtpOptions(connection=connection, **texts), SHAPE)
        begun = time.monotonic()
        with pytest.raises(Unavailable):
            destination.write(Rows(SHAPE, [ROW]).batch("append"))
        assert time.monotonic() - begun < waited(3)
        destination.close()


# encryption


def test_a_password_is_not_sent_in_the_clear() -> None:
    with pytest.raises(ValidationError, match="allow_plaintext"):
        SmtpConnection(host="mail.internal", tls="none")
    assert SmtpConnection(host="mail.internal").address == ("mail.internal", 587)
    assert SmtpConnection(host="mail.internal", tls="ssl").address == ("mail.internal", 465)
    assert SmtpConnection(host="mail.internal", tls="none", allow_plaintext=True).address[1] == 25


def encrypted(port: int, tls: str, ca: Path | None, host: str = "localhost") -> Smtp:
    connection = {"host": host, "port": port, "tls": tls, "user": USER, "password": PASSWORD, "timeout": 2}
    texts = {"from": "a@example.com", "to": "b@example.com", "subject": "s", "body": "b"}
    return Smtp(SmtpOptions(connection={**connection, "tls_ca_file": ca and str(ca)}, **texts), SHAPE)


@pytest.mark.parametrize("tls", ["starttls", "ssl"])
def test_certificates_are_verified(tls: str, certificate: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    batch = Rows(SHAPE, [ROW]).batch("append")
    with MailServer(context, from_the_start=tls == "ssl") as server:
        for host, ca in (
            ("localhost", None),
            ("127.0.0.1", certificate),
            ("localhost", certificate / "none"),
        ):
            with pytest.raises(Systemic) as caught:
                encrypted(server.port, tls, ca, host).write(batch)
            assert caught.value.code == "TLS_UNVERIFIED"
        assert not server.taken
        destination = encrypted(server.port, tls, certificate)
        destination.check(VISIT)
        assert kinds(deliver(destination, batch)) == [Kind.WRITTEN]
        destination.close()
        assert len(server.taken) == 1


def test_a_server_without_encryption_is_not_talked_to(target: MailTarget) -> None:
    with pytest.raises(Systemic) as caught:
        encrypted(target.server.port, "starttls", None).check(VISIT)
    assert caught.value.code == "SMTP_NO_STARTTLS"
    assert not target.server.taken
