"""Which run a person means: an id, the beginning or end of one, a sync (its last run), or -1, -2 … back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

from retl.errors import DefinitionError

if TYPE_CHECKING:
    from retl.ledger import Ledger, RunRow

_RECENT = 100  # runs whose ids a mistyped one is compared with
_ALIKE = 0.75  # usres is like users, and zzz is like nothing
SHORT = 6  # characters of an id that are enough for people
TAKEN_BACK = (
    "An id or the beginning or end of one, a sync (its last run that wrote rows of the mart), or -1 for the"
    " last run, -2 …"
)
WORDS = "An id or the beginning or end of one, a sync (its last run), or -1 for the last run, -2 …"


def short_ids(ids: Sequence[str]) -> list[str]:
    """The ends of run ids, which `run_by_id` takes too; the whole ids if two of them end alike."""
    ends = {one: one.rsplit("-", 1)[-1] for one in ids}
    alike = len(set(ends.values())) < len(ends) or any(len(end) < SHORT for end in ends.values())
    return list(ids) if alike else [ends[one] for one in ids]


def run_by_id(ledger: Ledger, words: str) -> RunRow:
    """The run with this id, or the only one whose id begins or ends so. DefinitionError RUN_UNKNOWN."""
    found = ledger.run(words)
    alike = [] if found else ledger.runs_like(words)
    if found is None and len(alike) != 1:
        what = f"several runs have ids like {words!r}" if alike else f"there is no run {words!r}"
        near = None if alike else _near(ledger, words)
        hint = f"did you mean {near!r}? " if near else ""
        raise DefinitionError("RUN_UNKNOWN", what, hint=f"{hint}`retl runs` lists them")
    return found or alike[0]


def _near(ledger: Ledger, words: str) -> str | None:
    """The sync with runs, or the id of a recent run, that is most like these words. The end of an id is
    compared too, since people write it alone."""
    ids = [run.run_id for run in ledger.runs(limit=_RECENT)]
    ends = {one.rsplit("-", 1)[-1]: one for one in reversed(ids)}  # of two alike, the newest
    known = {**ends, **{one: one for one in ids}, **{name: name for name in ledger.synced()}}
    near = get_close_matches(words, known, n=1, cutoff=_ALIKE)
    return known[near[0]] if near else None


def run_to_take_back(ledger: Ledger, words: str) -> RunRow:
    """The run that a rollback of WORDS is about. A sync stands for its last run that wrote rows of the mart:
    a rollback is taken back only by its own id. DefinitionError RUN_UNKNOWN."""
    if words.startswith("-") or not ledger.runs(words, 1):
        return named_run(ledger, words, "retl rollback")
    found = ledger.last_written(words)
    if found is None:
        hint = f"`retl runs {words}` lists its runs; what else wrote is taken back by its id"
        raise DefinitionError("RUN_UNKNOWN", f"no run of {words} wrote a row", hint=hint)
    return found


def named_run(ledger: Ledger, words: str | None, command: str = "retl show") -> RunRow:
    """The run that WORDS describes; without words the last one. DefinitionError RUN_UNKNOWN; USAGE if the
    words are an option that `command` does not have."""
    back = 1 if words is None else int(words[1:]) if re.fullmatch(r"-[1-9]\d{0,3}", words) else None
    if back is None and words is not None:
        if words.startswith("-"):
            raise DefinitionError("USAGE", f"no such option: {words}", hint=f"{command} --help")
        of_sync = ledger.runs(words, 1)
        return of_sync[0] if of_sync else run_by_id(ledger, words)
    runs = ledger.runs(limit=back or 1)
    if len(runs) < (back or 1):
        many = "there are no runs yet" if not runs else f"there are only {len(runs)} runs"
        raise DefinitionError("RUN_UNKNOWN", many, hint="`retl runs` lists them")
    return runs[-1]
