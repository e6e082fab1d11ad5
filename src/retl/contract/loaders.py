"""Columns that a loader adds to the tables it fills, so that retl neither sends nor trusts them blindly.

dlt marks every row with `_dlt_id` and `_dlt_load_id`, which are new after each load. A value that does not
fit a column goes into a variant of it, such as `price__v_double`, and the column itself is NULL there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from retl.errors import Mismatch

_OWN = re.compile(r"_dlt_.*", re.IGNORECASE)
_VARIANT = re.compile(
    r"(.+)__v_(text|double|bool|timestamp|bigint|binary|json|complex|decimal|wei|date|time)", re.IGNORECASE
)


def is_own(column: str) -> bool:
    """Whether the column is the loader's: it is not part of "all columns"."""
    return _OWN.fullmatch(column) is not None


def refuse_variants(columns: Iterable[str], used: Collection[str], written: Collection[str]) -> None:
    """Mismatch SOURCE_DRIFT if a column of the mart is a variant of a `used` one; not if the contract has it
    `written` too, because then somebody knows of it."""
    for column in columns:
        found = _VARIANT.fullmatch(column)
        if found is not None and found[1] in used and column not in written:
            raise Mismatch(
                "SOURCE_DRIFT",
                f"the mart's column {found[1]} lacks values: dlt put those of another type into {column}, and"
                f" {found[1]} is NULL there",
                hint=f"put both together in the source's SQL and leave {column} out, or give {found[1]} a"
                " type in dlt's schema and load again",
            )
