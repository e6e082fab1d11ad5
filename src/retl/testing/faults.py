"""What goes wrong between a client and a vendor, one request at a time.

Each of these makes a fault; `FakeApi.misbehave` takes as many as there are requests to go wrong.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from retl.testing.server import Exchange, Fault, written


def passed(exchange: Exchange) -> bool:
    """No fault: this request is served."""
    return False


def answer(status: int, body: bytes | str = b"", **headers: str) -> Fault:
    """Send this answer and do nothing else. Headers have `_` for `-`."""

    def fault(exchange: Exchange) -> bool:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        exchange.reply(status, body.encode() if isinstance(body, str) else body, given)
        return True

    return fault


def throttled(seconds: int | None = None) -> Fault:
    """429, with the seconds to wait in Retry-After, or without Retry-After."""
    return answer(429, b"{}") if seconds is None else answer(429, b"{}", Retry_After=str(seconds))


def instead(status: int, body: bytes | str = b"", **headers: str) -> Fault:
    """Process the request, and send this answer."""

    def fault(exchange: Exchange) -> bool:
        exchange.perform()
        return answer(status, body, **headers)(exchange)

    return fault


def changed(change: Callable[[Any], Any]) -> Fault:
    """Process the request, and change the content of the answer."""

    def fault(exchange: Exchange) -> bool:
        status, content = exchange.perform()
        exchange.reply(status, *written(change(content)))
        return True

    return fault


def reset(*, applied: bool) -> Fault:
    """Break the connection before or after processing the request."""

    def fault(exchange: Exchange) -> bool:
        if applied:
            exchange.perform()
        exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        exchange.connection.close()
        exchange.close_connection = True
        return True

    return fault


def cut() -> Fault:
    """Process the request, and cut the answer off in the middle."""

    def fault(exchange: Exchange) -> bool:
        status, content = exchange.perform()
        body, _ = written(content)
        head = f"HTTP/1.1 {status} Told\r\nContent-Length: {len(body) + 10}\r\n\r\n"
        exchange.wfile.write(head.encode() + body[: len(body) // 2])
        exchange.close_connection = True
        return True

    return fault


def slow(seconds: float) -> Fault:
    """Process the request, and answer after this delay."""

    def fault(exchange: Exchange) -> bool:
        status, content = exchange.perform()
        time.sleep(seconds)
        with suppress(OSError):  # the client closed the connection
            exchange.reply(status, *written(content))
        return True

    return fault


def dripping(head: bytes, seconds: float) -> Fault:
    """Process the request, send `head`, then a byte every 50 ms for this long."""

    def fault(exchange: Exchange) -> bool:
        exchange.perform()
        exchange.close_connection = True
        end = time.monotonic() + seconds
        with suppress(OSError):  # the client closed the connection
            exchange.wfile.write(head)
            while time.monotonic() < end:
                exchange.wfile.write(b"x")
                time.sleep(0.05)
        return True

    return fault
