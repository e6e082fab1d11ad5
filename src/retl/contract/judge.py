"""Judges rows with a Pydantic model, after a SQL prefilter for rows that it surely accepts.

SQL never rejects a row: a row that does not pass the prefilter goes to Python, and Pydantic decides. A
contract judges and does not edit, unless it has `edits: true`. No text of a verdict contains a value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Context, Decimal
from enum import Enum
from operator import is_, itemgetter
from pathlib import Path
from typing import Any
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace
from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from retl.contract.loaders import refuse_variants
from retl.contract.model import Rule, is_plain, read
from retl.contract.prefilter import clearing
from retl.errors import DefinitionError, Mismatch
from retl.project import contracts
from retl.project.contracts import STAR, Documented
from retl.project.validation import did_you_mean
from retl.values import storage, types
from retl.values.sql import literal, quoted
from retl.values.types import Type

Row = tuple[Any, ...]
MISFIT = "$misfit"  # in a row of `Contract.select`: the first column with a value that the cast would change


class Verdict(Struct, frozen=True):
    """Why a row is rejected; the reason is one sentence without values of the row."""

    column: str | None
    code: str
    reason: str


class Contract:
    """`columns`: rule by mart column; `model`: decides about a row; `edits`: whether the model's values are
    sent; `misfit`: the mart's column, if it has one, that names a column whose value its type cannot hold."""

    def __init__(
        self,
        model: type[BaseModel],
        columns: Mapping[str, Rule],
        *,
        edits: bool,
        timezone: str,
        misfit: str | None = None,
    ) -> None:
        self.model = model
        self.columns = columns
        self.edits = edits
        self.timezone = timezone
        self.misfit = misfit
        self._plain = is_plain(model) and all(rule.plain for rule in columns.values())
        self._json = {name for name, rule in columns.items() if rule.type.name == "json"}
        self._scalar = all(rule.type.name not in ("json", "list") for rule in columns.values())
        self._fields = itemgetter(*(rule.field for rule in columns.values()))

    def over(self, column_types: Mapping[str, str]) -> Contract:
        """The same contract over columns of other DuckDB types."""
        rules = {n: replace(rule, column_type=column_types[n]) for n, rule in self.columns.items()}
        return Contract(self.model, rules, edits=self.edits, timezone=self.timezone)

    def prefilter(self) -> str:
        """SQL predicate over the mart's columns, never NULL: TRUE only for a row that casts exactly
        and that the model surely accepts without changing it."""
        if not self._plain:
            return "FALSE"
        tests = [test for name, rule in self.columns.items() for test in clearing(name, rule, self.timezone)]
        if self.misfit is not None:
            tests.append(f"{quoted(self.misfit)} IS NULL")
        return " AND ".join(tests) or "TRUE"

    def select(self) -> str:
        """SQL select list over the mart's columns: every column of the contract under its own name as
        its storage type, and MISFIT. Its rows are what `judge` takes."""
        casts = [
            f"{storage.cast(rule.type, quoted(name), rule.column_type, self.timezone)} AS {quoted(name)}"
            for name, rule in self.columns.items()
        ]
        return ", ".join([*casts, f"{self.first_misfit()} AS {quoted(MISFIT)}"])

    def first_misfit(self) -> str:
        """SQL of the first column with a value that its cast would change, or NULL."""
        exact = {
            name: storage.exact(rule.type, quoted(name), rule.column_type, self.timezone)
            for name, rule in self.columns.items()
        }
        cases = " ".join(
            f"WHEN NOT {test} THEN {literal(name)}" for name, test in exact.items() if test != "TRUE"
        )
        misfit = f"CASE {cases} END" if cases else "CAST(NULL AS VARCHAR)"
        if self.misfit is not None:
            misfit = f"coalesce(CAST({quoted(self.misfit)} AS VARCHAR), {misfit})"
        return misfit

    def doubtful(self, rows: Sequence[Row]) -> list[Row]:
        """The rows of `select` (contract columns first) that `judge` must look at: all except those that
        the model accepts unchanged. This costs a fifth of the model's own time; one more dict per row would
        double it."""
        names, width, fields = list(self.columns), len(self.columns), self._fields
        if not self._scalar or width == 1:
            return list(rows)
        validate, found = self.model.__pydantic_validator__.validate_python, list[Row]()
        for row in rows:
            try:
                after = fields(validate(dict(zip(names, row, strict=False))).__dict__)
            except Exception:  # noqa: BLE001 - `judge` finds the reason
                found.append(row)
                continue
            if row[width] is not None or not (all(map(is_, after, row)) or _alike(row[:width], after)):
                found.append(row)
        return found

    def judge(self, rows: Sequence[Mapping[str, Any]]) -> list[Verdict | None]:
        """The verdict on each row of `select`; None = accepted."""
        return [found if isinstance(found, Verdict) else None for found in map(self._judged, rows)]

    def judge_and_edit(self, rows: Sequence[Mapping[str, Any]]) -> list[Verdict | dict[str, Any]]:
        """Like `judge`, but for an accepted row the model's values, by mart column, as storage types."""
        return [self._judged(row) for row in rows]

    def _judged(self, row: Mapping[str, Any]) -> Verdict | dict[str, Any]:
        data = dict(row)
        if (misfit := data.pop(MISFIT, None)) is not None:
            kind = self.columns[misfit].type
            such = _SUCH.get(kind.name, "a value")
            limits = _JSON_LIMITS * (kind.name == "json")
            reason = f"{misfit} has {such}, which the contract's type {kind} does not take{limits}"
            return Verdict(misfit, "UNREPRESENTABLE", reason)
        try:
            for name in () if self._plain else self._json:
                data[name] = None if row[name] is None else json.loads(row[name])
            judged = self.model.model_validate(data)
        except ValidationError as error:
            return self._verdict(error, row)
        except Exception as error:  # noqa: BLE001 - the user's validators may raise anything; it costs only this row
            return Verdict(None, "MODEL", f"the model's own code failed with {type(error).__name__}")
        return data if self._plain else self._compared(row, data, judged)

    def _compared(
        self, row: Mapping[str, Any], data: Mapping[str, Any], judged: BaseModel
    ) -> Verdict | dict[str, Any]:
        edited = {}
        for name, rule in self.columns.items():
            value = _unwrapped(getattr(judged, rule.field))
            if rule.type.name == "json":
                same = _same(to_jsonable_python(value), to_jsonable_python(data[name]))
                value = row[name] if same else json.dumps(to_jsonable_python(value), ensure_ascii=False)
            else:
                same = _same(value, data[name])
            if not same and not self.edits:
                return Verdict(
                    name,
                    "CONTRACT_EDITED",
                    f"the model changes {name}, but the contract has no `edits: true`",
                )
            if not same and not _fits(value, rule.type):
                reason = f"the model's value of {name} does not fit the type {rule.type}"
                return Verdict(name, "UNREPRESENTABLE", reason)
            edited[name] = value
        return edited

    def _verdict(self, error: ValidationError, row: Mapping[str, Any]) -> Verdict:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = str(first["loc"][0]) if first["loc"] else None
        column = where if where in self.columns else None
        rule = self.columns.get(column or "")
        if rule is None:
            return Verdict(None, "MODEL", "the model rejects the whole row")
        if row[column or ""] is None and not rule.nullable:
            return Verdict(column, "NULL_VALUE", f"{column} is NULL and the contract does not allow it")
        for kind, code, reason in _REASONS:
            if re.fullmatch(kind, first["type"]):
                return Verdict(column, code, f"{column} {reason.format(rule=rule)}")
        return Verdict(column, "MODEL", f"the model rejects {column}")


def _alike(before: Row, after: Row) -> bool:
    """Equal values of equal types: 1, 1.0 and True are not alike."""
    return bool(before == after) and all(map(is_, map(type, before), map(type, after)))


_SUCH = {  # values that the types of sources have, and those of a contract do not
    "string": "a text with a NUL character",
    "integer": "a number beyond 64 bits or with decimal places",
    "float": "NaN or infinity",
    "decimal": "a number with more digits",
    "date": "infinity",
    "timestamp": "infinity",
    "timestamptz": "infinity",
}
# Pydantic's own messages can contain the value, so each kind has a message here.
_REASONS = [
    ("(string_)?too_long", "TOO_LONG", "is longer than {rule.max_length}"),
    ("(string_)?too_short", "TOO_SHORT", "is shorter than {rule.min_length}"),
    ("literal_error|enum", "NOT_ONE_OF", "is not one of the values in the contract"),
    ("(greater|less)_than(_equal)?", "OUT_OF_RANGE", "is outside the range of the contract"),
    ("string_pattern_mismatch", "PATTERN", "does not match the contract's pattern"),
    ("decimal_.*(digits|places)", "TOO_MANY_DIGITS", "has more digits than {rule.type} holds"),
    ("finite_number", "UNREPRESENTABLE", "is not a finite number"),
    (".*_(type|parsing|from_float)|is_instance_of", "TYPE", "is not a valid {rule.type}"),
]


_JSON_LIMITS = (
    f": it has at most {storage.JSON_LEVELS} levels, numbers of less than {storage.JSON_DIGITS:,} digits, and"
    " neither NaN nor NUL"
)
CODES = frozenset({"NULL_VALUE", "UNREPRESENTABLE", "CONTRACT_EDITED", "MODEL", *(c for _, c, _ in _REASONS)})


def build(
    definition: contracts.Contract | None,
    columns: Mapping[str, str],
    folder: Path,
    key: Sequence[str],
    timezone: str = "UTC",
    misfit: str | None = None,
    documented: Mapping[str, Documented] | None = None,
) -> Contract:
    """The contract over a mart's columns (name → DuckDB type); without a definition, all columns with
    the warehouse's types. `folder` is the project's; `misfit`: see Contract; `documented`: what dbt says, by
    column in lower case. DefinitionError for an invalid contract, Mismatch SOURCE_DRIFT if the mart has other
    columns or types than the contract uses."""
    model, rules = read(definition, columns, folder, documented)
    starred = definition is None or STAR in (definition.columns or {})
    refuse_variants(columns, rules, (definition and definition.columns) or () if starred else rules)
    for name, rule in rules.items():
        if not types.fits(rule.type, rule.column_type):
            raise Mismatch(
                "SOURCE_DRIFT",
                f"the mart's column {name} is {rule.column_type}, the contract's type is {rule.type}",
                hint=f"cast {name} in the source's SQL, or change its type in the contract",
                column=name,
            )
    _check_key(key, rules, columns, written=definition is not None)
    edits = definition is not None and definition.edits
    return Contract(model, rules, edits=edits, timezone=timezone, misfit=misfit)


def _check_key(
    key: Sequence[str], rules: Mapping[str, Rule], columns: Mapping[str, str], *, written: bool
) -> None:
    for name in key:
        if name not in rules:
            raise DefinitionError(
                "KEY_COLUMN",
                f"the key column {name} is not in the {'contract' if written else 'mart'}",
                hint="add it to the contract" if name in columns else did_you_mean(name, columns),
            )
        if rules[name].type.name not in types.KEY_TYPES:
            raise DefinitionError(
                "KEY_TYPE",
                f"the key column {name} has the type {rules[name].type}, which cannot identify rows reliably",
                hint=f"types of a key: {', '.join(sorted(types.KEY_TYPES))}",
            )


def _unwrapped(value: Any) -> Any:
    if isinstance(value, list):
        return [_unwrapped(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def _same(after: Any, before: Any) -> bool:
    """Equal, and of the same type family: True is not 1, 1 is not 1.0."""
    if isinstance(before, list) and isinstance(after, list):
        return len(after) == len(before) and all(map(_same, after, before))
    if isinstance(before, datetime) and isinstance(after, datetime):
        return (before.tzinfo is None) == (after.tzinfo is None) and after == before
    return (
        isinstance(after, type(before))
        and isinstance(after, bool) == isinstance(before, bool)
        and after == before
    )


def _fits(value: Any, type: Type) -> bool:
    """Whether the storage type holds an edited value exactly."""
    if value is None:
        return True
    name = type.name
    if name == "list":
        return isinstance(value, list) and all(_fits(item, type.item) for item in value)
    if name == "string":
        return isinstance(value, str) and "\0" not in value and not re.search("[\ud800-\udfff]", value)
    if name == "integer":
        return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
    if name == "float":
        return isinstance(value, float) and value - value == 0
    if name == "decimal":
        if not isinstance(value, Decimal) or not value.is_finite():
            return False
        scaled = value.scaleb(type.decimal_places or 0, Context(prec=400))
        return scaled == scaled.to_integral_value() and abs(scaled) < 10 ** (type.max_digits or 38)
    if name in ("timestamp", "timestamptz"):
        return isinstance(value, datetime) and (value.tzinfo is None) == (name == "timestamp")
    if name == "date":
        return isinstance(value, date) and not isinstance(value, datetime)
    if name == "json":
        return isinstance(value, str) and r"\u0000" not in value and "NaN" not in value
    return isinstance(value, {"uuid": UUID, "boolean": bool}[name])
