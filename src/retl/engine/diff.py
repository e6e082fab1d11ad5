"""Diff: the hashed mart against the baseline → candidates, the rows that are due or gone.

One join finds changed rows, keys that left the mart and duplicate keys. Nothing here knows a target.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

from msgspec import Struct

from retl.engine import hash
from retl.engine.baseline import BASELINE, DROPPED, ENTRIES, NOTHING
from retl.engine.feed import LEFT
from retl.engine.hash import ROWS
from retl.engine.mapping import FieldMap
from retl.engine.workspace import Workspace
from retl.values.sql import literal

# row (NULL if the key left the mart), key, op, ending, cleared, owned, ref, seen, former (hash), dropped.
# `op` is insert, update, refresh, delete, or none where the row has no usable key. `ending` is NULL while
# the row is due.
CANDIDATES = "candidates"
_FORMERS = 16  # shapes of a sync whose digests are still read
UNLIKE = "0000000000000000"  # in hexadecimal a digest that no value has
NEVER = f"unhex('{UNLIKE}')"  # digests that no row has
OUTSIDE = "outside"  # the ending of a key that left the mart and is not in the scope of deletes
UPSERTS = ("insert", "update", "refresh")
Ends = Mapping[tuple[str, str | None], int]  # rows by (op, ending)


class Former(Struct, frozen=True):
    """Fields that were sent before, of which a row of the baseline may still have digests. `salt`: the end of
    such a row's hash; `names`: what its digests are of."""

    salt: str
    names: tuple[str, ...]


class Compares(Struct, frozen=True):
    """How the digests of a baseline are read. `salt`: the end of the hash of rows with today's fields;
    `names`: what their digests are of; `lacks`: those of which the target holds nothing."""

    salt: str
    names: tuple[str, ...] = ()
    formers: tuple[Former, ...] = ()
    lacks: frozenset[str] = frozenset()

    @classmethod
    def between(
        cls, now: Mapping[str, str], former: Mapping[str, str], lacks: Collection[str] = ()
    ) -> Compares:
        """For rows with the fingerprints `now`, and a baseline with the `former` ones. `lacks`: fields that
        the target has no column for, so that it holds nothing of what was sent."""
        salt, names = [*json.loads(now["digests"]).items()][-1]
        known = json.loads(former.get("digests", "{}"))
        formers = [Former(one, tuple(had)) for one, had in known.items() if one != salt and names]
        return cls(salt, tuple(names), tuple(formers), frozenset(lacks))


def digests_of(what: str, names: Sequence[str]) -> str:
    """The fingerprint `digests`: as JSON, what digests are of by the end of the row's hash."""
    return json.dumps({what[:8].upper(): list(names)})


def remembered(*fingerprints: Mapping[str, str]) -> str:
    """The same of several fingerprints, from the oldest to the newest, because rows that were not written
    since have digests of an older one still."""
    shapes = dict[str, list[str]]()
    for one in fingerprints:
        for salt, names in json.loads(one.get("digests", "{}")).items():
            shapes.pop(salt, None)
            shapes[salt] = names
    return json.dumps(dict([*shapes.items()][-_FORMERS:]))


class Strategy(Struct, frozen=True):
    """Which rows are due, and what to do with keys that left the mart."""

    everything: bool  # every row, changed or not
    absence: bool  # a key that left the mart is deleted
    once: bool  # a key that the target confirmed is never sent again
    hold_unknown: bool  # a row with an unknown outcome is not sent again
    scope: str | None = None  # a table: the only keys that are deleted by absence
    refresh_before: datetime | None = None  # rows confirmed before this are sent again, because they expire
    refresh_after: datetime | None = None  # rows confirmed after this too: by a clock that was set back since
    held: Sequence[int] = ()  # epochs of runs whose rows are not sent again because they expire
    again: bool = False  # what did not change is sent too
    learns: bool = False  # a row of which it is not known what the target holds is due once
    compares: Compares | None = None  # rows are written only where nobody edited them


def diff(
    workspace: Workspace,
    field_map: FieldMap,
    strategy: Strategy,
    baseline_rows: int,
    *,
    whole: bool,
    fed: bool = False,
    among: str = "TRUE",
) -> None:
    """Create CANDIDATES from ROWS and BASELINE, without unchanged rows. In a `whole` mart duplicate keys get
    their fault here, otherwise they have it already. Of a mart that was `fed`, only keys in LEFT are gone.
    `among`: of keys only those that match this SQL predicate; each of the others is there once and known."""
    rows, known = (f"(SELECT * FROM {one} WHERE {among})" for one in (ROWS, BASELINE))
    if fed:
        touched = f"SELECT key FROM {LEFT} UNION SELECT key FROM {ROWS}"
        known = f"(SELECT * FROM {BASELINE} WHERE key IN ({touched}))"
    join = f"{rows} r {'FULL' if whole or fed else 'LEFT'} JOIN {known} b"
    _compare(workspace, strategy, join)
    if whole and _repeats_keys(workspace, field_map, baseline_rows):
        hash.mark_duplicates(workspace, field_map)
        _compare(workspace, strategy, join)


def leave_due(workspace: Workspace, keys: Iterable[str]) -> None:
    """Do not attempt the candidates that are unknown, or have one of these keys: a later run will."""
    workspace.load("left", {"key": "VARCHAR"}, ((key,) for key in keys))
    workspace.run(
        f"UPDATE {CANDIDATES} SET ending = 'not_attempted' WHERE ending IS NULL AND key IN"
        f' (SELECT key FROM {BASELINE} WHERE hash IS NULL UNION ALL SELECT key FROM "left")'
    )


def settle(workspace: Workspace) -> None:
    """Let the unchanged rows be unchanged, if no row is due for another reason."""
    if not any(op != "refresh" and ending is None for op, ending in ends(workspace)):
        workspace.run(f"DELETE FROM {CANDIDATES} WHERE op = 'refresh' AND ending IS NULL")


def ends(workspace: Workspace) -> Ends:
    """The number of candidates by op and ending, so far."""
    rows = workspace.run(f"SELECT op, ending, count(*) FROM {CANDIDATES} GROUP BY ALL")
    return {(op, ending): number for op, ending, number in rows}


def forgotten(workspace: Workspace) -> int:
    """The number of keys of ours that the whole mart lacks."""
    number: int = workspace.one(f"SELECT count(*) FROM {CANDIDATES} WHERE op = 'delete' AND owned")[0]
    return number


def _compare(workspace: Workspace, strategy: Strategy, join: str) -> None:
    changed = "TRUE" if strategy.everything and not strategy.once else "b.hash IS DISTINCT FROM r.hash"
    if strategy.learns:
        changed = f"({changed} OR b.seen IS NULL)"
    refresh = ""
    if strategy.refresh_before is not None:
        assert strategy.refresh_after is not None
        before, after = (
            f"{literal(one.isoformat())}::TIMESTAMPTZ"
            for one in (strategy.refresh_before, strategy.refresh_after)
        )
        late = f"(b.confirmed_at < {before} OR b.confirmed_at > {after})"
        if strategy.held:
            epochs = ", ".join(map(str, strategy.held))
            late += f" AND b.key NOT IN (SELECT key FROM {ENTRIES} WHERE epoch IN ({epochs}))"
        refresh = f" WHEN {late} THEN 'refresh'"
    if strategy.again:
        refresh = " WHEN TRUE THEN 'refresh'"
    op = (
        "CASE WHEN r.row IS NULL THEN 'delete' WHEN r.fault IS NOT NULL THEN 'none'"
        f" WHEN b.key IS NULL THEN 'insert' WHEN {changed} THEN 'update'{refresh} ELSE 'unchanged' END"
    )
    stays = "'kept'"
    if strategy.absence:
        outside = f" WHEN b.key NOT IN (SELECT key FROM {strategy.scope}) THEN '{OUTSIDE}'"
        stays = f"CASE WHEN NOT b.owned THEN 'kept'{outside if strategy.scope else ''} END"
    doubt = " WHEN b.hash IS NULL THEN 'in_doubt'" if strategy.hold_unknown else ""
    once = " WHEN b.hash IS NOT NULL THEN 'skipped'" if strategy.once else ""
    ending = (
        f"CASE WHEN r.row IS NULL THEN {stays} WHEN r.fault IS NOT NULL THEN 'rejected'"
        f" WHEN b.key IS NULL THEN NULL{doubt}{once} END"
    )
    workspace.run(
        f"CREATE OR REPLACE TABLE {CANDIDATES} AS SELECT * FROM ("
        f"SELECT r.row, coalesce(r.key, b.key) AS key, {op} AS op, {ending} AS ending,"
        f" r.cleared, b.owned, b.ref, {seen_sql(strategy.compares)} AS seen,"
        f" {_former_sql(strategy.compares)} AS former,"
        f" {_dropped_sql(workspace, strategy.compares)} AS dropped"
        f" FROM {join} ON b.key = r.key"
        ") WHERE op <> 'unchanged'"
    )


def seen_sql(compares: Compares | None) -> str:
    """SQL of what the target held after our last write, from the baseline `b`. An unknown row may not be
    there at all."""
    if compares is None:
        return "CAST(NULL AS BLOB)"
    of = "WHEN right(hex(b.hash), 8) ="
    formers = "".join(f" {of} {literal(one.salt)} THEN {_moved(compares, one)}" for one in compares.formers)
    return (
        f"CASE WHEN b.hash IS NULL THEN NULL {of} {literal(compares.salt)}"
        f" THEN coalesce({_present(compares)}, {NEVER}){formers} ELSE {NEVER} END"
    )


def _present(compares: Compares) -> str:
    """SQL of the digests of today's fields; those of fields that the target lacks are of nothing."""
    if compares.lacks.isdisjoint(compares.names):
        return "b.seen"
    digits = [
        literal(NOTHING) if name in compares.lacks else f"substr(hex(b.seen), {16 * at + 1}, 16)"
        for at, name in enumerate(compares.names)
    ]
    size = len(compares.names)
    held = f"unhex(concat({', '.join(digits)}, substr(hex(b.seen), {16 * size + 1})))"
    return f"CASE WHEN octet_length(b.seen) >= {8 * size} THEN {held} ELSE b.seen END"


def _former_sql(compares: Compares | None) -> str:
    """SQL of the hash that a key keeps if its row leaves the mart and the target keeps it. Its digests are
    those of today's fields now, so a hash of former fields gives way to one of today's that no row has."""
    if compares is None:
        return "NULL::BLOB"
    salt = literal(compares.salt)
    blank = f"unhex(concat(repeat('0', 2 * octet_length(b.hash) - 8), {salt}))"
    return f"CASE WHEN b.hash IS NULL OR right(hex(b.hash), 8) = {salt} THEN b.hash ELSE {blank} END"


def _dropped_sql(workspace: Workspace, compares: Compares | None) -> str:
    """SQL of the digests of what retl left in fields that are not sent any more, by their names: one that is
    sent again is compared with it. A row that is made anew has none. Mostly no row has any."""
    if compares is None or not _may_drop(workspace, compares):
        return f"CAST(NULL AS {DROPPED})"
    cases = [f"WHEN b.hash IS NULL OR right(hex(b.hash), 8) = {literal(compares.salt)} THEN b.dropped"]
    mine = ", ".join(map(literal, compares.names))
    stay = f"list_filter(map_entries(b.dropped), lambda one: one.key NOT IN ({mine}))"
    for former in compares.formers:
        kept = f"map_from_entries({stay})"
        left = [
            f"{literal(name)}: {_part(at)}"
            for at, name in enumerate(former.names)
            if name not in compares.names
        ]
        if left:
            more = f"map_concat(coalesce({kept}, MAP {{}}), MAP {{{', '.join(left)}}})"
            kept = f"CASE WHEN {_known(former)} THEN {more} ELSE {kept} END"
        cases.append(f"WHEN right(hex(b.hash), 8) = {literal(former.salt)} THEN {kept}")
    return f"CAST(CASE {' '.join(cases)} END AS {DROPPED})"


def _may_drop(workspace: Workspace, compares: Compares) -> bool:
    """Whether a row may have a digest of a field that is not sent."""
    if not all(set(one.names) <= set(compares.names) for one in compares.formers):
        return True
    return bool(workspace.run(f"SELECT 1 FROM {BASELINE} WHERE dropped IS NOT NULL LIMIT 1"))


def _known(former: Former) -> str:
    return f"octet_length(b.seen) >= {8 * len(former.names)}"


def _part(at: int) -> str:
    return f"unhex(substr(hex(b.seen), {16 * at + 1}, 16))"


def _moved(compares: Compares, former: Former) -> str:
    """SQL of the digests of former fields as those of today's, also where those are not known. In a field
    that was not sent we left what we did when it was last sent, else nothing: it is filled where it is empty,
    and a value in it is somebody else's. What is behind the digests of fields goes, because it is of other
    columns now; but not the byte of a respected removal."""
    places = {name: at for at, name in enumerate(former.names)}
    digits = [
        literal(NOTHING)
        if name in compares.lacks
        else f"CASE WHEN {_known(former)} THEN hex({_part(places[name])}) ELSE {literal(UNLIKE)} END"
        if name in places
        else f"coalesce(hex(b.dropped[{literal(name)}]), {literal(NOTHING)})"
        for name in compares.names
    ]
    removal = "CASE WHEN octet_length(b.seen) % 8 = 1 THEN right(hex(b.seen), 2) ELSE '' END"
    return (
        "CASE WHEN octet_length(b.seen) = 0 THEN b.seen"
        f" ELSE unhex(concat({', '.join(digits)}, {removal})) END"
    )


def _repeats_keys(workspace: Workspace, field_map: FieldMap, baseline_rows: int) -> bool:
    """Whether the whole mart has a key twice, or two that the target does not tell apart. The baseline has
    each key once, so the number of rows that match it must equal the number of matched keys. Only the other
    keys need a query of their own. It groups their digests, in half the time of the keys: two keys with one
    digest cost a second look, and are found to differ."""
    found = ends(workspace)
    inserts = f"FROM {CANDIDATES} WHERE op = 'insert'"
    new = sum(number for (op, _), number in found.items() if op == "insert")
    unmet = sum(number for (op, _), number in found.items() if op == "delete")
    usable = workspace.one(f"SELECT count(*) FROM {ROWS} WHERE fault IS NULL")[0]
    return (
        usable - new > baseline_rows - unmet
        or bool(workspace.run(f"SELECT 1 {inserts} GROUP BY hash(key) HAVING count(*) > 1 LIMIT 1"))
        or (bool(field_map.folds) and hash.collide(workspace, field_map))
    )
