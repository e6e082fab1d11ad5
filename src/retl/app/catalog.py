"""What a project defines, for people: per sync its source, destination, contract, fields and lineage.

It reads the project's files and, where a contract is the user's own model, imports it. It opens no source and
needs no secret. A part that cannot be known without one is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from msgspec import Struct

from retl.app.loaded import LoadedProject
from retl.contract.model import Rule, read
from retl.errors import DefinitionError
from retl.project.definitions import Sync
from retl.project.fields import expand_fields, key_fields
from retl.project.writing import FieldSource
from retl.run.mapping_tests import UnreadColumns

EVERY = "*"  # every column of the mart, under its own name
LIMITS = ("min_length", "max_length", "pattern", "ge", "gt", "le", "lt")


class Column(Struct, frozen=True):
    """A column of a contract; `rules` are short sentences."""

    name: str
    type: str
    rules: Sequence[str]
    description: str | None


class Field(Struct, frozen=True):
    """A field of the destination, the columns that it comes from, and what happens on the way."""

    name: str
    columns: Sequence[str]
    how: Sequence[str]


class Entry(Struct, frozen=True):
    """One sync. `target`: connection and type; `object`: what it writes there, None if only a secret or an
    unset variable would tell; `columns`: None if the mart alone decides, and `note` says so."""

    sync: Sync
    marts: Sequence[str]
    sql: str | None
    target: str
    object: str | None
    columns: Sequence[Column] | None
    note: str
    fields: Sequence[Field]


def entry(project: LoadedProject, sync: Sync) -> Entry:
    rules, note = _rules(project, sync)
    ref = sync.destination
    known = project.definitions.connections.get(ref.connection or "")
    kind = ref.type or (known.type if known else None)
    names = [name for name in (ref.connection, kind) if name]
    return Entry(
        sync=sync,
        marts=marts(sync),
        sql=_sql(project, sync),
        target=", ".join(dict.fromkeys(names)),
        object=_object(project, sync),
        columns=None if rules is None else [_column(name, rule) for name, rule in rules.items()],
        note=note,
        fields=list(_fields(sync, rules)),
    )


def marts(sync: Sync) -> list[str]:
    """What a sync reads, each with the name of its source unless that is the warehouse."""
    source = sync.source
    if source.inputs is not None:
        return [_mart(one, str(one.get("from", ""))) for one in source.inputs.values()]
    return [_mart({**source.model_dump(by_alias=True), **(source.model_extra or {})}, source.from_ or "")]


def lineage(entries: Sequence[Entry]) -> list[tuple[str, str, str, str, str]]:
    """(mart, column, sync, destination, field) for every field that comes from a column."""
    return sorted(
        (", ".join(one.marts), column, one.sync.name, one.object or one.target, field.name)
        for one in entries
        for field in one.fields
        for column in field.columns
    )


def _mart(options: Mapping[str, object], source: str) -> str:
    named = (options.get(part) for part in ("table", "dbt", "file", "path", "pipeline"))
    name = next((str(one) for one in named if one), "a query")
    return f"{source}: {name}" if source else name


def _sql(project: LoadedProject, sync: Sync) -> str | None:
    if sync.source.file is not None:
        with suppress(OSError, UnicodeDecodeError):
            return (project.folder / sync.source.file).read_text(encoding="utf-8")
    return sync.source.sql


def _object(project: LoadedProject, sync: Sync) -> str | None:
    with suppress(DefinitionError):
        found = project.destination(sync, offline=True)
        return found.destination.place(found.options, sync.write).replace(f"{project.folder}/", "")
    return None


def _rules(project: LoadedProject, sync: Sync) -> tuple[dict[str, Rule] | None, str]:
    if sync.contract is None:
        return None, "None is written: every column of the mart, with the mart's own types."
    if sync.contract.needs_mart:
        return None, "It is written for some columns: the mart has the others, with its own types."
    try:
        return read(sync.contract, UnreadColumns(), project.folder)[1], ""
    except DefinitionError as problem:
        return None, f"It cannot be read: {problem.message} [{problem.code}]."


def _column(name: str, rule: Rule) -> Column:
    said = [] if rule.nullable else ["required"]
    said += ["sensitive"] if rule.sensitive else []
    said += [f"one of {', '.join(map(str, rule.one_of))}"] if rule.one_of else []
    limits = ((part, getattr(rule, part)) for part in LIMITS)
    said += [f"{part.replace('_', ' ')} {limit}" for part, limit in limits if limit is not None]
    said += [] if rule.plain else ["and what its model asks"]
    return Column(name, str(rule.type), said, rule.description)


def _fields(sync: Sync, rules: Mapping[str, Rule] | None) -> Iterator[Field]:
    try:
        found = expand_fields(sync, list(rules or ()))
    except DefinitionError:  # without the columns, what the files name is all there is
        found = {**key_fields(sync), **{k: v for k, v in (sync.fields or {}).items() if k != EVERY}}
    keys = set(key_fields(sync))
    for name, source in found.items():
        columns = [*([source.column] if source.column else []), *source.by]
        how = [*(["key"] if name in keys else []), *_how(source)]
        if any(rule.sensitive for column, rule in (rules or {}).items() if column in columns):
            how.append("sensitive")
        yield Field(name, columns, how)
    if rules is None and (sync.fields is None or EVERY in sync.fields):
        yield Field(EVERY, [EVERY], ["every other column under its own name"])


def _how(source: FieldSource) -> Iterator[str]:
    if source.ref is not None:
        yield f"the id that {source.ref} got for it"
    elif source.run_value is not None:
        yield f"{source.run_value}, filled in when it is written"
    elif source.column is None:
        yield "a constant"
    if source.transform:
        yield ", then ".join(one if isinstance(one, str) else "e164" for one in source.transform)
    if source.nulls != "clear":
        yield f"NULL: {source.nulls}"
    if source.only_if_empty:
        yield "only if the field is empty"
    if source.conflicts is not None:
        yield f"conflicts: {source.conflicts.how}"
