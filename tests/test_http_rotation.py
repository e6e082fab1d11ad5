"""A refresh token that the server replaces is there for the next process, and for nobody who reads the ledger."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from retl.errors import LedgerError, Systemic
from retl.ledger import open_ledger
from retl.net.oauth import OAuth2
from retl.observe import redact
from retl.testing.server import FakeApi
from tests import duckdb_files, inprocess


class Rotating(FakeApi):
    """Each refresh token is good for one token: the answer has the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.number, self.answered = 0, 0

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if path == "/token":
            if parse_qs(body.decode())["refresh_token"] != [f"canary-refresh-{self.number}"]:
                return 400, {"error": "invalid_grant"}
            self.number += 1
            return 200, {"access_token": f"a-{self.number}", "refresh_token": f"canary-refresh-{self.number}"}
        if headers.get("authorization") != f"Bearer a-{self.number}":
            return 401, {}
        self.answered += 1
        return 200, {}


@pytest.fixture
def api() -> Iterator[Rotating]:
    redact.forget()
    with Rotating() as api:
        yield api
    redact.forget()


@pytest.fixture
def project(tmp_path: Path, api: Rotating) -> Path:
    (tmp_path / "syncs").mkdir()
    with duckdb_files.opened(tmp_path / "mart.duckdb") as mart:
        mart.execute("CREATE TABLE mart AS SELECT 1 AS id, 'Ann' AS name")
    (tmp_path / "retl.yml").write_text(
        "warehouse: {path: mart.duckdb}\n"
        "connections:\n  crm:\n    type: http\n"
        f"    base_url: {api.url}\n"
        "    auth: {type: oauth2, grant: refresh_token, client_id: me, refresh_token: '${REFRESH}',\n"
        f"           token_url: '{api.url}/token'}}\n"
    )
    (tmp_path / "syncs" / "a.yml").write_text(
        "source: {table: mart}\nkey: [id]\n"
        "destination: {connection: crm, upsert: {path: /rows, row: $row}, check: {path: /me}}\n"
    )
    return tmp_path


def retl(folder: Path, *words: str) -> inprocess.Said:
    environ = {**os.environ, "REFRESH": "canary-refresh-0"}
    return inprocess.answer(("--project", str(folder), *words), environ, Path.cwd())


def test_each_process_goes_on_with_the_newest_token(api: Rotating, project: Path) -> None:
    said = [retl(project, "sync", "--sync", "a", "--full") for _ in range(3)]
    assert [one.code for one in said] == [0, 0, 0], said
    assert (api.number, api.answered) == (3, 6)  # a probe and a write each
    for path in (project / ".retl").rglob("*"):
        assert not path.is_file() or b"canary-refresh" not in path.read_bytes()


def test_a_command_that_may_write_nothing_uses_no_token_up(api: Rotating, project: Path) -> None:
    assert retl(project, "sync", "--sync", "a").code == 0
    said = retl(project, "check")
    assert "OAUTH_ROTATES" in said.out + said.err
    assert said.code == 1
    assert (api.number, api.answered) == (1, 2)
    assert retl(project, "sync", "--sync", "a", "--full").code == 0


def auth(api: Rotating, given: str = "canary-refresh-0") -> OAuth2:
    return OAuth2(
        type="oauth2",
        grant="refresh_token",
        client_id="me",
        refresh_token=given,  # type: ignore[arg-type]
        token_url=f"{api.url}/token",
    )


def test_who_refreshes_second_finds_what_the_first_one_left(api: Rotating, tmp_path: Path) -> None:
    ledger = open_ledger("file:state", tmp_path, environment=None)
    first, second = auth(api), auth(api)
    for one in (first, second):
        one.keep_in(ledger)
        one.headers()
    first._token = None  # another process has used its refresh token up since then
    assert first.headers() == {"Authorization": "Bearer a-3"}
    assert api.number == 3
    assert "canary-refresh-3" in first.secrets()
    ledger.close()


def test_another_token_in_the_definition_begins_anew(api: Rotating, tmp_path: Path) -> None:
    ledger = open_ledger("file:state", tmp_path, environment=None)
    first, second = auth(api), auth(api, "canary-refresh-7")
    for one in (first, second):
        one.keep_in(ledger)
    first.headers()
    api.number = 7
    assert second.headers() == {"Authorization": "Bearer a-8"}
    api.number = 99
    second._token = None
    with pytest.raises(Systemic, match="invalid_grant"):
        second.headers()
    ledger.close()


def test_a_token_that_cannot_be_kept_is_an_error_at_once(api: Rotating, tmp_path: Path) -> None:
    open_ledger("file:state", tmp_path, environment=None).close()
    ledger = open_ledger("file:state", tmp_path, environment=None, create=False)
    one = auth(api)
    one.keep_in(ledger)
    with pytest.raises(Systemic) as caught:
        one.headers()
    assert caught.value.code == "OAUTH_ROTATES"
    with pytest.raises(LedgerError):
        ledger.keep("a", "b")
    ledger.close()
