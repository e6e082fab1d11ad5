"""The whole life of the rows of a sync, for six vendors that were drawn by lot: created, adopted, changed,
refused, throttled, killed, deleted, erased. After every step the vendor holds exactly the mart.

The lot was drawn twice, among the presets that can update and delete. 1,000 rows, the other five vendors, and those
whose way of creating or deleting is their own, are for `make test-all`; without it a few rows and the first vendor
are enough. Of a vendor that has no delete for good, a person removes the object by hand, as retl asks for.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from retl import destinations
from retl.testing import FakeApi, throttled
from retl.values.sql import quoted
from tests import duckdb_files
from tests.commands import Workshop
from tests.presets.proof import Proof

DRAWN_FROM = (
    *("activecampaign", "airtable", "attio", "customerio", "freshdesk", "intercom", "iterable", "mailchimp"),
    *("onesignal", "pardot", "pipedrive", "servicenow", "shopify", "stripe", "vero", "zoho"),
)
LOT = [*random.Random("2026-11-28").sample(DRAWN_FROM, 3), "freshdesk", "attio", "zoho"]
OWN_WAYS = ("close", "epicor", "sap_odata", "zendesk")
ALL = bool(os.environ.get("RETL_TEST_ALL"))
ROWS = 1000 if ALL else 24


def proof_of(name: str) -> Proof:
    module = import_module(f"tests.presets.test_{name}")
    (found,) = (
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Proof) and kind is not Proof
    )
    return found()


class Life:
    """A project that sends the table `mart` to the vendor of a proof."""

    def __init__(self, workshop: Workshop, proof: Proof, api: FakeApi) -> None:
        self.workshop, self.proof, self.api = workshop, proof, api
        self.bad = proof.bad[0] if proof.bad else None
        given = {
            name: value.replace("https://vendor", api.url) if isinstance(value, str) else value
            for name, value in proof.connection.items()
        }
        connection = {
            "type": proof.preset,
            "base_url": given.get("url", api.url),
            **given,
            "limits": {"share": 1, "requests": 10**6, "per_day": 10**6},
        }
        destination = {"connection": "vendor", **proof.parameters, **(proof.deletes or {})}
        sync = {
            "source": {"table": "mart"},
            "key": [proof.key],
            "destination": destination,
            "deletes": "delete",
            "retry": {"attempts": 9},
        }
        project = {"warehouse": {"path": "data/warehouse.duckdb"}, "connections": {"vendor": connection}}
        workshop.write("retl.yml", json.dumps(project))
        workshop.write("syncs/life.yml", json.dumps(sync))
        self.key = quoted(proof.key)
        self.name, self.visits = (quoted(one.name) for one in proof.fields)  # a text and a number
        self.sql(f"CREATE TABLE mart ({self.key} VARCHAR, {self.name} VARCHAR, {self.visits} BIGINT)")

    def sql(self, *statements: str) -> None:
        for statement in statements:
            self.workshop.warehouse(statement)

    def rename(self, prefix: str, where: str) -> None:
        """New names for the rows whose number is as `where` says."""
        name = f"'{prefix} ' || {self.visits}"
        self.sql(f"UPDATE mart SET {self.name} = {name} WHERE {self.visits} {where}")

    def held(self, key: str) -> Any:
        """The vendor's object of a key."""
        return self.proof.contents(self.api).get(key)

    def add(self, first: int, last: int) -> None:
        self.sql(
            f"INSERT INTO mart SELECT 'k' || lpad(i::VARCHAR, 4, '0') || '@x.io', 'name ' || i, i"
            f" FROM range({first}, {last}) t(i)"
        )

    def sync(self, *words: str, code: int = 0) -> Any:
        said = self.workshop.retl("sync", "--sync", "life", "--output", "json", *words)
        assert said.code == code, said.err
        return json.loads(said.out)["syncs"][0]

    def exact(self) -> None:
        """The vendor holds the mart, without what it refuses, and nothing came twice."""
        path = self.workshop.folder / "data" / "warehouse.duckdb"
        with duckdb_files.opened(path, read_only=True) as mart:
            rows = mart.execute(f"SELECT * FROM mart ORDER BY {self.key}").fetchall()
        wanted = self.proof.expected([row for row in rows if row[0] != self.bad])
        assert self.proof.contents(self.api) == wanted
        assert not getattr(self.api, "doubled", 0)


@pytest.mark.parametrize("name", [*LOT, *OWN_WAYS] if ALL else LOT[:1])
def test_the_whole_life_of_a_vendor_s_rows_ends_exact(name: str, tmp_path: Path) -> None:
    proof = proof_of(name)
    with proof.vendor() as api:
        life = Life(Workshop(tmp_path / "project"), proof, api)
        some = ROWS // 4
        life.add(0, some)  # what is there before this project knows of it
        life.sync()
        shutil.rmtree(life.workshop.folder / ".retl")
        name, theirs = proof.fields[0].name, "k0001@x.io"
        life.held(theirs)[name] = "somebody's"

        life.add(some, ROWS)  # the others are created, those that are there adopted
        assert life.held(theirs)[name] == "somebody's"
        assert life.sync()["inserted"] == ROWS
        life.exact()
        assert life.sync()["unchanged"] == ROWS

        life.rename("changed", "% 5 = 0")
        assert life.sync()["updated"] == len(range(0, ROWS, 5))
        life.exact()

        assert proof.bad is not None
        values = ", ".join("NULL" if v is None else repr(v) for v in proof.bad)
        life.sql(f"INSERT INTO mart VALUES ({values})")
        life.rename("good", "= 3")
        done = life.sync()
        assert (done["status"], done["rejected"], done["updated"]) == ("SUCCESS_WITH_REJECTS", 1, 1)
        life.exact()
        life.sql(f"DELETE FROM mart WHERE {life.key} = '{proof.bad[0]}'")

        life.rename("storm", "% 6 = 0")
        api.misbehave(*[throttled(0)] * 5)
        assert life.sync()["updated"] == len(range(0, ROWS, 6))
        assert not api.faults  # each of them was met
        life.exact()

        life.rename("killed", "% 2 = 0")
        killed = life.workshop.process("sync", "--sync", "life", RETL_CRASH_AT="batch_answered:1")
        assert killed.code == -9, killed.err
        arrived = sum(str(one[name]).startswith("killed") for one in proof.contents(api).values())
        assert 0 < arrived < ROWS // 2  # some of the rows arrived, and no answer is recorded
        assert life.sync()["updated"] >= ROWS // 2 - arrived
        life.exact()

        life.sql(f"DELETE FROM mart WHERE {life.visits} % 4 = 1")
        gone = len(range(1, ROWS, 4))
        assert life.sync("--allow-deletes", str(gone))["deleted"] == gone
        life.exact()

        key = "k0002@x.io"
        erased = life.workshop.retl("erase", "--sync", "life", "--key", key, "--reason", "ticket 1")
        if not destinations.load(proof.preset).forgets(proof.options(api.url, proof.deletes)):
            assert erased.code == 1
            assert "NOT_ERASABLE" in erased.err
            del proof.contents(api)[key]
            erased = life.workshop.retl("sync", "--sync", "life")
        assert erased.code == 0, erased.err
        assert life.held(key) is None
        assert life.sync()["rejected"] == 0
        assert life.held(key) is None  # the mart still has the row, and it does not come back
        life.sql(f"DELETE FROM mart WHERE {life.key} = '{key}'")
        life.exact()
