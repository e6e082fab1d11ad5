"""From a sync's `destination` to the class and the options of the real destinations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retl.app.loaded import LoadedProject, Resolved
from retl.app.resolve import open_project
from retl.errors import DefinitionError
from retl.observe import redact
from retl.project.validation import each

HEAD = "source: {table: m}\nkey: [id]\n"
CRM = (
    "connections:\n"
    "  crm_db:\n"
    "    type: postgres\n"
    "    host: localhost\n"
    "    dbname: crm\n"
    "    user: retl\n"
    '    password: "${CRM_PASSWORD}"\n'
    "    limits: {concurrency: 4}\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    redact.forget()
    (tmp_path / "syncs").mkdir()
    yield tmp_path
    redact.forget()


def opened(folder: Path, destination: str, project: str = "", **environ: str) -> LoadedProject:
    (folder / "syncs" / "a.yml").write_text(f"{HEAD}destination: {destination}\n")
    if project:
        (folder / "retl.yml").write_text(project)
    return open_project(folder, environ=environ)


def resolved(folder: Path, destination: str, project: str = "", **environ: str) -> Resolved:
    loaded = opened(folder, destination, project, **environ)
    return loaded.destination(loaded.syncs["a"])


def connection(found: Resolved) -> Any:
    return found.options.connection  # type: ignore[attr-defined]


def refusals(folder: Path, destination: str, project: str = "", **environ: str) -> list[tuple[str, str]]:
    with pytest.raises(DefinitionError) as caught:
        resolved(folder, destination, project, **environ)
    return [(str(error.where), error.code) for error in each(caught.value)]


@pytest.mark.parametrize(
    ("kind", "url", "says"),
    [
        ("webhook", "127.0.0.1:18765/x", "`url`: a webhook's address looks like https://host/path"),
        ("webhook", "http://10.0.0.1/x", "`url`: must be https, or set `allow_plaintext: true`"),
        ("slack", "no address", "`url`: a webhook's address looks like https://host/path"),
        ("epicor", "http://10.0.0.1/x", "`url`: must be https, or set `allow_plaintext: true`"),
    ],
)
def test_a_wrong_value_of_a_presets_connection_is_said_by_the_users_key(
    folder: Path, kind: str, url: str, says: str
) -> None:
    more = ", username: a, password: b, api_key: d" if kind == "epicor" else ""
    project = f'connections:\n  hook: {{type: {kind}, url: "${{U}}"{more}}}\n'
    with pytest.raises(DefinitionError) as caught:
        resolved(folder, "{connection: hook}", project, U=url)
    (error,) = each(caught.value)
    assert error.message.startswith(says)
    assert (str(error.where), "presets/" in error.message) == ("retl.yml:2:9", False)
    assert url not in str(error)


def test_the_type_follows_from_the_connection(folder: Path) -> None:
    found = resolved(
        folder, "{connection: crm_db, table: crm.users, create: true}", CRM, CRM_PASSWORD="hunter22"
    )
    assert (found.name, found.type, found.limits.concurrency) == ("crm_db", "postgres", 4)
    assert found.destination.__module__ == "retl.destinations.postgres.adapter"
    assert (connection(found).host, connection(found).dbname) == ("localhost", "crm")
    assert connection(found).password.get_secret_value() == "hunter22"
    assert redact.redact("password hunter22") == "password ***"


def test_a_type_alone_is_the_default_connection_from_the_environment(folder: Path) -> None:
    environ = {
        "POSTGRES_HOST": "127.0.0.1",
        "POSTGRES_PORT": "5433",
        "POSTGRES_DB": "d",
        "POSTGRES_USER": "u",
    }
    found = resolved(folder, "{type: postgres, table: t}", **environ, POSTGRES_PASSWORD="p4ss")
    assert (found.name, found.type) == ("postgres", "postgres")
    to = connection(found)
    assert (to.host, to.port, to.dbname, to.user) == ("127.0.0.1", 5433, "d", "u")
    assert to.password.get_secret_value() == "p4ss"
    found = resolved(folder, "{type: redis, key: 'r:{id}', ttl: 1h}", REDIS_DB="2", REDIS_PORT="6380")
    assert (found.type, connection(found).db, connection(found).port) == ("redis", 2, 6380)


def test_the_environment_stands_over_the_project_file(folder: Path) -> None:
    project = 'connections:\n  postgres: {type: postgres, host: "${NONE}", dbname: crm, user: file}\n'
    environ = {"POSTGRES_HOST": "localhost", "POSTGRES_USER": "env"}
    for destination in ("{type: postgres, table: t}", "{connection: postgres, table: t}"):
        loaded = opened(folder, destination, project, **environ)
        to = connection(loaded.destination(loaded.syncs["a"]))
        assert (to.host, to.dbname, to.user) == ("localhost", "crm", "env")
        assert loaded.missing() == []


def test_errors_of_options_are_placed_where_they_were_written(folder: Path) -> None:
    broken = CRM.replace("dbname: crm", "dbnam: crm").replace(
        "host: localhost", "host: localhost\n    port: '5432'"
    )
    places = refusals(folder, "{connection: crm_db, tabel: t, create: no}", CRM, CRM_PASSWORD="hunter22")
    assert places == [
        ("syncs/a.yml:3:14", "OPTION_MISSING"),
        ("syncs/a.yml:3:35", "OPTION_UNKNOWN"),
        ("syncs/a.yml:3:53", "DEFINITION_INVALID"),
    ]
    places = refusals(folder, "{connection: crm_db, table: t}", broken, CRM_PASSWORD="hunter22")
    assert places == [
        ("retl.yml:3:5", "OPTION_MISSING"),
        ("retl.yml:5:11", "DEFINITION_INVALID"),
        ("retl.yml:6:5", "OPTION_UNKNOWN"),
    ]


def test_what_the_environment_lacks_is_said_of_the_environment(folder: Path) -> None:
    found = refusals(folder, "{type: postgres, table: t}", POSTGRES_HOST="localhost", POSTGRES_DB="d")
    assert found == [("environment POSTGRES_*", "OPTION_MISSING")]


@pytest.mark.parametrize(
    ("destination", "where", "code"),
    [
        ("{connection: crm_dbs, table: t}", "syncs/a.yml:3:27", "CONNECTION_UNKNOWN"),
        ("{table: t}", "syncs/a.yml:3:14", "CONNECTION_MISSING"),
        ("{connection: crm_db, type: redis}", "syncs/a.yml:3:14", "CONNECTION_TYPE"),
        ("{connection: postgres, type: redis}", "syncs/a.yml:3:14", "CONNECTION_TYPE"),
        ("{type: postgre, table: t}", "syncs/a.yml:3:21", "DESTINATION_UNKNOWN"),
    ],
)
def test_a_connection_that_is_not_there_is_refused(
    destination: str, where: str, code: str, folder: Path
) -> None:
    assert refusals(folder, destination, CRM, CRM_PASSWORD="x") == [(where, code)]


def test_a_type_that_is_not_there_is_refused_where_the_connection_says_it(folder: Path) -> None:
    project = "connections: {a: {type: postgre}}\n"
    assert refusals(folder, "{connection: a}", project) == [("retl.yml:1:25", "DESTINATION_UNKNOWN")]


def test_the_name_of_a_default_connection_is_its_type(folder: Path) -> None:
    project = "connections: {postgres: {type: redis}}\n"
    assert refusals(folder, "{connection: postgres}", project) == [("syncs/a.yml:3:14", "CONNECTION_TYPE")]


def test_no_password_is_in_an_error(folder: Path) -> None:
    bad = {"CRM_PASSWORD": "hunter22", "CRM_PORT": "hunter22"}
    project = CRM.replace("dbname: crm", 'dbname: crm\n    port: "${CRM_PORT}"')
    with pytest.raises(DefinitionError) as caught:
        resolved(folder, "{connection: crm_db, table: t}", project, **bad)
    assert "hunter22" not in f"{caught.value} {caught.value.hint}"


def test_unset_variables_do_not_stop_validation_where_a_text_may_stand(folder: Path) -> None:
    found = resolved(folder, "{connection: crm_db, table: '${TABLE}'}", CRM)
    assert connection(found).password.get_secret_value() == "${CRM_PASSWORD}"


def test_a_connection_that_cannot_be_judged_without_a_variable_says_which(folder: Path) -> None:
    project = 'connections: {api: {type: http, base_url: "${BASE_URL}"}}\n'
    assert refusals(folder, "{connection: api}", project) == [("retl.yml:1:43", "VARIABLE_UNSET")]


def test_a_command_runs_only_for_the_connection_that_needs_it(folder: Path) -> None:
    mark = folder / "ran"
    loaded = opened(folder, "{connection: crm_db, table: t}", CRM, CRM_PASSWORD_COMMAND=f"touch {mark}")
    loaded.require(loaded.select())
    assert not mark.exists()
    with pytest.raises(DefinitionError, match="is empty"):
        loaded.destination(loaded.syncs["a"])
    assert mark.exists()
