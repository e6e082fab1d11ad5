"""Which field of the destination comes from where, and what syncs may not do to one another's fields.

It knows definitions and the names of a contract's columns, nothing of types, SQL or targets. A rule that
is broken is a Problem at a location of the sync; whoever knows the file gives it a place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from retl.errors import DefinitionError
from retl.project.definitions import FieldSource, Sync
from retl.project.validation import did_you_mean, raise_all
from retl.project.yamlfile import Loc


@dataclass(frozen=True)
class Problem:
    """What is wrong, and where in the sync's definition."""

    sync: str
    loc: Loc
    code: str
    message: str
    hint: str | None = None


@dataclass(frozen=True)
class Claim:
    """A sync's claim to an object: which one (`Destination.claim`), and which fields besides the key."""

    sync: Sync
    object: str
    fields: frozenset[str]


def key_names(sync: Sync) -> tuple[str, ...]:
    """The destination's names of the key columns: as `fields` renames them, else their own."""
    plain = [(s.column, name) for name, s in _named(sync).items() if s.column and not s.transform]
    renamed = dict(reversed(plain))  # the first field of a column names it …
    renamed |= {column: name for column, name in plain if column == name}  # … unless one keeps its name
    return tuple(renamed.get(column, column) for column in sync.key)


def expand_fields(sync: Sync, contract_columns: Sequence[str]) -> dict[str, FieldSource]:
    """Every field the sync writes → its source: the key first, under its names at the destination.

    `fields`, given, is the complete list; `"*": "*"` and an absent `fields` stand for each contract column
    that nothing else takes. What a soft delete restores and no field gives is a constant.
    DefinitionError(s) if columns or fields do not fit.
    """
    raise_all(
        DefinitionError(each.code, each.message, hint=each.hint, where=f"sync {sync.name}")
        for each in problems(sync, contract_columns)
    )
    return _expand(sync, contract_columns)


def problems(sync: Sync, contract_columns: Sequence[str] | None) -> Iterator[Problem]:
    """What does not fit between the sync's columns and fields; with None as columns, as far as one can say
    without them."""
    names = dict(zip(key_names(sync), sync.key, strict=True))
    if contract_columns is not None:
        used: list[tuple[Loc, str]] = [(("key", index), column) for index, column in enumerate(sync.key)]
        used += [(("fields", name, "column"), s.column) for name, s in _named(sync).items() if s.column]
        used += [(("rejects", "mask", index), column) for index, column in enumerate(sync.rejects.mask)]
        used += [(("fields", name, "by"), column) for name, s in _named(sync).items() for column in s.by]
        for loc, column in used:
            if column not in contract_columns:
                hint = did_you_mean(column, contract_columns)
                yield Problem(
                    sync.name, loc, "COLUMN_UNKNOWN", f"the contract has no column {column!r}", hint
                )
    for name, source in _named(sync).items():
        if name in names and source.column != names[name]:
            message = f"{name!r} is the key's own field: another value cannot go there"
            yield Problem(sync.name, ("fields", name), "FIELD_TWICE", message)
    if contract_columns is None and _has_star(sync):
        return
    written = _expand(sync, contract_columns or ())
    for name in sync.deletes.set:
        if name not in written or name in names:
            message = f"a soft delete sets {name!r}, which the sync does not write"
            hint = f"add it to `fields`, or say in `restore` what {name!r} is for a row that came back"
            yield Problem(sync.name, ("deletes", "set", name), "SOFT_DELETE_FIELD", message, hint)
    for index, name in enumerate(sync.changes.ignore):
        if name not in written:
            message = f"`ignore` names {name!r}, which the sync does not write"
            place: Loc = ("changes", "hash", "ignore", index)
            yield Problem(sync.name, place, "FIELD_UNKNOWN", message, did_you_mean(name, written))


def sharing(claims: Iterable[Claim]) -> Iterator[Problem]:
    """What syncs of one object do that only one of them may."""
    for first, second in combinations(claims, 2):
        if first.object != second.object:
            continue
        one, other = first.sync, second.sync
        if _makes(one) and _makes(other):
            message = (
                f"sync {one.name!r} writes the same object, and only one sync may insert or delete there"
            )
            loc: Loc = ("write",) if other.write != "update_only" else ("deletes",)
            hint = "make it `write: update_only` and `deletes: keep`"
            yield Problem(other.name, loc, "OBJECT_SHARED", message, hint)
        for name in sorted(first.fields & second.fields):
            message = f"the field {name!r} of this object is already written by sync {one.name!r}"
            yield Problem(other.name, ("fields", name), "FIELD_SHARED", message, "one field, one sync")


def claimed(sync: Sync, contract_columns: Sequence[str] | None) -> frozenset[str]:
    """The fields besides the key that a sync is known to write."""
    return frozenset(_expand(sync, contract_columns or ())) - set(key_names(sync))


def _makes(sync: Sync) -> bool:
    return sync.write != "update_only" or sync.deletes.how != "keep"


def _has_star(sync: Sync) -> bool:
    return sync.fields is None or "*" in sync.fields


def _named(sync: Sync) -> dict[str, FieldSource]:
    return {name: source for name, source in (sync.fields or {}).items() if name != "*"}


def _expand(sync: Sync, contract_columns: Sequence[str]) -> dict[str, FieldSource]:
    named, names = _named(sync), key_names(sync)
    found = {name: FieldSource(column=column) for name, column in zip(names, sync.key, strict=True)}
    if _has_star(sync):
        taken = {*sync.key, *(source.column for source in named.values()), *named}
        taken |= {column for source in named.values() for column in source.by}
        found |= {column: FieldSource(column=column) for column in contract_columns if column not in taken}
    found |= {name: source for name, source in named.items() if name not in names}
    restored = {name: FieldSource(value=value) for name, value in sync.deletes.restore.items()}
    return found | {name: source for name, source in restored.items() if name not in found}
