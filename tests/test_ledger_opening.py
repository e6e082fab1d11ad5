"""A ledger is made once, kept private, never reset by itself, and read without a trace."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import sqlite3
import stat
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from retl.destinations.batch import WRITTEN, Outcome
from retl.errors import DefinitionError, LedgerError, RetlError
from retl.ledger import Acknowledgement, Ledger, database, open_ledger
from retl.net.postgres import SETTINGS
from tests.destinations.test_postgres import CHANGED
from tests.ledgers import batch, child, kill, line, start, take, url
from tests.proxy import Proxy

__all__ = ["url"]  # fixtures
CANARY = "s3cr3tcanary"


def used(url: str, folder: Path, environment: str | None = None) -> None:
    """A ledger with a little of everything in it."""
    ledger = open_ledger(url, folder, environment=environment)
    (folder / "delta").write_bytes(b"rows")
    with take(ledger) as lock:
        ledger.begin(start(lock.epoch))
        ledger.put_file("delta-1", folder / "delta")
        ledger.record_delta("run-1", lock.epoch, "delta-1", 4, {})
        ledger.intend("run-1", lock.epoch, batch(), b"body")
    ledger.close()


def traces(folder: Path) -> dict[str, object]:
    """All there is to see of a folder: names, bytes, modes and times."""
    return {
        str(path): (
            path.stat().st_mtime_ns,
            path.stat().st_mode,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else sorted(os.listdir(path)),
        )
        for path in (folder, *folder.rglob("*"))
    }


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's temporary folders are made."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture
def any_umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def refusal(url: str, folder: Path, **given: Any) -> RetlError:
    with pytest.raises(RetlError) as caught:
        open_ledger(url, folder, environment=given.pop("environment", None), **given)
    return caught.value


@pytest.mark.parametrize("any_umask", [0o000, 0o077, 0o277], indirect=True, ids=oct)
@pytest.mark.usefixtures("any_umask")
def test_state_is_private_whatever_the_umask(tmp_path: Path) -> None:
    used("file:.retl", tmp_path, "prod")
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / ".retl").rglob("*")}
    assert {mode for path, mode in found.items() if path.is_file()} == {0o600}
    assert {mode for path, mode in found.items() if path.is_dir()} == {0o700}
    assert stat.S_IMODE((tmp_path / ".retl").stat().st_mode) == 0o700
    assert {path.name for path in found} >= {"prod", "ledger.db", "runs", "locks", "delta-1", "request-b0"}


def test_reading_leaves_no_trace(tmp_path: Path, temporary: Path) -> None:
    used("file:.retl", tmp_path)
    before = traces(tmp_path / ".retl")
    ledger = open_ledger("file:.retl", tmp_path, environment=None, create=False)
    assert ledger.deltas("users", "pg://crm/users")[0].delta == "delta-1"
    assert ledger.get_file("delta-1", tmp_path).read_bytes() == b"rows"
    assert ledger.request("run-1", "b0") == b"body"
    ledger.close()
    assert traces(tmp_path / ".retl") == before
    assert list(temporary.iterdir()) == []


def test_reading_after_a_kill_inside_a_commit_sees_the_truth_and_touches_nothing(tmp_path: Path) -> None:
    used("file:.retl", tmp_path)
    process = child(
        "file:.retl",
        tmp_path,
        """
import sqlite3
db = sqlite3.connect(folder / ".retl" / "ledger.db", isolation_level=None)
db.execute("PRAGMA journal_mode = TRUNCATE")
db.execute("PRAGMA cache_size = 1")
db.execute("BEGIN IMMEDIATE")
db.execute("UPDATE retl_runs SET delta = 'torn'")
db.executemany("INSERT INTO retl_meta VALUES (?, ?)", ((str(n), "x" * 900) for n in range(3000)))
print("spilled", flush=True)
time.sleep(60)
""",
    )
    assert line(process) == "spilled"
    kill(process)
    assert (tmp_path / ".retl" / "ledger.db-journal").stat().st_size > 0
    before = traces(tmp_path / ".retl")
    ledger = open_ledger("file:.retl", tmp_path, environment=None, create=False)
    assert ledger.deltas("users", "pg://crm/users")[0].delta == "delta-1"
    ledger.close()
    assert traces(tmp_path / ".retl") == before


def test_reading_what_is_not_there_makes_nothing(url: str, tmp_path: Path) -> None:
    ledger = open_ledger(url, tmp_path, environment=None, create=False)
    assert (ledger.runs(), ledger.checkpoints("users"), ledger.rejects()) == ([], [], [])
    assert ledger.now().tzinfo is not None
    ledger.close()
    assert list(tmp_path.iterdir()) == []
    made = open_ledger(url, tmp_path, environment=None)
    assert made.fresh
    made.close()


def test_a_reader_writes_nothing_and_sees_one_moment(url: str, tmp_path: Path) -> None:
    used(url, tmp_path)
    reader = open_ledger(url, tmp_path, environment=None, create=False)
    assert len(reader.runs()) == 1
    for act in (
        lambda: take(reader),
        lambda: reader.acknowledge("run-1", 1, [Acknowledgement("b0", Outcome(WRITTEN))]),
        lambda: reader.put_file("x", tmp_path / "delta"),
        lambda: reader.dismiss("users", None),
    ):
        with pytest.raises(LedgerError) as caught:
            act()
        assert caught.value.code == "STATE_READ_ONLY"
    writer = open_ledger(url, tmp_path, environment=None)
    with take(writer) as lock:
        writer.begin(start(lock.epoch, "run-2"))
    writer.close()
    assert len(reader.runs()) == 1
    reader.close()


def test_environments_have_states_of_their_own(url: str, tmp_path: Path) -> None:
    used(url, tmp_path, "dev")
    ids = set()
    for environment, runs in ((None, 0), ("dev", 1), ("prod", 0)):
        ledger = open_ledger(url, tmp_path, environment=environment)
        ids.add(ledger.state_id)
        assert len(ledger.runs()) == runs
        ledger.close()
    assert len(ids) == 3
    for name in ("../up", "", 'a"b', "x" * 49):
        assert refusal(url, tmp_path, environment=name).code == "ENVIRONMENT_NAME"


def test_two_who_make_a_ledger_at_once_make_one(url: str, tmp_path: Path) -> None:
    others = [child(url, tmp_path, "print(ledger.state_id, ledger.fresh)") for _ in range(3)]
    said = [other.communicate()[0].split() for other in others]
    assert len({state_id for state_id, _ in said}) == 1
    assert sorted(fresh for _, fresh in said) == ["False", "False", "True"]


@pytest.mark.parametrize("create", [True, False])
def test_newer_state_is_left_alone(url: str, tmp_path: Path, create: bool) -> None:
    used(url, tmp_path)
    ledger = open_ledger(url, tmp_path, environment=None)
    ledger._database.change("UPDATE retl_meta SET value = '999' WHERE name = 'format'")
    ledger.close()
    assert refusal(url, tmp_path, create=create).code == "STATE_NEWER"


def former(url: str, folder: Path) -> None:
    """A ledger as it was before its format had a number: a count of its scripts, parts, a base."""
    used(url, folder)
    ledger = open_ledger(url, folder, environment=None)
    with ledger._database.transaction():
        for statement in (
            "UPDATE retl_meta SET name = 'schema', value = '3' WHERE name = 'format'",
            "ALTER TABLE retl_runs RENAME COLUMN delta TO part",
            "ALTER TABLE retl_runs DROP COLUMN purpose",
            "ALTER TABLE retl_checkpoints RENAME COLUMN snapshot TO base",
        ):
            ledger._database.change(statement)
    ledger.close()


@pytest.mark.parametrize("create", [True, False])
def test_a_ledger_of_the_former_format_is_refused_with_the_way_out_and_left_as_it_is(
    url: str, tmp_path: Path, create: bool
) -> None:
    former(url, tmp_path)
    before = traces(tmp_path / ".retl") if url.startswith("file:") else None
    for _ in range(2):
        error = refusal(url, tmp_path, create=create)
        assert (error.code, "retl state adopt SYNC" in str(error.hint)) == ("STATE_FORMAT", True)
    assert before is None or traces(tmp_path / ".retl") == before


def test_a_format_that_is_no_number_is_refused(url: str, tmp_path: Path) -> None:
    used(url, tmp_path)
    ledger = open_ledger(url, tmp_path, environment=None)
    ledger._database.change("UPDATE retl_meta SET value = '1' WHERE name = 'format'")
    assert refusal(url, tmp_path).code == "STATE_FORMAT"
    ledger._database.change("UPDATE retl_meta SET value = 'two' WHERE name = 'format'")
    ledger.close()
    assert refusal(url, tmp_path).code == "STATE_FORMAT"


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("damage", [b"", b"this is no database" * 99, None], ids=["empty", "garbage", "gone"])
def test_unreadable_state_is_never_reset(tmp_path: Path, create: bool, damage: bytes | None) -> None:
    used("file:.retl", tmp_path)
    path = tmp_path / ".retl" / "ledger.db"
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    error = refusal("file:.retl", tmp_path, create=create)
    assert error.code == "STATE_UNREADABLE"
    assert error.hint is not None
    assert "backup" in error.hint
    assert (path.read_bytes() if path.exists() else None) == damage


def test_damage_deeper_in_the_file_is_told_when_it_is_met(tmp_path: Path) -> None:
    used("file:.retl", tmp_path)
    path = tmp_path / ".retl" / "ledger.db"
    page = (
        sqlite3.connect(path)
        .execute("SELECT rootpage FROM sqlite_master WHERE name = 'retl_runs'")
        .fetchone()[0]
    )
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    ledger = open_ledger("file:.retl", tmp_path, environment=None)
    with pytest.raises(LedgerError) as caught:
        ledger.runs()
    assert caught.value.code == "STATE_UNREADABLE"
    ledger.close()


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("name", [".retl", ".retl/prod", ".retl/prod/ledger.db", ".retl/prod/runs"])
def test_symlinked_state_is_refused(tmp_path: Path, name: str, create: bool) -> None:
    used("file:.retl", tmp_path, "prod")
    path = tmp_path / name
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert refusal("file:.retl", tmp_path, create=create, environment="prod").code == "STATE_SYMLINK"


def test_a_server_that_is_not_there_is_named_without_the_password(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        error = refusal(f"postgresql://ada:{CANARY}@127.0.0.1:{unused.getsockname()[1]}/x", tmp_path)
    assert isinstance(error, LedgerError)
    assert error.code == "STATE_UNREACHABLE"
    assert "127.0.0.1" in str(error)
    assert CANARY not in "".join(traceback.format_exception(error))


def test_a_refused_login_names_the_user_and_no_password(postgres: Any, tmp_path: Path) -> None:
    error = refusal(replace(postgres, password=CANARY).url, tmp_path)
    assert error.code == "STATE_UNREACHABLE"
    assert error.message.endswith(f"it does not accept the login of {postgres.user}")
    assert CANARY not in "".join(traceback.format_exception(error))


def test_a_server_that_falls_silent_is_not_waited_for(
    postgres: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(postgres.host, postgres.port) as proxy:
        there = replace(postgres, host=proxy.host, port=proxy.port)
        ledger = open_ledger(there.url, tmp_path, environment=None)
        monkeypatch.setattr(database, "_STATEMENT", 0.1)
        proxy.blackhole()
        with pytest.raises(LedgerError) as caught:
            ledger.now()
        assert caught.value.code == "STATE_UNREACHABLE"
        ledger.close()


def test_many_changes_are_made_in_steps_and_all_counted(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_CHUNK", 2)
    with closing(open_ledger(url, tmp_path, environment=None)) as ledger:
        made = [(f"name {n}", "value") for n in range(5)]
        assert ledger._database.change_many("INSERT INTO retl_meta (name, value) VALUES (?, ?)", made) == 5
        assert ledger._database.change_many("DELETE FROM retl_meta WHERE name = ?", []) == 0


def test_a_connection_that_goes_away_is_told_by_what_needed_it(postgres: Any, tmp_path: Path) -> None:
    ledger = open_ledger(postgres.url, tmp_path, environment=None)
    with take(ledger) as lock:
        ledger.begin(start(lock.epoch))
        ledger.open_batches("run-1", lock.epoch, [batch()])
        with postgres.connect() as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        with pytest.raises(LedgerError) as caught:
            ledger.acknowledge("run-1", lock.epoch, [Acknowledgement("b0", Outcome(WRITTEN))])
        assert caught.value.code == "STATE_UNREACHABLE"
    ledger.close()
    after = open_ledger(postgres.url, tmp_path, environment=None)
    assert after.batches("run-1") == [batch()]
    after.close()


def test_what_the_database_sets_otherwise_changes_no_value_and_makes_no_commit_forgettable(
    postgres: Any, tmp_path: Path
) -> None:
    with postgres.connect() as admin:
        for name, value in CHANGED.items():
            admin.execute(f"ALTER DATABASE {postgres.dbname} SET {name} = '{value}'")
    ledger = open_ledger(postgres.url, tmp_path, environment=None)
    for name, value in SETTINGS.items():
        assert ledger._database.query(f"SELECT current_setting('{name}')") == [(value,)]
    ledger.close()


@pytest.mark.parametrize(
    ("address", "code"),
    [
        (f"postgresql://ada:{CANARY}%zz@127.0.0.1/x", "STATE_URL"),
        (f"postgresql://ada:{CANARY}@{CANARY}@127.0.0.1/x", "STATE_URL"),
        (f"postgresql://ada:{CANARY}/{CANARY}@127.0.0.1/x", "STATE_URL"),
        (f"postgresql://ada:{CANARY}#{CANARY}@127.0.0.1/x", "STATE_URL"),
        (f"postgresql://ada:{CANARY}", "STATE_URL"),
        (f"postgresql://ada:{CANARY}@/x", "STATE_URL"),
        (f"postgresql://127.0.0.1/x?{CANARY}=1", "STATE_URL"),
        (f"mysql://ada:{CANARY}@127.0.0.1/x", "STATE_URL"),
        (f"postgresql://ada:{CANARY}@db.example.com/x?sslmode=require", "STATE_PLAINTEXT"),
        (f"postgresql://ada:{CANARY}@127.0.0.1,db.example.com/x?sslmode=prefer", "STATE_PLAINTEXT"),
        (f"postgresql://ada:{CANARY}@localhost/x?hostaddr=10.0.0.1&sslmode=disable", "STATE_PLAINTEXT"),
    ],
)
def test_a_bad_address_is_refused_without_quoting_it(tmp_path: Path, address: str, code: str) -> None:
    error = refusal(address, tmp_path)
    assert isinstance(error, DefinitionError)
    assert error.code == code
    assert CANARY not in "".join(traceback.format_exception(error))


def test_off_this_machine_the_certificate_is_verified_unless_plaintext_is_allowed() -> None:
    from retl.ledger.address import parameters_of

    assert parameters_of("postgresql://db.example.com/x")["sslmode"] == "verify-full"
    assert parameters_of("postgresql://db.example.com/x?sslrootcert=ca.pem")["sslrootcert"] == "ca.pem"
    assert parameters_of("postgresql://db.example.com/x?allow_plaintext=true")["sslmode"] == "prefer"
    assert parameters_of("postgresql://localhost/x")["sslmode"] == "prefer"
    assert parameters_of("postgresql://[::1]:5432/x")["sslmode"] == "prefer"
    assert parameters_of("postgresql://db/x?connect_timeout=3")["connect_timeout"] == "3"


def test_the_clock_is_the_servers(postgres: Any, tmp_path: Path) -> None:
    ledger: Ledger = open_ledger(postgres.url, tmp_path, environment=None)
    with postgres.connect() as other:
        before = other.execute("SELECT clock_timestamp()").fetchone()[0]
        assert before <= ledger.now() <= other.execute("SELECT clock_timestamp()").fetchone()[0]
    ledger.close()
