"""Which of the stores of one state is in charge: it may be moved, and a copy of it may be on its way."""

from __future__ import annotations

from retl.errors import LedgerError
from retl.ledger.database import Database

MOVED = "moved to"  # in retl_meta: the address that this state was copied to; nothing uses it here any more
COMING = "copy from"  # in retl_meta: the store whose copy this is, until that one is fenced
COPYING = ".copying"  # a file beside run files without a ledger: a copy to here did not finish


def assert_in_charge(database: Database, place: str) -> None:
    """LedgerError STATE_MOVED, STATE_COPYING if this store is not the one that knows what was delivered.
    `place`: where it is; a reader has a copy."""
    found = dict(database.query("SELECT name, value FROM retl_meta WHERE name IN (?, ?)", MOVED, COMING))
    if MOVED in found:
        raise LedgerError(
            "STATE_MOVED",
            f"{place} was moved to {found[MOVED]}",
            hint=f"set RETL_STATE_URL (or `state: {{url: …}}` in retl.yml) to"
            f" {found[MOVED].replace('postgresql://', 'postgresql://USER@', 1)}",
        )
    if COMING in found:
        raise copying(place)


def copying(place: str) -> LedgerError:
    return LedgerError(
        "STATE_COPYING",
        f"a copy to {place} did not finish",
        hint="with the state url that it comes from, run `retl state copy --to … --yes` again",
    )
