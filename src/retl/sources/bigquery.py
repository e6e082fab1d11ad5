"""BigQuery: a table, a view, or one SELECT in GoogleSQL.

One query is one state of its tables. Rows come through the Storage Read API where the account may use it
(`bigquery.readSessions.create`), else page by page. In `sql` and `file`, `$name` is a variable, which becomes
a quoted value. `max_bytes` limits what one query may bill: beyond it the query is refused before it runs.

The login is Google's own chain (GOOGLE_APPLICATION_CREDENTIALS, workload identity, gcloud), or
`credentials_file`, the key of a service account.

There is no `changes: cdf`: the function CHANGES needs `enable_change_history`, covers one day at most, and
leaves out the last ten minutes, so it cannot end at the state that a run reads.

INT64, FLOAT64, NUMERIC, BOOL, STRING, DATE, DATETIME, TIMESTAMP, and arrays of them are exact. JSON and
structs arrive as JSON; BYTES (base64), TIME, INTERVAL, GEOGRAPHY and RANGE as text. BIGNUMERIC has more
digits than any type here: it arrives as text too; cast it in `sql` where fewer digits are enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from retl.engine.workspace import Workspace
from retl.model import Definition, Duration
from retl.sources import sql
from retl.sources.api import Snapshot, needs
from retl.sources.columnar import Column, connect

_SAME = {
    "INTEGER": "BIGINT", "INT64": "BIGINT", "FLOAT": "DOUBLE", "FLOAT64": "DOUBLE", "BOOLEAN": "BOOLEAN",
    "BOOL": "BOOLEAN", "STRING": "VARCHAR", "DATE": "DATE", "DATETIME": "TIMESTAMP",
    "TIMESTAMP": "TIMESTAMP WITH TIME ZONE", "NUMERIC": "DECIMAL(38,9)",
}  # fmt: skip
_AS_TEXT = {
    "BYTES": "TO_BASE64({x})", "GEOGRAPHY": "ST_ASTEXT({x})", "RECORD": "TO_JSON_STRING({x})",
    "STRUCT": "TO_JSON_STRING({x})", "JSON": "TO_JSON_STRING({x})", "RANGE": "FORMAT('%T', {x})",
}  # fmt: skip


class Project(Definition):
    """A project that pays for the queries, and where they run. `timeout` limits a query; `timezone` applies
    to DATETIME, which has none."""

    type: Literal["bigquery"] = "bigquery"
    project: str
    location: str | None = None
    dataset: str | None = None
    credentials_file: str | None = None
    max_bytes: int | None = Field(default=None, ge=1)
    timeout: Duration = Field(default=3600.0, gt=0)
    timezone: str = "UTC"


class BigQuery(sql.Selecting):
    """A table or a SELECT of BigQuery."""

    Connection = Project
    evidence = "unproved: written from Google's documentation and client; no project to try it on"

    @property
    def identity(self) -> dict[str, str]:
        return {"type": "bigquery", "project": self.connection.project, **self.options.identity}

    def open(self, workspace: Workspace, *, wait: bool = True) -> Snapshot:
        relation = sql.relation(self.options, self.invocation, sql.BIGQUERY, written, backticked)
        folder = self.invocation.folder
        return connect(lambda: _Session(self.connection, relation, folder), workspace, self.options.origin)


class _Session:
    def __init__(self, project: Project, relation: str, folder: Path) -> None:
        with needs("bigquery"):
            from google.cloud import bigquery
        self._bigquery, self._project, self._relation = bigquery, project, relation
        default = None
        if project.dataset is not None:
            default = bigquery.QueryJobConfig(default_dataset=f"{project.project}.{project.dataset}")
        given = {
            "project": project.project,
            "location": project.location,
            "default_query_job_config": default,
        }
        if project.credentials_file is not None:
            path = folder / project.credentials_file
            self._client: Any = bigquery.Client.from_service_account_json(str(path), **given)
        else:
            self._client = bigquery.Client(**given)
        self.version = ""

    def columns(self) -> Sequence[Column]:
        config = self._bigquery.QueryJobConfig(dry_run=True, use_query_cache=False)
        job = self._client.query(f"SELECT * FROM {self._relation}", job_config=config, timeout=60)
        self.version = f"{self._project.project}:{job.created:%Y-%m-%dT%H:%M:%S.%fZ}"
        return [column(field.name, field.field_type, field.mode) for field in job.schema]

    def stream(self, select: str) -> object:
        import pyarrow  # type: ignore[import-untyped]

        config = self._bigquery.QueryJobConfig(maximum_bytes_billed=self._project.max_bytes)
        job = self._client.query(f"SELECT {select} FROM {self._relation}", job_config=config)
        rows = job.result(timeout=self._project.timeout)
        batches = rows.to_arrow_iterable(bqstorage_client=self._storage(), max_queue_size=4)
        first = next(batches, None)
        if first is None:
            return rows.to_arrow(create_bqstorage_client=False)

        def every() -> Any:
            yield first
            yield from batches

        return pyarrow.RecordBatchReader.from_batches(first.schema, every())

    def close(self) -> None:
        self._client.close()

    def _storage(self) -> Any:
        """A client of the Storage Read API; None if it is not installed or has no credential."""
        try:
            from google.cloud import bigquery_storage
        except ImportError:
            return None
        return bigquery_storage.BigQueryReadClient(credentials=self._client._credentials)


def column(name: str, kind: str, mode: str) -> Column:
    """A column of a type as the client names it; `mode` is REPEATED for arrays."""
    read = backticked(name)
    if mode == "REPEATED" and kind in _SAME and kind != "NUMERIC":
        return Column(name, f"{_SAME[kind]}[]", f"{read} AS {read}")
    if mode == "REPEATED":
        return Column(name, "JSON", f"TO_JSON_STRING({read}) AS {read}")
    if kind in _SAME:
        return Column(name, _SAME[kind], f"{read} AS {read}")
    shown = "JSON" if kind in ("RECORD", "STRUCT", "JSON") else "VARCHAR"
    text = _AS_TEXT.get(kind, "CAST({x} AS STRING)").replace("{x}", read)
    return Column(name, shown, f"{text} AS {read}")


def backticked(name: str) -> str:
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def written(value: Any) -> str:
    """A variable as GoogleSQL."""
    return sql.constant(value, _text)


def _text(value: str) -> str:
    """A backslash escapes, and a quote is not doubled."""
    text = value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{text}'"
