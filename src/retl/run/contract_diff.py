"""A contract beside its mart, dbt and the target: which columns came, went, or changed, and what can be done.

Each difference has its ways out: an edit of the contract, and the DDL of the target. It reads catalogs, never
rows, and changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from retl.contract.completion import completed
from retl.contract.loaders import is_own
from retl.destinations.api import Destination
from retl.destinations.batch import Capabilities, Field, Visit, WriteMode
from retl.engine.mapping import FieldMap
from retl.errors import Mismatch
from retl.ledger import Ledger
from retl.project.contracts import STAR, Column, Documented
from retl.project.definitions import Sync
from retl.values.types import Type, fits, of_duckdb

Kind = Literal["added", "renamed", "retyped", "removed", "missing", "orphaned", "unfit", "dbt"]
_ALIKE = 0.6  # of two names, as SequenceMatcher counts
_PARTS = ("type", "max_digits", "decimal_places", "items")


class Difference(Struct, frozen=True):
    """`column`: of the mart or the target; `now`: its new name or type; `edit`: what the contract would say,
    None if no edit of it helps; `ddl`: what the target would need instead, or as well. `is_drift`: it is of
    what the contract names, or a column that is new; one that was left out before is nobody's mistake, nor
    are values that stay at the target. `by`: who would run `ddl`, the next run (`create: true` adds columns
    and changes no other) or only a person."""

    column: str
    kind: Kind
    what: str
    now: str | None = None
    edit: Mapping[str, Any] | None = None
    ddl: str | None = None
    is_drift: bool = True
    by: Literal["run", "person"] | None = None


class Former(Struct, frozen=True):
    """The fields that earlier runs wrote, and of the last of these runs each with its type."""

    fields: Sequence[str]
    last: Mapping[str, str]


def of_mart(
    written: Mapping[str, Column] | None,
    columns: Mapping[str, str],
    documented: Mapping[str, Documented],
    left_out: Collection[str] = (),
) -> list[Difference]:
    """What the contract and dbt say otherwise than the mart. Without columns of its own, a contract follows
    the mart. `left_out`: columns that it leaves out on purpose."""
    contract = {name: one for name, one in (written or {}).items() if name != STAR}
    starred = written is None or STAR in written
    gone = [name for name in contract if name not in columns]
    new = [name for name in columns if name not in contract and not is_own(name)]
    found = list[Difference]()
    for name in gone:
        other = _renamed(name, contract[name], [one for one in new if one not in _now(found)], columns)
        if other is not None:
            found.append(Difference(name, "renamed", f"the mart calls it {other}", other, {}))
        else:
            found.append(Difference(name, "removed", "it is not in the mart"))
    for name in [] if starred else new:
        if name not in _now(found) and of_duckdb(columns[name]) is not None:
            found.append(
                Difference(
                    name,
                    "added",
                    f"the mart has it as {columns[name]}, the contract has not",
                    edit=_column(name, columns, documented),
                    is_drift=name not in left_out,
                )
            )
    found += _retyped(contract, columns, documented)
    return [
        *found,
        *(
            replace(one, is_drift=starred or one.column in contract)
            for one in _of_dbt(contract, columns, documented)
        ),
    ]


def of_target(
    destination: Destination[Any],
    field_map: FieldMap,
    former: Former,
    differences: list[Difference],
    *,
    creates: bool,
) -> list[Difference]:
    """The same differences with the DDL that would do instead, and those between the fields and the target's
    columns. `former`: what earlier runs wrote. `creates`: a run adds missing columns. A TargetError if the
    target cannot be reached."""
    held, write = destination.columns(), field_map.shape.write
    if held is None:
        return differences
    fields = {one.name: one for one in (*field_map.shape.key, *field_map.shape.fields)}
    folded = {name.lower() for name in held}
    found = [_with_ddl(destination, one, fields, folded) for one in differences]
    told = {one.column for one in differences} | _now(differences)
    known = fields.keys() | told
    gone = [name for name in former.fields if name not in known and name.lower() in folded]
    new = [name for name in fields if name.lower() not in folded and name not in told]
    for name in list(gone):
        if (other := _nearest(name, new) or _only(name, gone, new, former, fields)) is not None:
            what = f"no field writes it now; {other} is new, and the target lacks it"
            found.append(Difference(name, "renamed", what, other, ddl=destination.ddl(name, other)))
            gone.remove(name)
            new.remove(other)
    told |= {one.column for one in found} | _now(found)
    for name, field in fields.items():
        if name.lower() not in folded and field.column not in told and name not in told:
            ddl = destination.ddl(name, field)
            found.append(Difference(name, "missing", "the target lacks this column", ddl=ddl))
    for name in gone:
        what = f"earlier runs wrote it, and no field does now: {fate(destination.capabilities, write, 1)}"
        ddl = destination.ddl(name, None)
        found.append(Difference(name, "orphaned", what, edit={}, ddl=ddl, is_drift=False))
    if not any(one.kind == "missing" for one in found):
        found += _unfit(destination, [one for one in differences if one.kind == "retyped"])
    return [replace(one, by=_by(one, creates=creates)) for one in found]


def _by(one: Difference, *, creates: bool) -> Literal["run", "person"] | None:
    if one.ddl is None:
        return None
    return "run" if creates and one.kind in ("added", "missing") else "person"


def new_columns(ledger: Ledger, sync: Sync, columns: Mapping[str, str]) -> str | None:
    """A note about columns that the mart did not have at the last run and that the contract does not name."""
    former, contract = ledger.kept(_seen(sync)), sync.contract and sync.contract.columns
    if former is None or contract is None or STAR in contract:
        return None
    known = {*json.loads(former), *contract}
    new = [name for name in columns if name not in known and not is_own(name)]
    if not new:
        return None
    several = "new columns that" if len(new) > 1 else "a new column that"
    return (
        f"the mart has {several} the contract does not name: {', '.join(new)}"
        f" (`retl contract update {sync.name} {' '.join(f'--column {name}' for name in new)}` takes"
        f" {'them' if len(new) > 1 else 'it'})"
    )


def left_out(ledger: Ledger, sync: Sync) -> frozenset[str]:
    """The columns that the mart had at the last run, and that the contract did not name: not by mistake."""
    former = json.loads(ledger.kept(_seen(sync)) or "[]")
    return frozenset(former) - frozenset((sync.contract and sync.contract.columns) or ())


def remember(ledger: Ledger, sync: Sync, columns: Mapping[str, str]) -> None:
    """Keep the mart's columns for `new_columns` of later runs."""
    text = json.dumps(list(columns))
    if text != ledger.kept(_seen(sync)):
        ledger.keep(_seen(sync), text)


def orphaned(former: str | None, now: str, capabilities: Capabilities, write: WriteMode) -> str | None:
    """A note about fields that the last run wrote and no run writes now. Both are their types as JSON."""
    left = [name for name in json.loads(former or "{}") if name not in json.loads(now)]
    if not left:
        return None
    return f"no field writes {', '.join(left)} now: {fate(capabilities, write, len(left))}"


def fate(capabilities: Capabilities, write: WriteMode, fields: int) -> str:
    """What becomes at the target of the values of so many fields that are no longer sent. A target that
    cannot leave a field as it is replaces the whole object."""
    changes = capabilities.whole or write in ("upsert", "update_only", "replace")
    values = "their values" if fields > 1 else "its values"
    if changes and not capabilities.nulls_keep:
        return f"a write replaces the whole object at the target, so {values} are gone from each row written"
    if changes and capabilities.unsent_varies:
        return f"whether {values} stay is up to the target, which may replace the whole object"
    return f"at the target {values} stay as they are"


def _seen(sync: Sync) -> str:
    return f"mart {sync.name}"


def written_before(ledger: Ledger, sync: str) -> Former:
    """What the last runs of a sync wrote."""
    found = [(run.fingerprint or {}).get("types") for run in ledger.runs(sync, 100)]
    types: list[dict[str, str]] = [json.loads(one) for one in found if one]
    return Former(tuple(dict.fromkeys(name for one in types for name in one)), types[0] if types else {})


def _now(found: Sequence[Difference]) -> set[str]:
    return {one.now for one in found if one.kind == "renamed" and one.now is not None}


def _renamed(name: str, column: Column, new: Sequence[str], columns: Mapping[str, str]) -> str | None:
    """The new column of the mart that is most like one that left; its type must fit."""
    wanted = None if column.type is None else _type(column)
    return _nearest(name, [one for one in new if wanted is None or fits(wanted, columns[one])])


def _nearest(name: str, others: Sequence[str]) -> str | None:
    """The name that is most like this one, or the only one that shares a word with it, if one is."""
    alike = {one: SequenceMatcher(None, name.lower(), one.lower()).ratio() for one in others}
    best = max(alike, key=lambda one: alike[one], default=None)
    if best is not None and alike[best] >= _ALIKE:
        return best
    sharing = [one for one in others if _words(one) & _words(name)]
    return sharing[0] if len(sharing) == 1 else None


def _words(name: str) -> set[str]:
    """The longer words of a name: number_of_orders and OrderCount share `order`."""
    parts = re.findall(r"[a-z]+|[A-Z][a-z]*", name)
    return {part.lower().removesuffix("s") for part in parts if len(part) > 3}


def _only(
    name: str, gone: Sequence[str], new: Sequence[str], former: Former, fields: Mapping[str, Field]
) -> str | None:
    """The new field, if it and this one are the only ones of their type that came and went since the last
    run."""
    wanted = former.last.get(name)
    came = [one for one in new if str(fields[one].type) == wanted]
    went = [one for one in gone if former.last.get(one) == wanted]
    return came[0] if wanted is not None and len(came) == len(went) == 1 else None


def _retyped(
    contract: Mapping[str, Column], columns: Mapping[str, str], documented: Mapping[str, Documented]
) -> Iterator[Difference]:
    for name, column in contract.items():
        if column.type is None or name not in columns:
            continue
        kind, wanted = columns[name], _type(column)
        own = of_duckdb(kind)
        narrower = own is not None and own.name == wanted.name == "decimal" and own != wanted
        if (not fits(wanted, kind) or narrower) and own is not None:
            edit = {part: _column(name, columns, documented).get(part) for part in _PARTS}
            what = f"the contract says {wanted}, the mart has {kind}"
            yield Difference(name, "retyped", what, str(own), edit)


def _of_dbt(
    contract: Mapping[str, Column], columns: Mapping[str, str], documented: Mapping[str, Documented]
) -> Iterator[Difference]:
    """What dbt's project says of a column, and the warehouse or the contract says otherwise."""
    names = {name.lower(): name for name in columns}
    for lowered, known in documented.items():
        name = names.get(lowered)
        if name is None and known.inherited:
            continue
        if name is None:
            what = "dbt's project describes it, and the mart does not have it"
            yield Difference(lowered, "dbt", what)
            continue
        if known.type is not None and not fits(known.type, columns[name]):
            yield Difference(name, "dbt", f"dbt says {known.type}, the mart has {columns[name]}")
        column = contract.get(name)
        if column is None:
            continue
        if known.sensitive and "sensitive" in column.model_fields_set and not column.sensitive:
            yield Difference(
                name, "dbt", "dbt calls it personal, the contract does not", edit={"sensitive": True}
            )
        allowed = {str(value) for value in column.one_of or ()}
        if allowed and known.one_of and not allowed >= set(known.one_of):
            lacking = ", ".join(sorted(set(known.one_of) - allowed))
            what = f"dbt accepts values that the contract refuses: {lacking}"
            whole = [*(column.one_of or ()), *(one for one in known.one_of if one not in allowed)]
            typed = [int(one) if column.type == "integer" else one for one in whole]
            yield Difference(name, "dbt", what, edit={"one_of": typed})


def _with_ddl(
    destination: Destination[Any], one: Difference, fields: Mapping[str, Field], held: set[str]
) -> Difference:
    field = next((each for each in fields.values() if one.column in (each.column, each.name)), None)
    if one.kind == "added" and field is not None and field.name.lower() not in held:
        return replace(one, ddl=destination.ddl(field.name, field))
    if one.kind == "renamed" and one.column.lower() in held and one.now is not None:
        return replace(one, ddl=destination.ddl(one.column, one.now))
    if one.kind == "removed" and one.column.lower() in held:
        return replace(one, ddl=destination.ddl(one.column, None))
    return one


def _unfit(destination: Destination[Any], retyped: Sequence[Difference]) -> Iterator[Difference]:
    """What else keeps the target from taking the rows, in its own words. Of a column that the mart gave
    another type it was asked with that type: the contract has the old one already."""
    try:
        destination.check(Visit("none", 0))
    except Mismatch as problem:
        hint = problem.hint
        for one in retyped:
            cast = f"cast {one.column} in the source's SQL"
            already = rf"{re.escape(cast)}, and set `[^`]*` in the contract, if there is one"
            hint = hint and re.sub(already, f"{cast}, back to what the contract says", hint)
        yield Difference("", "unfit", problem.message, ddl=hint)


def _column(name: str, columns: Mapping[str, str], documented: Mapping[str, Documented]) -> dict[str, Any]:
    """What a contract would say of a column of the mart. dbt's part of it need not be repeated."""
    made = completed({name: Column()}, columns, documented)[name]
    return made.model_dump(include={*_PARTS, "nullable"}, exclude_defaults=True)


def _type(column: Column) -> Type:
    assert column.type is not None
    return Type(column.type, column.max_digits, column.decimal_places, column.items)
