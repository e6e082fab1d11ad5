"""Starts the configured observers of an invocation: metrics, traces, lineage.

It loads only what is configured. Nothing here changes what a run does or how it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from retl.cli.invocation import Invocation
from retl.errors import RetlError

if TYPE_CHECKING:
    from retl.ledger import Ledger
    from retl.observe.metrics import Vitals
    from retl.observe.summary import Summary
    from retl.project.definitions import Sync

LOOK_BACK = 10  # how many runs to search for the newest with counts
PREFIXES = ("OTEL_", "TRACEPARENT", "TRACESTATE", "OPENLINEAGE_")


@contextmanager
def observed(invocation: Invocation, *, dry_run: bool = False) -> Iterator[None]:
    """While open, the observers that the environment configures listen to events. A dry run has none."""
    closing = ExitStack()
    if not dry_run:
        _begin(invocation, closing)
    try:
        yield
    finally:
        _harmless(closing.close)


def _begin(invocation: Invocation, closing: ExitStack) -> None:
    from retl.project.settings import exported

    environ: dict[str, str] = {}
    _harmless(lambda: environ.update(exported(invocation.project.environment, *PREFIXES)))
    for listen in (_trace, _draw_lineage):
        _harmless(partial(listen, invocation, environ, closing))


def _harmless(step: Callable[[], object]) -> None:
    from retl.observe import log

    try:
        step()
    except ImportError as problem:  # clusters set these variables globally, so this is no warning
        why = f"{problem}: pip install 'retl-cli[otel,lineage]'"
        log.get().info("observer_unavailable", code="OBSERVER_UNAVAILABLE", why=why)
    except Exception as problem:  # noqa: BLE001 - a library may raise anything; the run goes on
        why = problem.message if isinstance(problem, RetlError) else type(problem).__name__
        log.get().warning("observer_unavailable", code="OBSERVER_UNAVAILABLE", why=why)


def _trace(invocation: Invocation, environ: Mapping[str, str], closing: ExitStack) -> None:
    exporter = environ.get("OTEL_TRACES_EXPORTER", "")
    wanted = exporter or any(environ.get(f"OTEL_EXPORTER_OTLP_{of}ENDPOINT") for of in ("", "TRACES_"))
    if not wanted or exporter == "none" or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    from retl.observe import tracing

    batches = invocation.project.settings.retl_log_level == "debug"
    closing.enter_context(tracing.listening(environ, batches=batches))


def _draw_lineage(invocation: Invocation, environ: Mapping[str, str], closing: ExitStack) -> None:
    wanted = any(name in ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG") for name in environ)
    wanted = wanted or any(name.startswith("OPENLINEAGE__TRANSPORT__") for name in environ)
    if not wanted or environ.get("OPENLINEAGE_DISABLED", "").lower() == "true":
        return
    from retl.app import lineage

    project = invocation.project

    def origin(sync: str) -> tuple[str, str]:
        return lineage.origin(project.syncs[sync].source, project.warehouse, project.folder)

    closing.enter_context(lineage.listening(environ, origin))


def write_metrics(
    invocation: Invocation, flag: Path | None, ledger: Ledger | None, summaries: Sequence[Summary]
) -> None:
    """Write the metrics file if --metrics-file (relative to the working directory) or RETL_METRICS_FILE
    (relative to the project) names one."""
    setting = invocation.project.settings.retl_metrics_file
    path = flag or (invocation.project.folder / setting if setting else None)
    if path is None:
        return
    from retl.observe import log, metrics
    from retl.observe.summary import exit_code

    try:
        opened = ledger or invocation.ledger()
        folder = invocation.project.folder.resolve().name
        labels = {"project": folder} | ({"env": invocation.environment} if invocation.environment else {})
        content = metrics.text(
            _vitals(invocation.project.syncs, opened, summaries),
            exit_code=exit_code([one.exit_code for one in summaries]),
            now=opened.now(),
            labels=labels,
        )
    except Exception as problem:  # noqa: BLE001 - the run is over and has its own exit code
        why = type(problem).__name__
        log.get().warning("metrics_unwritten", code="METRICS_UNWRITTEN", file=str(path), why=why)
        return
    metrics.write(path, content)


def _vitals(syncs: Mapping[str, Sync], ledger: Ledger, summaries: Sequence[Summary]) -> list[Vitals]:
    """Every sync of the project: its result in this invocation, else its last run in the ledger."""
    from retl.observe.metrics import LastRun, Vitals
    from retl.run.resolve import doubts

    statuses = {one.sync: one.status for one in summaries}
    rejects = ledger.open_rejects()
    found = []
    for name, sync in sorted(syncs.items()):
        runs, good = ledger.runs(name, LOOK_BACK), ledger.last_success(name)
        counted = next((run for run in runs if run.counts), None)
        known = runs[0].status if runs else "NEVER"
        found.append(
            Vitals(
                sync=name,
                status=statuses.get(name, known) if sync.enabled else "PAUSED",
                enabled=sync.enabled,
                open_rejects=rejects.get(name, 0),
                # other syncs simply send a row without an answer again
                in_doubt=sum(one.rows for one in doubts(ledger, name)) if sync.first_run else 0,
                last_success=(good.finished_at or good.started_at) if good else None,
                freshness=sync.freshness,
                run=LastRun(counted.started_at, counted.finished_at, counted.counts, counted.phases)
                if counted
                else None,
            )
        )
    return found
