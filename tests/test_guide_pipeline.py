"""The guide of the weekly pipeline comes true: its files and its commands, stage by stage as its DAG calls them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import duckdb
import pytest
from msgspec.structs import replace

from retl.testing.server import FakeApi
from tests.api import TOKEN
from tests.commands import Workshop
from tests.inprocess import Said
from tests.proxy import Proxy
from tests.salesforce import Org
from tests.servers import Database

PAGE = (Path(__file__).parents[1] / "docs" / "guides" / "pipeline.md").read_text(encoding="utf-8")
FIELDS = {"ExtId__c", "Events__c", "Events_Before__c", "Seats__c", "Upgrade__c"}
FIRST, SECOND = "2026-11-16", "2026-11-23"


class Events(FakeApi):
    """The product's API: events by week, two on a page."""

    def __init__(self) -> None:
        super().__init__()
        self.weeks: dict[str, list[dict[str, Any]]] = {FIRST: [], SECOND: []}

    def add(self, week: str, account: str, kind: str, **more: Any) -> None:
        number = sum(map(len, self.weeks.values())) + 1
        event = {"event_id": f"e-{number}", "account": account, "kind": kind, "at": f"{week}T08:00:00Z"}
        self.weeks[week].append(event | more)

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        assert headers["authorization"] == f"Bearer {TOKEN}"
        asked = {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
        at, found = int(asked.get("cursor", 0)), self.weeks[asked["week"]]
        following = str(at + 2) if at + 2 < len(found) else None
        return 200, {"data": found[at : at + 2], "meta": {"next": following}}


@pytest.fixture
def events() -> Iterator[Events]:
    with Events() as made:
        for account in ("acme", "bolt", "core"):
            made.add(FIRST, account, "login", seats=3)
        for number in range(120):
            made.add(SECOND, ("acme", "bolt", "core")[number % 3], "login", seats=number)
        made.add(SECOND, "acme", "upgrade_viewed")
        yield made


@pytest.fixture
def org() -> Iterator[Org]:
    with Org("ExtId__c", FIELDS) as made:
        yield made


@pytest.fixture
def ledger(postgres: Database) -> Iterator[Proxy]:
    """The way to the ledger's database."""
    with Proxy(postgres.host, postgres.port) as made:
        yield made


@pytest.fixture
def project(tmp_path: Path, events: Events, org: Org, ledger: Proxy, postgres: Database) -> Workshop:
    workshop = Workshop(tmp_path / "signals")
    reached = replace(postgres, host="127.0.0.1", port=ledger.port)
    workshop.environment |= {
        "EVENTS_URL": events.url,
        "EVENTS_TOKEN": TOKEN,
        "SALESFORCE_ID": "me",
        "SALESFORCE_SECRET": TOKEN,
        "STATE_URL": f"postgresql://{reached.user}:{reached.password}@127.0.0.1:{reached.port}/{reached.dbname}",
        "WEEK": SECOND,
    }
    for path, text in re.findall(r"```yaml\n# (\S+\.yml)\n(.*?)```", PAGE, re.DOTALL):
        here = text.replace("domain: ", f'base_url: "{org.url}"\n    domain: ')
        workshop.write(path, here.replace("match: ExtId__c}", "match: ExtId__c, every: 0.01}"))
    return workshop


def stage(project: Workshop, name: str, **more: str) -> Said:
    """Run what the page's DAG runs."""
    (dag,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (stages,) = (
        ast.literal_eval(one.value)
        for one in ast.parse(dag).body
        if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == "STAGES"
    )
    return project.retl(*stages[name].removeprefix("retl ").split(), **more)


def contacts(org: Org) -> dict[str, tuple[str, str, str]]:
    return {
        held["ExtId__c"]: (held["Events__c"], held["Events_Before__c"], held["Upgrade__c"])
        for held in org.records.values()
    }


def test_two_weeks_go_from_the_api_to_salesforce(project: Workshop, events: Events, org: Org) -> None:
    assert stage(project, "extract", WEEK=FIRST).code == stage(project, "load", WEEK=FIRST).code == 0
    for name in ("extract", "gate", "load"):
        assert (said := stage(project, name)).code == 0, (name, said.err)
    assert contacts(org) == {
        "acme": ("41", "1", "true"),
        "bolt": ("40", "1", "false"),
        "core": ("40", "1", "false"),
    }
    files = str(project.folder / "lake/events/week=*/data/*.parquet")
    assert duckdb.sql(f"SELECT week::VARCHAR, count(*) FROM '{files}' GROUP BY 1 ORDER BY 1").fetchall() == [
        (FIRST, 3),
        (SECOND, 121),
    ]
    sent = org.applied.copy()
    for name in ("extract", "load", "stale"):
        assert stage(project, name).code == 0
    assert org.applied == sent
    events.add(SECOND, "bolt", "export")
    assert stage(project, "extract").code == stage(project, "load").code == 0
    assert org.applied - sent == {("upsert", "bolt"): 1}
    assert contacts(org)["bolt"] == ("41", "1", "false")


def test_bad_events_are_a_file_and_too_many_of_them_a_refusal(project: Workshop, events: Events) -> None:
    events.add(SECOND, "acme", "logout")
    assert stage(project, "extract").code == 0
    (found,) = stage(project, "rejects").document["rejects"]
    assert (found["key"], found["code"]) == ("e-125", "NOT_ONE_OF")
    assert "logout" in str(found)
    for _ in range(5):
        events.add(SECOND, "", "login")
    assert stage(project, "extract").code == 3


def test_the_gate_stops_what_looks_wrong(project: Workshop, events: Events, org: Org) -> None:
    events.weeks[SECOND].clear()
    assert stage(project, "extract", WEEK=FIRST).code == 0
    said = stage(project, "gate")
    assert said.code == 3
    assert "CHECK_FAILED" in said.err
    assert org.records == {}


def test_a_checkpoint_that_is_too_old_is_told(project: Workshop, postgres: Database) -> None:
    assert stage(project, "extract").code == stage(project, "load").code == 0
    assert stage(project, "stale").code == 0
    with postgres.connect() as connection:
        connection.execute(
            "UPDATE retl_runs SET started_at = '2026-11-01T00:00:00Z', finished_at = '2026-11-01T00:00:01Z'"
        )
    assert stage(project, "stale").code == 1


def test_a_load_is_finished_after_its_ledger_s_database_died(
    project: Workshop, org: Org, ledger: Proxy
) -> None:
    assert stage(project, "extract").code == 0
    released = org.move

    def die(name: str, state: str) -> tuple[int, Any]:
        ledger.refuse()
        return released(name, state)

    org.move = die  # type: ignore[method-assign]
    assert stage(project, "load").code == 1
    assert stage(project, "load").code == 1  # it is still gone
    org.move = released  # type: ignore[method-assign]
    ledger.heal()
    assert (said := stage(project, "load")).code == 0, said.err
    assert set(org.applied.values()) == {1}
    assert contacts(org)["acme"] == ("41", "0", "true")
    assert len(org.records) == 3
