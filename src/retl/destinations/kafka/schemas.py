"""The schema that a sync's values have in a registry: found or registered once per run, before the first row.

It is the newest version of the subject, if that holds every row exactly; or the schema of the contract, if
the registry says that it is compatible. It sends no rows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from retl.destinations.batch import Shape, Visit
from retl.destinations.kafka import avro, json_schema
from retl.destinations.kafka.registry import Kind, Registry, Version
from retl.errors import Mismatch

if TYPE_CHECKING:
    from retl.destinations.kafka.adapter import KafkaOptions

_MOST = 3  # reasons that a message has
_WAYS = (
    "make the sync fit: a new field is `nullable: true` in the contract, an old one stays under `fields`; or"
    " lower the subject's compatibility at the registry; or deliver to another topic"
)


class Known(NamedTuple):
    """What one run found. `id` is None if the schema is not registered yet."""

    run_id: str
    schema: str
    id: int | None


class Schemas:
    """Of one lane. What a run has found is kept with its options, for all lanes."""

    def __init__(self, options: KafkaOptions, shape: Shape) -> None:
        """DefinitionError for names that the schema cannot have."""
        registry = options.connection.registry
        assert registry is not None, "the options demand one"
        self._options, self._formats = options, shape.formats
        self._registry = Registry(registry)
        self._keys = len(shape.key)
        self._columns = (*(replace(one, nullable=False) for one in shape.key), *shape.fields)
        self._kind: Kind = "AVRO" if options.value == "avro" else "JSON"
        self._subject = options.named_subject
        if self._kind == "AVRO":
            avro.require_names(options.named_record, self._columns)

    def check(self, visit: Visit) -> None:
        """Find the schema, once per run; registers nothing. Mismatch TARGET_DRIFT, Systemic, Unavailable."""
        known = self._options.known.get("schema")
        if known is None or not visit.epoch or known.run_id != visit.run_id:
            self._options.known["schema"] = self._found(visit.run_id)

    def prepare(self, visit: Visit) -> None:
        """The same, and register the schema if it is to be."""
        self.check(visit)
        self._registered()

    def note(self) -> str | None:
        """What a run will do at the registry that `check` did not do."""
        known = self._options.known.get("schema")
        if known is None or known.id is not None:
            return None
        return f"a run registers the schema of its values as a new version of {self._subject}"

    def encoder(self) -> Callable[[Sequence[Any]], bytes]:
        """What makes a row of Avro of the values of the key and the cells "stored" of the fields."""
        schema = self._registered().schema
        return avro.encoder(schema, self._columns, self.head(), values=self._keys)

    def head(self) -> bytes:
        """The bytes before each value: a zero, and the id of its schema."""
        return struct.pack(">bI", 0, self._registered().id)

    def _registered(self) -> Known:
        if "schema" not in self._options.known:
            self._options.known["schema"] = self._found("")
        known = self._options.known["schema"]
        if known.id is None:
            try:
                number = self._registry.register(self._subject, self._kind, known.schema)
            except Mismatch as problem:
                raise self._incompatible(problem.message) from None
            known = self._options.known["schema"] = known._replace(id=number)
        return known

    def _found(self, run_id: str) -> Known:
        if not self._options.register_schema:
            newest = self._registry.latest(self._subject)
            self._require_fit(newest)
            assert newest is not None
            return Known(run_id, newest.schema, newest.id)
        found = self._registry.find(self._subject, self._kind, self._made)
        if found is None:
            objections = self._registry.objections(self._subject, self._kind, self._made)
            if objections is not None:
                raise self._incompatible(objections)
        return Known(run_id, self._made, found)

    @cached_property
    def _made(self) -> str:
        """The schema of the contract."""
        if self._kind == "AVRO":
            return avro.schema_of(self._options.named_record, self._columns)
        return json_schema.schema_of(self._options.named_record, self._columns, self._formats)

    def _require_fit(self, version: Version | None) -> None:
        """Mismatch TARGET_DRIFT unless every row has the schema of this version."""
        if version is None:
            raise Mismatch(
                "TARGET_DRIFT",
                f"there is no subject {self._subject} at {self._registry.name}",
                hint="`register_schema: true` registers the schema of the sync's contract; or register one"
                " there; or fix `subject` and `record`",
            )
        reasons = list(self._reasons(version))
        if reasons:
            more = f", and {len(reasons) - _MOST} more" if len(reasons) > _MOST else ""
            raise Mismatch(
                "TARGET_DRIFT",
                f"version {version.number} of {self._subject} cannot hold the rows of this sync:"
                f" {'; '.join(reasons[:_MOST])}{more}",
                hint="make the sync fit (a cast, a type in the contract, names under `fields`); or register a"
                " version there that fits, which `register_schema: true` does",
            )

    def _reasons(self, version: Version) -> Iterator[str]:
        if version.kind != self._kind:
            yield f"it is {version.kind}, and `value: {self._options.value}` writes {self._kind}"
        elif version.refers:
            yield "it refers to other schemas, which retl does not read"
        else:
            try:
                yield from self._unfit(version.schema)
            except (LookupError, TypeError, AttributeError, ValueError):
                yield f"it is no valid schema of {self._kind}"

    def _unfit(self, schema: str) -> Iterator[str]:
        if self._kind == "AVRO":
            yield from avro.unfit(schema, self._columns)
        else:
            yield from json_schema.unfit(schema, self._columns, self._formats)

    def _incompatible(self, objections: str) -> Mismatch:
        message = f"{self._registry.name} says that this sync's schema is incompatible with {self._subject}"
        return Mismatch("TARGET_DRIFT", f"{message}: {objections}", hint=_WAYS)
