"""The twenty likeliest mistakes, each made in a real project: what retl says, word for word.

A sentence is compared whole. Only what no two runs share is left open: paths, ports, process ids.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from retl.testing import FakeHubSpot, throttled
from tests.commands import Said, Workshop
from tests.servers import Database, RedisServer

TABLE = "{type: postgres, table: crm.users, create: true}"
HUBSPOT = 'connections:\n  hub: {type: hubspot, token: "${HUB_TOKEN}", base_url: "${HUB_URL}"}\n'
OPEN = [  # what differs from run to run
    (r"localhost:\d+/\w+", "SERVER"),
    (r"process \d+", "process PID"),
    (r" /\S+/data/", " …/data/"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "TIME"),
]


@pytest.fixture
def workshop(tmp_path: Path, postgres: Database) -> Workshop:
    """30 users that go to crm.users."""
    made = Workshop(tmp_path / "project", {"RETL_LOG_LEVEL": "error"})
    made.use(postgres=postgres)
    made.sync("users", destination=TABLE)
    return made


def golden(said: Said, code: int, *lines: str) -> None:
    """The command ended with this code, and stderr is these lines."""
    text = said.err
    for pattern, word in OPEN:
        text = re.sub(pattern, word, text)
    assert (said.code, text.splitlines()) == (code, list(lines))


def noted(said: Said) -> list[str]:
    """The notes under a run's numbers."""
    assert said.code == 0, said.err
    return re.findall(r"^note: (.+)$", said.out, re.MULTILINE)


# --- setting up


def test_a_variable_is_not_set(workshop: Workshop) -> None:
    workshop.write(
        "retl.yml",
        'connections:\n  crm: {type: postgres, host: localhost, dbname: crm, user: retl, password: "${CRM_PASSWORD}"}\n',
    )
    workshop.sync("users", destination="{connection: crm, table: crm.users}")
    golden(
        workshop.retl("sync"),
        2,
        "error: retl.yml:2:77: the variable CRM_PASSWORD is not set or is empty [VARIABLE_UNSET]",
        "  hint: set CRM_PASSWORD in the environment or in config.env, or give it a default: ${CRM_PASSWORD:-text}",
    )


def test_a_word_is_misspelt(workshop: Workshop) -> None:
    workshop.sync("users", destination=TABLE, delets="delete")
    golden(
        workshop.retl("sync"),
        2,
        "error: syncs/users.yml:4:1: there is no key 'delets' here [OPTION_UNKNOWN]",
        "  hint: did you mean 'deletes'?",
    )


def test_a_choice_that_append_needs_is_missing(workshop: Workshop) -> None:
    workshop.sync("users", write="append")
    said = workshop.retl("validate").err
    assert "`write: append` needs `first_run`" in said
    assert "did you mean" not in said


def test_the_address_stands_in_the_sync(workshop: Workshop) -> None:
    workshop.sync("users", destination='{type: webhook, url: "https://x.example/in"}', first_run="send")
    golden(
        workshop.retl("validate"),
        2,
        "error: syncs/users.yml:3:21: webhook needs a connection: retl.yml says url, not the sync [CONNECTION_MISSING]",
        "  hint: in retl.yml: `connections: {NAME: {type: webhook, url: …}}`;"
        " here: `destination: {connection: NAME, …}`",
    )


def test_an_option_of_another_tool_or_command(workshop: Workshop) -> None:
    golden(
        workshop.retl("sync", "--plan", "users.plan"),
        2,
        "error: No such option: --plan [USAGE]",
        "  hint: `retl apply FILE` delivers a plan",
    )
    golden(
        workshop.retl("plan", "-s", "users"),
        2,
        "error: No such option: -s [USAGE]",
        "  hint: syncs are named without an option: `retl sync orders tag:crm`",
    )


def test_the_event_of_an_alert_is_misspelt(workshop: Workshop) -> None:
    workshop.write("retl.yml", 'alerts:\n  - {to: "json://x.example", on: failed}\n')
    golden(
        workshop.retl("validate"),
        2,
        "error: retl.yml:2:34: `alerts.0.on`: must be 'failure', 'refusal', 'rejects', 'stale', 'success',"
        " 'recovery' or 'assert' [DEFINITION_INVALID]",
        "  hint: did you mean 'failure'?",
    )


def test_the_table_has_another_name(workshop: Workshop) -> None:
    workshop.sync("users", destination=TABLE, source="{table: usres}")
    sentence = (
        "table usres does not fit the warehouse: Catalog Error: Table with name usres does not exist!"
        " [SOURCE_DRIFT]"
    )
    hint = "  hint: did you mean 'users'?"
    golden(workshop.retl("validate"), 2, f"error: syncs/users.yml:1:9: {sentence}", hint)
    golden(workshop.retl("sync"), 3, f"error: users: {sentence}", hint)


def test_the_table_is_in_another_schema(workshop: Workshop) -> None:
    workshop.sync("users", destination=TABLE, source="{table: marts.users}")
    sentence = (
        'table marts.users does not fit the warehouse: Catalog Error: Table with name "marts.users" does not'
        ' exist because schema "marts" does not exist. [SOURCE_DRIFT]'
    )
    golden(
        workshop.retl("validate"),
        2,
        f"error: syncs/users.yml:1:9: {sentence}",
        "  hint: the warehouse has main.users",
    )


def test_a_mirror_is_asked_for_by_its_name(workshop: Workshop) -> None:
    workshop.sync("users", destination=TABLE, deletes="mirror")
    golden(
        workshop.retl("validate"),
        2,
        "error: syncs/users.yml:4:10: `deletes`: must be keep, delete (for a mirror), {delete: true, within:"
        " SQL} or {set: {field: value}, restore: {field: value}, within: SQL} [DEFINITION_INVALID]",
    )


def test_a_column_has_another_type(workshop: Workshop) -> None:
    workshop.sync("users", destination=TABLE, contract="{user_id: {type: integer}, email: {type: integer}}")
    golden(
        workshop.retl("validate"),
        2,
        "error: syncs/users.yml:4:45: the mart's column email is VARCHAR, the contract's type is integer [SOURCE_DRIFT]",
        "  hint: cast email in the source's SQL, or change its type in the contract",
    )


def test_the_key_is_not_unique(workshop: Workshop) -> None:
    workshop.warehouse("INSERT INTO users SELECT * FROM users WHERE user_id <= 3")
    golden(
        workshop.retl("sync"),
        3,
        "error: users: 6 of 33 rows break the contract or have no usable key, more than max_reject_rate (0.05):"
        " KEY_DUPLICATE [REJECT_RATE]",
        "  hint: see the reasons with `retl show`, fix the mart or the contract, or --accept REJECT_RATE",
    )


def test_the_server_is_down(workshop: Workshop) -> None:
    golden(
        workshop.retl("sync", POSTGRES_PORT="1"),
        1,
        "error: users: PostgreSQL at SERVER cannot be reached now: nothing listens there [UNREACHABLE]",
        "  hint: check host and port, and that the server runs; then run again",
    )


def test_the_password_is_wrong(workshop: Workshop) -> None:
    said = workshop.retl("sync", POSTGRES_PASSWORD="not-the-password")
    golden(
        said,
        1,
        "error: users: PostgreSQL at SERVER: it does not accept the login of postgres [28000]",
        "  hint: check user and password in retl.yml, those of the default connection in POSTGRES_USER and"
        " POSTGRES_PASSWORD, and the server's pg_hba.conf; then `retl check`",
    )


def test_the_password_was_forgotten(workshop: Workshop) -> None:
    golden(
        workshop.retl("sync", POSTGRES_PASSWORD=""),
        1,
        "error: users: PostgreSQL at SERVER: it asks for a password, and none is set for the login of postgres"
        " [28000]",
        "  hint: set POSTGRES_PASSWORD, or `password` of the connection in retl.yml",
    )


@pytest.mark.parametrize(("password", "code"), [("", "NOAUTH"), ("not-the-password", "WRONGPASS")])
def test_the_password_of_redis_is_wrong_or_was_forgotten(
    tmp_path: Path, redis_server: RedisServer, password: str, code: str
) -> None:
    made = Workshop(tmp_path / "project", {"RETL_LOG_LEVEL": "error"})
    made.use(redis_server)
    made.sync("users")
    said = made.retl("sync", REDIS_PASSWORD=password)
    assert (said.code, f"[{code}]" in said.err) == (1, True), said.err
    hint = "check user and password in retl.yml, those of the default connection in REDIS_USER and REDIS_PASSWORD"
    assert f"hint: {hint}; then `retl check`" in said.err


def test_dbt_holds_the_warehouse(workshop: Workshop) -> None:
    workshop.write("retl.yml", "warehouse: {lock_wait: 0s}\n")
    with duckdb.connect(str(workshop.folder / "data" / "warehouse.duckdb")):
        golden(
            workshop.process("sync"),
            75,
            "error: users: process PID is writing to …/data/warehouse.duckdb [MART_LOCKED]",
            "  hint: wait for it, or raise warehouse.lock_wait",
        )


def test_a_column_in_mixed_case_was_made_without_quotes(workshop: Workshop, postgres: Database) -> None:
    with postgres.connect() as connection:
        connection.execute("CREATE SCHEMA crm")
        connection.execute(
            "CREATE TABLE crm.users (user_id bigint PRIMARY KEY, eMail text, spend numeric(12,2))"
        )
    workshop.warehouse('ALTER TABLE users RENAME email TO "eMail"')
    workshop.sync("users", destination="{type: postgres, table: crm.users}")
    golden(
        workshop.retl("sync"),
        3,
        "error: users: column eMail is missing, but there is email (PostgreSQL folds names"
        ' without quotes to lower case): set fields: {"*": "*", email: eMail} [TARGET_DRIFT]',
        '  hint: ALTER TABLE "crm"."users" RENAME COLUMN "email" TO "eMail";',
    )
    workshop.sync(
        "users",
        destination="{type: postgres, table: crm.users}",
        fields='{"*": "*", email: eMail}',
    )
    golden(workshop.retl("sync"), 0)


def test_files_come_from_windows(workshop: Workshop, postgres: Database) -> None:
    for path in ("retl.yml", "config.env", "password", "syncs/users.yml"):
        file = workshop.folder / path
        text = file.read_text() if file.exists() else ""
        text += {"config.env": "POSTGRES_PASSWORD_FILE=password\n", "password": f"{postgres.password}\n"}.get(
            path, ""
        )
        file.write_bytes(text.replace("\n", "\r\n").encode())
    golden(workshop.retl("sync", POSTGRES_PASSWORD=""), 0)
    with postgres.connect() as connection:
        assert connection.execute("SELECT count(*) FROM crm.users").fetchone() == (30,)


# --- running


def test_a_load_time_makes_every_row_an_update(workshop: Workshop) -> None:
    workshop.warehouse("ALTER TABLE users ADD COLUMN loaded_at TIMESTAMPTZ DEFAULT now()")
    assert noted(workshop.retl("sync")) == []
    workshop.warehouse("UPDATE users SET loaded_at = loaded_at + INTERVAL 1 HOUR")
    note = (
        "30 of 30 rows are updates, and column loaded_at differs in every one that was compared: if that is no"
        " reason to send a row, set changes: {hash: {ignore: [loaded_at]}}"
    )
    assert noted(workshop.retl("sync", "--dry-run")) == [note]
    assert noted(workshop.retl("sync")) == [note]
    workshop.sync("users", destination=TABLE, changes="{hash: {ignore: [loaded_at]}}")
    workshop.retl("sync")
    workshop.warehouse("UPDATE users SET loaded_at = loaded_at + INTERVAL 1 HOUR")
    (then,) = workshop.json("sync")["syncs"]
    assert (then["unchanged"], then["updated"], then.get("notes")) == (30, 0, None)


def test_rows_that_really_changed_are_no_load_time(workshop: Workshop) -> None:
    workshop.retl("sync")
    workshop.warehouse("UPDATE users SET email = 'x' || email, spend = spend + 1")
    assert noted(workshop.retl("sync")) == []


def test_the_target_was_emptied(workshop: Workshop, postgres: Database) -> None:
    workshop.retl("sync")
    with postgres.connect() as connection:
        connection.execute("TRUNCATE crm.users")
    golden(
        workshop.retl("sync"),
        3,
        "error: users: the target lacks 30 of 30 sampled keys that were delivered [TARGET_LOST]",
        "  hint: it was emptied, restored or replaced: `--full` delivers every row again",
    )


def test_a_sync_was_renamed(workshop: Workshop) -> None:
    workshop.retl("sync")
    (workshop.folder / "syncs" / "users.yml").rename(workshop.folder / "syncs" / "customers.yml")
    golden(
        workshop.retl("sync"),
        3,
        "error: customers: sync 'users' delivered to this object and no longer exists: was it renamed? [ORPHANED_STATE]",
        "  hint: `retl state mv users customers` keeps its state; --accept ORPHANED_STATE starts without it",
    )


def test_the_state_did_not_outlive_the_ci_job(workshop: Workshop) -> None:
    workshop.retl("sync")
    shutil.rmtree(workshop.folder / ".retl")
    golden(
        workshop.retl("sync"),
        3,
        "error: users: another ledger has delivered to postgres://SERVER/crm.users (last TIME), and no sync of this one has"
        " [STATE_LOST]",
        "  hint: another project writes here (then choose another table), or the state directory is lost (a new"
        " container or CI job has none: keep it, or set RETL_STATE_URL=postgresql://…); `--accept STATE_LOST` continues with this ledger;"
        " people that this ledger does not know to be erased must be erased again first, or they are sent",
    )


def test_the_first_run_would_message_everybody(workshop: Workshop) -> None:
    workshop.write("retl.yml", 'connections:\n  chat: {type: slack, url: "${SLACK_URL}"}\n')
    source = '{sql: "SELECT user_id, email AS text FROM users"}'
    message = {"source": source, "destination": "{connection: chat, text: text}", "write": "append"}
    workshop.sync("users", **message)
    golden(
        workshop.retl("sync", SLACK_URL="https://hooks.slack.com/services/T0/B0/x"),
        2,
        "error: syncs/users.yml:1:1: `write: append` needs `first_run`: send (every row of today's mart) or adopt"
        " (none) [DEFINITION_INVALID]",
    )


def test_a_null_would_empty_a_field(workshop: Workshop) -> None:
    contract = "{user_id: {type: integer}, email: {type: string, nullable: true}}"
    workshop.sync("users", destination=TABLE, contract=contract)
    workshop.retl("sync")
    workshop.warehouse("UPDATE users SET email = NULL WHERE user_id <= 3")
    assert noted(workshop.retl("plan", "--sync", "users")) == [
        "a NULL would empty email, which has a value in the target: to keep the value, map it with nulls: keep,"
        " fields: {email: {column: …, nulls: keep}}"
    ]
    workshop.sync(
        "users", destination=TABLE, contract=contract, fields="{email: {column: email, nulls: keep}}"
    )
    (kept,) = workshop.json("plan", "--sync", "users")["syncs"]
    assert not any("would empty" in note for note in kept["notes"])


def test_the_vendor_refuses_a_value(workshop: Workshop) -> None:
    with FakeHubSpot(refuse=["u3@example.com"]) as hubspot:
        hub(workshop, hubspot)
        said = workshop.retl("sync")
        golden(said, 0)
        assert re.findall(r"^u3@.*$", said.out, re.MULTILINE) == [
            "u3@example.com  target  VALIDATION_ERROR  the target refused the row"
        ]
        assert len(hubspot.objects) == 4


def test_the_vendors_quota_is_spent(workshop: Workshop) -> None:
    with FakeHubSpot() as hubspot:
        hub(workshop, hubspot)
        hubspot.misbehave(throttled(3600))
        golden(
            workshop.retl("sync"),
            75,
            "error: users: the target of connection hub asked for a pause until TIME: the target answered 429"
            " Too Many Requests [HELD_OFF]",
            "  hint: run again then",
        )
        golden(
            workshop.retl("sync"),
            75,
            "error: users: the target of connection hub asked for a pause until TIME [HELD_OFF]",
            "  hint: run again then",
        )
        assert len(hubspot.seen) == 1


def hub(workshop: Workshop, hubspot: FakeHubSpot) -> None:
    workshop.write("retl.yml", HUBSPOT)
    workshop.environment |= {"HUB_TOKEN": hubspot.token, "HUB_URL": hubspot.url}
    workshop.sync(
        "users",
        source="{sql: \"SELECT email, 'gold' AS tier FROM users WHERE user_id <= 5\"}",
        key="[email]",
        destination="{connection: hub, object: contacts, match: email}",
        retry="{attempts: 2, budget: 2s}",
        guards="{max_failed_rate: 1}",
    )


def test_more_would_be_deleted_than_is_plausible(workshop: Workshop) -> None:
    workshop.sync("users", destination=TABLE, deletes="delete")
    workshop.retl("sync")
    workshop.warehouse("DELETE FROM users WHERE user_id <= 12")
    golden(
        workshop.retl("sync"),
        3,
        "error: users: 12 deletes are planned, more than max_delete_rate (0.1) of 30 [DELETE_RATE]",
        "  hint: if that is right: --allow-deletes 12",
    )


KEYS: dict[str, Callable[[Workshop], None]] = {
    "another column": lambda w: w.sync("users", destination=TABLE, key="[email]"),
    "other values": lambda w: w.warehouse("UPDATE users SET user_id = user_id + 1000"),
}
SAID = {
    "another column": (
        "error: users: no unique constraint on exactly (email) is checked immediately (an index on"
        " lower(column) would do, one with WHERE would not) [TARGET_DRIFT]",
        '  hint: ALTER TABLE "crm"."users" ADD UNIQUE ("email");',
        "error: users: the key's columns or types differ from those of the delivered rows [IDENTITY_CHANGED]",
        "  hint: --accept IDENTITY_CHANGED starts a new baseline: every row is sent, nothing is deleted",
    ),
    "other values": (
        "error: users: all 30 keys are new and all 30 delivered keys are gone [IDENTITY_CHANGED]",
        "  hint: if the key really changed, --accept IDENTITY_CHANGED; otherwise fix `key` or the mart",
    ),
}


@pytest.mark.parametrize("change", KEYS)
def test_the_key_changed(workshop: Workshop, change: str) -> None:
    workshop.retl("sync")
    KEYS[change](workshop)
    golden(workshop.retl("sync"), 3, *SAID[change])
