"""All known secrets, and the function that removes them from any text.

Code that reads a secret registers it here once per process. `redact` never fails: it returns the text
without the secrets, in all forms they can have (plain, in URLs, in JSON, in base64, and so in a basic-auth
header)."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterable
from threading import Lock
from urllib.parse import quote, quote_plus, unquote, urlsplit

from pydantic import BaseModel, SecretStr

from retl.observe.mask import MASK

BRIEF = 256
SHORTEST = 4  # shorter secrets occur inside ordinary words, so removing them would reveal them

_SECRET_NAME = re.compile(
    r"(^|_)(PASSWORD|PASSWD|PASSPHRASE|TOKEN|SECRET|KEY|CREDENTIALS?|APIKEY)(_|$)", re.IGNORECASE
)
_POINTERS = ("_FILE", "_COMMAND")  # name the place of a secret, which may be shown
_ORDINARY = {"true", "false", "none", "null"}
_USERINFO = re.compile(r"(://[^\s/:@]*:)[^\s/@]+(?=@)")
_BASE64 = "[A-Za-z0-9+/_=-]*"

_lock = Lock()
_secrets: frozenset[str] = frozenset()
_brief: dict[str, None] = {}  # the newest last
_forms: tuple[tuple[str, ...], tuple[str, ...]] | None = None  # (base64 cores, texts); None: to be made


def register(*secrets: str) -> None:
    """From now on `redact` removes these. Secrets under 4 characters are ignored."""
    global _secrets, _forms
    lines = [line for secret in secrets for line in (secret, *_lines(secret)) if len(line) >= SHORTEST]
    with _lock:
        if set(lines) - _secrets:
            _secrets, _forms = _secrets.union(lines), None


def known() -> frozenset[str]:
    """What `register` was given, for another process of ours."""
    return _secrets


def register_brief(*secrets: str) -> None:
    """The same for secrets that servers hand out for a while, such as tokens: the newest BRIEF are known, so
    that a process that stays does not become slower with each."""
    global _forms
    with _lock:
        for secret in secrets:
            if len(secret) < SHORTEST:
                continue
            if secret not in _brief:
                _forms = None
            _brief.pop(secret, None)
            _brief[secret] = None
        while len(_brief) > BRIEF:
            del _brief[next(iter(_brief))]


def register_variable(name: str, value: str) -> None:
    """Register an environment variable's value if its name says that it is secret (PASSWORD, TOKEN,
    SECRET, KEY …), and the password inside it if it is a URL."""
    if _is_named_secret(name, value):
        register(value)
    if password := _password(value):
        register(password, unquote(password))


def is_secret(name: str, value: str) -> bool:
    """Whether an environment variable has a secret: by its name, or because its URL has a password."""
    return bool(value) and (_is_named_secret(name, value) or _password(value) is not None)


def _is_named_secret(name: str, value: str) -> bool:
    pointer = name.upper().endswith(_POINTERS)
    return bool(_SECRET_NAME.search(name)) and not pointer and value.lower() not in _ORDINARY


def _password(value: str) -> str | None:
    """The password inside a value that is a URL."""
    if "://" not in value:
        return None
    try:
        return urlsplit(value).password or None
    except ValueError:
        return None


def register_model(model: BaseModel) -> None:
    """Register every SecretStr in a model, at any depth."""
    register(*_secret_values(model))


def redact(text: str) -> str:
    """The text without any registered secret, and without the password of any URL in it."""
    cores, plain = _current()
    for core in cores:
        if core in text:
            text = re.sub(_BASE64 + re.escape(core) + _BASE64, MASK, text)
    for form in plain:
        text = text.replace(form, MASK)
    return _USERINFO.sub(rf"\1{MASK}", text) if "://" in text else text


def forget() -> None:
    """Forget every secret: for tests that share a process."""
    global _secrets, _forms
    with _lock:
        _secrets, _forms = frozenset(), None
        _brief.clear()


def _current() -> tuple[tuple[str, ...], tuple[str, ...]]:
    global _forms
    if (forms := _forms) is None:
        with _lock:
            _forms = forms = _all_forms([*_secrets, *_brief])
    return forms


def _lines(secret: str) -> Iterable[str]:
    """The long lines of a secret such as a private key, because single lines may be quoted."""
    return (line.strip() for line in secret.splitlines() if len(line.strip()) >= 16)


def _secret_values(value: object) -> Iterable[str]:
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, BaseModel):
        for item in (*value.__dict__.values(), *(value.model_extra or {}).values()):
            yield from _secret_values(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _secret_values(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _secret_values(item)


def _all_forms(secrets: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    plain: set[str] = set()
    cores: set[str] = set()
    for secret in secrets:
        raw = secret.encode("utf-8", "surrogatepass")
        plain |= {secret, quote(raw, safe=""), quote(raw), quote_plus(raw)}
        plain |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1]}
        cores |= _base64_cores(raw)
    # The longest first: otherwise a secret that is the start of another would leave the rest of it.
    return tuple(sorted(cores, key=len, reverse=True)), tuple(sorted(plain, key=len, reverse=True))


def _base64_cores(secret: bytes) -> set[str]:
    """The part of a base64 text that depends only on the secret: one core per alignment, because
    `user:secret` shifts it. Characters that also depend on neighbouring bytes are left out."""
    cores = set()
    for shift in range(3):
        text = b64encode(b"\0" * shift + secret).decode()
        bits = 8 * (shift + len(secret))
        core = text[(8 * shift + 5) // 6 : bits // 6]
        if len(core) >= 6:  # shorter cores occur by chance
            cores |= {core, core.replace("+", "-").replace("/", "_")}
    return cores
