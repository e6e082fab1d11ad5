"""Traces for OpenTelemetry: a span per run, in it one per phase, and per batch with log level debug.

Spans contain names, counts, a status and its CODE: no row value, no key, no text of an error. The standard
OTEL_* variables configure the export. With TRACEPARENT a run belongs to the caller's trace. A sync that did
not start (BLOCKED, PAUSED) has no run and no span.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from threading import Lock
from typing import Any

import structlog
from msgspec import Struct, field
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.trace import Span, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from retl import __version__
from retl.observe import log
from retl.observe.aside import Aside
from retl.observe.redact import redact
from retl.observe.summary import KINDS

GROUP = "opentelemetry_traces_exporter"  # the entry point group of exporters
LIBRARIES = ("opentelemetry", "urllib3", "requests")


@contextmanager
def listening(environ: Mapping[str, str], *, batches: bool) -> Iterator[None]:
    """While open, events become spans. At the end they are sent, or dropped after some seconds."""
    aside = Aside("TRACES_UNSENT", *LIBRARIES)
    named = environ.get("OTEL_SERVICE_NAME") or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create({} if named else {"service.name": "retl"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for name in environ.get("OTEL_TRACES_EXPORTER", "otlp").split(","):
        processor = BatchSpanProcessor(_Telling(_exporter(name.strip(), environ), aside))
        provider.add_span_processor(processor)
    storage_type = {name.lower(): environ[name] for name in ("TRACEPARENT", "TRACESTATE") if name in environ}
    parent = TraceContextTextMapPropagator().extract(storage_type)
    tracing = Tracing(provider.get_tracer("retl", __version__), parent, batches=batches)
    log.listen(tracing)
    try:
        yield
    finally:
        log.unlisten(tracing)
        tracing.close()
        aside.do(provider.shutdown)
        aside.close()


def _exporter(name: str, environ: Mapping[str, str]) -> SpanExporter:
    """ImportError if no installed package has it."""
    if name == "console":
        return ConsoleSpanExporter(out=sys.stderr)  # stdout is for the command's result
    if name == "otlp":
        default = environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", default)
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        raise ImportError(f"no package has an exporter {name}")
    made: SpanExporter = found[0].load()()
    return made


class _Telling(SpanExporter):
    """An exporter that reports failures as our warning, not as the library's lines on stderr."""

    def __init__(self, inner: SpanExporter, aside: Aside) -> None:
        self._inner = inner
        self._aside = aside

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._inner.export(spans)
        except Exception as problem:  # noqa: BLE001 - whatever a library raises, the run goes on
            self._aside.warn(type(problem).__name__)
            return SpanExportResult.FAILURE
        if result is not SpanExportResult.SUCCESS:
            self._aside.warn("the collector did not accept them")
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()


class _Run(Struct):
    """The open spans of a run."""

    span: Span
    phase: Span | None = None
    batches: dict[str, Span] = field(default_factory=dict)
    finished: bool = False


class Tracing:
    """The listener."""

    def __init__(self, tracer: Tracer, parent: Context | None = None, *, batches: bool = False) -> None:
        self._tracer = tracer
        self._parent = parent
        self._batches = batches
        self._runs: dict[str, _Run] = {}
        self._lock = Lock()

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        bound = structlog.contextvars.get_contextvars()
        if "run_id" not in bound:
            return
        with self._lock:
            if event == "run_started":
                self._begin(str(bound["run_id"]), str(bound["sync"]), fields)
            elif run := self._runs.get(str(bound["run_id"])):
                self._follow(run, event, fields)
                if run.finished and run.phase is None:
                    del self._runs[str(bound["run_id"])]
                    run.span.end()

    def close(self) -> None:
        """End the spans of runs that did not report their end."""
        with self._lock:
            for run in self._runs.values():
                for span in (*run.batches.values(), run.phase):
                    if span is not None:
                        span.end()
                if not run.finished:
                    run.span.set_status(Status(StatusCode.ERROR))
                run.span.end()
            self._runs.clear()

    def _begin(self, run_id: str, sync: str, fields: Mapping[str, Any]) -> None:
        attributes = {"retl.sync": sync, "retl.run_id": run_id, "retl.object": redact(fields["object"])}
        if fields.get("correlation_id"):
            attributes["retl.correlation_id"] = redact(fields["correlation_id"])
        started = _ago(fields["seconds"])  # the run may have waited for a lock before it started
        span = self._tracer.start_span(
            f"sync {sync}", self._parent, attributes=attributes, start_time=started
        )
        self._runs[run_id] = _Run(span)

    def _follow(self, run: _Run, event: str, fields: Mapping[str, Any]) -> None:
        match event:
            case "phase":
                run.phase = self._tracer.start_span(fields["phase"], set_span_in_context(run.span))
            case "phase_ended":
                self._end_phase(run, fields)
            case "batch_sending" if self._batches and fields["batch"] not in run.batches:
                attributes = {"retl.batch": fields["batch"], "retl.rows": fields["rows"]}
                within = set_span_in_context(run.phase or run.span)
                run.batches[fields["batch"]] = self._tracer.start_span("batch", within, attributes=attributes)
            case "batch_acknowledged" if fields["batch"] in run.batches:
                span = run.batches.pop(fields["batch"])
                span.set_attribute("retl.attempts", fields["attempts"])
                span.end()
            case "run_finished":
                _conclude(run.span, fields)
                run.finished = True

    def _end_phase(self, run: _Run, fields: Mapping[str, Any]) -> None:
        if run.phase is None:  # it started before the run was known
            started = _ago(fields["seconds"])
            run.phase = self._tracer.start_span(
                fields["phase"], set_span_in_context(run.span), start_time=started
            )
        run.phase.end()
        run.phase = None


def _conclude(span: Span, fields: Mapping[str, Any]) -> None:
    counts = fields["counts"]
    span.set_attributes({f"retl.rows.{name}": counts.get(name, 0) for name in KINDS})
    span.set_attributes({f"retl.{name}": counts.get(name, 0) for name in ("batches", "retries", "bytes")})
    span.set_attributes({"retl.status": fields["status"], "retl.exit_code": fields["exit_code"]})
    if code := fields["code"]:
        span.set_attribute("retl.code", code)
    if fields["exit_code"]:
        span.set_status(Status(StatusCode.ERROR, code))


def _ago(seconds: float) -> int:
    return time.time_ns() - int(seconds * 1e9)
