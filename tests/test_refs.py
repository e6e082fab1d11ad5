"""The target's own ids: learnt from answers, kept beside the baseline, named by deletes and by other syncs."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.api import TOKEN, Api, reset
from tests.commands import Said, Workshop
from tests.servers import Database, RedisServer


class Crm(Api):
    """A CRM that gives every object an id of its own, and deletes by nothing else.

    POST   /v1/{kind}/upsert  {"rows": [{"key", …}]}  creates or merges; one result with `id` per row
    PATCH  /v1/{kind}/{id}    fields                  merges; 404 where there is none
    DELETE /v1/{kind}/{id}                            204, or 404 where there is none
    DELETE /v1/{kind}?ids[]=…&ids[]=…                 200
    """

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, dict[str, dict[str, Any]]] = {}  # kind → id → fields
        self.numbers = itertools.count(1)

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {}
        where, _, query = path.partition("?")
        _, _, kind, *rest = where.split("/")
        objects = self.objects.setdefault(kind, {})
        content = json.loads(body) if body else None
        match method, rest:
            case "POST", ["upsert"]:
                return 200, {"results": [self.put(kind, row) for row in content["rows"]]}
            case "PATCH", [name] if unquote(name) in objects:
                objects[unquote(name)].update(content)
                return 200, {"id": unquote(name)}
            case "DELETE", [name] if unquote(name) in objects:
                del objects[unquote(name)]
                return 204, None
            case "DELETE", [] if query:
                for one in query.split("&"):
                    objects.pop(unquote(one).removeprefix("ids[]="), None)
                return 200, {}
        return 404, {}

    def put(self, kind: str, row: dict[str, Any]) -> dict[str, Any]:
        found = self.find(kind, row["key"])
        if found is None:
            found = f"{kind}/{next(self.numbers)}"  # an id that has to be encoded in a path
            self.objects[kind][found] = {}
        self.objects[kind][found].update(row)
        return {"status": "ok", "id": found}

    def find(self, kind: str, key: Any) -> str | None:
        """The id of the object with this key."""
        return next((n for n, one in self.objects.get(kind, {}).items() if one["key"] == key), None)

    def keys(self, kind: str) -> set[Any]:
        return {one["key"] for one in self.objects.get(kind, {}).values()}

    def recreate(self, kind: str, key: Any) -> None:
        """Somebody deletes the object and makes it anew, under another id."""
        fields = self.objects[kind].pop(str(self.find(kind, key)))
        self.objects[kind][f"{kind}/{next(self.numbers)}"] = fields


CONNECTION = """
connections:
  crm: {{type: http, base_url: "{url}", auth: {{type: bearer, token: {token}}}}}
"""
OUTCOME = "{rows: positional, at: results, row_ok: {at: status, in: [ok]}, ref: id}"
DESTINATION = """
  connection: crm
  upsert: {{path: /v1/{kind}/upsert, wrap: rows, max_rows: 4, row: {{$merge: [{{key: $key}}, $fields]}}}}
  delete: {delete}
  update: {{method: PATCH, path: /v1/{kind}/$ref, row: $fields}}
  outcome: {outcome}
"""
BY_ID = "{method: DELETE, path: /v1/accounts/$ref}"


def destination(kind: str, delete: str = BY_ID) -> str:
    return DESTINATION.format(kind=kind, outcome=OUTCOME, delete=delete)


class Office(Workshop):
    """Ten accounts and twenty contacts, two of each account, and a CRM for both."""

    crm: Crm

    def begin(self, crm: Crm) -> None:
        self.crm = crm
        self.warehouse(
            "CREATE TABLE accounts AS SELECT 'a' || i AS account_key, 1 AS size FROM range(10) t(i);"
            "CREATE TABLE contacts AS SELECT 'c' || i AS contact_key, 'a' || (i // 2) AS account_key,"
            " 'name ' || i AS name FROM range(20) t(i)"
        )
        self.write("retl.yml", CONNECTION.format(url=crm.url, token=TOKEN))
        self.accounts()
        self.contacts()

    def accounts(self, **parts: str) -> None:
        given = {"source": "{table: accounts}", "key": "[account_key]", "deletes": "delete"}
        self.sync("accounts", **{**given, "destination": destination("accounts"), **parts})

    def contacts(self, **parts: str) -> None:
        own = "{name: name, AccountId: {ref: accounts, by: account_key}}"
        given = {"source": "{table: contacts}", "key": "[contact_key]", "fields": own}
        self.sync("contacts", **{**given, "destination": destination("contacts"), **parts})

    def run(self, *words: str, code: int = 0, **environ: str) -> dict[str, Any]:
        """The summary of the last sync of an invocation."""
        said = self.retl("sync", *words, "--output", "json", **environ)
        assert said.code == code, said.out + said.err
        return dict(said.document["syncs"][-1])

    def foretold(self, *words: str) -> dict[str, Any]:
        """The numbers of a run, which a dry run must have told before."""
        told, found = self.run(*words, "--dry-run"), self.run(*words)
        numbers = [name for name, value in found.items() if type(value) is int and name != "bytes"]
        made = ("batches", "retries", "rows_per_second")
        assert {n: told[n] for n in numbers if n not in made} == {
            n: found[n] for n in numbers if n not in made
        }
        assert (told["status"], told["deletes"], told["rejects"]) == (
            found["status"],
            found["deletes"],
            found["rejects"],
        )
        return found

    def owners(self) -> dict[str, Any]:
        """Contact → the account that its AccountId leads to, looked up in the CRM."""
        accounts = self.crm.objects["accounts"]
        return {
            one["key"]: one["AccountId"] and accounts.get(one["AccountId"], {"key": "nobody"})["key"]
            for one in self.crm.objects.get("contacts", {}).values()
        }

    def wanted(self) -> dict[str, str]:
        return {f"c{n}": f"a{n // 2}" for n in range(20)}


@pytest.fixture
def crm() -> Iterator[Crm]:
    with Crm() as crm:
        yield crm


@pytest.fixture
def office(tmp_path: Path, crm: Crm) -> Office:
    made = Office(tmp_path / "project")
    made.begin(crm)
    return made


def test_deletes_name_rows_by_the_id_that_was_learnt(office: Office, crm: Crm) -> None:
    assert office.run("--sync", "accounts")["inserted"] == 10
    office.warehouse("DELETE FROM accounts WHERE account_key IN ('a3', 'a4')")
    assert office.foretold("--sync", "accounts")["deleted"] == 2
    assert crm.keys("accounts") == {f"a{n}" for n in range(10)} - {"a3", "a4"}
    assert office.run("--sync", "accounts")["deletes"]["planned"] == 0


def test_a_delete_names_many_rows_in_a_parameter_each(office: Office, crm: Crm) -> None:
    several = '{method: DELETE, path: "/v1/accounts?ids%5B%5D=$refs", max_rows: 3, outcome: {}}'
    office.accounts(destination=destination("accounts", several))
    office.run("--sync", "accounts")
    office.warehouse("DELETE FROM accounts WHERE account_key >= 'a6'")
    assert office.foretold("--sync", "accounts")["deleted"] == 4
    assert crm.keys("accounts") == {f"a{n}" for n in range(6)}
    asked = [path for method, path, *_ in crm.seen if method == "DELETE"]
    assert asked[0] == "/v1/accounts?ids%5B%5D=accounts%2F7&ids%5B%5D=accounts%2F8&ids%5B%5D=accounts%2F9"
    assert len(asked) == 2


def test_a_soft_delete_updates_the_object_of_the_id(office: Office, crm: Crm) -> None:
    office.accounts(deletes="{set: {state: gone}, restore: {state: there}}")
    office.run("--sync", "accounts")
    office.warehouse("DELETE FROM accounts WHERE account_key = 'a3'")
    assert office.foretold("--sync", "accounts")["deleted"] == 1
    assert crm.objects["accounts"][str(crm.find("accounts", "a3"))]["state"] == "gone"
    office.warehouse("INSERT INTO accounts VALUES ('a3', 1)")
    assert office.foretold("--sync", "accounts")["inserted"] == 1
    assert {one["state"] for one in crm.objects["accounts"].values()} == {"there"}


def test_the_newest_id_of_an_object_made_anew_is_the_one_that_counts(office: Office, crm: Crm) -> None:
    office.run("--sync", "accounts")
    crm.recreate("accounts", "a3")
    office.warehouse("UPDATE accounts SET size = 2 WHERE account_key = 'a3'")
    assert office.run("--sync", "accounts")["updated"] == 1
    office.warehouse("DELETE FROM accounts WHERE account_key = 'a3'")
    assert office.run("--sync", "accounts")["deleted"] == 1
    assert "a3" not in crm.keys("accounts")


def test_ids_survive_the_compaction_of_the_baseline(office: Office, crm: Crm) -> None:
    office.run("--sync", "accounts")
    for size in (2, 3, 4):
        office.warehouse(f"UPDATE accounts SET size = {size} WHERE account_key < 'a7'")
        assert office.run("--sync", "accounts")["updated"] == 7
    assert list((office.folder / ".retl" / "runs").glob("*.snapshot.parquet"))
    office.warehouse("DELETE FROM accounts WHERE account_key IN ('a0', 'a9')")
    assert office.foretold("--sync", "accounts")["deleted"] == 2
    assert crm.keys("accounts") == {f"a{n}" for n in range(1, 9)}


def test_ids_of_acknowledged_batches_survive_a_kill(office: Office, crm: Crm) -> None:
    said = office.process("sync", "--sync", "accounts", RETL_CRASH_AT="answers_recorded:1")
    assert said.code == -signal.SIGKILL
    learnt = crm.keys("accounts")
    assert learnt
    requests = len(crm.seen)
    assert office.run("--sync", "contacts", "--dry-run")["rejected"] == 20 - 2 * len(learnt)
    office.warehouse("DELETE FROM accounts WHERE account_key = 'a0'")
    done = office.run("--sync", "accounts")
    assert done["deleted"] == 1
    assert done["inserted"] + done["updated"] + done["unchanged"] == 9
    assert crm.keys("accounts") == {f"a{n}" for n in range(1, 10)}
    assert [path for method, path, *_ in crm.seen[requests:] if method == "DELETE"] == [
        "/v1/accounts/accounts%2F1"
    ]


def test_an_id_whose_answer_was_lost_is_learnt_when_the_row_is_sent_again(office: Office, crm: Crm) -> None:
    crm.faults.append(reset(applied=True))
    assert office.run("--sync", "accounts")["inserted"] == 10
    office.warehouse("DELETE FROM accounts WHERE account_key = 'a0'")
    assert office.run("--sync", "accounts")["deleted"] == 1
    assert len(crm.objects["accounts"]) == 9


def test_a_row_whose_id_was_never_learnt_is_not_deleted_but_refused(office: Office, crm: Crm) -> None:
    crm.faults.append(lambda exchange: _without_ids(exchange))
    office.run("--sync", "accounts")  # four rows whose answers tell no id
    office.warehouse("DELETE FROM accounts WHERE account_key IN ('a0', 'a9')")
    done = office.foretold("--sync", "accounts")
    assert (done["status"], done["deleted"]) == ("SUCCESS_WITH_REJECTS", 1)
    assert done["deletes"] == {"planned": 2, "rejected": 1, "in_doubt": 0, "not_attempted": 0, "kept": 0}
    assert [(one["key"], one["stage"], one["code"]) for one in done["rejects"]] == [
        ("a0", "ref", "REF_UNKNOWN")
    ]
    assert crm.keys("accounts") == {f"a{n}" for n in range(9)}
    (row,) = office.json("explain", "accounts", "--key", "a0")["rows"]
    assert "REF_UNKNOWN" in row["next"]
    office.warehouse("INSERT INTO accounts VALUES ('a0', 7)")
    assert office.run("--sync", "accounts")["updated"] == 1  # and now its id is known
    office.warehouse("DELETE FROM accounts WHERE account_key = 'a0'")
    assert office.foretold("--sync", "accounts")["deleted"] == 1
    assert crm.keys("accounts") == {f"a{n}" for n in range(1, 9)}


def _without_ids(exchange: Any) -> bool:
    _, content = exchange.perform()
    told = {"results": [{"status": one["status"]} for one in content["results"]]}
    exchange.reply(200, json.dumps(told).encode(), {"Content-Type": "application/json"})
    return True


def test_the_id_of_another_sync_s_row_is_sent(office: Office) -> None:
    summary = office.run()
    assert (summary["sync"], summary["inserted"], summary["rejected"]) == ("contacts", 20, 0)
    assert office.owners() == office.wanted()
    again = office.foretold("--sync", "contacts")
    assert again["unchanged"] == 20


def test_a_missing_id_is_a_reject_that_heals_by_itself(office: Office) -> None:
    office.warehouse("CREATE TABLE later AS FROM accounts WHERE account_key >= 'a7'")
    office.warehouse("DELETE FROM accounts WHERE account_key >= 'a7'")
    office.run("--sync", "accounts")
    done = office.foretold("--sync", "contacts")
    assert (done["status"], done["inserted"], done["rejected"]) == ("SUCCESS_WITH_REJECTS", 14, 6)
    assert {one["code"] for one in done["rejects"]} == {"REF_MISSING"}
    assert office.json("rejects", "list")["rejects"][0]["stage"] == "ref"
    assert office.run("--sync", "contacts")["rejected"] == 6
    office.warehouse("INSERT INTO accounts FROM later")
    summary = office.run()
    assert (summary["inserted"], summary["rejected"], summary["status"]) == (6, 0, "SUCCESS")
    assert office.owners() == office.wanted()
    assert office.json("rejects", "list")["rejects"] == []


def test_a_row_that_names_no_other_row_sends_null(office: Office) -> None:
    office.warehouse("UPDATE contacts SET account_key = NULL WHERE contact_key = 'c0'")
    summary = office.run()
    assert (summary["inserted"], summary["rejected"]) == (20, 0)
    assert office.owners() == {**office.wanted(), "c0": None}


@pytest.mark.parametrize("found", ["hash", "{watermark: seen}"])
def test_rows_follow_an_object_that_was_made_anew(office: Office, crm: Crm, found: str) -> None:
    office.warehouse("ALTER TABLE contacts ADD COLUMN seen DATE DEFAULT DATE '2026-01-01'")
    office.contacts(changes=found)
    office.warehouse("INSERT INTO contacts VALUES ('z', 'a0', 'late', DATE '2026-02-01')")
    office.run()
    crm.recreate("accounts", "a3")
    office.warehouse("UPDATE accounts SET size = 2 WHERE account_key = 'a3'")
    office.run("--sync", "accounts")
    assert office.foretold("--sync", "contacts")["updated"] == 2
    assert office.owners() == {**office.wanted(), "z": "a0"}


def test_ids_are_found_by_keys_of_several_columns(office: Office) -> None:
    office.warehouse(
        "CREATE TABLE places AS SELECT 'c\"' || i AS country, i AS number FROM range(10) t(i);"
        "ALTER TABLE contacts ADD COLUMN country VARCHAR; ALTER TABLE contacts ADD COLUMN number VARCHAR;"
        "UPDATE contacts SET country = 'c\"' || account_key[2:], number = account_key[2:]"
    )
    office.accounts(
        source="{table: places}",
        key="[country, number]",
        destination=destination("accounts").replace("key: $key", "key: [$country, $number]"),
    )
    office.contacts(fields="{name: name, AccountId: {ref: accounts, by: [country, number]}}")
    office.run()
    assert office.owners() == {f"c{n}": [f'c"{n // 2}', n // 2] for n in range(20)}


def test_an_update_by_the_id_that_another_sync_learnt(office: Office, crm: Crm) -> None:
    office.sync(
        "scores",
        source='{sql: "SELECT account_key, 7 AS score FROM accounts"}',
        key="[account_key]",
        fields="{score: score, id: {ref: accounts, by: account_key}}",
        write="update_only",
        destination="\n  connection: crm"
        '\n  update: {method: PATCH, path: "/v1/accounts/{id}", row: {score: $score}}',
    )
    assert office.run("--sync", "accounts", "--sync", "scores")["updated"] == 10
    assert {one["score"] for one in crm.objects["accounts"].values()} == {7}
    assert all("id" not in one for one in crm.objects["accounts"].values())


def test_explain_and_plan_show_the_id(office: Office, crm: Crm) -> None:
    office.run("--sync", "accounts")
    (row,) = office.json("explain", "contacts", "--key", "c6")["rows"]
    assert row["fields"]["AccountId"] == crm.find("accounts", "a3")
    assert f'"AccountId":"{crm.find("accounts", "a3")}"' in row["request"]
    (plan,) = office.json("plan", "--sync", "contacts", "--out", "contacts.plan")["syncs"]
    assert plan["samples"][0]["fields"]["AccountId"] == [None, crm.find("accounts", "a0")]
    office.warehouse("UPDATE accounts SET size = 2 WHERE account_key = 'a5'")
    crm.recreate("accounts", "a5")
    office.run("--sync", "accounts")
    moved = office.retl("apply", "contacts.plan")
    assert (moved.code, "PLAN_MOVED" in moved.err) == (3, True)
    office.json("plan", "--sync", "contacts", "--out", "contacts.plan")
    assert office.retl("apply", "contacts.plan").code == 0
    assert office.owners() == office.wanted()


def test_missing_ids_trip_no_guard(office: Office) -> None:
    done = office.foretold("--sync", "contacts")
    assert (done["read"], done["rejected"], done["guards"]) == (20, 20, [])


def test_rows_that_lost_their_ids_are_no_new_identity(office: Office) -> None:
    office.run()
    assert office.retl("state", "reset", "accounts", "--yes").code == 0
    office.warehouse("INSERT INTO contacts VALUES ('c99', NULL, 'new')")
    done = office.foretold("--sync", "contacts")
    assert (done["inserted"], done["rejected"], done["guards"]) == (1, 20, [])
    office.warehouse("DELETE FROM contacts WHERE contact_key = 'c99'")
    summary = office.run()
    assert (summary["unchanged"], summary["rejected"]) == (20, 0)
    assert office.json("rejects", "list")["rejects"] == []


def test_a_failed_sync_of_the_ids_does_not_hold_up_who_needs_them(office: Office, crm: Crm) -> None:
    office.accounts(checks='["SELECT 1 FROM source WHERE size = 2"]')
    office.run()
    office.warehouse(
        "UPDATE accounts SET size = 2; UPDATE contacts SET name = 'new' WHERE contact_key = 'c1'"
    )
    done = office.run(code=3)
    assert (done["sync"], done["status"], done["updated"]) == ("contacts", "SUCCESS", 1)
    office.contacts(after="[accounts]")
    assert office.run(code=3)["status"] == "BLOCKED"


def test_ids_of_another_object_are_not_taken(office: Office, crm: Crm) -> None:
    office.run("--sync", "accounts")
    office.accounts(destination=destination("firms").replace("/v1/accounts", "/v1/firms"))
    assert office.run("--sync", "contacts")["rejected"] == 20
    office.run()
    assert {one["AccountId"].split("/")[0] for one in crm.objects["contacts"].values()} == {"firms"}


def test_a_postgres_column_holds_the_id(office: Office, postgres: Database, crm: Crm) -> None:
    office.use(postgres=postgres)
    office.contacts(destination="{type: postgres, table: public.contacts, create: true}")
    assert office.run()["inserted"] == 20
    with postgres.connect() as connection:
        found = dict(connection.execute('SELECT contact_key, "AccountId" FROM public.contacts').fetchall())
    assert found == {f"c{n}": crm.find("accounts", f"a{n // 2}") for n in range(20)}


def test_ids_are_known_where_the_ledger_is_a_server(office: Office, postgres: Database) -> None:
    office.environment["RETL_STATE_URL"] = postgres.url
    office.run("--sync", "accounts")
    assert office.foretold("--sync", "contacts")["inserted"] == 20
    assert office.owners() == office.wanted()
    assert not (office.folder / ".retl").exists()


def test_a_redis_value_holds_the_id(office: Office, redis_server: RedisServer, crm: Crm) -> None:
    office.use(redis=redis_server)
    office.contacts(destination='{type: redis, key: "contact:{contact_key}", value: json, ttl: none}')
    assert office.run()["inserted"] == 20
    with redis_server.client() as client:
        assert json.loads(client.get("contact:c6"))["AccountId"] == crm.find("accounts", "a3")


def refused(office: Office, *words: str) -> Said:
    said = office.retl(*(words or ("validate",)))
    assert said.code == 2, said.out + said.err
    return said


def test_a_sync_that_is_not_there_is_a_definition_error(office: Office) -> None:
    office.contacts(fields="{AccountId: {ref: acounts, by: account_key}}")
    assert "did you mean 'accounts'" in refused(office).err


def test_by_names_as_many_columns_as_the_key_has(office: Office) -> None:
    office.contacts(fields="{AccountId: {ref: accounts, by: [account_key, name]}}")
    assert "REF_BY" in refused(office).err


def test_by_names_columns_of_the_contract(office: Office) -> None:
    office.contacts(fields="{AccountId: {ref: accounts, by: acount_key}}")
    assert "did you mean 'account_key'" in refused(office).err


def test_a_row_cannot_wait_for_one_of_its_own_sync(office: Office) -> None:
    office.contacts(fields="{AccountId: {ref: contacts, by: account_key}}")
    assert "REF_SELF" in refused(office).err


def test_syncs_cannot_wait_for_one_another_s_ids(office: Office) -> None:
    office.accounts(fields="{Main: {ref: contacts, by: size}}")
    assert "AFTER_CYCLE" in refused(office).err


@pytest.mark.parametrize("command", ["validate", "sync"])
def test_ids_cannot_come_from_a_target_that_tells_none(office: Office, command: str) -> None:
    office.accounts(destination='{type: redis, key: "account:{account_key}", value: json, ttl: none}')
    office.environment["REDIS_HOST"] = "127.0.0.1"
    assert "REF_UNLEARNT" in refused(office, command).err


@pytest.mark.parametrize(
    "given",
    [
        destination("accounts").replace(", ref: id", ""),
        destination("accounts").replace("key: $key", "key: $ref"),
        destination("accounts").replace(OUTCOME, "{ref: id}"),  # of four rows, and no item names its own
    ],
)
def test_an_id_that_no_answer_can_have_told_is_a_definition_error(office: Office, given: str) -> None:
    office.accounts(destination=given)
    office.contacts(fields="{name: name}")
    assert "HTTP_REF" in refused(office).err


def test_mapping_tests_know_no_ids(office: Office) -> None:
    given = "{contact_key: c1, account_key: a0, name: n}"
    contract = "{contact_key: {type: string}, account_key: {type: string}, name: {type: string}}"
    office.contacts(contract=contract, tests=f"[{{given: {given}, expect: {{name: n, AccountId: null}}}}]")
    said = office.retl("test", "--sync", "contacts")
    assert said.code == 0, said.out + said.err
