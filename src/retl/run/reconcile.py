"""Reconcile: what the target holds against mart and baseline, key by key, and how to repair it.

A look writes nothing to the target and changes no baseline. A repair sends the rows that somebody edited or
removed, as a plan through the same delivery as every run; it never deletes. Ownership is taken by recording
the keys that only the target has. Each of them is a run of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

from msgspec import Struct, field
from msgspec.structs import asdict, replace

from retl.destinations.batch import Decision
from retl.engine import change_set, held
from retl.engine.baseline import BASELINE, ENTRIES
from retl.engine.change_set import CHANGES, ChangeSet
from retl.engine.diff import CANDIDATES
from retl.engine.judge import REJECTS
from retl.engine.mapping import Run
from retl.engine.scratch import private_directory
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, Later, RetlError
from retl.ledger.breakers import SKEW
from retl.observe import log
from retl.observe.summary import Counts, Summary
from retl.project.definitions import Sync
from retl.run import diffing, planner
from retl.run.comparison import Compared, Scope, compare
from retl.run.guards import Facts
from retl.run.job import Clock, Job, Options, Target
from retl.run.known import holding
from retl.run.own_run import locked, own_run
from retl.run.pipeline import paused
from retl.run.plan import Plan
from retl.run.prediction import predict
from retl.run.rebuild import write_held
from retl.run.run import Execution, new_run

SAMPLE = 1000  # rows that are drawn by default where the target cannot be read as a whole
EXAMPLES = 20
DRIFT = ("edited", "missing", "back", "duplicate")
VERDICTS = (
    "reconciled"  # key, verdict, fields (a JSON list), pos (NULL: the row was not compared), owned, ref
)
_TAKEN = "taken"  # rows of a delta


class Asked(Struct, frozen=True):
    """What a reconcile does with what it finds. With `sample` only so many rows of the mart are compared, and
    no other key is looked for."""

    sample: int | None = None
    repair: bool = False
    own: bool = False

    @property
    def purpose(self) -> Literal["reconcile", "repair"]:
        """Of its run: `reconcile` only looks."""
        return "repair" if self.repair or self.own else "reconcile"

    @property
    def kind(self) -> Literal["look", "sample", "repair", "own"]:
        return "repair" if self.repair else "own" if self.own else "look" if self.sample is None else "sample"


class Found(Struct, frozen=True):
    """Keys by verdict; `extra` and `duplicate` are None if the target was not scanned. `fields`: how many
    rows were edited in each field. `examples` have no values."""

    same: int = 0
    due: int = 0
    edited: int = 0
    missing: int = 0
    back: int = 0
    held: int = 0
    kept: int = 0
    extra: int | None = None
    duplicate: int | None = None
    sampled: int | None = None
    fields: Mapping[str, int] = field(default_factory=dict)
    examples: Sequence[Mapping[str, Any]] = ()

    @property
    def drift(self) -> int:
        return sum(getattr(self, name) or 0 for name in DRIFT)

    @property
    def repairable(self) -> int:
        return self.edited + self.missing


def require(sync: Sync, target: Target, asked: Asked) -> None:
    """DefinitionError if the target cannot be compared, or if an option would have no effect."""
    where = f"sync {sync.name}"
    if not target.comparable:
        raise DefinitionError(
            "RECONCILE_UNSUPPORTED",
            "this target cannot be read, so nothing can be compared with it",
            hint="`retl sync --full` sends every row again",
            where=where,
        )
    if asked.own and not target.scannable:
        raise DefinitionError(
            "RECONCILE_UNSUPPORTED",
            "--take-ownership is not possible here: this target cannot list its keys",
            hint="leave the option out",
            where=where,
        )
    if asked.repair and sync.write in ("append", "insert_only"):
        raise DefinitionError(
            "NOTHING_TO_REPAIR",
            f"--repair is not possible with `write: {sync.write}`: it never changes a row, and a row that is"
            " gone may have been removed on purpose",
            hint=f"`retl state rebuild {sync.name}` makes missing rows due again",
            where=where,
        )
    if asked.own and sync.deletes.how == "keep":
        raise DefinitionError(
            "NOTHING_TO_OWN",
            "--take-ownership has no effect: this sync never deletes",
            hint="set `deletes: delete` first, or leave the option out",
            where=where,
        )


def reconcile(job: Job, asked: Asked) -> tuple[Summary, Found]:
    """Compare, and repair or own what was asked for. Every end except a bug is a summary; Later if another
    run holds the lock."""
    asked, (clock, lock) = _within(job, asked), locked(job)
    if (asked.repair or asked.own) and (pause := job.ledger.paused(job.sync.name)):
        lock.release()
        return paused(pause), Found()
    with own_run(job, (clock, lock)) as own:
        running, run, found = own.running, own.running.run, Found()
        try:
            workspace = own.workspace()
            opening = (lock.epoch, running.recover) if asked.repair or asked.own else (None, None)
            made = compare(job, run, workspace, clock, own.hold, _scope(job, asked), *opening)
            found = _judge(job, made, workspace, asked)
            running.found = {"reconcile": {**asdict(found), "drift": found.drift}}
            if asked.own or (asked.repair and found.repairable):
                running.plan = _plan(job, run, made, workspace)
                if running.plan.refusals:
                    return running.refuse(), found
                running.record()
            if running.plan is not None and asked.repair:
                return _drain(running), found
            if asked.own:
                _own(running, made)
            return running.end(_numbers(made, found)), found
        except RetlError as problem:
            return running.fail(problem), found


def look(job: Job, asked: Asked) -> tuple[Summary, Found]:
    """What `reconcile` would find and repair. Writes nothing anywhere. Raises what would refuse it."""
    run, clock, asked = new_run(job), Clock(), _within(job, asked)
    with private_directory() as folder, ExitStack() as hold, log.bound(sync=job.sync.name):
        workspace = hold.enter_context(Workspace(folder, job.stop))
        made = compare(job, run, workspace, clock, hold, _scope(job, asked))
        found = _judge(job, made, workspace, asked)
        if asked.repair and found.repairable:
            return predict(job, _plan(job, run, made, workspace), workspace, clock), found
        return Summary(job.sync.name, None, "SUCCESS", 0, True, _numbers(made, found)), found


def after_run(job: Job, summary: Summary) -> Summary:
    """The summary of a good run, with a note of what a reconcile found if one was due after it."""
    last, now, wanted = job.ledger.last_reconcile(job.sync.name), job.ledger.now(), job.sync.reconcile
    if wanted is None or summary.exit_code:
        return summary
    age = (now - last.started_at).total_seconds() if last is not None else wanted.every
    if -SKEW.total_seconds() <= age < wanted.every:  # a look that is still to come was made by a wrong clock
        return summary
    asked = Asked()
    options = Options(purpose=asked.purpose, reconcile=asked.kind, variables=job.options.variables)
    job = replace(job, options=options, since=None)
    try:
        looked, found = reconcile(job, asked)
    except Later as problem:
        note = f"the reconcile that is due waits: {problem.message}"
    else:
        named = ", ".join(f"{getattr(found, name)} {name}" for name in DRIFT if getattr(found, name))
        note = f"the target drifted ({named}): `retl reconcile {job.sync.name}` names the keys"
        if looked.error is not None:
            note = f"the reconcile that was due failed: {looked.error['message']}"
        elif not found.drift:
            note = "reconciled: the target holds what was delivered"
        elif found.drift == found.repairable and job.sync.conflicts.how != "warehouse_wins":
            note = f"reconciled: others changed the target ({named}), and `conflicts` keeps that"
    return replace(summary, notes=(*summary.notes, note))


def _within(job: Job, asked: Asked) -> Asked:
    """A look at a target that reads row by row is a sample, unless it is said how many."""
    looks = not (job.target.scannable or asked.repair or asked.own or asked.sample is not None)
    return replace(asked, sample=SAMPLE) if looks else asked


def _scope(job: Job, asked: Asked) -> Scope:
    if asked.sample is not None:
        return Scope(sample=asked.sample)
    soft = job.sync.deletes.how == "set"  # a row that is marked is still there
    scans = job.target.scannable
    counts = not (asked.own or holding(job.ledger, job.sync.name))
    return Scope(scan=scans, left=True, deleted=scans and not soft, counts=counts)


def _judge(job: Job, made: Compared, workspace: Workspace, asked: Asked) -> Found:
    """Create VERDICTS and count them."""
    sync = job.sync
    restored = ", ".join(map(str, holding(job.ledger, job.sync.name))) or "NULL"
    fixed = sync.write in ("append", "insert_only")  # a row that is there is never changed
    deletes = sync.deletes.how != "keep"
    misses = made.known.misses(made.mapped)
    workspace.run(
        f"CREATE TABLE {VERDICTS} AS SELECT c.key, c.fields, c.pos, c.owned, c.ref, CASE"
        f" WHEN b.key IS NULL THEN 'due' WHEN b.epoch IN ({restored}) AND b.hash = c.hash THEN 'held'"
        f" WHEN NOT c.there THEN CASE WHEN b.hash IS NULL{' OR TRUE' * misses} THEN 'due' ELSE 'missing' END"
        " WHEN b.hash IS DISTINCT FROM c.hash THEN 'due' WHEN c.fields = '[]' THEN 'same'"
        f" ELSE '{'kept' if fixed else 'edited'}' END AS verdict"
        f" FROM {held.COMPARED} c LEFT JOIN (FROM {ENTRIES} WHERE NOT gone) b USING (key)"
    )
    gone = "CASE WHEN p.owned THEN 'due' WHEN p.there THEN 'kept' END"
    gone = gone if deletes else "CASE WHEN p.there THEN 'kept' END"
    workspace.run(
        f"INSERT INTO {VERDICTS} SELECT key, NULL, NULL, owned, ref, verdict FROM (SELECT p.*, CASE of"
        f" WHEN '{held.OF_MART}' THEN CASE WHEN p.there OR b.hash IS NULL THEN 'due' ELSE 'missing' END"
        f" WHEN '{held.LEFT}' THEN CASE WHEN b.epoch IN ({restored}) THEN 'held' ELSE {gone} END"
        f" WHEN '{held.DELETED}' THEN CASE WHEN p.there THEN 'back' END ELSE 'extra' END AS verdict"
        f" FROM {held.PRESENT} p LEFT JOIN (SELECT key, hash, epoch FROM {ENTRIES} WHERE NOT gone) b"
        " USING (key)) WHERE verdict IS NOT NULL"
    )
    counts = dict(workspace.run(f"SELECT verdict, count(*) FROM {VERDICTS} GROUP BY 1"))
    counts["same"] = counts.get("same", 0) + made.alike.rows
    scanned = asked.sample is None
    if scanned and job.target.scannable:
        counts |= {"extra": counts.get("extra", 0), "duplicate": _duplicates(made, workspace)}
    return Found(
        **counts,
        sampled=None if scanned else sum(counts.values()),
        fields=dict(
            workspace.run(
                "SELECT field, count(*) FROM (SELECT unnest(from_json(fields, '[\"VARCHAR\"]')) AS field"
                f" FROM {VERDICTS} WHERE verdict = 'edited') GROUP BY 1 ORDER BY 2 DESC, 1"
            )
        ),
        examples=_examples(workspace),
    )


def _duplicates(made: Compared, workspace: Workspace) -> int:
    """Keys that the target has several times. A target of keys alone reports some twice and has them once."""
    if not made.mapped.capabilities.repeats:
        return 0
    number: int = workspace.one(f"SELECT count(*) FROM {held.SCANNED} WHERE times > 1")[0]
    return number


def _examples(workspace: Workspace) -> list[dict[str, Any]]:
    """The first keys of each verdict that is more than `same` or `due`."""
    rows = workspace.run(
        f"SELECT key, verdict, fields FROM {VERDICTS} WHERE verdict NOT IN ('same', 'due')"
        f" QUALIFY row_number() OVER (PARTITION BY verdict ORDER BY key) <= {EXAMPLES} ORDER BY verdict, key"
    )
    return [
        {"key": key, "verdict": verdict, "fields": json.loads(fields) if verdict == "edited" else []}
        for key, verdict, fields in rows
    ]


def _numbers(made: Compared, found: Found) -> Counts:
    """As the numbers of a run that attempted nothing."""
    read = made.frozen.total
    waiting = min(read, found.due + found.edited + found.missing)
    return Counts(read=read, unchanged=read - waiting, not_attempted=waiting)


def _plan(job: Job, run: Run, made: Compared, workspace: Workspace) -> Plan:
    """The rows of the mart that were edited or are missing, as a plan."""
    read = made.frozen.total
    changes = _drifted(job, made, workspace)
    plan = planner.aside(
        job,
        run,
        made.mapped,
        made.known,
        made.visited,
        changes,
        diffing.planned(workspace, changes),
        Facts(read, read, 0, made.known.baseline_rows),
        made.opened.description.version,
    )
    return replace(plan, terms=replace(plan.terms, decisions=_left_alone(changes, workspace)))


def _left_alone(changes: ChangeSet, workspace: Workspace) -> Mapping[int, Decision]:
    """A row that somebody removed and that the mart did not change is no conflict, so nobody is asked: it
    stays removed, as with target_wins."""
    if changes.field_map.shape.conflicts != "manual":
        return {}
    missing = f"SELECT pos FROM {CHANGES} JOIN repaired USING (key) WHERE repaired.op = 'insert'"
    return {pos: Decision("target", "gone") for (pos,) in workspace.run(missing)}


def _drifted(job: Job, made: Compared, workspace: Workspace) -> ChangeSet:
    """The change set of a repair. A missing row is made again, so it is an insert: others who write to it
    must know. Rows that are the same are no candidates, and all others wait for a sync."""
    drift = "verdict IN ('edited', 'missing') AND pos IS NOT NULL"
    workspace.run(
        "CREATE TABLE repaired AS"
        " SELECT key, CASE verdict WHEN 'missing' THEN 'insert' ELSE 'update' END AS op"
        f" FROM {VERDICTS} WHERE {drift}"
    )
    same = f"key IN (SELECT key FROM {VERDICTS} WHERE verdict = 'same' AND pos IS NOT NULL)"
    workspace.run(f"DELETE FROM {CANDIDATES} WHERE op <> 'delete' AND {same}")
    workspace.run(
        f"UPDATE {CANDIDATES} SET ending = 'not_attempted' WHERE op <> 'delete'"
        " AND (ending IS NOT NULL OR key NOT IN (SELECT key FROM repaired))"
    )
    workspace.run(
        f"UPDATE {CANDIDATES} c SET op = r.op FROM repaired r WHERE c.key = r.key AND ending IS NULL"
    )
    workspace.run(f"DELETE FROM {REJECTS}")
    return change_set.only(made.rows, "repaired", job.sync.write)


def _drain(running: Execution) -> Summary:
    with running.clock.phase("prepare"):
        running.prepare()
    with running.clock.phase("deliver"):
        running.deliver()
    return running.commit()


def _own(running: Execution, made: Compared) -> None:
    """Record the keys that only the target has as unknown and ours, and those that were somebody else's as
    ours."""
    workspace = running.workspace
    workspace.run(
        f"CREATE TABLE {_TAKEN} AS SELECT row_number() OVER () - 1 AS pos, 'insert' AS op, key, b.hash,"
        f" TRUE AS owned, ref FROM {VERDICTS} v LEFT JOIN (SELECT key, hash, owned AS ours FROM {BASELINE}) b"
        f" USING (key) WHERE verdict IN ('extra', 'back') OR (NOT ours AND verdict <> 'missing')"
    )
    rows: int = workspace.one(f"SELECT count(*) FROM {_TAKEN}")[0]
    if rows:
        write_held(running, _TAKEN, rows, made.known.former or made.mapped.fingerprints)
        log.event("delta_written")
