"""Where the rows of a sync come from, as a user writes it. The types of sources know their own options."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from retl.errors import DefinitionError
from retl.model import Definition, Duration
from retl.values.sql import split

_JINJA = re.compile(r"""\{\{|\bref\(""")
_REF = re.compile(r"""\bref\((?:[^()]*,)?\s*['"]([^'"]+)['"]\s*\)""")
WAREHOUSE = "warehouse"  # the name of the default source


class Selected(Definition):
    """Exactly one of `table`, `sql` and `file`: the last two are one SELECT in the database's own SQL, in
    which `$name` is a variable of the project."""

    table: str | None = None
    sql: str | None = None
    file: str | None = None

    _ways: ClassVar[tuple[str, ...]] = ("table", "sql", "file")

    @field_validator("table", "dbt", check_fields=False)
    @classmethod
    def _plain(cls, name: str | None) -> str | None:
        if name is not None and _JINJA.search(name):
            named = _REF.search(name)
            model = named[1] if named else "MODEL"
            raise ValueError(f"retl renders no Jinja: write `source: {{dbt: {model}}}` for a model of dbt")
        return name

    @field_validator("table")
    @classmethod
    def _named(cls, table: str | None) -> str | None:
        if table is not None:
            split(table)
        return table

    @model_validator(mode="after")
    def _one(self) -> Self:
        return self._with_one()

    def _with_one(self) -> Self:
        *first, last = self._ways
        if sum(getattr(self, way) is not None for way in self._ways) != 1:
            raise ValueError(f"a source has exactly one of {', '.join(first)} or {last}")
        return self

    @property
    def label(self) -> str:
        """For a list of syncs."""
        named = (getattr(self, way) for way in self._ways if way != "sql")
        return next((name for name in named if name is not None), "sql")

    @property
    def identity(self) -> dict[str, str]:
        """What is read; not the text of the SQL, which may contain values."""
        if self.sql is not None:
            return {"sql": sha256(self.sql.encode()).hexdigest()[:16]}
        return self.model_dump(include={*self._ways}, exclude_none=True)

    @property
    def origin(self) -> str:
        """For messages."""
        return f"table {self.table}" if self.table else self.file or "source.sql"

    def text(self, folder: Path) -> str:
        """The SELECT of `sql` or `file`. DefinitionError SQL_FILE if it cannot be read."""
        if self.sql is not None:
            return self.sql
        assert self.file is not None
        try:
            return (folder / self.file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as problem:
            raise DefinitionError(
                "SQL_FILE", f"cannot read {self.file}: {type(problem).__name__}", where=self.file
            ) from problem


class Mart(Selected):
    """A mart in a DuckDB file: exactly one of table, sql, file (a single SELECT), or dbt, the name of a
    model. A model whose last run ended longer than `max_age` ago is not read."""

    dbt: str | None = None
    max_age: Duration | None = None

    _ways = ("table", "sql", "file", "dbt")

    def _with_one(self) -> Self:
        super()._with_one()
        if self.max_age is not None and self.dbt is None:
            raise ValueError("`max_age` needs `dbt`: only dbt records when a model was built")
        return self


class Source(Mart):
    """Where the mart's rows come from: the warehouse's table, sql, file or dbt model. `from` names another
    source, whose own options then stand here. With `inputs`, each a source of its own, `sql` is one SELECT
    over them. `complete`: what a source without snapshots returns is all there is, so a missing row was
    deleted."""

    from_: str | None = Field(default=None, alias="from")
    inputs: dict[str, dict[str, Any]] | None = None
    complete: bool = False

    def _with_one(self) -> Self:
        if self.inputs is not None and (self.from_ or not self.inputs or self.sql is None):
            raise ValueError("`inputs` are the sources of one `sql`, each by its name there")
        return self if self.from_ is not None else super()._with_one()

    @property
    def named(self) -> tuple[str, ...]:
        """The names of the sources."""
        if self.inputs is not None:
            return tuple(str(one.get("from", WAREHOUSE)) for one in self.inputs.values())
        return (self.from_ or WAREHOUSE,)


class NamedSource(Source):
    """A source of retl.yml: its type judges the options."""

    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)


def _source(value: object) -> object:
    return NamedSource.model_validate(value) if isinstance(value, dict) and "from" in value else value


SourceSetting = Annotated[Source, BeforeValidator(_source)]
