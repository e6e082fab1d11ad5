"""What a run was asked for, and which fields it writes, as the ledger keeps it."""

from __future__ import annotations

import getpass
import os
import socket
from collections import Counter
from collections.abc import Mapping
from typing import Any

from msgspec.structs import asdict

from retl import __version__
from retl.destinations.batch import Decision, Shape, SoftDelete
from retl.engine.mapping import Run
from retl.ledger import RunStart
from retl.observe.mask import MASK
from retl.run.job import Job
from retl.values.keys import key_texts


def start(job: Job, run: Run, epoch: int) -> RunStart:
    """The row of a run that begins, under the epoch of its lock."""
    return RunStart(
        run_id=run.run_id,
        sync=job.sync.name,
        object=job.object,
        environment=job.environment,
        correlation_id=job.correlation_id,
        epoch=epoch,
        started_at=run.started_at,
        vars={name: str(value) for name, value in job.options.variables.items()},
        fingerprint={},
        purpose=job.options.purpose,
        of_run=job.options.of_run,
        approved_by=job.options.approved_by,
        source_identity=job.source.identity,
        host=socket.gethostname(),
        pid=os.getpid(),
        user=getpass.getuser(),
        version=__version__,
        options=options(job),
    )


def written(shape: Shape) -> dict[str, list[str]]:
    """The target's fields that a sync writes, by operation; of a delete only those that a soft one sets."""
    soft = shape.deletes.set if isinstance(shape.deletes, SoftDelete) else ()
    return {"upsert": [one.name for one in shape.fields], "delete": list(soft)}


def options(job: Job) -> dict[str, Any]:
    """The options of a run that say what it does."""
    options = job.options
    return {
        "accept": list(options.accept),
        "allow_deletes": options.allow_deletes,
        **_decided(options.decisions),
        **({"reconcile": options.reconcile} if options.reconcile else {}),
        **({"plan": options.plan} if options.plan else {}),
        **({"shards": job.peer.of} if job.peer else {}),
        **_selected(job),
    }


def _selected(job: Job) -> dict[str, Any]:
    """The rows that the run was asked for; an erased key is not stored again."""
    found = {k: v for k, v in asdict(job.options.selection).items() if v}
    if "touched" in found:
        found["touched"] = len(found["touched"])
    if "keys" in found:
        gone = job.ledger.suppressed(job.sync.name, job.object, job.siblings)
        given = key_texts(found["keys"], len(job.sync.key))
        found["keys"] = [MASK if gone.has(key) else key for key in given]
    return found


def _decided(decisions: Mapping[str, Decision]) -> dict[str, Any]:
    """How many conflicts a person decided for which side, for the history."""
    sides = Counter(one.side for one in decisions.values())
    return {"take": dict(sides)} if sides else {}
