"""Rows as members of a set or a sorted set: one Redis key holds many rows.

Each row is one command, so each reply belongs to one row. It adds or removes one member and leaves all others
as they are. What the others do to a set is not compared: see docs/decisions/0067.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from typing import Any, Literal

from retl.destinations.batch import Kind, RowResult, Shape
from retl.destinations.redis.comparison import Differing
from retl.destinations.redis.keys import Template
from retl.destinations.redis.resp import Command, Refusal
from retl.destinations.redis.values import field_texts
from retl.errors import DefinitionError

# A refused SADD must not renew the TTL of a key that is not ours.
ADD = """\
redis.call(ARGV[2], KEYS[1], unpack(ARGV, 3))
redis.call('EXPIRE', KEYS[1], ARGV[1])"""
SURE = 15  # digits of a number that every double shows as it was
NO_SCORE = RowResult(
    Kind.REJECTED, "NO_SCORE", "the score is NULL, and a member has a score: it is not in the set"
)
SCORE = RowResult(
    Kind.REJECTED,
    "SCORE",
    "Redis keeps a score as a double, which cannot hold this number: it is not in the set",
)


class Members:
    """The commands of one sync."""

    leaves_ttl = True

    def __init__(
        self, kind: Literal["set", "zset"], shape: Shape, template: Template, ttl: int | None
    ) -> None:
        """DefinitionError if the fields of the sync do not fit."""
        _check_shape(kind, shape, ttl)
        self._template, self._ttl = template, ttl
        self._score = shape.fields[0] if kind == "zset" else None

    def add(self, row: Sequence[Any]) -> Command:
        """The command that writes a row: its key, then the document of its fields. A row with a score that
        cannot be kept is removed."""
        text = None if self._score is None else self._score_of(row[-1])
        if self._score is not None and _misfit(text) is not None:
            return self.remove(row)
        name, key, *arguments = self._add(row, text)
        if self._ttl is None:
            return (name, key, *arguments)
        return ("EVAL", ADD, 1, key, self._ttl, name, *arguments)

    def _add(self, row: Sequence[Any], score: str | None) -> Command:
        key, member = self._template.key(row), self._template.member(row)
        return ("SADD", key, member) if score is None else ("ZADD", key, score, member)

    def remove(self, row: Sequence[Any]) -> Command:
        name = "SREM" if self._score is None else "ZREM"
        return (name, self._template.key(row), self._template.member(row))

    def refused(self, document: str) -> RowResult | None:
        """The result of a row with a score that Redis cannot keep as it is."""
        return None if self._score is None else _misfit(self._score_of(document))

    def probes(self, row: Sequence[Any]) -> list[Command]:
        """Commands of which the server tests rights, role and memory, and which are then dropped."""
        probed = (*row, "{}" if self._score is None else json.dumps({self._score.name: 0}))
        found = [self._add(probed, None if self._score is None else "0"), self.remove(probed)]
        if self._ttl is not None:
            found += [("EXPIRE", self._template.key(row), self._ttl), self.add(probed)]
        return [("MULTI",), *found, ("DISCARD",)]

    # --- read

    def asked(self, rows: Sequence[Sequence[Any]]) -> list[Command]:
        name = "SISMEMBER" if self._score is None else "ZSCORE"
        return [(name, self._template.key(row), self._template.member(row)) for row in rows]

    def held(self, replies: Sequence[Any]) -> Sequence[Any]:
        """Per row the score, or something else that is true; None without the member. A key of another kind
        has no members."""
        return [None if isinstance(one, Refusal) or one in (0, None) else one for one in replies]

    def fields(self, held: Any) -> Mapping[str, Any] | None:
        if held is None:
            return None
        return {} if self._score is None else {self._score.name: held.decode()}

    def differs(self, held: Any, document: str) -> Differing:
        if held is None:
            return None
        if self._score is None or not self._score.compared:
            return ()
        text = self._score_of(document)
        return () if text is not None and float(text) == float(held) else (self._score.name,)

    def listed(self, key: bytes, cursor: bytes, count: int) -> Command:
        return ("SSCAN" if self._score is None else "ZSCAN", key, cursor, "COUNT", count)

    def members(self, found: Iterable[bytes]) -> Iterable[bytes]:
        """The members in the replies to `listed`."""
        return islice(found, 0, None, 1 if self._score is None else 2)

    def _score_of(self, document: str) -> str | None:
        assert self._score is not None
        text = field_texts(document, frozenset())[self._score.name]
        return None if text is None else text.decode()


def _misfit(score: str | None) -> RowResult | None:
    """The result of a row whose score is not exactly a double, or not there."""
    if score is None:
        return NO_SCORE
    if len(score) <= SURE and "e" not in score:
        return None
    near = float(score)
    return None if Decimal(score) in (Decimal(repr(near)), Decimal(near)) else SCORE


def _check_shape(kind: str, shape: Shape, ttl: int | None) -> None:
    numbers = ("integer", "decimal", "float")
    if kind == "set" and shape.fields:
        raise DefinitionError(
            "SET_FIELDS",
            f"a set holds members and nothing beside them, so {shape.fields[0].name!r} cannot be sent",
            hint="name the columns of the key under `fields` and no other, or use `value: zset` or hash",
        )
    if kind == "zset" and (len(shape.fields) != 1 or shape.fields[0].type.name not in numbers):
        raise DefinitionError(
            "SET_FIELDS",
            "a sorted set holds one number with each member, so beside its key the sync must have one field,"
            " an integer, decimal or float: the score",
            hint="name the columns of the key and the score under `fields`",
        )
    if ttl is not None and shape.deletes != "delete":
        raise DefinitionError(
            "SET_TTL",
            "a set has one TTL for all its members, and each write renews it: a member that left the mart"
            " would stay",
            hint="use `deletes: delete`, or `ttl: none`",
        )
    if shape.conditional:
        what = "rollback" if shape.images and not shape.cautious else "conflicts"
        raise DefinitionError(
            f"{what.upper()}_UNSUPPORTED",
            f"`{what}` is not possible with members: retl does not remember what a set held after its last"
            " write",
            hint="use `value: hash` or json",
        )
