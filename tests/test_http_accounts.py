"""Programs prove who they are as Google, Entra and servers of key pairs ask for it, and never show the key."""

from __future__ import annotations

import json
from base64 import b64decode, urlsafe_b64decode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qs

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from retl.destinations import load
from retl.destinations.batch import Field, Kind, Shape
from retl.destinations.http.adapter import HttpDestination
from retl.destinations.http.options import HttpOptions
from retl.net.connection import HttpConnection
from retl.testing.server import FakeApi
from retl.values.types import Type
from tests.destinations.rows import Rows
from tests.test_http_rs256 import PEM

SHAPE = Shape("s", "state", (Field("id", Type("string")),), (Field("name", Type("string")),))
KEY = load_pem_private_key(PEM.encode(), None)
assert isinstance(KEY, RSAPrivateKey)


class Server(FakeApi):
    """Gives a token for any request, and keeps what was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.forms: list[dict[str, str]] = []
        self.heads: list[dict[str, str]] = []

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if "token" in path:
            self.forms.append({name: value for name, (value,) in parse_qs(body.decode()).items()})
            self.heads.append(headers)
            return 200, {"access_token": "t-1", "expires_in": 3599}
        return (200, {}) if self.good(headers["authorization"]) else (403, {})

    def good(self, header: str) -> bool:
        return (
            header in ("Bearer t-1", "Zoho-oauthtoken t-1") or claims(header.split(" ")[1])[1]["iss"] == "ME"
        )


@pytest.fixture
def api() -> Iterator[Server]:
    with Server() as api:
        yield api


def claims(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The header and claims of a token whose signature is ours."""
    head, body, signature = (urlsafe_b64decode(part + "==") for part in token.split("."))
    KEY.public_key().verify(signature, token.rpartition(".")[0].encode(), PKCS1v15(), SHA256())
    return json.loads(head), json.loads(body)


def deliver(api: Server, **auth: Any) -> dict[str, str]:
    """The form of the token request of a delivery with this credential."""
    options = HttpOptions(
        connection={"base_url": api.url, "auth": auth}, upsert={"path": "/rows", "row": "$row"}
    )
    target = HttpDestination(options, SHAPE)
    assert target.write(Rows(SHAPE, [("a", "Ann")]).batch()).default.kind is Kind.WRITTEN  # type: ignore[union-attr]
    assert "MIIEv" not in repr(options)
    target.close()
    return api.forms[-1] if api.forms else {}


def account(api: Server) -> dict[str, str]:
    return {
        "type": "service_account",
        "client_email": "retl@project.iam.gserviceaccount.com",
        "private_key": PEM,
        "private_key_id": "k-1",
        "token_uri": f"{api.url}/token",
    }


# what google-auth 2.63.0 (google.oauth2.service_account) puts into its assertion for the same account
GOOGLES_HEAD = {"typ": "JWT", "alg": "RS256", "kid": "k-1"}
GOOGLES_CLAIMS = {
    "iat": 1795895885,
    "exp": 1795899485,
    "iss": "retl@project.iam.gserviceaccount.com",
    "scope": "https://www.googleapis.com/auth/pubsub",
}


@pytest.mark.parametrize("delegated", [{}, {"sub": "ann@example.com"}])
def test_a_service_account_says_what_googles_own_client_says(api: Server, delegated: dict[str, str]) -> None:
    key, scope = json.dumps(account(api)), GOOGLES_CLAIMS["scope"]
    form = deliver(api, type="google", key=key, scope=scope, subject=delegated.get("sub"))
    head, body = claims(form["assertion"])
    assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
    assert head == GOOGLES_HEAD
    assert body["exp"] - body["iat"] == 1795899485 - 1795895885
    times = {"iat": body["iat"], "exp": body["exp"]}
    assert body == GOOGLES_CLAIMS | {"aud": f"{api.url}/token"} | delegated | times


def certificate() -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "retl")])
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(KEY.public_key())
    made = made.serial_number(1).not_valid_before(begin).not_valid_after(begin + timedelta(days=9000))
    return made.sign(KEY, SHA256())


def test_an_application_of_entra_has_a_secret_or_a_certificate(api: Server) -> None:
    shared = {"type": "entra", "tenant": "t", "client_id": "app", "scope": "r/.default", "authority": api.url}
    form = deliver(api, **shared, client_secret="canary")
    assert form == {
        "grant_type": "client_credentials",
        "client_id": "app",
        "scope": "r/.default",
        "client_secret": "canary",
    }
    cert = certificate()
    pem = cert.public_bytes(Encoding.PEM).decode()
    form = deliver(api, **shared, private_key=PEM, certificate=pem)
    head, body = claims(form["client_assertion"])
    assert b64decode(head["x5t#S256"] + "=", b"-_") == cert.fingerprint(SHA256())
    assert (body["iss"], body["sub"]) == ("app", "app")
    assert body["aud"] == f"{api.url}/t/oauth2/v2.0/token"
    assert "client_secret" not in form


def test_a_key_pair_signs_its_own_token(api: Server) -> None:
    public = sha256(b"x").hexdigest()
    deliver(api, type="key_pair", private_key=PEM, issuer="ME", subject="ME", key_id=public, life="2m")
    _, _, headers, _ = api.seen[-1]
    head, body = claims(headers["authorization"].removeprefix("Bearer "))
    assert (head["kid"], body["sub"], body["exp"] - body["iat"]) == (public, "ME", 120)
    assert api.forms == []


def test_a_client_proves_itself_in_a_header_or_by_a_claim(api: Server) -> None:
    shared = {"type": "oauth2", "token_url": f"{api.url}/token", "client_id": "me"}
    form = deliver(
        api, **shared, client_secret="s:1", client="basic", scheme="Zoho-oauthtoken", extra={"audience": "x"}
    )
    assert form == {"grant_type": "client_credentials", "audience": "x"}
    assert b64decode(api.heads[-1]["authorization"].removeprefix("Basic ")) == b"me:s:1"
    form = deliver(api, **shared, private_key=PEM)
    _, body = claims(form.pop("client_assertion"))
    assert (body["iss"], body["sub"], body["aud"]) == ("me", "me", f"{api.url}/token")
    assert form["client_assertion_type"].endswith("jwt-bearer")


@pytest.mark.parametrize(
    "auth",
    [
        {"type": "google", "key": "not json", "scope": "s"},
        {"type": "google", "key": '{"client_email": "a"}', "scope": "s"},
        {
            "type": "google",
            "key": json.dumps(
                {
                    "client_email": "a",
                    "private_key": PEM,
                    "private_key_id": "1",
                    "token_uri": "http://x.example/t",
                }
            ),
            "scope": "s",
        },
        {"type": "entra", "tenant": "t", "client_id": "a", "scope": "s"},
        {"type": "entra", "tenant": "t", "client_id": "a", "scope": "s", "private_key": PEM},
        {"type": "entra", "tenant": "../x", "client_id": "a", "scope": "s", "client_secret": "c"},
        {
            "type": "entra",
            "tenant": "t",
            "client_id": "a",
            "scope": "s",
            "client_secret": "c",
            "authority": "http://login.example",
        },
        {"type": "key_pair", "private_key": "none", "issuer": "ME"},
        {
            "type": "oauth2",
            "token_url": "https://x/t",
            "client_id": "a",
            "private_key": PEM,
            "client": "basic",
        },
    ],
)
def test_accounts_that_cannot_work_are_refused_without_their_key(auth: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        HttpConnection(base_url="https://api.example.com", auth=auth)
    assert "MIIEv" not in str(caught.value)


def test_a_certificate_can_stand_in_for_salesforce_s_secret() -> None:
    named = {"client_id": "me", "domain": "example.my.salesforce.com", "user": "retl@x.io"}
    keys = {**named, "private_key": PEM}
    model: Any = load("salesforce").Options
    auth = model(connection=keys, object="Contact", match="Ext__c").http.connection.auth
    assert (auth.grant, auth.subject) == ("jwt_bearer", "retl@x.io")
    assert auth.audience == "https://login.salesforce.com"
    with pytest.raises(ValidationError):
        model(connection={**keys, "private_key": None}, object="Contact", match="Ext__c")
