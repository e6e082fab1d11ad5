"""Erasures over several syncs: which syncs have the person, and what became of each.

A sync that cannot be searched or reached is named, and the others are erased nevertheless.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import asdict, replace

from retl.app.session import Session, options
from retl.errors import DefinitionError, RetlError
from retl.ledger.erasures import masked
from retl.observe.summary import described
from retl.project.definitions import Sync
from retl.project.fields import key_names
from retl.run import erase as run
from retl.run import erasure_check
from retl.run.job import Job
from retl.values.keys import key_texts

if TYPE_CHECKING:
    from retl.ledger import Ledger


_UNDEFINED = "SYNC_UNKNOWN"


class Part(Struct, frozen=True):
    """The keys of the person in one sync."""

    sync: Sync
    keys: tuple[str, ...]


class Found(Struct, frozen=True):
    """Where the person is, and which syncs say nothing about that: each with the reason, and whether it is
    something to mend. `columns` are those of the marts that were read."""

    parts: Sequence[Part]
    unsearched: Sequence[Mapping[str, Any]] = ()
    columns: frozenset[str] = frozenset()

    @property
    def unread(self) -> list[str]:
        """The syncs of the project that could not be searched now: they may have the person."""
        return [one["sync"] for one in self.unsearched if one["code"] not in (None, _UNDEFINED)]

    @property
    def undefined(self) -> list[str]:
        """The syncs of the ledger that no file defines: they cannot be searched at all."""
        return [one["sync"] for one in self.unsearched if one["code"] == _UNDEFINED]


def by_key(session: Session, name: str, keys: Sequence[str]) -> Found:
    """The sync, and every other that writes to the same object under the same key."""
    sync = session.definition(name)
    claim, names = session.project.claim(sync), key_names(sync)
    others = [
        one
        for one in session.project.syncs.values()
        if one.name != name
        and claim is not None
        and key_names(one) == names
        and session.project.claim(one) == claim
    ]
    return Found([Part(one, key_texts(keys, len(names))) for one in (sync, *others)])


def by_subject(session: Session, ledger: Ledger, column: str, value: str, *, reads: bool) -> Found:
    """Every sync whose mart has the person in this column, and syncs of the same objects. A sync of the
    history that the project no longer has cannot be searched."""
    parts: dict[str, set[str]] = {}
    unsearched: list[Mapping[str, Any]] = []
    columns = set[str]()
    for sync in session.project.syncs.values():
        try:
            searched = run.search(job(session, ledger, sync, reads=reads), column, value)
        except RetlError as problem:
            unsearched.append({"sync": sync.name, "reason": problem.message, "code": problem.code})
            continue
        columns.update(searched.columns)
        if searched.keys is None:
            reason = f"its mart has no column {column!r}"
            unsearched.append({"sync": sync.name, "reason": reason, "code": None})
        elif searched.keys:
            for part in by_key(session, sync.name, searched.keys).parts:
                parts.setdefault(part.sync.name, set()).update(part.keys)
    for name in ledger.synced():
        if name not in session.project.syncs and ledger.files_of(name):
            reason = (
                "it is no longer defined, and the ledger still has its files with keys: `retl state mv"
                f" {name} HEIR` gives them to another sync, `retl state reset {name}` removes them; look at"
                " its target by hand"
            )
            unsearched.append({"sync": name, "reason": reason, "code": _UNDEFINED})
    found = [Part(session.project.syncs[name], tuple(sorted(keys))) for name, keys in parts.items()]
    return Found([one for one in found if one.keys], unsearched, frozenset(columns))


def by_digest(session: Session, ledger: Ledger, names: Sequence[str]) -> Found:
    """The suppressed keys that are at a target again, of these syncs or of all: a backup brought them back.
    A target that cannot be listed cannot be searched."""
    parts, unsearched = [], list[Mapping[str, Any]]()
    for name in names or ledger.suppressing():
        try:
            keys = erasure_check.back(job(session, ledger, session.definition(name), reads=True))
        except RetlError as problem:
            unsearched.append({"sync": name, "reason": problem.message, "code": problem.code})
            continue
        if keys is None:
            reason = "its target cannot be listed: name the keys"
            unsearched.append({"sync": name, "reason": reason, "code": "ERASE_KEY"})
        elif keys:
            parts.append(Part(session.definition(name), tuple(keys)))
    return Found(parts, unsearched)


def job(
    session: Session, ledger: Ledger, sync: Sync, accept: Sequence[str] = (), *, reads: bool = False
) -> Job:
    """The job of an erasure: every row is deleted, for good where the vendor has such a delete. One that only
    `reads` leaves no trace in the ledger."""
    session.require([sync])
    resolved = session.project.destination(sync)
    if more := resolved.destination.erasing(resolved.options) if sync.erase is None else {}:
        resolved = session.project.destination(sync, more)
    made = session.job(sync, ledger, replace(options(accept=accept, dry_run=reads), purpose="erase"))
    where = resolved.target
    return run.suited(replace(made, sync=run.deleting(sync), target=where, images=sync.rollback.keep))


def look(session: Session, ledger: Ledger, found: Found, subject: str | None) -> Iterator[dict[str, Any]]:
    """What an erasure would do, per sync."""
    for part in found.parts:
        asked = run.Asked("", part.keys, "", subject)
        yield _each(part, partial(_looked, session, ledger, part, asked))


def erase(
    session: Session,
    ledger: Ledger,
    found: Found,
    reason: str,
    *,
    subject: str | None = None,
    accept: Sequence[str] = (),
) -> tuple[str, list[dict[str, Any]]]:
    """Erase the person from every sync; returns the id of the erasure, and the end of each sync."""
    needles = {key for part in found.parts for key in part.keys} | ({subject} if subject else set())
    if masked(reason, needles) != reason:
        raise DefinitionError(
            "ERASE_REASON",
            "the reason has the person's key or address in it, and the proof would keep it",
            hint="give the number of the request, such as --reason 'ticket 4711'",
        )
    erasure_id = f"{ledger.now():%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    return erasure_id, [
        _each(part, partial(_erased, session, ledger, part, erasure_id, reason, subject, accept))
        for part in found.parts
    ]


def _looked(session: Session, ledger: Ledger, part: Part, asked: run.Asked) -> dict[str, Any]:
    return asdict(run.look(job(session, ledger, part.sync, reads=True), asked))


def _erased(
    session: Session,
    ledger: Ledger,
    part: Part,
    erasure_id: str,
    reason: str,
    subject: str | None,
    accept: Sequence[str],
) -> dict[str, Any]:
    asked = run.Asked(erasure_id, part.keys, reason, subject)
    summary, erasure = run.erase(job(session, ledger, part.sync, accept), asked)
    status = erasure.status if erasure is not None and erasure.status != "open" else "failed"
    return {
        "object": erasure.object if erasure else None,
        "erasure_id": erasure.erasure_id if erasure else None,
        "run_id": summary.run_id,
        "status": status,
        "proof": dict(erasure.proof) if erasure and status != "failed" else None,
        "exit_code": summary.exit_code,
        "error": summary.error,
        **({"notes": list(summary.notes)} if summary.notes else {}),
    }


def _each(part: Part, do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What became of one sync; an error is its result, and the other syncs go on."""
    first = {"sync": part.sync.name, "keys": len(part.keys)}
    try:
        return {**first, "exit_code": 0, "error": None, **do()}
    except RetlError as problem:
        failed = {"status": "failed", "exit_code": problem.exit_code, "error": described(problem)}
        return {**first, "object": None, "run_id": None, "proof": None, **failed}


def lift(session: Session, ledger: Ledger, found: Found, reason: str) -> int:
    """Take keys off the suppressed ones, for the sync and those of the same object; returns how many."""
    number = 0
    for part in found.parts:
        number = max(number, run.lift(job(session, ledger, part.sync), part.keys, reason))
    return number


def verify(
    session: Session, ledger: Ledger, names: Sequence[str], keys: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Per sync that suppresses keys: whether one of them is somewhere. A target that cannot be listed is
    asked for `keys`; one that is not looked at is not clean: exit 1."""
    suppressing = ledger.suppressing()
    for name in names or suppressing:
        known = session.project.syncs.get(name)
        if known is None:
            message = "it is no longer defined: its target cannot be asked"
            yield {"sync": name, "suppressed": suppressing.get(name, 0), "faults": [message], "exit_code": 1}
            continue
        try:
            asked = key_texts(keys, len(key_names(known)))
            found = erasure_check.verify(job(session, ledger, known, reads=True), asked)
        except RetlError as problem:
            faults = [f"{problem.message} [{problem.code}]"]
            yield {
                "sync": name,
                "suppressed": suppressing.get(name, 0),
                "faults": faults,
                "exit_code": problem.exit_code,
            }
            continue
        code = int(bool(found.faults or found.unchecked))
        yield {"sync": name, **asdict(found), "faults": found.faults, "exit_code": code}
