"""`retl erase`: a person leaves target, ledger and files, comes back by no run, and the proof can be checked."""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import duckdb
import pytest

from retl.testing import FakeHubSpot, FakeWebhook
from tests.api import TOKEN, Api
from tests.commands import ROWS, Workshop
from tests.crash_sweep import LOST_ANSWER
from tests.crashes import CampaignScene
from tests.scenes import scene
from tests.servers import Database, RedisServer
from tests.test_mistakes import hub
from tests.test_plans_and_state import TABLE, column, run
from tests.test_reconcile import execute

PERSON = "zoe.canary@example.com"
# Long enough to be in no time of day, digest or id by chance.
MART = f"INSERT INTO users VALUES (777001300451, '{PERSON}', 1)"
RESTORE = "$$ BEGIN NEW.email := OLD.email; RETURN NEW; END $$"
WHY = ("--reason", "ticket 4711", "--output", "json")


@pytest.fixture
def workshop(tmp_path: Path, postgres: Database) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(postgres=postgres)
    made.warehouse(MART)
    return made


CRM = """
summary: A CRM whose deletes keep the person
docs: Deletes are undone by a click.
evidence: [own]
source: of this test
checked_on: 2026-11-29
erasure: elsewhere
connection: {token: {about: Key., secret: true}, base_url: {about: Address.}}
base_url: <base_url>
auth: {type: bearer, token: <token>}
upsert: {method: PUT, path: "/v1/users/{user_id}", row: $fields}
delete: {method: DELETE, path: "/v1/users/{user_id}"}
limits: {concurrency: 1, source: of this test, checked_on: 2026-11-29}
example: none
"""
READ = 'read: {path: "/v1/users/{user_id}"}\n'


def remains(workshop: Workshop, *texts: str) -> list[str]:
    """The files of the project that have one of these texts, but for the warehouse."""
    return [
        name
        for name, content in workshop.snapshot().items()
        if content and not name.startswith("data/") and any(text.encode() in content for text in texts)
    ]


def erased(workshop: Workshop, *words: str, code: int = 0) -> dict[str, Any]:
    said = workshop.retl("erase", *words, *WHY)
    assert said.code == code, said.err + said.out
    return dict(said.document)


def test_a_person_leaves_target_ledger_and_files_and_no_run_brings_it_back(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", destination=TABLE, rollback="{keep: 30d}", rejects="{payload: true}")
    run(workshop)
    workshop.warehouse("UPDATE users SET spend = spend + 1")
    run(workshop)
    workshop.retl("sync", "--key", "777001300451", "--where", "email = 'zoe.canary@example.com'")
    workshop.retl("plan", "--sync", "users", "--key", "777001300451", "--out", "plan.json")
    assert len(remains(workshop, "777001300451", PERSON)) > 3
    done = erased(workshop, "--subject", f"email={PERSON}")
    (one,) = done["syncs"]
    assert (one["status"], one["keys"]) == ("erased", 1)
    assert one["proof"]["target"] == {
        "how": "delete", "keys": 1, "read_back": True, "there": 1, "absent": 0
    }  # fmt: skip
    assert remains(workshop, "777001300451", PERSON) == []
    assert column(postgres, "SELECT count(*) FROM crm.users WHERE user_id = 777001300451") == [0]
    assert workshop.retl("log", "verify").code == 0
    assert workshop.retl("erase", "verify").code == 0
    workshop.warehouse("UPDATE users SET spend = spend + 1")
    for words in ((), ("--full",), ("--key", "777001300451"), ("--where", "true")):
        after = workshop.json("sync", *words)["syncs"][0]
        assert (after["status"], after["skipped"]) == ("SUCCESS", 1), words
    assert column(postgres, "SELECT count(*) FROM crm.users") == [ROWS]
    assert remains(workshop, "777001300451", PERSON) == []
    mine = workshop.json("explain", "users", "--key", "777001300451")
    assert mine["rows"][0]["next"].endswith("(ERASED)")
    assert [note for note in mine["notes"] if note.startswith("ERASED:")]
    other = workshop.json("explain", "users", "--rows", "1")
    assert not [note for note in other["notes"] if note.startswith("ERASED:")], "it is about another row"


def test_a_key_that_nothing_has_is_suppressed_and_said_to_be_nowhere(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", destination=TABLE)
    run(workshop)
    (wrong,) = erased(workshop, "--sync", "users", "--key", "77701")["syncs"]
    (note,) = wrong["notes"]
    assert note.startswith("none of these keys was found")
    (right,) = erased(workshop, "--sync", "users", "--key", "777001300451")["syncs"]
    assert "notes" not in right


def test_a_mart_with_variables_is_searched_too(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", source='{sql: "SELECT * FROM users WHERE spend < $most"}', destination=TABLE)
    workshop.json("sync", "--var", "most=100000")
    assert erased(workshop, "--subject", f"email={PERSON}", code=1)["syncs"] == []
    (one,) = erased(workshop, "--subject", f"email={PERSON}", "--var", "most=100000")["syncs"]
    assert (one["status"], one["keys"]) == ("erased", 1)
    assert column(postgres, "SELECT count(*) FROM crm.users WHERE user_id = 777001300451") == [0]
    assert workshop.retl("erase", "verify", "--var", "most=100000").code == 0


EVENTS = (
    "erasure_begun",
    "delta_written",
    "batch_sending",
    "batch_answered",
    "target_erased",
    "files_rewritten",
    "file_replaced",
    "file_replaced:2",
    "rows_erased",
    "erasure_proved",
    "committing",
)


ALL = "RETL_TEST_ALL" in os.environ
SOME = EVENTS if ALL else EVENTS[::3]
FEW = EVENTS if ALL else ("batch_answered", "file_replaced")


KILLED = [("upsert", SOME), ("append, state in postgres", FEW)]
KILLED += [("sqlite deletes", EVENTS), ("duckdb deletes", EVENTS), ("redis, deletes", EVENTS)] if ALL else []


@pytest.mark.parametrize(("kind", "events"), KILLED)
def test_killed_at_any_step_it_ends_exact_and_the_chain_verifies_all_the_time(
    kind: str, events: tuple[str, ...], tmp_path: Path, postgres: Database, redis_server: RedisServer
) -> None:
    with scene(kind, tmp_path / "project", postgres, redis_server) as of_kind:
        project = of_kind.project
        assert project.sync().code == 0
        rows = of_kind.wanted()
        keys = [str(key) for key, *_ in rows[1 : 1 + len(events)]]
        for key, event in zip(keys, events, strict=True):
            killed = project.run(*asked(key), RETL_CRASH_AT=event).end()
            assert killed.code == -9, f"{event}: {killed.stderr}"
            if event in ("erasure_begun", "file_replaced", "rows_erased"):
                said = project.answered("log", "verify")
                assert said.code == 0, f"{event}: {said.stdout}"
                after = project.sync()
                assert (after.code, after.summary["skipped"]) == (0, 1 + keys.index(key)), event
        done = project.answered(*asked(*keys))
        assert done.code == 0, done.stderr
        assert of_kind.content() == [row for row in rows if row[0] not in keys]
        for words in (("log", "verify"), ("erase", "verify")):
            said = project.answered(*words)
            assert said.code == 0, said.stdout
        listed = json.loads(project.answered("erase", "list", "--output", "json").stdout)["erasures"]
        assert {one["status"] for one in listed} == {"erased", "continued"}
        assert not any(
            key.encode() in path.read_bytes()
            for path in (tmp_path / "project" / ".retl").rglob("*")
            for key in keys
            if path.is_file()
        )


def asked(*keys: str) -> list[str]:
    named = [word for key in keys for word in ("--key", key)]
    return ["erase", "--sync", "users", *named, "--reason", "ticket 4711"]


def test_a_redis_key_is_erased_and_what_is_back_is_found_without_the_key(
    workshop: Workshop, redis_server: RedisServer
) -> None:
    workshop.use(redis=redis_server)
    workshop.sync("users")
    run(workshop)
    erased(workshop, "--subject", f"email={PERSON}")
    with redis_server.client() as client:
        assert not client.exists("users:777001300451")
        assert len(client.keys("users:*")) == ROWS
        assert workshop.retl("erase", "verify").code == 0
        client.set("users:777001300451", "{}")  # a backup was restored
    said = workshop.retl("erase", "verify", "--output", "json")
    assert (said.code, said.document["syncs"][0]["target"]) == (1, 1)
    assert "777001300451" not in said.out
    erased(workshop, "--sync", "users", "--key", "777001300451")
    assert workshop.retl("erase", "verify").code == 0


def test_every_sync_of_an_object_forgets_the_key(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", destination=TABLE, fields="{email: email}")
    workshop.sync("spending", destination=TABLE, fields="{spend: spend}", write="update_only")
    execute(postgres, "CREATE SCHEMA crm")
    workshop.json("sync", "--all")
    done = erased(workshop, "--sync", "users", "--key", "777001300451")
    assert [one["sync"] for one in done["syncs"]] == ["users", "spending"]
    assert remains(workshop, "777001300451", PERSON) == []
    assert [one["skipped"] for one in workshop.json("sync", "--all")["syncs"]] == [1, 1]


def test_what_a_target_cannot_delete_is_said_and_the_exit_code_tells(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", destination=TABLE, erase="{set: {email: null}}")
    run(workshop)
    execute(postgres, f"CREATE FUNCTION restore() RETURNS trigger LANGUAGE plpgsql AS {RESTORE}")
    execute(postgres, "CREATE TRIGGER r BEFORE UPDATE ON crm.users FOR EACH ROW EXECUTE FUNCTION restore()")
    done = erased(workshop, "--sync", "users", "--key", "777001300451", code=1)
    assert (done["syncs"][0]["status"], done["syncs"][0]["error"]["code"]) == ("failed", "ERASE_LEFT")
    execute(postgres, "DROP TRIGGER r ON crm.users")
    done = erased(workshop, "--sync", "users", "--key", "777001300451")
    assert done["syncs"][0]["proof"]["target"]["how"] == "set"
    assert column(postgres, "SELECT email FROM crm.users WHERE user_id = 777001300451") == [None]
    assert workshop.retl("erase", "verify").code == 0
    execute(
        postgres,
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;"
        "CREATE TRIGGER keep BEFORE DELETE ON crm.users FOR EACH ROW EXECUTE FUNCTION keep()",
    )
    workshop.sync("users", destination=TABLE)
    done = erased(workshop, "--sync", "users", "--key", "3", code=1)
    assert (done["syncs"][0]["status"], done["syncs"][0]["error"]["code"]) == ("failed", "ERASE_INCOMPLETE")
    assert workshop.retl("erase", "verify").code == 1
    execute(postgres, "DROP TRIGGER keep ON crm.users")
    erased(workshop, "--sync", "users", "--key", "3", "--key", "777001300451")
    assert workshop.retl("erase", "verify").code == 0


def test_a_vendor_erases_for_good_and_takes_other_spellings_for_the_same_person(workshop: Workshop) -> None:
    with FakeHubSpot() as hubspot:
        hub(workshop, hubspot)
        workshop.warehouse("UPDATE users SET email = 'Zoe.Canary@Example.com' WHERE user_id = 3")
        assert workshop.json("sync")["syncs"][0]["inserted"] == 5
        assert remains(workshop, "r-Zoe.Canary")
        done = erased(workshop, "--sync", "users", "--key", PERSON)
        assert done["syncs"][0]["proof"]["target"] == {"how": "delete", "keys": 2, "read_back": False}
        assert ("email", "Zoe.Canary@Example.com") in hubspot.erased
        assert remains(workshop, "Zoe.Canary", "zoe.canary") == []
        for spelling in ("ZOE.canary@example.com", PERSON):
            workshop.warehouse(f"UPDATE users SET email = '{spelling}' WHERE user_id = 3")
            assert workshop.json("sync", "--full")["syncs"][0]["skipped"] == 1
        assert len(hubspot.objects) == 4
        checked = workshop.retl("erase", "verify", "--output", "json")
        assert (checked.code, checked.document["syncs"][0]["faults"]) == (1, [])  # it cannot be listed


def test_a_vendor_whose_deletes_erase_nobody_is_left_to_a_person(workshop: Workshop) -> None:
    with Api() as api:
        workshop.write(
            "retl.yml", f"connections: {{crm: {{type: crm, base_url: '{api.url}', token: {TOKEN}}}}}\n"
        )
        workshop.write("presets/crm.yml", CRM)
        workshop.sync("users", destination="{connection: crm}")
        run(workshop)
        done = erased(workshop, "--sync", "users", "--key", "3", code=1)
        assert done["syncs"][0]["status"] == "not_erasable"
        workshop.write("presets/crm.yml", CRM.replace("elsewhere", "delete"))
        assert erased(workshop, "--sync", "users", "--key", "5")["syncs"][0]["status"] == "erased"
        assert "3" in api.users
        assert "5" not in api.users


def test_a_target_that_cannot_be_listed_is_not_checked_and_never_called_clean(workshop: Workshop) -> None:
    with Api() as api:
        workshop.write(
            "retl.yml", f"connections: {{crm: {{type: crm, base_url: '{api.url}', token: {TOKEN}}}}}\n"
        )
        workshop.write("presets/crm.yml", CRM.replace("elsewhere", "delete"))
        workshop.sync("users", destination="{connection: crm}")
        run(workshop)
        erased(workshop, "--sync", "users", "--key", "5")
        said = workshop.retl("erase", "verify")
        assert said.code == 1
        assert "not checked" in said.out
        assert "clean" not in said.out
        assert "look there by hand" in " ".join(said.out.split())
        workshop.write("presets/crm.yml", CRM.replace("elsewhere", "delete") + READ)
        said = workshop.retl("erase", "verify", "--output", "json")
        assert (said.code, said.document["syncs"][0]["target"]) == (1, None)
        assert "--sync users --key KEY" in said.document["syncs"][0]["unchecked"]
        asked = ("erase", "verify", "--sync", "users", "--key", "5")
        assert workshop.json(*asked)["syncs"][0]["asked"] == 1
        api.users["5"] = {"email": "somebody made it again"}
        said = workshop.retl(*asked, "--output", "json")
        assert (said.code, said.document["syncs"][0]["target"]) == (1, 1)
        assert workshop.retl(*asked, "--key", "6").code == 2  # it was not erased


def test_fields_that_are_emptied_in_the_place_of_a_delete_are_checked(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", destination=TABLE, erase="{set: {email: null}}")
    run(workshop)
    erased(workshop, "--sync", "users", "--key", "777001300451")
    assert workshop.json("erase", "verify")["syncs"][0]["target"] == 0
    execute(postgres, f"UPDATE crm.users SET email = '{PERSON}' WHERE user_id = 777001300451")
    said = workshop.retl("erase", "verify", "--output", "json")
    assert (said.code, said.document["syncs"][0]["target"]) == (1, 1)
    assert [one["keys"] for one in erased(workshop, "--again")["syncs"]] == [1]
    assert workshop.retl("erase", "verify").code == 0


def test_a_receiver_gets_the_delete_and_a_person_has_to_see_what_it_keeps(workshop: Workshop) -> None:
    with FakeWebhook() as hook:
        workshop.write("retl.yml", "connections: {hook: {type: webhook, url: '${HOOK}'}}\n")
        workshop.environment["HOOK"] = hook.webhook
        workshop.sync("users", destination="{connection: hook}", fields="{id: user_id, email: email}")
        assert run(workshop)["inserted"] == ROWS + 1
        sent = len(hook.seen)
        said = workshop.retl("erase", "--sync", "users", "--key", "5", *WHY)
        assert (said.code, said.document["syncs"][0]["status"]) == (1, "not_erasable")
        assert [json.loads(body) for *_, body in hook.seen[sent:]] == [{"deleted": True, "key": 5}]
        assert said.document["syncs"][0]["proof"]["target"]["how"] == "asked"
        error = said.document["syncs"][0]["error"]
        assert "what its receiver keeps is not known" in error["message"]
        assert "vendor" not in error["hint"]
        assert "see to it that the receiver erases" in error["hint"]
        assert run(workshop)["skipped"] == 1
        checked = workshop.retl("erase", "verify")
        assert (checked.code, "look there by hand" in " ".join(checked.out.split())) == (1, True)


def test_a_sync_that_is_no_longer_defined_is_forgotten_by_a_command_that_is_named(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync("users", destination=TABLE)
    run(workshop)
    workshop.warehouse("UPDATE users SET spend = spend + 1")
    run(workshop)
    (workshop.folder / "syncs/users.yml").rename(workshop.folder / "kept.yml")
    workshop.sync("people", destination=TABLE.replace("crm.users", "crm.people"))
    missed = erased(workshop, "--subject", f"email={PERSON}", code=1)["not_searched"]
    assert "`retl state reset users`" in missed[0]["reason"]
    assert "files with the keys" in workshop.retl("state", "reset", "users").err
    workshop.json("state", "reset", "users", "--yes")
    assert remains(workshop, "777001300451") == []
    assert erased(workshop, "--subject", f"email={PERSON}")["not_searched"] == []
    for words in ("log verify", "log", "runs", "state show"):
        assert workshop.retl(*words.split()).code == 0, words


def test_what_cannot_be_deleted_is_forgotten_and_its_stored_request_is_never_sent_again(
    tmp_path: Path, postgres: Database, redis_server: RedisServer
) -> None:
    with scene("http append", tmp_path / "project", postgres, redis_server) as of_kind:
        assert isinstance(of_kind, CampaignScene)
        assert of_kind.tool
        project = of_kind.project
        assert project.sync(RETL_CRASH_AT=LOST_ANSWER).code == -9
        files = [path for path in of_kind.run_files() if path.startswith("request-")]
        assert len(files) == 1
        lost, sent = of_kind.tool.sent[-1], len(of_kind.tool.sent)
        person = json.loads(lost[1])["recipients"][0]["id"]
        done = project.answered(*asked(person), "--output", "json")
        assert (done.code, json.loads(done.stdout)["syncs"][0]["status"]) == (1, "not_erasable"), done.stderr
        assert "NOT_ERASABLE" in done.stderr
        assert not [path for path in of_kind.run_files() if path.startswith("request-")]
        project.sync()
        later = of_kind.tool.sent[sent:]
        assert later
        assert not any(person in body.decode() for _, body in later)
        assert project.answered("log", "verify").code == 0


def test_no_rollback_no_reject_and_no_measure_keeps_or_restores_an_erased_person(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.sync(
        "users",
        destination=TABLE,
        deletes="delete",
        rollback="{keep: 30d}",
        rejects="{payload: true}",
        contract="{user_id: {type: integer}, email: {type: string}, spend:"
        " {type: decimal, max_digits: 12, decimal_places: 2, le: 1000}}",
        guards="{drift: {column: email, max_psi: 9}, max_reject_rate: 1}",
    )
    workshop.warehouse("UPDATE users SET spend = 5000 WHERE user_id = 777001300451")
    assert run(workshop)["rejected"] == 1
    workshop.warehouse("UPDATE users SET spend = 5 WHERE user_id = 777001300451")
    run(workshop)
    workshop.warehouse("DELETE FROM users WHERE user_id = 777001300451")
    gone = run(workshop)["run_id"]
    erased(workshop, "--sync", "users", "--key", "777001300451")
    assert remains(workshop, "777001300451", PERSON, sha256(PERSON.encode()).hexdigest()[:16]) == []
    assert "777001300451" not in contents(workshop)
    assert PERSON not in contents(workshop)
    workshop.retl("rollback", gone)
    assert column(postgres, "SELECT count(*) FROM crm.users") == [ROWS]
    workshop.json("state", "resume", "users")
    workshop.warehouse(
        f"{MART}; {MART.replace('1)', '2)')}; INSERT INTO users VALUES (777001300451, NULL, -1)"
    )
    after = run(workshop)
    assert (after["skipped"], after["rejected"]) == (3, 0)
    assert remains(workshop, "777001300451", PERSON) == []
    assert "777001300451" not in contents(workshop)


def contents(workshop: Workshop) -> str:
    """Every row of every run file, as text."""
    found = ""
    with duckdb.connect() as connection:
        for path in sorted((workshop.folder / ".retl" / "runs").glob("*.parquet")):
            found += str(connection.execute(f"FROM read_parquet('{path}')").fetchall())
    return found


def test_a_key_is_lifted_by_name_and_then_delivered(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", destination=TABLE)
    run(workshop)
    erased(workshop, "--sync", "users", "--key", "777001300451")
    lift = ("--lift", "--sync", "users", "--key", "777001300451")
    for option in (("--dry-run",), ("--accept", "TARGET_LOST")):
        assert erased(workshop, *lift, *option, code=2)["error"]["code"] == "USAGE"
    assert erased(workshop, *lift) == {"lifted": 1}
    assert run(workshop)["inserted"] == 1
    assert [one["status"] for one in workshop.json("erase", "list")["erasures"]] == ["erased", "lifted"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--sync", "users", "--key", "abc"), "ERASE_KEY"),
        (("--sync", "users"), "USAGE"),
        (("--subject", "email"), "USAGE"),
        (("--sync", "nobody", "--key", "1"), "SYNC_UNKNOWN"),
        (("--sync", "users", "--key", "4711"), "ERASE_REASON"),
    ],
)
def test_a_wrong_request_erases_nothing(
    workshop: Workshop, postgres: Database, words: tuple[str, ...], code: str
) -> None:
    workshop.sync("users", destination=TABLE)
    run(workshop)
    said = workshop.retl("erase", *words, *WHY)
    assert said.code == 2, said.out
    assert code in said.err + said.out
    assert column(postgres, "SELECT count(*) FROM crm.users") == [ROWS + 1]


def test_a_dry_run_counts_and_writes_nothing(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", destination=TABLE)
    run(workshop)
    before = workshop.snapshot()
    said = workshop.retl("erase", "--subject", f"email={PERSON}", "--dry-run", "--output", "json")
    assert said.document["syncs"][0] | {"error": None} == {
        "sync": "users", "keys": 1, "exit_code": 0, "error": None, "how": "delete", "files": 1
    }  # fmt: skip
    assert workshop.snapshot() == before
