"""The whole state moves between files and PostgreSQL; one store is in charge, also after a kill."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from retl.errors import DefinitionError, Later, LedgerError
from retl.ledger import FollowUpRow, Ledger, Reject, RejectChanges, RunEnd, open_ledger
from retl.ledger.moving import Store, _tables, copy, unfence
from retl.observe import log
from tests.commands import ROWS, Workshop
from tests.ledgers import batch, start, take
from tests.servers import Database
from tests.test_chain import delivered


@pytest.fixture
def stores(tmp_path: Path, postgres: Database) -> dict[str, Store]:
    return {"files": Store(f"file:{tmp_path / 'old'}", None), "server": Store(postgres.url, "prod")}


def used(store: Store, folder: Path) -> None:
    """A ledger with something in every table: a whole run, one that was killed, and what people asked for."""
    (folder / "file").write_bytes(b"what was delivered")
    with closing(store.open()) as ledger:
        delivered(ledger, folder, "run-1")
        with take(ledger) as lock:
            ledger.begin(start(lock.epoch, "run-2"))
            ledger.intend("run-2", lock.epoch, batch(), b"body")
            reject = Reject(key="a\x00b", hash=None, stage="target", code="409", reason="no")
            ledger.record_rejects("users", lock.epoch, RejectChanges(opened=[reject]))
        ledger.pause("users", "ada", "on holiday")
        with ledger._database.transaction():
            facts = {"id": "run-1", "changed": 1}
            ledger.put_requests([FollowUpRow("run-1", "changed: POST crm", "users", facts, ledger.now())])
        ledger.suppression_secret()
        ledger.count_failures("crm", 5, "HTTP_500")
        ledger.change_account("crm", lambda account, now: account.pause(now + 60))


def content(ledger: Ledger, folder: Path) -> dict[str, Any]:
    """Every row of every table, and the bytes of every run file."""
    tables: dict[str, Any] = {
        table: ledger._database.query(f"SELECT {', '.join(columns)} FROM {table} ORDER BY {', '.join(key)}")
        for table, (columns, key) in _tables().items()
        if table not in ("retl_files", "retl_locks", "retl_meta")
    }
    tables["locks"] = {name for (name,) in ledger._database.query("SELECT name FROM retl_locks")}
    tables["meta"] = set(ledger._database.query("SELECT name, value FROM retl_meta WHERE name <> 'moved to'"))
    folder.mkdir(exist_ok=True)
    return {**tables, "files": {n: ledger.get_file(n, folder).read_bytes() for n in ledger.file_names()}}


def seen(store: Store, folder: Path) -> dict[str, Any]:
    with closing(store.open()) as ledger:
        return content(ledger, folder)


def opened(store: Store) -> Ledger:
    return open_ledger(store.url, Path("/"), environment=store.environment)


@pytest.mark.parametrize(("source", "target"), [("files", "server"), ("server", "files")])
def test_everything_moves_and_the_old_store_names_the_new_one(
    stores: dict[str, Store], tmp_path: Path, source: str, target: str
) -> None:
    """And back: the fenced store is replaced by the same state."""
    old, new = stores[source], stores[target]
    used(old, tmp_path)
    before = seen(old, tmp_path / "a")
    assert {table for table, rows in before.items() if not rows} <= {"retl_erasures", "retl_suppressed"}
    made = copy(old, new, ["users"])
    assert (made.address, made.files) == (new.address, 3)
    assert seen(new, tmp_path / "b") == before
    with pytest.raises(LedgerError, match="was moved to") as moved:
        opened(old)
    assert moved.value.code == "STATE_MOVED"
    assert new.address in str(moved.value.hint).replace("USER@", "")
    assert "retl-" not in str(moved.value), "a reader has a copy, and nobody looks for that"
    with closing(opened(new)) as ledger:
        assert ledger.verify("users") == []
        with take(ledger) as lock:
            assert lock.epoch > before["retl_runs"][1][_tables()["retl_runs"][0].index("epoch")]
            ledger.begin(start(lock.epoch, "run-3"))
            ledger.finish(RunEnd("run-3", lock.epoch, "SUCCESS"), None, RejectChanges())
        assert ledger.verify("users") == []
    copy(new, old, [])
    with closing(opened(old)) as ledger:
        assert next(run.run_id for run in ledger.runs()) == "run-3"
    with pytest.raises(LedgerError, match="was moved to"):
        opened(new)


def killed_at(event: str, old: Store, new: Store) -> None:
    """Copy in a process that is killed at this event."""

    def die(name: str, _: Mapping[str, Any]) -> None:
        if name == event:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        log.listen(die)
        try:
            copy(old, new, ["users"])
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("event", ["run_file_copied", "state_copied", "state_fenced"])
@pytest.mark.parametrize(("source", "target"), [("files", "server"), ("server", "files")])
def test_a_copy_that_is_killed_leaves_one_store_in_charge_and_is_made_again(
    stores: dict[str, Store], tmp_path: Path, source: str, target: str, event: str
) -> None:
    old, new = stores[source], stores[target]
    used(old, tmp_path)
    before = seen(old, tmp_path / "a")
    killed_at(event, old, new)
    if event == "state_fenced":
        with pytest.raises(LedgerError, match="was moved to"):
            opened(old)
    else:
        with closing(opened(old)) as ledger:
            assert content(ledger, tmp_path / "a") == before
    if (target, event) != ("server", "run_file_copied"):  # there the whole copy is one transaction
        with pytest.raises(LedgerError) as unfinished:
            opened(new)
        assert unfinished.value.code == "STATE_COPYING"
    made = copy(old, new, ["users"])
    assert made.finished is (event == "state_fenced")
    assert seen(new, tmp_path / "b") == before
    opened(new).close()


def test_a_store_with_another_ledger_is_never_replaced(stores: dict[str, Store], tmp_path: Path) -> None:
    used(stores["files"], tmp_path)
    other = Store(f"file:{tmp_path / 'other'}", None)
    other.open().close()
    for place in (other, stores["files"]):
        with pytest.raises(DefinitionError, match="already"):
            copy(stores["files"], place, [])
    with pytest.raises(DefinitionError, match="there is no state"):
        copy(Store(f"file:{tmp_path / 'nowhere'}", None), stores["server"], [])


def test_a_run_under_way_keeps_its_state_where_it_is_and_none_begins_after_a_copy(
    tmp_path: Path, stores: dict[str, Store]
) -> None:
    old, new = stores["files"], Store(f"file:{tmp_path / 'new'}", None)
    used(old, tmp_path)
    with closing(opened(old)) as ledger:
        with take(ledger), pytest.raises(Later, match="is locked by"):
            copy(old, new, [])
        copy(old, new, [])
        with pytest.raises(LedgerError, match="was moved to"):  # opened before it was moved
            take(ledger)
    assert unfence(old) == new.address
    with closing(opened(old)) as ledger, take(ledger):
        pass


@pytest.mark.parametrize("source", ["files", "server"])
def test_what_people_decide_while_the_state_moves_is_not_lost_in_silence(
    stores: dict[str, Store], tmp_path: Path, source: str
) -> None:
    """They opened the old store before, and waited until it was moved."""
    old, new = stores[source], Store(f"file:{tmp_path / 'new'}", None)
    used(old, tmp_path)
    with closing(opened(old)) as early:
        copy(old, new, [])
        decisions: list[Callable[[], object]] = [
            lambda: early.pause("users", "ada", "wrong mart"),
            lambda: early.resume("users"),
            lambda: early.dismiss("users", None),
            lambda: early.unblock("crm"),
        ]
        for decide in decisions:
            with pytest.raises(LedgerError, match="was moved to"):
                decide()


def test_a_project_goes_on_where_its_state_is(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.write("retl.yml", f"connections: {{app: {{type: sqlite, path: {tmp_path / 'app.db'}}}}}\n")
    workshop.sync("users", destination="{connection: app, table: users, create: true}")
    workshop.json("sync")
    asked = workshop.retl("state", "copy", "--to", "file:moved")
    assert (asked.code, "NEEDS_YES" in asked.err) == (2, True)
    workshop.environment["NEW_STATE"] = "file:moved"
    assert workshop.retl("state", "copy", "--to", "${NEW_STATE}", "--yes").code == 0
    for words in (("sync",), ("status",)):
        refused = workshop.retl(*words)
        assert (refused.code, "STATE_MOVED" in refused.err) == (1, True)
        assert f"file:{workshop.folder / 'moved'}" in refused.err
    workshop.environment["RETL_STATE_URL"] = "file:moved"
    assert workshop.json("sync")["syncs"][0]["unchanged"] == ROWS
    assert workshop.json("log", "verify")["faults"] == []
    del workshop.environment["RETL_STATE_URL"]
    assert workshop.json("state", "unfence", "--yes")["unfenced"]
    assert workshop.retl("status").code == 0
