"""Values with places → models. All errors of a file are reported at once, each with line and column.

It is stricter than pydantic in one way: a text never becomes a number or a boolean (`no`, `0777`). The
exception is a text from a variable, because the environment has only text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from retl.errors import DefinitionError, Place
from retl.project.variables import Filled
from retl.project.yamlfile import Loc

_TYPED = {"bool_type": "true or false", "int_type": "a whole number", "float_type": "a number"}

# Words of databases and of other tools → ours.
_ELSEWHERE = {
    **dict.fromkeys(("int", "int64", "int4", "int8", "bigint", "smallint", "long", "number"), "integer"),
    **dict.fromkeys(("varchar", "nvarchar", "char", "text", "str"), "string"),
    **dict.fromkeys(("numeric", "money"), "decimal"),
    **dict.fromkeys(("double", "real", "float64", "double precision"), "float"),
    **dict.fromkeys(("bool", "bit"), "boolean"),
    **dict.fromkeys(("datetime", "timestamp_ntz"), "timestamp"),
    **dict.fromkeys(("timestamp with time zone", "timestamp_tz"), "timestamptz"),
    **dict.fromkeys(("jsonb", "object", "struct", "variant", "map"), "json"),
    **dict.fromkeys(("array", "repeated"), "list"),
    "mirror": "upsert and `deletes: delete`",
    **dict.fromkeys(("merge", "full", "incremental"), "upsert"),
    **dict.fromkeys(("insert", "create"), "insert_only"),
    "update": "update_only",
    **dict.fromkeys(("hard", "hard_delete", "remove", "true"), "delete"),
    **dict.fromkeys(("ignore", "none", "false"), "keep"),
    **dict.fromkeys(("diff", "snapshot"), "hash"),
    "incremental_by_column": "watermark",
}

ModelT = TypeVar("ModelT", bound=BaseModel)


class DefinitionErrors(DefinitionError):
    """Several definition errors at once, in the order of their places; printed one per line."""

    def __init__(self, errors: Sequence[DefinitionError]) -> None:
        first = errors[0]
        super().__init__(first.code, first.message, hint=first.hint, where=first.where)
        self.errors = tuple(errors)

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


def raise_all(errors: Iterable[DefinitionError]) -> None:
    """Raise nothing, the single error, or DefinitionErrors; each error only once."""
    flat = [one for error in errors for one in each(error)]
    distinct = sorted({(error.code, str(error)): error for error in flat}.values(), key=_order)
    if distinct:
        raise distinct[0] if len(distinct) == 1 else DefinitionErrors(distinct)


def _order(error: DefinitionError) -> tuple[str, int, int]:
    place = error.where
    return (
        (place.file, place.line or 0, place.column or 0) if isinstance(place, Place) else (str(place), 0, 0)
    )


def each(error: DefinitionError) -> tuple[DefinitionError, ...]:
    """The single errors of an error."""
    return error.errors if isinstance(error, DefinitionErrors) else (error,)


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """A hint with the nearest known word, if one is near. Nearly the same letters come first, then the word
    of which this one says more: hubspot_list is hubspot_lists, and hubspot_contacts is hubspot."""
    word, known = word.lower(), list(known)
    near = get_close_matches(word, known, n=1, cutoff=0.85)
    near = near or sorted((one for one in known if word.startswith(f"{one}_")), key=len)[-1:]
    near = near or get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else None


def validate(model: type[ModelT], filled: Filled, **given: Any) -> ModelT:
    """The model of these values; `given` are values that are not in the file (a name, a connection).

    DefinitionError(s) for everything that is wrong. A value with an unset variable is left out if it is not
    valid as text; VARIABLE_UNSET if the model needs it.
    """
    if not isinstance(filled.value, dict):
        raise DefinitionError(
            "DEFINITION_INVALID", "this must be a mapping of keys and values", where=filled.place(())
        )
    ours = [_unknown_key(model, (key,), filled, given) for key in given.keys() & filled.value.keys()]
    value = {**filled.value, **given}
    found, errors = _attempt(model, value)
    waiting = {filled.written(error["loc"]) for error in errors} & filled.missing.keys()
    if waiting:
        for loc in waiting:
            value = _without(value, loc)
        found, errors = _attempt(model, value)
    if filled.missing:
        blamed = [error for error in errors if _waits(error, filled)]
        errors = [error for error in errors if error not in blamed]
        if blamed and not errors:
            raise filled.all_missing()[0].error()
    errors = [error for error in errors if not _echoes(error, errors)]
    judged = {error["loc"] for error in errors}
    errors += [error for error in _texts(model, value, filled) if error["loc"] not in judged]
    raise_all([*ours, *(_error(model, error, filled, given) for error in errors)])
    assert found is not None
    return found


def _attempt(model: type[ModelT], value: Any) -> tuple[ModelT | None, list[ErrorDetails]]:
    try:
        return model.model_validate(value), []
    except ValidationError as error:
        return None, _details(error)


def _details(error: ValidationError) -> list[ErrorDetails]:
    return error.errors(include_input=False, include_url=False, include_context=False)


def _waits(error: ErrorDetails, filled: Filled) -> bool:
    """Whether an unset variable may be the cause: in the value itself, or in a part of it."""
    loc = error["loc"]
    whole = error["type"] in ("value_error", "assertion_error")
    return any(loc == waits or (whole and waits[: len(loc)] == loc) for waits in filled.missing)


def _echoes(error: ErrorDetails, errors: Sequence[ErrorDetails]) -> bool:
    """Whether it says that a list is too short, and its items are wrong: those were not counted."""
    loc = error["loc"]
    return error["type"] == "too_short" and any(
        len(one["loc"]) > len(loc) and one["loc"][: len(loc)] == loc for one in errors
    )


def _texts(model: type[BaseModel], value: Any, filled: Filled) -> Iterator[ErrorDetails]:
    """The errors of a strict validation where a text is used instead of a number or a boolean."""
    try:
        model.model_validate(_as_tuples(value), strict=True)
    except ValidationError as error:
        for details in _details(error):
            loc = filled.written(details["loc"])
            if (
                details["type"] in _TYPED
                and loc not in filled.variables
                and isinstance(filled.tree.at((*filled.at, *loc)), str)
            ):
                yield details


def _as_tuples(value: Any) -> Any:
    """Lists as tuples, as frozen models and strict validation need them."""
    if isinstance(value, dict):
        return {key: _as_tuples(item) for key, item in value.items()}
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value


def _without(value: Any, loc: Loc) -> Any:
    """A copy of nested mappings and lists without the value at `loc`."""
    head, *rest = loc
    if isinstance(value, list):
        assert isinstance(head, int)
        inner = [_without(value[head], tuple(rest))] if rest else []
        return [*value[:head], *inner, *value[head + 1 :]]
    kept = {key: item for key, item in value.items() if key != head}
    return {**kept, head: _without(value[head], tuple(rest))} if rest else kept


def _error(
    model: type[BaseModel], details: ErrorDetails, filled: Filled, given: Iterable[str]
) -> DefinitionError:
    loc, kind = details["loc"], details["type"]
    dotted = ".".join(str(part) for part in filled.written(loc))
    subject = f"`{dotted}`: " if dotted else ""
    if kind == "extra_forbidden":
        return _unknown_key(model, loc, filled, given)
    if kind == "missing":
        name = ".".join(str(part) for part in (*filled.written(loc), loc[-1]))
        about = _described(model, loc)
        hint = f"{loc[-1]}: {about}" if about else None
        return DefinitionError("OPTION_MISSING", f"`{name}` is missing", hint=hint, where=filled.place(loc))
    if kind in _TYPED:
        word = str(filled.found(loc)).lower()
        meant = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(word)
        hint = "text is not converted; write the value without quotes"
        hint = f"for {word!r} write {meant}" if meant and kind == "bool_type" else hint
        message = f"{subject}must be {_TYPED[kind]}"
        return DefinitionError("DEFINITION_INVALID", message, hint=hint, where=filled.place(loc))
    message = _sentence(details["msg"])
    own = f"`{dotted.rpartition('.')[2]}` "
    named = message.startswith(own)  # it says its own name
    message = f"`{dotted}` {message.removeprefix(own)}" if named else f"{subject}{message}"
    if shape := _shape(loc, kind, filled):
        return DefinitionError("DEFINITION_INVALID", message, hint=shape, where=filled.place(loc))
    meant = _meant(filled.found(loc), details["msg"]) if loc else None  # of the whole file, no word is meant
    return DefinitionError("DEFINITION_INVALID", message, hint=meant, where=filled.place(loc))


def _shape(loc: Loc, kind: str, filled: Filled) -> str | None:
    """A hint for one word in the place of a list, or of the mapping that it stands for."""
    word = filled.found(loc) if loc else None
    if isinstance(word, dict) and kind in ("list_type", "tuple_type"):
        return "write a list: `- ` before each entry"
    if not isinstance(word, str) or not re.fullmatch(r"[\w.-]+", word):
        return None
    if kind in ("list_type", "tuple_type"):
        return f"write [{word}]"
    key = {"source": "table", "destination": "connection"}.get(str(loc[-1]))
    mapping = kind in ("dict_type", "model_type", "model_attributes_type")
    if mapping and loc[0] == "contract" and len(loc) > 1:
        return f"write {{type: {word}}}"
    return f"write {{{key}: {word}}}" if key and mapping and len(loc) == 1 else None


def _meant(value: Any, message: str) -> str | None:
    """A hint for a word that is not among those that the message names: another tool's, or a typo."""
    words = [value] if isinstance(value, str) else list(value) if isinstance(value, dict) else []
    known = set(re.findall(r"[a-z_]{3,}", message))
    for word in (one.strip().lower() for one in words if isinstance(one, str)):
        if word in known:
            continue
        other = re.split(r"[(<\[]", word)[0].strip()
        ours = _ELSEWHERE.get(other, "")
        if ours.split(" ")[0] in known:
            return f"for {other!r} write {ours}"
        if close := get_close_matches(word, known, n=1, cutoff=0.75):
            return f"did you mean {close[0]!r}?"
    return None


def _unknown_key(model: type[BaseModel], loc: Loc, filled: Filled, given: Iterable[str]) -> DefinitionError:
    key, place = str(loc[-1]), filled.key_place(loc)
    known = sorted(_keys(model, loc[:-1]) - (set(given) if len(loc) == 1 else set()))
    hint = did_you_mean(key, known) or (f"known keys: {', '.join(known)}" if known else None)
    return DefinitionError("OPTION_UNKNOWN", f"there is no key {key!r} here", hint=hint, where=place)


def _sentence(message: str) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = re.sub(r", unable to (parse|interpret) .*", "", message)
    message = re.sub(r"a valid (tuple|list|array)", "a list", message)
    message = re.sub(r"a valid dictionary( or instance of \w+)?", "a mapping of keys and values", message)
    return re.sub(r"^\w+ should (be|have|match|contain)\b", r"must \1", message)


def _keys(annotation: Any, loc: Loc) -> set[str]:
    """The keys that are allowed at `loc` inside a model or a type; empty if there is no such place."""
    return {name for fields in _fields(annotation, loc) for name in fields}


def _described(annotation: Any, loc: Loc) -> str | None:
    """What the field at `loc` is for, if every model that may be there says the same."""
    name = str(loc[-1])
    found = {fields[name].description for fields in _fields(annotation, loc[:-1]) if name in fields}
    return found.pop() if len(found) == 1 else None


def _fields(annotation: Any, loc: Loc) -> Iterator[dict[str, FieldInfo]]:
    """The fields by their keys of each model that may be at `loc` inside a model or a type."""
    if get_origin(annotation) is Annotated:
        yield from _fields(get_args(annotation)[0], loc)
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from _fields(member, loc)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        named = {field.alias or name: field for name, field in annotation.model_fields.items()}
        if not loc:
            yield named
            return
        inner = named.get(str(loc[0]))
        # A part that is not a field is the tag of a union, or of a spelling that a validator replaced.
        yield from _fields(annotation if inner is None else inner.annotation, loc[1:])
    elif get_origin(annotation) in (dict, tuple, list) and loc:
        for member in get_args(annotation):
            yield from _fields(member, loc[1:])
