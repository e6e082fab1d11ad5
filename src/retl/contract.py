"""The judge of the rows: a Pydantic model, and the SQL that clears those it would surely accept.

SQL never refuses: a row that `clears` does not clear is carried into Python and Pydantic decides. It
judges and does not edit, unless the contract says `edits: true`. No sentence of a verdict holds a value.
"""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

import yaml
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    NaiveDatetime,
    TypeAdapter,
    ValidationError,
    create_model,
)
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic_core import SchemaError, to_jsonable_python

from retl import definitions, values
from retl.errors import DefinitionError, Mismatch
from retl.values import Type, TypeName, literal, quoted

MISFIT = "$misfit"  # in a row of `Contract.select`: the first column whose value does not carry exactly


@dataclass(frozen=True)
class Verdict:
    """Why a row is refused; the reason is one sentence without the row's values."""

    column: str | None
    code: str
    reason: str


@dataclass(frozen=True)
class Rule:
    """What the contract asks of one mart column, as far as it was understood; `plain` = completely."""

    type: Type
    column_type: str
    nullable: bool
    sensitive: bool = False
    item_nullable: bool = False
    min_length: int | None = None
    max_length: int | None = None
    pattern: str | None = None
    one_of: tuple[str | int, ...] | None = None
    ge: Any = None
    gt: Any = None
    le: Any = None
    lt: Any = None
    plain: bool = True
    field: str = ""  # the model's attribute


class Contract:
    """`columns`: rule by mart column; `model`: what decides; `edits`: whether its values are sent."""

    def __init__(
        self, model: type[BaseModel], columns: Mapping[str, Rule], *, edits: bool, timezone: str
    ) -> None:
        self.model = model
        self.columns = columns
        self.edits = edits
        self.timezone = timezone
        self._plain = _is_plain(model) and all(rule.plain for rule in columns.values())
        self._json = {name: TypeAdapter(Any) for name, rule in columns.items() if rule.type.name == "json"}

    def over(self, column_types: Mapping[str, str]) -> Contract:
        """The same contract over columns of other DuckDB types."""
        rules = {n: replace(rule, column_type=column_types[n]) for n, rule in self.columns.items()}
        return Contract(self.model, rules, edits=self.edits, timezone=self.timezone)

    def clears(self) -> str:
        """SQL predicate over the mart's columns, never NULL: TRUE only for a row that carries exactly
        and that the model surely accepts without changing it."""
        if not self._plain:
            return "FALSE"
        tests = [test for name, rule in self.columns.items() for test in _clearing(name, rule, self.timezone)]
        return " AND ".join(tests) or "TRUE"

    def select(self) -> str:
        """SQL select list over the mart's columns: every column of the contract under its own name as
        its carrier, and MISFIT. Its rows are what `judge` takes."""
        exact = {
            name: values.exact(rule.type, quoted(name), rule.column_type, self.timezone)
            for name, rule in self.columns.items()
        }
        cases = " ".join(
            f"WHEN NOT {test} THEN {literal(name)}" for name, test in exact.items() if test != "TRUE"
        )
        carried = [
            f"{values.carry(rule.type, quoted(name), rule.column_type, self.timezone)} AS {quoted(name)}"
            for name, rule in self.columns.items()
        ]
        misfit = f"CASE {cases} END" if cases else "CAST(NULL AS VARCHAR)"
        return ", ".join([*carried, f"{misfit} AS {quoted(MISFIT)}"])

    def judge(self, rows: Sequence[Mapping[str, Any]]) -> list[Verdict | None]:
        """Pydantic's word on each row of `select`; None = accepted."""
        return [found if isinstance(found, Verdict) else None for found in map(self._judged, rows)]

    def judge_and_edit(self, rows: Sequence[Mapping[str, Any]]) -> list[Verdict | dict[str, Any]]:
        """As `judge`, but an accepted row is given as the model left it, by mart column, as carriers."""
        return [self._judged(row) for row in rows]

    def _judged(self, row: Mapping[str, Any]) -> Verdict | dict[str, Any]:
        if (misfit := row.get(MISFIT)) is not None:
            reason = (
                f"{misfit} holds a value that {self.columns[misfit].type} cannot carry without changing it"
            )
            return Verdict(misfit, "UNREPRESENTABLE", reason)
        data = {name: row[name] for name in self.columns}
        try:
            for name in () if self._plain else self._json:
                data[name] = None if row[name] is None else json.loads(row[name])
            judged = self.model.model_validate(data)
        except ValidationError as error:
            return self._verdict(error, row)
        except Exception as error:  # noqa: BLE001 - the user's validators may raise anything: a row's cost
            return Verdict(None, "MODEL", f"the model's own code failed with {type(error).__name__}")
        if self._plain:
            return {name: row[name] for name in self.columns}
        return self._compared(row, data, judged)

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
                    name, "CONTRACT_EDITED", f"the model changes {name}; contracts judge and never edit"
                )
            if not same and not _carries(value, rule.type):
                reason = f"the model's value of {name} is nothing that {rule.type} can carry"
                return Verdict(name, "UNREPRESENTABLE", reason)
            edited[name] = value
        return edited

    def _verdict(self, error: ValidationError, row: Mapping[str, Any]) -> Verdict:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = str(first["loc"][0]) if first["loc"] else None
        column = where if where in self.columns else None
        rule = self.columns.get(column or "")
        if rule is None:
            return Verdict(None, "MODEL", "the model refuses the row as a whole")
        if row[column or ""] is None and not rule.nullable:
            return Verdict(column, "NULL_VALUE", f"{column} is NULL and the contract does not allow it")
        for kind, code, reason in _REASONS:
            if re.fullmatch(kind, first["type"]):
                return Verdict(column, code, f"{column} {reason.format(rule=rule)}")
        return Verdict(column, "MODEL", f"the model refuses {column}")


# Pydantic's own sentences can quote the value, so each kind has one of ours.
_REASONS = [
    ("(string_)?too_long", "TOO_LONG", "is longer than {rule.max_length}"),
    ("(string_)?too_short", "TOO_SHORT", "is shorter than {rule.min_length}"),
    ("literal_error|enum", "NOT_ONE_OF", "is none of the values the contract names"),
    ("(greater|less)_than(_equal)?", "OUT_OF_RANGE", "is outside of the range the contract allows"),
    ("string_pattern_mismatch", "PATTERN", "does not match the contract's pattern"),
    ("decimal_.*(digits|places)", "TOO_MANY_DIGITS", "has more digits than {rule.type} holds"),
    ("finite_number", "UNREPRESENTABLE", "is not a finite number"),
    (".*_(type|parsing|from_float)|is_instance_of", "TYPE", "is no {rule.type}"),
]


# --- from a definition to a model, from a model to rules ---------------------------------------------


def build(
    definition: definitions.Contract | None,
    columns: Mapping[str, str],
    folder: Path,
    key: Sequence[str],
    timezone: str = "UTC",
) -> Contract:
    """The contract over a mart's columns (name → DuckDB type); without a definition, all of them in the
    warehouse's types. `folder` is the project's. DefinitionError for a contract that cannot be, Mismatch
    SOURCE_DRIFT where the mart has other columns or types than the contract uses."""
    asked = _columns(definition, columns, folder)
    if asked is None:
        assert definition is not None
        assert definition.model is not None
        model = _imported(definition.model, folder)
        rules = {}
        for field, info in model.model_fields.items():
            name = info.validation_alias if isinstance(info.validation_alias, str) else field
            rules[name] = _derived(name, field, info, _present(name, columns))
    else:
        model = _created(asked)
        rules = {name: _written(name, column, _present(name, columns)) for name, column in asked.items()}
    for name, rule in rules.items():
        if not values.fits(rule.type, rule.column_type):
            raise Mismatch(
                "SOURCE_DRIFT",
                f"the mart's column {name} is {rule.column_type}, the contract's type is {rule.type}",
                hint=f"cast {name} in the source's SQL, or change its type in the contract",
            )
    _check_key(key, rules)
    return Contract(model, rules, edits=definition is not None and definition.edits, timezone=timezone)


def _present(name: str, columns: Mapping[str, str]) -> str:
    if name in columns:
        return columns[name]
    raise Mismatch(
        "SOURCE_DRIFT",
        f"the contract's column {name} is not in the mart",
        hint=f"bring it back or take it out of the contract; the mart has: {', '.join(columns)}",
    )


def _check_key(key: Sequence[str], rules: Mapping[str, Rule]) -> None:
    for name in key:
        if name not in rules:
            raise DefinitionError(
                "KEY_COLUMN", f"the key column {name} is not in the contract", hint="add it to the contract"
            )
        if rules[name].type.name not in values.KEY_TYPES:
            raise DefinitionError(
                "KEY_TYPE",
                f"the key column {name} is a {rules[name].type}, which cannot tell rows apart reliably",
                hint=f"a key is one of: {', '.join(sorted(values.KEY_TYPES))}",
            )


def _columns(
    definition: definitions.Contract | None, columns: Mapping[str, str], folder: Path
) -> Mapping[str, definitions.Column] | None:
    """The columns asked for; None if a model of the user's says so."""
    if definition is None:
        return {name: _inferred(name, column_type) for name, column_type in columns.items()}
    return _load(folder / definition.file) if definition.file else definition.columns


def _inferred(name: str, column_type: str) -> definitions.Column:
    found = values.of_duckdb(column_type)
    if found is None:
        raise DefinitionError(
            "COLUMN_TYPE",
            f"the mart's column {name} is {column_type}, which no target can hold",
            hint=f"cast {name} in the source's SQL, or write a contract without it",
        )
    parts = {
        "type": found.name,
        "max_digits": found.max_digits,
        "decimal_places": found.decimal_places,
        "items": found.items,
    }
    return definitions.Column(nullable=True, **{k: v for k, v in parts.items() if v is not None})


def _load(path: Path) -> dict[str, definitions.Column]:
    """The columns in a contract file."""
    try:
        tree = yaml.safe_load(path.read_text("utf-8"))
        return TypeAdapter(dict[str, definitions.Column]).validate_python(tree)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DefinitionError(
            "CONTRACT_FILE", f"the contract file cannot be read: {type(error).__name__}", where=str(path)
        ) from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DefinitionError("CONTRACT_FILE", f"{place}: {first['msg']}", where=str(path)) from None


def _imported(path: str, folder: Path) -> type[BaseModel]:
    module, _, name = path.partition(":")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        found = getattr(import_module(module), name)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise DefinitionError(
            "MODEL_UNKNOWN",
            f"the contract's model {path} cannot be imported: {type(error).__name__}",
            hint=f"write it as package.module:Class; modules are looked for in {folder}",
        ) from error
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        raise DefinitionError("MODEL_UNKNOWN", f"{path} is no Pydantic model")
    return found


_PYTHON: dict[TypeName, Any] = {
    "string": str,
    "uuid": UUID,
    "integer": int,
    "decimal": Decimal,
    "float": float,
    "boolean": bool,
    "date": date,
    "timestamp": NaiveDatetime,
    "timestamptz": AwareDatetime,
    "json": Any,
}


_LIMITS: dict[TypeName, set[str]] = {
    "string": {"min_length", "max_length", "pattern"},
    "list": {"min_length", "max_length"},
    "decimal": {"max_digits", "decimal_places"},
}


def _created(columns: Mapping[str, definitions.Column]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for at, (name, column) in enumerate(columns.items()):
        limits = {
            part: value
            for part in ("min_length", "max_length", "pattern", "max_digits", "decimal_places")
            if (value := getattr(column, part)) is not None
        }
        if limits.keys() - _LIMITS.get(column.type, set()):
            raise DefinitionError(
                "CONTRACT",
                f"a limit of {name} does not go with its type {column.type}",
                hint="lengths are for strings and lists, patterns for strings, digits for decimals",
            )
        limits |= {part: value for part in _BOUNDS if (value := _bound(name, column, part)) is not None}
        if column.one_of is not None:
            _check_one_of(name, column)
            base: Any = Literal[column.one_of]
        else:
            base = _PYTHON[column.type] if column.items is None else _list_of(_PYTHON[column.items])
        base = Annotated[base, Field(**limits)] if limits else base
        # a column may be called what no attribute may be
        fields[f"column_{at}"] = (base | None if column.nullable else base, Field(validation_alias=name))
    try:
        return create_model("Contract", __config__=ConfigDict(strict=True), **fields)
    except (TypeError, PydanticUserError, SchemaError, re.error) as error:
        raise DefinitionError(
            "CONTRACT", f"the contract's limits do not go with its types: {error}"
        ) from None


def _list_of(item: Any) -> Any:
    return types.GenericAlias(list, (item | None,))


_BOUNDS = ("ge", "gt", "le", "lt")


def _check_one_of(name: str, column: definitions.Column) -> None:
    allowed: type = {"string": str, "integer": int}.get(column.type, type(None))
    if not column.one_of or not all(type(value) is allowed for value in column.one_of):
        raise DefinitionError(
            "CONTRACT",
            f"one_of of {name} must be a list of texts for a string, of whole numbers for an integer",
            hint='put texts that look like numbers in quotes: one_of: ["1", "2"]',
        )


def _bound(name: str, column: definitions.Column, part: str) -> Any:
    """A limit as it was written → in the Python type of the column."""
    written = getattr(column, part)
    if written is None:
        return None
    read: dict[TypeName, Any] = {
        "integer": int,
        "float": float,
        "decimal": Decimal,
        "date": date.fromisoformat,
        "timestamp": datetime.fromisoformat,
        "timestamptz": datetime.fromisoformat,
    }
    try:
        limit = read[column.type](str(written))
        if isinstance(limit, datetime) and (limit.tzinfo is None) != (column.type == "timestamp"):
            raise ValueError("time zone")
        if isinstance(limit, float | Decimal) and not Decimal(limit).is_finite():
            raise ValueError("not finite")
    except (KeyError, ValueError, ArithmeticError):
        raise DefinitionError(
            "CONTRACT",
            f"`{part}` of {name} is no {column.type}",
            hint="numbers, dates and times have limits; a timestamptz's limit says its offset",
        ) from None
    return limit


def _written(name: str, column: definitions.Column, column_type: str) -> Rule:
    return Rule(
        Type(column.type, column.max_digits, column.decimal_places, column.items),
        column_type,
        column.nullable,
        sensitive=column.sensitive,
        item_nullable=True,
        min_length=column.min_length,
        max_length=column.max_length,
        pattern=column.pattern,
        one_of=column.one_of,
        **{part: _bound(name, column, part) for part in _BOUNDS},
    )


def _derived(name: str, field: str, info: FieldInfo, column_type: str) -> Rule:
    """The rule of a field of the user's model; what is not understood only makes it not plain."""
    limits, understood = _limits(info.metadata)
    base, nullable = _optional(info.annotation)
    if get_origin(base) is Annotated:
        base, *metadata = get_args(base)
        inner, also = _limits(metadata)
        limits, understood = limits | inner, understood and also
    one_of: tuple[str | int, ...] | None = None
    item_nullable = False
    if get_origin(base) is Literal:
        one_of = get_args(base)
    elif isinstance(base, type) and issubclass(base, Enum):
        one_of = tuple(member.value for member in base)
        understood = understood and base.__dict__.get("_missing_") is None
    if one_of:
        kinds = {type(value) for value in one_of}
        base = kinds.pop() if len(kinds) == 1 else None
    found = _type_of(base, limits, column_type)
    if found is None:
        raise DefinitionError(
            "COLUMN_TYPE",
            f"the model's field {field} has a type that is no column's",
            hint="use str, int, Decimal, float, bool, date, datetime, UUID, list, dict, Literal or Enum",
        )
    if get_origin(base) is list:
        item, item_nullable = _optional(get_args(base)[0])
        understood = understood and isinstance(item, type)
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    digits = {limits.pop(part, None) is not None for part in ("max_digits", "decimal_places")}
    return Rule(
        found,
        column_type,
        nullable,
        sensitive=extra.get("sensitive") is True,
        item_nullable=item_nullable,
        one_of=one_of,
        plain=understood and len(digits) == 1 and (found.name != "json" or base is Any),
        field=field,
        **limits,
    )


_UNDERSTOOD = {"min_length", "max_length", "pattern", "max_digits", "decimal_places", *_BOUNDS}
_HARMLESS = {"strict", "allow_inf_nan"}


def _limits(metadata: Sequence[Any]) -> tuple[dict[str, Any], bool]:
    """Constraints by name, and whether these are all there is."""
    limits: dict[str, Any] = {}
    understood = True
    for part in metadata:
        found = part._attributes_set if isinstance(part, FieldInfo) else _attributes(part)
        for name, value in found.items():
            if name in _UNDERSTOOD and isinstance(value, str | int | float | Decimal | date):
                understood = understood and name not in limits
                limits[name] = value
            elif name not in _HARMLESS and value is not None:
                understood = False
        understood = understood and bool(found or part is None)
    return limits, understood


def _attributes(part: Any) -> Mapping[str, Any]:
    names = getattr(part, "__dataclass_fields__", None)
    return {name: getattr(part, name) for name in names} if names else getattr(part, "__dict__", {})


def _optional(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not types.NoneType]
        if len(parts) == 1:
            return parts[0], True
        return annotation, len(parts) < len(get_args(annotation))
    return annotation, annotation is Any


def _type_of(base: Any, limits: Mapping[str, Any], column_type: str) -> Type | None:
    own = values.of_duckdb(column_type)
    if base is Decimal:
        digits, places = limits.get("max_digits"), limits.get("decimal_places")
        if own and own.name == "decimal":
            digits, places = digits or own.max_digits, own.decimal_places if places is None else places
        return Type("decimal", digits, places) if digits and places is not None else None
    if base is datetime:
        return Type("timestamptz" if own and own.name == "timestamptz" else "timestamp")
    for name, python in _PYTHON.items():
        if base is python:
            return Type(name)
    if get_origin(base) is list:
        item = _optional(get_args(base)[0])[0]
        inner = _type_of(item, {}, column_type.rpartition("[")[0] or column_type)
        if inner and inner.name not in ("json", "list", "decimal"):
            return Type("list", items=inner.name)
        return Type("json")
    nested = base in (dict, list) or get_origin(base) is dict
    return Type("json") if nested or (isinstance(base, type) and issubclass(base, BaseModel)) else None


_OVERRIDES = {
    "__init__",
    "__new__",
    "__getattribute__",
    "__get_pydantic_core_schema__",
    "model_post_init",
    "model_validate",
}


def _is_plain(model: type[BaseModel]) -> bool:
    """Whether the model is nothing but its fields: no code of the user's runs, no setting changes values."""
    decorators = model.__pydantic_decorators__
    code = (
        decorators.validators,
        decorators.field_validators,
        decorators.root_validators,
        decorators.model_validators,
    )
    own = {name for base in model.__mro__ if base not in BaseModel.__mro__ for name in vars(base)}
    settings = {"strict", "frozen", "title", "extra", "json_schema_extra", "populate_by_name"}
    return not any(code) and not own & _OVERRIDES and model.model_config.keys() <= settings


# --- what SQL can clear ------------------------------------------------------------------------------


def _clearing(name: str, rule: Rule, timezone: str) -> Iterator[str]:
    """Predicates, none ever NULL, that together clear a value under its rule."""
    column = quoted(name)
    if not rule.nullable:
        yield f"{column} IS NOT NULL"
    exact = values.exact(rule.type, column, rule.column_type, timezone)
    if exact != "TRUE":
        yield exact
    tests = list(_limiting(rule, values.carry(rule.type, column, rule.column_type, timezone)))
    if tests:
        yield f"({column} IS NULL OR coalesce({' AND '.join(tests)}, FALSE))"


def _limiting(rule: Rule, value: str) -> Iterator[str]:
    count = f"len({value})" if rule.type.name == "list" else f"length({value})"  # code points, as in Pydantic
    if rule.type.name == "list" and not rule.item_nullable:
        yield f"len(list_filter({value}, lambda e: e IS NULL)) = 0"
    if rule.min_length:
        yield f"{count} >= {rule.min_length}"
    if rule.max_length is not None:
        yield f"{count} <= {rule.max_length}"
    if rule.pattern is not None:
        yield (
            f"regexp_matches({value}, {literal(rule.pattern)})"
            if _PATTERN.fullmatch(rule.pattern)
            else "FALSE"
        )
    if rule.one_of is not None:
        yield _among(rule, value)
    for part in _BOUNDS:
        if (limit := getattr(rule, part)) is not None:
            yield _inside(rule.type, value, part, limit)


def _among(rule: Rule, value: str) -> str:
    """A mart's column may have a collation of its own, under which 'A' equals 'a'."""
    options = rule.one_of or ()
    if rule.type.name == "integer":
        return f"{value} IN ({', '.join(str(int(option)) for option in options)})"
    if any("\0" in str(option) for option in options):
        return "FALSE"
    return f'({value} COLLATE "C") IN ({", ".join(literal(str(option)) for option in options)})'


_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def _inside(type: Type, value: str, part: str, limit: Any) -> str:
    """A limit as SQL; FALSE where SQL and Pydantic could compare differently."""
    name, sign = type.name, _SIGNS[part]
    if isinstance(limit, bool):
        return "FALSE"
    if name in ("integer", "decimal") and isinstance(limit, int | Decimal) and Decimal(limit).is_finite():
        return _inside_digits(type, value, part, Decimal(limit))
    if name == "float" and isinstance(limit, int | float) and abs(limit) < 2**53:
        return f"{value} {sign} CAST({literal(repr(float(limit)))} AS DOUBLE)"
    if name == "date" and isinstance(limit, date) and not isinstance(limit, datetime):
        return f"{value} {sign} CAST({literal(limit.isoformat())} AS DATE)"
    if isinstance(limit, datetime) and name == ("timestamptz" if limit.tzinfo else "timestamp"):
        return f"{value} {sign} CAST({literal(limit.isoformat())} AS {values.carrier(type)})"
    return "FALSE"


def _inside_digits(type: Type, value: str, part: str, limit: Decimal) -> str:
    """Rounded inwards to the carrier's own digits, a limit compares without a change of type."""
    places, digits = type.decimal_places or 0, type.max_digits or 19
    context = Context(prec=400, Emin=-999999, Emax=999999)
    step = Decimal(1).scaleb(-places, context)
    try:
        rounded = limit.quantize(
            step, rounding=ROUND_CEILING if part in ("ge", "gt") else ROUND_FLOOR, context=context
        )
    except ArithmeticError:
        return "FALSE"
    strict = part in ("gt", "lt") and rounded == limit
    top = Decimal(2**63 - 1) if type.name == "integer" else Decimal(10**digits - 1).scaleb(-places, context)
    if not -top <= rounded <= top:
        return "TRUE" if (rounded < 0) == (part in ("ge", "gt")) else "FALSE"
    sign = _SIGNS[part][0] if strict else _SIGNS[part][0] + "="
    return f"{value} {sign} CAST('{rounded:f}' AS {values.carrier(type)})"


# RE2 and Pydantic's engine agree on these: ASCII letters, groups, simple classes, small repeats. \d, \w and
# \s mean ASCII here and Unicode there, so a match here is one there, as long as nothing negates them.
_PATTERN = re.compile(
    r"""(?:
        (?: [A-Za-z0-9\ _@%#!:;,<>=/'"&~`-] | \\[.\-+*?()\[\]{}^$|\\] | \\[dws] | \.
          | \[ (?: [A-Za-z0-9\ _@%+.*?,:;/!#$=()] | -(?!-) | \\[.\-+*?()\[\]{}^$|\\] | \\[dws] )+ \]
          | \[\^ (?: [A-Za-z0-9\ _@%+.*?,:;/!#$=()] | -(?!-) | \\[.\-+*?()\[\]{}^$|\\] )+ \]
        ) (?: [*+?]\?? | \{[0-9]{1,2}(?:,[0-9]{0,2})?\}\?? )?
      | [\^$|] | \((?!\?) | \)(?:[*+?]\??)?
    )*""",
    re.VERBOSE,
)


# --- what a model's validators left --------------------------------------------------------------------


def _unwrapped(value: Any) -> Any:
    if isinstance(value, list):
        return [_unwrapped(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def _same(after: Any, before: Any) -> bool:
    """Equal and of one family: True is not 1, 1 is not 1.0."""
    if isinstance(before, list) and isinstance(after, list):
        return len(after) == len(before) and all(map(_same, after, before))
    if isinstance(before, datetime) and isinstance(after, datetime):
        return (before.tzinfo is None) == (after.tzinfo is None) and after == before
    return (
        isinstance(after, type(before))
        and isinstance(after, bool) == isinstance(before, bool)
        and after == before
    )


def _carries(value: Any, type: Type) -> bool:
    """Whether an edited value is one its carrier holds exactly."""
    if value is None:
        return True
    name = type.name
    if name == "list":
        return isinstance(value, list) and all(_carries(item, type.item) for item in value)
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
