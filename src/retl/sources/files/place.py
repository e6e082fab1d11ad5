"""Where files are: a folder of this machine, or a folder of a bucket.

A place lists the files of a pattern with what tells one state of a file from another, and gives each as a
path that the workspace may read. Files of a disk are read where they are. Those of a bucket are copied into
the run's folder, each at the ETag that was listed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from retl.engine import scratch
from retl.engine.workspace import Workspace
from retl.errors import SourceError
from retl.net.bucket import Address, Bucket, Object, Storage
from retl.sources.files.glob import Glob

State = str  # of one file; it differs if the file was changed or replaced
_AT_ONCE = 4  # files that are copied at the same time


class Place(Protocol):
    def list(self, pattern: Glob) -> dict[str, State]:
        """The files by their paths below the root, sorted."""

    def take(self, files: Mapping[str, State], workspace: Workspace) -> dict[str, Path] | None:
        """A path for each file; None if one changed or vanished."""

    def release(self) -> None:
        """Remove the copies that were made."""


class Disk:
    """A folder of this machine. A link out of it is no file of it."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def list(self, pattern: Glob) -> dict[str, State]:
        found = {}
        for folder, _, names in os.walk(self.root / pattern.folder):
            for name in names:
                path = Path(folder, name)
                key = path.relative_to(self.root).as_posix()
                if pattern.matches(key) and path.is_file() and path.resolve().is_relative_to(self.root):
                    state = path.stat()
                    found[key] = f"{state.st_size} {state.st_mtime_ns} {state.st_ino}"
        return dict(sorted(found.items()))

    def take(self, files: Mapping[str, State], workspace: Workspace) -> dict[str, Path]:
        return {key: self.root / key for key in files}

    def release(self) -> None:
        pass


class Remote:
    """A folder of a bucket."""

    def __init__(self, address: Address, storage: Storage, folder: Path) -> None:
        self._bucket = Bucket(address, storage, folder)
        self._prefix = f"{address.prefix}/" if address.prefix else ""
        self._objects: dict[str, Object] = {}
        self._copies: Path | None = None

    def list(self, pattern: Glob) -> dict[str, State]:
        listed = self._bucket.list((self._prefix + pattern.folder).rstrip("/"))
        named = {one.key.removeprefix(self._prefix): one for one in listed}
        self._objects = {key: one for key, one in sorted(named.items()) if pattern.matches(key)}
        return {key: f"{one.size} {one.etag}" for key, one in self._objects.items()}

    def take(self, files: Mapping[str, State], workspace: Workspace) -> dict[str, Path] | None:
        self.release()
        self._copies = folder = Path(tempfile.mkdtemp(prefix="files-", dir=workspace.directory))
        paths = {key: folder / str(number) / key for number, key in enumerate(files)}
        with ThreadPoolExecutor(_AT_ONCE, "retl-files") as pool:
            jobs = [pool.submit(self._copy, key, path, workspace) for key, path in paths.items()]
            try:
                same = [job.result() for job in jobs]
            finally:
                pool.shutdown(cancel_futures=True)
        return paths if all(same) else None

    def _copy(self, key: str, path: Path, workspace: Workspace) -> bool:
        if any(part in ("", ".", "..") for part in key.split("/")):
            raise SourceError("MART_UNREADABLE", "a file of the source has a name that is no path")
        try:
            path.parent.mkdir(parents=True)
            return self._bucket.download(self._objects[key], path, workspace.stop.check)
        except OSError as problem:
            raise scratch.unwritable(workspace.directory, problem) from problem

    def release(self) -> None:
        if self._copies is not None:
            shutil.rmtree(self._copies, ignore_errors=True)
            self._copies = None
