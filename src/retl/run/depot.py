"""The folder that a run and its shards on other machines share.

Files are copied whole and never changed, so it may be any shared file system, also one that writes only in
order. What a killed run leaves there is removed by the next run of the sync that uses the folder.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from msgspec import Struct

from retl.engine import scratch
from retl.errors import Failure

_DRY = "dry-"
_OLD = 86400.0  # seconds after which a dry run, which has no lock, has surely ended


class Depot(Struct, frozen=True):
    """The files of one run, by name."""

    folder: Path

    def put(self, path: Path) -> None:
        """Copy a file there. Failure DISK_FULL if it cannot be written."""
        part = self.folder / f".{path.name}.{os.getpid()}"
        try:
            shutil.copyfile(path, part)
            os.replace(part, self.folder / path.name)
        except OSError as problem:
            raise scratch.unwritable(self.folder, problem) from problem

    def move(self, path: Path) -> None:
        """The same, and the file of this machine is gone. Nothing to do for one that is there."""
        if path.parent != self.folder:
            self.put(path)
            path.unlink()

    def get(self, name: str, folder: Path) -> Path:
        """Copy a file into a folder of this machine; its path there. Failure DEPOT_MISSING."""
        path = folder / name
        if self.folder != folder:
            try:
                shutil.copyfile(self.folder / name, path)
            except FileNotFoundError as problem:
                raise Failure(
                    "DEPOT_MISSING",
                    f"{socket.gethostname()} does not see {self.folder}, which the run has written",
                    hint="`engine: {folder: …}` names a folder that every machine of the cluster shares",
                ) from problem
        return path


def root(folder: Path, state_id: str, sync: str) -> Path:
    """Where the runs of a sync have their depots in a folder that machines share."""
    return folder / f"retl-{state_id}" / sync


@contextmanager
def lent(root: Path, run_id: str | None) -> Iterator[Depot]:
    """A depot below `root`, which only one sync uses; removed at the end. `run_id`: of a run that has the
    sync's lock, so that all other runs are dead; None for a dry run. Failure DISK_FULL."""
    folder = root / (run_id or f"{_DRY}{time.time_ns()}")
    try:
        for former in root.glob("*") if run_id else ():
            _remove_dead(former)
        folder.mkdir(parents=True)
    except OSError as problem:
        raise scratch.unwritable(root, problem) from problem
    try:
        yield Depot(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # others have files there
            root.rmdir()
            root.parent.rmdir()


def _remove_dead(folder: Path) -> None:
    with suppress(OSError):  # removed meanwhile
        if not folder.name.startswith(_DRY) or time.time() - folder.stat().st_mtime > _OLD:
            shutil.rmtree(folder, ignore_errors=True)
