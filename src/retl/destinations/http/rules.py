"""How a target tells what became of the rows, as data: one shape for hand-written syncs and for presets.

Knows paths into JSON and nothing of HTTP's own words; `outcome` applies it to an answer.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from retl.model import Definition, Duration
from retl.net.lookup import Match, Paths
from retl.net.waits import HeaderWait, Usage


class Case(Definition):
    """What answers of some kind mean for all their rows, whatever the table says; the first that fits
    decides. `written`: done, also where it was done before. `kept`: the target has the key already.
    `absent`: it has not got it. `some_absent`: one of them, which is not named, it has not got. `refused`:
    something in it is bad and nothing was applied. `spent`: the day's budget is gone."""

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
    """How an item of an answer names its row: the first of the paths `at` that holds something, which is
    the row's `to`: `$key`, one field of the key, or `$row_no`. In `at` a step `$key` is the name of the
    key's field."""

    at: Paths = ("",)
    to: str = "$key"


class Rules(Definition):
    """How a target tells what became of the rows; paths are dotted, numbers index lists.

    rows: `all_or_nothing` = an ok is an ok for all · `none` = the same, and the body is not even read ·
    `positional` = one item per row, in their order · `listed` = one item per row, named by `match` ·
    `errors_by_index`, `errors_by_value` = one item per bad row, named by the number at `index` (which may
    be the one number in a pointer such as /data/3/email) or by `match` · `counts_only` = no row is named.
    `at` is where that list is, or those lists are; `failed` where a number says how many rows are bad,
    named or not; `retry_at` where rows are named that were not looked at; `ref` where an item, or the answer
    about one row, has the target's own id of it (under `all_or_nothing` items are told by `match`).
    `row_ok`, `row_kept`, `row_absent` (of updates and deletes), `row_retry` judge an item, and `inside` is
    the place of a base64 JSON in it.
    """

    ok: tuple[int, ...] = (200, 201, 202, 204)
    partial: tuple[int, ...] = ()
    ok_when: Match | None = None  # an ok without it is a refusal
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
    wait: Duration | None = None  # after a 429 that does not say how long
    usage: Usage | None = None
    budget: Usage | None = None  # the same of the day's: used up, it ends the run
    cases: tuple[Case, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Rules:
        if self.rows in ("all_or_nothing", "none") and self.partial:
            raise ValueError("`partial` needs `rows` that say which rows are meant")
        if self.rows == "positional" and self.row_ok is None:
            raise ValueError("`rows: positional` needs `row_ok`: what an item says of a row that was written")
        if (self.errors_at or self.retry_at) is not None and self.rows != "listed":
            raise ValueError("`errors_at` and `retry_at` go with `rows: listed`")
        if self.rows == "counts_only" and self.failed is None:
            raise ValueError("`rows: counts_only` needs `failed`: where the number of bad rows is")
        return self
