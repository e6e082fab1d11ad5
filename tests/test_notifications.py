"""The guide to messages, run as it stands: each row told once, and only where the sync says how."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retl.testing import FakePagerDuty, FakeServiceNow, FakeSlack, FakeTeams, reset
from tests import duckdb_files, inprocess
from tests.inprocess import Said
from tests.mailserver import PASSWORD, USER, MailServer

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "notifications.md"
MESSAGES = ("late_orders_chat", "late_orders_teams", "late_orders_mail")


class Scene:
    """The guide's project in a folder, and the targets it tells."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.slack, self.teams, self.duty, self.snow = (
            FakeSlack(),
            FakeTeams(),
            FakePagerDuty(),
            FakeServiceNow(),
        )
        self.snow.key = "u_correlation_id"
        self.mail = MailServer()
        self.environ: dict[str, str] = {}

    def begin(self) -> None:
        for name, text in re.findall(r"```yaml\n# (\S+)\n(.*?)```", GUIDE.read_text(), re.DOTALL):
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        retl = self.folder / "retl.yml"
        here = f"host: 127.0.0.1, port: {self.mail.port}, tls: none"
        text = retl.read_text().replace("host: smtp.example.com", here).replace("60, per: 1m", "100")
        for kind, api in (("pagerduty", self.duty), ("servicenow", self.snow)):
            text = text.replace(f"type: {kind},", f"type: {kind}, base_url: '{api.url}',")
        retl.write_text("warehouse: {path: mart.duckdb}\n" + text)
        self.environ = {
            "SLACK_WEBHOOK_URL": self.slack.webhook,
            "TEAMS_WORKFLOW_URL": self.teams.webhook,
            "SMTP_USER": USER,
            "SMTP_PASSWORD": PASSWORD,
            "PAGERDUTY_ROUTING_KEY": self.duty.token,
            "SNOW_USER": "retl",
            "SNOW_PASSWORD": self.snow.token,
        }
        self.write(
            "CREATE TABLE mart_late_orders (order_id VARCHAR, email VARCHAR, name VARCHAR, days BIGINT)"
        )
        self.write("CREATE TABLE mart_broken_feeds (feed VARCHAR, hours BIGINT)")
        self.late("o1", "o2")
        self.write("INSERT INTO mart_broken_feeds VALUES ('sales', 3), ('stock', 5)")

    def write(self, statement: str) -> None:
        with duckdb_files.opened(self.folder / "mart.duckdb") as mart:
            mart.execute(statement)

    def late(self, *orders: str) -> None:
        for order in orders:
            self.write(f"INSERT INTO mart_late_orders VALUES ('{order}', '{order}@x.io', 'Ann', 2)")

    def retl(self, *words: str) -> Said:
        words = ("--project", str(self.folder), *words)
        return inprocess.answer(words, {**os.environ, **self.environ}, Path.cwd())

    def sync(self, *words: str, code: int = 0) -> dict[str, Any]:
        """The summaries by sync."""
        done = self.retl("sync", "--output", "json", *words)
        assert done.code == code, done.out + done.err
        return {one["sync"]: one for one in done.document["syncs"]}

    def told(self) -> list[int]:
        return [len(self.slack.posted), len(self.teams.posted), len(self.mail.taken)]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    with scene.slack, scene.teams, scene.duty, scene.snow, scene.mail:
        scene.begin()
        yield scene


def test_each_row_is_told_once_from_the_second_run_on(scene: Scene) -> None:
    assert scene.retl("validate").code == 0
    scene.sync()
    assert scene.told() == [0, 0, 0], "the rows of the first run were adopted"
    assert scene.duty.objects.keys() == scene.snow.objects.keys() == {"sales", "stock"}
    scene.late("o3", "o4")
    scene.write("UPDATE mart_late_orders SET days = 9 WHERE order_id = 'o1'")
    scene.write("DELETE FROM mart_broken_feeds WHERE feed = 'sales'")
    scene.sync()
    assert scene.slack.posted == scene.teams.posted == {"Order o3 is late": 1, "Order o4 is late": 1}
    assert [message["subject"] for _, _, message in scene.mail.taken] == [
        "Order o3 is 2 days late",
        "Order o4 is 2 days late",
    ]
    assert scene.duty.objects == {"stock": {"summary": "stock is late", "hours": 5}}
    scene.sync()
    assert scene.told() == [2, 2, 2]


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize(
    ("left_out", "code"),
    [("first_run: adopt\n", "first_run"), ("delivery: at_most_once\n", "DELIVERY_MISSING")],
)
def test_messages_are_refused_until_the_sync_says_how(
    scene: Scene, name: str, left_out: str, code: str
) -> None:
    file = scene.folder / "syncs" / f"{name}.yml"
    file.write_text(file.read_text().replace(left_out, ""))
    done = scene.retl("sync", "--sync", name)
    assert done.code == 2
    assert code in done.err
    assert scene.told() == [0, 0, 0]


@pytest.mark.parametrize(("delivery", "times"), [("at_most_once", 1), ("at_least_once", 2)])
def test_a_lost_answer_is_left_in_doubt_or_told_again(scene: Scene, delivery: str, times: int) -> None:
    scene.sync("--sync", "late_orders_chat")
    file = scene.folder / "syncs" / "late_orders_chat.yml"
    file.write_text(file.read_text().replace("at_most_once", delivery))
    scene.late("o3")
    scene.slack.misbehave(reset(applied=True))
    told = scene.sync("--sync", "late_orders_chat", code=2 - times)["late_orders_chat"]
    assert (told["inserted"], told["in_doubt"]) == (times - 1, 2 - times)
    assert scene.slack.posted == {"Order o3 is late": times}
    scene.sync("--sync", "late_orders_chat", code=2 - times)
    assert scene.slack.posted == {"Order o3 is late": times}


def test_a_mail_that_is_put_off_goes_with_the_next_run_under_the_same_message_id(scene: Scene) -> None:
    scene.sync("--sync", "late_orders_mail")
    scene.late("o3", "o4")
    scene.mail.refusals["RCPT"].append("450 4.2.0 greylisted")
    first = scene.sync("--sync", "late_orders_mail", code=1)["late_orders_mail"]
    assert (first["inserted"], first["not_attempted"]) == (1, 1)
    assert scene.sync("--sync", "late_orders_mail")["late_orders_mail"]["inserted"] == 1
    assert {to for _, (to,), _ in scene.mail.taken} == {"o3@x.io", "o4@x.io"}
    assert len(scene.mail.taken) == 2


def test_a_bad_address_costs_its_own_mail(scene: Scene) -> None:
    scene.sync("--sync", "late_orders_mail")
    scene.write("INSERT INTO mart_late_orders VALUES ('o3', 'nobody', 'Ann', 2)")
    scene.late("o4")
    told = scene.sync("--sync", "late_orders_mail")["late_orders_mail"]
    assert [(one["key"], one["code"]) for one in told["rejects"]] == [("o3", "MAIL_ADDRESS")]
    assert len(scene.mail.taken) == 1
