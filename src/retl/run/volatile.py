"""Finds fields that make nearly every row an update: often a load time, which does not describe the row.

A sample of the planned updates is compared with a readable target. Notes name fields and never show values.
Nothing is refused: a price list may change every day.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from msgspec.structs import replace

from retl.destinations.api import Destination
from retl.destinations.batch import Batch

SAMPLE = 200  # updates that are compared with the target's rows
FEW = 20  # this many updates or fewer are not checked
NEARLY_ALL = Decimal("0.9")  # of the rows read


def is_suspect(updates: int, read: int) -> bool:
    """Whether nearly all rows are updates, so that one field may be the reason."""
    return updates > FEW and updates >= NEARLY_ALL * read


def fields(destination: Destination[Any], batch: Batch) -> list[str]:
    """The compared fields that differ in every row of the batch that the target has, in their order; none if
    all fields differ, because then the rows are different ones."""
    compared = [field.name for field in destination.shape.fields if field.compared]
    found = [names for names in differing(destination, batch) if names is not None]
    always = [name for name in compared if found and all(name in names for names in found)]
    return always if len(always) < len(compared) else []


def differing(destination: Destination[Any], batch: Batch) -> Iterator[tuple[str, ...] | None]:
    """Per row the compared fields that differ from what a readable target has; None if it lacks the key."""
    shape = destination.shape
    names = [field.name for field in shape.fields]
    compared = [field.name for field in shape.fields if field.compared]
    held = destination.read(replace(batch, operation="delete"))
    for there, values, document in zip(held, batch.tuples(), batch.documents(), strict=True):
        here = dict(zip(names, values[len(shape.key) :], strict=True))
        written = json.loads(document[-1], parse_float=Decimal)
        yield (
            None
            if there is None
            else tuple(name for name in compared if _differs(there, here, written, name))
        )


def note(names: Sequence[str], updates: int, read: int) -> str:
    listed = ", ".join(names)
    what = "column {} differs" if len(names) == 1 else "columns {} differ"
    return (
        f"{updates} of {read} rows are updates, and {what.format(listed)} in every one that was compared:"
        f" if that is no reason to send a row, set changes: {{hash: {{ignore: [{listed}]}}}}"
    )


def _differs(
    there: Mapping[str, Any], here: Mapping[str, Any], document: Mapping[str, Any], name: str
) -> bool:
    """A target returns a value in the form of its driver or as text; every form is equal."""
    held, value, written = there.get(name), here[name], document.get(name)
    texts = (str(value), str(written), json.dumps(written, default=str))
    return held not in (value, written) and str(held) not in texts
