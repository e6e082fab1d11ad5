"""Notes that hold from run to run, such as what is withheld: a run says one when it is new or its facts
changed, `retl status` shows those that hold now, and a plan says all. What a note says is `notes`' business.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from retl.errors import LedgerError
from retl.ledger import Ledger
from retl.run.job import Job


def news(job: Job, notes: Sequence[str], *, good: bool) -> Sequence[str]:
    """Those of the notes that the last good run of the whole mart did not end with. A run that is `good`
    itself is the last one from now on. Without a ledger to ask, all are news."""
    ledger, sync = job.ledger, job.sync.name
    try:
        known = told(ledger, sync)
        whole = job.options.whole and job.options.purpose in ("sync", "apply")
        if good and whole and notes != known:
            ledger.keep(_name(sync), json.dumps(list(notes), ensure_ascii=False))
    except LedgerError:  # the run has ended, and its summary must not be lost
        return notes
    return [one for one in notes if one not in known]


def told(ledger: Ledger, sync: str) -> tuple[str, ...]:
    """The notes that held at the end of the last good run of the whole mart."""
    return tuple(json.loads(ledger.kept(_name(sync)) or "[]"))


def _name(sync: str) -> str:
    return f"notes {sync}"
