"""Traces, as a collector gets them from `retl sync`: whole, telling nothing of the rows, harming nobody."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from retl.observe import log
from retl.observe.summary import PHASES
from retl.observe.tracing import Tracing
from tests.collector import Collector, collecting, silence
from tests.commands import ROWS, Said, Workshop
from tests.servers import RedisServer

CONTRACT = "{user_id: {type: integer}, email: {type: string}, spend: {type: decimal, max_digits: 12, decimal_places: 2, le: 29}}"


@pytest.fixture
def workshop(tmp_path: Path, redis_server: RedisServer) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(redis_server)
    return made


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as server:
        yield server


def spans(collector: Collector) -> list[Span]:
    found = []
    for path, headers, body in collector.requests:
        assert (path, headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            assert "retl" in {one.value.string_value for one in resource.resource.attributes}
            found += [span for scope in resource.scope_spans for span in scope.spans]
    return found


def said_of(span: Span) -> dict[str, object]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def warnings(said: Said) -> list[dict[str, str]]:
    lines = [json.loads(line) for line in said.err.splitlines()]  # nothing else may be on stderr
    return [line for line in lines if line["level"] in ("warning", "error")]


def test_a_run_is_a_span_with_its_phases_in_it(workshop: Workshop, collector: Collector) -> None:
    workshop.sync("users", contract=CONTRACT)
    (told,) = workshop.json(
        "sync", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, RETL_CORRELATION_ID="airflow-7"
    )["syncs"]
    (run,) = [one for one in spans(collector) if not one.parent_span_id]
    phases = [one for one in spans(collector) if one.parent_span_id == run.span_id]
    assert run.name == "sync users"
    assert {one.name for one in phases} == set(PHASES)
    assert len(spans(collector)) == 1 + len(phases)  # batches only where the log says debug
    assert all(one.trace_id == run.trace_id for one in phases)
    assert all(one.start_time_unix_nano <= one.end_time_unix_nano <= run.end_time_unix_nano for one in phases)
    facts = said_of(run)
    assert (facts["retl.sync"], facts["retl.run_id"]) == ("users", told["run_id"])
    assert (facts["retl.status"], facts["retl.exit_code"]) == ("SUCCESS_WITH_REJECTS", 0)
    assert (facts["retl.rows.inserted"], facts["retl.rows.rejected"]) == (ROWS - 1, 1)
    assert facts["retl.correlation_id"] == "airflow-7"
    assert run.status.code == run.status.STATUS_CODE_UNSET
    assert b"@example.com" not in b"".join(body for _, _, body in collector.requests)


def test_batches_have_spans_of_their_own_where_the_log_says_debug(
    workshop: Workshop, collector: Collector
) -> None:
    workshop.sync("users", batch="{rows: 10}")
    workshop.json("sync", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, RETL_LOG_LEVEL="debug")
    (deliver,) = [one for one in spans(collector) if one.name == "deliver"]
    batches = [one for one in spans(collector) if one.parent_span_id == deliver.span_id]
    assert [(one.name, said_of(one)["retl.rows"]) for one in batches] == [("batch", 10)] * (ROWS // 10)
    assert {said_of(one)["retl.attempts"] for one in batches} == {1}


def test_syncs_at_the_same_time_have_traces_of_their_own(workshop: Workshop, collector: Collector) -> None:
    for name in ("first", "second"):
        workshop.sync(name)
    workshop.json("sync", "--jobs", "2", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    found = spans(collector)
    runs = {one.name: one for one in found if not one.parent_span_id}
    assert runs.keys() == {"sync first", "sync second"}
    for run in runs.values():
        assert {one.name for one in found if one.parent_span_id == run.span_id} == set(PHASES)
    assert len({one.trace_id for one in runs.values()}) == 2


def test_a_run_that_never_says_how_it_ended_is_an_error_all_the_same() -> None:
    log.configure("json", "error")
    memory, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracing = Tracing(provider.get_tracer("retl"))
    log.listen(tracing)
    with log.bound(run_id="r1", sync="users"):
        log.event("run_started", object="mail", correlation_id=None, seconds=0.5)
        log.event("phase", phase="freeze")
    assert memory.get_finished_spans() == ()
    tracing.close()
    phase, run = memory.get_finished_spans()
    assert (phase.name, run.name, run.status.status_code) == ("freeze", "sync users", StatusCode.ERROR)
    log.configure("json")


def test_a_run_that_failed_is_an_error_with_its_code(workshop: Workshop, collector: Collector) -> None:
    workshop.sync("users", contract=CONTRACT.replace("le: 29", "le: 1"))
    said = workshop.retl("sync", "--output", "json", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert said.code == 3
    (run,) = [one for one in spans(collector) if not one.parent_span_id]
    assert (run.status.code, run.status.message) == (run.status.STATUS_CODE_ERROR, "REJECT_RATE")
    assert said_of(run)["retl.code"] == "REJECT_RATE"


def test_config_env_and_files_of_secrets_are_enough_and_a_parent_is_joined(
    workshop: Workshop, collector: Collector
) -> None:
    workshop.sync("users")
    workshop.write("headers", "authorization=Bearer%20canary-4711\n")
    workshop.write(
        "config.env",
        f"OTEL_EXPORTER_OTLP_ENDPOINT={collector.url}\nOTEL_EXPORTER_OTLP_HEADERS_FILE=headers\n",
    )
    said = workshop.retl("sync", TRACEPARENT="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    (run,) = [one for one in spans(collector) if one.name == "sync users"]
    assert run.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert run.parent_span_id.hex() == "b7ad6b7169203331"
    assert {headers["authorization"] for _, headers, _ in collector.requests} == {"Bearer canary-4711"}
    assert "canary-4711" not in said.err + said.out


def test_dry_runs_and_runs_that_nobody_asked_about_leave_no_trace(
    workshop: Workshop, collector: Collector
) -> None:
    workshop.sync("users")
    workshop.json("sync", "--dry-run", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    workshop.json("sync", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_TRACES_EXPORTER="none")
    workshop.json("sync", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_SDK_DISABLED="true")
    assert collector.requests == []


def test_a_collector_that_refuses_costs_a_warning(workshop: Workshop, collector: Collector) -> None:
    workshop.sync("users")
    collector.status = 400
    said = workshop.retl("sync", "--output", "json", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert (said.code, said.document["syncs"][0]["status"]) == (0, "SUCCESS")
    assert collector.requests
    assert [one["code"] for one in warnings(said)] == ["TRACES_UNSENT"]


def test_a_collector_that_is_silent_is_waited_for_some_seconds_only(workshop: Workshop) -> None:
    workshop.sync("users")
    with silence() as url:
        said = workshop.retl("sync", "--output", "json", OTEL_EXPORTER_OTLP_ENDPOINT=url)
    assert (said.code, said.document["syncs"][0]["status"]) == (0, "SUCCESS")
    (warning,) = warnings(said)
    assert (warning["code"], warning["why"]) == ("TRACES_UNSENT", "not all was sent within 5 s")


def test_the_console_is_stderr(workshop: Workshop) -> None:
    workshop.sync("users")
    said = workshop.retl("sync", "--output", "json", OTEL_TRACES_EXPORTER="console")
    assert said.document["syncs"][0]["status"] == "SUCCESS"
    assert '"name": "sync users"' in said.err


def test_an_exporter_that_is_not_installed_is_said_and_harms_nobody(workshop: Workshop) -> None:
    workshop.sync("users")
    said = workshop.retl("sync", OTEL_TRACES_EXPORTER="zipkin")
    assert said.code == 0
    assert "OBSERVER_UNAVAILABLE" in said.err
