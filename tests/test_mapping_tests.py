"""`retl test`: what the rows under `tests` become, judged by the code that judges a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.commands import Workshop

CONTRACT = """
  user_id: {type: integer, ge: 1}
  email: {type: string, nullable: true, sensitive: true}
  phone: {type: string, nullable: true}
  segment: {type: string, one_of: [power, casual]}
  spend: {type: decimal, max_digits: 12, decimal_places: 2, nullable: true}
  visits: {type: integer, nullable: true}
  score: {type: float, nullable: true}
  seen_at: {type: timestamptz, nullable: true}
  born: {type: date, nullable: true}
  labels: {type: list, items: string, nullable: true}
  extra: {type: json, nullable: true}
"""
FIELDS = """
  id: user_id
  Email: {column: email, transform: [trim, lower]}
  Phone: {column: phone, nulls: keep}
  Segment: segment
  Source: {value: warehouse}
  Spend: spend
  Seen: seen_at
  Run: $run_id
  Of: $sync
  Labels: labels
  Extra: extra
"""
ROW = "user_id: 7, segment: power"


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """No warehouse and no environment: nothing but files."""
    made = Workshop(tmp_path / "project")
    (made.folder / "data" / "warehouse.duckdb").unlink()
    return made


def sync(workshop: Workshop, *tests: str, **parts: str) -> None:
    lines = {
        "key": "[user_id]",
        "contract": CONTRACT,
        "fields": FIELDS,
        "destination": "{type: postgres, table: users}",
        "tests": "".join(f"\n  - {{{test}}}" for test in tests),
    }
    workshop.sync("users", **(lines | parts))


def tried(workshop: Workshop, *words: str) -> tuple[int, list[dict[str, Any]]]:
    said = workshop.retl("test", *words, "--output", "json")
    assert said.code in (0, 1), said.err
    assert said.document["exit_code"] == said.code
    return said.code, said.document["tests"]


def test_what_would_be_sent_is_compared_field_by_field(workshop: Workshop) -> None:
    sync(
        workshop,
        f"given: {{{ROW}, email: ' Ada@Example.COM ', spend: 12.5, seen_at: '2026-11-21T08:00:00+02:00',"
        " labels: [a, b], extra: {a: 1}}, expect: {id: 7, Email: ada@example.com, Phone: $kept, Source: warehouse,"
        " Spend: 12.50, Seen: '2026-11-21T06:00:00Z', Of: users, Labels: [a, b], Extra: {a: 1}}",
        f"given: {{{ROW}}}, expect: {{Email: null, Segment: power, Seen: null}}",
    )
    code, found = tried(workshop)
    assert (code, [one["passed"] for one in found]) == (0, [True, True]), found
    assert workshop.snapshot().keys() == {"data", "syncs", "syncs/users.yml"}


@pytest.mark.parametrize(
    ("expect", "field", "sent"),
    [
        ("Segment: casual", "Segment", "power"),
        ("id: '7'", "id", 7),
        ("id: true", "id", 7),
        ("Spend: 12.51", "Spend", 12.5),
        ("Spend: null", "Spend", 12.5),
        ("Phone: null", "Phone", "$kept"),
        ("Segment: $kept", "Segment", "power"),
        ("Labels: [b, a]", "Labels", ["a", "b"]),
        ("Extra: {a: 1, b: 2}", "Extra", {"a": 1}),
    ],
)
def test_a_field_that_differs_fails_and_both_values_are_shown(
    workshop: Workshop, expect: str, field: str, sent: Any
) -> None:
    given = f"{ROW}, spend: 12.50, labels: [a, b], extra: {{a: 1}}"
    sync(workshop, f"given: {{{given}}}, expect: {{{expect}}}")
    code, (one,) = tried(workshop)
    assert (code, one["passed"], one["rejected"]) == (1, False, None)
    assert [(each["field"], each["sent"]) for each in one["differences"]] == [(field, sent)]
    said = workshop.retl("test")
    assert (said.code, "syncs/users.yml:" in said.out, field in said.out) == (1, True, True)


@pytest.mark.parametrize(
    ("given", "reject"),
    [
        ("user_id: 7, segment: vip", "segment"),
        ("user_id: 7, segment: vip", "NOT_ONE_OF"),
        ("user_id: 7", "NULL_VALUE"),
        ("user_id: 0, segment: power", "OUT_OF_RANGE"),
        ("segment: power", "user_id"),
        ("segment: power", "KEY_NULL"),
        (f"{ROW}, visits: 1.5", "visits"),
        (f"{ROW}, visits: 9223372036854775808", "UNREPRESENTABLE"),
        (f"{ROW}, spend: 1.005", "spend"),
        (f"{ROW}, spend: 12345678901.5", "spend"),
        (f"{ROW}, score: NaN", "UNREPRESENTABLE"),
        (f"{ROW}, born: infinity", "born"),
        (f"{ROW}, extra: '{{not json'", "extra"),
    ],
)
def test_a_row_that_must_be_rejected_is_judged_by_column_or_code(
    workshop: Workshop, given: str, reject: str
) -> None:
    sync(workshop, f"given: {{{given}}}, reject: {reject}", f"given: {{{given}}}, expect: {{}}")
    code, (right, wrong) = tried(workshop)
    assert (code, right["passed"], wrong["passed"]) == (1, True, False)
    assert wrong["rejected"]["reason"]


def test_a_row_rejected_for_another_reason_or_not_at_all_fails(workshop: Workshop) -> None:
    sync(
        workshop,
        "name: other, given: {user_id: 7, segment: vip}, reject: email",
        f"name: none, given: {{{ROW}}}, reject: segment",
    )
    code, found = tried(workshop)
    assert code == 1
    assert [(one["test"], one["passed"], bool(one["rejected"])) for one in found] == [
        *(("other", False, True), ("none", False, False)),
    ]
    said = workshop.retl("test").out
    assert "the row is rejected, not for email" in said
    assert "the row is sent, but should be rejected: segment" in said
    assert "0 passed, 2 failed" in said


def test_rows_of_one_key_do_not_meet(workshop: Workshop) -> None:
    sync(workshop, *[f"given: {{{ROW}}}, expect: {{id: 7}}"] * 2)
    assert tried(workshop)[0] == 0


def test_a_naive_time_is_read_in_the_time_zone_of_the_warehouse(workshop: Workshop) -> None:
    workshop.write("retl.yml", "warehouse: {timezone: Europe/Berlin}\n")
    sync(
        workshop,
        f"given: {{{ROW}, seen_at: '2026-07-01 08:00:00'}}, expect: {{Seen: '2026-07-01T06:00:00Z'}}",
    )
    assert tried(workshop)[0] == 0


def test_a_pydantic_model_judges_and_edits_as_in_a_run(workshop: Workshop) -> None:
    workshop.write(
        "marts.py",
        "from pydantic import BaseModel, field_validator\n"
        "class User(BaseModel):\n"
        "    user_id: int\n"
        "    email: str | None = None\n"
        "    @field_validator('email')\n"
        "    @classmethod\n"
        "    def plain(cls, value):\n"
        "        if value == 'bad': raise ValueError('no')\n"
        "        return value and value.strip()\n",
    )
    tests = [
        "given: {user_id: 1, email: ' a '}, expect: {email: a}",
        "given: {user_id: 1, email: bad}, reject: email",
    ]
    sync(workshop, *tests, contract="{model: 'marts:User', edits: true}", fields='{"*": "*"}')
    code, found = tried(workshop)
    assert (code, [one["passed"] for one in found]) == (0, [True, True])
    sync(workshop, *tests, contract="marts:User", fields='{"*": "*"}')
    code, found = tried(workshop)
    assert (code, found[0]["rejected"]["code"]) == (1, "CONTRACT_EDITED")


def test_without_a_contract_the_warehouse_says_the_types(workshop: Workshop) -> None:
    sync(workshop, "given: {user_id: 1, spend: 2}, expect: {spend: 2.00}", contract="~", fields="~")
    text = (workshop.folder / "syncs" / "users.yml").read_text()
    workshop.write("syncs/users.yml", text.replace("contract: ~\n", "").replace("fields: ~\n", ""))
    said = workshop.retl("test")
    assert (said.code, "[MART_MISSING]" in said.err) == (1, True)
    workshop.warehouse("CREATE TABLE users (user_id BIGINT, spend DECIMAL(12, 2))")
    assert tried(workshop)[0] == 0


@pytest.mark.parametrize(
    ("test", "code", "says"),
    [
        (f"given: {{{ROW}, emial: x}}, expect: {{}}", "COLUMN_UNKNOWN", "did you mean 'email'?"),
        (f"given: {{{ROW}, email: 5}}, expect: {{}}", "TEST_INVALID", "needs quotes"),
        (f"given: {{{ROW}, visits: many}}, expect: {{}}", "TEST_INVALID", "visits is of type integer"),
        (f"given: {{{ROW}, born: 21.11.2026}}, expect: {{}}", "TEST_INVALID", "born is of type date"),
        (f"given: {{{ROW}, labels: [1]}}, expect: {{}}", "TEST_INVALID", "labels is of type string"),
        (f"given: {{{ROW}}}, expect: {{Emial: x}}", "FIELD_UNKNOWN", "did you mean 'Email'?"),
        (f"given: {{{ROW}}}, expect: {{Run: x}}", "TEST_INVALID", "different in every run"),
        (f"given: {{{ROW}}}, reject: segmnt", "TEST_INVALID", "did you mean 'segment'?"),
        (f"given: {{{ROW}}}", "DEFINITION_INVALID", "exactly one of expect and reject"),
        (f"given: {{{ROW}}}, expect: {{}}, reject: email", "DEFINITION_INVALID", "exactly one of"),
        (f"given: {{{ROW}}}, expcet: {{}}", "OPTION_UNKNOWN", "did you mean 'expect'?"),
    ],
)
def test_a_wrong_test_is_an_error_of_the_definition_with_its_line(
    workshop: Workshop, test: str, code: str, says: str
) -> None:
    sync(workshop, f"given: {{{ROW}}}, expect: {{}}", test)
    lines = (workshop.folder / "syncs" / "users.yml").read_text().splitlines()
    for command in ("test", "validate"):
        said = workshop.retl(command)
        assert said.code == 2, said.err
        assert f"[{code}]" in said.err
        assert says in said.err
        assert f"syncs/users.yml:{len(lines)}:" in said.err


def test_sensitive_values_are_masked_unless_asked_for(workshop: Workshop) -> None:
    sync(workshop, f"given: {{{ROW}, email: secret@example.com}}, expect: {{Email: other@example.com}}")
    for output in ("table", "json"):
        assert "@example.com" not in workshop.retl("test", "--output", output).out
        assert "secret@example.com" in workshop.retl("test", "--output", output, "--reveal").out


def test_one_sync_is_tested_alone_and_none_is_said(workshop: Workshop) -> None:
    sync(workshop, f"given: {{{ROW}}}, expect: {{Segment: casual}}")
    workshop.sync("other", contract="{user_id: {type: integer}}")
    assert workshop.retl("test", "--sync", "users").code == 1
    said = workshop.retl("test", "--sync", "other")
    assert (said.code, "no tests" in said.out) == (0, True)
    assert workshop.retl("test", "--sync", "nobody").code == 2


def test_the_schema_knows_tests(workshop: Workshop) -> None:
    assert "tests" in workshop.json("schema")["properties"]
