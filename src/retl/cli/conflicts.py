"""`retl conflicts`: rows that somebody edited at the target while the mart changed them too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from msgspec.structs import asdict

from retl.app.choice import Choice
from retl.cli import output
from retl.cli.app import command
from retl.cli.invocation import Invocation
from retl.cli.output import Table
from retl.cli.running import Variables
from retl.cli.state import OneSync, Yes, confirmed, done, group
from retl.errors import DefinitionError
from retl.observe.mask import MASK
from retl.observe.summary import counted

if TYPE_CHECKING:
    from retl.run.conflicts import Queued

Keys = Annotated[list[str] | None, typer.Option("--key", metavar="KEY", help="Only the row with this key.")]
Expect = Annotated[
    str | None, typer.Option("--expect", metavar="DIGEST", help="Refuse if the row has another digest.")
]

NONE = (
    "no conflicts wait for a decision: only `conflicts: manual` queues them; `retl reconcile SYNC` compares"
    " mart and target"
)

conflicts = typer.Typer(
    help="Show or decide conflicts with edits at the target.", invoke_without_command=True
)


def list_conflicts(invocation: Invocation, choice: Choice, keys: Keys = None) -> int | None:
    """List the conflicts that wait for a decision."""
    from retl.run.conflicts import queue

    names = invocation.names(choice)
    if names is not None and not names:
        return invocation.show_nothing(choice, "conflicts")
    queued = queue(invocation.session.ledger(), names, keys or ())
    if keys and not queued:
        raise _unknown()
    found = [_shown(invocation, one) for one in queued]
    headers = ("sync", "key", "code", "reason", "digest", "first_seen", "last_seen", "attempts")
    rows = [tuple(one[name] for name in headers) for one in found]
    labels = tuple(name.replace("_", " ") for name in headers)
    invocation.show({"conflicts": found}, lambda: [Table(labels, rows)] if rows else [NONE])
    return None


def _shown(invocation: Invocation, one: Queued) -> dict[str, Any]:
    return asdict(one) | ({"key": MASK} if invocation.hides_key(one.sync) else {})


@command(conflicts, "take")
def take(
    invocation: Invocation,
    side: Annotated[str, typer.Argument(metavar="mart|target")],
    sync: OneSync = None,
    keys: Keys = None,
    expect: Expect = None,
    var: Variables = None,
) -> int:
    """Run the sync and let one side win for these rows, if nobody has edited them again."""
    from retl.app.session import options
    from retl.cli.running import report
    from retl.run.conflicts import decide, queue

    if side not in ("mart", "target"):
        raise DefinitionError("USAGE", f"`take` needs mart or target, not {side!r}")
    found = _selected(invocation, sync, keys)
    chosen: Literal["mart", "target"] = "mart" if side == "mart" else "target"
    decisions, summaries, given = decide(found, chosen, expect), [], invocation.variables(var)
    with invocation.session.stop.listening():
        for name, by_key in decisions.items():
            one = invocation.session.definition(name)
            summaries += invocation.session.run_chosen([one], options(decisions=by_key, variables=given))
    code = report(invocation, summaries)
    left = queue(invocation.session.ledger(), set(decisions), {one.key for one in found})
    asked = {(one.sync, one.key) for one in found}
    if waiting := sum((one.sync, one.key) in asked for one in left):
        output.say(f"{waiting} of {len(found)} still wait: they were edited again, or the run ended before")
    return code or int(bool(waiting))


@command(conflicts, "dismiss", ledger=True)
def dismiss(
    invocation: Invocation, sync: OneSync = None, keys: Keys = None, expect: Expect = None, yes: Yes = False
) -> None:
    """Take conflicts off the queue until their rows change in the mart. Without --key it needs --yes."""
    from retl.run.conflicts import decide

    found = _selected(invocation, sync, keys)
    then = "only a change of their rows opens them again"
    if not keys:
        confirmed(f"{counted(len(found), 'conflict')} of {sync} dismissed; {then}", yes)
    ledger = invocation.session.ledger(create=True)
    number = sum(
        ledger.dismiss(name, list(by_key)) for name, by_key in decide(found, "target", expect).items()
    )
    done(invocation, {"dismissed": number}, f"{counted(number, 'conflict')} dismissed; {then}")


def _selected(invocation: Invocation, sync: str | None, keys: Sequence[str] | None) -> list[Queued]:
    from retl.run.conflicts import queue

    if sync is None and not keys:
        raise DefinitionError(
            "USAGE",
            "select conflicts with --sync NAME, with --key KEY, or with both",
            hint="`retl conflicts` lists them",
        )
    ledger = invocation.session.ledger(create=True)
    if sync is not None and not ledger.runs(sync, 1):
        invocation.session.require_known(sync)  # the history may have syncs that are no longer defined
    found = queue(ledger, None if sync is None else [sync], keys or ())
    if not found:
        raise _unknown()
    return found


def _unknown() -> DefinitionError:
    return DefinitionError(
        "CONFLICT_UNKNOWN", "no such conflict waits for a decision", hint="`retl conflicts` lists them"
    )


group(conflicts, "conflicts", list_conflicts, "list", reveals=True, before_sync=(), ledger=True)
