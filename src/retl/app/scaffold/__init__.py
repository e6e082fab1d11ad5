"""`retl init`: the smallest project that is whole, and says in it what to change first.

It asks nothing and overwrites nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

from retl.errors import DefinitionError, Failure

NEXT = [
    "set DUCKDB_PATH and POSTGRES_* in config.env",
    "retl validate     offline: is everything written down right?",
    "retl check        online: is the destination reached and writable?",
    "retl plan --sync example",
    "retl sync",
]
NEXT_FROM_DBT = [
    "fill in the connections of retl.yml; their variables go into config.env",
    "retl validate     offline: is everything written down right?",
    "retl check        online: is each destination reached and writable?",
    "retl sync --dry-run",
    "retl sync",
]

PROJECT = """\
# What this project reads from and delivers to. Every key may be left out.
warehouse:
  type: duckdb
  path: data/warehouse.duckdb # or DUCKDB_PATH

# The connections `postgres` and `redis` need no line here: POSTGRES_* and REDIS_* fill them. Others:
# connections:
#   crm_db: {type: postgres, host: crm.internal, dbname: crm, user: retl, password: "${CRM_PASSWORD}"}

vars: {run_date: today} # $run_date in SQL, --var run_date=2026-11-20 on the command line
"""

SYNC = """\
# A sync: one SELECT, its key, what its rows must satisfy, and where they go.
description: An example to change
tags: [example]
source: # or {table: mart_users}, or {file: marts/users.sql}
  sql: |
    SELECT 1 AS user_id, 'casual' AS segment, CAST($run_date AS DATE) AS seen_on
key: [user_id]
contract: # a row that breaks it is a reject: it is not sent, and is tried again
  user_id: {type: integer, ge: 1}
  segment: {type: string, one_of: [power, casual, new, dormant]}
  seen_on: {type: date, nullable: true}
destination: {type: postgres, table: example_users, create: true}
write: upsert
deletes: keep # or delete: a key that leaves the mart leaves the table
"""

ENVIRONMENT = """\
# Secrets and addresses of this machine; not for version control. The process's environment wins.
# NAME_FILE (a file) and NAME_COMMAND (a command's output) work wherever NAME does.
#DUCKDB_PATH=data/warehouse.duckdb
#POSTGRES_HOST=localhost
#POSTGRES_PORT=5432
#POSTGRES_DB=crm
#POSTGRES_USER=retl
#POSTGRES_PASSWORD_FILE=/run/secrets/postgres
"""

IGNORED = """\
.retl/
config.env
config.*.env
data/
"""

FILES = {  # path → text and permissions
    "retl.yml": (PROJECT, 0o644),
    "syncs/example.yml": (SYNC, 0o644),
    "config.env": (ENVIRONMENT, 0o600),
    ".gitignore": (IGNORED, 0o644),
}


def write(folder: Path) -> list[Path]:
    """Make the project in `folder` (made if need be) and return what was written, in order.

    DefinitionError FILE_EXISTS, and nothing written, if a file of it or a sync is there already; an
    existing .gitignore is kept as it is. Failure FILE_UNWRITABLE.
    """
    wanted = {folder / name: what for name, what in FILES.items()}
    there = [path for path in wanted if os.path.lexists(path) and path.name != ".gitignore"]
    if there:
        raise DefinitionError(
            "FILE_EXISTS", f"{there[0]} is there already; nothing was written", hint="name another directory"
        )
    return [path for path, (text, mode) in wanted.items() if put(path, text, mode)]


def put(path: Path, text: str, mode: int = 0o644) -> bool:
    """Write a file that is not there yet; False, and nothing written, if it is. Failure FILE_UNWRITABLE."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    except OSError as problem:
        raise Failure("FILE_UNWRITABLE", f"{path} cannot be written: {problem.strerror}") from problem
    return True
