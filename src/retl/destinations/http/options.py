"""The options of a destination over HTTP: an endpoint per operation, and what they share.

It says what fits together. What an operation does with them is said in `operations`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from retl.destinations.batch import Mode, WriteMode
from retl.destinations.http import texts
from retl.destinations.http.body import Endpoint
from retl.destinations.http.cells import Cast
from retl.destinations.http.finding import Find
from retl.destinations.http.folds import KeyFolds
from retl.destinations.http.jobs import Job
from retl.destinations.http.objects import Read, Version
from retl.destinations.http.rules import Rules
from retl.destinations.http.steps import Together
from retl.model import Definition, Duration
from retl.net.auth import HeaderName
from retl.net.connection import HttpConnection

OPERATION_NAMES: dict[Mode, str] = {
    "upsert": "upsert",
    "insert_only": "insert",
    "append": "insert",
    "update_only": "update",
    "replace": "insert",
    "delete": "delete",
}
INSERTS = ("insert_only", "append")


class Probe(Definition):
    """A request that changes nothing and needs the same credential as writes."""

    method: Literal["GET", "HEAD", "OPTIONS"] = "GET"
    path: Annotated[str, Field(pattern=r"^/[!-~]*$")]

    @field_validator("path")
    @classmethod
    def _constant(cls, path: str) -> str:
        if "{" in path or set(texts.unfilled(path, ())):
            raise ValueError("`check` belongs to no row: its path has no placeholders")
        return path


class Idempotency(Definition):
    """By what a target recognises what it got before, and for how long after the first time: the key of a
    request in a `header`, or the id that each row of an insert has at the path `row`, made from its key."""

    header: HeaderName | None = None
    row: str | None = None
    window: Duration = 86400.0

    @model_validator(mode="after")
    def _fits(self) -> Idempotency:
        if (self.header is None) == (self.row is None):
            raise ValueError("`idempotency` needs a `header`, or the path of an id in a `row`")
        return self


class HttpOptions(Definition):
    connection: HttpConnection
    upsert: Endpoint | None = None
    insert: Endpoint | None = None
    update: Endpoint | None = None
    delete: Endpoint | None = None
    find: Find | None = None  # before a row is created, changed or deleted, if its external id is not known
    outcome: Rules = Rules()
    job: Job | None = None  # of every operation that has none of its own
    cast: Cast | None = None  # the same
    idempotency: Idempotency | None = None
    check: Probe | None = None
    folds: KeyFolds = KeyFolds()
    batch: Together | None = (
        None  # many rows in one request, where `find` or `read` gives each requests of its own
    )
    read: Read | None = None  # one object, before it is written where others may have changed it
    version: Version | None = None

    @model_validator(mode="before")
    @classmethod
    def _shares(cls, given: Any) -> Any:
        """Gives the shared job and cast to every operation that has none."""
        if not isinstance(given, dict):
            return given
        shared = {name: given[name] for name in ("job", "cast") if given.get(name)}
        having = {name: one for name in OPERATION_NAMES.values() if isinstance(one := given.get(name), dict)}
        if "cast" in shared and all("cast" in one for one in having.values()):
            raise ValueError("`cast` has no effect: every operation has its own")
        return {**given, **{name: {**shared, **one} for name, one in having.items()}}

    @model_validator(mode="after")
    def _fits(self) -> HttpOptions:
        if self.version and not self.read:
            raise ValueError("`version` needs `read`: how an object is read that has another version")
        if not self.version and any(one.asks_version for one in self._changing):
            raise ValueError("`$version` needs `version`: where an answer has it")
        if self.find and (self.idempotency or (self.upsert and (self.insert or self.update))):
            raise ValueError(
                "`find` is instead of `upsert` and `idempotency`; beside `upsert` it is for `delete`"
            )
        if self.makes and (not (self.find and self.update) or self.read):
            raise ValueError("`means: made` needs `find` and `update`, and no `read`")
        if self.find and any(one.job for one in (self.insert, self.update) if one):
            raise ValueError("`find` needs an `insert` and an `update` without `job`")
        if self.batch and (not self.find or self.upsert or self.find.settles):
            raise ValueError("`batch` needs `find` without `settles`, and no `upsert`")
        if self.batch and any(one.job or one.then for one in self._changing):
            raise ValueError("`batch` takes no `job`, and no `then`")
        for name in ("upsert", "insert", "update"):
            if (one := getattr(self, name)) and one.then:
                raise ValueError(f"`{name}.then`: only a `delete` has one")
        opened = [name for name in OPERATION_NAMES.values() if (one := getattr(self, name)) and one.opens]
        if opened and (self.idempotency or (self.find and "delete" in opened)):
            raise ValueError(f"`{opened[0]}.job.open` is not for `idempotency` or `find`")
        if self.find and any((one.rows_at_most or 2) > 1 for one in (self.insert, self.update) if one):
            raise ValueError("`find` needs an `insert` and an `update` with one row per request")
        return self

    @property
    def _changing(self) -> list[Endpoint]:
        return [one for one in (self.upsert, self.insert, self.update, self.delete) if one]

    @property
    def makes(self) -> bool:
        """Whether `insert` creates objects without their fields."""
        cases = (self.insert.outcome or self.outcome).cases if self.insert else ()
        return any(case.means == "made" for case in cases)

    @property
    def creates(self) -> bool:
        """Whether an upsert is an `insert` or an `update`, as the object is there or not."""
        return bool(self.insert and not self.upsert and (self.find or self.read))

    def endpoint(self, write: WriteMode) -> Endpoint | None:
        """The one that names the object of all rows."""
        name = "insert" if self.creates else OPERATION_NAMES[write]
        found: Endpoint | None = getattr(self, name)
        return found
