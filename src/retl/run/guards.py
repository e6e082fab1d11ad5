"""Facts → refusals. Pure: it reads nothing, writes nothing and waits for nothing.

All guards are checked before the first write; refusals are recorded with the run. `--accept CODE` ignores one
guard for one run. `--allow-deletes N` allows deletes if N is exactly the planned number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime, timedelta
from decimal import Decimal

from msgspec import Struct, field

from retl.engine.statistics import Drifted
from retl.observe.summary import counted
from retl.project.definitions import Guards
from retl.sources.dbt_results import TESTED, Build

GUARDS = (  # the codes for --accept, in the order of the documentation
    "REJECT_RATE",
    "DELETE_RATE",
    "SCOPE_GREW",
    "EMPTY_SOURCE",
    "ROW_DROP",
    "IDENTITY_CHANGED",
    "SOURCE_DRIFT",
    "TARGET_DRIFT",
    "CHECK_FAILED",
    "DRIFT",
    "TARGET_LOST",
    "TARGET_NOT_EMPTY",
    "STATE_LOST",
    "ORPHANED_STATE",
    "STATE_BEHIND",
    "FIRST_RUN",
    "DBT_FAILED",
    "DBT_TESTS",
    "DBT_STALE",
    "DBT_UNKNOWN",
)
DELETES_ALWAYS_PASS = 10  # this many deletes or fewer are not judged
FEW_REJECTS = 10  # so many new rejects of a run that looks only at some keys are not judged
LOST_SHARE = 0.02  # of the sampled confirmed keys
FEW_REMOVED = 2  # so many rows of a small table may be missing where people's edits count


class Refusal(Struct, frozen=True):
    """Why a run must not write: a CODE, one sentence, and what to do."""

    code: str
    message: str
    hint: str | None = None


class Verdict(Struct, frozen=True):
    """What a guard found, and what it allows: `passes`, `accepted` for this run, or `refuses`."""

    code: str
    found: str
    limit: str
    verdict: str


class Facts(Struct, frozen=True):
    """The facts before the first write. Counts are rows; None: does not apply to this run."""

    read: int
    total: int  # rows of the mart before --key, --where and a watermark
    new_rejects: int
    baseline_rows: int
    old_rejects: int = 0  # rejected rows that were open or dismissed rejects before
    left_out: int = 0  # rejected rows of a mart that is sent as a whole
    deletes: int = 0
    deletes_on: bool = False
    scope_known: int | None = None  # rows of the baseline in the scope of deletes; None: all of them
    scope_read: bool = True  # a row of the mart is in it
    scope_grown: int = 0  # planned deletes that were outside it at the last run
    reject_codes: tuple[str, ...] = ()  # the most frequent first
    append: str | None = None  # the sync, if it appends
    full_read: bool = True  # no --key, --where, --limit; not append; changes hash or all
    last_read: int | None = None
    inserts: int = 0
    matched: int = 0  # rows with a key in the baseline
    sampled: int = 0
    lost: int = 0
    spared: int = 0  # of those that are lost: people may have removed so many
    taken: bool = False  # another ledger has delivered to the target since this one last did
    failed_checks: tuple[str, ...] = ()
    drifted: Mapping[str, Drifted] = field(default_factory=dict)  # by column, since the last good run
    allow_deletes: int | None = None
    builds: tuple[Build, ...] = ()  # dbt's results of the models that are read
    max_age: float | None = None  # seconds since its run
    now: datetime | None = None  # on the ledger's clock
    unproved: int | None = None  # rows that a first run would send, where a lost state would look the same

    @property
    def deletable(self) -> int:
        """The rows of the baseline that would be deleted if the mart had none."""
        return self.baseline_rows if self.scope_known is None else self.scope_known


def judge(facts: Facts, guards: Guards, accepted: Collection[str] = ()) -> list[Refusal]:
    """All refusals that were not accepted, in the order of GUARDS."""
    return [refusal for refusal in _refusals(facts, guards) if refusal.code not in accepted]


def verdicts(
    facts: Facts, guards: Guards, refusals: Collection[Refusal], accepted: Collection[str] = ()
) -> list[Verdict]:
    """Every guard that measured something, in the order of GUARDS; then the other refusals."""
    refused = {one.code: one.message for one in refusals}
    measured = {code: (found, limit) for code, found, limit in _measured(facts, guards)}
    failed = {one.code for one in _refusals(facts, guards)}
    found = []
    for code in (*GUARDS, *(code for code in refused if code not in GUARDS)):
        if code in refused or code in measured:
            what, limit = measured.get(code, (refused.get(code, ""), ""))
            passed = "accepted" if code in failed and code in accepted else "passes"
            found.append(Verdict(code, what, limit, "refuses" if code in refused else passed))
    return found


def _measured(facts: Facts, guards: Guards) -> Iterator[tuple[str, str, str]]:
    """What the guards with a limit counted."""
    new = f"{facts.new_rejects:,}{' new' * (facts.old_rejects > 0)}"
    yield "REJECT_RATE", f"{new} of {facts.read:,}", f"{guards.max_reject_rate:g}"
    if facts.deletes_on:
        limit = f"{guards.max_delete_rate:g}"
        if facts.allow_deletes is not None:
            limit = f"exactly {facts.allow_deletes:,}"
        elif guards.max_delete_rows is not None:
            limit += f", {guards.max_delete_rows:,} rows"
        elif facts.deletes <= DELETES_ALWAYS_PASS and _over(
            facts.deletes, guards.max_delete_rate, facts.deletable
        ):
            limit += f"; {DELETES_ALWAYS_PASS} rows always pass"
        yield "DELETE_RATE", f"{facts.deletes:,} of {facts.deletable:,}", limit
    if facts.deletes_on or guards.min_rows is not None:
        yield "EMPTY_SOURCE", f"{facts.total:,} rows", f"at least {guards.min_rows or 1:,}"
    if facts.full_read and facts.read and facts.last_read:
        drop = max(0, facts.last_read - facts.read)
        yield "ROW_DROP", f"{drop:,} of {facts.last_read:,}", f"{guards.max_row_drop:g}"
    if facts.sampled:
        yield "TARGET_LOST", f"{facts.lost:,} of {facts.sampled:,} sampled", f"{LOST_SHARE:g}"
    if facts.unproved is not None:
        yield "FIRST_RUN", f"{facts.unproved:,} rows", f"{guards.max_first_run:,}"


def is_lost(sampled: int, lost: int, spared: int = 0) -> bool:
    """Whether a target that lacks `lost` of `sampled` delivered keys was emptied or replaced. Of a small
    table one row is enough, because it may be what a restored one lacks; `spared`: so many may be missing."""
    return lost > spared and _over(lost, LOST_SHARE, sampled)


def _over(count: int, rate: float, total: int) -> bool:
    """Is `count` more than `rate` of `total`? Exactly the limit is allowed, so no binary fractions here."""
    return count > Decimal(str(rate)) * total


def _refusals(facts: Facts, guards: Guards) -> Iterator[Refusal]:
    for build in facts.builds:
        yield from _build(build, facts)
    yield from _rejected(facts, guards)
    yield from _volume(facts, guards)
    if facts.unproved is not None and facts.unproved > guards.max_first_run:
        yield Refusal(
            "FIRST_RUN",
            f"this ledger has no history and the target keeps no trace: {facts.unproved} rows would be sent,"
            f" more than max_first_run ({guards.max_first_run}), and after a lost state all of them twice",
            "if nothing was sent before: --accept FIRST_RUN; `first_run: adopt` takes today's rows as sent",
        )
    yield from _scope(facts)
    told = facts.deletable > DELETES_ALWAYS_PASS  # fewer rows may well be others from one day to the next
    if facts.full_read and told and facts.inserts and not facts.matched:
        yield Refusal(
            "IDENTITY_CHANGED",
            f"all {facts.inserts} keys are new and all {facts.deletable} delivered keys are gone",
            "if the key really changed, --accept IDENTITY_CHANGED; otherwise fix `key` or the mart",
        )
    for check in facts.failed_checks:
        yield Refusal("CHECK_FAILED", check, "fix the mart, or --accept CHECK_FAILED")
    yield from _drift(facts, guards)
    if is_lost(facts.sampled, facts.lost, facts.spared):
        yield Refusal(
            "TARGET_LOST",
            f"the target lacks {facts.lost} of {facts.sampled} sampled keys that were delivered",
            "it was emptied, restored or replaced"
            + ", and another ledger has delivered here since this one last did" * facts.taken
            + ": "
            + (
                f"`retl state rebuild {facts.append}` finds the rows to append again"
                if facts.append
                else "`--full` delivers every row again"
            ),
        )


def _rejected(facts: Facts, guards: Guards) -> Iterator[Refusal]:
    if _over(facts.new_rejects, guards.max_reject_rate, facts.read):
        yield Refusal(
            "REJECT_RATE",
            f"{facts.new_rejects} of {facts.read} rows{' newly' if facts.old_rejects else ''} break the"
            f" contract or have no usable key, more than max_reject_rate ({guards.max_reject_rate:g})"
            + (f": {', '.join(facts.reject_codes)}" if facts.reject_codes else "")
            + f"; {facts.old_rejects} more were rejects before and do not count" * (facts.old_rejects > 0),
            "see the reasons with `retl show`, fix the mart or the contract, or --accept REJECT_RATE",
        )
    elif facts.left_out:
        yield Refusal(
            "REJECT_RATE",
            f"{facts.left_out} of {facts.read} rows break the contract or have no usable key, and a snapshot"
            f" has every row: {', '.join(facts.reject_codes)}",
            "fix the mart or the contract, or --accept REJECT_RATE publishes it without them",
        )


def _volume(facts: Facts, guards: Guards) -> Iterator[Refusal]:
    too_few = guards.min_rows is not None and facts.total < guards.min_rows
    empty = facts.total == 0 or not facts.scope_read
    unbuilt = empty and facts.deletes_on and facts.deletable  # else nothing could be deleted
    if unbuilt or too_few:
        wanted = f"at least {guards.min_rows}" if too_few else "some, since `deletes` is on"
        rows = "no rows in the scope of its deletes" if facts.total and not too_few else f"{facts.total} rows"
        yield Refusal("EMPTY_SOURCE", f"the mart has {rows}; expected {wanted}", "was the mart built?")
    last = facts.last_read or 0
    if facts.full_read and facts.read and last and _over(last - facts.read, guards.max_row_drop, last):
        yield Refusal(
            "ROW_DROP",
            f"the mart fell from {last} to {facts.read} rows, more than max_row_drop"
            f" ({guards.max_row_drop:g})",
            "was the mart built whole? If so, --accept ROW_DROP",
        )
    over_rate = facts.deletes > DELETES_ALWAYS_PASS and _over(
        facts.deletes, guards.max_delete_rate, facts.deletable
    )
    over_rows = guards.max_delete_rows is not None and facts.deletes > guards.max_delete_rows
    planned = f"{counted(facts.deletes, 'delete', 'is')} planned"
    if facts.allow_deletes is not None and facts.allow_deletes != facts.deletes:
        yield Refusal(
            "DELETE_RATE",
            f"--allow-deletes says {facts.allow_deletes}, but {planned}",
            f"if that is right: --allow-deletes {facts.deletes}",
        )
    elif (over_rate or over_rows) and facts.allow_deletes is None:
        limit = (
            f"max_delete_rows ({guards.max_delete_rows})"
            if over_rows
            else (f"max_delete_rate ({guards.max_delete_rate:g}) of {facts.deletable}")
        )
        yield Refusal(
            "DELETE_RATE",
            f"{planned}, more than {limit}",
            f"if that is right: --allow-deletes {facts.deletes}",
        )


def _drift(facts: Facts, guards: Guards) -> Iterator[Refusal]:
    for wanted in guards.drift:
        found = facts.drifted.get(wanted.column)
        if found is None:
            continue
        judged = (
            ("the values: population stability index", found.psi, "max_psi", wanted.max_psi),
            ("the share of NULL: by", found.null_rate, "max_null_rate_change", wanted.max_null_rate_change),
            ("the number of values: by", found.distinct, "max_distinct_change", wanted.max_distinct_change),
            ("the mean: by", found.mean, "max_mean_change", wanted.max_mean_change),
        )
        for what, value, name, limit in judged:
            if value is not None and limit is not None and abs(value) > limit:
                yield Refusal(
                    "DRIFT",
                    f"{wanted.column} changed since the last good run: {what} {value:.3g}, more than {name}"
                    f" ({limit:g})",
                    "fix the mart, or --accept DRIFT, and later runs compare with this one",
                )


def _scope(facts: Facts) -> Iterator[Refusal]:
    if facts.scope_grown and facts.allow_deletes != facts.deletes:
        yield Refusal(
            "SCOPE_GREW",
            f"{facts.scope_grown} of {facts.deletes} planned deletes were outside `within` at the last run",
            f"`within` reaches further now; if that is right: --allow-deletes {facts.deletes}",
        )


def _build(build: Build, facts: Facts) -> Iterator[Refusal]:
    """Refusals by dbt's results for the mart; a missing result is not a good one."""
    if build.status is None:
        yield Refusal(
            "DBT_UNKNOWN",
            f"no result that dbt left says how the last run of the model {build.model} ended",
            "dbt keeps only its last command's results: use `dbt build`, test the model after `dbt run`, or"
            " keep the results of `dbt run` beside them as run_results.run.json; or --accept DBT_UNKNOWN",
        )
    elif build.status not in ("success", TESTED):
        skipped = build.status == "skipped"
        yield Refusal(
            "DBT_FAILED",
            f"dbt's last run of the model {build.model} ended with: {build.status}",
            ("what it reads, or a test of that, failed before it: dbt's output names it; " * skipped)
            + "fix the model and run dbt again, or --accept DBT_FAILED",
        )
    if build.failed_tests:
        yield Refusal(
            "DBT_TESTS",
            f"dbt's tests of {build.model} failed: {', '.join(build.failed_tests)}",
            "fix the mart, then `dbt build` or `dbt test` (`dbt run` repeats no test); or --accept DBT_TESTS",
        )
    if facts.max_age is None or facts.now is None:
        return
    if build.ended_at is None or facts.now - build.ended_at > timedelta(seconds=facts.max_age):
        last = "none" if build.ended_at is None else f"{build.ended_at:%Y-%m-%d %H:%MZ}"
        yield Refusal(
            "DBT_STALE",
            f"the model {build.model} is older than max_age; its last successful dbt run: {last}",
            "run `dbt build` (`dbt test` overwrites the results of `dbt run`), or --accept DBT_STALE",
        )
