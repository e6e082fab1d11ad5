"""`retl erase`: a person leaves targets, ledger and files; the proofs of that, and their check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retl.app.choice import Choice
from retl.cli import output, problems
from retl.cli.app import command
from retl.cli.invocation import Invocation
from retl.cli.output import Piece, Table
from retl.cli.running import Accepted, Variables
from retl.cli.state import group
from retl.errors import DefinitionError

if TYPE_CHECKING:
    from retl.app.erasure import Found

erase = typer.Typer(
    help="Erase a person from the targets and from what retl keeps.", invoke_without_command=True
)
Erased = Annotated[
    list[str] | None,
    typer.Option(
        "--key", metavar="KEY", help="An erased key of the sync, to ask a target that cannot be listed."
    ),
]
_ENDS = {
    "erased": "erased",
    "not_erasable": "forgotten by retl; at the target by hand",
    "failed": "not erased",
}


def start(
    invocation: Invocation,
    subject: Annotated[
        str | None,
        typer.Option(metavar="COLUMN=VALUE", help="Whose rows: this text in this column of any mart."),
    ] = None,
    sync: Annotated[str | None, typer.Option("--sync", metavar="NAME", help="The sync of the keys.")] = None,
    keys: Annotated[
        list[str] | None, typer.Option("--key", metavar="KEY", help="A key, as `retl explain` shows it.")
    ] = None,
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Why, for the proof; without personal data.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be erased.")] = False,
    lift: Annotated[bool, typer.Option("--lift", help="Let these keys be delivered again.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Erase again who is back at a target after a restore.")
    ] = False,
    accept: Accepted = None,
    var: Variables = None,
) -> int:
    """Erase a person: suppress the keys, delete at every target, forget them in the ledger, store a proof."""
    from retl.app import erasure

    _refuse_unused("--again", again, {"--subject": subject, "--key": keys, "--lift": lift})
    _refuse_unused("--lift", lift, {"--dry-run": dry_run, "--accept": accept})
    column, value = (None, None) if again else _subject(subject, sync, keys)
    if reason is None and not dry_run:
        raise DefinitionError("USAGE", "--reason says why: the proof of an erasure has it")
    session = invocation.session
    session.given = invocation.variables(var)
    if sync is not None:
        session.definition(sync)
    ledger = session.ledger(create=not dry_run)
    with session.stop.listening():
        if column is not None and value is not None:
            found = _somebody(erasure.by_subject(session, ledger, column, value, reads=dry_run), column)
        elif again:
            found = erasure.by_digest(session, ledger, [sync] if sync is not None else ())
        else:
            found = erasure.by_key(session, str(sync), keys or ())
        if lift:
            return _show_lifted(invocation, erasure.lift(session, ledger, found, str(reason)))
        if dry_run:
            looked = list(erasure.look(session, ledger, found, value))
            return _show(invocation, {"dry_run": True, "syncs": looked}, found.unsearched)
        erasure_id, ended = erasure.erase(
            session, ledger, found, str(reason), subject=value, accept=accept or ()
        )
    return _show(invocation, {"erasure_id": erasure_id, "syncs": ended}, found.unsearched)


def _refuse_unused(option: str, asked: bool, others: Mapping[str, object]) -> None:
    """DefinitionError USAGE for an option that has no effect beside this one."""
    unused = [name for name, value in others.items() if value]
    if asked and unused:
        hint = "--again finds the keys itself; --lift sends and deletes nothing"
        raise DefinitionError("USAGE", f"{unused[0]} has no effect with {option}", hint=hint)


def _somebody(found: Found, column: str) -> Found:
    """What was found. DefinitionError SUBJECT_UNKNOWN if every mart was searched and none has the person."""
    from retl.project.validation import did_you_mean

    if found.parts or found.unread:
        return found
    words = f"no mart has a row with this text in column {column!r}: nobody was erased"
    hints = ["the text is compared whole; a person who left the marts is erased by --sync and --key"]
    if column not in found.columns:
        words = f"no mart has a column {column!r}: nobody was erased"
        if near := did_you_mean(column, sorted(found.columns)):
            hints = [near]
    if found.undefined:
        names = ", ".join(found.undefined)
        hints.append(f"not searched, because no file defines them, though the ledger has their keys: {names}")
    raise DefinitionError("SUBJECT_UNKNOWN", words, hint="; ".join(hints))


def _show_lifted(invocation: Invocation, number: int) -> int:
    if not number:
        hint = "`retl erase list` lists the erasures; a key is written as `retl explain` shows it"
        raise DefinitionError("KEY_UNKNOWN", "none of these keys was erased", hint=hint)
    then = f"{number} keys may be delivered again: the next run sends their rows if the mart has them"
    invocation.show({"lifted": number}, lambda: [then])
    return 0


SPARED = ("finished at", "requested by", "requested at")  # in this order, on a narrow terminal


@command(erase, "list")
def list_erasures(invocation: Invocation, choice: Choice) -> int | None:
    """List the erasures with their proofs."""
    ledger, names = invocation.session.ledger(), invocation.names(choice)
    if names is not None and not names:
        return invocation.show_nothing(choice, "erasures")
    found = [one for one in ledger.erasures() if names is None or one.sync in names]
    headers = ("erasure_id", "sync", "status", "requested_at", "requested_by", "reason", "finished_at")
    rows = [tuple(getattr(one, name) for name in headers) for one in found]
    documents = [
        {**{name: getattr(one, name) for name in (*headers, "object", "run_id")}, "proof": dict(one.proof)}
        for one in found
    ]
    invocation.show(
        {"erasures": documents},
        lambda: (
            [Table(tuple(name.replace("_", " ") for name in headers), rows, spares=SPARED)]
            if rows
            else ["none yet"]
        ),
    )
    return None


@command(erase, "verify")
def verify(invocation: Invocation, choice: Choice, keys: Erased = None, var: Variables = None) -> int:
    """Look for erased keys in targets, ledger and files; exit 1 if one is there or a target not checked."""
    from retl.app import erasure

    session = invocation.session
    session.given = invocation.variables(var)
    names = [] if choice.bare else [one.name for one in session.choose(choice, paused=True)]
    if keys and len(names) != 1:
        raise DefinitionError("USAGE", "--key needs --sync NAME: the sync of the keys")
    if not names and not choice.bare:
        return invocation.show_nothing(choice)
    with session.stop.listening():
        found = list(erasure.verify(session, session.ledger(), names, keys or ()))
    code = max((one["exit_code"] for one in found), default=0)
    headers = ("sync", "suppressed", "target", "verdict")
    rows = [(one["sync"], one["suppressed"], _asked(one), _verdict(one)) for one in found]
    pieces: list[Piece] = [Table(headers, rows)] if rows else ["no key was erased"]
    invocation.show({"syncs": found, "exit_code": code}, lambda: pieces)
    return code


def _asked(one: Mapping[str, Any]) -> str:
    if one.get("target") is None:
        return "not checked" if one["suppressed"] else "nothing to check"
    from retl.observe.summary import counted

    return "listed" if one["asked"] is None else f"asked for {counted(one['asked'], 'key')}"


def _verdict(one: Mapping[str, Any]) -> str:
    return "; ".join([*one["faults"], *filter(None, [one.get("unchecked")])]) or "clean"


def _subject(subject: str | None, sync: str | None, keys: list[str] | None) -> tuple[str | None, str | None]:
    """The column and value of a subject. DefinitionError USAGE if the person is named in no way, or twice."""
    if (subject is None) == (sync is None) or (sync is None) != (not keys):
        raise DefinitionError(
            "USAGE", "`retl erase` needs --subject COLUMN=VALUE, or --sync NAME with --key KEY, or --again"
        )
    if subject is None:
        return None, None
    column, equals, value = subject.partition("=")
    if not equals or not column or not value:
        raise DefinitionError("USAGE", "--subject takes COLUMN=VALUE, such as email=ada@example.com")
    return column, value


def _show(invocation: Invocation, document: dict[str, Any], unsearched: Any) -> int:
    """Print what became of each sync; exit 1 if something of the person may be left."""
    from retl.observe.summary import exit_code

    ended = document["syncs"]
    missed = [1 for one in unsearched if one["code"] is not None]
    code = exit_code([*(one["exit_code"] for one in ended), *missed])
    shown = {**document, "not_searched": list(unsearched), "exit_code": code}
    invocation.show(shown, lambda: _pieces(shown))
    for one in ended:
        if one["error"]:
            output.say(f"error: {one['sync']}: {problems.sentence(one['error'])}")
    return code


def _pieces(document: Mapping[str, Any]) -> list[Piece]:
    pieces: list[Piece] = []
    if document["syncs"] and document.get("dry_run"):
        would = [
            (o["sync"], o["keys"], o.get("how", "failed"), o.get("files", "")) for o in document["syncs"]
        ]
        pieces.append(Table(("sync", "keys", "at the target", "files"), would, "nothing was changed yet"))
    elif document["syncs"]:
        rows = [
            (o["sync"], o["object"], o["keys"], _ENDS[o["status"]], o["run_id"]) for o in document["syncs"]
        ]
        title = f"erasure {document['erasure_id']}:"
        pieces.append(Table(("sync", "object", "keys", "end", "run"), rows, title))
        pieces += [f"{o['sync']}: note: {note}" for o in document["syncs"] for note in o.get("notes", ())]
        pieces.append("`retl erase list --output json` has the proof, `retl erase verify` checks it")
    else:
        pieces.append("nobody was erased: no sync that could be searched has the person")
    missed = [(one["sync"], one["reason"]) for one in document["not_searched"]]
    return [*pieces, Table(("not searched", "why"), missed)] if missed else pieces


group(erase, "erase", start, "start", reveals=False)
