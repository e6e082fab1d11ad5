"""Lineage for OpenLineage: when each run starts and ends, what it read and where it wrote.

Events contain names, column types, counts and CODEs: no row value, no key, no SQL (a SQL source has a
digest as its name). The standard OPENLINEAGE_* variables and openlineage.yml configure the transport. A
sync that did not start (BLOCKED, PAUSED) has no run and no event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, UUID, uuid5

import structlog
from msgspec import Struct, field
from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    DatasetFacet,
    InputDatasetFacet,
    JobFacet,
    OutputDatasetFacet,
    RunFacet,
    error_message_run,
    input_statistics_input_dataset,
    job_type_job,
    output_statistics_output_dataset,
    parent_run,
    processing_engine_run,
    schema_dataset,
    tags_run,
)

from retl import __version__
from retl.errors import RetlError
from retl.observe import log
from retl.observe.aside import Aside
from retl.observe.redact import redact
from retl.project.definitions import Warehouse
from retl.project.marts import Source
from retl.sources import dbt
from retl.values.sql import split

LIBRARIES = ("openlineage", "urllib3", "requests")
PRODUCER = f"urn:retl-cli:{__version__}"
RUNS = uuid5(NAMESPACE_URL, "urn:retl-cli:run")
ENDS = {
    "SUCCESS": RunState.COMPLETE,
    "SUCCESS_WITH_REJECTS": RunState.COMPLETE,
    "INTERRUPTED": RunState.ABORT,
    "BLOCKED": RunState.ABORT,
}
# Without this the library adds more facts about this machine than lineage needs.
CONFIG: dict[str, Any] = {"facets": {"source_code_location": {"disabled": True}}}


@contextmanager
def listening(environ: Mapping[str, str], name: Callable[[str], tuple[str, str]]) -> Iterator[None]:
    """While open, events of runs are sent. At the end the rest is sent, or dropped after some seconds.
    `name` gives the namespace and name of a sync's source."""
    aside = Aside("LINEAGE_UNSENT", *LIBRARIES)
    client = OpenLineageClient(config=CONFIG)
    lineage = Lineage(lambda event: aside.do(lambda: client.emit(event)), environ, name)
    log.listen(lineage)
    try:
        yield
    finally:
        log.unlisten(lineage)
        lineage.close()
        aside.do(client.close)
        aside.close()


def run_uuid(run_id: str) -> UUID:
    """The same UUID for a run everywhere."""
    return uuid5(RUNS, run_id)


class _Run(Struct):
    """What is known about a run so far."""

    run_id: str
    sync: str
    object: str
    facets: dict[str, RunFacet]
    columns: Mapping[str, str] = field(default_factory=dict)


class Lineage:
    """The listener."""

    def __init__(
        self,
        emit: Callable[[RunEvent], None],
        environ: Mapping[str, str],
        name: Callable[[str], tuple[str, str]],
    ) -> None:
        self._emit = emit
        self._namespace = environ.get("OPENLINEAGE_NAMESPACE", "retl")
        self._parent = _parent(environ.get("OPENLINEAGE_PARENT_ID"))
        self._name = name
        self._runs: dict[str, _Run] = {}

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        bound = structlog.contextvars.get_contextvars()
        match event, self._runs.get(str(bound.get("run_id"))):
            case "run_started", _:
                self._start(str(bound["run_id"]), str(bound["sync"]), fields)
            case "run_abandoned", _Run() as run:  # its process was killed and could not report it
                dead = _Run(fields["dead"], run.sync, run.object, self._facets(None))
                self._tell(dead, RunState.ABORT, {})
            case "mart_described", _Run() as run:
                run.columns = fields["columns"]
            case "run_finished", _Run() as run:
                del self._runs[run.run_id]
                if code := fields["code"]:
                    run.facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(code, "python")
                self._tell(run, ENDS.get(fields["status"], RunState.FAIL), fields["counts"])

    def close(self) -> None:
        """End the runs that did not report their end."""
        for run in self._runs.values():
            self._tell(run, RunState.FAIL, {})
        self._runs.clear()

    def _start(self, run_id: str, sync: str, fields: Mapping[str, Any]) -> None:
        facets = self._facets(fields.get("correlation_id"))
        run = self._runs[run_id] = _Run(run_id, sync, fields["object"], facets)
        self._tell(run, RunState.START, {})

    def _facets(self, correlation_id: str | None) -> dict[str, RunFacet]:
        facets: dict[str, RunFacet] = {
            "processing_engine": processing_engine_run.ProcessingEngineRunFacet(__version__, name="retl")
        }
        if self._parent:
            facets["parent"] = self._parent
        if correlation_id:
            tag = tags_run.TagsRunFacetFields("correlation_id", redact(correlation_id), "RETL")
            facets["tags"] = tags_run.TagsRunFacet([tag])
        return facets

    def _tell(self, run: _Run, state: RunState, counts: Mapping[str, Any]) -> None:
        kind: dict[str, JobFacet] = {"jobType": job_type_job.JobTypeJobFacet("BATCH", "RETL", "SYNC")}
        self._emit(
            RunEvent(
                eventType=state,
                eventTime=datetime.now(UTC).isoformat(),
                run=Run(str(run_uuid(run.run_id)), run.facets),
                job=Job(self._namespace, run.sync, kind),
                inputs=[self._input(run, counts)],
                outputs=[_output(run.object, counts)],
                producer=PRODUCER,
            )
        )

    def _input(self, run: _Run, counts: Mapping[str, Any]) -> InputDataset:
        facets: dict[str, DatasetFacet] = {}
        if run.columns:
            columns = [schema_dataset.SchemaDatasetFacetFields(n, kind) for n, kind in run.columns.items()]
            facets["schema"] = schema_dataset.SchemaDatasetFacet(columns)
        read = input_statistics_input_dataset.InputStatisticsInputDatasetFacet(counts.get("read"))
        statistics: dict[str, InputDatasetFacet] = {"inputStatistics": read} if counts else {}
        namespace, name = self._name(run.sync)
        return InputDataset(namespace, name, facets=facets, inputFacets=statistics)


def _output(object: str, counts: Mapping[str, Any]) -> OutputDataset:
    """`rowCount` is what the run wrote, deletes included."""
    namespace, name = dataset(redact(object))
    sent = sum(counts.get(kind, 0) for kind in ("inserted", "updated", "refreshed", "deleted"))
    written = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(rowCount=sent)
    facets: dict[str, OutputDatasetFacet] = {"outputStatistics": written} if counts else {}
    return OutputDataset(namespace, name, outputFacets=facets)


def dataset(object: str) -> tuple[str, str]:
    """A destination's identity as namespace and name; of a PostgreSQL table by the naming rules of
    OpenLineage, so that it matches the same table in other tools."""
    parts = urlsplit(object)
    if not parts.scheme or not parts.netloc:
        return "retl", object
    namespace = f"{parts.scheme}://{parts.netloc}"
    name = object.removeprefix(namespace).removeprefix("/")
    if parts.scheme == "postgres":
        database, _, table = name.partition("/")
        name = f"{database}.{table}".replace('"', "")
    return namespace, name or "/"


def origin(source: Source, warehouse: Warehouse, folder: Path) -> tuple[str, str]:
    """Namespace and name of a mart: database.schema.table, like dbt's names; a query has the name of
    its file, or a digest."""
    path = Path(warehouse.path).resolve()
    relation = source.table
    if source.dbt is not None:
        try:
            relation = dbt.relation(warehouse, folder, source.dbt)
        except RetlError:  # the run reports the error
            relation = source.dbt
    if relation is not None:
        parts = split(relation)
        name = ".".join([path.stem, "main"][: max(3 - len(parts), 0)] + parts)
    else:
        name = source.file or f"sql:{sha256(str(source.sql).encode()).hexdigest()[:16]}"
    return f"duckdb://{path}", name


def _parent(text: str | None) -> parent_run.ParentRunFacet | None:
    """The facet of OPENLINEAGE_PARENT_ID, namespace/job/run, as other integrations read it. ValueError."""
    if not text:
        return None
    rest, _, run_id = text.rpartition("/")
    namespace, _, job = rest.rpartition("/")
    return parent_run.ParentRunFacet(parent_run.Run(run_id), parent_run.Job(namespace, job))
