"""From mart columns to the destination's fields: the sync's shape, and the SQL that fills it.

Every expression here is SQL over the frozen mart. `k0…` and `f0…` are the columns of a change set: the key
and field values in the order of the shape.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from types import MappingProxyType
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from retl.contract.judge import Contract
from retl.destinations.batch import Field, Folds, Newest, Shape, SoftDelete
from retl.errors import DefinitionError
from retl.model import Formats
from retl.project.definitions import Sync
from retl.project.fields import expand_fields, key_fields, key_names
from retl.project.writing import FieldSource, Phone, Transform
from retl.values import canonical, keys, phone, storage, types
from retl.values.sql import literal, quoted
from retl.values.transforms import transform_sql
from retl.values.types import Type


class Run(Struct, frozen=True):
    """Values of a run that may be sent with a row."""

    run_id: str
    started_at: datetime  # aware, UTC

    @classmethod
    def at(cls, now: datetime) -> Run:
        """A run with an id that sorts by time."""
        return cls(f"{now:%Y%m%dT%H%M%S%f}"[:18] + "-" + secrets.token_hex(3), now)


class Lookup(Struct, frozen=True):
    """A field with the external id of another sync's row; `key` and `ref` are SQL over the frozen mart."""

    field: str
    sync: str
    columns: str  # for people
    key: str  # the other row's key as text, NULL if there is none
    ref: str  # its external id, NULL if unknown


class FieldMap(Struct, frozen=True):
    """The mapping from a sync's rows to the destination's rows."""

    shape: Shape
    key_expressions: tuple[str, ...]
    field_expressions: tuple[str, ...]
    newest_expressions: tuple[str, ...]  # of `Shape.newest`
    key: str  # SQL of the key as it is sent, as text: what baseline, ledger and logs call the key
    mart_key: str  # SQL of the key before its transforms, as text
    key_fault: str  # SQL of the CODE of an unusable key, or NULL
    field_fault: str | None  # SQL of the column that a transform cannot convert, or NULL
    formats: Formats
    timezone: str
    lookups: tuple[Lookup, ...] = ()
    folds: tuple[Folds, ...] = ()  # per field of the key, how the target folds it; empty: it folds none

    @property
    def may_collide(self) -> bool:
        """Whether rows with different keys in the mart may be one row at the target."""
        return bool(self.folds) or self.key != self.mart_key

    def folded(self, key: str) -> str:
        """SQL of what the target compares instead of a key, from the SQL of the key's text."""
        types = [one.type for one in self.shape.key]
        if not self.folds:
            return key
        values = [keys.key_value_sql(types, index, key) for index in range(len(types))]
        return keys.key_sql(types, [keys.fold_sql(f, v) for f, v in zip(self.folds, values, strict=True)])

    @property
    def payload(self) -> str:
        """SQL list of k0…, f0…, n0… over the frozen mart."""
        pairs = [(e, f"k{i}") for i, e in enumerate(self.key_expressions)]
        pairs += [(e, f"f{i}") for i, e in enumerate(self.field_expressions)]
        pairs += [(e, f"n{i}") for i, e in enumerate(self.newest_expressions)]
        return ", ".join(f"{expression} AS {name}" for expression, name in pairs)


def build(
    sync: Sync,
    contract: Contract,
    run: Run,
    *,
    state_id: str,
    timezone: str,
    referred: Mapping[str, Sequence[FieldSource]] = MappingProxyType({}),
) -> FieldMap:
    """The mapping of one run. `referred` are the fields of the keys of other syncs. DefinitionError if a
    field or key names no contract column."""
    sources = _sources(sync, contract)
    columns = [
        _column_field(sync, name, source, contract, timezone) for name, source in key_fields(sync).items()
    ]
    key, key_expressions = tuple(f for f, *_ in columns), tuple(e for _, e, _ in columns)
    key_faults = [fault for *_, found in columns for fault in found]
    lookups = {
        name: _lookup(sync, name, source, contract, timezone, referred.get(source.ref, ()))
        for name, source in sources.items()
        if source.ref is not None
    }
    made = [
        _field(sync, name, source, contract, run, timezone, lookups.get(name))
        for name, source in sources.items()
    ]
    newest, newest_expressions = _newest(sync, contract, timezone)
    fields = tuple(_with_conflicts(sync, sources[f.name], f, newest) for f, *_ in made)
    expressions = tuple(e for _, e, _ in made)
    faults = [(fault, field.column) for field, _, found in made for fault in found]
    mart_key = tuple(_cast(contract, column, timezone) for column in sync.key)
    types_of_key = [one.type for one in key]
    return FieldMap(
        shape=_shape(sync, state_id, key, fields, newest),
        key_expressions=key_expressions,
        field_expressions=expressions,
        newest_expressions=newest_expressions,
        key=keys.key_sql(types_of_key, key_expressions),
        mart_key=keys.key_sql(types_of_key, mart_key),
        key_fault=_key_fault(sync, contract, key, mart_key, key_faults),
        field_fault=_field_fault(faults),
        formats=sync.formats,
        timezone=timezone,
        lookups=tuple(lookups.values()),
    )


def _newest(sync: Sync, contract: Contract, timezone: str) -> tuple[tuple[Newest, ...], tuple[str, ...]]:
    """What newest_wins compares, and the SQL of the mart's values."""
    pairs = dict.fromkeys(
        (one.mart, one.target) for one in sync.strategies if one.mart is not None and one.target is not None
    )
    found = tuple(Newest(Field(mart, contract.columns[mart].type), target) for mart, target in pairs)
    return found, tuple(_cast(contract, one.mart.name, timezone) for one in found)


def _with_conflicts(sync: Sync, source: FieldSource, field: Field, newest: Sequence[Newest]) -> Field:
    """The field with its strategy: its own, or the sync's. A field that is not compared has none."""
    asked = source.conflicts or sync.conflicts
    if not field.compared or asked.how == "warehouse_wins":
        return field
    pairs = [(one.mart.name, one.target) for one in newest]
    number = pairs.index((asked.mart or "", asked.target or "")) if asked.how == "newest_wins" else 0
    return replace(field, conflicts=asked.how, newest=number)


def _digests(sync: Sync) -> Literal["none", "fields", "row"]:
    """Which digests the target is asked for: to delete a row destroys its other columns too."""
    cautious = sync.conflicts.how != "warehouse_wins" and sync.deletes.how != "keep"
    if cautious or sync.rollback.keep is not None:  # to take an insert back is to delete
        return "row"
    return "fields" if any(one.how != "warehouse_wins" for one in sync.strategies) else "none"


def _shape(
    sync: Sync,
    state_id: str,
    key: tuple[Field, ...],
    fields: tuple[Field, ...],
    newest: tuple[Newest, ...],
) -> Shape:
    flags = sync.rollback.soft.set if sync.rollback.soft else {}
    return Shape(
        sync=sync.name,
        state_id=state_id,
        key=key,
        fields=fields,
        write=sync.write,
        deletes=SoftDelete(sync.deletes.set) if sync.deletes.how == "set" else sync.deletes.how,
        cascade=sync.cascade,
        digests=_digests(sync),
        conflicts=sync.conflicts.how,
        newest=newest,
        images=sync.rollback.keep is not None,
        flags=flags,
        flagged=tuple(Field(name, _constant_type(value)) for name, value in flags.items()),
        description=sync.description,
        freshness=sync.freshness,
        formats=sync.formats,
    )


def external_ids(sync: str) -> str:
    """The workspace's table of another sync's external ids: "retl key" (as `Lookup.key`) → "retl ref"."""
    return quoted(f"retl refs {sync}")


def external_ids_key(columns: int) -> str:
    """SQL of "retl key" from a baseline's `key` with this number of columns: all parts as text."""
    return "key" if columns == 1 else "CAST(to_json(CAST(CAST(key AS JSON) AS VARCHAR[])) AS VARCHAR)"


def compared(mapping: FieldMap) -> list[tuple[str, str, Type]]:
    """The fields the row hash covers, as (name, SQL, type)."""
    pairs = zip(mapping.shape.fields, mapping.field_expressions, strict=True)
    return [(f.name, e, f.type) for f, e in pairs if f.compared]


def key_fingerprint(sync: Sync, mapping: FieldMap) -> str:
    """Digest of the key's columns, types and transforms."""
    sources = key_fields(sync)
    transforms = {name: source.model_dump(mode="json")["transform"] for name, source in sources.items()}
    return _digest([[f.column, str(f.type), *transforms[f.name]] for f in mapping.shape.key])


def payload_fingerprint(sync: Sync, contract: Contract, mapping: FieldMap, shaping: Mapping[str, Any]) -> str:
    """Digest of everything that determines the bytes sent. It salts the row hash: if it changes, every row
    differs once. The name of a column determines none of them: a row whose values another column has as well
    is unchanged."""
    sources = _sources(sync, contract)
    fields = [
        [
            f.name,
            str(f.type),
            sources[f.name].model_dump(mode="json", exclude={"conflicts", "column"}),
            f.compared,
        ]
        for f in mapping.shape.fields
    ]
    names = [f.name for f in mapping.shape.key]
    if sync.write == "insert_only":
        names.append("insert_only")  # another mode must not take skipped rows as delivered
    return _digest(
        [
            canonical.HASH_VERSION,
            sorted(fields),
            names,
            mapping.formats.model_dump(),
            mapping.timezone,
            shaping,
        ]
    )


def payload_parts(
    sync: Sync, contract: Contract, mapping: FieldMap, shaping: Mapping[str, Any]
) -> dict[str, str]:
    """Digests of what `payload_fingerprint` is made from, by the name that a person knows it by: only to say
    what changed. The types of fields are not in them."""
    fields = {
        f"how {name} is made": source.model_dump(mode="json", exclude={"conflicts", "column"})
        for name, source in _sources(sync, contract).items()
    }
    options = {f"destination.{name}": value for name, value in shaping.items()}
    parts = {**fields, "formats": mapping.formats.model_dump(), "time zone": mapping.timezone, **options}
    return {name: _digest(part) for name, part in parts.items()}


def _sources(sync: Sync, contract: Contract) -> dict[str, FieldSource]:
    """Every field except the key."""
    names = key_names(sync)
    every = expand_fields(sync, list(contract.columns))
    return {name: source for name, source in every.items() if name not in names}


def _digest(thing: object) -> str:
    return sha256(json.dumps(thing, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _cast(contract: Contract, column: str, timezone: str) -> str:
    rule = contract.columns[column]
    return storage.cast(rule.type, quoted(column), rule.column_type, timezone)


def _field(
    sync: Sync,
    name: str,
    source: FieldSource,
    contract: Contract,
    run: Run,
    timezone: str,
    lookup: Lookup | None,
) -> tuple[Field, str, list[str]]:
    """The field, the SQL of its value, and the SQL of each fault."""
    is_compared = name not in sync.changes.ignore and source.run_value is None
    if source.run_value is not None:
        kind = Type("timestamptz" if source.run_value == "$run_started_at" else "string")
        text = {
            "$run_started_at": run.started_at.isoformat(),
            "$run_id": run.run_id,
            "$sync": sync.name,
        }[source.run_value]
        field = Field(name, kind, only_if_empty=source.only_if_empty, compared=False, nullable=False)
        return field, f"CAST({literal(text)} AS {storage.storage_type(kind)})", []
    if lookup is not None:
        field = Field(
            name,
            Type("string"),
            nulls=source.nulls,
            only_if_empty=source.only_if_empty,
            compared=is_compared,
        )
        return field, lookup.ref, []
    if source.column is None:
        kind = _constant_type(source.value)
        sql = "NULL" if source.value is None else literal(str(source.value))
        is_empty = source.value is None
        field = Field(name, kind, only_if_empty=source.only_if_empty, compared=is_compared, nullable=is_empty)
        return field, f"CAST({sql} AS {storage.storage_type(kind)})", []
    field, expression, faults = _column_field(sync, name, source, contract, timezone)
    return replace(field, compared=is_compared), expression, faults


def _column_field(
    sync: Sync, name: str, source: FieldSource, contract: Contract, timezone: str
) -> tuple[Field, str, list[str]]:
    """The field of a mart column, the SQL of its value, and the SQL of each fault. DefinitionError
    TRANSFORM_TYPE if a transform does not fit the column."""
    assert source.column is not None
    rule = contract.columns[source.column]
    if source.transform and rule.type.name != "string":
        raise DefinitionError(
            "TRANSFORM_TYPE",
            f"field {name!r}: a transform needs a string, and {source.column!r} is {rule.type}",
            where=f"sync {sync.name}",
        )
    expression, faults = _transformed(source.transform, _cast(contract, source.column, timezone))
    field = Field(
        name,
        rule.type,
        nulls=source.nulls,
        only_if_empty=source.only_if_empty,
        sensitive=rule.sensitive,
        column=source.column,
        max_length=None if source.transform else rule.max_length,
        description=rule.description,
        nullable=rule.nullable,
    )
    return field, expression, faults


def _transformed(transforms: Sequence[Transform | Phone], expression: str) -> tuple[str, list[str]]:
    """SQL of the transformed string, and SQL predicates of strings that a transform cannot convert."""
    faults = []
    for transform in transforms:
        if isinstance(transform, Phone) or transform == "e164":
            home = transform.e164 if isinstance(transform, Phone) else None
            expression = phone.e164_sql(
                expression, home.country if home else None, home.trunk if home else ""
            )
            faults.append(phone.unread_sql(expression))
        else:
            expression = transform_sql(transform, expression)
    return expression, faults


def _field_fault(faults: Sequence[tuple[str, str | None]]) -> str | None:
    cases = " ".join(f"WHEN {fault} THEN {literal(column or '')}" for fault, column in faults)
    return f"CASE {cases} END" if cases else None


def _lookup(
    sync: Sync,
    name: str,
    source: FieldSource,
    contract: Contract,
    timezone: str,
    keyed: Sequence[FieldSource],
) -> Lookup:
    """The lookup of a `ref` field, by the other sync's key as it is sent: `keyed` transform the texts of the
    columns. DefinitionError REF_BY if a column cannot be a key."""
    assert source.ref is not None
    for column in source.by:
        if contract.columns[column].type.name not in types.KEY_TYPES:
            raise DefinitionError(
                "REF_BY",
                f"field {name!r}: the column {column!r} is {contract.columns[column].type}, not a key type",
                where=f"sync {sync.name}",
            )
    texts = [
        keys.key_sql([contract.columns[column].type], [_cast(contract, column, timezone)])
        for column in source.by
    ]
    for index, their in enumerate(keyed):
        texts[index], _ = _transformed(their.transform, texts[index])
    key = keys.key_sql([Type("string")] * len(texts), texts)
    ref = f'(SELECT "retl ref" FROM {external_ids(source.ref)} WHERE "retl key" = {key})'
    return Lookup(name, source.ref, ", ".join(source.by), key, ref)


def _constant_type(value: object) -> Type:
    match value:
        case bool():
            return Type("boolean")
        case int():
            return Type("integer")
        case float():
            return Type("float")
        case _:
            return Type("string")


def _key_fault(
    sync: Sync, contract: Contract, key: Sequence[Field], texts: Sequence[str], unread: Sequence[str]
) -> str:
    """SQL of the CODE of an unusable key. `texts` are the key's values in the mart (no transform makes one
    blank), `unread` the predicates of values that a transform cannot convert."""
    null = " OR ".join(f"{quoted(column)} IS NULL" for column in sync.key)
    blank = " OR ".join(
        # trim knows all Unicode blanks but is slow; a text with another ASCII character first is not blank
        f"(({text} < '!' OR {text} >= chr(128)) AND trim({text}) = '')"
        for field, text in zip(key, texts, strict=True)
        if field.type.name == "string"
    )
    exact = " AND ".join(
        storage.exact(contract.columns[c].type, quoted(c), contract.columns[c].column_type) for c in sync.key
    )
    cases = ""
    if contract.misfit is not None:  # such a value is NULL, but the row has one
        cases = f"WHEN {quoted(contract.misfit)} IN ({', '.join(map(literal, sync.key))}) THEN 'KEY_TYPE' "
    cases += f"WHEN {null} THEN 'KEY_NULL'"
    cases += f" WHEN {blank} THEN 'KEY_BLANK'" if blank else ""
    cases += f" WHEN {' OR '.join(unread)} THEN 'NO_PHONE'" if unread else ""
    return f"CASE {cases} WHEN NOT ({exact}) THEN 'KEY_TYPE' END"
