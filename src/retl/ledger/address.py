"""The address of a ledger on a server, as libpq's keywords.

No error of this module quotes the address: the invalid part may be in the password.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from retl.errors import DefinitionError
from retl.net.postgres import CLIENT, ssl_keywords


def parameters_of(url: str) -> dict[str, Any]:
    """The address as libpq keywords, with our deadlines and TLS rules."""
    import psycopg

    address, _, query = url.partition("?")
    options = query.split("&") if query else []
    plaintext = "allow_plaintext=true" in options
    rest = "&".join(option for option in options if not option.startswith("allow_plaintext="))
    shape = r"postgres(ql)?://([^@/?#]*@)?[^@/?#]*(/[^@/?#]*)?"
    try:
        if not re.fullmatch(shape, address):
            raise psycopg.ProgrammingError
        given: dict[str, Any] = psycopg.conninfo.conninfo_to_dict(f"{address}?{rest}" if rest else address)
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
    own = os.path.expanduser("~/.postgresql/root.crt")  # where libpq looks
    root = given.get("sslrootcert") or os.environ.get("PGSSLROOTCERT")
    root = root or (own if Path(own).exists() else None)
    try:
        tls = ssl_keywords(hosts, given.get("sslmode"), root, allow_plaintext=plaintext)
    except ValueError:
        raise DefinitionError(
            "STATE_PLAINTEXT",
            f"the state url asks for sslmode={given['sslmode']} on a host that is not this machine",
            hint="use sslmode=verify-full, or add allow_plaintext=true",
        ) from None
    return {"connect_timeout": "10", "application_name": "retl", "host": hosts[0], **CLIENT, **given, **tls}
