"""What became of a batch whose script writes its rows and its mark in one step, by the entry in the stamp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from retl.destinations.batch import Batch, Outcome
from retl.destinations.redis import script, stamp
from retl.destinations.redis.resp import AGAIN, Command, Refusal, judge
from retl.errors import Systemic, Unavailable


def resolved(
    of: stamp.Stamp,
    server: str,
    call: Callable[[Command], Any],
    batch: Batch,
    attempt: int,
    *,
    act: bool,
) -> tuple[Outcome | None, int]:
    """The outcome, None if nothing of the batch was applied, and the attempt that is next. If it may `act`,
    an attempt that is still under way is never applied."""
    key = of.keys[0]
    while True:
        entry = of.entry(batch, attempt)
        stored = call(("EVAL", script.VOID, 1, key, entry) if act else ("HGET", key, entry))
        if isinstance(stored, Refusal):
            code, sentence = judge(stored)
            kind = Unavailable if code in AGAIN else Systemic
            raise kind(code, f"{server}: {key}: {sentence}")
        if stored is not None and (known := stamp.outcome(stored)) is not None:
            return known, attempt
        attempt += 1
        if stored is None:
            return None, attempt
