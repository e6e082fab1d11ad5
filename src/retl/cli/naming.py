"""Which run a person means: an id, the beginning or end of one, a sync (its last run), or -1, -2 … back."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from retl.errors import DefinitionError

if TYPE_CHECKING:
    from retl.ledger import Ledger, RunRow

WORDS = "An id or the beginning or end of one, a sync (its last run), or -1 for the last run, -2 …"


def run_by_id(ledger: Ledger, words: str) -> RunRow:
    """The run with this id, or the only one whose id begins or ends so. DefinitionError RUN_UNKNOWN."""
    found = ledger.run(words)
    alike = [] if found else ledger.runs_like(words)
    if found is None and len(alike) != 1:
        what = f"several runs have ids like {words!r}" if alike else f"there is no run {words!r}"
        raise DefinitionError("RUN_UNKNOWN", what, hint="`retl runs` lists them")
    return found or alike[0]


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
