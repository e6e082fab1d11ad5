"""How to read the results of rows from an answer, as data: one model for hand-written syncs and presets.

It knows paths into JSON and nothing of HTTP; `outcome` applies it to an answer.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from retl.model import Definition, Duration
from retl.net.lookup import Match, Paths
from retl.net.waits import HeaderWait, Usage


class Case(Definition):
    """What certain answers mean for all their rows; the first case that fits overrides the table of
    statuses. `written`: done, now or before. `kept`: the target already has the key. `absent`: it lacks the
    key. `some_absent`: it lacks one of the keys and does not say which. `refused`: part of the request is bad
    and nothing was applied. `spent`: the day's budget is used up."""

    status: tuple[int, ...]
    when: Match | None = None
    means: Literal[
        "written",
        "kept",
        "absent",
        "some_absent",
        "refused",
        "unavailable",
        "unknown",
        "systemic",
        "spent",
    ]


class Identity(Definition):
    """How an item of an answer names its row: the first value found at the paths `at` equals the row's
    `to`: `$key`, one field of the key, or `$row_no`. In `at` a step `$key` is the name of the key's
    field."""

    at: Paths = ("",)
    to: str = "$key"


class Rules(Definition):
    """How to read the results of rows from an answer; paths are dotted, numbers index lists.

    rows: `all_or_nothing` = a success is one for all rows · `none` = the same, and the body is not read ·
    `positional` = one item per row, in their order · `listed` = one item per row, named by `match` ·
    `errors_by_index`, `errors_by_value` = one item per bad row, named by the number at `index` (also the
    only number in a pointer such as /data/3/email) or by `match` · `counts_only` = no row is named.
    `at`: the path or paths of these items. `failed`: of the number of bad rows, named or not. `retry_at`:
    of the rows that were not processed. `ref`: of the external id in an item, or in the answer for one row
    (with `all_or_nothing` items name their rows by `match`). `row_ok`, `row_kept`, `row_absent` (for updates
    and deletes) and `row_retry` test an item. `inside`: of base64 JSON in it.
    """

    ok: tuple[int, ...] = (200, 201, 202, 204)
    partial: tuple[int, ...] = ()
    ok_when: Match | None = None  # a success that does not match is a refusal
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
    failed: str | None = None
    retry_at: str | None = None  # listed only
    inside: str | None = None
    index: str = "index"
    match: Annotated[
        tuple[Identity, ...],
        Field(min_length=1),
        BeforeValidator(lambda value: value if isinstance(value, list | tuple) else (value,)),
    ] = (Identity(),)
    row_ok: Match | None = None
    row_kept: Match | None = None
    row_absent: Match | None = None
    row_retry: Match | None = None
    code: Paths = ("error.code", "errors.0.code", "code")
    reason: Paths = ("error.message", "errors.0.message", "message", "detail", "error")
    ref: str | None = None
    retry_after: HeaderWait | None = None
    wait: Duration | None = None  # after a 429 without a time to wait
    usage: Usage | None = None
    budget: Usage | None = None  # the same for the day's quota: the run ends when it is used up
    cases: tuple[Case, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Rules:
        if self.rows in ("all_or_nothing", "none") and self.partial:
            raise ValueError("`partial` needs a value of `rows` that names single rows")
        if self.rows == "positional" and self.row_ok is None:
            raise ValueError("`rows: positional` needs `row_ok`: how an item of a written row looks")
        if (self.errors_at or self.retry_at) is not None and self.rows != "listed":
            raise ValueError("`errors_at` and `retry_at` need `rows: listed`")
        if self.rows == "counts_only" and self.failed is None:
            raise ValueError("`rows: counts_only` needs `failed`: the path of the number of bad rows")
        return self
