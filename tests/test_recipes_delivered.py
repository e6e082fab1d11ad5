"""What the guide of recipes says comes true, on two days: a row comes, one changes, one leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retl.testing import FakeHubSpotLists, FakeSlack
from tests.commands import Workshop
from tests.servers import Database
from tests.test_guide_recipes import MARTS, files

NEXT_DAY = """
UPDATE customers SET plan = NULL WHERE customer_id = 2;
DELETE FROM customers WHERE customer_id = 1;
INSERT INTO customers VALUES (3, 103, 'Cyd', 'cyd@example.com', 'vip');
DELETE FROM order_lines WHERE line = 2
"""


def test_the_recipes_do_what_they_say(tmp_path: Path, postgres: Database) -> None:
    made = Workshop(tmp_path / "project")
    made.use(postgres=postgres)
    for path, text in files("recipes.md").items():
        made.write(path, text)
    with FakeHubSpotLists() as lists, FakeSlack() as slack:
        made.environment |= {
            "HUBSPOT_URL": lists.url,
            "HUBSPOT_TOKEN": lists.token,
            "SLACK_URL": slack.webhook,
        }
        seen = []
        for day in (MARTS, NEXT_DAY):
            made.warehouse(day)
            made.json("sync")
            seen.append((table(postgres, "customers"), table(postgres, "subscriptions"), set(lists.objects)))
        first, second = seen
        assert first[0] == [
            (1, 101, "Ada", "ada@example.com", "vip", 7),
            (2, 102, "Bob", "bob@example.com", "vip", None),
            (4, 104, "Dan", "dan@example.com", "vip", None),
        ]
        assert second[0] == [
            (2, 102, "Bob", "bob@example.com", None, None),
            (3, 103, "Cyd", "cyd@example.com", "vip", 9),
            (4, 104, "Dan", "dan@example.com", "vip", None),
        ]
        assert [row[2] for row in first[1] + second[1]] == [
            *["active"] * 3,
            *("ended", "ended", "active", "active"),
        ]
        assert (first[2], second[2]) == ({"101", "102", "104"}, {"103", "104"})
        assert slack.posted == {"New customer: Cyd": 1}
        assert table(postgres, "order_lines") == [(10, 1, "tea")]
        assert made.retl("explain", "order_lines", "--key", "[10, 1]").code == 0
        made.retl("erase", "--subject", "email=cyd@example.com", "--reason", "asked")
        assert [row for row in table(postgres, "newsletter") if row[0] == 3] == [(3, None)]
        assert [row[0] for row in table(postgres, "customers")] == [2, 4]
        made.json("sync", "customers")
        assert [row[0] for row in table(postgres, "customers")] == [2, 4]


def table(postgres: Database, name: str) -> list[tuple[Any, ...]]:
    with postgres.connect() as connection:
        return connection.execute(f"SELECT * FROM crm.{name} ORDER BY 1").fetchall()
