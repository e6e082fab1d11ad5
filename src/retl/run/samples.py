"""The samples of a plan: the first changes of each operation, with what the target has now.

They are for people who review it. Nothing is judged by them, so a target that cannot be read has none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from decimal import Decimal
from typing import Any

from retl.destinations.batch import MODES, Batch, Kind, Mode, Peeked, SoftDelete
from retl.engine.lines import document_sql
from retl.engine.workspace import Workspace
from retl.errors import TargetError
from retl.observe.mask import MASK, hide
from retl.run.job import Job
from retl.run.plan import Plan
from retl.run.prediction import Fates
from retl.values.sql import literal

SAMPLES = 5


def samples(job: Job, plan: Plan, workspace: Workspace, reveal: bool, others: Fates) -> list[dict[str, Any]]:
    """The first changes of each op: op, key, and per field the value in the target (`?` if unknown) and the
    new value; with a verdict where it depends on the target whether the row is written."""
    shape = plan.field_map.shape
    positions = _first(plan, workspace)
    rows = workspace.run(
        f"SELECT pos, op, key, CASE WHEN op <> 'delete' THEN {document_sql(plan.field_map)} END"
        f" FROM changes WHERE pos IN ({', '.join(map(str, positions)) or '-1'}) ORDER BY pos"
    )
    there, peeked = _present(job, plan, positions), _peeked(job, plan, positions)
    hidden = set() if reveal else {field.name for field in shape.fields if field.sensitive}
    hides_key = not reveal and any(field.sensitive for field in shape.key)
    numeric = {field.name for field in shape.fields if field.type.name in ("integer", "decimal", "float")}
    soft = shape.deletes.set if isinstance(shape.deletes, SoftDelete) else {}
    found = []
    for (position, op, key, document), old in zip(rows, there, strict=True):
        op = "update" if op == "insert" and shape.write == "update_only" else op
        new = json.loads(document, parse_float=Decimal) if document else soft
        pairs = {
            name: [hide(name, value, hidden) for value in (_old(old, op, name), new.get(name))]
            for name in (new if op != "delete" or soft else old or {})
            if old is None or not _same(old.get(name), new.get(name), numeric=name in numeric)
        }
        sample = {"op": op, "key": MASK if hides_key else key, "fields": pairs}
        fate = others.rows.get(position)
        if fate is not None and fate.peeked.result.kind is Kind.SKIPPED:
            sample["fields"] = {}
        found.append(sample | _verdicts(peeked.get(position) or (fate.peeked if fate else None)))
    return found


def _first(plan: Plan, workspace: Workspace) -> list[int]:
    """The positions of the first rows of each op, in the order of sending."""
    found: list[int] = []
    for op in plan.changes.counts:
        rows = f"SELECT pos FROM changes WHERE op = {literal(op)} ORDER BY pos LIMIT {SAMPLES}"
        found += [position for (position,) in workspace.run(rows)]
    return sorted(found)


def _verdicts(one: Peeked | None) -> dict[str, Any]:
    """What becomes of the row and of each field, where somebody else may have edited it."""
    if one is None:
        return {}
    fields = dict(one.fields)
    if one.result.kind is Kind.CONFLICT:  # nothing of the row is written
        fields = {name: "queued" if verdict == "write" else verdict for name, verdict in fields.items()}
    return {"verdict": one.result.kind.value, "verdicts": fields}


def _peeked(job: Job, plan: Plan, positions: Sequence[int]) -> dict[int, Peeked]:
    """What a run would do to these changes; nothing if it writes them whatever others did."""
    found: dict[int, Peeked] = {}
    offline = job.options.offline
    if not positions or not plan.field_map.shape.conditional or plan.refusals or offline:
        return found
    try:
        with closing(job.lane(plan.field_map.shape)) as destination:
            for phase in plan.changes.phases:
                mine = [one for one in positions if phase.first <= one <= phase.last]
                for batch in _picked(plan, mine, phase.mode):
                    found |= dict(zip(mine, destination.peek(batch), strict=True))
    except TargetError:  # a sample is no reason to fail: the guards have judged already
        return {}
    return found


def _picked(plan: Plan, positions: Sequence[int], mode: Mode) -> Iterator[Batch]:
    """These rows as one batch, if there are any."""
    if positions:
        rows, run, last = plan.changes.pick(positions), plan.run, len(positions) - 1
        yield Batch(rows, *MODES[mode], run.run_id, 0, 0, last, run.started_at.isoformat())


def _present(job: Job, plan: Plan, positions: Sequence[int]) -> Iterable[Mapping[str, Any] | None]:
    """The target's rows for these changes; None if it lacks the key or cannot be read."""
    unknown: list[Mapping[str, Any] | None] = [None] * len(positions)
    if job.options.offline or not (plan.capabilities.readable or plan.capabilities.looks):
        return unknown
    try:
        with closing(job.lane(plan.field_map.shape)) as destination:
            return [row for batch in _picked(plan, positions, "delete") for row in destination.read(batch)]
    except TargetError:  # a sample is no reason to fail: the guards have judged already
        return unknown


def _old(old: Mapping[str, Any] | None, op: str, name: str) -> Any:
    if old is not None:
        return old.get(name)
    return None if op == "insert" else "?"


def _same(old: Any, new: Any, *, numeric: bool) -> bool:
    """Whether a target's value is ours, in the form of its driver: 3 is 3.00."""
    if numeric and old is not None and new is not None:
        with suppress(ArithmeticError):
            return Decimal(str(old)) == Decimal(str(new))
    return str(old) == str(new)
