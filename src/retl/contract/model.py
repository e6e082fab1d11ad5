"""A contract's definition → a Pydantic model and a rule per column.

A rule is the part of the contract that SQL can check. If a model asks for more than a rule can express, the
rule is not plain, and only the model may judge.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace
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
from pydantic_core import SchemaError

from retl.contract.completion import completed, documentation
from retl.errors import DefinitionError, Mismatch
from retl.project import contracts, yamlfile
from retl.project.contracts import STAR, ColumnSetting, Documented
from retl.project.validation import did_you_mean
from retl.values.types import Type, TypeName, of_duckdb

BOUNDS = ("ge", "gt", "le", "lt")


class Rule(Struct, frozen=True):
    """The contract's limits for one mart column; `plain` = the rule is complete."""

    type: Type
    column_type: str
    nullable: bool
    sensitive: bool = False
    description: str | None = None
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


def read(
    definition: contracts.Contract | None,
    columns: Mapping[str, str],
    folder: Path,
    documented: Mapping[str, Documented] | None = None,
) -> tuple[type[BaseModel], dict[str, Rule]]:
    """The model of a contract and its rules by mart column. `documented`: what dbt says, by column in lower
    case. DefinitionError for an invalid contract, Mismatch SOURCE_DRIFT for a column that is not in the
    mart."""
    known = documented or {}
    written = _columns(definition, folder)
    if written is not None:
        whole = completed(written, columns, known)
        return _created(whole), {
            name: _written(name, column, _present(name, columns, written)) for name, column in whole.items()
        }
    assert definition is not None
    assert definition.model is not None
    model = _imported(definition.model, folder)
    fields = list(_fields(model))
    names = [name for name, _, _ in fields]
    rules = {name: _derived(field, info, _present(name, columns, names)) for name, field, info in fields}
    return model, {
        name: replace(rule, sensitive=True) if documentation(known, name).sensitive else rule
        for name, rule in rules.items()
    }


def types_of(definition: contracts.Contract | None, folder: Path) -> dict[str, Type]:
    """The types that a contract gives texts, by mart column. DefinitionError for an invalid contract."""
    if definition is None:
        return {}
    written = _columns(definition, folder)
    if written is not None:
        if untyped := next((name for name, column in written.items() if column.type is None), None):
            raise DefinitionError(
                "CONTRACT",
                f"the contract gives {untyped} no type, and this source has none of its own",
                hint="name every column with its type",
            )
        return {name: _type(column) for name, column in written.items()}
    assert definition.model is not None
    return {
        name: _derived(field, info, "VARCHAR").type
        for name, field, info in _fields(_imported(definition.model, folder))
    }


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, str, FieldInfo]]:
    """The mart column of each field of the user's model, its attribute, and the field."""
    for field, info in model.model_fields.items():
        alias = info.validation_alias
        yield alias if isinstance(alias, str) else field, field, info


def _present(name: str, columns: Mapping[str, str], named: Collection[str]) -> str:
    if name in columns:
        return columns[name]
    meant = did_you_mean(name, [one for one in columns if one not in named])
    raise Mismatch(
        "SOURCE_DRIFT",
        f"the contract's column {name} is not in the mart",
        hint=f"{f'{meant} ' if meant else ''}`retl contract diff` shows the ways out; the mart has:"
        f" {', '.join(columns)}",
        column=name,
    )


def _columns(definition: contracts.Contract | None, folder: Path) -> Mapping[str, contracts.Column] | None:
    """The columns of the contract as they are written; None if it is the user's own model."""
    if definition is None:
        return {STAR: contracts.Column()}
    return _load(folder / definition.file) if definition.file else definition.columns


def _load(path: Path) -> dict[str, contracts.Column]:
    """The columns in a contract file."""
    tree = yamlfile.load(path, name=path.name)
    try:
        columns = TypeAdapter(dict[str, ColumnSetting]).validate_python(tree.value)
        return contracts.Contract(columns=columns).columns or {}
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DefinitionError(
            "CONTRACT_FILE", f"{place}: {first['msg']}", where=tree.place(first["loc"])
        ) from None


def _imported(path: str, folder: Path) -> type[BaseModel]:
    module, _, name = path.partition(":")
    _enter(folder)
    try:
        found = getattr(import_module(module), name)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise DefinitionError(
            "MODEL_UNKNOWN",
            f"the contract's model {path} cannot be imported: {type(error).__name__}",
            hint=f"write it as package.module:Class; modules are searched in {folder}",
        ) from error
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        raise DefinitionError("MODEL_UNKNOWN", f"{path} is not a Pydantic model")
    return found


def _enter(folder: Path) -> None:
    """Modules are looked for in this project, and no longer in the one whose run came before in this process:
    of that nothing stays imported."""
    global _entered
    folder = folder.resolve()
    if _entered == folder:
        return
    former, _entered = _entered, folder
    if former is not None:
        with suppress(ValueError):
            sys.path.remove(str(former))
        others = tuple(place for place in sys.path if place)  # a project may hold the environment we run in
        for name, module in list(sys.modules.items()):
            places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
            own = (place for place in places if place and not place.startswith(others))
            if any(Path(place).is_relative_to(former) for place in own):
                del sys.modules[name]
    sys.path.insert(0, str(folder))
    invalidate_caches()


_entered: Path | None = None


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


def _created(columns: Mapping[str, contracts.Column]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for at, (name, column) in enumerate(columns.items()):
        if column.type is None:  # the mart lacks it, and `_present` says so
            continue
        limits = {
            part: value
            for part in ("min_length", "max_length", "pattern", "max_digits", "decimal_places")
            if (value := getattr(column, part)) is not None
        }
        if limits.keys() - _LIMITS.get(column.type, set()):
            raise DefinitionError(
                "CONTRACT",
                f"a limit of {name} does not fit its type {column.type}",
                hint="lengths are for strings and lists, patterns for strings, digits for decimals",
            )
        limits |= {part: value for part in BOUNDS if (value := _bound(name, column, part)) is not None}
        if column.one_of is not None:
            _check_one_of(name, column)
            base: Any = Literal[column.one_of]
        else:
            base = _PYTHON[column.type] if column.items is None else _list_of(_PYTHON[column.items])
        base = Annotated[base, Field(**limits)] if limits else base
        # a column's name may not be a valid attribute name
        fields[f"column_{at}"] = (base | None if column.nullable else base, Field(validation_alias=name))
    try:
        return create_model("Contract", __config__=ConfigDict(strict=True), **fields)
    except (TypeError, PydanticUserError, SchemaError, re.error) as error:
        raise DefinitionError(
            "CONTRACT", f"the contract is not valid: {str(error).splitlines()[0]}"
        ) from None


def _list_of(item: Any) -> Any:
    return types.GenericAlias(list, (item | None,))


def _check_one_of(name: str, column: contracts.Column) -> None:
    allowed: type = {"string": str, "integer": int}.get(str(column.type), type(None))
    if not column.one_of or not all(type(value) is allowed for value in column.one_of):
        raise DefinitionError(
            "CONTRACT",
            f"`one_of` of {name} must list texts for a string, or whole numbers for an integer",
            hint='put texts that look like numbers in quotes: one_of: ["1", "2"]',
        )


def _bound(name: str, column: contracts.Column, part: str) -> Any:
    """A written limit → the Python type of the column."""
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
        limit = read[_type(column).name](str(written))
        if isinstance(limit, datetime) and (limit.tzinfo is None) != (column.type == "timestamp"):
            raise ValueError("time zone")
        if isinstance(limit, float | Decimal) and not Decimal(limit).is_finite():
            raise ValueError("not finite")
    except (KeyError, ValueError, ArithmeticError):
        raise DefinitionError(
            "CONTRACT",
            f"`{part}` of {name} is not a valid {column.type}",
            hint="only numbers, dates and times have limits; a limit of a timestamptz needs an offset",
        ) from None
    return limit


def _type(column: contracts.Column) -> Type:
    assert column.type is not None
    return Type(column.type, column.max_digits, column.decimal_places, column.items)


def _written(name: str, column: contracts.Column, column_type: str) -> Rule:
    return Rule(
        _type(column),
        column_type,
        column.nullable,
        sensitive=column.sensitive,
        description=column.description,
        item_nullable=True,
        min_length=column.min_length,
        max_length=column.max_length,
        pattern=column.pattern,
        one_of=column.one_of,
        **{part: _bound(name, column, part) for part in BOUNDS},
    )


def _derived(field: str, info: FieldInfo, column_type: str) -> Rule:
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
    if found is None and base is not Decimal:  # NewType, EmailStr, int | str …: only the model judges it
        found, understood = of_duckdb(column_type), False
    if found is None:
        raise DefinitionError(
            "COLUMN_TYPE",
            f"the model's field {field} cannot be read from the mart's {column_type}",
            hint="a Decimal needs max_digits and decimal_places; binary, time and interval have no type",
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


_UNDERSTOOD = {"min_length", "max_length", "pattern", "max_digits", "decimal_places", *BOUNDS}
_HARMLESS = {"strict", "allow_inf_nan"}


def _limits(metadata: Sequence[Any]) -> tuple[dict[str, Any], bool]:
    """Constraints by name, and whether the list is complete."""
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
    own = of_duckdb(column_type)
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


def is_plain(model: type[BaseModel]) -> bool:
    """Whether the model has only fields: no user code runs, and no setting changes values."""
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
