"""The chain of ended runs: it shows whether somebody changed, removed or reordered them.

The digest of an ended run covers its row, its batches and the digests of its files. In the transaction that
ends the run it is linked to the chain of its sync, so parallel syncs do not wait for each other. Whoever can
rewrite the whole ledger can also make a new chain: only a head noted elsewhere is evidence against it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from hashlib import sha256
from typing import Any

from msgspec import Struct

from retl.errors import InvariantBroken
from retl.ledger.database import Database
from retl.ledger.rows import BatchRow, RunRow, cell, columns

# `state mv` changes the first, `state reset` the second; the others are the chain itself.
_FREE = ("sync", "forgotten_at", "digest", "chain_id", "chain_no", "chain")
_ROW = f"""
SELECT {", ".join(name for name in columns(RunRow) if name not in _FREE)} FROM retl_runs WHERE run_id = ?
"""
_BATCHES = f"""
SELECT {", ".join(columns(BatchRow))} FROM retl_batches WHERE run_id = ? AND batch_id > ?
ORDER BY batch_id LIMIT 5000
"""
_FILES = "SELECT name, digest, bytes FROM retl_digests WHERE run_id = ? ORDER BY name"
_NAMES = "SELECT run_id, name FROM retl_digests JOIN retl_runs USING (run_id) WHERE sync = ? ORDER BY name"
_RUNS = """
SELECT run_id, epoch, status, amends, digest, chain_id, chain_no, chain FROM retl_runs WHERE sync = ?
ORDER BY chain_id, chain_no, run_id
"""
_CHAINS = """
SELECT chain_id, anchors, head_no, head FROM retl_chains WHERE sync = ?
ORDER BY updated_at, chain_id
"""
_CURRENT = """
SELECT chain_id, head_no, head FROM retl_chains WHERE sync = ? ORDER BY updated_at DESC, chain_id DESC LIMIT 1
"""
_LINK = "UPDATE retl_runs SET digest = ?, chain_id = ?, chain_no = ?, chain = ? WHERE run_id = ?"
_HEAD = """
INSERT INTO retl_chains (chain_id, sync, pruned, anchors, head_no, head, updated_at)
VALUES (?, ?, 0, '[]', ?, ?, ?)
ON CONFLICT (chain_id) DO UPDATE SET head_no = excluded.head_no, head = excluded.head,
  updated_at = excluded.updated_at
"""

Batches = Mapping[str, str]  # the digest of the batches of a run, by run


class ChainRow(Struct, frozen=True):
    """The chain of a sync. `anchors`: first and last number of pruned runs, and the link of the last."""

    chain_id: str
    sync: str
    pruned: int
    anchors: Sequence[tuple[int, int, str]]
    head_no: int
    head: str


class Fault(Struct, frozen=True):
    """What is wrong with a chain, and the first run where it shows. Without a run: at its end."""

    sync: str
    run_id: str | None
    problem: str


def link(chain_id: str, number: int, before: str, digest: str) -> str:
    """The link of a run: a digest of the link before it and of the run."""
    return sha256(f"{chain_id} {number} {before} {digest}".encode()).hexdigest()


def batches_of(database: Database, run_id: str) -> Batches:
    """What `join` needs of the batches of this run and of the runs that it changed. They may be many: it is
    computed before the transaction, because other syncs wait for that."""
    found = database.query("SELECT amends FROM retl_runs WHERE run_id = ?", run_id)
    amended = json.loads(found[0][0]) if found and found[0][0] else {}
    return {one: _batches(database, one) for one in (run_id, *amended)}


def join(database: Database, run_id: str, batches: Batches, now: datetime) -> str:
    """Link a run that ends to the chain of its sync, in the caller's transaction; returns the new head."""
    found = database.query("SELECT sync, amends FROM retl_runs WHERE run_id = ? AND chain IS NULL", run_id)
    if not found:
        raise InvariantBroken("RUN_ENDED", f"run {run_id} ended before")
    sync, amends = found[0]
    if amends:
        _finish_amending(database, run_id, json.loads(amends), batches)
    digest = digest_of(database, run_id, batches[run_id])
    current = database.query(_CURRENT, sync)
    chain_id, number, before = current[0] if current else (run_id, 0, "")
    head = link(chain_id, number + 1, before, digest)
    database.change(_LINK, digest, chain_id, number + 1, head, run_id)
    database.change(_HEAD, chain_id, sync, number + 1, head, cell(now))
    return head


def amend(database: Database, run_id: str, epoch: int) -> None:
    """The running run of this epoch is about to change what the ledger has of `run_id`. If that has ended,
    the running one records it, so that its own link covers the change."""
    found = database.query(
        "SELECT sync, digest FROM retl_runs WHERE run_id = ? AND chain IS NOT NULL", run_id
    )
    if not found:
        return
    sync, before = found[0]
    sql = "SELECT run_id, amends FROM retl_runs WHERE sync = ? AND epoch = ? AND status = 'RUNNING'"
    running = database.query(sql, sync, epoch)
    if len(running) != 1:
        raise InvariantBroken("RUN_ENDED", f"run {run_id} has ended: only another run may change it")
    by, amends = running[0]
    known = json.loads(amends) if amends else {}
    if run_id not in known:
        value = cell({**known, run_id: [before]})
        database.change("UPDATE retl_runs SET amends = ? WHERE run_id = ?", value, by)


def digest_of(database: Database, run_id: str, batches: str) -> str:
    """The digest of a run; `batches` is that of its batches."""
    digest = sha256(batches.encode())
    for sql in (_ROW, _FILES):
        _add(digest, database.query(sql, run_id))
    return digest.hexdigest()


def verify(database: Database, sync: str, changed: Mapping[str, str]) -> Iterator[Fault]:
    """What is wrong with the chains of a sync: in each the first run that differs. `changed` says per run
    file what is wrong with it."""
    runs = [_Run(*row) for row in database.query(_RUNS, sync)]
    chains = database.query(_CHAINS, sync)
    known = {chain_id for chain_id, *_ in chains}
    for run in runs:
        if run.chain_id not in known and (run.status != "RUNNING" or run.chain is not None):
            yield Fault(sync, run.run_id, "it is in no chain of this sync")
    amended, lost = _amended(runs), _lost(database, sync, changed)
    for chain_id, anchors, head_no, head in chains:
        gaps = _gaps(anchors)
        number, before = gaps.get(1, (0, ""))
        for run in (one for one in runs if one.chain_id == chain_id):
            problem = _problem(database, run, number + 1, before, amended.get(run.run_id, []), lost)
            if problem is not None:
                yield Fault(sync, run.run_id, problem)
                break
            number, before = gaps.get(run.chain_no + 1, (run.chain_no, run.chain))
        else:
            if (number, before) != (head_no, head):
                yield Fault(sync, None, f"the chain ends with run {number}, and its last was run {head_no}")


class _Run(Struct, frozen=True):
    run_id: str
    epoch: int
    status: str
    amends: str | None
    digest: str
    chain_id: str
    chain_no: int
    chain: str


def _gaps(anchors: str) -> dict[int, tuple[int, str]]:
    """Per first number of pruned runs the last number and its link."""
    with suppress(ValueError, TypeError):  # if the text was changed, the chain has a hole
        return {first: (last, after) for first, last, after in json.loads(anchors)}
    return {}


def _problem(
    database: Database,
    run: _Run,
    number: int,
    before: str,
    changes: Sequence[Sequence[str]],
    lost: Mapping[str, Sequence[str]],
) -> str | None:
    if run.chain_no != number:
        return f"it is run {run.chain_no} of the chain; run {number} was expected"
    digest = _original(run, digest_of(database, run.run_id, _batches(database, run.run_id)), changes)
    if digest is None or run.chain != link(run.chain_id, number, before, digest):
        return "its row, a batch or the digest of a file was changed"
    return ", ".join(lost.get(run.run_id, ())) or None


def _lost(database: Database, sync: str, changed: Mapping[str, str]) -> dict[str, list[str]]:
    """Per run what is wrong with its files."""
    found: dict[str, list[str]] = {}
    for run_id, name in database.query(_NAMES, sync):
        if name in changed:
            found.setdefault(run_id, []).append(f"{name} {changed[name]}")
    return found


def _amended(runs: Sequence[_Run]) -> dict[str, list[list[str]]]:
    """Per changed run its digests before and after each change, newest first. While the run that changes it
    goes on, there is no digest after it."""
    found: dict[str, list[list[str]]] = {}
    for run in sorted(runs, key=lambda one: one.epoch, reverse=True):
        with suppress(
            ValueError, AttributeError, TypeError
        ):  # if its text was changed, its own link shows it
            for other, digests in json.loads(run.amends or "{}").items():
                found.setdefault(other, []).append(list(digests))
    return found


def _original(run: _Run, digest: str, changes: Sequence[Sequence[str]]) -> str | None:
    """The digest that a run had when it ended; None if it was changed by no run."""
    if (not changes or len(changes[0]) == 2) and digest != run.digest:
        return None
    for before, *after in changes:
        if after and after[0] != digest:
            return None
        digest = before
    return digest


def _finish_amending(database: Database, run_id: str, amends: Mapping[str, Any], batches: Batches) -> None:
    done = {}
    for other, (before, *_) in amends.items():
        after = digest_of(database, other, batches[other])
        database.change("UPDATE retl_runs SET digest = ? WHERE run_id = ?", after, other)
        done[other] = [before, after]
    database.change("UPDATE retl_runs SET amends = ? WHERE run_id = ?", cell(done), run_id)


def _batches(database: Database, run_id: str) -> str:
    digest, last = sha256(), ""
    place = columns(BatchRow).index("batch_id")
    while rows := database.query(_BATCHES, run_id, last):
        _add(digest, rows)
        last = rows[-1][place]
    return digest.hexdigest()


def _add(digest: Any, rows: list[tuple[Any, ...]]) -> None:
    for row in rows:
        digest.update(json.dumps(row, separators=(",", ":")).encode() + b"\n")
    digest.update(b"\n")
