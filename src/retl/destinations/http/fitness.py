"""Whether what a sync says of an HTTP API fits together. Each function raises DefinitionError if it does not.
Nothing is sent."""

from __future__ import annotations

from retl.destinations.batch import Mode, Shape
from retl.destinations.http import texts
from retl.destinations.http.body import Endpoint, Template
from retl.destinations.http.options import INSERTS, OPERATION_NAMES, HttpOptions
from retl.errors import DefinitionError
from retl.net.auth import InBody
from retl.net.signing import FormDigest


def refuse_conflicts(options: HttpOptions, shape: Shape) -> None:
    """CONFLICTS_UNSUPPORTED for a strategy that these endpoints cannot keep."""
    if not shape.cautious:
        return
    lacks = [
        word
        for word, one in (("read", options.read), ("update", options.update), ("insert", options.insert))
        if one is None and not (word == "insert" and shape.write == "update_only")
    ]
    why = None
    if shape.write in (*INSERTS, "replace"):
        why = f"with `write: {shape.write}` no object is changed, so there is nothing to keep"
    elif lacks:
        why = f"it needs {' and '.join(f'`{one}`' for one in lacks)} under `destination`"
    elif shape.deletes != "keep" and options.version is None:
        why = "deletes need `version`, which tells whether somebody changed any field of the object"
    if why is not None:
        raise DefinitionError(
            "CONFLICTS_UNSUPPORTED",
            f"`conflicts` is not possible here: {why}",
            hint="leave the fields that others edit out of the sync, or use `conflicts: warehouse_wins`",
        )


def refuse_half_rows(options: HttpOptions, shape: Shape) -> None:
    """HTTP_OPERATION if rows could stay without their fields: an append has no second request, and
    insert_only would keep what an interrupted run left."""
    if options.makes and shape.write in INSERTS:
        raise DefinitionError(
            "HTTP_OPERATION",
            f"`insert` creates rows with their key alone (`means: made`), and `write: {shape.write}`"
            " has no `update` that writes their fields",
            hint="use `write: upsert`",
        )


def refuse_no_place(options: HttpOptions, template: Template, operation: Mode) -> None:
    """HTTP_AUTH if the secret belongs into the body, and a request has no place."""
    auth = options.connection.auth
    if not isinstance(auth, InBody | FormDigest):
        return
    in_form = isinstance(auth, InBody) or template.endpoint.encoding == "form"
    part = None if in_form and not template.refuses_member(auth.name) else OPERATION_NAMES[operation]
    part = part or ("check" if options.check else "job" if template.endpoint.job else None)
    if part:
        raise DefinitionError(
            "HTTP_AUTH",
            f"`auth` adds {auth.name!r} to bodies, and the body of `{part}` has no place for it",
            hint="it needs JSON objects or a form without such a member; or send the secret in a header",
        )


def refuse_named_headers(options: HttpOptions, shape: Shape) -> None:
    """HTTP_PLACEHOLDER if a header of the connection looks like a value of a row."""
    names = {one.name for one in (*shape.key, *shape.fields)}
    for header, value in options.connection.headers.items():
        if name := texts.named(value.get_secret_value(), names):
            why = f"is in the connection's header {header}, which is the same for all rows"
            raise texts.refused(name, why, hint="an operation's own `headers` take values of a row")


def refuse_unused(options: HttpOptions, shape: Shape, endpoint: Endpoint) -> None:
    """OPTION_UNUSED for an option about a key or field that the rows lack."""
    options.folds.refuse_unused(shape.key)
    nulls, fields = endpoint.cast.nulls, [field.name for field in shape.fields]
    if unknown := [one for one in nulls if one not in ("*", *fields)] if isinstance(nulls, dict) else []:
        raise DefinitionError(
            "OPTION_UNUSED", f"`nulls` has no effect: there is no field {unknown[0]!r} here"
        )


def refuse_ids(options: HttpOptions, shape: Shape, endpoint: Endpoint) -> None:
    """HTTP_IDEMPOTENCY if the ids in rows do not name them. An update under the id of its insert would be
    taken for the insert."""
    key = options.idempotency
    if key is None or key.row is None:
        return
    if shape.write not in INSERTS:
        raise DefinitionError(
            "HTTP_IDEMPOTENCY", f"`idempotency: {{row: {key.row}}}` is for inserts, which send a row once"
        )
    if not endpoint.names_rows_at(key.row, [field.name for field in shape.key]):
        raise DefinitionError(
            "HTTP_IDEMPOTENCY",
            f"a row of `insert` has no id at {key.row} that is made from the whole key",
            hint=f"row: {{{key.row}: $key, …}}",
        )


def refuse_unknown_ref(
    options: HttpOptions, shape: Shape, endpoint: Endpoint, operation: Mode, *, learns: bool
) -> None:
    """HTTP_REF if an operation needs external ids that no answer contains; `learns`: those of writes do."""
    if not endpoint.asks_ref or (options.find and operation != "append"):
        return
    writes = OPERATION_NAMES[shape.write]
    if operation != "delete":
        raise DefinitionError(
            "HTTP_REF",
            f"`$ref` cannot be used in `{writes}`: only its answer contains the id of a row",
            hint="for the external id from another sync use a field: {ref: SYNC, by: COLUMN}",
        )
    if not learns:
        raise DefinitionError(
            "HTTP_REF",
            f"`$ref` in a delete needs answers to `{writes}` with the id of each row",
            hint="set `outcome.ref` to the path of the id, `outcome.match` to how an item names its row",
        )


def refuse_partof_key(shape: Shape, endpoint: Endpoint, operation: Mode) -> None:
    """HTTP_KEY if a request names some fields of the key and not the others, because it would reach other
    rows too. A delete names them all; elsewhere the key may be among the fields."""
    keys = [field.name for field in shape.key]
    named = endpoint.named(keys)
    if operation in INSERTS or named == set(keys) or not (named or operation == "delete"):
        return
    lacks = ", ".join(name for name in keys if name not in named)
    raise DefinitionError(
        "HTTP_KEY",
        f"`{OPERATION_NAMES[operation]}` lacks {lacks} of the key, so it would reach other rows too",
        hint="name every field of the key in its path or row; `$keys` is for a key of one field",
    )


def unserved(operation: Mode) -> DefinitionError:
    """The error if no endpoint serves an operation of the sync."""
    word = "deletes" if operation == "delete" else f"write: {operation}"
    name = OPERATION_NAMES[operation]
    return DefinitionError(
        "HTTP_OPERATION",
        f"`{word}` needs `{name}` under `destination`",
        hint=f"{name}: {{method: …, path: /…}}"
        + (", or `find` with `insert` and `update`" if operation == "upsert" else ""),
    )
