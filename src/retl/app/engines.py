"""Where the shards of a run work: in how many processes, and what Spark or several commands need for that."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from retl.app.consistency import unshared
from retl.app.loaded import LoadedProject
from retl.errors import DefinitionError
from retl.project.definitions import Sync
from retl.run.job import Options

MOST = 64  # shards of a run


def shards(project: LoadedProject, sync: Sync, options: Options) -> int:
    if options.shard is not None:
        return options.shard[1]
    if options.selection.touched:
        return 1  # a few keys
    return sync.shards or project.definitions.engine.shards


def on_spark(project: LoadedProject, options: Options) -> bool:
    engine = project.definitions.engine
    return options.shard is None and (options.engine or engine.type) == "spark"


def shared_folder(project: LoadedProject) -> Path | None:
    """What all machines share, as `engine` says."""
    folder = project.definitions.engine.folder
    return (project.folder / folder).resolve() if folder is not None else None


def part(text: str) -> tuple[int, int]:
    """`3/16`: the number of a command, and how many there are. DefinitionError USAGE."""
    found = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
    number, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (1 <= number <= of and 2 <= of <= MOST):
        raise DefinitionError(
            "USAGE",
            f"--shard takes K/N, such as 3/16: N from 2 to {MOST}, K from 1 to N; not {text}",
            hint='count from 1: "$((JOB_COMPLETION_INDEX + 1))/16"',
        )
    return number, of


def unfit(project: LoadedProject, syncs: Sequence[Sync], options: Options) -> Iterator[DefinitionError]:
    """What a run on several machines lacks."""
    if options.shard is not None:
        yield from _unfit_for_peers(project, syncs, options)
    elif on_spark(project, options):
        yield from _unfit_for_spark(project, syncs, options)


def _unfit_for_spark(
    project: LoadedProject, syncs: Sequence[Sync], options: Options
) -> Iterator[DefinitionError]:
    several = [one for one in syncs if shards(project, one, options) > 1]
    if not several and options.engine == "spark":
        yield DefinitionError(
            "SPARK_SHARDS",
            "--engine spark shares the keys of a sync, and none of these has `shards`",
            hint="`engine: {shards: 8}` in retl.yml, or `shards` in the sync",
        )
    if several and project.state_url.startswith("file:"):
        yield DefinitionError(
            "SPARK_LEDGER",
            "Spark's tasks write to the ledger from several machines: it must be in PostgreSQL",
            hint="RETL_STATE_URL=postgresql://user@host/dbname, or `--engine local`",
        )


def _unfit_for_peers(
    project: LoadedProject, syncs: Sequence[Sync], options: Options
) -> Iterator[DefinitionError]:
    if len(syncs) != 1:
        yield DefinitionError(
            "USAGE",
            f"--shard shares the rows of one sync, and {len(syncs)} are chosen",
            hint="name it: `retl sync SYNC --shard 3/16`",
        )
    if options.dry_run or options.engine == "spark":
        other = "--dry-run" if options.dry_run else "--engine spark"
        yield DefinitionError("USAGE", f"--shard is for a run on several machines: leave out {other}")
    if project.state_url.startswith("file:"):
        yield DefinitionError(
            "PEERS_LEDGER",
            "--shard writes to the ledger from several machines: it must be in PostgreSQL",
            hint="RETL_STATE_URL=postgresql://user@host/dbname, or `shards: N` for one machine",
        )
    if project.definitions.engine.folder is None:
        yield DefinitionError(
            "PEERS_FOLDER",
            "--shard needs a folder that all machines share, and `engine` names none",
            hint="engine: {folder: /mnt/shared/retl} in retl.yml",
        )
    if not project.settings.retl_correlation_id:
        yield DefinitionError(
            "PEERS_JOB",
            "--shard needs RETL_CORRELATION_ID: a name that all commands of a job have, and no others",
            hint="the run id of the scheduler, or the uid of the Kubernetes Job",
        )
    for sync in syncs:
        if reason := unshared(project, sync):
            yield DefinitionError(
                "SHARDS_UNSUPPORTED",
                f"--shard is not possible here: {reason}",
                hint="leave out --shard",
                where=f"sync {sync.name}",
            )
