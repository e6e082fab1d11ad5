"""Records read and written where others may have changed them: many in one $batch, each by its ETag.

It makes parts of a $batch and reads their answers; `conditional` decides what is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from retl.destinations.batch import ABSENT, PRESENT, Kind, RowResult, Shape
from retl.destinations.conflict import BUSY
from retl.destinations.http.cells import Cast, exact
from retl.destinations.http.conditional import Sending, Told
from retl.destinations.http.finding import with_version
from retl.destinations.http.objects import Object, Version
from retl.destinations.value import Held
from retl.destinations.verdicts import Row
from retl.errors import DefinitionError, Poisoned
from retl.net.messages import Reply, Request

Headers = tuple[tuple[str, str], ...]
Values = tuple[Any, ...]
Make = Callable[[Values, str, str, Headers], Request]  # a part: row, method, query, headers
Ask = Callable[[Mapping[int, Request]], Mapping[int, tuple[RowResult, Reply]]]  # by row number
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_SHOWN = ("Prefer", "return=representation")


def value(shape: Shape) -> Object:
    """DefinitionError CONFLICTS_UNSUPPORTED for a field that cannot be read back."""
    if shape.cautious and (lookups := [one.name for one in shape.compared if "@" in one.name]):
        raise DefinitionError(
            "CONFLICTS_UNSUPPORTED",
            f"{lookups[0]} is read under another name than it is written, so edits of it cannot be seen",
            hint="write lookups in a sync of their own, with `conflicts: warehouse_wins`",
        )
    return Object(shape, None, Version(at="@odata.etag"), Cast())


class Records:
    """The records of rows. `begin` says which rows they are of."""

    def __init__(self, of: Object, make: Make, ask: Ask) -> None:
        self._value, self._make, self._ask = of, make, ask
        shape = of.shape
        names = [*(one.name for one in (*shape.key, *shape.fields)), *(one.target for one in shape.newest)]
        self._select = f"?$select={','.join(dict.fromkeys(one for one in names if '@' not in one))}"
        self._rows: Sequence[Values] = ()

    def begin(self, rows: Sequence[Values]) -> None:
        self._rows = rows

    def read(self, numbers: Sequence[int]) -> list[Reply | RowResult | None]:
        """The record of each row as it was answered; None if there is none."""
        found = self._all({n: (self._rows[n][: len(self._value.shape.key)], "GET", ()) for n in numbers})
        return [None if one == ABSENT else reply if one.kind is Kind.WRITTEN else one for one, reply in found]

    def look(self, rows: Sequence[Row]) -> list[Held | RowResult]:
        found = self.read([row.number for row in rows])
        return [self._value.held(one) if isinstance(one, Reply) else one for one in found]

    def send(self, rows: Sequence[Sending]) -> list[Told]:
        parts: dict[int, tuple[Values, str, Headers] | RowResult] = {}
        for one in rows:
            try:
                parts[one.row.number] = self._part(one)
            except Poisoned as error:
                parts[one.row.number] = RowResult(Kind.REJECTED, error.code, error.message)
        return [self._told(one, *found) for one, found in zip(rows, self._all(parts), strict=True)]

    def first(self, one: Sending | None, number: int) -> Request:
        """What is sent first for a row: it, or the question for its record."""
        row, method, headers = (self._rows[number], "GET", ()) if one is None else self._part(one)
        return self._made(row, method, headers)

    def _told(self, one: Sending, result: RowResult, reply: Reply) -> Told:
        if result.kind is not Kind.WRITTEN:
            return Told(PRESENT if result == BUSY and one.creates else result)
        return Told(result, self._value.held(reply, written=True))

    def _part(self, one: Sending) -> tuple[Values, str, Headers]:
        row, width = self._rows[one.row.number], len(self._value.shape.key)
        if one.creates:
            condition = ("If-None-Match", "*")
        else:
            version = with_version((), one.version, 0)[0]
            condition = ("If-Match", msgspec.json.decode(version, type=str))
        if one.deletes and len(row) == width:
            return row, "DELETE", (condition,)
        if not one.deletes and one.names != one.row.texts.keys():
            members = _MEMBERS.decode(row[width])
            kept = {name: member for name, member in members.items() if name in one.names}
            row = (*row[:width], exact.encode(kept).decode())
        return row, "PATCH", (condition, _SHOWN)

    def _all(
        self, parts: Mapping[int, tuple[Values, str, Headers] | RowResult]
    ) -> list[tuple[RowResult, Reply]]:
        """What became of these parts, in their order."""
        requests: dict[int, Request] = {}
        ends: dict[int, tuple[RowResult, Reply]] = {}
        for number, part in parts.items():
            try:
                if isinstance(part, RowResult):
                    ends[number] = part, Reply(0, {})
                else:
                    requests[number] = self._made(*part)
            except Poisoned as error:
                ends[number] = RowResult(Kind.REJECTED, error.code, error.message), Reply(0, {})
        ends |= self._ask(requests) if requests else {}
        return [ends[number] for number in parts]

    def _made(self, row: Values, method: str, headers: Headers) -> Request:
        return self._make(row, method, "" if method == "DELETE" else self._select, headers)
