"""Environment → Settings: who wins, files and commands, and no value in any error."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from retl.errors import DefinitionError
from retl.observe import redact
from retl.project.settings import (
    Environment,
    PostgresSettings,
    RedisSettings,
    Settings,
    example,
    exported,
    project_folder,
    read,
)
from tests.commands import Workshop


@pytest.fixture(autouse=True)
def _no_secrets() -> Iterator[None]:
    yield
    redact.forget()


def refusal(
    folder: Path, model: type[Settings | PostgresSettings | RedisSettings], **environ: str
) -> DefinitionError:
    with pytest.raises(DefinitionError) as caught:
        read(model, Environment(folder, environ=environ))
    assert caught.value.exit_code == 2
    return caught.value


def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.env").write_text("DUCKDB_PATH=file\nPOSTGRES_HOST=file\nRETL_LOG_LEVEL=debug\n")
    environment = Environment(tmp_path, environ={"DUCKDB_PATH": "env", "POSTGRES_HOST": ""})
    assert read(Settings, environment, duckdb_path="flag").duckdb_path == "flag"
    assert read(Settings, environment, duckdb_path=None).duckdb_path == "env"
    assert read(PostgresSettings, environment).host == "file"
    assert read(Settings, environment).retl_log_level == "debug"
    assert read(Settings, Environment(tmp_path / "elsewhere", environ={})).duckdb_path is None


def test_an_environment_file_of_a_name_stands_instead_of_the_plain_one(tmp_path: Path) -> None:
    (tmp_path / "config.env").write_text("REDIS_HOST=plain\nREDIS_DB=1\n")
    (tmp_path / "config.prod.env").write_text("export REDIS_HOST='prod' # why\n")
    settings = read(RedisSettings, Environment(tmp_path, "prod", environ={}))
    assert (settings.host, settings.db) == ("prod", None)


@pytest.mark.parametrize("name", ["prdo", "../prod", ""])
def test_an_environment_without_a_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DefinitionError) as caught:
        Environment(tmp_path, name, environ={})
    assert caught.value.code == "ENVIRONMENT_UNKNOWN"


def test_a_bad_line_of_config_env_is_named_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "config.env").write_text("A=1\n\nthis is hunter22\n")
    with pytest.raises(DefinitionError) as caught:
        Environment(tmp_path, environ={})
    assert str(caught.value.where) == "config.env:3"
    assert "hunter22" not in str(caught.value)


def test_the_default_connections_are_read_in_the_names_of_their_options(tmp_path: Path) -> None:
    environ = {
        "POSTGRES_HOST": "h",
        "POSTGRES_PORT": "5433",
        "POSTGRES_DB": "crm",
        "POSTGRES_ALLOW_PLAINTEXT": "true",
    }
    settings = read(PostgresSettings, Environment(tmp_path, environ=environ))
    assert settings.model_dump(exclude_none=True) == {
        "host": "h",
        "port": 5433,
        "dbname": "crm",
        "allow_plaintext": True,
    }


def test_a_file_or_a_command_holds_a_value_and_one_line_end_is_not_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(" hunter22\n")
    command = shlex.join([sys.executable, "-c", "print('from $HOME; a command')"])
    environ = {"POSTGRES_PASSWORD_FILE": "secret", "REDIS_PASSWORD_COMMAND": command}
    environment = Environment(tmp_path, environ=environ)
    assert environment.get("POSTGRES_PASSWORD") == " hunter22"
    assert environment.get("REDIS_PASSWORD") == "from $HOME; a command"
    assert redact.redact("( hunter22)(from $HOME; a command)") == "(***)(***)"


def test_the_variable_itself_wins_over_its_file_and_config_env_over_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.env").write_text("A=from-config\nB_COMMAND=false\n")
    environment = Environment(tmp_path, environ={"A_FILE": "missing", "B": "here"})
    assert environment.get("B") == "here"
    with pytest.raises(DefinitionError):
        environment.get("A")


def test_a_variable_may_end_like_a_pointer(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("held")
    environment = Environment(tmp_path, environ={"LOG_FILE": "app.log", "KEY_FILE_FILE": "here"})
    assert environment.get("LOG_FILE") == "app.log"
    assert environment.get("KEY_FILE") == "held"


def test_asking_whether_a_variable_is_set_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    environment = Environment(tmp_path, environ={"A_COMMAND": f"touch {mark}", "B": ""})
    assert environment.has("A")
    assert not environment.has("B")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"POSTGRES_PASSWORD_FILE": "none/hunter22"}, "cannot be read"),
        ({"POSTGRES_PASSWORD_FILE": "empty"}, "is empty"),
        ({"POSTGRES_PASSWORD_FILE": "binary"}, "not UTF-8"),
        ({"POSTGRES_PASSWORD_FILE": "hunter22\0"}, "not a valid path"),
        ({"POSTGRES_PASSWORD_FILE": "/dev/zero"}, "more than"),
        ({"POSTGRES_PASSWORD_COMMAND": "no-such-command hunter22"}, "cannot be started"),
        ({"POSTGRES_PASSWORD_COMMAND": "sh -c 'echo hunter22; echo hunter22 >&2; exit 3'"}, "exit code 3"),
        ({"POSTGRES_PASSWORD_COMMAND": "echo 'hunter22"}, "quotes"),
        ({"POSTGRES_PASSWORD_COMMAND": "true"}, "is empty"),
        ({"POSTGRES_PORT": "hunter22"}, "integer"),
        ({"POSTGRES_PORT": "70000"}, "65535"),
        ({"POSTGRES_ALLOW_PLAINTEXT": "hunter22"}, "boolean"),
    ],
)
def test_an_error_names_the_variable_and_never_shows_a_value(
    environ: dict[str, str], says: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff")
    error = refusal(tmp_path, PostgresSettings, **environ)
    text = f"{error} {error.hint} {error.__cause__}"
    assert next(iter(environ)) in text
    assert says in text
    assert "hunter22" not in text
    assert error.__suppress_context__ or error.__context__ is None


def test_a_command_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retl.project.settings.COMMAND_TIMEOUT", 0.05)
    error = refusal(tmp_path, PostgresSettings, POSTGRES_PASSWORD_COMMAND="sleep 60")
    assert "took longer" in error.message


def test_the_project_is_the_flag_or_the_variable_or_here() -> None:
    assert project_folder(Path("flag"), {"RETL_PROJECT": "env"}) == Path("flag")
    assert project_folder(None, {"RETL_PROJECT": "env"}) == Path("env")
    assert project_folder(None, {}) == Path()
    assert project_folder(None, {"RETL_PROJECT_COMMAND": "echo printed"}) == Path("printed")
    with pytest.raises(DefinitionError, match="RETL_PROJECT_FILE"):
        project_folder(None, {"RETL_PROJECT_FILE": "no/such/file"})


def test_the_example_file_is_fresh_and_lists_everything() -> None:
    text = (Path(__file__).parents[1] / "config.example.env").read_text()
    assert text == example(), "write retl.project.settings.example() to config.example.env"
    variables = [line.partition("=")[0] for line in text.splitlines() if re.match("#[A-Z]", line)]
    postgres = ["HOST", "PORT", "DB", "USER", "PASSWORD", "SSLMODE", "SSLROOTCERT", "ALLOW_PLAINTEXT"]
    redis = ["HOST", "PORT", "DB", "USER", "PASSWORD", "TLS"]
    project = [
        "STATE_URL",
        "PROJECT",
        "LOG_FORMAT",
        "LOG_LEVEL",
        "CORRELATION_ID",
        "METRICS_FILE",
        "WATCH_TOKEN",
        "SERVE_TOKEN",
    ]
    assert variables == [
        "#DUCKDB_PATH",
        *(f"#RETL_{name}" for name in project),
        *(f"#POSTGRES_{name}" for name in postgres),
        *(f"#REDIS_{name}" for name in redis),
    ]


def test_what_libraries_read_themselves_reaches_them_from_config_env_and_from_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_CONFIG_FILE"):
        monkeypatch.setenv(name, "before")
        monkeypatch.delenv(name)
    (tmp_path / "headers").write_text("authorization=4711\n")
    (tmp_path / "config.env").write_text(
        "OTEL_TRACES_EXPORTER=file\nOTEL_EXPORTER_OTLP_HEADERS_FILE=headers\nOTHER=1\nOTEL_CONFIG_FILE=x.yml\n"
    )
    found = exported(Environment(tmp_path, environ={"OTEL_TRACES_EXPORTER": "env"}), "OTEL_")
    assert found == {
        "OTEL_TRACES_EXPORTER": "env",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=4711",
        "OTEL_CONFIG_FILE": "x.yml",
    }
    assert {name: os.environ[name] for name in found} == found
    assert "OTHER" not in os.environ


def test_a_wrong_setting_is_told_in_words_of_retl(tmp_path: Path) -> None:
    for model, environ in ((RedisSettings, {"REDIS_DB": "one"}), (Settings, {"RETL_LOG_FORMAT": "yaml"})):
        said = refusal(tmp_path, model, **environ).message
        assert not any(raw in said for raw in ("Value error", "unable to parse", "Input should")), said


@pytest.mark.parametrize(("mode", "warns"), [(0o644, True), (0o640, True), (0o600, False)])
def test_a_file_of_secrets_that_others_can_read_is_warned_about(
    tmp_path: Path, mode: int, warns: bool
) -> None:
    shop = Workshop(tmp_path / "shop")
    shop.into_sqlite()
    file = shop.folder / "config.env"
    file.write_text("CRM_PASSWORD=hunter22\nHOST=h\nOTHER_TOKEN_FILE=/run/x\nSOME_URL=https://a:pw123@b\n")
    file.chmod(mode)
    for command in ("validate", "check"):
        said = shop.retl(command)
        assert ("chmod 600 config.env" in said.out, "hunter22" in said.out) == (warns, False), said.out
        assert shop.json(command)["exposed_variables"] == (["CRM_PASSWORD", "SOME_URL"] if warns else [])
    file.write_text("HOST=h\n")
    assert "chmod" not in shop.retl("validate").out
