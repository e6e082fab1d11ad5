"""A transform on the key's field: the key is sent, remembered and named in its transformed form only."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Workshop
from tests.servers import Database, RedisServer
from tests.test_refs import Crm, Office, destination

HASHED = "{mail: {column: email, transform: [trim, lower, sha256_hex]}, spend: spend}"
REDIS = '{type: redis, key: "u:{mail}", value: json, ttl: none}'
LOOSE = "{max_reject_rate: 1, max_delete_rate: 1, max_row_drop: 1}"


def digest(address: str) -> str:
    return sha256(address.strip().lower().encode()).hexdigest()


@pytest.fixture
def workshop(tmp_path: Path, redis_server: RedisServer) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(redis=redis_server)
    made.warehouse("UPDATE users SET email = ' U1@Example.com' WHERE user_id = 1")
    made.sync("users", key="[email]", fields=HASHED, destination=REDIS, deletes="delete", guards=LOOSE)
    return made


def run(workshop: Workshop, *words: str, code: int = 0) -> dict[str, Any]:
    said = workshop.retl("sync", *words, "--output", "json")
    assert said.code == code, said.out + said.err
    assert "xample.com" not in said.out + said.err
    return dict(said.document["syncs"][0])


def stored(redis_server: RedisServer) -> dict[str, Any]:
    with redis_server.client() as client:
        held = {name.decode(): client.get(name) for name in client.scan_iter("u:*")}
    return {name.removeprefix("u:"): json.loads(value or b"") for name, value in held.items()}


def test_only_the_transformed_key_leaves_and_is_remembered(
    workshop: Workshop, redis_server: RedisServer
) -> None:
    assert run(workshop)["inserted"] == 30
    held = stored(redis_server)
    assert held.keys() == {digest(f"u{n}@example.com") for n in range(1, 31)}
    assert not any("example" in str(one).lower() for one in held.values())
    files = [path for path in (workshop.folder / ".retl").rglob("*") if path.is_file()]
    assert files
    assert not any(b"xample.com" in path.read_bytes() for path in files)
    assert run(workshop)["unchanged"] == 30
    workshop.warehouse("DELETE FROM users WHERE user_id = 7; UPDATE users SET spend = 0 WHERE user_id = 8")
    done = run(workshop)
    assert (done["updated"], done["deleted"], done["unchanged"]) == (1, 1, 28)
    assert digest("u7@example.com") not in stored(redis_server)


def test_keys_are_named_as_they_are_sent(workshop: Workshop) -> None:
    run(workshop)
    workshop.warehouse("UPDATE users SET spend = 100")
    sent = digest("u3@example.com")
    assert run(workshop, "--key", sent)["updated"] == 1
    assert "KEY_UNKNOWN" in workshop.retl("sync", "--key", "u3@example.com".upper(), "--dry-run").err
    assert run(workshop, "--where", "email = 'u3@example.com'", "--dry-run")["read"] == 1
    (row,) = workshop.json("explain", "users", "--key", sent)["rows"]
    assert (row["key"], row["row"]["email"], sent in row["request"]) == (sent, "u3@example.com", True)
    assert "u3@" not in row["request"]


def test_a_sensitive_key_is_masked_in_every_form(workshop: Workshop) -> None:
    contract = (
        "{email: {type: string, sensitive: true}, spend: {type: decimal, max_digits: 12, decimal_places: 2}}"
    )
    workshop.sync("users", key="[email]", fields=HASHED, destination=REDIS, contract=contract)
    sent = digest("u3@example.com")
    for words in (("explain", "users", "--key", sent), ("plan", "--sync", "users")):
        said = workshop.retl(*words)
        assert said.code == 0, said.err
        assert "xample.com" not in said.out
        assert sent[:12] not in said.out


def test_rows_whose_keys_become_equal_are_refused(workshop: Workshop, redis_server: RedisServer) -> None:
    run(workshop)
    workshop.warehouse("INSERT INTO users VALUES (90, 'u2@EXAMPLE.com', 9), (91, 'u3@example.com', 9)")
    done = run(workshop)
    assert (done["rejected"], done["unchanged"], done["deletes"]["planned"]) == (4, 28, 0)
    assert sorted((one["key"], one["code"]) for one in done["rejects"]) == sorted(
        [(digest("u2@example.com"), "KEY_COLLIDES")] * 2 + [(digest("u3@example.com"), "KEY_DUPLICATE")] * 2
    )
    assert len(workshop.json("rejects", "list")["rejects"]) == 2
    assert run(workshop, "--where", "user_id = 90", "--dry-run")["rejects"][0]["code"] == "KEY_COLLIDES"
    workshop.warehouse("DELETE FROM users WHERE user_id IN (2, 91)")
    done = run(workshop)
    assert (done["updated"], done["unchanged"], done["rejected"]) == (1, 29, 0)
    assert stored(redis_server)[digest("u2@example.com")]["spend"] == 9


def test_a_key_that_cannot_be_transformed_is_no_key(workshop: Workshop) -> None:
    workshop.warehouse(
        "UPDATE users SET email = '+49 30 123456' || user_id; UPDATE users SET email = '0' WHERE user_id = 1;"
        "UPDATE users SET email = ' ' WHERE user_id = 2; UPDATE users SET email = NULL WHERE user_id = 3"
    )
    phone = "{mail: {column: email, transform: [e164, sha256_hex]}}"
    workshop.sync("users", key="[email]", fields=phone, destination=REDIS, deletes="delete", guards=LOOSE)
    done = run(workshop)
    assert (done["inserted"], done["rejected"]) == (27, 3)
    assert {one["code"] for one in done["rejects"]} == {"NO_PHONE", "KEY_BLANK", "KEY_NULL"}
    workshop.warehouse("DELETE FROM users WHERE user_id = 9")
    assert run(workshop)["deletes"]["not_attempted"] == 1  # one of the rejected rows may be the missing one


def test_another_transform_is_another_key(workshop: Workshop) -> None:
    run(workshop)
    fields = HASHED.replace("trim, lower, sha256_hex", "trim, lower")
    workshop.sync("users", key="[email]", fields=fields, destination=REDIS, deletes="delete", guards=LOOSE)
    said = workshop.retl("sync", "--output", "json")
    assert (said.code, said.document["syncs"][0]["guards"][0]["code"]) == (3, "IDENTITY_CHANGED")


def test_a_transform_of_a_key_that_is_no_text_is_a_definition_error(workshop: Workshop) -> None:
    fields = "{user_id: {column: user_id, transform: [sha256_hex]}}"
    workshop.sync("users", fields=fields, destination=REDIS.replace("mail", "user_id"))
    said = workshop.retl("sync")
    assert (said.code, "TRANSFORM_TYPE" in said.err) == (2, True)


def test_a_mapping_test_sees_the_key_as_it_is_sent(workshop: Workshop) -> None:
    contract = "{email: {type: string}, spend: {type: integer}}"
    tests = (
        f"[{{given: {{email: ' A@b.example ', spend: 1}}, expect: {{mail: {digest('a@b.example')}}}}},"
        " {given: {email: '  ', spend: 1}, reject: email}]"
    )
    workshop.sync("users", key="[email]", fields=HASHED, destination=REDIS, contract=contract, tests=tests)
    said = workshop.retl("test", "--sync", "users")
    assert said.code == 0, said.out + said.err


def test_postgresql_takes_one_part_of_a_key_transformed(tmp_path: Path, postgres: Database) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.use(postgres=postgres)
    workshop.sync(
        "users",
        key="[user_id, email]",
        fields="{email: {column: email, transform: [sha256_hex]}, spend: spend}",
        destination="{type: postgres, table: users, create: true}",
        deletes="delete",
    )
    assert run(workshop)["inserted"] == 30
    workshop.warehouse("DELETE FROM users WHERE user_id > 28; UPDATE users SET spend = 0 WHERE user_id = 1")
    done = run(workshop)
    assert (done["updated"], done["deleted"], done["unchanged"]) == (1, 2, 27)
    with postgres.connect() as connection:
        held = connection.execute("SELECT user_id, email FROM users ORDER BY user_id").fetchall()
    assert held == [(n, digest(f"u{n}@example.com")) for n in range(1, 29)]


def test_an_api_and_other_syncs_know_the_transformed_key(tmp_path: Path) -> None:
    with Crm() as crm:
        office = Office(tmp_path / "project")
        office.begin(crm)
        key = "{account_key: {column: account_key, transform: [upper]}, size: size}"
        office.accounts(fields=key, destination=destination("accounts"))
        assert office.run()["rejected"] == 0
        assert crm.keys("accounts") == {f"A{n}" for n in range(10)}
        assert office.owners() == {f"c{n}": f"A{n // 2}" for n in range(20)}


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"fields": "{user_id: {column: user_id, nulls: keep}}"}, "nulls"),
        ({"fields": "{user_id: {column: user_id, only_if_empty: true}}"}, "only_if_empty"),
        ({"changes": "{hash: {ignore: [user_id]}}"}, "never compared"),
        ({"delivery": "at_most_once"}, "delivery"),
        ({"destination": "{type: postgres, table: t}", "formats": "{bigints: string}"}, "formats"),
        ({"fields": "{spend: {value: 1, nulls: keep}}"}, "nulls: keep"),
        ({"fields": "{at: {run_value: $run_started_at, only_if_empty: true}}"}, "cannot tell whether"),
    ],
)
def test_options_without_effect_are_definition_errors(
    tmp_path: Path, parts: dict[str, str], named: str
) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.sync("users", **parts)
    said = workshop.retl("explain", "users", POSTGRES_HOST="localhost", POSTGRES_DB="d", POSTGRES_USER="u")
    assert said.code == 2, said.out + said.err
    assert named in said.err


def test_a_limit_without_its_number_is_a_definition_error(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.write("retl.yml", "connections: {redis: {type: redis, limits: {per: 10s}}}\n")
    workshop.sync("users")
    said = workshop.retl("validate")
    assert (said.code, "`per` needs `requests`" in said.err) == (2, True)
