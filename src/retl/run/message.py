"""One row that no mart has, sent once through a connection, as a run would send it. Alerts go this way.

It takes the path of a row in a run, over an empty baseline. It records nothing and tries once: who sends a
message decides what a failure means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any

from msgspec import Struct

from retl.contract.judge import Contract, build
from retl.delivery.paced import Paced
from retl.destinations.api import Destination
from retl.destinations.batch import MODES, Batch, Kind, Outcome
from retl.engine import baseline, change_set, diff, freeze, hash, judge, mapping
from retl.engine.change_set import ChangeSet
from retl.engine.diff import Strategy
from retl.engine.mapping import FieldMap, Run
from retl.engine.scratch import private_directory
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, Stopped, Unavailable
from retl.observe.signals import Stop
from retl.pace.limiter import Pace
from retl.project.definitions import Sync
from retl.run.job import Target

_ALL = Strategy(everything=True, absence=False, once=False, hold_unknown=False)
_WAYS: tuple[Mapping[str, Any], ...] = (
    {"write": "append", "first_run": "send", "delivery": "at_most_once"},
    {"write": "upsert"},
)


class Letter(Struct, frozen=True):
    """How a row with these columns goes through a connection."""

    sync: Sync
    contract: Contract
    field_map: FieldMap
    run: Run
    destination: Destination[Any]


def letter(target: Target, key: str, columns: Sequence[str], run: Run) -> Letter:
    """The way of such rows through a connection: appended where the target appends. DefinitionError if its
    options do not fit, and ALERT_CONNECTION for a target that takes no single messages."""
    refused: DefinitionError | None = None
    for way in _WAYS:
        contract = {name: {"type": "string", "nullable": name != key} for name in columns}
        written = {"name": "message", "source": {"table": "message"}, "key": [key], "contract": contract}
        sync = Sync.model_validate({**written, "destination": {"type": target.kind}, **way})
        judged = build(sync.contract, dict.fromkeys(columns, "VARCHAR"), Path(), sync.key)
        field_map = mapping.build(sync, judged, run, state_id="", timezone="UTC")
        try:
            destination = target.lane(field_map.shape)
        except DefinitionError as problem:
            refused = refused or problem
            continue
        if destination.capabilities.form == "documents" and sync.write in destination.capabilities.modes:
            return Letter(sync, judged, field_map, run, destination)
        destination.close()
    raise refused or DefinitionError(
        "ALERT_CONNECTION",
        f"a connection of type {target.kind} takes no messages",
        hint="alerts go through webhooks, chats, other HTTP connections, and mail (smtp)",
    )


def send(
    target: Target, key: str, row: Mapping[str, str | None], run: Run, seconds: float, pace: Pace
) -> None:
    """Send a row of texts under the connection's pace. TargetError if it did not arrive within so many
    seconds, Later if the connection must not be used now; what `letter` raises."""
    late = Stop()
    with private_directory() as directory, Workspace(directory, Stop()) as workspace:
        way = letter(target, key, list(row), run)
        way.destination.close()
        with closing(Paced(partial(target.lane, way.field_map.shape), pace, late)) as lane:
            batch = _batch(workspace, way, row)

            def give_up() -> None:
                late.event.set()
                lane.interrupt()

            deadline = Timer(seconds, give_up)
            deadline.daemon = True
            deadline.start()
            try:
                answer = lane.write(batch)
            except Stopped as problem:
                what = f"the connection's limits left no room for a message within {seconds:.0f} s"
                raise Unavailable("HELD_OFF", what) from problem
            finally:
                deadline.cancel()
    if not isinstance(answer, Outcome):  # a job of the vendor's: it was taken
        return
    result = answer.result(0)
    if result.kind is not Kind.WRITTEN:
        raise Unavailable(result.code or "UNANSWERED", "the target did not accept the message")


def _batch(workspace: Workspace, way: Letter, row: Mapping[str, str | None]) -> Batch:
    """The row as the only one of a change set."""
    field_map, run = way.field_map, way.run
    workspace.load(
        freeze.FROZEN, {"retl row": "BIGINT", **dict.fromkeys(row, "VARCHAR")}, [(0, *row.values())]
    )
    delivered = baseline.build(workspace, None, [])
    hash.hash_rows(workspace, field_map, way.contract.prefilter(), "")
    diff.diff(workspace, field_map, _ALL, delivered, whole=True)
    judge.judge(workspace, way.contract, way.sync.key)
    change_set.assemble(workspace, field_map, write=way.sync.write)
    rows = ChangeSet(workspace, field_map)
    return Batch(rows, *MODES[way.sync.write], run.run_id, 0, 0, 0, run.started_at.isoformat())
