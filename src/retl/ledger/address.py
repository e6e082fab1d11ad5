"""The address of a ledger on a server: what libpq makes of it, our deadlines, and the rule on TLS.

No error of this module quotes the address: what is wrong with it may be in the password.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from retl.errors import DefinitionError

_CLIENT = {
    "connect_timeout": "10",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
    "application_name": "retl",
}


def parameters_of(url: str) -> dict[str, Any]:
    """The address as libpq keywords, with our deadlines and the TLS rule; no error quotes the address."""
    import psycopg

    address, _, query = url.partition("?")
    options = query.split("&") if query else []
    plaintext = "allow_plaintext=true" in options
    rest = "&".join(option for option in options if not option.startswith("allow_plaintext="))
    shape = r"postgres(ql)?://([^@/?#]*@)?[^@/?#]*(/[^@/?#]*)?"
    try:
        if not re.fullmatch(shape, address):
            raise psycopg.ProgrammingError
        given = psycopg.conninfo.conninfo_to_dict(f"{address}?{rest}" if rest else address)
        if not re.fullmatch(r"[0-9,]*", str(given.get("port", ""))):
            raise psycopg.ProgrammingError
    except psycopg.ProgrammingError:
        raise DefinitionError(
            "STATE_URL",
            "the state url is not a valid postgresql:// address",
            hint="write the characters @ / ? # % of a user or password as %40 %2F %3F %23 %25",
        ) from None
    hosts = [host for name in ("host", "hostaddr") for host in str(given.get(name) or "").split(",") if host]
    if not hosts:
        raise DefinitionError(
            "STATE_URL", "the state url names no host", hint="postgresql://user@host/dbname"
        )
    if not plaintext and not all(_loopback(host) for host in hosts):
        given.setdefault("sslmode", "verify-full")
        if given["sslmode"] != "verify-full":
            raise DefinitionError(
                "STATE_PLAINTEXT",
                f"the state url asks for sslmode={given['sslmode']} on a host that is not this machine",
                hint="use sslmode=verify-full, or say allow_plaintext=true",
            )
    return {**_CLIENT, "host": hosts[0], **given}


def _loopback(host: str) -> bool:
    if host == "localhost" or host.startswith("/"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def scrubbed(text: str, parameters: dict[str, Any]) -> str:
    """What libpq said in one line; it names host and user, and must not name the password."""
    secrets = [str(parameters[name]) for name in ("password", "sslpassword") if parameters.get(name)]
    for secret in secrets:
        text = text.replace(secret, "***")
    return " ".join(text.split())
