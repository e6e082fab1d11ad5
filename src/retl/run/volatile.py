"""Which fields make nearly every row an update? Often a load time, which says nothing of the row itself.

A sample of the planned updates is held beside what a readable target has. Fields are named, values never; and
nothing is refused: that a price list changes every day is no mistake.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from retl.destinations.api import Destination
from retl.destinations.batch import Batch

SAMPLE = 200  # updates that are held beside the target's rows
FEW = 20  # so few updates are nobody's concern
NEARLY_ALL = Decimal("0.9")  # of the rows read

_Forms = tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]


def is_suspect(updates: int, read: int) -> bool:
    """Are so many rows updates that one field might be the reason for them all?"""
    return updates > FEW and updates >= NEARLY_ALL * read


def fields(destination: Destination[Any], batch: Batch) -> list[str]:
    """The compared fields that differ from the target's in every row of the batch that the target has, in
    their order; none if all of them do, for then the rows are simply other ones."""
    compared = [field.name for field in destination.shape.fields if field.compared]
    pairs = list(_pairs(destination, batch))
    always = [name for name in compared if pairs and all(_differs(*pair, name) for pair in pairs)]
    return always if len(always) < len(compared) else []


def note(names: Sequence[str], updates: int, read: int) -> str:
    listed = ", ".join(names)
    what = "column {} differs" if len(names) == 1 else "columns {} differ"
    return (
        f"{updates} of {read} rows are updates, and {what.format(listed)} in every one that was looked at:"
        f" if that is no reason to send a row, say changes: {{hash: {{ignore: [{listed}]}}}}"
    )


def _pairs(destination: Destination[Any], batch: Batch) -> Iterator[_Forms]:
    """Per row that the target has: its fields there, as Python values here, and as JSON here."""
    shape = destination.shape
    names = [field.name for field in shape.fields]
    held = destination.read(replace(batch, operation="delete"))
    for there, values, document in zip(held, batch.tuples(), batch.documents(), strict=True):
        if there is not None:
            here = dict(zip(names, values[len(shape.key) :], strict=True))
            yield there, here, json.loads(document[-1], parse_float=Decimal)


def _differs(
    there: Mapping[str, Any], here: Mapping[str, Any], document: Mapping[str, Any], name: str
) -> bool:
    """Targets hand a value out as their driver or their text has it: any of its forms is the value."""
    held, value, written = there.get(name), here[name], document.get(name)
    texts = (str(value), str(written), json.dumps(written, default=str))
    return held not in (value, written) and str(held) not in texts
