"""Erase: a person's keys leave the target, the ledger and its files, and no later run brings them back.

First the keys are suppressed, as keyed digests; then the target deletes its rows; only then do the run files
and the rows of the ledger forget them, and a proof is stored. Killed anywhere, the same command goes on from
there. It finds no person by itself: a command says which keys.
"""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from hashlib import sha256
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, replace

from retl import __version__
from retl.destinations.api import Destination
from retl.destinations.batch import MODES, Batch
from retl.engine import erasing, freeze
from retl.engine.baseline import Distrust
from retl.engine.change_set import ChangeSet
from retl.engine.diff import Ends
from retl.engine.erasing import Person, RunFile
from retl.engine.mapping import Run
from retl.engine.scratch import private_directory
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, Failure, Mismatch, RetlError
from retl.ledger import ErasureRow, Ledger
from retl.observe import log
from retl.observe.summary import Summary
from retl.project.definitions import Sync
from retl.project.writing import Conflicts, Deletes, Rollback
from retl.run import plan_file, planner, target
from retl.run.guards import Facts
from retl.run.job import Job
from retl.run.known import know
from retl.run.mart import Mapped, Opened, open_mart
from retl.run.own_run import own_run
from retl.run.pipeline import take_lock
from retl.run.run import Execution, new_run
from retl.run.target import Visited
from retl.values.sql import literal, quoted
from retl.values.suppressed import digest

_CANNOT = frozenset({"OPERATION_UNSUPPORTED", "HTTP_OPERATION", "HTTP_REF"})  # a target that deletes no row
OUTSIDE = (
    "the mart and its sources",
    "logs, and files that people made of the ledger (`retl log --out`, `retl show --images`, reports)",
    "backups, replicas and write-ahead logs of warehouse, target and ledger",
)
READ_AT_ONCE = 1000
NOT_FOUND = (
    "none of these keys was found, at the target or in what retl keeps: are they spelled as in the mart? They"
    " are suppressed all the same"
)
ASKED, BY_HAND = "asked", "not_erasable"  # how a target is erased of which a person has to see the end


class Asked(Struct, frozen=True):
    """Whose rows: these keys, as the target gets them. `subject` is the value by which the person was looked
    for."""

    erasure_id: str
    keys: tuple[str, ...]
    reason: str
    subject: str | None = None

    @property
    def needles(self) -> set[str]:
        return {*self.keys, *([self.subject] if self.subject else [])}


class Searched(Struct, frozen=True):
    """The keys of a person in one sync, None if its mart has no such column; and the columns that it has."""

    keys: list[str] | None
    columns: tuple[str, ...]


class Looked(Struct, frozen=True):
    """What an erasure would do: the keys, how the target forgets them, and how many files have them."""

    keys: int
    how: str  # delete, set, asked, or not_erasable
    files: int


def deleting(sync: Sync) -> Sync:
    """The sync as an erasure delivers it: its only rows are deletes, also of rows that others made or
    edited, and nothing of them is kept."""
    fields = sync.fields and {
        name: one.model_copy(update={"conflicts": None}) for name, one in sync.fields.items()
    }
    deletes = Deletes(how="set", set=sync.erase.set) if sync.erase else Deletes(how="delete")
    less = {"fields": fields, "conflicts": Conflicts(), "rollback": Rollback(), "deletes": deletes}
    return sync.model_copy(update=less)


def search(job: Job, column: str, value: str) -> Searched:
    """The keys of a sync whose row in the mart has this text in a column; also those in run files, if the
    column is part of the key. Writes nothing."""
    run = new_run(job)
    with private_directory() as folder, Workspace(folder, job.stop) as workspace:
        opened = open_mart(job, run, workspace)
        described, field_map = opened.description.columns, opened.mapped.field_map
        with closing(opened.reader), opened.snapshot as snapshot:
            if column not in described:
                return Searched(None, tuple(described))
            names = list(dict.fromkeys([*opened.mapped.contract.columns, column]))
            rows = snapshot.rows(names, None)
            its = f"CAST({quoted(column)} AS VARCHAR) = {literal(value)}"
            wanted = replace(rows, sql=f"SELECT * FROM ({rows.sql}\n) WHERE {its}", count=None)
            freeze.freeze(opened.reader, wanted, {name: described[name] for name in names})
        listed = f"SELECT DISTINCT {field_map.key} FROM {freeze.FROZEN}"
        found = {key for (key,) in workspace.run(listed) if key is not None}
        for part, one in enumerate(field_map.shape.key):
            if one.column == column:
                for few in files_of(job.ledger, job.sync.name, folder):
                    found |= set(erasing.named(workspace, field_map, [few], part, value))
        return Searched(sorted(found), tuple(described))


def look(job: Job, asked: Asked) -> Looked:
    """What `erase` would do. Writes nothing anywhere."""
    with private_directory() as folder, Workspace(folder, job.stop) as workspace:
        opened = bind(job, new_run(job), workspace)
        person = Person(workspace, opened.mapped.field_map)
        person.ask(_usable(job, opened.mapped, workspace, asked))
        person.find_in(files_of(job.ledger, job.sync.name, folder))
        files = sum(person.holds(one) for one in files_of(job.ledger, job.sync.name, folder))
        return Looked(len(person.keys), way(job), files)


def erase(job: Job, asked: Asked) -> tuple[Summary, ErasureRow | None]:
    """Erase the keys of one sync. Every end except a bug is a summary, with the erasure as it was recorded;
    Later if another run holds the lock."""
    with own_run(job) as own:
        work = _Work(own.running, asked, own.hold)
        try:
            own.workspace()
            work.suppress()
            work.erase_at_target()
            work.forget()
            return work.finish(), work.erasure
        except RetlError as problem:
            return own.running.fail(problem), work.erasure


def lift(job: Job, keys: Sequence[str], reason: str) -> int:
    """Let keys of a sync be delivered again; returns how many were suppressed."""
    ledger, run, sync = job.ledger, new_run(job), job.sync.name
    with take_lock(job), private_directory() as folder, Workspace(folder, job.stop) as workspace:
        opened = bind(job, run, workspace)
        person = Person(workspace, opened.mapped.field_map)
        person.ask(keys)
        secret = ledger.suppression_secret()
        digests = {digest(secret, key) for key in {*person.keys, *person.folded()}}
        place, now = opened.mapped.capabilities.object, ledger.now()
        row = ErasureRow(
            run.run_id, sync, place, None, now, getpass.getuser(), reason, "lifted", {"keys": len(keys)}, now
        )
        return ledger.lift(row, digests)


class _Work:
    """The steps of one erasure, and what they found."""

    def __init__(self, running: Execution, asked: Asked, hold: ExitStack) -> None:
        self.running, self.asked, self.hold = running, asked, hold
        self.job, self.ledger = running.job, running.job.ledger
        self.sync = running.job.sync.name
        self.erasure: ErasureRow | None = None
        self.at_target: dict[str, Any] = {}
        self.stored: dict[str, Any] = {}

    @property
    def epoch(self) -> int:
        """Of the lock: it grows when the target knows newer runs than the ledger."""
        return self.running.lock.epoch

    @property
    def workspace(self) -> Workspace:
        return self.running.workspace

    def suppress(self) -> None:
        """Find the person's rows in the run files, and suppress the keys before anything else changes."""
        with self.running.clock.phase("freeze"):
            opened = bind(self.job, self.running.run, self.workspace)
        self.mapped: Mapped = opened.mapped
        self.version = opened.description.version
        self.person = Person(self.workspace, self.mapped.field_map)
        self.person.ask(_usable(self.job, self.mapped, self.workspace, self.asked))
        self._suppress()
        log.event("erasure_begun")

    def _suppress(self) -> None:
        with self.running.clock.phase("diff"):
            self.person.find_in(self._files())
        secret, ledger = self.ledger.suppression_secret(), self.ledger
        digests = {digest(secret, key) for key in {*self.person.keys, *self.person.folded()}}
        place = self.mapped.capabilities.object
        begun = self.erasure or _row(self.asked, self.sync, place, self.running.run.run_id, ledger)
        self.erasure = ledger.suppress(begun, self.epoch, digests)
        dropped = ledger.forget_stored(self.sync, self.person.positions)
        self.stored["requests"] = self.stored.get("requests", 0) + dropped
        ledger.scrap(self.sync)

    def erase_at_target(self) -> None:
        """Delete the rows there, or set their fields, and look whether they are gone. Failure if one is not:
        then the ledger keeps what it needs to try again."""
        how = self.at_target["how"] = way(self.job)
        if how == BY_HAND:
            if self.mapped.capabilities.whole:  # the next run publishes a set without the person
                self.ledger.distrust(self.running.run.run_id, self.epoch, asdict(Distrust(rows=0)))
            return
        running, clock = self.running, self.running.clock
        with clock.phase("guard"):
            visited = target.visit(self.job, running.run, self.mapped, self.epoch, self.hold)
            self._fold(visited)
        with clock.phase("recover"):
            if target.can_tell(self.job, self.mapped, visited):
                running.recover(self.mapped, self.workspace, visited.expected.object)
        changes = self._plan(visited)
        destination = visited.destination
        before = self._there(destination, changes)
        running.record()
        with clock.phase("prepare"):
            running.prepare()
        with clock.phase("deliver"):
            running.deliver()
        self._require_gone(changes, before, self._there(destination, changes))
        log.event("target_erased")

    def _fold(self, visited: Visited) -> None:
        """The target may have told only now that it takes other spellings for the same key."""
        folds = visited.destination.folds if visited.destination is not None else ()
        if folds and folds != self.mapped.field_map.folds:
            field_map = replace(self.mapped.field_map, folds=folds)
            self.mapped = replace(self.mapped, field_map=field_map)
            self.person.field_map = field_map
            self.person.ask(())
            self._suppress()

    def _plan(self, visited: Visited) -> ChangeSet:
        running, mapped = self.running, self.mapped
        with running.clock.phase("diff"):
            known = know(self.job, mapped, self.workspace, visited.expected.object)
            if known.basis.restarts:
                raise Mismatch(
                    "IDENTITY_CHANGED",
                    "the key's columns or types differ from those of the delivered rows",
                    hint="run the sync first, or put the former key back",
                )
            by_ref = mapped.capabilities.by_ref
            if by_ref and (unnamed := erasing.unnamed(self.workspace)):
                raise Failure(
                    "ERASE_INCOMPLETE",
                    f"{unnamed} rows cannot be deleted: the target needs its own ids, which are not known",
                    hint="`retl erase --lift`, then `retl sync --full` learns them; or erase there by hand",
                )
            changes = erasing.assemble(self.workspace, mapped.field_map, by_ref=by_ref)
        number = len(changes)
        facts = Facts(0, 0, 0, known.baseline_rows, deletes=number, full_read=False, allow_deletes=number)
        ends: Ends = {("delete", None): number}
        running.plan = planner.aside(
            self.job, running.run, mapped, known, visited, changes, ends, facts, self.version
        )
        if running.plan.refusals:
            first = running.plan.refusals[0]
            raise Mismatch(first.code, first.message, hint=first.hint)
        return changes

    def _there(self, destination: Destination[Any] | None, changes: ChangeSet) -> list[bool] | None:
        """Per key whether the target has something to erase; None if it cannot be read."""
        if destination is None or not self.mapped.capabilities.readable:
            return None
        return remaining(self.job, self.running.run, destination, changes)

    def _require_gone(
        self, changes: ChangeSet, before: Sequence[bool] | None, after: Sequence[bool] | None
    ) -> None:
        number, deletes = len(changes), self.running.numbers().deletes
        missing = deletes.rejected + deletes.in_doubt + deletes.not_attempted + deletes.kept
        if missing:
            raise Failure(
                "ERASE_INCOMPLETE",
                f"{missing} of {number} rows were not erased at the target",
                hint="see `retl rejects`; they are suppressed, and the ledger keeps their keys until the same"
                " `retl erase` succeeds",
            )
        if after is not None and any(after):
            raise Failure(
                "ERASE_LEFT",
                f"the target confirmed {number} deletes and still has {sum(after)} of the rows",
                hint="a trigger, a policy or another tool keeps or makes them: fix it, then erase again",
            )
        self.at_target |= {"keys": number, "read_back": after is not None}
        if before is not None:
            self.at_target |= {"there": sum(before), "absent": number - sum(before)}

    def forget(self) -> None:
        """The files, rows and plans of retl itself forget the person. The new digests of the files are
        durable before the first is replaced, so the chain of runs verifies all the time."""
        with self.running.clock.phase("commit"):
            self.person.find_in(self._files())
            assert self.erasure is not None
            replaced = [one for one in map(self.person.without, self._files()) if one is not None]
            files = {one.name: (_sha(one.path), one.path.stat().st_size) for one in replaced}
            files = {**self.ledger.replaced(self.sync), **files}  # those of a killed erasure too
            former = self.ledger.recorded(self.sync)
            pending = {name: found for name, (found, _) in files.items()}
            self._record({"pending": pending})
            log.event("files_rewritten")
            for one in replaced:
                self.ledger.replace_file(one.name, one.path)
                one.path.unlink()
                log.event("file_replaced", level="debug", file=one.name)
            needles = self.asked.needles | self.person.keys
            rows = self.ledger.forget_person(
                self.sync, self.epoch, self.person.keys, needles, self.person.positions, files
            )
            log.event("rows_erased")
            plans = plan_file.forget(self.job.folder, self.sync, self.person.keys, needles)
        self.stored |= {
            "files": {name: [former.get(name), found] for name, found in sorted(pending.items())},
            "rows": rows,
            "plans": plans,
        }

    def finish(self) -> Summary:
        """Store the proof, and seal it in the chain with the end of the run."""
        assert self.erasure is not None
        by_hand = self.at_target["how"] in (ASKED, BY_HAND)
        proof = {
            "target": self.at_target,
            "ledger": {"keys": len(self.person.keys), **self.stored},
            "outside": list(OUTSIDE),
            "environment": self.job.environment,
            "host": socket.gethostname(),
            "version": __version__,
        }
        self._record(proof)
        log.event("erasure_proved")
        status = "not_erasable" if by_hand else "erased"
        made = {"id": self.erasure.erasure_id, "status": status, "proof": seal(proof)}
        self.running.found = {"erasure": made}
        done = self.running.fail(_by_hand(self.job)) if by_hand else self.running.commit()
        self.erasure = self.ledger.erasure(self.erasure.erasure_id, self.sync)
        others = [name for name in self.stored["files"] if not name.startswith(self.running.run.run_id)]
        found = others or any(self.stored["rows"].values()) or self.at_target.get("there", 1)
        return done if found else replace(done, notes=(*done.notes, NOT_FOUND))

    def _record(self, proof: Mapping[str, Any]) -> None:
        """Store how far the erasure has come; the end of the run ends it."""
        assert self.erasure is not None
        self.erasure = replace(self.erasure, proof=proof)
        self.ledger.put_erasure(self.erasure, self.epoch)

    def _files(self) -> Iterator[RunFile]:
        return files_of(self.ledger, self.sync, self.workspace.directory)


def seal(proof: Mapping[str, Any]) -> str:
    """The digest of a proof that the run of the erasure keeps."""
    return sha256(json.dumps(proof, sort_keys=True, default=str).encode()).hexdigest()


def _row(asked: Asked, sync: str, object: str, run_id: str, ledger: Ledger) -> ErasureRow:
    return ErasureRow(
        asked.erasure_id, sync, object, run_id, ledger.now(), getpass.getuser(), asked.reason, "open", {}
    )


def files_of(ledger: Ledger, sync: str, folder: Path) -> Iterator[RunFile]:
    """The run files of a sync, one at a time; a copy is removed when the next one is asked for."""
    for name in ledger.files_of(sync):
        path = ledger.get_file(name, folder)
        try:
            yield RunFile.of(name, path)
        finally:
            if path.parent == folder:
                path.unlink(missing_ok=True)


def _usable(job: Job, mapped: Mapped, workspace: Workspace, asked: Asked) -> list[str]:
    """The keys. DefinitionError if one cannot be a key of the sync."""
    found = erasing.usable(workspace, mapped.field_map, asked.keys)
    if len(found) != len(set(asked.keys)):
        raise DefinitionError(
            "ERASE_KEY",
            f"{len(set(asked.keys)) - len(found)} of the keys cannot be keys of this sync",
            hint="`retl explain` shows how keys are written",
            where=f"sync {job.sync.name}",
        )
    return found


def suited(job: Job) -> Job:
    """The job as its target can do it: without deletes, if it has none. DefinitionError, SourceError."""
    with private_directory() as folder, Workspace(folder, job.stop) as workspace:
        try:
            bind(job, new_run(job), workspace)
        except DefinitionError as problem:
            if problem.code not in _CANNOT:
                raise
            return replace(job, sync=job.sync.model_copy(update={"deletes": Deletes()}))
        return job


def bind(job: Job, run: Run, workspace: Workspace) -> Opened:
    """The definition of the sync, bound to the mart, which is not read."""
    opened = open_mart(job, run, workspace)
    with closing(opened.reader), opened.snapshot:
        return opened


def remaining(job: Job, run: Run, destination: Destination[Any], changes: ChangeSet) -> list[bool]:
    """Per row whether the target still has something to erase of its key: the row, or where fields are
    emptied in the place of a delete, one of these fields."""
    empty = [name for name, value in job.sync.deletes.set.items() if value is None]
    emptied, found = way(job) == "set", list[bool]()
    for first in range(0, len(changes), READ_AT_ONCE):
        last = min(first + READ_AT_ONCE, len(changes)) - 1
        for row in destination.read(Batch(changes, *MODES["delete"], run.run_id, 0, first, last)):
            kept = row is not None and any(row.get(name) is not None for name in empty)
            found.append(kept if emptied else row is not None)
    return found


def way(job: Job) -> str:
    """How this target forgets a row: `delete`, `set`, `asked` (a delete is sent, and a receiver decides what
    it keeps), or `not_erasable`."""
    kind, how = job.target.destination, job.sync.deletes.how
    if how != "keep" and kind.forgets(job.target.options):
        return how
    return ASKED if how == "delete" and kind.asks() else BY_HAND


def _by_hand(job: Job) -> Failure:
    """Which part is left for a person."""
    kind, source, how = job.target.kind, job.target.destination.about.source or "", way(job)
    what = f"{kind} cannot delete what was sent to {job.object}"
    if how == ASKED:
        what = f"{kind} sent the deletes to {job.object}, and what its receiver keeps is not known"
    elif job.sync.deletes.how != "keep":
        what = f"a delete of {kind} keeps the person in {job.object}, so none was sent"
    must = "see to it that the receiver erases" if how == ASKED else "erase by hand"
    return Failure(
        "NOT_ERASABLE",
        f"{what}; the ledger has forgotten the keys",
        hint=f"{must} the person there, and note it with the erasure's id"
        + (f"; the vendor's page: {source}" if source.startswith("http") else ""),
    )


def _sha(path: Path) -> str:
    with path.open("rb") as file:
        found = sha256()
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()
