"""What a shell may complete: syncs, tags, connections, runs, guards, codes.

A shell asks while a person types, so a project that cannot be read completes nothing, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from retl.app.loaded import LoadedProject
    from retl.app.session import Session

RUNS = 50  # the newest ones


def _quietly(find: Callable[[typer.Context], Iterable[str]]) -> Callable[[typer.Context, str], list[str]]:
    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        try:
            return sorted({one for one in find(ctx) if one.startswith(incomplete)})
        except Exception:  # noqa: BLE001 - an error would appear in the middle of the line that is typed
            return []

    return complete


def _session(ctx: typer.Context) -> Session:
    from retl.app.session import open_session

    shared = {**ctx.find_root().params, **{k: v for k, v in ctx.params.items() if v is not None}}
    folder: Path | None = shared.get("project")
    return open_session(folder, shared.get("env"))


def _project(ctx: typer.Context) -> LoadedProject:
    return _session(ctx).project


def _words(ctx: typer.Context) -> Iterator[str]:
    """Everything that chooses syncs."""
    project = _project(ctx)
    yield from project.syncs
    for sync in project.syncs.values():
        yield from (f"tag:{tag}" for tag in sync.tags)
        yield f"to:{sync.destination.connection or sync.destination.type}"
    yield "state:modified"


def _runs(ctx: typer.Context) -> list[str]:
    with closing(_session(ctx)) as session:
        return [run.run_id for run in session.ledger().runs(limit=RUNS)]


def _tags(ctx: typer.Context) -> set[str]:
    return {tag for sync in _project(ctx).syncs.values() for tag in sync.tags}


def _connections(ctx: typer.Context) -> list[str]:
    return list(_project(ctx).definitions.connections)


def _guards(_ctx: typer.Context) -> Iterable[str]:
    from retl.run.guards import GUARDS

    return GUARDS


def _helped(ctx: typer.Context) -> Iterator[str]:
    from retl.cli.codes import codes

    yield from codes()
    yield from getattr(ctx.find_root().command, "commands", {})


words, names = _quietly(_words), _quietly(lambda ctx: _project(ctx).syncs)
runs, tags, connections = _quietly(_runs), _quietly(_tags), _quietly(_connections)
guards, helped = _quietly(_guards), _quietly(_helped)
