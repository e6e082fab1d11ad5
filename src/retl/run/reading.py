"""One run's look at the mart: bound to its contract, read once by a thread of its own, let go of.

What is held of it afterwards is the workspace's table `mart`. Nothing here asks the ledger or the target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager

from retl.contract import judge
from retl.contract.judge import Contract
from retl.engine import changes, payload
from retl.engine.payload import Payload
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError
from retl.observe import log
from retl.run.job import Clock, Job
from retl.sources import dbt
from retl.sources import duckdb as mart
from retl.sources.dbt import Build
from retl.values.sql import quoted


class Reading:
    """The mart is held from here on until it was read. `contract` judges its rows; `cursor` is a watermark's
    column; `build` dbt's word on it; `identity` tells one state of it from another.

    Raises DefinitionError, SourceError, Mismatch SOURCE_DRIFT, Later MART_LOCKED.
    """

    def __init__(self, job: Job, workspace: Workspace) -> None:
        sync = job.sync
        self.job, self.workspace = job, workspace
        self.build: Build | None = None
        self.payload: Payload | None = None
        self.total = 0  # rows of the mart
        self.failed_checks: list[str] = []
        self._wanted = mart.query(sync.source, job.options.variables, job.folder, job.warehouse)
        self._other = workspace.beside()
        self.identity = mart.attach(self._other, job.warehouse, job.folder, _tell_waiting)
        if sync.source.dbt is not None:
            # dbt can write neither the mart nor another result while we hold the file
            self.build = dbt.build(job.warehouse, job.folder, sync.source.dbt)
            self._wanted = mart.query(sync.source, job.options.variables, job.folder, job.warehouse)
        read_paths = [job.folder / path for path in job.warehouse.read_paths]
        workspace.harden([*read_paths, *job.ledger.readable()])
        columns = mart.columns(self._other, self._wanted)
        if taken := next((name for name in columns if name.lower().startswith("retl ")), None):
            raise DefinitionError(
                "COLUMN_NAME",
                f"the mart's column {taken!r} has a name that retl uses itself",
                hint="give it another name in the source's SQL",
                where=f"sync {sync.name}",
            )
        self.contract: Contract = judge.build(
            sync.contract, columns, job.folder, sync.key, job.warehouse.timezone
        )
        self.cursor = changes.cursor(sync, columns)
        names = dict.fromkeys([*self.contract.columns, *([self.cursor.column] if self.cursor else [])])
        self._columns = {name: columns[name] for name in names}

    @contextmanager
    def under_way(self, clock: Clock, then: Callable[[Workspace], object] | None) -> Iterator[None]:
        """The mart is read, and `then` done with it on the given workspace, while the body runs. What is
        wrong with the mart is raised before anything that the body found. Where the contract edits, its
        rows went through the model before the body begins, and `contract` is that of what they became."""
        with ThreadPoolExecutor(1, "retl-mart") as other:
            reading = other.submit(self._read, then)
            edits = self.contract.edits
            if edits:
                self._finish(reading, clock)
            try:
                yield
            finally:
                if not edits:
                    self._finish(reading, clock)

    def _read(self, then: Callable[[Workspace], object] | None) -> int:
        with closing(self._other):
            try:
                rows = mart.read(self._other, self._wanted, self._columns, "mart")
            finally:
                mart.detach(self._other, self.job.warehouse)
            if then is not None:
                then(self._other)
        return rows

    def _finish(self, reading: Future[int], clock: Clock) -> None:
        with clock.phase("freeze"):
            self.total = reading.result()
            log.event("mart_frozen", rows=self.total)
            log.event("mart_described", columns={n: str(t) for n, t in self._columns.items()}, level="debug")
            sync = self.job.sync
            self.failed_checks = [check for check in sync.checks if self._returns_rows(check)]
            original = "unedited" if self.contract.edits else "mart"
            if sync.rejects.payload:
                self.payload = payload.of(self.contract, original, sync.rejects.mask)
            if self.contract.edits:
                self.contract = changes.edit(
                    self.workspace, self.contract, original if self.payload else None
                )

    def _returns_rows(self, check: str) -> bool:
        listed = ", ".join(map(quoted, self._columns))
        self.workspace.run(f"CREATE OR REPLACE VIEW source AS SELECT {listed} FROM mart")
        return bool(mart.answers(self.workspace, mart.select(check, self.job.options.variables, "checks")))


def _tell_waiting(pid: str) -> None:
    log.event("mart_locked", writer=pid)
