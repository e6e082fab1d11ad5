"""What people may not see of a sync's rows, unless they ask with --reveal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from retl.errors import RetlError

if TYPE_CHECKING:
    from retl.app.loaded import LoadedProject
    from retl.project.definitions import Sync


def hides_key(project: LoadedProject, sync: str) -> bool:
    """Whether to mask this sync's keys. Also if it is unknown: the sync is no longer defined, or only its own
    Pydantic model knows."""
    known = project.syncs.get(sync)
    if known is None or (known.contract is not None and known.contract.model is not None):
        return True
    return bool(sensitive_columns(project, known) & {*known.key, "*"})


def sensitive_columns(project: LoadedProject, sync: Sync) -> set[str]:
    """The sensitive columns of a sync, by its YAML contract and by dbt, whose names are in lower case too.
    "*" stands for those that the contract does not name."""
    rules = contract_columns(sync, project.folder)
    written = {name for name, one in rules.items() if one.get("sensitive")}
    if sync.source.dbt is None and not _may_inherit(project, sync):
        return written
    try:
        documented = project.source(sync, offline=True).documented()
    except RetlError:  # nobody knows now
        return written.union(sync.key)
    marked = {name for name, one in documented.items() if one.sensitive}
    return written | marked | {name for name in sync.key if name.lower() in marked}


def _may_inherit(project: LoadedProject, sync: Sync) -> bool:
    """Whether dbt may say something of tables that a SELECT reads."""
    from retl.sources import dbt

    folder = project.folder / project.warehouse.dbt
    return sync.source.from_ is None and (folder / dbt.MANIFEST).is_file()


def contract_columns(sync: Sync, folder: Path) -> dict[str, dict[str, Any]]:
    """The rules of each column of a sync's YAML contract, as they are written."""
    from retl.project import yamlfile

    contract = sync.contract
    if contract is None:
        return {}
    if contract.file is not None:
        columns = yamlfile.load(folder / contract.file, name=contract.file).value
        return {name: column for name, column in columns.items() if isinstance(column, dict)}
    return {name: column.model_dump() for name, column in (contract.columns or {}).items()}
