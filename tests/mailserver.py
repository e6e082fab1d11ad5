"""A mail server on a real socket (aiosmtpd): it keeps what it took, and refuses on demand."""

from __future__ import annotations

import socket
import ssl
from collections import deque
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

USER, PASSWORD = "retl", "password-of-the-tests"


class MailServer:
    """Listens on 127.0.0.1:`port` while the `with` block lasts. `taken` are the messages as they came;
    `refusals` are used up, one per command of that name (MAIL, RCPT, DATA), None lets it pass."""

    def __init__(self, tls: ssl.SSLContext | None = None, *, from_the_start: bool = False) -> None:
        self.taken: list[tuple[str, list[str], EmailMessage]] = []
        self.refusals: dict[str, deque[str | None]] = {name: deque() for name in ("MAIL", "RCPT", "DATA")}
        self.forbidden = False
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        starttls: dict[str, Any] = {} if from_the_start else {"tls_context": tls}
        self._controller = Controller(
            self,
            hostname="127.0.0.1",
            port=self.port,
            authenticator=self._knows,
            auth_required=True,
            auth_require_tls=False,
            ssl_context=tls if from_the_start else None,
            **starttls,
        )

    def __enter__(self) -> MailServer:
        self._controller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._controller.stop(no_assert=True)

    def _knows(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        known = (data.login, data.password) == (USER.encode(), PASSWORD.encode())
        return AuthResult(success=known, handled=False)

    def _refusal(self, command: str) -> str | None:
        waiting = self.refusals[command]
        return waiting.popleft() if waiting else None

    async def handle_MAIL(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        if self.forbidden:
            return "550 5.7.1 this account may not send as that"
        if refusal := self._refusal("MAIL"):
            return refusal
        envelope.mail_from = address
        return "250 2.1.0 fine"

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        if refusal := self._refusal("RCPT"):
            return refusal
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 fine"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        message = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(message, EmailMessage)
        if refusal := self._refusal("DATA") or self.judge(message):
            return refusal
        self.taken.append((envelope.mail_from, envelope.rcpt_tos, message))
        return "250 2.0.0 taken"

    def judge(self, message: EmailMessage) -> str | None:
        """A refusal for what the message says."""
        return None
