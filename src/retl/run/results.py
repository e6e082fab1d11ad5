"""Results of checks that another tool ran on the mart: Great Expectations or Soda.

It reads the JSON that they write, and needs neither. It reports names of expectations, checks and columns,
never a value. A file that it does not understand is not a good result.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from retl.project.definitions import Results


def failed(wanted: Results, folder: Path, now: datetime) -> list[str]:
    """Why the results do not let a run pass, one sentence each; none if all checks passed. Warnings pass.

    Great Expectations: the result of a suite, or of a checkpoint with its suites. Soda: the results of a scan
    (`scan_results`)."""
    try:
        found = json.loads((folder / wanted.results).read_bytes())
    except OSError:
        return [f"there are no results at {wanted.results}"]
    except ValueError:
        return [f"{wanted.results} is no JSON"]
    parts = list(_results(found))
    if not parts:
        return [f"{wanted.results} has no results of Great Expectations or Soda"]
    if wanted.max_age is not None:
        times = [time for part in parts if (time := _time(part)) is not None]
        if not times or now - min(times) > timedelta(seconds=wanted.max_age):
            last = f"{min(times):%Y-%m-%d %H:%MZ}" if times else "an unknown time"
            return [f"the results at {wanted.results} are from {last}, older than max_age"]
    names = [name for part in parts for name in _failures(part)]
    return [f"{wanted.results}: {name}" for name in dict.fromkeys(names)]


def _results(found: Any) -> Iterator[Mapping[str, Any]]:
    """The results of suites and scans in a document."""
    if not isinstance(found, dict):
        return
    if isinstance(found.get("run_results"), dict):
        for one in found["run_results"].values():
            yield from _results(one.get("validation_result", one) if isinstance(one, dict) else None)
    elif isinstance(found.get("validation_results"), list):
        for one in found["validation_results"]:
            yield from _results(one)
    elif (
        isinstance(found.get("success"), bool)
        and isinstance(found.get("results", found.get("expectations")), list)
    ) or (isinstance(found.get("checks"), list) and "hasFailures" in found):
        yield found


def _failures(part: Mapping[str, Any]) -> Iterator[str]:
    if "checks" in part:
        for check in _dicts(part["checks"]):
            if check.get("outcome") not in ("pass", "warn"):
                table = f" ({check['table']})" if isinstance(check.get("table"), str) else ""
                yield f"check {check.get('name', 'without a name')}{table} ended with {check.get('outcome')}"
        if part.get("hasErrors"):
            yield "the scan had errors"
        return
    before = False
    for one in _dicts(part.get("results", part.get("expectations"))):
        if one.get("success") is not True:
            before = True
            written = one.get("expectation_config")
            config: Mapping[str, Any] = written if isinstance(written, dict) else one
            kind = config.get("type") or config.get("expectation_type") or "an expectation"
            kwargs = config.get("kwargs")
            column = kwargs.get("column") if isinstance(kwargs, dict) else None
            yield f"{kind} failed" + (f" for {column}" if isinstance(column, str) else "")
    if part["success"] is not True and not before:
        yield "the suite failed"


def _dicts(found: Any) -> list[dict[str, Any]]:
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _time(part: Mapping[str, Any]) -> datetime | None:
    """When the checks ran."""
    meta = part.get("meta") if isinstance(part.get("meta"), dict) else {}
    assert isinstance(meta, dict)
    run = meta.get("run_id")
    texts = [part.get("scanEndTimestamp"), part.get("scanStartTimestamp"), meta.get("validation_time")]
    texts.append(run.get("run_time") if isinstance(run, dict) else None)
    for text in texts:
        if isinstance(text, str):
            try:
                time = datetime.fromisoformat(text)
            except ValueError:
                continue
            return time if time.tzinfo else time.replace(tzinfo=UTC)
    return None
