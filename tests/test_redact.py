"""Known secrets leave no text in any form they take."""

from __future__ import annotations

import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from retl.app.connections import Connections
from retl.app.loaded import LoadedProject
from retl.app.scaffold.curl import Call
from retl.app.sources import Sources
from retl.net.messages import Reply
from retl.net.proxy import Proxy
from retl.observe import redact as redaction
from retl.observe.mask import MASK
from retl.observe.redact import (
    BRIEF,
    redact,
    register,
    register_brief,
    register_model,
    register_variable,
)
from retl.project.variables import Filled
from retl.run.lines import Ticket


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    redaction.forget()
    yield
    redaction.forget()


@given(secret=st.text(min_size=6, max_size=30), user=st.text(st.characters(codec="ascii"), max_size=5))
def test_a_secret_leaves_no_text_in_any_form(secret: str, user: str) -> None:
    redaction.forget()
    register(secret)
    raw = secret.encode("utf-8", "surrogatepass")
    forms = [
        secret,
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
        b64encode(user.encode() + b":" + raw).decode(),
    ]
    forms += [urlsafe_b64encode(raw).decode(), quote(secret), quote(secret, safe=""), quote_plus(secret)]
    for form in forms:
        assert form not in redact(f"<{form}>")


def test_a_basic_auth_header_is_removed_whole() -> None:
    register("hunter22")
    for user in ("a", "ab", "abc"):
        header = b64encode(f"{user}:hunter22".encode()).decode()
        assert redact(f"Authorization: Basic {header}!") == f"Authorization: Basic {MASK}!"


def test_a_secret_that_begins_another_does_not_save_the_tail() -> None:
    register("abcd")
    register("abcdefgh")
    assert redact("abcdefgh abcd") == f"{MASK} {MASK}"


def test_short_secrets_are_passed_over() -> None:
    register("", "abc")
    assert redact("abcabc") == "abcabc"


@pytest.mark.parametrize(
    "name", ["POSTGRES_PASSWORD", "crm_token", "API_KEY", "SECRET", "AWS_SECRET_ACCESS_KEY"]
)
def test_a_variable_whose_name_says_so_is_secret(name: str) -> None:
    register_variable(name, "s3cr3t!")
    assert redact("it is s3cr3t!") == f"it is {MASK}"


@pytest.mark.parametrize(
    ("name", "value"), [("MONKEY", "banana"), ("KEYBOARD", "qwerty"), ("USE_TOKEN", "true")]
)
def test_other_variables_are_not(name: str, value: str) -> None:
    register_variable(name, value)
    assert redact(value) == value


def test_the_password_of_a_url_is_secret_as_written_and_as_meant() -> None:
    register_variable("RETL_STATE_URL", "postgresql://retl:p%40ss-word@db/ledger")
    assert redact("p%40ss-word p@ss-word") == f"{MASK} {MASK}"


def test_the_password_of_an_unknown_url_goes_too() -> None:
    assert redact("at postgresql://u:pa:ss@h/db?x=1") == f"at postgresql://u:{MASK}@h/db?x=1"
    assert redact("at http://h:80/a@b") == "at http://h:80/a@b"


def test_every_secret_of_a_model_is_found() -> None:
    class Auth(BaseModel):
        token: SecretStr

    class Connection(BaseModel, extra="allow"):
        auth: Auth
        headers: dict[str, SecretStr]
        others: tuple[SecretStr, ...] = ()

    register_model(
        Connection.model_validate(
            {
                "auth": {"token": "tok-1"},
                "headers": {"X": "tok-2"},
                "others": ["tok-3"],
                "more": SecretStr("tok-4"),
            }
        )
    )
    assert redact("tok-1 tok-2 tok-3 tok-4") == " ".join([MASK] * 4)


def test_a_private_key_is_removed_line_by_line() -> None:
    register("-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nabc\n")
    assert redact("line 2: MIIEvQIBADANBgkqhkiG9w0B") == f"line 2: {MASK}"


def test_of_tokens_that_are_replaced_the_newest_are_known_and_no_more() -> None:
    register("lasting-secret")
    for number in range(BRIEF + 1):
        register_brief(f"token-{number:04}-x", "")
    assert redact(f"token-{BRIEF:04}-x token-0001-x lasting-secret") == f"{MASK} {MASK} {MASK}"
    assert redact("token-0000-x") == "token-0000-x"


@pytest.mark.parametrize("kind", [Call, Connections, Filled, LoadedProject, Proxy, Reply, Sources, Ticket])
def test_what_holds_secrets_does_not_show_its_fields(kind: type) -> None:
    assert kind.__repr__ is object.__repr__
