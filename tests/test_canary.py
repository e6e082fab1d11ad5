"""A secret in every place a secret may live, and every way to fail: nobody ever reads it again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from tests import api as fake
from tests.api import Api
from tests.canary import SECRET, Watch, everything, unused_port
from tests.commands import Workshop
from tests.servers import Database, RedisServer

CONSOLE = {"RETL_LOG_FORMAT": "console", "RETL_LOG_LEVEL": "debug"}
JSON = {"RETL_LOG_FORMAT": "json", "RETL_LOG_LEVEL": "debug"}
TABLE = "{type: postgres, table: crm.users, create: true}"
UPSERT = (
    "upsert: {path: /v1/users/batch, wrap: users, max_rows: 10, row: {id: $user_id, attributes: $fields}}"
)
ONCE = "{attempts: 1}"
PEM = "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----"


@dataclass
class Stage:
    """A project, the servers it may speak to, and the watch on everything said."""

    watch: Watch
    postgres: Database
    redis: RedisServer
    api: Api

    @property
    def workshop(self) -> Workshop:
        return self.watch.workshop

    def set(self, **variables: str) -> None:
        self.workshop.environment |= variables

    def secret_file(self, name: str, text: str) -> Path:
        """A file of the user's own that holds the secret."""
        self.workshop.write(name, text)
        self.watch.own.add(self.workshop.folder / name)
        return self.workshop.folder / name

    def into_postgres(self, **parts: str) -> None:
        self.workshop.use(postgres=self.postgres)
        self.workshop.sync("users", **{"destination": TABLE, "retry": ONCE, **parts})

    def over_http(self, auth: str, *, base: str | None = None, more: str = "") -> None:
        """The users to the API, by this `auth`; `T` is a name that does not say that it is secret."""
        self.set(T=SECRET)
        address = base or self.api.url
        connection = f'{{type: http, base_url: "{address}", auth: {auth}{more}, timeouts: {{connect: 2, idle: 2, total: 3}}}}'
        self.workshop.write("retl.yml", f"connections:\n  api: {connection}\n")
        self.workshop.sync("users", destination=f"{{connection: api, {UPSERT}}}", retry=ONCE)


@pytest.fixture
def stage(tmp_path: Path, postgres: Database, redis_server: RedisServer) -> Iterator[Stage]:
    with Api() as api:
        watch = Watch(Workshop(tmp_path / "project"), tmp_path / "temporary")
        yield Stage(watch, postgres, redis_server, api)


Setup = Callable[[Stage], object]
SCENES: dict[str, tuple[str, Setup]] = {}  # name → a code it must end in, and how it is set up


def scene(code: str) -> Callable[[Setup], Setup]:
    def register(setup: Setup) -> Setup:
        SCENES[setup.__name__] = (code, setup)
        return setup

    return register


# PostgreSQL


@scene("28000")
def a_wrong_password(stage: Stage) -> None:
    stage.into_postgres()
    stage.set(POSTGRES_PASSWORD=SECRET)


@scene("28000")
def a_wrong_password_from_a_file(stage: Stage) -> None:
    stage.into_postgres()
    stage.set(POSTGRES_PASSWORD="", POSTGRES_PASSWORD_FILE=str(stage.secret_file("password", SECRET)))


@scene("28000")
def a_wrong_password_from_a_command(stage: Stage) -> None:
    stage.into_postgres()
    stage.set(POSTGRES_PASSWORD="", POSTGRES_PASSWORD_COMMAND=f"cat {stage.secret_file('password', SECRET)}")


@scene("VARIABLE_UNREADABLE")
def a_command_that_prints_the_secret_and_fails(stage: Stage) -> None:
    stage.into_postgres()
    path = stage.secret_file("broken.sh", f"cat <<'X'\n{SECRET}\nX\ncat \"$0\" >&2\nexit 3\n")
    stage.set(POSTGRES_PASSWORD="", POSTGRES_PASSWORD_COMMAND=f"sh {path}")


@scene("28000")
def a_wrong_password_in_config_env(stage: Stage) -> None:
    stage.into_postgres()
    del stage.workshop.environment["POSTGRES_PASSWORD"]
    quoted = SECRET.replace("\\", "\\\\").replace("'", "\\'")
    stage.secret_file("config.env", f"POSTGRES_PASSWORD='{quoted}'\n")


@scene("CONFIG_INVALID")
def a_config_env_with_a_broken_line(stage: Stage) -> None:
    stage.into_postgres()
    stage.secret_file("config.env", f"POSTGRES_PASSWORD {SECRET}\n")


@scene("UNREACHABLE")
def a_server_out_of_reach(stage: Stage) -> None:
    stage.into_postgres()
    stage.set(POSTGRES_PASSWORD=SECRET, POSTGRES_PORT=str(unused_port()))


@scene("TLS")
def a_server_without_tls(stage: Stage) -> None:
    stage.into_postgres()
    stage.set(POSTGRES_PASSWORD=SECRET, POSTGRES_SSLMODE="verify-full", POSTGRES_SSLROOTCERT="system")


@scene("CONFIG_INVALID")
def a_password_where_a_port_belongs(stage: Stage) -> None:
    stage.into_postgres()
    stage.set(POSTGRES_PORT=SECRET)


# definitions that hold the secret


def _broken(stage: Stage, text: str) -> None:
    stage.into_postgres(destination="{connection: crm, table: crm.users}")
    quoted = "'" + SECRET.replace("'", "''") + "'"
    stage.secret_file("retl.yml", text.replace("SECRET", quoted))


BROKEN = {
    "an_unknown_key": (
        "OPTION_UNKNOWN",
        "connections:\n  crm: {type: postgres, host: localhost, passwrd: SECRET}\n",
    ),
    "a_password_that_is_a_mapping": (
        "DEFINITION_INVALID",
        "connections:\n  crm: {type: postgres, password: {is: SECRET}}\n",
    ),
    "a_password_that_is_a_list": (
        "DEFINITION_INVALID",
        "connections:\n  crm: {type: postgres, password: [SECRET]}\n",
    ),
    "a_password_as_port": ("DEFINITION_INVALID", "connections:\n  crm: {type: postgres, port: SECRET}\n"),
    "a_password_as_sslmode": (
        "DEFINITION_INVALID",
        "connections:\n  crm: {type: postgres, sslmode: SECRET}\n",
    ),
    "a_password_twice": (
        "YAML_INVALID",
        "connections:\n  crm: {type: postgres, password: SECRET, password: SECRET}\n",
    ),
    "a_quote_that_does_not_end": (
        "YAML_INVALID",
        "connections:\n  crm: {type: postgres, password: SECRET, host: 'x}\n",
    ),
    "an_unquoted_tail": ("YAML_INVALID", "connections:\n  crm:\n    password: SECRET x\n"),
    "a_state_that_is_none": ("STATE_URL", "state: {url: SECRET}\n"),
    "a_token_as_auth": (
        "DEFINITION_INVALID",
        "connections:\n  crm: {type: http, base_url: 'http://localhost', auth: SECRET}\n",
    ),
    "a_token_as_base_url": ("DEFINITION_INVALID", "connections:\n  crm: {type: http, base_url: SECRET}\n"),
}
for _name, (_code, _text) in BROKEN.items():
    SCENES[_name] = (_code, lambda stage, text=_text: _broken(stage, text))


@scene("VARIABLE_INVALID")
def a_secret_with_a_dollar_and_a_brace(stage: Stage) -> None:
    stage.into_postgres(destination="{connection: crm, table: crm.users}")
    secret = "'${" + SECRET.replace("'", "''") + "}'"
    stage.secret_file("retl.yml", f"connections:\n  crm: {{type: postgres, password: {secret}}}\n")


@scene("YAML_INVALID")
def a_sync_that_is_no_yaml(stage: Stage) -> None:
    stage.into_postgres()
    stage.secret_file("syncs/other.yml", f"description: {SECRET} x: [\n")


@scene("SOURCE_DRIFT")
def a_query_that_fails(stage: Stage) -> None:
    stage.into_postgres(source="{sql: 'SELECT nothing FROM users'}")
    stage.set(POSTGRES_PASSWORD=stage.postgres.password, OTHER_TOKEN=SECRET)


# the ledger


def _state(stage: Stage, url: str) -> None:
    stage.into_postgres()
    stage.set(RETL_STATE_URL=url)


@scene("STATE_UNREACHABLE")
def a_ledger_out_of_reach(stage: Stage) -> None:
    _state(stage, f"postgresql://retl:{quote(SECRET, safe='')}@127.0.0.1:{unused_port()}/ledger")


@scene("STATE_UNREACHABLE")
def a_ledger_with_a_wrong_password(stage: Stage) -> None:
    db = stage.postgres
    _state(stage, f"postgresql://{db.user}:{quote(SECRET, safe='')}@{db.host}:{db.port}/{db.dbname}")


@scene("STATE_URL")
def a_ledger_address_that_is_not_percent_encoded(stage: Stage) -> None:
    _state(stage, f"postgresql://retl:{SECRET}@127.0.0.1/ledger")


@scene("STATE_URL")
def a_ledger_address_with_broken_percent_encoding(stage: Stage) -> None:
    _state(stage, f"postgresql://retl:%zz{quote(SECRET, safe='')}@127.0.0.1/ledger")


@scene("STATE_URL")
def a_ledger_of_another_kind(stage: Stage) -> None:
    _state(stage, f"mysql://retl:{quote(SECRET, safe='')}@127.0.0.1/ledger")


@scene("STATE_UNREADABLE")
def a_corrupt_ledger(stage: Stage) -> None:
    stage.into_postgres()
    stage.set(T_SECRET=SECRET)
    assert stage.workshop.retl("sync").code == 0
    (stage.workshop.folder / ".retl" / "ledger.db").write_bytes(b"no database" * 500)


# Redis


@scene("WRONGPASS")
def a_wrong_redis_password(stage: Stage) -> None:
    stage.workshop.use(redis=stage.redis)
    stage.workshop.sync("users", retry=ONCE)
    stage.set(REDIS_PASSWORD=SECRET)


@scene("CONNECT")
def a_redis_out_of_reach(stage: Stage) -> None:
    a_wrong_redis_password(stage)
    stage.set(REDIS_PORT=str(unused_port()))


@scene("CONNECT")
def a_redis_without_tls(stage: Stage) -> None:
    a_wrong_redis_password(stage)
    stage.set(REDIS_TLS="true")


# HTTP

BEARER = '{type: bearer, token: "${T}"}'
ECHO = {"error": {"code": SECRET, "message": f"your token {SECRET} is bad"}}


def _answering(stage: Stage, status: int, body: str, **headers: str) -> None:
    stage.api.faults.extend([fake.answer(status, body, **headers)] * 200)


@scene("401")
def a_token_that_is_repeated_with_401(stage: Stage) -> None:
    stage.over_http(BEARER)


@scene("403")
def a_token_that_is_repeated_with_403(stage: Stage) -> None:
    stage.over_http(BEARER)
    _answering(stage, 403, json.dumps(ECHO), Content_Type="application/json")


@scene("500")
def a_token_that_is_repeated_with_500(stage: Stage) -> None:
    stage.over_http(BEARER)
    _answering(stage, 500, f"<pre>Authorization: Bearer {SECRET}</pre>", Content_Type="text/html")


@scene("ALL_REFUSED")
def a_token_that_is_repeated_for_every_row(stage: Stage) -> None:
    stage.over_http(BEARER)
    _answering(stage, 422, json.dumps(ECHO), Content_Type="application/json")


@scene("HTTP_307")
def a_redirect_that_carries_the_token(stage: Stage) -> None:
    stage.over_http(BEARER)
    place = f"http://127.0.0.1:{unused_port()}/?token={quote(SECRET, safe='')}"
    _answering(stage, 307, SECRET, Location=place)


@scene("HTTP_UNREACHED")
def an_api_out_of_reach(stage: Stage) -> None:
    stage.over_http(BEARER, base=f"http://127.0.0.1:{unused_port()}")


@scene("HTTP_UNREACHED")
def an_api_without_tls(stage: Stage) -> None:
    stage.over_http(BEARER, base=stage.api.url.replace("http:", "https:"))


@scene("DEFINITION_INVALID")
def a_base_url_with_the_secret_in_it(stage: Stage) -> None:
    stage.over_http("{type: none}", base="http://me:${T}@localhost")


@scene("DEFINITION_INVALID")
def a_base_url_that_is_the_secret(stage: Stage) -> None:
    stage.over_http("{type: none}", base="${T}")


@scene("DEFINITION_INVALID")
def a_token_of_two_lines(stage: Stage) -> None:
    stage.over_http(BEARER)
    stage.set(T=f"{SECRET}\n{SECRET}")


@scene("401")
def a_basic_password(stage: Stage) -> None:
    stage.over_http('{type: basic, username: retl, password: "${T}"}')


@scene("401")
def a_secret_header(stage: Stage) -> None:
    stage.over_http('{type: header, name: X-Api-Key, value: "${T}"}')
    _answering(stage, 401, json.dumps(ECHO), Content_Type="application/json")


@scene("401")
def a_secret_among_the_headers(stage: Stage) -> None:
    stage.over_http("{type: none}", more=', headers: {X-Api-Key: "${T}"}')
    _answering(stage, 401, json.dumps(ECHO), Content_Type="application/json")


@scene("401")
def a_secret_in_the_query(stage: Stage) -> None:
    stage.over_http('{type: query, name: key, value: "${T}"}')
    _answering(stage, 401, f"GET /?key={quote(SECRET, safe='')} refused")


@scene("401")
def a_secret_in_the_body(stage: Stage) -> None:
    stage.over_http('{type: body, name: api_key, value: "${T}"}')
    _answering(stage, 401, json.dumps(ECHO), Content_Type="application/json")


@scene("OAUTH_REFUSED")
def a_client_secret(stage: Stage) -> None:
    stage.over_http(
        f'{{type: oauth2, token_url: "{stage.api.url}/token", client_id: me, client_secret: "${{T}}"}}'
    )
    _answering(
        stage,
        400,
        json.dumps({"error": SECRET, "error_description": SECRET}),
        Content_Type="application/json",
    )


@scene("DEFINITION_INVALID")
def a_private_key_that_is_none(stage: Stage) -> None:
    stage.over_http(
        f'{{type: oauth2, grant: jwt_bearer, token_url: "{stage.api.url}/token", client_id: me, private_key: "${{T}}"}}'
    )
    stage.set(T=PEM.format(SECRET))


# faults of code


@scene("MODEL_UNKNOWN")
def a_model_that_cannot_be_imported(stage: Stage) -> None:
    stage.over_http(BEARER)
    stage.workshop.write("models.py", "import os\nraise RuntimeError('with ' + os.environ['T'])\n")
    lines = (stage.workshop.folder / "syncs" / "users.yml").read_text()
    stage.workshop.write("syncs/users.yml", lines + "contract: models:User\n")


@scene("REJECT_RATE")
def a_model_that_raises(stage: Stage) -> None:
    stage.over_http(BEARER)
    stage.workshop.write("models.py", MODEL)
    lines = (stage.workshop.folder / "syncs" / "users.yml").read_text()
    stage.workshop.write("syncs/users.yml", lines + "contract: models:User\n")


MODEL = """
import os
from pydantic import BaseModel, field_validator
class User(BaseModel):
    user_id: int
    email: str
    @field_validator("email")
    @classmethod
    def _look(cls, email):
        raise KeyError(os.environ["T"])
"""


@pytest.mark.parametrize("name", SCENES)
def test_a_secret_is_never_read_again(stage: Stage, name: str) -> None:
    code, setup = SCENES[name]
    setup(stage)
    watch = stage.watch
    said = watch.retl("sync", "--output", "json", "--debug", **JSON)
    again = watch.retl("sync", **CONSOLE)
    assert said.code != 0, said.err
    assert again.code in (said.code, 75), again.err  # 75: the breaker opened
    assert code in said.out + said.err, said.err
    watch.heard.append(("the database", everything(stage.postgres)))
    assert watch.leaks(SECRET) == []
