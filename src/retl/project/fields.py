"""The source of each destination field, and the rules for syncs that share an object.

It knows definitions and the names of a contract's columns. It does not know types, SQL or targets. A broken
rule is a Problem at a location of the sync; the caller that knows the file adds the place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

from msgspec import Struct

from retl.errors import DefinitionError
from retl.project.contracts import STAR
from retl.project.definitions import Sync
from retl.project.validation import did_you_mean, raise_all
from retl.project.writing import FieldSource
from retl.project.yamlfile import Loc


class Problem(Struct, frozen=True):
    """What is wrong, and where in the sync's definition."""

    sync: str
    loc: Loc
    code: str
    message: str
    hint: str | None = None


class Claim(Struct, frozen=True):
    """The object a sync writes to (`Destination.claim`), and the fields it writes besides the key."""

    sync: Sync
    object: str
    fields: frozenset[str]


class Neighbour(Struct, frozen=True):
    """Another sync of the same object: the fields that its definition names, and whether it also writes
    whatever its mart has."""

    fields: frozenset[str]
    follows: bool

    @classmethod
    def of(cls, sync: Sync) -> Neighbour:
        columns = sync.contract.named if sync.contract else None
        return cls(claimed(sync, columns), columns is None and _has_star(sync))


def key_fields(sync: Sync) -> dict[str, FieldSource]:
    """The key's fields at the destination, in the order of the key. A column's field is the one with its own
    name, else the first that takes it as it is, else the first that transforms it, else the column itself."""
    found = {}
    for column in sync.key:
        fields = [(name, source) for name, source in _named(sync).items() if source.column == column]
        own = [one for one in fields if one[0] == column]
        plain = [one for one in fields if not one[1].transform]
        name, source = [*own, *plain, *fields, (column, FieldSource(column=column))][0]
        found[name] = source
    return found


def key_names(sync: Sync) -> tuple[str, ...]:
    """The names of the key's fields at the destination."""
    return tuple(key_fields(sync))


def expand_fields(sync: Sync, contract_columns: Sequence[str]) -> dict[str, FieldSource]:
    """Every field the sync writes → its source: the key first, under its names at the destination.

    If `fields` is given, it is the complete list. `"*": "*"`, or no `fields` at all, stands for each contract
    column that no field uses. A value that a soft delete restores, and that no field gives, is a constant.
    DefinitionError(s) if columns and fields do not fit.
    """
    raise_all(
        DefinitionError(each.code, each.message, hint=each.hint, where=f"sync {sync.name}")
        for each in problems(sync, contract_columns)
    )
    return _expand(sync, contract_columns)


def lacking(sync: Sync, column: str, known: Sequence[str]) -> tuple[str, str]:
    """That there is no such column, and a hint. A contract of all columns lacks what the mart lacks."""
    takes_all = sync.contract is None or STAR in (sync.contract.columns or {})
    whose = "mart" if takes_all else "contract"
    more = "" if takes_all else '; a column of the mart must be in it, or take all with `"*": "*"`'
    hint = did_you_mean(column, known) or f"the {whose} has: {', '.join(known)}{more}"
    return f"the {whose} has no column {column!r}", hint


def problems(sync: Sync, contract_columns: Sequence[str] | None) -> Iterator[Problem]:
    """What does not fit between the sync's columns and fields. If the columns are None, only what can be
    found without them."""
    names = dict(zip(key_names(sync), sync.key, strict=True))
    if contract_columns is not None:
        used: list[tuple[Loc, str]] = [(("key", index), column) for index, column in enumerate(sync.key)]
        used += [(("fields", name, "column"), s.column) for name, s in _named(sync).items() if s.column]
        used += [(("rejects", "mask", index), column) for index, column in enumerate(sync.rejects.mask)]
        used += [(("fields", name, "by"), column) for name, s in _named(sync).items() for column in s.by]
        used += [(("conflicts",), one.mart) for one in sync.strategies if one.mart is not None]
        for loc, column in used:
            if column not in contract_columns:
                yield Problem(sync.name, loc, "COLUMN_UNKNOWN", *lacking(sync, column, contract_columns))
    for name, source in _named(sync).items():
        if name in names and source.column != names[name]:
            message = f"{name!r} is the field of the key, so it cannot get another value"
            yield Problem(sync.name, ("fields", name), "FIELD_TWICE", message)
        elif name in names and (option := _without_effect(source)):
            message = f"{name!r} is the field of the key: `{option}` has no effect there"
            yield Problem(sync.name, ("fields", name, option), "OPTION_UNUSED", message, f"remove `{option}`")
    if contract_columns is None and _has_star(sync):
        return
    written = _expand(sync, contract_columns or ())
    for name in sync.deletes.set:
        if name not in written or name in names:
            message = f"a soft delete sets {name!r}, but the sync does not write this field"
            hint = f"add it to `fields`, or give in `restore` the value of {name!r} for a row that comes back"
            yield Problem(sync.name, ("deletes", "set", name), "SOFT_DELETE_FIELD", message, hint)
    for name in sync.erase.set if sync.erase else ():
        if name not in written or name in names:
            message = f"`erase` sets {name!r}, but the sync does not write this field"
            hint = "add it to `fields`"
            yield Problem(sync.name, ("erase", "set", name), "SOFT_DELETE_FIELD", message, hint)
    for index, name in enumerate(sync.changes.ignore):
        place: Loc = ("changes", "hash", "ignore", index)
        if name not in written:
            message = f"`ignore` names {name!r}, but the sync does not write this field"
            yield Problem(sync.name, place, "FIELD_UNKNOWN", message, did_you_mean(name, written))
        elif name in names or written[name].run_value is not None:
            what = "is the field of the key" if name in names else f"is {written[name].run_value}"
            message = f"`ignore` names {name!r}, which {what} and is never compared"
            yield Problem(sync.name, place, "OPTION_UNUSED", message, f"remove {name!r} from `ignore`")


def sharing(claims: Iterable[Claim]) -> Iterator[Problem]:
    """Where several syncs of one object do what only one of them may do. Paused syncs do not count."""
    for first, second in combinations(claims, 2):
        if first.object != second.object:
            continue
        one, other = first.sync, second.sync
        if _inserts_or_deletes(one) and _inserts_or_deletes(other):
            message = (
                f"sync {one.name!r} writes to the same object, and only one sync may insert or delete there"
            )
            loc: Loc = ("write",) if other.write != "update_only" else ("deletes",)
            hint = "set `write: update_only` and `deletes: keep` in one of them"
            yield Problem(other.name, loc, "OBJECT_SHARED", message, hint)
        for name in sorted(first.fields & second.fields):
            message = f"the field {name!r} of this object is already written by sync {one.name!r}"
            yield Problem(
                other.name, ("fields", name), "FIELD_SHARED", message, "let only one sync write this field"
            )


def claimed(sync: Sync, contract_columns: Sequence[str] | None) -> frozenset[str]:
    """The known fields that a sync writes besides the key."""
    return frozenset(_expand(sync, contract_columns or ())) - set(key_names(sync))


def _inserts_or_deletes(sync: Sync) -> bool:
    return sync.write != "update_only" or sync.deletes.how != "keep"


def _without_effect(source: FieldSource) -> str | None:
    """The option of a key's field that has no effect: a key is never NULL and always sent."""
    if source.nulls != "clear":
        return "nulls"
    if source.conflicts is not None:
        return "conflicts"
    return "only_if_empty" if source.only_if_empty else None


def _has_star(sync: Sync) -> bool:
    return sync.fields is None or "*" in sync.fields


def _named(sync: Sync) -> dict[str, FieldSource]:
    return {name: source for name, source in (sync.fields or {}).items() if name != "*"}


def _expand(sync: Sync, contract_columns: Sequence[str]) -> dict[str, FieldSource]:
    named, names = _named(sync), key_fields(sync)
    found = dict(names)
    if _has_star(sync):
        taken = {*sync.key, *(source.column for source in named.values()), *named}
        taken |= {column for source in named.values() for column in source.by}
        found |= {column: FieldSource(column=column) for column in contract_columns if column not in taken}
    found |= {name: source for name, source in named.items() if name not in names}
    restored = {name: FieldSource(value=value) for name, value in sync.deletes.restore.items()}
    return found | {name: source for name, source in restored.items() if name not in found}
