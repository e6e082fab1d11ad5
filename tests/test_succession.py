"""Two keys, one object: the target folds keys or gave both one id. What the mart still has is never deleted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.test_refs import BY_ID, Crm, Office, destination

BY_KEY = "{method: DELETE, path: /v1/accounts/$key}"
FOLDS = "  folds: {case: true}\n"


class Folding(Crm):
    """A CRM that does not distinguish upper and lower case in keys, and knows merged objects by both keys."""

    def __init__(self) -> None:
        super().__init__()
        self.merged: dict[str, str] = {}  # key → the key of the object it became

    def find(self, kind: str, key: Any) -> str | None:
        wanted = self.merged.get(key.lower(), key.lower())
        return next((n for n, one in self.objects.get(kind, {}).items() if one["key"] == wanted), None)

    def put(self, kind: str, row: dict[str, Any]) -> dict[str, Any]:
        return super().put(kind, row | {"key": self.merged.get(row["key"].lower(), row["key"].lower())})

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        *where, name = path.split("/")
        if method == "DELETE" and (found := self.find("accounts", unquote(name))):
            path = "/".join([*where, found.replace("/", "%2F")])
        return super().serve(method, path, headers, body)

    def sizes(self) -> dict[str, int]:
        return {one["key"]: one["size"] for one in self.objects["accounts"].values()}


@pytest.fixture
def crm() -> Iterator[Folding]:
    with Folding() as crm:
        yield crm


@pytest.fixture
def office(request: pytest.FixtureRequest, tmp_path: Path, crm: Folding) -> Office:
    """Ten accounts, of which three have a key in upper case."""
    made = Office(tmp_path / "project")
    made.begin(crm)
    delete = getattr(request, "param", BY_ID)
    made.accounts(destination=destination("accounts", delete) + FOLDS, guards="{max_reject_rate: 1}")
    made.warehouse("UPDATE accounts SET account_key = upper(account_key) WHERE account_key < 'a3'")
    return made


by_id_and_by_key = pytest.mark.parametrize("office", [BY_ID, BY_KEY], ids=["id", "key"], indirect=True)


@by_id_and_by_key
def test_a_key_in_another_case_is_the_same_object(office: Office, crm: Folding) -> None:
    assert office.run("--sync", "accounts")["inserted"] == 10
    office.warehouse(
        "UPDATE accounts SET account_key = lower(account_key); DELETE FROM accounts WHERE size > 1"
    )
    told = office.run("--sync", "accounts", "--dry-run")
    assert any("3 keys left the mart and nothing is deleted for them" in note for note in told["notes"])
    (row,) = office.json("explain", "accounts", "--key", "A1")["rows"]
    assert "another key stands for the same object" in row["next"]
    done = office.foretold("--sync", "accounts")
    assert (done["updated"], done["unchanged"], done["inserted"], done["deletes"]["planned"]) == (3, 7, 0, 0)
    assert crm.keys("accounts") == {f"a{n}" for n in range(10)}
    assert office.foretold("--sync", "accounts")["unchanged"] == 10
    office.warehouse("DELETE FROM accounts WHERE account_key = 'a1'")
    assert office.foretold("--sync", "accounts")["deleted"] == 1
    assert crm.keys("accounts") == {f"a{n}" for n in range(10) if n != 1}
    assert office.foretold("--sync", "accounts")["unchanged"] == 9


@by_id_and_by_key
def test_two_rows_of_one_object_are_both_refused_and_the_one_that_stays_is_sent(
    office: Office, crm: Folding
) -> None:
    office.warehouse("INSERT INTO accounts VALUES ('a0', 7)")
    done = office.foretold("--sync", "accounts")
    assert (done["inserted"], done["rejected"]) == (9, 2)
    assert {(one["key"], one["code"]) for one in done["rejects"]} == {
        ("A0", "KEY_COLLIDES"),
        ("a0", "KEY_COLLIDES"),
    }
    assert "a0" not in crm.keys("accounts")
    office.warehouse("DELETE FROM accounts WHERE account_key = 'A0'")
    assert office.foretold("--sync", "accounts")["inserted"] == 1
    assert crm.sizes()["a0"] == 7
    office.warehouse("INSERT INTO accounts VALUES ('A0', 8)")
    done = office.foretold("--sync", "accounts")  # the object stays as it is, although both are refused
    assert (done["rejected"], done["deletes"]["planned"], crm.sizes()["a0"]) == (2, 0, 7)
    office.warehouse("DELETE FROM accounts WHERE account_key = 'a0'")
    done = office.foretold("--sync", "accounts")
    assert (done["updated"], done["deletes"]["planned"], crm.sizes()["a0"]) == (1, 0, 8)
    assert office.json("rejects", "list")["rejects"] == []


def test_a_value_that_goes_back_with_its_key_is_sent_again_though_nothing_is_deleted(
    office: Office, crm: Folding
) -> None:
    office.accounts(destination=destination("accounts", BY_ID) + FOLDS, deletes="keep")
    office.run("--sync", "accounts")
    office.warehouse("UPDATE accounts SET account_key = 'a0', size = 2 WHERE account_key = 'A0'")
    assert office.foretold("--sync", "accounts")["updated"] == 1
    office.warehouse("UPDATE accounts SET account_key = 'A0', size = 1 WHERE account_key = 'a0'")
    assert office.foretold("--sync", "accounts")["updated"] == 1
    assert crm.sizes()["a0"] == 1


def test_a_run_of_some_rows_takes_the_other_key_out_of_the_baseline_too(office: Office, crm: Folding) -> None:
    office.run("--sync", "accounts")
    for key, words in (("a0", ("--key", "a0")), ("a1", ("--where", "account_key = 'a1'"))):
        office.warehouse(
            f"UPDATE accounts SET account_key = '{key}', size = 2 WHERE lower(account_key) = '{key}'"
        )
        done = office.foretold("--sync", "accounts", *words)
        assert (done["read"], done["updated"], done["rejected"]) == (1, 1, 0)
    assert office.foretold("--sync", "accounts")["unchanged"] == 10
    assert len(crm.keys("accounts")) == 10
    office.warehouse("INSERT INTO accounts VALUES ('A0', 3)")
    assert office.foretold("--sync", "accounts", "--key", "a0")["rejected"] == 1


def test_a_row_that_the_contract_refuses_keeps_its_object(office: Office, crm: Folding) -> None:
    office.accounts(
        destination=destination("accounts", BY_ID) + FOLDS,
        contract="{account_key: {type: string}, size: {type: integer, le: 5}}",
        guards="{max_reject_rate: 1}",
    )
    office.run("--sync", "accounts")
    office.warehouse("UPDATE accounts SET account_key = 'a0', size = 9 WHERE account_key = 'A0'")
    done = office.foretold("--sync", "accounts")
    assert (done["rejected"], done["deletes"]["planned"], crm.sizes()["a0"]) == (1, 0, 1)
    office.warehouse("UPDATE accounts SET size = 5 WHERE account_key = 'a0'")
    assert office.foretold("--sync", "accounts")["updated"] == 1
    assert (crm.sizes()["a0"], len(crm.sizes())) == (5, 10)


def test_of_two_keys_of_one_merged_object_the_one_that_stays_keeps_it(tmp_path: Path, crm: Folding) -> None:
    office = Office(tmp_path / "project")
    office.begin(crm)
    office.run("--sync", "accounts")
    del crm.objects["accounts"][str(crm.find("accounts", "a2"))]
    crm.merged["a2"] = "a1"  # somebody merged two accounts
    office.warehouse("UPDATE accounts SET size = 2 WHERE account_key = 'a2'")
    office.run("--sync", "accounts")  # its answer has the id of a1
    office.warehouse("DELETE FROM accounts WHERE account_key = 'a2'")
    done = office.foretold("--sync", "accounts")
    assert (done["updated"], done["unchanged"], done["deletes"]["planned"]) == (1, 8, 0)
    assert (crm.sizes()["a1"], len(crm.sizes())) == (1, 9)
    assert office.foretold("--sync", "accounts")["unchanged"] == 9
    office.warehouse("DELETE FROM accounts WHERE account_key = 'a1'")
    assert office.foretold("--sync", "accounts")["deleted"] == 1
    assert len(crm.sizes()) == 8


def test_one_object_whose_keys_all_left_is_deleted_once(tmp_path: Path, crm: Folding) -> None:
    office = Office(tmp_path / "project")
    office.begin(crm)
    office.run("--sync", "accounts")
    del crm.objects["accounts"][str(crm.find("accounts", "a2"))]
    crm.merged["a2"] = "a1"
    office.warehouse("UPDATE accounts SET size = 2 WHERE account_key = 'a2'")
    office.run("--sync", "accounts")
    office.warehouse("DELETE FROM accounts WHERE account_key IN ('a1', 'a2')")
    assert office.foretold("--sync", "accounts")["deleted"] == 1
    assert sum(method == "DELETE" for method, *_ in crm.seen) == 1
    assert office.foretold("--sync", "accounts")["deletes"]["planned"] == 0


def test_where_twice_is_not_once_the_row_that_stays_is_not_sent_again(tmp_path: Path, crm: Folding) -> None:
    office = Office(tmp_path / "project")
    office.begin(crm)
    crm.merged["a2"] = "a1"
    insert = destination("accounts").replace("upsert:", "insert:")
    parts = {"write": "insert_only", "first_run": "send", "delivery": "at_most_once"}
    office.accounts(destination=insert, **parts)
    assert (office.run("--sync", "accounts")["inserted"], len(crm.sizes())) == (10, 9)
    office.warehouse("DELETE FROM accounts WHERE account_key = 'a2'")
    sent = len(crm.seen)
    assert office.foretold("--sync", "accounts")["unchanged"] == 9
    assert len(crm.seen) == sent
    office.warehouse("DELETE FROM accounts WHERE account_key = 'a1'")
    assert office.foretold("--sync", "accounts")["deleted"] == 1
    assert office.foretold("--sync", "accounts")["deletes"]["planned"] == 0
    assert len(crm.sizes()) == 8


def test_an_id_that_a_row_has_from_the_key_it_succeeds_is_kept_too(office: Office, crm: Folding) -> None:
    crm.merged["a1"] = "a0"
    office.run("--sync", "accounts")
    office.warehouse(
        "UPDATE accounts SET account_key = 'a0' WHERE account_key = 'A0';"
        "DELETE FROM accounts WHERE account_key = 'A1'"
    )
    done = office.foretold("--sync", "accounts")
    assert (done["updated"], done["deletes"]["planned"], len(crm.sizes())) == (1, 0, 9)
    assert office.foretold("--sync", "accounts")["unchanged"] == 9


def test_an_object_that_an_answer_of_the_same_run_gave_to_another_row_is_not_deleted(
    tmp_path: Path, crm: Folding
) -> None:
    office = Office(tmp_path / "project")
    office.begin(crm)  # nobody said that this CRM folds keys
    office.run("--sync", "accounts")
    office.warehouse(
        "UPDATE accounts SET account_key = upper(account_key) WHERE account_key < 'a3';"
        "DELETE FROM accounts WHERE account_key = 'a9'"
    )
    done = office.run("--sync", "accounts")
    assert (done["status"], done["inserted"], done["deleted"]) == ("SUCCESS", 3, 1)
    assert done["deletes"] == {"planned": 4, "rejected": 0, "in_doubt": 0, "not_attempted": 3, "kept": 0}
    assert crm.keys("accounts") == {f"a{n}" for n in range(9)}
    done = office.foretold("--sync", "accounts")
    assert (done["updated"], done["deletes"]["planned"]) == (3, 0)
    assert office.foretold("--sync", "accounts")["unchanged"] == 9
    assert crm.keys("accounts") == {f"a{n}" for n in range(9)}


def test_folds_that_concern_no_text_of_the_key_are_refused(office: Office) -> None:
    for folds in ("{case: [size]}", "{case: []}", "{blanks: [account_key, x]}"):
        office.accounts(destination=destination("accounts") + f"  folds: {folds}\n")
        said = office.retl("sync", "--sync", "accounts")
        assert (said.code, "OPTION_UNUSED" in said.err, "account_key" in said.err) == (2, True, True)
    office.accounts(key="[size]", destination=destination("accounts") + "  folds: {case: true}\n")
    assert "no field of the key is a text" in office.retl("sync", "--sync", "accounts").err
