"""`retl apply` and `retl resolve`: deliver a reviewed plan, and decide about rows in doubt."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import replace

from retl.app.choice import Choice
from retl.cli.app import app, command
from retl.cli.invocation import Invocation
from retl.cli.output import Table
from retl.cli.running import report
from retl.cli.state import Yes, confirmed, held
from retl.errors import DefinitionError
from retl.observe.summary import counted

if TYPE_CHECKING:
    from retl.app.session import Session
    from retl.run.resolve import Doubt

KEYS_SHOWN = 5  # of a batch in doubt


@command(app, "apply", reveals=True)
def apply(
    invocation: Invocation,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A plan made by `retl plan --out`.")],
    signature: Annotated[
        Path | None, typer.Option(metavar="FILE.sig", help="Its signature by an allowed signer.")
    ] = None,
) -> int:
    """Deliver exactly the change set of a plan, once; refuse if anything moved."""
    from retl.run import plan_file

    content = plan_file.content(file)  # read once: what was signed is what is applied
    plan = plan_file.read(file, content)
    if plan.environment != invocation.environment:
        raise DefinitionError(
            "PLAN_ENVIRONMENT",
            f"the plan was made {f'with --env {plan.environment}' if plan.environment else 'without --env'}",
            hint="apply it with the same --env",
        )
    session = invocation.session
    sync = session.definition(plan.sync)
    chosen = replace(plan_file.options(plan), plan=sha256(content).hexdigest())
    if signature is not None:
        chosen = replace(chosen, approved_by=_approver(session, content, signature))
    with session.stop.listening():
        summary = session.apply(sync, chosen, lambda job, made: plan_file.verify(plan, job, made))
    session.write_metrics(None, [summary])
    return report(invocation, [summary])


def _approver(session: Session, plan: bytes, signature: Path) -> str:
    """Who signed the plan. DefinitionError SIGNERS_MISSING if the project says nobody who may."""
    from retl.run.approval import approver

    signers = session.project.definitions.allowed_signers
    if signers is None:
        raise DefinitionError(
            "SIGNERS_MISSING",
            "retl.yml does not say who may approve plans",
            hint="allowed_signers: FILE, with a line `NAME KEY` per person (ssh-keygen(1), ALLOWED SIGNERS)",
        )
    return approver(plan, signature, session.project.folder / signers)


@command(app, "resolve", reveals=True)
def resolve(
    invocation: Invocation,
    choice: Choice,
    batch: Annotated[list[str] | None, typer.Option(metavar="ID", help="Only this batch.")] = None,
    delivered: Annotated[
        bool | None,
        typer.Option(
            "--delivered/--not-delivered",
            help="What you found in the target: were they delivered?",
            show_default=False,
        ),
    ] = None,
    yes: Yes = False,
) -> int | None:
    """List batches in doubt, or say whether they were delivered."""
    from retl.run.resolve import doubts, is_asked, resolve

    ledger = invocation.session.ledger(create=delivered is not None and yes)
    chosen = invocation.names(choice, lambda name: bool(ledger.objects(name)))  # a former name has them too
    if chosen is not None and not chosen:
        return invocation.show_nothing(choice, "in_doubt")
    asked = [one.name for one in invocation.project.syncs.values() if is_asked(one)]
    found = [one for name in (asked if chosen is None else chosen) for one in doubts(ledger, name)]
    if batch:
        _require_batches(batch, {one.batch.batch_id for one in found})
        found = [one for one in found if one.batch.batch_id in batch]
    if delivered is None:
        _show(invocation, found)
        return None
    if not found:
        invocation.show({"resolved": 0, "delivered": delivered}, lambda: ["nothing is in doubt"])
        return None
    word = "delivered: they are not sent again" if delivered else "not delivered: the next run sends them"
    rows, batches = counted(sum(one.rows for one in found), "row"), counted(len(found), "batch")
    confirmed(f"{rows} in {batches}: {word}", yes)
    resolved = 0
    for name in dict.fromkeys(one.sync for one in found):
        with held(ledger, name) as lock:
            meant = {one.batch.batch_id for one in found}
            mine = [one for one in doubts(ledger, name) if one.batch.batch_id in meant]
            resolved += resolve(ledger, lock, mine, delivered=delivered, environment=invocation.environment)
    said = f"{counted(resolved, 'row')} resolved"
    invocation.show({"resolved": resolved, "delivered": delivered}, lambda: [said])
    return None


def _show(invocation: Invocation, found: Sequence[Doubt]) -> None:
    """Print the batches in doubt, with their first keys."""
    headers = ("sync", "run_id", "batch", "rows", "keys", "operation", "began", "object")
    keys = _keys(invocation, found)
    rows = [
        (
            *(o.sync, o.run_id, o.batch.batch_id, o.rows, keys.get(o.batch.batch_id, [])),
            *(o.batch.operation, o.began, o.object),
        )
        for o in found
    ]
    document = {"in_doubt": [dict(zip(headers, row, strict=True)) for row in rows]}
    invocation.show(document, lambda: [Table(headers, rows)] if rows else ["nothing is in doubt"])


def _require_batches(asked: Sequence[str], doubtful: Collection[str]) -> None:
    """DefinitionError DOUBT_UNKNOWN if one of these batches is not in doubt."""
    unknown = [one for one in dict.fromkeys(asked) if one not in doubtful]
    if unknown:
        message = f"no batch in doubt has the id {', '.join(unknown)}"
        raise DefinitionError("DOUBT_UNKNOWN", message, hint="`retl resolve` lists the batches in doubt")


def _keys(invocation: Invocation, found: Sequence[Doubt]) -> dict[str, list[str]]:
    """The first keys of each batch in doubt: somebody has to look them up in the target."""
    from retl.engine.scratch import private_directory
    from retl.engine.workspace import Workspace
    from retl.run import writeback

    session, keys = invocation.session, dict[str, list[str]]()
    for run_id in dict.fromkeys(one.run_id for one in found):
        with private_directory() as folder, Workspace(folder, session.stop) as workspace:
            keys |= writeback.unanswered(
                session.ledger(), workspace, run_id, invocation.hides_key, KEYS_SHOWN
            )
    return keys
