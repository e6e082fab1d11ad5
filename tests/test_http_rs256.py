"""Signatures that another implementation made of the same words, and keys that are none."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode, urlsafe_b64decode
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import ValidationError

from retl.net.connection import HttpConnection
from retl.net.oauth import OAuth2
from retl.net.rs256 import Key

# Made for this test alone; SIGNATURE is what `openssl dgst -sha256 -sign` says of "signed by retl".
PEM = """\
-----BEGIN PRIVATE KEY-----
MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQDQLyzPMMtw4MID
mOlBM4Vf/MSSQHEQRVAIdMJfTj1g8SlZbAI5Ei0UDcTDT/a0QFz6hJBY7cgJRLnW
pyUkKDePiK5kmHYkTZcOrxGeAp0MLf3oQZOl9no/K1p3gfRzCtU060zZGnVvgq/R
WDVPpCflWgxqtHF0L7X/eD1SNXKjOTYNMyG+3daUmvDII75O4lGgh/kSv99gDU9j
k+UG8NXuBf4ZE2iBCQQXtXVGiAyfvEkeij831pYVqetxDypttuPC6dr9RAWJaUqI
0Iw+8gy+Ka/pdq8KBaeXdWBZORkZxDsOqf+MoqEX9v1suzf+FqhSvFL5XsZlG95W
bHkqizE9AgMBAAECggEAYZSDJdiCuzV2axY82vVpwkyp3L184XoDofsMcnyrU2mm
joYMYrDM1VYA0OWFxwZWLox9VlmaBhIjI2R0CccaB9qyl29JDQobUGQp10z1TNSv
6zH1oXhu43YQMO0GZfgBaI0UF70Jp4tzmqYEUwCoPJ4hLNDITwPgBE9ZOtPXmH5r
af3yT7kiwz7gAJ7tm+9Jwwis//USYvgaxN5276RsA3udwki4pRwRzlBaExVYX9tH
ZefO3HGf/SXX/+4HWi/4sqr8E/+9kQCi/ywgn51Ro2lmYCtZUZ5TuD2UltIDsY1z
4nwfZntsi6NCljOLM/1SmQcm4HE9MhTGB4OBlBhvlwKBgQDwVmQpvqZ/jc6vWZoa
UjRbOgX3nFgxnm/Cts55zsJ7MwjR8ir4UvPFVP2gszEchkJ/CaAI6H3rhj4Ky1DV
NeAfgzKFrAu+FOKqzmRNqg7nlvdMAqgfcIitleytpsEvBcRFBBCPvx9VZidUHVYF
4t1yN9RCLCoC9/J4ef1lMEw0BwKBgQDdwF1AmUt/14+jWE3HA89WZfRD4q9HhIRF
c2dnQpH8tcAHq/96OCtQSITmT27LJ4RN78UKnCEfV8QSgHMjrSib6qXhX84uhdRG
CKRshPIAiGFj4EJERWqMQRWm9Kqne47PbXMwouZWeUfnImI4rE0abyVi1pBd4Irn
6S4YTUiHmwKBgA14Ogrg5YH2l6PaOLnK66ZFPTpgZ8z4HTljd3T6MoonFRJ3KRNb
ys+/cKuF/3WizK1EA9Ub+pqtnmKKfJBGgbYiaz10o//WOdHq2VJE+qreGiQHbha8
/twDsA0XcHJLN3HKxYbY5k+p9wBO2Jhh25lgKaQ/x2b9MHiyFZKLP2oXAoGBAMuF
QtEIIK/7spwTbobqaz/7oN0xTvfPmup3CX9PLNeII++mn3qX1MEBXeBXJPOVmCtD
lU+wjgHLNmxYsdQbl7rJ+GbJ3Fz8fR+tzOLAfa+Ze/EDoS4xm6GQFoQ95+aBU0fz
RxZrXAYfl6t99jHXiYhqXCDDlopijHpem+y3+YpjAoGATgmflQ1c+EMMxzTP97jc
1pxB4Sapl5fpCIE9EVNQPzUQB+xvx3mro4e12z1KkYLXEW4S0qg7d18CDp33SqER
0nMRUHKN2maqHlGlLXCfo6BJp/S271K43T/U2lZafLjKZa6YuNjJGgTv13aUHBOL
hSC7jvggLLXML74a36P4k14=
-----END PRIVATE KEY-----
"""
SIGNATURE = (
    "tY0qIuFLJuYHemZQTkKjTHgtTfTRF0p0v1Cs2dzdCKpb1c9L4rcQjW/K18sNX6E1gWX25htRhL0A++dcrH8aQyOPqOhmRyypbPvR"
    "po94ovkKbUeX8c6W7J7sLDfwOVWDQutQXsM9NbnALIT0Scz/w/NTe34S4e5iTqpXS9eHI98AjUfmsGxmCOv7GfcM5yoyGi1SEdsz"
    "2x4knWA1/9bVSG6s7zxkFwpIirKgjDJ98kZAlQ/QH2DktLg//Tx3Vqf6LEjsQWCxHeD28XhAmrcRbPda9lXc/d8yXPwfhu6N+yq9"
    "thovPjCmLNXtTML6aNBTr/L8yCfenu2BygYFjalJjw=="
)


def test_it_signs_as_others_do() -> None:
    assert b64encode(Key.parse(PEM).sign(b"signed by retl")).decode() == SIGNATURE


def pem(key: PrivateKeyTypes, password: bytes | None = None) -> str:
    protection = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection).decode()


def test_both_forms_of_a_key_and_a_key_on_one_line_are_read() -> None:
    inner = b64encode(b64decode("".join(PEM.splitlines()[1:-1]))[26:]).decode()  # what PKCS #8 wraps
    other = f"-----BEGIN RSA PRIVATE KEY-----\n{inner}\n-----END RSA PRIVATE KEY-----\n"
    forms = (
        other,
        PEM.replace("\n", "\\n"),
        PEM.replace("\n", "\r\n"),
        PEM.replace("\n", " "),
        PEM.replace("\n", "\n    "),
        f"a key of retl's tests\n{PEM}",
    )
    for form in forms:
        assert b64encode(Key.parse(form).sign(b"signed by retl")).decode() == SIGNATURE


def test_a_token_holds_its_claims() -> None:
    head, claims, signature = Key.parse(PEM).token({"iss": "me"}).split(".")
    assert json.loads(urlsafe_b64decode(head + "==")) == {"alg": "RS256", "typ": "JWT"}
    assert json.loads(urlsafe_b64decode(claims + "==")) == {"iss": "me"}
    assert urlsafe_b64decode(signature + "==") == Key.parse(PEM).sign(f"{head}.{claims}".encode())


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "canary",
        PEM.replace("PRIVATE", "PUBLIC"),
        PEM.replace("BEGIN PRIVATE", "BEGIN ENCRYPTED PRIVATE"),
        "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nMIAA\n-----END PRIVATE KEY-----",
        PEM.replace(PEM.splitlines()[3], ""),
    ],
)
def test_what_is_no_key_is_refused_without_being_told(wrong: str) -> None:
    with pytest.raises(ValueError, match="private_key") as caught:
        Key.parse(wrong)
    assert "canary" not in str(caught.value)


def test_a_key_of_another_kind_or_a_short_or_encrypted_one_is_refused() -> None:
    key = load_pem_private_key(PEM.encode(), None)
    with pytest.raises(ValueError, match="private_key is an unencrypted RSA key in PEM"):
        Key.parse(pem(key, b"canary"))
    for other in (rsa.generate_private_key(65537, 1024), ec.generate_private_key(ec.SECP256R1())):
        with pytest.raises(ValueError, match="private_key is an RSA key of at least 2048 bits"):
            Key.parse(pem(other))


def test_a_key_whose_parts_do_not_belong_together_is_refused() -> None:
    key = load_pem_private_key(PEM.encode(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    n = key.private_numbers()
    numbers = rsa.RSAPrivateNumbers(n.p, n.q, n.d + 2, n.dmp1, n.dmq1, n.iqmp, n.public_numbers)
    with pytest.raises(ValueError, match="private_key"):
        Key.parse(pem(numbers.private_key(unsafe_skip_rsa_key_validation=True)))


def test_a_claim_says_who_for_whom_and_until_when() -> None:
    auth: dict[str, Any] = {
        "type": "oauth2",
        "token_url": "https://login.example.com/token",
        "client_id": "me",
    }
    auth |= {"grant": "jwt_bearer", "private_key": PEM, "subject": "retl@example.com", "scope": "write"}
    made = HttpConnection(base_url="https://api.example.com", auth=auth).auth
    assert isinstance(made, OAuth2)
    form = made.form()
    claims = json.loads(urlsafe_b64decode((form["assertion"] or "").split(".")[1] + "=="))
    assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
    assert claims.pop("exp") - claims.pop("iat") == 180
    assert claims == {"iss": "me", "sub": "retl@example.com", "scope": "write", "aud": auth["token_url"]}
    assert PEM.splitlines()[1] not in repr(made)
    with pytest.raises(ValidationError):
        HttpConnection(base_url="https://api.example.com", auth={**auth, "private_key": None})
