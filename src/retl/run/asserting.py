"""`assert:` after a delivery: does the target hold what the sync says it must hold?

It runs when everything is confirmed, and takes nothing back: a run whose assertion fails is FAILED, and what
it delivered stays confirmed. Only counts and ages leave the target, no values of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from retl.destinations.api import Destination
from retl.errors import DefinitionError, Failure, TargetError
from retl.observe import log
from retl.observe.summary import duration
from retl.project.asserts import Assertion
from retl.project.definitions import Sync
from retl.run.job import Job
from retl.run.plan import Plan


class Asserted(Struct, frozen=True):
    """An assertion, and what was found."""

    name: str
    passed: bool
    found: str


def require(sync: Sync, destination: type[Destination[Any]]) -> None:
    """DefinitionError ASSERT_UNSUPPORTED if the target cannot be asked."""
    if sync.asserts and destination.ask is Destination.ask:
        raise DefinitionError(
            "ASSERT_UNSUPPORTED",
            "this target cannot be asked: `assert` needs a database (PostgreSQL, MySQL, SQLite, DuckDB)",
            hint="`checks` asks the mart before the delivery",
            where=f"sync {sync.name}",
        )


def ask(job: Job, plan: Plan) -> list[Asserted]:
    """What each assertion of the sync found. A target that does not answer is a failed assertion."""
    found = []
    with closing(job.lane(plan.field_map.shape)) as destination:
        for number, one in enumerate(job.sync.asserts, 1):
            if one.count == "mart" and not job.options.whole:
                continue  # only a part of the mart may be there
            found.append(_asked(job, plan, destination, one, one.name or f"assertion {number}"))
            log.event("asserted", name=found[-1].name, passed=found[-1].passed, found=found[-1].found)
    return found


def failure(found: Sequence[Asserted]) -> Failure | None:
    """The error of a run if an assertion failed."""
    failed = [one for one in found if not one.passed]
    if not failed:
        return None
    listed = "; ".join(f"{one.name}: {one.found}" for one in failed)
    return Failure(
        "ASSERT_FAILED",
        f"{len(failed)} of {len(found)} assertions do not hold at the target: {listed}",
        hint="what was delivered stays confirmed: look into the target, the mart or the assertion",
    )


def documents(found: Sequence[Asserted]) -> list[dict[str, Any]]:
    return [asdict(one) for one in found]


def _asked(job: Job, plan: Plan, destination: Destination[Any], one: Assertion, name: str) -> Asserted:
    again = job.pace.retrying(job.sync.retry, job.stop.event)
    try:
        value = again(lambda: destination.ask(_sql(destination, one)))
    except TargetError as problem:
        return Asserted(name, passed=False, found=f"the target did not answer ({problem.code})")
    if one.fresh is not None:
        allowed = f"{duration(one.fresh.max_age)} are allowed"
        if value is None:
            return Asserted(name, passed=False, found=f"{one.fresh.column} has no time, {allowed}")
        age = max(0.0, float(value))
        found = f"{one.fresh.column} is {duration(age)} old, {allowed}"
        return Asserted(name, passed=age <= one.fresh.max_age, found=found)
    rows = int(value or 0)
    if one.sql is not None:
        return Asserted(name, passed=rows == 0, found=f"{rows:,} rows, none are allowed")
    least, most = _limits(one, plan)
    allowed = (
        f"{least:,}" if least == most else f"{least:,} to {'any number' if most is None else f'{most:,}'}"
    )
    passed = rows >= least and (most is None or rows <= most)
    return Asserted(name, passed=passed, found=f"{rows:,} rows, {allowed} are expected")


def _limits(one: Assertion, plan: Plan) -> tuple[int, int | None]:
    if one.count == "mart" or one.count is None:
        return plan.facts.total, plan.facts.total
    return one.count.min or 0, one.count.max


def _sql(destination: Destination[Any], one: Assertion) -> str:
    if one.sql is not None:
        return f"SELECT count(*) FROM ({one.sql}\n) AS retl_asserted"
    if one.fresh is not None:
        return destination.age_sql(one.fresh.column)
    return f"SELECT count(*) FROM {destination.relation}"
