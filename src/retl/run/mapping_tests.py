"""Mapping tests: rows in a sync file, and what would be sent for them, or why they are rejected.

A given row passes the same steps as a row of a run: contract, mapping, hash diff and change set, over an
empty baseline. Nothing here has rules or transforms of its own. With a contract it needs no warehouse,
because the types are those of the contract. It contacts no target.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from msgspec import Struct

from retl.contract.judge import CODES, Contract
from retl.engine import baseline, change_set, diff, freeze, hash, judge, mapping
from retl.engine.diff import Strategy
from retl.engine.judge import Reject
from retl.engine.lines import document_sql
from retl.engine.mapping import FieldMap, Run
from retl.engine.scratch import private_directory
from retl.engine.workspace import Workspace
from retl.observe.signals import Stop
from retl.project.definitions import MappingTest, Sync
from retl.project.fields import Problem, expand_fields, lacking
from retl.project.validation import did_you_mean
from retl.project.yamlfile import Loc
from retl.run import check
from retl.sources.api import Source
from retl.values import json_text, storage
from retl.values.types import NO_TYPE, Type

KEPT = "$kept"  # the expected value of a field under `nulls: keep` that is not sent
_ABSENT = object()
_SOMETIME = Run("none", datetime(2000, 1, 1, tzinfo=UTC))
_ALL = Strategy(everything=True, absence=False, once=False, hold_unknown=False)


class Difference(Struct, frozen=True):
    """A field that would be sent with another value than expected; `sent` is KEPT if it would not be sent."""

    field: str
    expected: Any
    sent: Any
    sensitive: bool


class Verdict(Struct, frozen=True):
    """The result of one test. `rejected` is the reason if its row would not be sent."""

    number: int  # from 1
    name: str | None
    passed: bool
    differences: tuple[Difference, ...] = ()
    rejected: Reject | None = None


def contract_of(sync: Sync, source: Source[Any], folder: Path) -> Contract:
    """The sync's contract, by default made of the mart's columns. SourceError or Later if the source
    cannot be read then."""
    alone = sync.contract is not None and not sync.contract.needs_mart
    columns: Mapping[str, str] = UnreadColumns() if alone else check.columns(sync, source)
    return check.contract_of(sync, source, folder, columns)


def problems(sync: Sync, contract: Contract) -> Iterator[Problem]:
    """What is wrong with the tests themselves."""
    fields = expand_fields(sync, list(contract.columns))
    for number, test in enumerate(sync.tests):
        for column, value in test.given.items():
            at: Loc = ("tests", number, "given", column)
            if column not in contract.columns:
                yield Problem(sync.name, at, "COLUMN_UNKNOWN", *lacking(sync, column, list(contract.columns)))
                continue
            try:
                _typed(contract.columns[column].type, value)
            except ValueError as problem:
                yield Problem(sync.name, at, "TEST_INVALID", f"{column} {problem}")
        for name in test.expect or {}:
            at = ("tests", number, "expect", name)
            if name not in fields:
                hint = did_you_mean(name, fields)
                yield Problem(sync.name, at, "FIELD_UNKNOWN", f"the sync does not write {name!r}", hint)
            elif fields[name].run_value in ("$run_id", "$run_started_at"):
                yield Problem(sync.name, at, "TEST_INVALID", f"{name} is different in every run")
        words = {*contract.columns, *CODES, *hash.KEY_FAULTS}
        if test.reject is not None and test.reject not in words:
            message = f"`reject` names a column of the contract or a code, not {test.reject!r}"
            hint = did_you_mean(test.reject, contract.columns)
            yield Problem(sync.name, ("tests", number, "reject"), "TEST_INVALID", message, hint)


def run(sync: Sync, contract: Contract) -> Iterator[Verdict]:
    """Run every test in order. They must be valid: see `problems`."""
    for number, test in enumerate(sync.tests, start=1):
        with private_directory() as directory, Workspace(directory, Stop()) as workspace:
            yield _tried(sync, contract, test, number, workspace)


def _tried(
    sync: Sync,
    contract: Contract,
    test: MappingTest,
    number: int,
    workspace: Workspace,
) -> Verdict:
    given = {name: _typed(rule.type, test.given.get(name)) for name, rule in contract.columns.items()}
    types = {name: kind for name, (kind, _) in given.items()}
    values = [(0, *(text for _, text in given.values()))]
    workspace.load(freeze.FROZEN, {"retl row": "BIGINT", **types}, values)
    contract, edited = contract.over(types), list[tuple[Any, ...]]()
    if contract.edits:
        contract, edited = freeze.edit(workspace, contract, keep=False)
    field_map = mapping.build(sync, contract, _SOMETIME, state_id="", timezone=contract.timezone)
    for other in {lookup.sync for lookup in field_map.lookups}:  # external ids are not in files: NULL
        workspace.run(f'CREATE TABLE {mapping.external_ids(other)} ("retl key" VARCHAR, "retl ref" VARCHAR)')
    delivered = baseline.build(workspace, None, [])
    hash.hash_rows(workspace, field_map, "TRUE" if contract.edits else contract.prefilter(), "")
    diff.diff(workspace, field_map, _ALL, delivered, whole=True)
    judge.judge(workspace, contract, sync.key, edited)
    change_set.assemble(workspace, field_map, write=sync.write)
    refused = next(iter(judge.rejects(workspace)), None)
    if test.reject is not None:
        return Verdict(number, test.name, _is_for(refused, test.reject, sync), rejected=refused)
    if refused is not None:
        return Verdict(number, test.name, False, rejected=refused)
    sent = _sent(workspace, field_map)
    hidden = {one.name for one in (*field_map.shape.key, *field_map.shape.fields) if one.sensitive}
    differences = tuple(
        Difference(name, wanted, KEPT if sent.get(name, _ABSENT) is _ABSENT else sent[name], name in hidden)
        for name, wanted in (test.expect or {}).items()
        if not _same(wanted, sent.get(name, _ABSENT))
    )
    return Verdict(number, test.name, not differences, differences)


def _sent(workspace: Workspace, field_map: FieldMap) -> dict[str, Any]:
    """The fields of the row as they are sent, with the key's, in JSON form."""
    keys = [
        json_text.json_sql(one.type, f"k{i}", field_map.formats, field_map.timezone)
        for i, one in enumerate(field_map.shape.key)
    ]
    document, *parts = workspace.one(f"SELECT {', '.join([document_sql(field_map), *keys])} FROM changes")
    names = [one.name for one in field_map.shape.key]
    found = {name: json.loads(part, parse_float=Decimal) for name, part in zip(names, parts, strict=True)}
    return {**found, **json.loads(document, parse_float=Decimal)}


def _is_for(refused: Reject | None, word: str, sync: Sync) -> bool:
    """Is the row rejected for that column, or with that code?"""
    if refused is None:
        return False
    return word in (refused.column, refused.code) or (refused.stage == "key" and word in sync.key)


def _same(wanted: Any, sent: Any) -> bool:
    """Equal as JSON: 1 equals 1.0, but neither true nor the text 1."""
    if sent is _ABSENT or wanted == KEPT:
        return sent is _ABSENT and wanted == KEPT
    if isinstance(wanted, list) and isinstance(sent, list):
        return len(wanted) == len(sent) and all(map(_same, wanted, sent))
    if isinstance(wanted, dict) and isinstance(sent, dict):
        return wanted.keys() == sent.keys() and all(_same(wanted[name], sent[name]) for name in wanted)
    if _is_number(wanted) and _is_number(sent):
        return Decimal(str(wanted)) == Decimal(str(sent))
    return type(wanted) is type(sent) and bool(wanted == sent)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


class UnreadColumns(dict[str, str]):
    """The columns of a mart that is not read: every name, with a type that fits every use."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> str:
        return NO_TYPE


def _typed(type: Type, value: Any) -> tuple[str, str | None]:
    """The DuckDB type of a mart column with this value, and the value as text. A value that needs another
    column type (1.5 for an integer) gets that type, so that the contract can judge it.

    ValueError, continuing "the column …", for a value that no column of this contract type can have.
    """
    if value is None:
        return storage.storage_type(type), None
    match type.name:
        case "boolean" if isinstance(value, bool):
            return "BOOLEAN", str(value)
        case "integer" | "decimal" | "float" if not isinstance(value, bool):
            return _number(type, value)
        case "string" | "uuid" if isinstance(value, str):
            return "VARCHAR", value
        case "date" | "timestamp" | "timestamptz" if isinstance(value, str):
            return _time(type, value)
        case "json":
            return "VARCHAR", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        case "list" if isinstance(value, list):
            for item in value:
                if _typed(type.item, item)[0] != storage.storage_type(type.item) and type.items != "uuid":
                    raise ValueError(f"is of type {type}, and one of its items is not")
            return storage.storage_type(type), json.dumps(value, ensure_ascii=False)
    raise ValueError(f"is of type {type}, and this value is not{_QUOTE.get(type.name, '')}")


_QUOTE = {"string": ": a text that looks like a number needs quotes"}
_INFINITIES = {"nan", "inf", "-inf", "infinity", "-infinity"}


def _number(type: Type, value: Any) -> tuple[str, str]:
    if isinstance(value, str) and value.lower() in _INFINITIES:
        return "DOUBLE", value
    if type.name == "float" and not isinstance(value, str):
        return "DOUBLE", repr(float(value))
    try:
        number = Decimal(str(value)) if type.name == "decimal" or not isinstance(value, str) else None
    except InvalidOperation:
        number = None
    if number is None:
        raise ValueError(f"is of type {type}, and this text is not")
    places = max(0, -int(number.as_tuple().exponent))
    digits = max(len(number.as_tuple().digits) + max(0, int(number.as_tuple().exponent)), places)
    if type.name == "integer" and places == 0:
        if abs(number) >= 2**126:
            raise ValueError("is an integer, and no column holds one as large as this")
        return "BIGINT" if -(2**63) <= number < 2**63 else "HUGEINT", format(number, "f")
    if type.name == "integer":
        return "DOUBLE", str(number)
    if places <= (type.decimal_places or 0) and digits - places <= (type.max_digits or 0) - (
        type.decimal_places or 0
    ):
        return storage.storage_type(type), format(number, "f")
    if digits > 38:
        raise ValueError("is a decimal, and no column has as many digits as this")
    return f"DECIMAL({digits},{places})", format(number, "f")


def _time(type: Type, value: str) -> tuple[str, str]:
    if value in ("infinity", "-infinity"):
        return storage.storage_type(type), value
    try:
        if type.name == "date":
            return "DATE", date.fromisoformat(value).isoformat()
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(f"is of type {type}, and this text is not") from None
    if moment.tzinfo is None:
        return "TIMESTAMP", moment.isoformat(sep=" ")  # a timestamptz is read in the warehouse's time zone
    if type.name == "timestamp":
        raise ValueError("is a timestamp, which has no offset")
    return "TIMESTAMP WITH TIME ZONE", moment.isoformat(sep=" ")
