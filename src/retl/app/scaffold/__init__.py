"""`retl init`: a minimal complete project, with comments on what to change first.

It asks no questions and overwrites no file.
"""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path

from msgspec import Struct

from retl.errors import DefinitionError, Failure

TRY = "retl demo --serve >> config.env   servers to try it on; or fill in config.env yourself"
NEXT_FROM_DBT = (
    TRY,
    "retl validate     offline: check all definitions, and list the variables that are not set",
    "retl check        online: can each destination be reached and written? `create: true` makes a table",
    "                  that is missing; without it you get the DDL",
    "retl sync --dry-run",
    "retl sync",
)

PROJECT = """\
# What this project reads and where it writes. Every key is optional.
warehouse:
  type: duckdb
  path: data/warehouse.duckdb # or DUCKDB_PATH

# The connections `postgres` and `redis` come from POSTGRES_* and REDIS_*. Add others here:
# connections:
#   crm_db: {type: postgres, host: crm.internal, dbname: crm, user: retl, password: "${CRM_PASSWORD}"}

vars: {run_date: today} # $run_date in SQL, --var run_date=2026-11-20 on the command line
"""

SYNC = """\
# A sync: one SELECT, its key, the contract for its rows, and the destination.
description: An example to change
tags: [example]
source: # or {table: mart_users}, or {file: marts/users.sql}
  sql: |
    SELECT 1 AS user_id, 'casual' AS segment, CAST($run_date AS DATE) AS seen_on
key: [user_id]
contract: # a row that breaks it is a reject: it is not sent, and each run tries it again
  user_id: {type: integer, ge: 1}
  segment: {type: string, one_of: [power, casual, new, dormant]}
  seen_on: {type: date, nullable: true}
destination: {type: postgres, table: example_users, create: true}
write: upsert
deletes: keep # or delete: a key that left the mart is deleted from the table
"""

ABOUT_ENVIRONMENT = """\
# Secrets and addresses of this machine. Do not commit this file. The process's environment wins.
# NAME_FILE (a file) and NAME_COMMAND (a command's output) work wherever NAME does.
"""
ENVIRONMENT = f"""\
{ABOUT_ENVIRONMENT}#DUCKDB_PATH=data/warehouse.duckdb
#POSTGRES_HOST=localhost
#POSTGRES_PORT=5432
#POSTGRES_DB=crm
#POSTGRES_USER=retl
#POSTGRES_PASSWORD_FILE=/run/secrets/postgres
"""

PRIVATE = ".retl/\nconfig.env\nconfig.*.env\n"  # what must not be committed
IGNORED = f"{PRIVATE}data/\n"

Files = dict[str, tuple[str, int]]  # path → text and permissions


def files(project: str, name: str, sync: str, environment: str) -> Files:
    """A project with one sync."""
    return {
        "retl.yml": (project, 0o644),
        f"syncs/{name}.yml": (sync, 0o644),
        "config.env": (environment, 0o600),
        ".gitignore": (IGNORED, 0o644),
    }


class Template(Struct, frozen=True):
    """A new project, and what to do next."""

    files: Files
    steps: tuple[str, ...]


EXAMPLE = Template(
    files(PROJECT, "example", SYNC, ENVIRONMENT),
    (
        "set warehouse.path in retl.yml, if your warehouse is another file",
        TRY,
        "retl validate     offline: check all definitions",
        "retl check        online: can the destination be reached and written?",
        "retl plan --sync example",
        "retl sync",
    ),
)


def write(folder: Path, files: Files) -> list[Path]:
    """Make the project in `folder` (created if necessary) and return the written files, in order.

    DefinitionError FILE_EXISTS, and nothing written, if one of the files exists; an existing .gitignore is
    not changed. Failure FILE_UNWRITABLE.
    """
    wanted = {folder / name: what for name, what in files.items()}
    there = [path for path in wanted if os.path.lexists(path) and path.name != ".gitignore"]
    if there:
        raise DefinitionError(
            "FILE_EXISTS", f"{there[0]} already exists; nothing was written", hint="use another directory"
        )
    return [path for path, (text, mode) in wanted.items() if put(path, text, mode)]


def unprotected(folder: Path) -> list[str]:
    """A note with the lines that the project's .gitignore lacks, if a user's own one was there before."""
    text = (folder / ".gitignore").read_text(encoding="utf-8", errors="replace")
    lines = [line.strip().strip("/") for line in text.splitlines()]
    lacking = [one for one in PRIVATE.split() if not any(fnmatchcase(one.strip("/"), line) for line in lines)]
    if not lacking:
        return []
    return [f"your .gitignore does not exclude secrets, and was not changed: add {', '.join(lacking)}"]


def put(path: Path, text: str, mode: int = 0o644) -> bool:
    """Write a new file; False, and nothing written, if it exists. Failure FILE_UNWRITABLE."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    except OSError as problem:
        raise Failure("FILE_UNWRITABLE", f"{path} cannot be written: {problem.strerror}") from problem
    return True
