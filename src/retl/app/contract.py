"""`retl contract`: a contract beside mart, dbt and target, and the edit of its file that ends a difference.

The edit changes only what it must: comments and order stay. It is shown before anything is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from difflib import unified_diff
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from msgspec import Struct

from retl.app.scaffold.yamltext import flow
from retl.app.session import Session
from retl.contract.model import types_of
from retl.engine import mapping
from retl.engine.mapping import FieldMap, Run
from retl.engine.scratch import private_directory
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, Failure, RetlError
from retl.observe.signals import Stop
from retl.project import yamlfile
from retl.project.contracts import Column, ContractFile
from retl.project.definitions import Sync
from retl.project.fields import problems
from retl.project.validation import did_you_mean, raise_all, validate
from retl.project.variables import fill
from retl.project.yamledit import Edit, edited
from retl.run import check, contract_diff
from retl.run.contract_diff import Difference
from retl.run.job import Target
from retl.sources.api import Source

_NOBODY = Run("none", datetime(2000, 1, 1, tzinfo=UTC))


class Compared(Struct, frozen=True):
    """What differs; `texts`: the files as `update` would write them; `unseen`: why the target was not looked
    at. `taken`: the columns that `update` adds if the contract lacks them. `sent`: each renamed column → the
    fields that send it."""

    sync: str
    differences: tuple[Difference, ...]
    texts: Mapping[Path, str]
    unseen: str | None = None
    taken: frozenset[str] = frozenset()
    sent: Mapping[str, tuple[str, ...]] = {}


def compare(
    session: Session, sync: Sync, variables: Mapping[str, Any], taken: Sequence[str] = ("*",)
) -> Compared:
    """A sync's contract beside everything else. Of the columns that the contract lacks, those that fit the
    names or globs of `taken` are to be added. SourceError or Later if the mart cannot be read;
    DefinitionError COLUMN_UNKNOWN if the mart has no column for one of `taken`."""
    project = session.project
    source = project.source(sync, variables)
    columns, written = _columns(source), _written(session, sync)
    found = contract_diff.of_mart(written, columns, source.documented(), _left_out(session, sync))
    raise_all(_unknown(name, columns) for name in taken if not _fitting([name], columns))
    texts, proposed = dict[Path, str](), sync
    wanted = _fitting(taken, columns)
    if sync.contract is not None and sync.contract.model is None:
        texts, proposed = _texts(
            session, sync, [one for one in found if one.kind != "added" or one.column in wanted]
        )
    unseen = None
    try:
        found = _beside_target(session, proposed, source, columns, found)
    except RetlError as problem:
        unseen = f"the target was not looked at: {problem.message}"
    sent = {one.column: _sent(sync, one.column) for one in found if one.kind == "renamed"}
    return Compared(sync.name, tuple(found), texts, unseen, frozenset(wanted), sent)


def _sent(sync: Sync, column: str) -> tuple[str, ...]:
    """The fields that send a column of the contract, which keep their names when the column gets another."""
    fields = sync.fields or {}
    found = tuple(name for name, one in fields.items() if one.column == column)
    return found or ((column,) if sync.fields is None or "*" in fields else ())


def _left_out(session: Session, sync: Sync) -> frozenset[str]:
    """A ledger that cannot be read says of no column that it was left out."""
    try:
        return contract_diff.left_out(session.ledger(), sync)
    except RetlError:
        return frozenset()


def _fitting(names: Iterable[str], columns: Iterable[str]) -> set[str]:
    every = list(columns)
    return {column for name in names for column in every if name == column or fnmatchcase(column, name)}


def _unknown(name: str, columns: Iterable[str]) -> DefinitionError:
    hint = did_you_mean(name, columns)
    return DefinitionError("COLUMN_UNKNOWN", f"the mart has no column {name!r}", hint=hint)


def shown(compared: Compared, folder: Path) -> str:
    """The edit as a diff."""
    parts = list[str]()
    for path, text in compared.texts.items():
        name = os.path.relpath(path, folder)
        before = path.read_text(encoding="utf-8").splitlines(keepends=True)
        parts += unified_diff(before, text.splitlines(keepends=True), name, name)
    return "".join(parts)


def write(compared: Compared) -> list[Path]:
    """Write the edited files, each at once. Failure FILE_UNWRITABLE."""
    for path, text in compared.texts.items():
        other = path.with_name(f".{path.name}.retl")
        try:
            other.write_text(text, encoding="utf-8")
            other.chmod(path.stat().st_mode & 0o777)
            other.replace(path)
        except OSError as problem:
            other.unlink(missing_ok=True)
            raise Failure("FILE_UNWRITABLE", f"{path} cannot be written: {problem.strerror}") from problem
    return list(compared.texts)


def _columns(source: Source[Any]) -> dict[str, str]:
    with (
        private_directory() as directory,
        Workspace(directory, Stop()) as workspace,
        source.open(workspace, wait=False) as snapshot,
    ):
        return dict(snapshot.description.columns)


def _written(session: Session, sync: Sync) -> Mapping[str, Column] | None:
    """The columns of a contract; of a Pydantic model only those whose types it says."""
    contract = sync.contract
    if contract is None:
        return None
    if contract.model is None:
        return contract.columns
    return {
        name: Column(
            type=one.name, max_digits=one.max_digits, decimal_places=one.decimal_places, items=one.items
        )
        for name, one in types_of(contract, session.project.folder).items()
    }


def _texts(session: Session, sync: Sync, found: Sequence[Difference]) -> tuple[dict[Path, str], Sync]:
    """The files that change, and the sync as they then define it. DefinitionError(s) if that is not valid."""
    project, contract = session.project, sync.contract
    assert contract is not None
    own = project.folder / project.place(sync).file
    file = project.folder / contract.file if contract.file else own
    loc: tuple[str, ...] = () if contract.file else ("contract",)
    before = {path: path.read_text(encoding="utf-8") for path in {own, file}}
    edits = {path: list[Edit]() for path in before}
    for one in found:
        edits[file] += _of_contract(one, loc, contract.columns or {})
        if one.kind == "renamed" and one.now is not None:
            value = yamlfile.load(own, before[own]).value
            edits[own] += list(_of_fields(one.column, one.now, sync, value, edits[own]))
    after = {path: edited(text, edits[path], path.name) for path, text in before.items()}
    tree = yamlfile.load(own, after[own], name=own.name)
    proposed = validate(Sync, fill(tree, project.environment), name=sync.name)
    if contract.file:
        written = yamlfile.load(file, after[file], name=file.name).under("contract")
        columns = validate(ContractFile, fill(written, project.environment)).contract
        changed = contract.model_copy(update={"columns": columns})
        proposed = proposed.model_copy(update={"contract": changed})
    named = proposed.contract.named if proposed.contract else None
    raise_all(
        DefinitionError(one.code, f"after the edit: {one.message}", hint=one.hint)
        for one in problems(proposed, named)
    )
    return {path: text for path, text in after.items() if text != before[path]}, proposed


def _of_contract(one: Difference, loc: tuple[str, ...], written: Mapping[str, Column]) -> Iterator[Edit]:
    """The edits of the contract for a difference."""
    match one.kind:
        case "added":
            yield Edit(loc, one.column, flow(one.edit))
        case "removed":
            yield Edit(loc, one.column)
        case "renamed":
            yield Edit(loc, one.column, name=one.now)
        case "retyped" | "dbt":
            for part, value in (one.edit or {}).items():
                if value is not None:
                    yield Edit((*loc, one.column), part, flow(value))
                elif part in written[one.column].model_fields_set:
                    yield Edit((*loc, one.column), part)


def _of_fields(
    old: str, new: str, sync: Sync, written: Mapping[str, Any], before: Sequence[Edit]
) -> Iterator[Edit]:
    """The edits of key and fields, so that the field of a renamed column keeps its name."""
    yield from (Edit(("key",), at, flow(new)) for at, name in enumerate(sync.key) if name == old)
    fields = written.get("fields")
    if fields is None and not any(edit.key == "fields" for edit in before):
        yield Edit((), "fields", flow({"*": "*", old: new}))
        return
    taken = False
    for name, value in (fields or {}).items():
        if value == old:
            yield Edit(("fields",), name, flow(new))
        elif isinstance(value, dict) and value.get("column") == old:
            yield Edit(("fields", name), "column", flow(new))
        else:
            continue
        taken = True
    if not taken and (fields is None or "*" in fields):
        yield Edit(("fields",), old, flow(new))


def _beside_target(
    session: Session,
    sync: Sync,
    source: Source[Any],
    columns: Mapping[str, str],
    found: list[Difference],
) -> list[Difference]:
    """The differences with what the target says of them."""
    project = session.project
    project.require([sync])
    resolved = project.destination(sync)
    ledger = session.ledger()
    target = Target(resolved.type, resolved.destination, resolved.options, resolved.name)
    field_map = _field_map(sync, source, project.folder, columns, ledger.state_id)
    with closing(target.lane(field_map.shape)) as destination:
        former = contract_diff.written_before(ledger, sync.name)
        return contract_diff.of_target(
            destination, field_map, former, found, creates=getattr(resolved.options, "create", False)
        )


def _field_map(
    sync: Sync, source: Source[Any], folder: Path, columns: Mapping[str, str], state_id: str
) -> FieldMap:
    if sync.contract is not None and sync.contract.columns is not None:  # its file has the old ones
        sync = sync.model_copy(update={"contract": sync.contract.model_copy(update={"file": None})})
    contract = check.contract_of(sync, source, folder, columns)
    return mapping.build(sync, contract, _NOBODY, state_id=state_id, timezone=source.timezone)
