"""The metrics file, read with Prometheus' own parser: whole, true, and nobody's failure."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from retl.observe import metrics
from retl.testing import FakeSlack, reset
from tests.commands import ROWS, Workshop
from tests.servers import RedisServer

CONTRACT = (
    "{user_id: {type: integer}, email: {type: string, sensitive: true},"
    " spend: {type: decimal, max_digits: 12, decimal_places: 2, le: 29}}"
)
NOW = datetime(2026, 11, 21, 6, tzinfo=UTC)


class Gauges:
    """Every sample of a file, found by its name and some of its labels."""

    def __init__(self, text: str) -> None:
        families = list(text_string_to_metric_families(text))
        assert all(one.type == "gauge" and one.documentation for one in families)
        assert not any(one.name.endswith("_total") for one in families)  # that is a counter's name
        self.samples = [sample for one in families for sample in one.samples]
        identities = [(one.name, tuple(sorted(one.labels.items()))) for one in self.samples]
        assert len(set(identities)) == len(identities)

    def __call__(self, name: str, **labels: str) -> float:
        found = [s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()]
        assert len(found) == 1, (name, labels, found)
        return float(found[0])

    def has(self, name: str, **labels: str) -> bool:
        return any(s.name == name and labels.items() <= s.labels.items() for s in self.samples)

    def status(self, sync: str) -> str:
        (status,) = [
            s.labels["status"]
            for s in self.samples
            if s.name == "retl_run_status" and s.labels["sync"] == sync and s.value == 1
        ]
        return status


@pytest.fixture
def workshop(tmp_path: Path, redis_server: RedisServer) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(redis_server)
    return made


def read(path: Path) -> Gauges:
    return Gauges(path.read_text(encoding="utf-8"))


def test_a_run_is_told_in_the_numbers_of_its_summary(workshop: Workshop, tmp_path: Path) -> None:
    workshop.sync("users", contract=CONTRACT, freshness="26h")
    file = tmp_path / "retl.prom"
    (told,) = workshop.json("sync", "--metrics-file", str(file))["syncs"]
    assert (told["inserted"], told["rejected"]) == (ROWS - 1, 1)
    gauges = read(file)
    for kind in metrics.KINDS:
        assert gauges("retl_run_rows", sync="users", kind=kind, project="project") == told[kind], kind
    for kind in metrics.DELETES:
        assert gauges("retl_run_deletes", sync="users", kind=kind) == told["deletes"][kind]
    assert gauges.status("users") == "SUCCESS_WITH_REJECTS"
    assert gauges("retl_open_rejects", sync="users") == 1
    assert gauges("retl_rows_in_doubt", sync="users") == 0
    assert gauges("retl_run_batches", sync="users") == told["batches"]
    assert gauges("retl_freshness_seconds", sync="users") == 26 * 3600
    assert gauges("retl_invocation_exit_code") == 0
    (shown,) = workshop.json("status")["syncs"]
    ended = datetime.fromisoformat(shown["last_success"]).timestamp()  # to the millisecond
    assert abs(gauges("retl_last_success_timestamp_seconds", sync="users") - ended) < 0.002
    assert gauges("retl_run_phase_seconds", sync="users", phase="deliver") > 0
    assert 0 < gauges("retl_run_duration_seconds", sync="users") < 120


def test_syncs_that_did_not_run_now_keep_their_last_values(workshop: Workshop, tmp_path: Path) -> None:
    for name in ("first", "second", "never"):
        workshop.sync(name)
    workshop.sync("paused", enabled="false")
    file = tmp_path / "retl.prom"
    workshop.json("sync", "--sync", "first")  # before anybody asked for metrics
    workshop.json("sync", "--sync", "second", "--metrics-file", str(file))
    gauges = read(file)
    assert gauges("retl_run_rows", sync="first", kind="inserted") == ROWS
    assert [gauges.status(name) for name in ("first", "second", "never", "paused")] == [
        "SUCCESS",
        "SUCCESS",
        "NEVER",
        "PAUSED",
    ]
    assert gauges("retl_sync_enabled", sync="paused") == 0
    assert not gauges.has("retl_last_success_timestamp_seconds", sync="never")
    assert not gauges.has("retl_run_rows", sync="never")


def test_a_refused_run_is_told_and_the_last_success_stays(workshop: Workshop, tmp_path: Path) -> None:
    workshop.sync("users", contract=CONTRACT)
    workshop.sync("waiting", after="[users]")
    file = tmp_path / "retl.prom"
    workshop.json("sync", "--metrics-file", str(file))
    before = read(file)
    workshop.warehouse("UPDATE users SET spend = 1000 + user_id")
    said = workshop.retl("sync", "--metrics-file", str(file))
    assert said.code == 3
    after = read(file)
    assert (after.status("users"), after.status("waiting")) == ("REFUSED", "BLOCKED")
    assert after("retl_run_rows", sync="waiting", kind="inserted") == ROWS  # of its last run
    assert after("retl_invocation_exit_code") == 3
    assert after("retl_run_rows", sync="users", kind="rejected") == ROWS
    same = "retl_last_success_timestamp_seconds"
    assert after(same, sync="users") == before(same, sync="users")
    assert after("retl_invocation_timestamp_seconds") > before("retl_invocation_timestamp_seconds")


def test_the_file_is_replaced_in_one_step_and_readable_for_the_collector(
    workshop: Workshop, tmp_path: Path
) -> None:
    workshop.sync("users")
    folder = tmp_path / "textfile"
    folder.mkdir()
    file = folder / "retl.prom"
    file.write_text("old\n")
    file.chmod(0o600)
    with file.open() as reading:
        workshop.json("sync", RETL_METRICS_FILE=str(file))
        assert reading.read() == "old\n"  # whoever reads has one whole file or the other
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert [path.name for path in folder.iterdir()] == ["retl.prom"]
    assert read(file).status("users") == "SUCCESS"


def test_a_relative_setting_is_in_the_project_and_an_environment_is_a_label(workshop: Workshop) -> None:
    workshop.sync("users")
    workshop.write("config.prod.env", "RETL_METRICS_FILE=out.prom\n")
    workshop.json("sync", "--env", "prod")
    gauges = read(workshop.folder / "out.prom")
    assert gauges("retl_run_rows", sync="users", kind="read", env="prod") == ROWS


def test_rows_that_got_no_answer_are_in_doubt_until_somebody_resolves_them(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.warehouse("DELETE FROM users WHERE user_id > 1")
    workshop.write("retl.yml", 'connections: {chat: {type: slack, url: "${SLACK_WEBHOOK_URL}"}}\n')
    workshop.sync(
        "users",
        destination="{connection: chat, text: email}",
        write="append",
        first_run="send",
        delivery="at_most_once",
    )
    file = tmp_path / "retl.prom"
    with FakeSlack() as slack:
        workshop.environment |= {"SLACK_WEBHOOK_URL": slack.webhook, "RETL_METRICS_FILE": str(file)}
        slack.misbehave(reset(applied=True))
        assert workshop.retl("sync").code == 1
        gauges = read(file)
        assert (gauges.status("users"), gauges("retl_rows_in_doubt", sync="users")) == ("FAILED", 1)
        workshop.json("resolve", "--delivered", "--yes")
        workshop.json("sync")
    assert read(file)("retl_rows_in_doubt", sync="users") == 0
    assert "hooks" not in file.read_text()


def test_a_plan_carried_out_is_told_as_well(workshop: Workshop, tmp_path: Path) -> None:
    workshop.sync("users")
    file, plan = tmp_path / "retl.prom", tmp_path / "plan"
    workshop.json("plan", "--sync", "users", "--out", str(plan))
    workshop.json("apply", str(plan), RETL_METRICS_FILE=str(file))
    assert read(file)("retl_run_rows", sync="users", kind="inserted") == ROWS


def test_dry_runs_write_nothing(workshop: Workshop, tmp_path: Path) -> None:
    workshop.sync("users")
    file = tmp_path / "retl.prom"
    workshop.json("sync", "--dry-run", "--metrics-file", str(file))
    workshop.json("plan", "--sync", "users", RETL_METRICS_FILE=str(file))
    assert not file.exists()


@pytest.mark.parametrize("place", ["missing/retl.prom", "folder", "link.prom"])
def test_a_file_that_cannot_be_written_is_a_warning_and_no_failure(
    workshop: Workshop, tmp_path: Path, place: str
) -> None:
    workshop.sync("users")
    (tmp_path / "folder").mkdir()
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "link.prom").symlink_to(tmp_path / "elsewhere")
    said = workshop.retl("sync", "--output", "json", "--metrics-file", str(tmp_path / place))
    assert said.code == 0
    assert said.document["syncs"][0]["status"] == "SUCCESS"
    warned = [json.loads(line) for line in said.err.splitlines() if "METRICS_UNWRITTEN" in line]
    assert [one["level"] for one in warned] == ["warning"]
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert not list(tmp_path.rglob("*.tmp"))


def test_labels_come_back_as_they_were() -> None:
    hostile = 'a "quoted" \\ back\\nslash\nand line'
    vitals = metrics.Vitals("users", "SUCCESS", True, 0, 0, NOW, run=metrics.LastRun(NOW, NOW + timedelta(1)))
    gauges = Gauges(metrics.text([vitals], exit_code=0, now=NOW, labels={"project": hostile}))
    assert gauges("retl_open_rejects", project=hostile) == 0
    assert gauges("retl_run_duration_seconds", sync="users") == 86400
    assert gauges("retl_last_success_timestamp_seconds", sync="users") == NOW.timestamp()
