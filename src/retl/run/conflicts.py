"""The queue of conflicts: rejects of stage `conflict`, and what people decide about them.

A decision holds for the two versions that the queue names by a digest. It is carried out by the next run, in
the batch's own transaction, so an edit made meanwhile refuses it. Nothing here writes to a target.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final, Literal

from msgspec import Struct

from retl.destinations.batch import Decision
from retl.errors import DefinitionError
from retl.ledger import Ledger
from retl.values.keys import spellings

STAGE: Final = "conflict"
_DIGEST = re.compile(r" \[([0-9a-f]{16}|gone)\]$")


class Queued(Struct, frozen=True):
    """A row in conflict. `digest` names both versions of it."""

    sync: str
    key: str
    code: str
    reason: str
    digest: str
    first_seen: datetime
    last_seen: datetime
    attempts: int


def queue(ledger: Ledger, syncs: Collection[str] | None = None, keys: Collection[str] = ()) -> list[Queued]:
    """The conflicts that wait for a decision, by sync and key; of these syncs or of all."""
    found, asked = [], spellings(keys)
    names = [None] if syncs is None else sorted({*syncs})
    for one in (row for name in names for row in ledger.rejects(name)):
        if one.stage == STAGE and (not asked or one.key in asked):
            reason = one.reason or ""
            match = _DIGEST.search(reason)
            digest = match[1] if match else ""
            reason = reason[: match.start()] if match else reason
            seen = (one.first_seen, one.last_seen, one.attempts)
            found.append(Queued(one.sync, one.key, one.code, reason, digest, *seen))
    return found


def decide(
    found: Sequence[Queued], side: Literal["mart", "target"], expect: str | None = None
) -> dict[str, dict[str, Decision]]:
    """Per sync the decisions by key. DefinitionError CONFLICT_CHANGED if `expect` names other versions than
    the queue has."""
    decisions: dict[str, dict[str, Decision]] = {}
    for one in found:
        if expect is not None and expect != one.digest:
            raise DefinitionError(
                "CONFLICT_CHANGED",
                f"the row changed since digest {expect}: the queue has {one.digest}",
                hint="look at it again with `retl conflicts list`",
            )
        decisions.setdefault(one.sync, {})[one.key] = Decision(side, one.digest)
    return decisions
