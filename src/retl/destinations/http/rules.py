"""How to read the results of rows from an answer, as data: one model for hand-written syncs and presets.

It knows paths into JSON and nothing of HTTP; `outcome` applies it to an answer.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from retl.model import Definition, Duration
from retl.net.lookup import Found, Match, Paths, every
from retl.net.waits import HeaderWait, Usage

_NUMBER = re.compile(r"[0-9]{1,18}")


def _located(value: Any) -> Any:
    """A path as a Found."""
    return {"at": value} if isinstance(value, str) else value


class Case(Definition):
    """What certain answers mean for all their rows; the first case that fits overrides the table of statuses.
    `written`: done, now or before. `kept`: the target already has the key. `exists`: the same, and its id is
    at `ref`. `made` (of an `insert` beside `find`): created with its key alone, its id is at `ref`, and
    `update` writes its fields at once. `absent`: it lacks the key (of an update or a delete; a write that
    creates passes this case by). `some_absent`: it lacks one of the keys and does not say which. `changed`:
    its object has another version than the request names; 412 means that without a case. `refused`: part of
    the request is bad and nothing was applied. `spent`: the day's budget is used up. `wait`: how long nothing
    is sent after `unavailable` if the answer names no time."""

    status: tuple[int, ...]
    when: Match | None = None
    means: Literal[
        "written",
        "kept",
        "exists",
        "made",
        "absent",
        "some_absent",
        "changed",
        "refused",
        "unavailable",
        "unknown",
        "systemic",
        "spent",
    ]
    wait: Duration | None = None
    ref: Annotated[Found | None, BeforeValidator(_located)] = None

    @model_validator(mode="after")
    def _fits(self) -> Case:
        if self.wait is not None and self.means != "unavailable":
            raise ValueError("`wait` needs `means: unavailable`")
        if (self.ref is None) == (self.means in ("exists", "made")):
            raise ValueError(
                "`means: exists` (or `made`) needs `ref`: where the answer has the id, and nothing else does"
            )
        return self


def _listed(value: Any) -> Any:
    """One match, or several."""
    return value if isinstance(value, list | tuple) else (value,)


def _counted(value: Any) -> Any:
    """A path, or several, as a Count."""
    return {"at": value} if isinstance(value, str | list | tuple) else value


class Identity(Definition):
    """How an item of an answer names its row: the first value found at the paths `at` equals the row's
    `to`: `$key`, one field of the key, or `$row_no`. In `at` a step `$key` is the name of the key's
    field."""

    at: Paths = ("",)
    to: str = "$key"


class Count(Definition):
    """The number of bad rows, as a number or as text: the sum of the values at the paths `at`. A path with no
    value counts as `absent`; without that the count is unknown."""

    at: Paths
    absent: Annotated[int, Field(ge=0)] | None = None

    def of(self, content: Any) -> int | None:
        """The count in an answer; None if it is unknown."""
        total = 0
        for path in self.at:
            found = every(content, path)
            if not found and self.absent is None:
                return None
            total += self.absent or 0 if not found else 0
            for value in found:
                if type(value) not in (int, str) or not _NUMBER.fullmatch(str(value)):
                    return None
                total += int(value)
        return total


class Rules(Definition):
    """How to read the results of rows from an answer; paths are dotted, numbers index lists, and in `at` and
    `failed` `*` is each item of a list or each member of an object.

    rows: `all_or_nothing` = a success is one for all rows · `none` = the same, and the body is not read ·
    `positional` = one item per row, in their order · `listed` = one item per row, named by `match` ·
    `errors_by_index`, `errors_by_value` = one item per bad row, named by the number at `index` (also the
    only number in a pointer such as /data/3/email, or what a `pattern` finds in it; "" = the item is the
    number, `$name` = it is the item's name in an object; `first` is the number of the first row there) or by
    `match` · `counts_only` = no row is named.
    `at`: the path or paths of these items. `failed`: of the number of bad rows, named or not: the rows of
    which some are bad are sent again in halves, if twice is once. `retry_at`:
    of the rows that were not processed. `ref`: of the external id in an item, or in the answer for one row
    (with `all_or_nothing` items name their rows by `match`). `row_ok`, `row_kept`, `row_absent` (for updates
    and deletes), `row_changed` (somebody else wrote it) and `row_retry` test an item. `inside`: of base64
    JSON in it. In the paths of an item a step `*` is the only member of an object, whatever its name.
    """

    ok: tuple[int, ...] = (200, 201, 202, 204)
    partial: tuple[int, ...] = ()
    ok_when: Annotated[tuple[Match, ...], BeforeValidator(_listed)] = ()  # without each of them: a refusal
    rows: Literal[
        "all_or_nothing",
        "none",
        "positional",
        "listed",
        "errors_by_index",
        "errors_by_value",
        "counts_only",
    ] = "all_or_nothing"
    at: Paths = ("",)
    errors_at: str | None = None  # listed only: a second list, of bad rows
    failed: Annotated[Count | None, BeforeValidator(_counted)] = None
    retry_at: str | None = None  # listed only
    inside: str | None = None
    index: Annotated[Found, BeforeValidator(_located)] = Found(at="index")
    first: int = 0
    match: Annotated[
        tuple[Identity, ...],
        Field(min_length=1),
        BeforeValidator(lambda value: value if isinstance(value, list | tuple) else (value,)),
    ] = (Identity(),)
    row_ok: Match | None = None
    row_kept: Match | None = None
    row_absent: Match | None = None
    row_changed: Match | None = None
    row_retry: Match | None = None
    code: Paths = ("error.code", "errors.0.code", "code")
    reason: Paths = ("error.message", "errors.0.message", "message", "detail", "error")
    ref: str | None = None
    retry_after: HeaderWait | None = None
    wait: Duration | None = None  # after a throttle (429, a case, a row's) that names no time to wait
    usage: Usage | None = None
    budget: Usage | None = None  # the same for the day's quota: the run ends when it is used up
    cases: tuple[Case, ...] = ()

    @property
    def of_looks(self) -> Rules:
        """How an answer to a question is read, such as for a job: without rows, under the same limits."""
        limits = tuple(one for one in self.cases if one.means in ("unavailable", "spent", "systemic"))
        own = ("code", "reason", "retry_after", "wait")
        return Rules(ok=(200,), cases=limits).model_copy(update={name: getattr(self, name) for name in own})

    @model_validator(mode="after")
    def _fits(self) -> Rules:
        if self.rows in ("all_or_nothing", "none") and self.partial:
            raise ValueError("`partial` needs a value of `rows` that names single rows")
        if self.rows == "positional" and self.row_ok is None:
            raise ValueError("`rows: positional` needs `row_ok`: how an item of a written row looks")
        if (self.errors_at or self.retry_at) is not None and self.rows != "listed":
            raise ValueError("`errors_at` and `retry_at` need `rows: listed`")
        if self.first and self.rows != "errors_by_index":
            raise ValueError("`first` needs `rows: errors_by_index`: the number of the first row there")
        if self.rows == "counts_only" and self.failed is None:
            raise ValueError("`rows: counts_only` needs `failed`: the path of the number of bad rows")
        return self
