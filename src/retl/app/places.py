"""File, line and column of what is wrong with a sync, where its code and not the file's reader found it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from retl.app.loaded import LoadedProject
from retl.errors import Mismatch, RetlError
from retl.project.definitions import Sync
from retl.project.yamlfile import Loc

ErrorT = TypeVar("ErrorT", bound=RetlError)
_PARTS: Mapping[str, Loc] = {
    "KEY_COLUMN": ("key",),
    "KEY_TYPE": ("key",),
    "KEY_TEMPLATE": ("destination", "key"),
    "DBT_MODEL": ("source", "dbt"),
    "DBT_DATABASE": ("source", "dbt"),
    "STREAM_APPENDS": ("destination", "value"),
    "STREAM_TTL": ("destination", "ttl"),
    "SET_FIELDS": ("fields",),
    "SET_TTL": ("destination", "ttl"),
    "WATERMARK_COLUMN": ("changes",),
    "WATERMARK_LOOKBACK": ("changes",),
    "SCOPE_INVALID": ("deletes",),
    "FIELD_SHARED": ("fields",),
    "COLUMN_UNKNOWN": ("fields",),
    "COLUMN_TYPE": ("source",),
    "SQL_SYNTAX": ("source",),
    "SQL_NOT_ONE_SELECT": ("source",),
    "VAR_MISSING": ("source",),
    "SOURCE_DRIFT": ("source",),
    "OPERATION_UNSUPPORTED": ("write",),
    "HTTP_OPERATION": ("write",),
    "DELIVERY_MISSING": ("delivery",),
    "FIRST_RUN_MISSING": ("first_run",),
    "CASCADE_UNSUPPORTED": ("cascade",),
    "ROLLBACK_UNSUPPORTED": ("rollback",),
    "ROLLBACK_FIELD": ("rollback",),
    "CONFLICTS_UNSUPPORTED": ("conflicts",),
    "CONFLICTS_WINDOW": ("conflicts",),
}


def place(project: LoadedProject, sync: Sync, code: str) -> str:
    """Where the file has the part that an error with this code is about, or the file's begin."""
    return str(project.place(sync, _PARTS.get(code, ())))


def _part(sync: Sync, problem: RetlError) -> Loc:
    """The part of the file that an error, or the mismatch that it reports, is about."""
    found = problem if isinstance(problem, Mismatch) else problem.__cause__
    if isinstance(found, Mismatch) and found.column is not None and sync.contract is not None:
        return ("contract", found.column)
    return _PARTS.get(problem.code, ())


def located(project: LoadedProject, sync: Sync, problem: ErrorT) -> ErrorT:
    """The same error, with a place in the file if it names only the sync and a part of it."""
    if problem.where is None or str(problem.where).startswith(f"sync {sync.name}"):
        _, _, part = str(problem.where or "").partition(": ")
        found = str(project.place(sync, _part(sync, problem)))
        problem.where = found + (f": {part}" if part else "")
    return problem
