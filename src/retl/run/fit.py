"""Compares a sync with the capabilities of its destination, before anything runs."""

from __future__ import annotations

from retl.destinations.batch import Capabilities, Field, Shape
from retl.engine.mapping import FieldMap
from retl.errors import DefinitionError
from retl.model import Formats
from retl.project.definitions import Sync
from retl.project.fields import claimed, key_names
from retl.run.job import Target
from retl.values.types import Type

_OPERATIONS = frozenset({"OPERATION_UNSUPPORTED", "HTTP_OPERATION"})


def fit_definition(sync: Sync, target: Target) -> None:
    """DefinitionError if the target cannot write or delete as the sync asks, or if an option is missing or
    has no effect, as far as its definition alone says: the types of its fields are not known without the
    mart, and what depends on them, or on how edits of others are found, is not asked."""
    columns = sync.contract.named if sync.contract else None
    key, text = key_names(sync), Type("string")
    fields = sorted(claimed(sync, columns))
    shape = Shape(
        sync.name,
        "",
        tuple(Field(name, text) for name in key),
        tuple(Field(name, text) for name in fields),
        write=sync.write,
    )
    try:
        capabilities = target.lane(shape).capabilities
    except DefinitionError as problem:
        if problem.code in _OPERATIONS:
            raise
        return
    _fit_operations(sync, capabilities)
    _refuse_unused(sync, capabilities)
    if all(one.how == "warehouse_wins" for one in sync.strategies):
        _require_choices(sync, capabilities)


def fit(sync: Sync, field_map: FieldMap, capabilities: Capabilities) -> None:
    """DefinitionError if this destination cannot do what the sync asks."""
    _fit_operations(sync, capabilities)
    for one in field_map.shape.fields:
        if one.nulls == "keep" and not capabilities.nulls_keep:
            raise DefinitionError(
                "NULLS_KEEP_UNSUPPORTED",
                f"field {one.name!r}: this destination replaces the whole object and cannot keep a value",
                where=f"sync {sync.name}",
            )
        if one.only_if_empty and not capabilities.only_if_empty:
            raise DefinitionError(
                "ONLY_IF_EMPTY_UNSUPPORTED",
                f"field {one.name!r}: this destination cannot tell whether a field is empty",
                where=f"sync {sync.name}",
            )
    _fit_conflicts(sync, capabilities)
    _fit_rollback(sync, field_map, capabilities)
    _refuse_unused(sync, capabilities)
    _require_choices(sync, capabilities)


def _fit_operations(sync: Sync, capabilities: Capabilities) -> None:
    operation = "delete" if sync.deletes.how != "keep" else None
    for needed in filter(None, (sync.write, operation)):
        if needed not in capabilities.modes:
            raise DefinitionError(
                "OPERATION_UNSUPPORTED",
                f"this destination cannot {needed}; it can: {', '.join(sorted(capabilities.modes))}",
                where=f"sync {sync.name}",
            )
    if sync.deletes.how == "set" and not capabilities.soft_deletes:
        raise DefinitionError(
            "OPERATION_UNSUPPORTED",
            "this destination cannot mark a row in the place of a delete: its rows have no fields that change"
            " alone, so `set` is not possible here",
            hint="use `deletes: delete` or `keep`; for a person, leave out `erase: {set: …}`",
            where=f"sync {sync.name}",
        )
    if capabilities.whole and (sync.changes.strategy != "hash" or sync.deletes.how != "delete"):
        raise DefinitionError(
            "OPERATION_UNSUPPORTED",
            "a snapshot has the rows of the mart and no other: it needs `changes: hash` and"
            " `deletes: delete`",
            where=f"sync {sync.name}",
        )


def _fit_rollback(sync: Sync, field_map: FieldMap, capabilities: Capabilities) -> None:
    if sync.rollback.keep is not None and not capabilities.images:
        raise DefinitionError(
            "ROLLBACK_UNSUPPORTED",
            "`rollback` is not possible here: this target cannot keep its rows as they were before a write"
            " in one step with it",
            hint="use `rollback: none`; a run can then be taken back only by hand",
            where=f"sync {sync.name}",
        )
    if taken := {one.name for one in field_map.shape.fields} & set(field_map.shape.flags):
        raise DefinitionError(
            "ROLLBACK_FIELD",
            f"`rollback: {{soft: …}}` sets {min(taken)}, which the sync writes itself",
            hint="mark rows in a field that is not under `fields`",
            where=f"sync {sync.name}",
        )


def _refuse_unused(sync: Sync, capabilities: Capabilities) -> None:
    """DefinitionError for an option that has no effect here."""
    if sync.cascade and not capabilities.cascades:
        raise DefinitionError(
            "CASCADE_UNSUPPORTED",
            "`cascade: true` has no effect here: a delete changes only its own object",
            where=f"sync {sync.name}",
        )
    if sync.formats != Formats() and capabilities.form in ("csv", "tuples", "cells", "literals", "parquet"):
        raise DefinitionError(
            "OPTION_UNUSED",
            "`formats` has no effect here: it says how values are written in JSON, and this destination takes"
            " them in their own types",
            hint="remove `formats`",
            where=f"sync {sync.name}",
        )
    if sync.delivery is not None and capabilities.idempotent:
        raise DefinitionError(
            "OPTION_UNUSED",
            "`delivery` has no effect here: a row that arrives twice is the same as one that arrives once",
            hint="remove `delivery`",
            where=f"sync {sync.name}",
        )


def _fit_conflicts(sync: Sync, capabilities: Capabilities) -> None:
    """DefinitionError if this target cannot keep other people's edits as the sync asks."""
    asked = [one for one in sync.strategies if one.how != "warehouse_wins"]
    if not asked:
        return
    where, accepted = f"sync {sync.name}", [one.window is not None for one in asked]
    if capabilities.compares == "no":
        raise DefinitionError(
            "CONFLICTS_UNSUPPORTED",
            f"`conflicts: {asked[0].how}` is not possible here: this target can neither write under a"
            " condition nor tell what it held, so nobody would see an edit that is overwritten",
            hint="leave the fields that others edit out of the sync, or use `conflicts: warehouse_wins`",
            where=where,
        )
    if capabilities.compares == "window" and not all(accepted):
        raise DefinitionError(
            "CONFLICTS_WINDOW",
            "this target can only look first and write later: an edit in between is lost",
            hint="accept that with `conflicts: {target_wins: {window: accepted}}`",
            where=where,
        )
    if capabilities.compares == "atomic" and any(accepted):
        raise DefinitionError(
            "OPTION_UNUSED",
            "`window: accepted` has no effect here: this target looks and writes in one step",
            hint="write `target_wins`",
            where=where,
        )


def _require_choices(sync: Sync, capabilities: Capabilities) -> None:
    """DefinitionError for an option that must be set here, because twice is not once."""
    if not capabilities.idempotent and sync.first_run is None:
        raise DefinitionError(
            "FIRST_RUN_MISSING",
            "`first_run` must be set here (send or adopt): this target would keep a second delivery",
            where=f"sync {sync.name}",
        )
    once = capabilities.idempotent or capabilities.resolves or capabilities.key_window is not None
    if not once and sync.delivery is None:
        raise DefinitionError(
            "DELIVERY_MISSING",
            "`delivery` must be set here (at_least_once or at_most_once): the target is neither idempotent"
            " nor has an idempotency key",
            where=f"sync {sync.name}",
        )
