"""Who may see the pages of `retl serve`: the hosts it answers for, the token, and the cookie after a login.

A page's address never contains the token, and neither does the cookie: that is a signature of its own end,
made with a key that only this process knows.
"""

from __future__ import annotations

import hmac
import re
import secrets
from email.message import Message
from ipaddress import ip_address
from time import time
from urllib.parse import parse_qs

from retl.app.server import SHORTEST_TOKEN, Request, is_same
from retl.errors import DefinitionError
from retl.model import is_loopback

LIFE = 12 * 3600  # seconds of a login

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:]+))(?::[0-9]{1,5})?")


class Access:
    """Decides for each request. `token`: None if nobody needs one."""

    def __init__(self, host: str, token: str | None, names: tuple[str, ...] = ()) -> None:
        """`host`: where the server listens; `names`: other names that people use for it. DefinitionError
        SERVE_TOKEN if the token is missing off this machine, or short."""
        if token is None and (names or not is_loopback(host)):
            raise _no_token("off this machine pages are shown only for a token")
        if token is not None and len(token) < SHORTEST_TOKEN:
            raise _no_token("the token is too short")
        self.token = token
        self._names = {"localhost", host.lower(), *(one.lower() for one in names)}
        self._key = secrets.token_bytes(32)
        self._cookie = f"retl-{secrets.token_hex(4)}"  # a machine may serve several projects, on other ports

    def is_for_us(self, headers: Message) -> bool:
        """Whether the request names this server. A page of another site whose name was made to lead here
        (DNS rebinding) names that site; an address is no name."""
        hosts = headers.get_all("Host") or []
        found = _HOST.fullmatch(hosts[0].strip().lower()) if len(hosts) == 1 else None
        name = (found[1] or found[2]) if found else ""
        return name in self._names or _is_address(name)

    def is_from_elsewhere(self, request: Request) -> bool:
        """Whether a page of another site asks, other than by a link that a person follows."""
        site = request.headers.get("Sec-Fetch-Site", "none")
        follows = request.headers.get("Sec-Fetch-Mode") == "navigate" and request.method != "POST"
        return site not in ("none", "same-origin") and not follows

    def admits(self, request: Request) -> bool:
        """Whether the request has the token, or a valid cookie."""
        if self.token is None or request.has_bearer(self.token):
            return True
        return any(self._is_valid(one) for one in _cookies(request.headers, self._cookie))

    def login(self, request: Request) -> str | None:
        """The cookie for a POST with the right token; None for any other."""
        form = parse_qs(request.body().decode("ascii", "replace"), max_num_fields=8)
        if not is_same(form.get("token", [""])[0].strip(), self.token or ""):
            return None
        # Lax: a link in a chat leads to the page and not to the login. No request changes anything.
        secure = "; Secure" if request.headers.get("X-Forwarded-Proto", "").lower() == "https" else ""
        until = str(int(time()) + LIFE)
        value = f"{self._cookie}={until}.{self._signed(until)}"
        return f"{value}; Path=/; Max-Age={LIFE}; HttpOnly; SameSite=Lax{secure}"

    def _is_valid(self, cookie: str) -> bool:
        until, _, signature = cookie.partition(".")
        is_ours = is_same(signature, self._signed(until))
        return is_ours and until.isdigit() and int(until) > time()

    def _signed(self, until: str) -> str:
        return hmac.digest(self._key, until.encode("utf-8", "replace"), "sha256").hex()


def _cookies(headers: Message, name: str) -> list[str]:
    pairs = ("; ".join(headers.get_all("Cookie") or [])).split(";")
    return [text.strip().partition("=")[2] for text in pairs if text.strip().partition("=")[0] == name]


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _no_token(why: str) -> DefinitionError:
    return DefinitionError(
        "SERVE_TOKEN",
        f"{why}: it needs at least {SHORTEST_TOKEN} characters",
        hint="set RETL_SERVE_TOKEN (or RETL_SERVE_TOKEN_FILE), or name a file with --token",
    )
