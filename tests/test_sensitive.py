"""What the contract calls sensitive is masked wherever people look, whatever went wrong."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests import api as fake
from tests.api import TOKEN, Api
from tests.canary import Watch
from tests.commands import Workshop
from tests.servers import Database

MAIL = "zoe.canary@example.com"
KEY = "key-canary-4711"
CONTRACT = (
    "{user_id: {type: string, sensitive: true}, email: {type: string, nullable: true, sensitive: true,"
    " max_length: 40}, spend: {type: decimal, max_digits: 12, decimal_places: 2}}"
)
COMMANDS = (
    ("sync", "--dry-run"),
    ("plan", "--sync", "users"),
    ("sync",),
    ("explain", "users", "--rows", "20"),
    ("explain", "users", "--read"),
    ("explain", "users", "--key", f"{KEY}-1"),
    ("show",),
    ("rejects",),
    ("status",),
    ("runs",),
    ("report", "--out", "/dev/stdout"),
    ("state",),
    ("check",),
    ("validate",),
)


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    workshop = Workshop(tmp_path / "project")
    workshop.warehouse(
        "CREATE OR REPLACE TABLE users AS SELECT"
        f" '{KEY}-' || i AS user_id, CASE WHEN i = 5 THEN repeat('{MAIL}', 9) ELSE '{MAIL}' || i END AS email,"
        " CAST(i AS DECIMAL(12, 2)) AS spend FROM range(12) t(i)"
    )
    return Watch(workshop, tmp_path / "temporary")


def everything_said(watch: Watch) -> None:
    for number, words in enumerate(COMMANDS):
        output = ("--output", "json") if number % 2 else ()
        watch.retl(*words, *output, "--debug", RETL_LOG_LEVEL="debug", RETL_LOG_FORMAT="json")


def masked(watch: Watch) -> list[str]:
    """Where the watch heard or found a sensitive value; of keys, where it heard them: the ledger needs them."""
    heard = [(where, text) for where, text in watch.heard if not where.startswith("argv")]
    told = [where for where, text in heard if KEY in text or MAIL in text]
    held = [where for where, text in watch.files() if MAIL in text and "warehouse.duckdb" not in where]
    return told + held


def test_where_postgresql_refuses_rows(watch: Watch, postgres: Database) -> None:
    watch.workshop.use(postgres=postgres)
    with postgres.connect() as connection:
        connection.execute(
            "CREATE TABLE users (user_id text PRIMARY KEY, email text CHECK (email NOT LIKE '%com7'), spend numeric(12,2));"
            "CREATE UNIQUE INDEX one_mail ON users (left(email, 23)) WHERE spend > 9"
        )
    watch.workshop.sync(
        "users",
        destination="{type: postgres, table: public.users}",
        contract=CONTRACT,
        guards="{max_reject_rate: 1, max_failed_rate: 1}",
    )
    everything_said(watch)
    assert masked(watch) == []
    rejects = watch.workshop.json("rejects", "--reveal")["rejects"]
    assert {one["code"] for one in rejects} == {"TOO_LONG", "23514", "23505"}
    assert all(one["key"].startswith(KEY) for one in rejects), "the watch looked for what was not there"


@pytest.mark.parametrize("status", [403, 422, 500])
def test_where_an_api_repeats_the_row(watch: Watch, status: int) -> None:
    with Api() as api:
        said = {"error": {"code": MAIL, "message": f"{KEY}-1 has the mail {MAIL}1, which is taken"}}
        api.faults.extend([fake.answer(status, json.dumps(said), Content_Type="application/json")] * 100)
        watch.workshop.environment["API_TOKEN"] = TOKEN
        connection = f'{{type: http, base_url: "{api.url}", auth: {{type: bearer, token: "${{API_TOKEN}}"}}}}'
        watch.workshop.write("retl.yml", f"connections:\n  api: {connection}\n")
        watch.workshop.sync(
            "users",
            destination="{connection: api, upsert: {method: PUT, path: '/v1/users/{user_id}', row: $fields}}",
            contract=CONTRACT,
            retry="{attempts: 1}",
            guards="{max_reject_rate: 1, max_failed_rate: 1}",
        )
        everything_said(watch)
        assert api.seen
    assert masked(watch) == []


def test_where_the_user_s_own_model_raises(watch: Watch, postgres: Database) -> None:
    watch.workshop.use(postgres=postgres)
    watch.workshop.write(
        "models.py",
        """
from pydantic import BaseModel, Field, field_validator
class User(BaseModel):
    user_id: str = Field(json_schema_extra={"sensitive": True})
    email: str = Field(json_schema_extra={"sensitive": True})
    @field_validator("email")
    @classmethod
    def look(cls, email: str) -> str:
        if email.endswith("7"):
            raise ValueError(f"{email} is bad")
        if email.endswith("8"):
            raise KeyError(email)
        return email
""",
    )
    watch.workshop.sync(
        "users",
        destination="{type: postgres, table: public.users, create: true}",
        contract="models:User",
        guards="{max_reject_rate: 1}",
    )
    everything_said(watch)
    assert masked(watch) == []


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o277], ids=oct)
def test_state_and_scratch_are_private_whatever_the_umask(
    watch: Watch, postgres: Database, umask: int
) -> None:
    watch.workshop.use(postgres=postgres)
    watch.workshop.sync("users", destination="{type: postgres, table: public.users, create: true}")
    watch.temporary.mkdir()
    subprocess.run(
        watch.workshop.command("sync"),
        cwd=watch.workshop.folder,
        env=watch.workshop.environ(TMPDIR=str(watch.temporary), RETL_CRASH_AT="delta_written"),
        capture_output=True,
        umask=umask,
        timeout=60,
    )
    state = watch.workshop.folder / ".retl"
    modes = {
        oct(path.stat().st_mode & 0o7777) + (" folder" if path.is_dir() else "")
        for path in (state, *state.rglob("*"))
    }
    assert modes == {"0o600", "0o700 folder"}
    (scratch,) = watch.temporary.iterdir()
    assert any(path.is_file() for path in scratch.rglob("*")), "nothing was left to look at"
    assert scratch.stat().st_mode & 0o7777 == 0o700  # so what is in it is out of reach whatever its mode
