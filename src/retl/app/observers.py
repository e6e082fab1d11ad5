"""Reports about runs: traces, lineage and metrics if the environment configures them, and alerts.

It loads only what is configured. Nothing here changes what a run does or how it ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retl.app.loaded import LoadedProject
from retl.errors import DefinitionError, RetlError

if TYPE_CHECKING:
    from retl.app.alerts import Digest
    from retl.ledger import Ledger
    from retl.observe.metrics import Family, Vitals
    from retl.observe.summary import Summary
    from retl.project.definitions import Sync

LOOK_BACK = 10  # how many runs to search for the newest with counts
PREFIXES = ("OTEL_", "TRACEPARENT", "TRACESTATE", "OPENLINEAGE_")


@contextmanager
def listening(project: LoadedProject, *, dry_run: bool = False) -> Iterator[None]:
    """While open, the observers that the environment configures listen to events. A dry run has none."""
    closing = ExitStack()
    closing.callback(_restore, dict(os.environ))
    if not dry_run:
        _begin(project, closing)
    try:
        yield
    finally:
        _harmless(closing.close)


def require_alerts(project: LoadedProject) -> None:
    """DefinitionError if this installation cannot send an alert. One whose address is not set is left out,
    with a warning: a sync does not need it."""
    alerts, lacking = project.alerts
    if alerts:
        from retl.app.alerts import require

        require(alerts)
    if lacking:
        from retl.observe import log

        for _, one in lacking:
            log.get().warning("alert_unset", code=one.code, message=one.message, where=str(one.where))


def alert_end(
    project: LoadedProject,
    environment: str | None,
    sync: Sync,
    ledger: Ledger,
    summary: Summary,
    digest: Digest,
) -> None:
    """Send alerts for a run that ended, or let them wait for the digest. Who mistypes a key reads the error:
    there was no run, and it is nobody else's alert."""
    alerts, _ = project.alerts
    if not alerts or (summary.run_id is None and summary.exit_code == DefinitionError.exit_code):
        return
    from retl.app.alerts import Observation, observe

    document = summary.document()
    counted = ("read", "unchanged", "inserted", "updated", "refreshed", "deleted", "rejected", "skipped")
    counts = {name: document[name] for name in (*counted, "in_doubt", "not_attempted")}
    counts["deletes_not_attempted"] = document["deletes"]["not_attempted"]
    lacks = summary.exit_code == 1 and summary.error is not None  # also a required request that was refused
    status = "FAILED" if lacks else summary.status
    seen = Observation(sync, status, summary.run_id, environment, counts, summary.error, summary.guards)
    observe(alerts, seen, ledger, digest)


def alert_ages(
    project: LoadedProject, environment: str | None, ledger: Ledger, names: Collection[str] | None = None
) -> None:
    """Send alerts for the age of every sync that has a `freshness`, or of those with these names. An alert
    may take long, so each sync is looked at when it is its turn."""
    from retl.app.alerts import Digest, Observation, observe
    from retl.app.freshness import each

    digest = Digest()
    syncs = [one for one in project.syncs.values() if names is None or one.name in names]
    for one in (state.document() for state in each(syncs, ledger)):
        if one["enabled"] and one["freshness_seconds"] is not None:
            age = f"{one['age_seconds']:.0f} s old" if one["age_seconds"] is not None else _unknown(one)
            limit = f"{one['freshness_seconds']:.0f} s are allowed"
            error = {
                "code": "STALE",
                "message": f"{one['sync']} is stale: {age}, {limit}",
                "hint": one["next"],
            }
            seen = Observation(
                project.syncs[one["sync"]],
                "STALE" if one["stale"] else "FRESH",
                one["last_run"],
                environment,
                error=error if one["stale"] else None,
            )
            observe(project.alerts[0], seen, ledger, digest)
    digest.send(ledger)


def _unknown(state: Mapping[str, Any]) -> str:
    """Why a sync has no age."""
    from retl.app.freshness import UNKNOWN_AGE

    return UNKNOWN_AGE if state["last_success"] is not None else "never succeeded"


def has_age_alerts(project: LoadedProject) -> bool:
    """Whether somebody wants to know that a sync is stale."""
    return any(when.event == "stale" for alert in project.definitions.alerts for when in alert.on)


def _begin(project: LoadedProject, closing: ExitStack) -> None:
    from retl.project.settings import exported

    environ: dict[str, str] = {}
    _harmless(lambda: environ.update(exported(project.environment, *PREFIXES)))
    for extra, listen in {"otel": _trace, "lineage": _draw_lineage}.items():
        _harmless(partial(listen, project, environ, closing), extra)


def _restore(environ: Mapping[str, str]) -> None:
    """Remove variables set for libraries, before the next run of this process."""
    for name in os.environ.keys() - environ.keys():
        del os.environ[name]
    os.environ.update(environ)


def _harmless(step: Callable[[], object], extra: str = "") -> None:
    from retl.observe import log

    try:
        step()
    except ImportError as problem:  # clusters set these variables globally, so this is no warning
        why = f"{problem}: pip install 'retl-cli[{extra}]'" if extra else str(problem)
        log.get().info("observer_unavailable", code="OBSERVER_UNAVAILABLE", why=why)
    except Exception as problem:  # noqa: BLE001 - a library may raise anything; the run goes on
        why = problem.message if isinstance(problem, RetlError) else type(problem).__name__
        log.get().warning("observer_unavailable", code="OBSERVER_UNAVAILABLE", why=why)


def _trace(project: LoadedProject, environ: Mapping[str, str], closing: ExitStack) -> None:
    exporter = environ.get("OTEL_TRACES_EXPORTER", "")
    wanted = exporter or any(environ.get(f"OTEL_EXPORTER_OTLP_{of}ENDPOINT") for of in ("", "TRACES_"))
    if not wanted or exporter == "none" or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    from retl.observe import tracing

    batches = project.settings.retl_log_level == "debug"
    closing.enter_context(tracing.listening(environ, batches=batches))


def _draw_lineage(project: LoadedProject, environ: Mapping[str, str], closing: ExitStack) -> None:
    asked = any(name in ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG") for name in environ)
    asked = asked or any(name.startswith("OPENLINEAGE__TRANSPORT__") for name in environ)
    if not asked or environ.get("OPENLINEAGE_DISABLED", "").lower() == "true":
        return
    from retl.app import lineage

    def origin(sync: str) -> tuple[str, str]:
        return lineage.origin(project.syncs[sync].source, project.warehouse, project.folder)

    closing.enter_context(lineage.listening(environ, origin))


def write_metrics(
    project: LoadedProject,
    environment: str | None,
    flag: Path | None,
    ledger: Callable[[], Ledger],
    summaries: Sequence[Summary],
) -> None:
    """Write the metrics file if --metrics-file (relative to the working directory) or RETL_METRICS_FILE
    (relative to the project) names one."""
    setting = project.settings.retl_metrics_file
    path = flag or (project.folder / setting if setting else None)
    if path is None:
        return
    from retl.observe import log, metrics
    from retl.observe.summary import exit_code

    try:
        code = exit_code([one.exit_code for one in summaries])
        content = metrics_text(project, environment, ledger(), summaries, code)
    except Exception as problem:  # noqa: BLE001 - the run is over and has its own exit code
        why = type(problem).__name__
        log.get().warning("metrics_unwritten", code="METRICS_UNWRITTEN", file=str(path), why=why)
        return
    metrics.write(path, content)


def metrics_text(
    project: LoadedProject,
    environment: str | None,
    ledger: Ledger,
    summaries: Sequence[Summary],
    code: int,
    more: Sequence[Family] = (),
) -> str:
    """The metrics of every sync: those of these runs, else of its last run in the ledger. LedgerError."""
    from retl.observe import metrics

    labels = {"project": project.folder.resolve().name} | ({"env": environment} if environment else {})
    vitals = _vitals(project.syncs, ledger, summaries)
    return metrics.text(vitals, exit_code=code, now=ledger.now(), labels=labels, more=more)


def _vitals(syncs: Mapping[str, Sync], ledger: Ledger, summaries: Sequence[Summary]) -> list[Vitals]:
    """Every sync of the project: its result in this invocation, else its last run in the ledger."""
    from retl.observe.metrics import LastRun, Vitals
    from retl.run.resolve import doubts, is_asked

    statuses = {one.sync: one.status for one in summaries}
    rejects = ledger.open_rejects()
    found = []
    for name, sync in sorted(syncs.items()):
        runs = [run for run in ledger.runs(name, LOOK_BACK) if not run.is_look]
        good, stands = ledger.last_success(name), sync.enabled and ledger.paused(name) is None
        counted = next((run for run in runs if run.counts), None)
        known = runs[0].status if runs else "NEVER"
        found.append(
            Vitals(
                sync=name,
                status=statuses.get(name, known) if stands else "PAUSED",
                enabled=sync.enabled,
                open_rejects=rejects.get(name, 0),
                in_doubt=sum(one.rows for one in doubts(ledger, name)) if is_asked(sync) else 0,
                last_success=(good.finished_at or good.started_at) if good else None,
                freshness=sync.freshness,
                run=LastRun(counted.started_at, counted.finished_at, counted.counts, counted.phases)
                if counted
                else None,
            )
        )
    return found
