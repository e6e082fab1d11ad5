"""`retl test`: the mapping tests of sync files, offline."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retl.app.choice import Choice
from retl.cli.app import app, command
from retl.cli.invocation import Invocation
from retl.cli.output import Piece, Table, document_text
from retl.errors import DefinitionError
from retl.observe.mask import MASK

if TYPE_CHECKING:
    from retl.project.definitions import Sync
    from retl.run.mapping_tests import Verdict


@command(app, "test", reveals=True)
def run_tests(
    invocation: Invocation,
    choice: Choice,
    var: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A SQL parameter.")] = None,
) -> int:
    """Run the mapping tests under `tests` of sync files, offline."""
    from retl.project.validation import raise_all
    from retl.run import mapping_tests

    project = invocation.project
    given = invocation.session.variables(invocation.variables(var), datetime.now(UTC).date())
    chosen = invocation.session.choose(choice, paused=True)
    if not chosen and not choice.bare:
        return invocation.show_nothing(choice, "tests")
    judges = {}
    errors = []
    for one in chosen:
        if one.tests:
            # a contract says all that a test needs; without one the source is asked for its columns
            source = project.source(one, given, offline=one.contract is not None)
            judge = mapping_tests.contract_of(one, source, project.folder)
            judges[one.name] = judge
            errors += [
                DefinitionError(p.code, p.message, hint=p.hint, where=project.place(one, p.loc))
                for p in mapping_tests.problems(one, judge)
            ]
    raise_all(errors)
    found = [
        _described(invocation, one, verdict)
        for one in chosen
        if one.name in judges
        for verdict in mapping_tests.run(one, judges[one.name])
    ]
    failed = sum(not one["passed"] for one in found)
    code = int(failed > 0)
    invocation.show(
        {"tests": found, "passed": len(found) - failed, "failed": failed, "exit_code": code},
        lambda: _pieces(found, failed),
    )
    return code or int(invocation.output_lost)


def _described(invocation: Invocation, sync: Sync, verdict: Verdict) -> dict[str, Any]:
    place = invocation.project.place(sync, ("tests", verdict.number - 1))
    test = sync.tests[verdict.number - 1]
    refused = verdict.rejected
    return {
        "sync": sync.name,
        "test": verdict.name or str(verdict.number),
        "where": f"{place.file}:{place.line}",
        "passed": verdict.passed,
        "expected": f"rejected: {test.reject}" if test.reject else "sent",
        "rejected": refused and {"column": refused.column, "code": refused.code, "reason": refused.reason},
        "differences": [
            {
                "field": one.field,
                "expected": _shown(invocation, one.expected, one.sensitive),
                "sent": _shown(invocation, one.sent, one.sensitive),
            }
            for one in verdict.differences
        ],
    }


def _shown(invocation: Invocation, value: Any, sensitive: bool) -> Any:
    if sensitive and value is not None and not invocation.reveal:
        return MASK
    return float(value) if isinstance(value, Decimal) else value


def _pieces(found: list[dict[str, Any]], failed: int) -> list[Piece]:
    if not found:
        return ["no tests; write some under `tests:` in a sync file"]
    words = {True: "passed", False: "FAILED"}
    rows = [(one["sync"], one["test"], words[one["passed"]], one["where"]) for one in found]
    lines = [line for one in found if not one["passed"] for line in _why(one)]
    pieces: list[Piece] = [Table(("sync", "test", "", "where"), rows)]
    return [*pieces, *(["\n".join(lines)] if lines else []), f"{len(found) - failed} passed, {failed} failed"]


def _why(one: Mapping[str, Any]) -> list[str]:
    head = f"{one['where']}: {one['sync']}, test {one['test']}:"
    refused = one["rejected"]
    if refused is not None:
        instead = "" if one["expected"] == "sent" else f", not for {one['expected'].partition(': ')[2]}"
        return [f"{head} the row is rejected{instead}: {refused['reason']} [{refused['code']}]"]
    if one["expected"] != "sent":
        return [f"{head} the row is sent, but should be {one['expected']}"]
    return [
        f"{head} {each['field']} is {_json(each['sent'])}, expected {_json(each['expected'])}"
        for each in one["differences"]
    ]


def _json(value: Any) -> str:
    return document_text(value).strip()
