"""A JSON API that is read page by page with GET requests.

`items` is where an answer has its list of rows (`data`, `result.rows`; `orders[].lines` are the lines of all
orders; without `items` the answer itself is the list). `page` says how the next page is asked for: by its
number, an offset, a cursor, the address in the answer (`next`) or the Link header. The address of a page is
always on the server of `base_url`.

A contract is required, because JSON has no types: it names the columns, which are members of each row, and
reads them exactly, digits and all. A decimal or an integer may be a number or a text; every other value of
another type, or that the type cannot hold, rejects its row (`UNREPRESENTABLE`). A member that a row lacks is
NULL. A column that no row has is SOURCE_DRIFT, unless it is in `optional`: the API leaves out what is empty.
Nested members are read as `json`. As one of several `inputs`, where the contract judges what the SELECT
makes, the types stand under `columns`, and a value that its type cannot hold stops the run.

An API promises no snapshot: rows may move between pages while they are read. If answers say how many rows
there are (`total`), the number must stay the same and agree with the rows that came; else the reading starts
again, and after three times ends with SOURCE_MOVES. A row that is on two pages has a key twice and is a
reject. Without `total`, `has_more` or `until: short`, pages by number or offset end with one that has no
rows. An answer without the list, a page that comes twice and an answer that is no JSON are failures, never an
empty mart. The version of the source is a digest of the rows.

`$name` as a parameter is a variable of the project. `$watermark` is the mark of the sync's
`changes: {watermark: column}`, so the API sends only newer rows; without a mark it is `initial`, and without
that the parameter is left out.

429 and 5xx are tried again after the pause that the server asks for, within `retry`; 401 once with a new
token. `limits` are shared by all syncs of the source. Only reading is tried again: a body is never sent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec.structs import replace
from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, field_validator, model_validator

from retl.contract.model import types_of
from retl.engine import scratch
from retl.engine.sql_text import Query
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, Mismatch, SourceError
from retl.model import Definition, Duration, Limits
from retl.net.auth import HeaderName, Secret
from retl.observe.signals import Stop
from retl.pace.limiter import Pace
from retl.project.contracts import Column, Contract
from retl.sources.api import Description, Invocation, Since, Snapshot, Source, own_pace
from retl.sources.rest.api import Api, RestConnection
from retl.sources.rest.pages import Page, Walk, encoded
from retl.values.from_json import Misfit, Reader, Times, reader
from retl.values.sql import literal, quoted
from retl.values.types import Type

WATERMARK = "$watermark"
MISFIT = "retl misfit"  # the column of a row whose value its type cannot hold
_TYPE = {"type", "max_digits", "decimal_places", "items"}
_ROW: msgspec.json.Decoder[dict[str, msgspec.Raw]] = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LINE = msgspec.json.Encoder()
_TRIES = 3  # readings of an API whose rows move
_LARGEST = 16 * 1024 * 1024  # bytes of a row that DuckDB reads by default
Scalar = StrictStr | StrictBool | StrictInt | StrictFloat


class RestOptions(Definition):
    """What is read, and how."""

    path: Annotated[str, Field(pattern=r"^/[A-Za-z0-9._~%!$&'()*+,;=:@/-]*$")]
    items: str = Field("", description="Where an answer has the list of rows; nothing: it is the list.")
    page: Page = Field(Page(), description="How the next page is asked for; nothing: there is one page.")
    params: dict[str, Scalar | tuple[Scalar, ...]] = Field({}, description="Parameters of every request.")
    headers: dict[HeaderName, Secret] = Field({}, description="Headers of every request; they are not shown.")
    initial: Scalar | None = Field(None, description="`$watermark` when there is no mark.")
    times: Times = Field("iso", description="How times are written, also `$watermark`.")
    columns: dict[str, Column] = Field(
        {}, description="The types of the columns, where no contract has them."
    )
    optional: tuple[str, ...] = Field((), description="Columns that no row needs to have.")
    max_bytes: Annotated[int, Field(ge=1024)] = Field(_LARGEST, description="The largest answer.")
    timeout: Duration = Field(3600.0, description="For all pages together.")

    @field_validator("columns")
    @classmethod
    def _typed(cls, columns: dict[str, Column]) -> dict[str, Column]:
        if any(column.model_fields_set - _TYPE for column in columns.values()):
            raise ValueError("a column here has only a type, with its digits or items: a contract has rules")
        return columns

    @field_validator("path")
    @classmethod
    def _plain(cls, path: str) -> str:
        if "/." in path:
            raise ValueError("a path has no dot segments")
        return path

    @model_validator(mode="after")
    def _fits(self) -> RestOptions:
        if any(WATERMARK in value for value in self.params.values() if isinstance(value, tuple)):
            raise ValueError("$watermark is the whole value of a parameter")
        if self.initial is not None and not self.asks_since:
            raise ValueError("`initial` is the first value of $watermark, which no parameter uses")
        return self

    @property
    def asks_since(self) -> bool:
        return WATERMARK in self.params.values()


class Rest(Source[RestOptions]):
    """The rows of one path of an API."""

    Connection = RestConnection
    Options = RestOptions
    one_state = False
    narrows: ClassVar[bool] = True
    evidence = "APIs on real sockets that page in every way and misbehave"

    def __init__(self, connection: RestConnection, options: RestOptions, invocation: Invocation) -> None:
        super().__init__(connection, options, invocation)
        if invocation.contract is None and not options.columns:
            raise DefinitionError(
                "CONTRACT",
                "a source of type rest needs a contract: JSON has no types of its own",
                hint="write the columns with their types under `contract`, or under an input's `columns`",
            )
        if invocation.contract is not None and options.columns:
            raise DefinitionError("OPTION_UNUSED", "`columns` has no effect here: the contract has the types")
        if options.asks_since and invocation.watermark is None:
            raise DefinitionError(
                "OPTION_UNUSED",
                f"{WATERMARK} needs `changes: {{watermark: column}}`",
                hint="name the column whose values the API compares with it",
            )

    @property
    def label(self) -> str:
        return self.options.path

    @property
    def identity(self) -> dict[str, str]:
        return {"type": "rest", "base_url": self.connection.base_url, "path": self.options.path}

    def check(self, stop: Stop) -> None:
        with self._api(stop, own_pace) as api:  # like a target's check, it is not counted in the ledger
            next(self.walk(api, None, self.params()).pages(api.ask))

    def open(self, workspace: Workspace, *, wait: bool = True) -> Snapshot:
        return Rows(self, workspace)

    def types(self) -> Mapping[str, Type]:
        """The types of the columns."""
        if self.options.columns:
            return types_of(Contract(columns=self.options.columns), self.invocation.folder)
        return self.invocation.types()

    def params(self) -> dict[str, Any]:
        """The parameters, with variables in the place of their names. DefinitionError VAR_MISSING."""
        return {
            name: tuple(map(self._value, value)) if isinstance(value, tuple) else self._value(value)
            for name, value in self.options.params.items()
        }

    def walk(self, api: Api, since: Since | None, params: Mapping[str, Any]) -> Walk:
        """A reading of all pages, not begun."""
        mark = self.options.initial if since is None else _mark(since, self.options.times)
        query = encoded({name: mark if value == WATERMARK else value for name, value in params.items()})
        return Walk(
            self.options.page, api.address, api.path, query, self.options.items, api.where, api.hidden
        )

    def _api(self, stop: Stop, pace_of: Callable[[Limits], Pace]) -> Api:
        options, connection = self.options, self.connection
        pace = pace_of(connection.limits)
        return Api(connection, options.path, options.headers, options.max_bytes, options.timeout, pace, stop)

    def _value(self, value: Any) -> Any:
        """A parameter's value, with a variable in the place of its name."""
        if not isinstance(value, str) or not value.startswith("$") or value == WATERMARK:
            return value
        if value.startswith("$$"):
            return value[1:]
        known, name = self.invocation.variables, value[1:]
        if name in known:
            return str(known[name]) if isinstance(known[name], date) else known[name]
        raise DefinitionError(
            "VAR_MISSING",
            f"`params` uses ${name}, but there is no such variable",
            hint=f"give it under `vars:` in retl.yml or with --var {name}=…",
        )


class Rows(Snapshot):
    """The rows as they come. Nothing is asked for before `rows`; the version is known after it."""

    def __init__(self, source: Rest, workspace: Workspace) -> None:
        self._source, self._workspace, self._params = source, workspace, source.params()
        types = source.types()
        self._readers = {name: reader(type, source.options.times) for name, type in types.items()}
        if unknown := [name for name in source.options.optional if name not in types]:
            raise DefinitionError(
                "OPTION_UNUSED", f"`optional` names {unknown[0]}, which is not in the contract"
            )
        columns = {name: one.column_type for name, one in self._readers.items()}
        self.description = Description(columns, "not read", misfit=MISFIT)
        self._file = workspace.directory / "rest.jsonl"

    def rows(self, columns: Sequence[str], since: Since | None = None) -> Query:
        source = self._source
        readers = {name: self._readers[name] for name in columns if name != MISFIT}
        with source._api(self._workspace.stop, source.invocation.pace) as api:
            for _ in range(_TRIES):
                walk = source.walk(api, since, self._params)
                lines = Lines(readers)
                self._write(lines, walk, api)
                if not walk.moved and walk.total in (None, walk.rows):
                    break
            else:
                raise SourceError(
                    "SOURCE_MOVES",
                    f"rows of {api.where} came and went while they were read, {_TRIES} times over: the API"
                    " says another number of rows than it sent",
                    hint="run again when nobody writes to it, or read a part that does not move",
                )
        lines.require_columns(source.options.optional, source.options.path)
        self.description = replace(self.description, version=lines.version)
        return self._query(readers, lines.longest)

    def _write(self, lines: Lines, walk: Walk, api: Api) -> None:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            with open(os.open(self._file, flags, 0o600), "wb") as file:
                for items in walk.pages(api.ask):
                    file.writelines(lines.of(items, api.where))
        except OSError as problem:
            raise scratch.unwritable(self._workspace.directory, problem) from problem

    def _query(self, readers: Mapping[str, Reader], longest: int) -> Query:
        """The lines with the types of the columns."""
        columns = ", ".join(f"c{at}: '{one.text_type}'" for at, one in enumerate(readers.values()))
        columns += ", misfit: 'VARCHAR'"
        casts = ", ".join(
            f"CAST(c{at} AS {one.column_type}) AS {quoted(name)}"
            for at, (name, one) in enumerate(readers.items())
        )
        casts += f", misfit AS {quoted(MISFIT)}"
        read = f"read_json({literal(str(self._file))}, format = 'newline_delimited', columns = {{{columns}}}"
        size = f"maximum_object_size = {max(_LARGEST, 2 * longest)})"
        return Query(f"SELECT {casts} FROM {read}, {size}", {}, f"source {self._source.options.path}")

    def close(self) -> None:
        self._file.unlink(missing_ok=True)


class Lines:
    """The rows as lines of JSON whose values are texts, and a digest of them."""

    def __init__(self, readers: Mapping[str, Reader]) -> None:
        self._readers = [(name, f"c{at}", one.read) for at, (name, one) in enumerate(readers.items())]
        self._absent = set(readers)
        self._digest = sha256()
        self._rows = 0
        self.longest = 0

    @property
    def version(self) -> str:
        return f"{self._rows} rows {self._digest.hexdigest()[:16]}"

    def of(self, items: Sequence[msgspec.Raw], where: str) -> Iterator[bytes]:
        """The lines of a page. SourceError if an item is no object."""
        for item in items:
            self._rows += 1
            try:
                row = _ROW.decode(item)
            except msgspec.DecodeError:
                raise SourceError(
                    "MART_UNREADABLE",
                    f"row {self._rows} of {where} is no object",
                    hint="`items` is the path of the list of rows",
                ) from None
            if self._absent:
                self._absent -= row.keys()
            line = _LINE.encode(self._texts(row)) + b"\n"
            self.longest = max(self.longest, len(line))
            self._digest.update(line)
            yield line

    def _texts(self, row: Mapping[str, msgspec.Raw]) -> dict[str, Any]:
        texts: dict[str, Any] = {}
        for name, place, read in self._readers:
            if (value := row.get(name)) is None:
                continue
            try:
                texts[place] = read(bytes(value))
            except Misfit:
                texts.setdefault("misfit", name)
        return texts

    def require_columns(self, optional: Sequence[str], path: str) -> None:
        """Mismatch SOURCE_DRIFT if a column is in no row."""
        if self._rows and (absent := sorted(self._absent - set(optional))):
            raise Mismatch(
                "SOURCE_DRIFT",
                f"no row of {path} has the contract's column {absent[0]}",
                hint=f"correct the contract; if the API leaves out what is empty: `optional: [{absent[0]}]`",
            )


def _mark(since: Since, times: Times) -> str:
    """A mark as the API writes it; rounded down, because rows at the mark are read again."""
    if not since.column_type.startswith("TIMESTAMP"):
        return since.least
    moment = datetime.fromisoformat(since.least)
    if times != "iso":
        unit = timedelta(seconds=1) if times == "epoch_s" else timedelta(milliseconds=1)
        return str((moment.replace(tzinfo=moment.tzinfo or UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // unit)
    text = moment.isoformat()
    return text.removesuffix("+00:00") + "Z" if moment.tzinfo is not None else text
