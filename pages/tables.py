"""docs/reference/: settings, retl.yml, sync files and the ledger, from the models and the DDL."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pages.words import PROJECT, SYNC
from retl.model import Limits
from retl.project.definitions import Engine, Project, Sync, Warehouse
from retl.project.settings import PostgresSettings, RedisSettings, Settings, variable

_LEDGER = Path(__file__).parents[1] / "sql" / "ledger"


def settings() -> str:
    """Every variable of the environment."""
    parts = [
        "# Settings",
        "retl looks for a variable in the process's environment, then in config.env (config.NAME.env with `--env"
        " NAME`): as NAME, as `NAME_FILE` (a file that contains it), as `NAME_COMMAND` (a command that prints it)."
        " An empty variable counts as unset. The first of these wins: a flag, the environment, config.env, retl.yml.",
    ]
    models = {"The project": Settings, "PostgreSQL": PostgresSettings, "Redis": RedisSettings}
    for title, model in models.items():
        rows = ["| variable | | example |", "|---|---|---|"]
        for name, field in model.model_fields.items():
            if not field.exclude:
                example = f"`{field.examples[0]}`" if field.examples else ""
                rows.append(f"| `{variable(model, name)}` | {field.description or ''} | {example} |")
        parts += [f"## {title}", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def project() -> str:
    """The keys of retl.yml."""
    schemas = {"": Project, "warehouse": Warehouse, "engine": Engine, "connections.NAME.limits": Limits}
    parts = [
        "# retl.yml",
        "Optional: a `syncs/` folder and an environment are a complete project. Relative paths are"
        " relative to the project. `${NAME}` is an environment variable; `${NAME:-text}` has a default.",
    ]
    for path, model in schemas.items():
        parts += [f"## {path or 'At the top'}", _keys(model, PROJECT, path)]
    parts += [
        "The options of each connection type are on its page under [destinations](../destinations/http.md)."
    ]
    return "\n\n".join(parts) + "\n"


def syncs() -> str:
    """The keys of a file in syncs/."""
    schema = Sync.model_json_schema()
    parts = [
        "# Sync files",
        "One file per sync in `syncs/`; the file's name is the sync's name. `retl schema` prints all of this as a"
        " JSON Schema for editors. Unknown keys are errors with file, line and column.",
        "## At the top",
        _keys(Sync, SYNC, ""),
    ]
    nested = {
        "source": "Source",
        "contract.COLUMN": "Column",
        "fields.FIELD": "FieldSource",
        "guards": "Guards",
        "guards.drift": "Drift",
        "checks.RESULTS": "Results",
        "assert": "Assertion",
        "assert.count": "Rows",
        "assert.fresh": "Fresh",
        "then": "FollowUp",
    }
    nested |= {"rejects": "Rejects", "formats": "Formats", "batch": "BatchSize", "retry": "Retry"}
    for path, name in nested.items():
        if name in schema["$defs"]:
            parts += [f"## {path}", _rows(schema["$defs"][name], SYNC, path)]
    parts += ["The options of `destination` are on each [destination's page](../destinations/postgres.md)."]
    return "\n\n".join(parts) + "\n"


def ledger() -> str:
    """The tables of the ledger."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(_LEDGER.glob("*.sql")))
    parts = [
        "# The ledger's tables",
        "In `.retl/ledger.db` (SQLite) or in the PostgreSQL that RETL_STATE_URL names; the same tables in both."
        " You may read them; do not write to them. Times are text, ISO 8601 in UTC; counts, phases,"
        " guards, vars, options and errors are JSON as text.",
    ]
    found = re.findall(r"((?:^--.*\n)+)CREATE TABLE (\w+) ", text, re.MULTILINE)
    comments = {name: " ".join(line.strip("- ") for line in lines.splitlines()) for lines, name in found}
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(text)
        tables = database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        for (name,) in tables:
            columns = database.execute(f"PRAGMA table_info({name})").fetchall()
            rows = ["| column | type | |", "|---|---|---|"]
            for _, column, kind, filled, _, key in columns:
                marks = [*(["key"] if key else []), *(["never NULL"] if filled and not key else [])]
                rows.append(f"| `{column}` | {kind} | {', '.join(marks)} |")
            parts += [f"## {name}", *([comments[name]] if name in comments else []), "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def _keys(model: type[BaseModel], words: Mapping[str, str], path: str) -> str:
    return _rows(model.model_json_schema(), words, path)


def _rows(schema: Mapping[str, Any], words: Mapping[str, str], path: str) -> str:
    rows = ["| key | default | |", "|---|---|---|"]
    required = schema.get("required", ())
    for name, part in schema["properties"].items():
        if path or name != "name":  # of a sync it is the name of its file
            full = f"{path}.{name}" if path else name
            default = "required" if name in required else _default(part.get("default"))
            sentence = words.get(full) or part.get("description") or ""
            rows.append(f"| `{name}` | {default} | {sentence}{_choices(part)} |")
    return "\n".join(rows)


def _default(value: Any) -> str:
    if value in (None, [], {}) or isinstance(value, dict):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _choices(part: Mapping[str, Any]) -> str:
    found = part.get("enum") or next((one["enum"] for one in part.get("anyOf", ()) if "enum" in one), [])
    return f" One of {', '.join(f'`{one}`' for one in found)}." if found else ""
