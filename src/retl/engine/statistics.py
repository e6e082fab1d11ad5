"""Statistics of a column, and how far it drifted since an earlier run.

They are counts and shares, kept with the run. A value of a text column is kept as a digest only. They judge
nothing: guards do.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Any

from msgspec import Struct

from retl.engine.workspace import Workspace
from retl.values.sql import quoted

Statistics = Mapping[str, Any]  # rows, nulls, distinct, mean (numbers only), bounds, shares
VALUES = 50  # of a text column, the most frequent first; all others are one
BINS = 10  # of numbers: as many rows in each, when they are first measured
_LEAST = 0.0001  # the share of a bin that is empty: a logarithm needs more than 0
_NUMBERS = ("INT", "DECIMAL", "DOUBLE", "FLOAT", "BIGNUM")


class Drifted(Struct, frozen=True):
    """How a column changed. `psi`: population stability index, the sum over all bins of
    (share now - share then) · ln(share now / share then); below 0.1 is usually called stable, above 0.25 a
    shift (Siddiqi, Credit Risk Scorecards, 2006). The others are differences: of the share of NULL; of the
    number of values and of the mean, as fractions of what they were. None: there is nothing to compare."""

    psi: float | None
    null_rate: float | None
    distinct: float | None
    mean: float | None


def measure(
    workspace: Workspace, table: str, column: str, column_type: str, former: Statistics | None
) -> dict[str, Any]:
    """The statistics of a column. Numbers are counted in the bins of `former`, so that shares compare."""
    name = quoted(column)
    number = any(word in column_type.partition("(")[0] for word in _NUMBERS) and "[" not in column_type
    mean = f"avg(CAST({name} AS DOUBLE)) FILTER (isfinite(CAST({name} AS DOUBLE)))" if number else "NULL"
    rows, nulls, distinct, middle = workspace.one(
        f"SELECT count(*), count(*) - count({name}), count(DISTINCT {name}), {mean} FROM {table}"
    )
    found = {"rows": rows, "nulls": nulls, "distinct": distinct, "mean": middle}
    if number and (distinct > VALUES or (former or {}).get("bounds")):
        bounds = (former or {}).get("bounds") or _bounds(workspace, table, name)
        tests = " ".join(f"WHEN x < {bound!r}::DOUBLE THEN '{at}'" for at, bound in enumerate(bounds))
        bin_of = f"CASE {tests} ELSE '{len(bounds)}' END" if tests else "'0'"
        source = f"SELECT CAST({name} AS DOUBLE) AS x FROM {table} WHERE {name} IS NOT NULL"
        counted = workspace.run(f"SELECT {bin_of}, count(*) FROM ({source}) GROUP BY 1")
        return {**found, "bounds": bounds, "shares": dict(counted)}
    digest = f"left(sha256(CAST({name} AS VARCHAR)), 16)"
    counted = workspace.run(
        f"SELECT {digest}, count(*) AS n FROM {table} WHERE {name} IS NOT NULL"
        f" GROUP BY 1 ORDER BY n DESC, 1 LIMIT {VALUES}"
    )
    return {**found, "bounds": None, "shares": dict(counted)}


def compare(former: Statistics, now: Statistics) -> Drifted:
    """How a column changed between two runs."""
    return Drifted(
        psi=_psi(former, now) if former.get("bounds") == now.get("bounds") else None,
        null_rate=_share(now["nulls"], now["rows"]) - _share(former["nulls"], former["rows"]),
        distinct=_change(former["distinct"], now["distinct"]),
        mean=_change(former["mean"], now["mean"]),
    )


def _bounds(workspace: Workspace, table: str, name: str) -> list[float]:
    points = [number / BINS for number in range(1, BINS)]
    value = f"CAST({name} AS DOUBLE)"
    (found,) = workspace.one(
        f"SELECT quantile_cont({value}, {points}) FILTER (isfinite({value})) FROM {table}"
    )
    return sorted(set(found or []))


def _psi(former: Statistics, now: Statistics) -> float | None:
    then, today = _shares(former), _shares(now)
    if not then or not today:
        return None
    if former.get("bounds") is None:  # what was not among the most frequent values then is one bin
        today = {bin: share for bin, share in today.items() if bin in then}
        today["other"] = max(1 - sum(today.values()), 0.0)
        then = {**then, "other": max(1 - sum(then.values()), 0.0)}
    total = 0.0
    for bin in then.keys() | today.keys():
        p, q = max(today.get(bin, 0.0), _LEAST), max(then.get(bin, 0.0), _LEAST)
        total += (p - q) * log(p / q)
    return total


def _shares(statistics: Statistics) -> dict[str, float]:
    whole = statistics["rows"] - statistics["nulls"]
    return {bin: number / whole for bin, number in statistics["shares"].items()} if whole else {}


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _change(then: float | None, now: float | None) -> float | None:
    if then is None or now is None:
        return None
    if not then:
        return None if not now else float("inf")
    return (now - then) / abs(then)
