"""Looks for suppressed keys wherever retl may have them: at the target, in run files, in rows of the ledger.

It writes nothing and needs no key: it compares digests, so it also finds a person whom a restored backup
brought back. Only a target that cannot be listed must be asked key by key, by somebody who knows the keys:
the ledger has forgotten them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from msgspec import Struct
from msgspec.structs import replace

from retl.engine import change_set, erasing, held, suppression
from retl.engine.mapping import FieldMap
from retl.engine.scratch import private_directory
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError
from retl.ledger import ErasureRow, Ledger
from retl.observe.summary import counted
from retl.run import target
from retl.run.erase import ASKED, BY_HAND, bind, files_of, remaining, seal, way
from retl.run.job import Job
from retl.run.run import new_run
from retl.values.suppressed import Suppressed


class Verified(Struct, frozen=True):
    """How many suppressed keys are where none may be: in run files (by name), in rows of the ledger, and at
    the target (None: it was not looked at, and `unchecked` says what a person must do). `asked`: for so many
    keys, in place of a list. `by_hand`: retl cannot erase there. `unsealed`: erasures whose proof is not the
    one in their run."""

    suppressed: int
    files: Mapping[str, int]
    rows: int
    target: int | None
    asked: int | None = None
    unchecked: str | None = None
    by_hand: bool = False
    unfinished: Sequence[str] = ()
    unsealed: Sequence[str] = ()

    @property
    def faults(self) -> list[str]:
        found = [f"{_keys(number)} in the run file {name}" for name, number in self.files.items()]
        if self.rows:
            found.append(f"{_keys(self.rows)} in rows of the ledger")
        if self.target and self.by_hand:
            found.append(f"{_keys(self.target)} at the target: erase there by hand")
        elif self.target and self.unfinished:
            found.append(f"{_keys(self.target)} still at the target: `retl erase --again`")
        elif self.target:
            found.append(f"{_keys(self.target)} at the target again: `retl erase --again`")
        found += [
            f"erasure {one} is not finished: run the same `retl erase` again" for one in self.unfinished
        ]
        return found + [f"the proof of erasure {one} is not the one in its run" for one in self.unsealed]


def _keys(number: int) -> str:
    return counted(number, "suppressed key", "is")


def verify(job: Job, keys: Sequence[str] = ()) -> Verified:
    """Look for the suppressed keys of a sync wherever it may have them. A target that cannot be listed is
    asked for `keys`, which must be suppressed: else DefinitionError. Writes nothing."""
    ledger, sync = job.ledger, job.sync.name
    with private_directory() as folder, Workspace(folder, job.stop) as workspace, ExitStack() as hold:
        looked = _look(job, workspace, hold, keys)
        field_map, suppressed = looked.field_map, looked.suppressed
        files = {}
        for one in files_of(ledger, sync, folder):
            if one.kind != "answers":
                rows = f"(SELECT key FROM {one.rows(workspace)} WHERE key IS NOT NULL)"
                files[one.name] = suppression.count(workspace, field_map, suppressed, rows)
        workspace.load("ledger_keys", {"key": "VARCHAR"}, ((key,) for key in ledger.keys_in_rows(sync)))
        rows_of_ledger = suppression.count(workspace, field_map, suppressed, "ledger_keys")
    mine = ledger.erasures(sync)
    finished = [one for one in mine if one.status in ("erased", "not_erasable")]
    return Verified(
        len(suppressed.digests),
        {name: number for name, number in files.items() if number},
        rows_of_ledger,
        None if looked.there is None else len(looked.there),
        looked.asked,
        _by_hand(job, looked) if looked.there is None and suppressed else None,
        way(job) in (ASKED, BY_HAND),
        ledger.unfinished(sync),
        [one.erasure_id for one in finished if not _sealed(ledger, one)],
    )


def back(job: Job) -> list[str] | None:
    """The suppressed keys that the target has; None if it cannot be listed. Writes nothing."""
    with private_directory() as folder, Workspace(folder, job.stop) as workspace, ExitStack() as hold:
        return _look(job, workspace, hold).there


class _Looked(Struct, frozen=True):
    """`there`: the suppressed keys that the target has, None if it was not looked at. `asked`: the number of
    keys that it was asked for. `by_key`: it can be asked for a key."""

    field_map: FieldMap
    suppressed: Suppressed
    there: list[str] | None
    asked: int | None
    by_key: bool


def _look(job: Job, workspace: Workspace, hold: ExitStack, keys: Sequence[str] = ()) -> _Looked:
    """Which suppressed keys the target has: of everything that it lists, or of these keys. What is only one
    of several copies, such as the newest of a history of files, is no answer."""
    run = new_run(job)
    mapped = bind(job, run, workspace).mapped
    suppressed = job.ledger.suppressed(job.sync.name, mapped.capabilities.object, job.siblings)
    destination, field_map = target.visit(job, run, mapped, None, hold).destination, mapped.field_map
    assert destination is not None
    if destination.folds:
        field_map = replace(field_map, folds=destination.folds)
    able, asked = mapped.capabilities, _asked(job, workspace, field_map, suppressed, keys)
    lists = job.target.scannable and job.target.destination.forgets(job.target.options)
    by_key = not lists and able.looks and not able.by_ref
    if lists:
        held.load_scan(workspace, field_map, destination.scan())
        asked = suppression.found(workspace, field_map, suppressed, held.SCANNED)
    found = asked if lists or (by_key and asked) else None
    if found and not (lists and way(job) != "set"):
        rows = "pos, key, NULL::VARCHAR AS ref FROM wanted"
        workspace.load("wanted", {"pos": "BIGINT", "key": "VARCHAR"}, enumerate(found))
        changes = change_set.of_keys(workspace, field_map, "wanted_keys", rows)
        there = remaining(job, run, destination, changes)
        found = [key for key, still in zip(found, there, strict=True) if still]
    return _Looked(field_map, suppressed, found, len(asked) if by_key and asked else None, by_key)


def _asked(
    job: Job, workspace: Workspace, field_map: FieldMap, suppressed: Suppressed, keys: Sequence[str]
) -> list[str]:
    """The keys, as the target spells them. DefinitionError if one of them is not suppressed."""
    wanted = erasing.usable(workspace, field_map, keys)
    if wanted:
        known = suppression.found(workspace, field_map, suppressed, "erasing_texts")
        wanted = [key for key in wanted if key in known]
    if missing := len(set(keys)) - len(wanted):
        raise DefinitionError(
            "ERASE_KEY",
            f"{missing} of the keys were not erased from this sync",
            hint="`retl explain` shows how keys are written",
            where=f"sync {job.sync.name}",
        )
    return wanted


def _by_hand(job: Job, looked: _Looked) -> str:
    """Why a target was not looked at, and what a person must do."""
    why = f"{job.target.kind} cannot list what it has, and the ledger has only digests of the keys"
    if looked.by_key:
        return f"{why}: `retl erase verify --sync {job.sync.name} --key KEY` asks for keys that you know"
    if way(job) in (ASKED, BY_HAND):
        return f"{job.target.kind} is not erased by retl: look there by hand for each erasure"
    return f"{why}: look there by hand for the keys in your requests"


def _sealed(ledger: Ledger, erasure: ErasureRow) -> bool:
    run = ledger.run(erasure.run_id) if erasure.run_id else None
    return bool(run and run.counts.get("erasure", {}).get("proof") == seal(erasure.proof))
