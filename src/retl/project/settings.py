"""Environment → Settings. Nothing else reads os.environ.

It looks for a variable NAME in the process's environment, then in config.env (config.NAME.env with --env
NAME): as NAME, as NAME_FILE (a file that contains it), as NAME_COMMAND (a command that prints it, run
without a shell). An empty variable counts as unset. A flag wins over the environment, the environment over
retl.yml and the built-in defaults. Errors name the variable and never show a value.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from copy import copy
from difflib import get_close_matches
from pathlib import Path
from stat import S_IRGRP, S_IROTH
from typing import Annotated, Any, Literal, TypeVar

from dotenv.parser import parse_stream
from pydantic import Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from retl.errors import DefinitionError, Place
from retl.observe.redact import is_secret, register_variable

COMMAND_TIMEOUT = 30.0  # seconds
MAX_BYTES = 1024 * 1024  # of a file or a command's output

_POINTER = re.compile(r"(?<!_CONFIG)_(FILE|COMMAND)$")  # OTEL_CONFIG_FILE itself is a variable
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


class Environment:
    """The variables of one project and one --env NAME, each looked up on demand."""

    def __init__(
        self, folder: Path, name: str | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        """DefinitionError ENVIRONMENT_UNKNOWN if `name` is given and has no file."""
        self.folder = folder
        self.name = name
        self._found: dict[str, str | None] = {}
        self._levels = [dict(os.environ if environ is None else environ), _config(folder, name)]
        for level in self._levels:
            for variable, value in level.items():
                register_variable(variable, value)

    def has(self, name: str) -> bool:
        """Whether the variable is set in some form. Reads no file and runs no command."""
        return self._written(name) is not None

    def names(self) -> set[str]:
        """The names of all variables, as written."""
        return {name for level in self._levels for name in level}

    def in_file(self) -> set[str]:
        """The names of the variables in config.env, as written."""
        return set(self._levels[1])

    def exposed(self) -> list[str]:
        """The names of secrets in config.env, if other users of this machine can read that file."""
        try:
            mode = (self.folder / _file_name(self.name)).stat().st_mode
        except OSError:
            return []
        if not mode & (S_IRGRP | S_IROTH):
            return []
        return sorted(name for name, value in self._levels[1].items() if is_secret(name, value))

    def warnings(self) -> list[str]:
        """What is unsafe about config.env, in sentences."""
        names, file = self.exposed(), _file_name(self.name)
        some = f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        return [f"other users can read {file}, and it has secrets ({some}): chmod 600 {file}"] * bool(names)

    def get(self, name: str) -> str | None:
        """The value, None if unset or empty. DefinitionError VARIABLE_UNREADABLE if its file or command
        fails. Commands run once."""
        if name not in self._found:
            written = self._written(name)
            value = self._found[name] = written and _value(*written, self.folder)
            if value:
                register_variable(name, value)
        return self._found[name]

    def _written(self, name: str) -> tuple[str, str, str] | None:
        return next((found for level in self._levels if (found := _written(level, name))), None)

    def plain(self) -> Environment:
        """The same without what a file would have to be read or a command run for."""
        found = copy(self)
        found._levels = [
            {name: value for name, value in level.items() if not _POINTER.search(name)}
            for level in self._levels
        ]
        found._found = {}
        return found


def _written(level: Mapping[str, str], name: str) -> tuple[str, str, str] | None:
    """What says what NAME is: the variable, how its name ends after NAME, and its text."""
    for ending in ("", "_FILE", "_COMMAND"):
        if text := level.get(name + ending):
            return name + ending, ending, text
    return None


def _value(variable: str, ending: str, text: str, folder: Path) -> str:
    """The value of NAME from what `_written` found. A file is relative to `folder`."""
    if not ending:
        return text
    value = _file(variable, folder / text) if ending == "_FILE" else _command(variable, text)
    if not (value := value.rstrip("\r\n")):
        raise _unreadable(variable, "is empty")
    return value


def _file(variable: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            return _text(variable, file.read(MAX_BYTES + 1))
    except OSError as error:
        raise _unreadable(variable, f"cannot be read: {error.strerror}") from None
    except ValueError:  # a NUL in the path
        raise _unreadable(variable, "is not a valid path") from None


def _command(variable: str, command: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - the user's own command, split by shlex, without a shell
            shlex.split(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=COMMAND_TIMEOUT,
            check=False,
        )
    except OSError as error:
        raise _unreadable(variable, f"cannot be started: {error.strerror}") from None
    except ValueError:
        raise _unreadable(variable, "is not a valid command: check its quotes") from None
    except subprocess.TimeoutExpired:
        raise _unreadable(variable, f"took longer than {COMMAND_TIMEOUT:.0f} s") from None
    if done.returncode != 0:
        raise _unreadable(variable, f"ended with exit code {done.returncode}")
    return _text(variable, done.stdout)


def _text(variable: str, data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise _unreadable(variable, f"returns more than {MAX_BYTES // 1024} KiB")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _unreadable(variable, "returns something that is not UTF-8 text") from None


def _unreadable(variable: str, why: str) -> DefinitionError:
    what = "command" if variable.endswith("_COMMAND") else "file"
    return DefinitionError(
        "VARIABLE_UNREADABLE", f"the {what} that {variable} names {why}", where=f"environment {variable}"
    )


def _file_name(environment: str | None) -> str:
    return "config.env" if environment is None else f"config.{environment}.env"


def _config(folder: Path, name: str | None) -> dict[str, str]:
    if name is not None and not _NAME.fullmatch(name):
        raise DefinitionError(
            "ENVIRONMENT_UNKNOWN", "an environment's name may contain only letters, digits, - and _"
        )
    file = _file_name(name)
    try:
        with (folder / file).open(encoding="utf-8-sig") as stream:
            bindings = list(parse_stream(stream))
    except FileNotFoundError:
        if name is None:
            return {}
        there = [one.name.removeprefix("config.").removesuffix(".env") for one in folder.glob("config.*.env")]
        near = get_close_matches(name, there, n=1)
        create = "create it; it may be empty if the process's environment has all variables"
        raise DefinitionError(
            "ENVIRONMENT_UNKNOWN",
            f"--env {name} needs the file {file} in the project",
            hint=f"did you mean {near[0]!r}?" if near else create,
        ) from None
    except OSError as problem:
        raise DefinitionError(
            "FILE_UNREADABLE", f"cannot be read: {problem.strerror}", where=Place(file)
        ) from None
    except UnicodeDecodeError:
        raise DefinitionError("FILE_UNREADABLE", "cannot be read as UTF-8 text", where=Place(file)) from None
    for binding in bindings:
        if binding.error:
            line = (
                binding.original.line
                + len(binding.original.string)
                - len(binding.original.string.lstrip("\n"))
            )
            raise DefinitionError("CONFIG_INVALID", "each line must be NAME=value", where=Place(file, line))
    return {binding.key: binding.value for binding in bindings if binding.key and binding.value}


class _Variables(PydanticBaseSettingsSource):
    """Fills the models below from the Environment that `read` gave them."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        environment: Environment = self.current_state["environment"]
        return environment.get(variable(self.settings_cls, field_name)), field_name, False

    def __call__(self) -> dict[str, Any]:
        found = {name: self.get_field_value(f, name)[0] for name, f in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_args: Any,
        **_others: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What `read` was given, flags among it, then variables; none of the sources of the library."""
        return init_settings, _Variables(settings_cls)


Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(_Settings):
    """The settings of the project itself; None if the environment does not set them."""

    duckdb_path: str | None = Field(
        None, description="The DuckDB file with the marts.", examples=["data/warehouse.duckdb"]
    )
    retl_state_url: str | None = Field(
        None,
        repr=False,
        description="Where retl stores its state: file:FOLDER or postgresql://… (for new containers).",
        examples=["file:.retl"],
    )
    retl_project: str | None = Field(
        None, description="The project's folder; read from the process's environment only.", examples=["."]
    )
    retl_log_format: Literal["json", "console"] | None = Field(
        None, description="json or console; default: json if stderr is not a terminal.", examples=["json"]
    )
    retl_log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug, info, warning or error.", examples=["info"]
    )
    retl_correlation_id: str | None = Field(
        None, description="Your own id for the run, stored in logs and ledger.", examples=["airflow-run-1"]
    )
    retl_metrics_file: str | None = Field(
        None,
        description="Metrics of every sync, for node_exporter's textfile collector.",
        examples=["/var/lib/node_exporter/textfile/retl.prom"],
    )
    retl_watch_token: SecretStr | None = Field(
        None, description="What POST requests to `retl watch` must have; at least 16 characters."
    )
    retl_serve_token: SecretStr | None = Field(
        None, description="What visitors of `retl serve` must have; at least 16 characters."
    )
    retl_crash_at: str | None = Field(
        None, pattern=r"^[a-z_]+(:[1-9][0-9]*)?$", description="For tests only.", exclude=True
    )


class PostgresSettings(_Settings):
    """POSTGRES_*: the default connection `postgres`, in the names of its options."""

    model_config = SettingsConfigDict(env_prefix="POSTGRES_")

    host: str | None = Field(
        None, description="Server of the default PostgreSQL connection.", examples=["localhost"]
    )
    port: Port | None = Field(None, examples=["5432"])
    dbname: str | None = Field(None, alias="db", examples=["crm"])
    user: str | None = Field(None, examples=["retl"])
    password: SecretStr | None = Field(None, description="There is no default password.")
    sslmode: str | None = Field(
        None, description="The default is verify-full, except for this machine.", examples=["verify-full"]
    )
    sslrootcert: str | None = Field(None, examples=["/etc/ssl/certs/crm.pem"])
    allow_plaintext: bool | None = Field(
        None, description="true allows an unencrypted connection to another machine.", examples=["false"]
    )


class RedisSettings(_Settings):
    """REDIS_*: the default connection `redis`, in the names of its options."""

    model_config = SettingsConfigDict(env_prefix="REDIS_")

    host: str | None = Field(
        None, description="Server of the default Redis connection.", examples=["localhost"]
    )
    port: Port | None = Field(None, examples=["6379"])
    db: Annotated[int, Field(ge=0)] | None = Field(None, examples=["0"])
    user: str | None = Field(None, examples=["default"])
    password: SecretStr | None = Field(None, description="There is no default password.")
    tls: bool | None = Field(None, examples=["true"])


DEFAULT_CONNECTIONS: Mapping[str, type[_Settings]] = {"postgres": PostgresSettings, "redis": RedisSettings}

SettingsT = TypeVar("SettingsT", bound=_Settings)


def read(model: type[SettingsT], environment: Environment, **flags: Any) -> SettingsT:
    """The settings of one model; a flag that is not None wins.

    DefinitionError CONFIG_INVALID names the variable and never its value.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return model(environment=environment, **given)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        name = variable(model, str(first["loc"][0]))
        message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        message = re.sub(r", unable to (parse|interpret) .*", "", message)
        raise DefinitionError("CONFIG_INVALID", message, where=f"environment {name}") from None


def exported(environment: Environment, *prefixes: str) -> dict[str, str]:
    """Put every variable with such a prefix into the process's environment: for libraries that read it
    themselves and do not know config.env, NAME_FILE and NAME_COMMAND."""
    names = {_POINTER.sub("", name) for name in environment.names() if name.startswith(prefixes)}
    found = {name: value for name in sorted(names) if (value := environment.get(name))}
    os.environ.update(found)
    return found


def project_folder(flag: Path | None = None, environ: Mapping[str, str] | None = None) -> Path:
    """--project, else RETL_PROJECT (or its _FILE or _COMMAND), else the working directory."""
    written = None if flag else _written(os.environ if environ is None else environ, "RETL_PROJECT")
    return flag or Path(_value(*written, Path()) if written else ".")


def variable(model: type[BaseSettings], field_name: str) -> str:
    """The environment variable of a field."""
    field = model.model_fields.get(field_name)
    alias = field.alias if field is not None and field.alias else field_name
    return f"{model.model_config.get('env_prefix', '')}{alias}".upper()


def plain_name(name: str) -> str:
    """NAME of NAME, NAME_FILE or NAME_COMMAND."""
    return _POINTER.sub("", name)


def named_by_settings() -> set[str]:
    """The variables that settings and default connections are read from."""
    models = (Settings, PostgresSettings, RedisSettings)
    return {variable(model, field) for model in models for field in model.model_fields}


def example() -> str:
    """The text of config.example.env: every variable, commented out, with its description."""
    lines = [
        "# Copy to config.env (config.NAME.env for --env NAME) and uncomment what you need.",
        "# The process's environment wins over this file. This file wins over retl.yml.",
        "# NAME_FILE=/path (a file) and NAME_COMMAND='command args' (its output) work wherever NAME does.",
    ]
    for model in (Settings, PostgresSettings, RedisSettings):
        lines.append("")
        for name, field in model.model_fields.items():
            if field.exclude:
                continue
            lines += [f"# {field.description}"] if field.description else []
            lines.append(f"#{variable(model, name)}={(field.examples or [''])[0]}")
    return "\n".join(lines) + "\n"
