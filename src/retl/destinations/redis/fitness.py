"""How a sync is kept in Redis, if options and shape fit. Does no I/O."""

from __future__ import annotations

from collections.abc import Sequence

from retl.destinations.batch import Shape
from retl.destinations.redis.appends import check_shape
from retl.destinations.redis.keys import Template
from retl.destinations.redis.members import Members
from retl.destinations.redis.options import OneField, RedisOptions
from retl.destinations.redis.reading import Hashes, Reader, Strings
from retl.destinations.redis.slots import tag_of, tags
from retl.destinations.redis.stamp import PARTS
from retl.destinations.redis.values import Hash, String
from retl.destinations.verdicts import refuse_mixed
from retl.errors import DefinitionError


def kept_as(options: RedisOptions, shape: Shape) -> tuple[Hash | String | Members, Template]:
    """How a row is kept, and where. DefinitionError if options and shape do not fit."""
    names, kind = [field.name for field in shape.key], options.value
    if options.connection.cluster and shape.conditional:
        what = "rollback" if shape.images and not shape.cautious else "conflicts"
        raise DefinitionError(
            f"{what.upper()}_UNSUPPORTED",
            f"`{what}` is not possible in a Redis Cluster: a batch is compared, written and marked in one"
            " step, and its keys are in many slots",
            hint=f"leave out `{what}`, or deliver to a single primary",
        )
    if kind == "stream":
        check_shape(shape, options.ttl)
        return String(shape, None), Template(options.key, [])
    if kind == "set" or kind == "zset":
        template = Template(options.key, names, members=True)
        return Members(kind, shape, template, options.ttl), template
    template = Template(options.key, names)
    _check_shape(options, shape)
    only = kind.field if isinstance(kind, OneField) else None
    return Hash(shape) if kind == "hash" else String(shape, only), template


def stamp_tags(value: object, template: Template) -> Sequence[str]:
    """The hash tags of the stamp in a cluster: that of the stream, or one in each part of the slots."""
    if value != "stream":
        return tags(PARTS)
    tag = tag_of(template.key([]).encode()).decode()
    if "}" in tag:
        raise DefinitionError(
            "KEY_TEMPLATE", f"in a cluster the key of a stream has no brace outside of a hash tag: {tag!r}"
        )
    return [tag]


def reader_of(kept: Hash | String | Members, shape: Shape, template: Template, *, clustered: bool) -> Reader:
    if isinstance(kept, Members):
        return kept
    if isinstance(kept, Hash):
        return Hashes(kept, shape, template)
    return Strings(kept, shape, template, clustered=clustered)


def _check_shape(options: RedisOptions, shape: Shape) -> None:
    """DefinitionError if options and shape do not fit."""
    only = options.value.field if isinstance(options.value, OneField) else None
    if only is not None and only not in [field.name for field in shape.fields]:
        raise DefinitionError("VALUE", f"`value` names {only!r}, which is not a field")
    if options.value == "hash":
        return
    if refuse_mixed(shape):
        raise DefinitionError(
            "CONFLICTS_UNSUPPORTED",
            "fields of one value cannot have strategies of their own: Redis replaces the value as a whole",
            hint="use `value: hash`, or one `conflicts` for the sync",
        )
    if only is not None and shape.newest:
        raise DefinitionError(
            "CONFLICTS_UNSUPPORTED",
            "newest_wins needs a time beside the field, and this value is one field",
            hint="use `value: hash` or json, or target_wins",
        )
    if shape.flags:
        raise DefinitionError(
            "ROLLBACK_UNSUPPORTED",
            "`rollback: {soft: …}` sets an entry of its own, which only a hash can have",
            hint="use `value: hash`, or `rollback: {keep: …}` alone",
        )
