"""What can be said of a sync without its target, its ledger or a network: `retl validate`.

Definitions, contract, mapping and destination against each other, and the SQL against the warehouse's
catalog where the file is there. It reads no row and waits for no writer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retl import contract, mapping, planning
from retl.definitions import Sync, Warehouse
from retl.destinations import Destination
from retl.errors import DefinitionError, Later, Mismatch
from retl.execution import private_directory
from retl.mapping import Run
from retl.signals import Stop
from retl.sources import duckdb as mart
from retl.spool import Spool

_NOBODY = Run("offline", datetime(2000, 1, 1, tzinfo=UTC))


@dataclass(frozen=True)
class Checked:
    """`rows_of` is what the mart's columns were checked against; None where the warehouse was not there."""

    columns: Mapping[str, str] | None
    note: str | None = None


def check(
    sync: Sync,
    warehouse: Warehouse,
    folder: Path,
    variables: Mapping[str, Any],
    target: tuple[type[Destination[Any]], Any] | None,
) -> Checked:
    """DefinitionError for whatever is wrong; `target` is the destination's class and options, None where
    variables that are not set keep it from being made."""
    wanted = mart.query(sync.source, variables, folder)
    for text in sync.checks:
        mart.select(text, variables, "checks")
    found = _columns(sync, wanted, warehouse, folder)
    if found.columns is None:
        return found
    try:
        judge = contract.build(sync.contract, found.columns, folder, sync.key, warehouse.timezone)
        field_map = mapping.build(
            sync, judge, _NOBODY, state_id="", timezone=warehouse.timezone, newest=None
        )
        if target is not None:
            kind, options = target
            planning.fit(sync, field_map, kind(options, field_map.shape).capabilities)
    except Mismatch as problem:
        raise _misfit(sync, problem) from problem
    return found


def _columns(sync: Sync, wanted: mart.Query, warehouse: Warehouse, folder: Path) -> Checked:
    if not (folder / warehouse.path).is_file():
        return Checked(None, f"{warehouse.path} is not there: its SQL was not checked against the catalog")
    now = warehouse.model_copy(update={"lock_wait": 0.0})
    with private_directory() as directory:
        spool = Spool(directory, Stop())
        try:
            mart.attach(spool, now, folder)
            spool.harden([folder / path for path in warehouse.read_paths])
            return Checked(mart.columns(spool, wanted))
        except Later as problem:
            return Checked(None, f"{problem.message}: its SQL was not checked against the catalog")
        except Mismatch as problem:
            raise _misfit(sync, problem) from problem
        finally:
            spool.close()


def _misfit(sync: Sync, problem: Mismatch) -> DefinitionError:
    return DefinitionError(problem.code, problem.message, hint=problem.hint, where=f"sync {sync.name}")
