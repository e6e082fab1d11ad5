"""`retl rejects` and `retl retry`: rows that were refused, why, what would be allowed, and once more.

The ledger keeps no value of a rejected row unless the sync asks for it: values are read from the mart, when
they are asked for.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from msgspec import Struct
from msgspec.structs import replace

from retl.app.choice import Choice
from retl.app.masking import contract_columns
from retl.cli import output
from retl.cli.app import app, command
from retl.cli.invocation import Invocation
from retl.cli.log import moment
from retl.cli.output import Piece, Table
from retl.cli.state import SyncName, Yes, confirmed, done, group
from retl.errors import DefinitionError
from retl.observe.mask import MASK
from retl.observe.summary import counted

if TYPE_CHECKING:
    from retl.ledger import Ledger, RejectRow
    from retl.project.definitions import Sync

SHOWN = 20  # in a table; the reasons count all
ALLOWED = 200  # characters
SPARED = ("first seen", "stage", "last seen", "attempts")  # in this order, on a narrow terminal
COLUMNS = (
    *("sync", "key", "stage", "code", "reason", "column", "value", "allowed"),
    *("first_seen", "last_seen", "attempts", "run_id"),
)

rejects = typer.Typer(help="Show or dismiss open rejects.", invoke_without_command=True)

Codes = Annotated[list[str] | None, typer.Option("--code", metavar="CODE", help="Only with this code.")]
Keys = Annotated[
    list[str] | None, typer.Option("--key", metavar="KEY", help="Only the reject with this key.")
]
Formats = Annotated[
    Literal["table", "json", "csv"] | None, typer.Option(help="table (default), json or csv.")
]


def list_rejects(
    invocation: Invocation,
    choice: Choice,
    keys: Keys = None,
    codes: Codes = None,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Only those first seen since then: 7d, 2026-11-01.")
    ] = None,
    values: Annotated[
        bool, typer.Option("--values", help="Read the values that were refused from the mart.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Number of rejects; 20 in a table, else all.")
    ] = None,
) -> int | None:
    """Show the open rejects, by reason and row by row."""
    ledger = invocation.session.ledger()
    names = invocation.names(choice)
    if names is not None and not names:
        return invocation.show_nothing(choice, "rejects")
    begin = moment(since, ledger.now())
    every = [one for one in _chosen(ledger, names, keys, codes) if begin is None or one.first_seen >= begin]
    none = "no open rejects" if begin is None else f"no open reject was first seen since {begin:%F %T}Z"
    most = limit if limit is not None else SHOWN if invocation.output == "table" else None
    contracts = {name: _Contract.of(invocation, name) for name in {one.sync for one in every}}
    found = [_document(invocation, one, contracts[one.sync]) for one in every[:most]]
    if values:
        _read_values(invocation, every[:most], found)
    reasons = Counter((one.sync, one.stage, one.code, one.reason) for one in every)
    grouped = [
        {"sync": name, "stage": stage, "code": code, "reason": reason, "rows": number}
        | {"allowed": contracts[name].allowed(reason)}
        for (name, stage, code, reason), number in reasons.most_common()
    ]
    notes = _unrecorded(ledger, sorted(ledger.synced()) if names is None else sorted(names))
    invocation.show(
        {"reasons": grouped, "rejects": found, "notes": notes},
        lambda: [*(_pieces(grouped, found, len(every), tell=not values) if every else [none]), *notes],
        lambda: _csv(found),
    )
    return None


def _unrecorded(ledger: Ledger, names: Iterable[str]) -> list[str]:
    """Where to see the rejects of a last run that was refused: only a run that delivers records them."""
    last = [run for name in names if (run := ledger.last_run(name)) is not None]
    return [
        f"the last run of {run.sync} was refused before it recorded its"
        f" {counted(run.counts['rejected'], 'reject')}: `retl show {run.sync}`"
        for run in last
        if run.status == "REFUSED" and run.counts.get("rejected")
    ]


def _chosen(
    ledger: Ledger, names: Iterable[str] | None, keys: Sequence[str] | None, codes: Sequence[str] | None
) -> list[RejectRow]:
    """The open rejects that are asked for. DefinitionError REJECT_UNKNOWN if there is none."""
    from retl.values.keys import spellings

    asked = spellings(keys or ())
    every = [
        one
        for name in ([None] if names is None else sorted(names))
        for one in ledger.rejects(name)
        if (not asked or one.key in asked) and (not codes or one.code in codes)
    ]
    if (keys or codes) and not every:
        what = "key" if keys else "code"
        raise DefinitionError(
            "REJECT_UNKNOWN", f"no open reject has this {what}", hint="`retl rejects` lists them"
        )
    return every


class _Contract(Struct, frozen=True):
    """The rules of a sync's columns, as its YAML has them, and the columns to mask."""

    columns: Mapping[str, Mapping[str, Any]]
    masked: frozenset[str]
    is_unread: bool = False  # nobody knows now which columns are sensitive

    @classmethod
    def of(cls, invocation: Invocation, name: str) -> _Contract:
        sync = invocation.project.syncs.get(name)
        columns = contract_columns(sync, invocation.project.folder) if sync else {}
        masked = frozenset(invocation.masked_columns(name))
        return cls(columns, masked, name in invocation.project.unread)

    def column(self, reason: str | None) -> str | None:
        """The column that a reason begins with."""
        named = [name for name in self.columns if (reason or "").startswith(f"{name} ")]
        return max(named, key=len, default=None)

    def allowed(self, reason: str | None) -> str | None:
        """What the contract allows in the column of a reason."""
        column = self.column(reason)
        return rules_text(self.columns[column]) if column is not None else None


def rules_text(rules: Mapping[str, Any]) -> str:
    """The rules of a column for people: `integer, not NULL, 0 or more`."""
    parts = [str(rules.get("type", ""))]
    if not rules.get("nullable"):
        parts.append("not NULL")
    if rules.get("one_of"):
        parts.append(f"one of {', '.join(map(str, rules['one_of']))}")
    words = {"ge": "{} or more", "gt": "more than {}", "le": "{} or less", "lt": "less than {}"}
    words |= {"min_length": "{} characters or more", "max_length": "{} characters or less"}
    words |= {"pattern": "matches {}", "max_digits": "{} digits", "decimal_places": "{} decimal places"}
    parts += [text.format(rules[name]) for name, text in words.items() if rules.get(name) is not None]
    text = ", ".join(filter(None, parts))
    return text if len(text) <= ALLOWED else f"{text[:ALLOWED]}…"


def _document(invocation: Invocation, one: RejectRow, contract: _Contract) -> dict[str, Any]:
    """The JSON form of a reject; masked columns of its row stay masked, even with --reveal."""
    from retl.engine import payload

    kept = None if contract.is_unread else one.payload and payload.shown(one.payload, contract.masked)
    column = contract.column(one.reason)
    return {
        "sync": one.sync,
        "key": MASK if invocation.hides_key(one.sync) else one.key,
        "stage": one.stage,
        "code": one.code,
        "reason": one.reason,
        "column": column,
        "value": kept.get(column) if kept and column else None,
        "allowed": contract.allowed(one.reason),
        "first_seen": one.first_seen,
        "last_seen": one.last_seen,
        "attempts": one.attempts,
        "run_id": one.run_id,
        "state": one.state,
        "payload": kept,
    }


def _read_values(invocation: Invocation, every: Sequence[RejectRow], found: Sequence[dict[str, Any]]) -> None:
    """Fill in the values of the mart's rows as they are now; no target is asked."""
    from retl.run import explain
    from retl.run.job import Options

    session = invocation.session
    for name in dict.fromkeys(one.sync for one in every):
        sync = session.definition(name)
        session.require([sync], offline=True)
        keys = [one.key for one in every if one.sync == name and one.key]
        if not keys:
            continue
        with session.stop.listening():
            job = session.job(
                sync, session.ledger(), Options(dry_run=True, variables=invocation.variables(None))
            )
            values = explain.refused(job, keys, reveal=invocation.reveal)
        for one, document in zip(every, found, strict=True):
            if one.sync == name and (one.key, one.row_id) in values:
                document["column"], document["value"] = values[one.key, one.row_id]


def _pieces(
    grouped: list[dict[str, Any]], found: list[dict[str, Any]], every: int, *, tell: bool
) -> list[Piece]:
    """`tell`: say how the values are shown."""
    by_reason = ("sync", "stage", "code", "reason", "allowed", "rows")
    reasons = [tuple(one[name] for name in by_reason) for one in grouped]
    pieces: list[Piece] = [Table(by_reason, reasons, spares=("stage", "allowed"), folds=("sync",))]
    headers = ["sync", "key", "stage", "code", "reason", "value", "first_seen", "last_seen", "attempts"]
    if not any(one["value"] is not None for one in found):
        headers.remove("value")
        if tell and any(one["column"] for one in found):
            pieces.append("`retl rejects --values` reads the values that were refused from the mart")
    labels = tuple(name.replace("_", " ") for name in headers)
    rows = [tuple(_shown(name, one[name]) for name in headers) for one in found]
    title = f"the first {len(found)} of {every:,} (--limit, --key, --sync show others)"
    named = title if len(found) < every else None
    pieces += [Table(labels, rows, named, spares=SPARED, folds=("sync", "key"))] if found else []
    pieces += [
        f"{one['sync']}, key {one['key'] or 'unusable'}: {json.dumps(one['payload'], ensure_ascii=False)}"
        for one in found
        if one["payload"] is not None
    ]
    return pieces


def _shown(name: str, value: Any) -> Any:
    return output.datum(value) if name == "value" and value is not None else value


def _csv(found: Sequence[Mapping[str, Any]]) -> str:
    """Every reject as a line, with a header."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    for one in found:
        row = {**one, **{name: output.moment(one[name]) for name in ("first_seen", "last_seen")}}
        lines.writerow("" if row[name] is None else output.datum(row[name]) for name in COLUMNS)
    return text.getvalue()


@command(rejects, "dismiss", ledger=True)
def dismiss(
    invocation: Invocation,
    sync: Annotated[str | None, typer.Option("--sync", metavar="NAME", help="Rejects of this sync.")] = None,
    keys: Annotated[
        list[str] | None, typer.Option("--key", metavar="KEY", help="The reject with this key.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All rejects of the sync; needs --yes.")] = False,
    yes: Yes = False,
) -> None:
    """Dismiss rejects until their rows change."""
    from retl.values.keys import spellings

    if sync is None or bool(keys) == everything:
        raise DefinitionError(
            "USAGE",
            "select rejects with --sync NAME and either --key KEY or --all",
            hint="`retl rejects` lists them",
        )
    ledger = invocation.session.ledger(create=yes or bool(keys))
    if not ledger.runs(sync, 1):
        invocation.session.require_known(sync)
    then = "only a change of their rows opens them again"
    if everything:
        confirmed(f"{counted(len(ledger.rejects(sync)), 'reject')} of {sync} dismissed; {then}", yes)
    number = ledger.dismiss(sync, spellings(keys or ()) or None)
    if keys and not number:
        raise DefinitionError("REJECT_UNKNOWN", f"{sync} has no open reject with this key")
    done(invocation, {"sync": sync, "dismissed": number}, f"{counted(number, 'reject')} dismissed; {then}")


@command(app, "retry", reveals=True)
def retry(
    invocation: Invocation,
    name: SyncName,
    keys: Keys = None,
    codes: Codes = None,
    accept: Annotated[
        list[str] | None, typer.Option("--accept", metavar="CODE", help="Pass this guard once.")
    ] = None,
    var: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A SQL parameter.")] = None,
) -> int:
    """Send the rows of open rejects again, as they are in the mart now; delete nothing."""
    from retl.app.session import options
    from retl.cli.running import progress, report

    session = invocation.session
    sync = session.definition(name)
    session.require([sync])
    chosen = _chosen(session.ledger(create=True), [name], keys, codes)
    usable = tuple(dict.fromkeys(one.key for one in chosen if one.key))
    if not usable:
        said = "no open reject has a usable key" if chosen else "no open rejects"
        invocation.show({"syncs": [], "exit_code": 0}, lambda: [said])
        return 0
    asked = replace(
        options(keys=usable, accept=accept or (), variables=invocation.variables(var)),
        retry=True,
    )
    with session.stop.listening(), progress(invocation):
        (summary,) = session.run_chosen([sync], asked)
    session.write_metrics(None, [summary])
    if summary.run_id is not None:
        summary = replace(summary, notes=(*summary.notes, *_left(session.ledger(), sync, chosen)))
    return report(invocation, [summary])


def _left(ledger: Ledger, sync: Sync, tried: Sequence[RejectRow]) -> list[str]:
    """What became of the rejects that were tried."""
    still = {(one.key, one.row_id) for one in ledger.rejects(sync.name)}
    left = [one for one in tried if (one.key, one.row_id) in still]
    closed = len(tried) - len(left)
    notes = [f"{closed:,} of {counted(len(tried), 'open reject')} {'is' if closed == 1 else 'are'} closed"]
    if unusable := sum(not one.key for one in left):
        notes.append(
            f"{counted(unusable, 'row')} without a usable key: only a run of the whole mart tries again"
        )
    return notes


group(rejects, "rejects", list_rejects, "list", reveals=True, formats=Formats, before_sync=(), ledger=True)
