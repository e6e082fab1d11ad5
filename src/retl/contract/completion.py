"""A contract that says only what is special → every column with its type.

What is written wins, then what `"*"` says, then dbt's project, then the warehouse. It judges nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from retl.contract.loaders import is_own
from retl.errors import DefinitionError
from retl.project import contracts
from retl.project.contracts import STAR, Documented
from retl.values.types import Type, TypeName, fits, of_duckdb


def completed(
    written: Mapping[str, contracts.Column], columns: Mapping[str, str], known: Mapping[str, Documented]
) -> dict[str, contracts.Column]:
    """The named columns and, for a star, all others in the order of the mart. Each has its type, and what dbt
    says of it where the contract says nothing."""
    star = written.get(STAR)
    named = {name: column for name, column in written.items() if name != STAR}
    if star is not None:
        named = {name: written.get(name, star) for name in columns if name in named or not is_own(name)} | {
            name: column for name, column in named.items() if name not in columns
        }
    _require_carried({name: (column, documentation(known, name)) for name, column in named.items()}, columns)
    return {
        name: _filled(name, column, star, columns.get(name), documentation(known, name))
        for name, column in named.items()
    }


def _require_carried(
    named: Mapping[str, tuple[contracts.Column, Documented]], columns: Mapping[str, str]
) -> None:
    """DefinitionError COLUMN_TYPE that names every column of a type that no contract has."""
    lacking = [
        name
        for name, (column, known) in named.items()
        if column.type is None and name in columns and _carried(columns[name], known.type) is None
    ]
    if not lacking:
        return
    listed = " and ".join(f"{name} is {columns[name]}" for name in lacking)
    casts = ", ".join(f"CAST({name} AS VARCHAR) AS {name}" for name in lacking)
    raise DefinitionError(
        "COLUMN_TYPE",
        f"in the mart {listed}: retl has no such type. It carries"
        f" {', '.join(one for one in get_args(TypeName) if one != 'list')}, and lists of them",
        hint=f"cast in the source's SQL: {casts}; a column of such a type at the target, PostgreSQL's `time`"
        " for one, takes the text. Or leave the column out, with a contract",
    )


def _filled(
    name: str, column: contracts.Column, star: contracts.Column | None, kind: str | None, known: Documented
) -> contracts.Column:
    """A column with what others say of it. What is written wins, then what the star says, then dbt."""
    parts: dict[str, Any] = {}
    if column.type is None and kind is not None:
        parts |= _inferred(name, kind, known.type)
        parts["nullable"] = not known.filled
    parts |= {"sensitive": True} if known.sensitive else {}
    parts |= {"description": known.description} if known.description else {}
    if one_of := allowed(parts.get("type", column.type), known.one_of):
        parts["one_of"] = one_of
    for given in (star, column):
        parts |= given.model_dump(include=given.model_fields_set) if given is not None else {}
    return contracts.Column(**parts) if parts.get("type") else column


def documentation(known: Mapping[str, Documented], name: str) -> Documented:
    return known.get(name.lower(), Documented())


def allowed(type: str | None, values: Sequence[str]) -> tuple[str | int, ...]:
    """The values of a dbt test: as texts for strings, as whole numbers for integers, else none."""
    if type == "integer" and all(re.fullmatch(r"-?\d+", value) for value in values):
        return tuple(int(value) for value in values)
    return tuple(values) if type == "string" else ()


def _carried(column_type: str, documented: Type | None) -> Type | None:
    if documented is not None and fits(documented, column_type):
        return documented
    return of_duckdb(column_type)


def _inferred(name: str, column_type: str, documented: Type | None) -> dict[str, Any]:
    """The type of a mart's column and its parts: dbt's if the column fits it."""
    found = _carried(column_type, documented)
    assert found is not None, name  # `_require_carried`
    parts = {
        "type": found.name,
        "max_digits": found.max_digits,
        "decimal_places": found.decimal_places,
        "items": found.items,
    }
    return {k: v for k, v in parts.items() if v is not None}
