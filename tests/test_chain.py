"""Whoever changes, removes or reorders what the ledger has of an ended run is found by the chain."""

from __future__ import annotations

import contextlib
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from retl.destinations.batch import UNKNOWN, WRITTEN, Outcome
from retl.errors import InvariantBroken
from retl.ledger import (
    Acknowledgement,
    Checkpoint,
    Fault,
    Ledger,
    Reject,
    RejectChanges,
    RunEnd,
    RunRow,
    open_ledger,
    rows,
)
from tests.commands import ROWS, Workshop
from tests.ledgers import batch, ledger, start, take, url
from tests.servers import RedisServer

__all__ = ["ledger", "url"]  # fixtures
OBJECT = "pg://crm/users"
FREE = {"sync", "forgotten_at", "removed_at"}  # `state mv`, `state reset` and `tidy` change them
NUMBERS = {"epoch", "pid", "delta_rows", "chain_no", "batch_no", "first_row", "last_row", "attempts"}
NUMBERS |= {"duration_ms", "http_status", "bytes"}
AGES = timedelta(days=36500)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"what was delivered")
    return tmp_path


def begun(ledger: Ledger, run_id: str, sync: str = "users", purpose: str = "sync") -> int:
    with take(ledger, sync) as lock:
        ledger.begin(replace(start(lock.epoch, run_id, sync), purpose=purpose))
        return int(lock.epoch)


def delivered(ledger: Ledger, folder: Path, run_id: str, sync: str = "users", status: str = "SUCCESS") -> str:
    """A whole run with a delta, two batches and a checkpoint; returns the head of its chain."""
    epoch = begun(ledger, run_id, sync)
    for name in (f"{run_id}.delta.parquet", f"{run_id}.snapshot.parquet"):
        ledger.put_file(name, folder / "file")
    ledger.record_delta(
        run_id, epoch, f"{run_id}.delta.parquet", 3, {"what": "ab"}, writes={"upsert": ["phone"]}
    )
    ledger.open_batches(run_id, epoch, [batch(0), batch(1)])
    ledger.acknowledge(run_id, epoch, [Acknowledgement("b0", Outcome(WRITTEN))])
    ledger.acknowledge(run_id, epoch, [Acknowledgement("b1", Outcome(UNKNOWN))])
    checkpoint = Checkpoint(sync, OBJECT, run_id, epoch, f"{run_id}.snapshot.parquet")
    end = RunEnd(run_id, epoch, status, {"read": 3}, {"diff": 0.5}, [{"code": "X"}], {"code": "Y"}, "v1")
    return ledger.finish(end, checkpoint, RejectChanges())


def columns(ledger: Ledger, table: str) -> list[str]:
    relation = ledger._database._connection.cursor().execute(f"SELECT * FROM {table} LIMIT 0")
    return [str(one[0]) for one in relation.description]


def found(ledger: Ledger, sync: str = "users") -> list[str | None]:
    """The runs that a verification names."""
    return [one.run_id for one in ledger.verify(sync)]


def after(ledger: Ledger, *changes: str) -> list[str | None]:
    """The runs that a verification names after these statements, which are taken back."""
    answer: list[str | None] = []
    with contextlib.suppress(ZeroDivisionError), ledger._database.transaction():
        for change in changes:
            assert ledger._database.change(change) >= 1
        answer = found(ledger)
        raise ZeroDivisionError
    assert found(ledger) == []
    return answer


def test_every_end_of_a_run_is_a_link_of_the_chain_of_its_sync(ledger: Ledger, folder: Path) -> None:
    heads = [
        delivered(ledger, folder, f"run-{status}", status=status)
        for status in ("SUCCESS", "SUCCESS_WITH_REJECTS", "FAILED", "REFUSED", "INTERRUPTED")
    ]
    begun(ledger, "run-dead")
    epoch = begun(ledger, "run-repair", purpose="repair")
    heads.append(str(ledger.abandon("run-dead", epoch)))
    assert found(ledger) == []  # also while a run goes on
    heads.append(ledger.finish(RunEnd("run-repair", epoch, "SUCCESS"), None, RejectChanges()))
    heads.append(delivered(ledger, folder, "other-1", "others"))
    assert len(set(heads)) == 8
    runs = {run.run_id: run for run in ledger.runs()}
    assert {run.chain_no for run in runs.values() if run.sync == "users"} == set(range(1, 8))
    assert (runs["other-1"].chain_no, runs["other-1"].chain) == (1, heads[-1])
    assert (found(ledger), found(ledger, "others")) == ([], [])


def test_every_changed_cell_of_an_ended_run_is_found(ledger: Ledger, folder: Path) -> None:
    for number in (1, 2, 3):
        delivered(ledger, folder, f"run-{number}")
    own = {
        "retl_runs": "run_id = 'run-2'",
        "retl_batches": "run_id = 'run-2' AND batch_id = 'b0'",
        "retl_digests": "name = 'run-2.delta.parquet'",
    }
    assert set(columns(ledger, "retl_runs")) == set(rows.columns(RunRow))
    for table, where in own.items():
        for name in set(columns(ledger, table)) - FREE:
            value = "7777" if name in NUMBERS else "'\"changed\"'"
            named = after(ledger, f"UPDATE {table} SET {name} = {value} WHERE {where}")
            first = {"run_id": '"changed"', "chain_no": "run-3"}.get(name, "run-2")
            assert "run-2" in named or named == [first], name


def test_removed_and_swapped_runs_are_found(ledger: Ledger, folder: Path) -> None:
    for number in (1, 2, 3):
        delivered(ledger, folder, f"run-{number}")
    assert after(ledger, "DELETE FROM retl_runs WHERE run_id = 'run-1'") == ["run-2"]
    assert after(ledger, "DELETE FROM retl_runs WHERE run_id = 'run-2'") == ["run-3"]
    assert after(ledger, "DELETE FROM retl_runs WHERE run_id = 'run-3'") == [None]
    assert after(ledger, "DELETE FROM retl_batches WHERE run_id = 'run-2' AND batch_id = 'b1'") == ["run-2"]
    assert after(ledger, "DELETE FROM retl_digests WHERE run_id = 'run-3'") == ["run-3"]
    swap = "UPDATE retl_runs SET chain_no = 5 - chain_no WHERE run_id IN ('run-2', 'run-3')"
    assert after(ledger, swap) == ["run-3"]
    swap = "UPDATE retl_runs SET run_id = CASE run_id WHEN 'run-1' THEN 'run-x' ELSE run_id END"
    assert after(ledger, swap) == ["run-x"]
    assert after(ledger, "DELETE FROM retl_chains") == ["run-1", "run-2", "run-3"]
    assert after(ledger, "UPDATE retl_chains SET anchors = '[[1, 1, \"x\"]]'") == ["run-1"]
    listed = ", ".join(columns(ledger, "retl_runs"))
    forged = listed.replace("run_id", "'forged'", 1).replace("of_'forged'", "of_run")
    assert "forged" in after(
        ledger, f"INSERT INTO retl_runs ({listed}) SELECT {forged} FROM retl_runs LIMIT 1"
    )


def test_a_changed_and_a_missing_file_are_found(ledger: Ledger, folder: Path) -> None:
    for number in (1, 2):
        delivered(ledger, folder, f"run-{number}")
    for name in ("run-1.delta.parquet", "run-2.snapshot.parquet"):
        run_id = name.split(".")[0]
        ledger._files.put(name, [b"what was not delivered"])
        assert ledger.verify("users") == [Fault("users", run_id, f"{name} was changed")]
        ledger._files.drop([name])
        assert ledger.verify("users") == [Fault("users", run_id, f"{name} is missing")]
        ledger._files.put(name, [b"what was delivered"])
        assert ledger.verify("users") == []


def test_files_that_retl_removes_are_not_missed(ledger: Ledger, folder: Path) -> None:
    for number in (1, 2, 3):
        delivered(ledger, folder, f"run-{number}")
    ledger.tidy("users", keep=0.0)
    assert "run-1.snapshot.parquet" not in ledger._files.names()
    assert found(ledger) == []
    ledger.reset("users", OBJECT)
    assert (found(ledger), ledger.deltas("users", OBJECT)) == ([], [])


def test_the_late_answer_of_a_batch_belongs_to_the_run_that_found_it(ledger: Ledger, folder: Path) -> None:
    delivered(ledger, folder, "run-1")
    for number in (2, 3):
        epoch = begun(ledger, f"run-{number}")
        answer = Acknowledgement("b1", Outcome(WRITTEN), attempts=number)
        ledger.acknowledge("run-1", epoch, [answer])
        ledger.acknowledge("run-1", epoch, [answer])
        assert found(ledger) == []  # also while the run goes on
        if number == 2:
            ledger.finish(RunEnd("run-2", epoch, "SUCCESS"), None, RejectChanges())
    ledger.abandon("run-3", begun(ledger, "run-4"))
    assert found(ledger) == []
    late = "UPDATE retl_batches SET attempts = 9 WHERE run_id = 'run-1' AND batch_id = 'b1'"
    assert after(ledger, late) == ["run-1"]
    assert after(ledger, "UPDATE retl_runs SET amends = NULL WHERE run_id = 'run-2'") == ["run-1"]


def test_nobody_changes_an_ended_run_without_a_run_of_his_own(ledger: Ledger, folder: Path) -> None:
    delivered(ledger, folder, "run-1")
    with take(ledger) as lock, pytest.raises(InvariantBroken):
        ledger.acknowledge("run-1", lock.epoch, [Acknowledgement("b1", Outcome(WRITTEN))])
    assert found(ledger) == []
    with pytest.raises(InvariantBroken):
        ledger.finish(RunEnd("run-1", 2, "SUCCESS"), None, RejectChanges())


def test_moved_state_keeps_both_chains_and_goes_on_with_one(ledger: Ledger, folder: Path) -> None:
    for number in (1, 2):
        delivered(ledger, folder, f"run-{number}")
    epoch = begun(ledger, "run-refused", "people")
    ledger.finish(RunEnd("run-refused", epoch, "REFUSED"), None, RejectChanges())
    ledger.rename("users", "people")
    delivered(ledger, folder, "run-4", "people")
    delivered(ledger, folder, "again-1", "users")
    assert (found(ledger, "people"), found(ledger, "users")) == ([], [])
    ledger._database.change("DELETE FROM retl_batches WHERE run_id = 'run-2'")
    assert found(ledger, "people") == ["run-2"]


def test_two_syncs_end_at_the_same_time(url: str, folder: Path) -> None:
    """Each has a chain of its own, so nothing but the ledger's own lock is shared."""
    with closing(open_ledger(url, folder, environment=None)) as one:
        with closing(open_ledger(url, folder, environment=None)) as other:
            for number in range(5):
                delivered(one, folder, f"a-{number}", "users")
                delivered(other, folder, f"b-{number}", "others")
        assert (found(one), found(one, "others")) == ([], [])
        assert one._database.query("SELECT sync, head_no FROM retl_chains ORDER BY sync") == [
            ("others", 5),
            ("users", 5),
        ]


def test_a_pruned_chain_still_verifies_and_keeps_what_is_needed(ledger: Ledger, folder: Path) -> None:
    for number in (1, 2, 3):
        delivered(ledger, folder, f"run-{number}")
    epoch = begun(ledger, "run-4")
    ledger.acknowledge("run-2", epoch, [Acknowledgement("b1", Outcome(WRITTEN))])
    checkpoint = Checkpoint("users", OBJECT, "run-4", epoch, "run-1.snapshot.parquet", epoch - 1)
    opened = RejectChanges([Reject("a", None, "contract", "X")])
    ledger.finish(RunEnd("run-4", epoch, "SUCCESS"), checkpoint, opened)
    delivered(ledger, folder, "other-1", "others")
    for number in (5, 6):
        delivered(ledger, folder, f"run-{number}")
    epoch = begun(ledger, "run-7")
    last = replace(checkpoint, run_id="run-7", epoch=epoch, snapshot_epoch=epoch - 1)
    ledger.finish(RunEnd("run-7", epoch, "SUCCESS"), last, RejectChanges())
    assert ledger.prune("users", -AGES, dry_run=True).runs == 2
    assert {run.run_id for run in ledger.runs("users")} == {f"run-{n}" for n in range(1, 8)}
    gone = ledger.prune("users", -AGES)
    # run-1 has the snapshot, run-4 the open reject, run-7 the checkpoint; the target has marks of 5 and 6
    assert {run.run_id for run in ledger.runs("users")} == {f"run-{n}" for n in (1, 4, 5, 6, 7)}
    assert set(gone.files) == {f"run-{n}.{kind}.parquet" for n in (2, 3) for kind in ("delta", "snapshot")}
    assert not set(gone.files) & set(ledger._files.names())
    assert (found(ledger), found(ledger, "others")) == ([], [])
    assert ledger.prune("users", -AGES).runs == 0
    (chain,) = [one for one in ledger.chains() if one.sync == "users"]
    assert (chain.pruned, chain.head_no, [one[:2] for one in chain.anchors]) == (2, 7, [[2, 3]])
    assert after(ledger, "DELETE FROM retl_runs WHERE run_id = 'run-4'") == ["run-5"]
    assert after(ledger, "UPDATE retl_runs SET pid = 7777 WHERE run_id = 'run-1'") == ["run-1"]
    ledger.dismiss("users", None)
    assert ledger.prune("users", -AGES).runs == 1
    assert [one.anchors[0][:2] for one in ledger.chains() if one.sync == "users"] == [[2, 4]]
    assert found(ledger) == []


def test_the_run_that_changed_a_kept_run_is_kept_with_it(ledger: Ledger, folder: Path) -> None:
    delivered(ledger, folder, "run-1")
    epoch = begun(ledger, "run-2")
    ledger.acknowledge("run-1", epoch, [Acknowledgement("b1", Outcome(WRITTEN))])
    ledger.finish(RunEnd("run-2", epoch, "FAILED"), None, RejectChanges())
    begun(ledger, "run-3")
    assert ledger.prune("users", -AGES).runs == 0
    assert found(ledger) == []


def test_state_prune_removes_what_is_older_than_retain(tmp_path: Path, redis_server: RedisServer) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.use(redis_server)
    workshop.sync("users")
    workshop.json("sync")
    for _ in range(2):
        workshop.json("sync", "--full")
    workshop.warehouse("UPDATE users SET spend = 1 WHERE user_id = 1")
    workshop.json("sync")
    assert workshop.json("state", "prune")["pruned"][0]["runs"] == 0
    workshop.write("retl.yml", "state: {retain: 1ms}\n")
    counted = workshop.json("state", "prune", "--dry-run")["pruned"]
    assert counted[0]["runs"] > 0
    assert workshop.json("state", "prune")["pruned"] == counted
    assert workshop.json("log", "verify")["faults"] == []
    assert workshop.json("sync")["syncs"][0]["unchanged"] == ROWS
    assert "users" in workshop.retl("state", "prune").out
