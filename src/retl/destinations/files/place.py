"""Where files are written: a folder of this machine, or a folder of a bucket.

A file appears complete or not at all. `create` and `swap` are decided by the disk or the store in one step,
so of several writers one wins. Nothing is uploaded in parts that a kill could leave behind, and nothing is
tried twice: delivery does that. It knows no rows.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from msgspec import Struct

from retl.errors import Ambiguous, Systemic, Unavailable
from retl.net.bucket import Address, Storage, answer, opened

OURS = "_retl"  # the folder that belongs to retl
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


class Held(Struct, frozen=True):
    """A file as it is held: its bytes, and what tells this state of it from another."""

    data: bytes
    version: Any


class Place(Protocol):
    """Keys are relative paths. Systemic or Unavailable; Ambiguous from `create` and `swap` alone."""

    def probe(self) -> None:
        """Test that files can be written under a condition. Writes nothing."""

    def sweep(self) -> None:
        """Remove what a kill left behind."""

    def get(self, key: str) -> Held | None: ...

    def sizes(self, folder: str, after: str = "") -> dict[str, int]:
        """The size of each file by its key: sorted, and only those that sort behind `after`."""

    def put(self, key: str, data: bytes) -> None: ...

    def create(self, key: str, data: bytes) -> bool:
        """False if the file exists."""

    def swap(self, key: str, data: bytes, former: Held | None) -> bool:
        """Replace what is held; False if it is no longer that."""

    def remove(self, keys: list[str]) -> None: ...


class Disk:
    """A folder of this machine; what is written survives a power failure."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._fresh = root / OURS / "fresh"

    def probe(self) -> None:
        there = next(one for one in (self._root, *self._root.parents) if one.exists())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise Systemic("NOPERM", f"{there} is no folder that this account may write to")

    def sweep(self) -> None:
        with _disk(self._root), suppress(FileNotFoundError):
            for path in self._fresh.iterdir():
                path.unlink(missing_ok=True)

    def get(self, key: str) -> Held | None:
        with _disk(self._root):
            try:
                data = (self._root / key).read_bytes()
            except FileNotFoundError:
                return None
        return Held(data, sha256(data).hexdigest())

    def sizes(self, folder: str, after: str = "") -> dict[str, int]:
        with _disk(self._root):
            found = [Path(at, name) for at, _, names in os.walk(self._root / folder) for name in names]
            sizes = {one.relative_to(self._root).as_posix(): one.stat().st_size for one in found}
        return {key: size for key, size in sorted(sizes.items()) if key > after}

    def put(self, key: str, data: bytes) -> None:
        with self._written(key, data) as fresh:
            fresh.replace(self._root / key)

    def create(self, key: str, data: bytes) -> bool:
        with self._written(key, data) as fresh:
            try:
                os.link(fresh, self._root / key)
            except FileExistsError:
                return False
        return True

    def swap(self, key: str, data: bytes, former: Held | None) -> bool:
        with self._written(key, data) as fresh, open(self._root / OURS / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            held = self.get(key)
            if (held and held.version) != (former and former.version):
                return False
            fresh.replace(self._root / key)
        return True

    def remove(self, keys: list[str]) -> None:
        with _disk(self._root):
            for key in keys:
                (self._root / key).unlink(missing_ok=True)
            for folder in sorted({(self._root / key).parent for key in keys}, reverse=True):
                with suppress(OSError):  # it still has files
                    folder.rmdir()

    @contextmanager
    def _written(self, key: str, data: bytes) -> Iterator[Path]:
        """A new file with these bytes, on disk; what the body makes of it is on disk afterwards."""
        with _disk(self._root):
            folder = (self._root / key).parent
            for made in (folder, self._fresh):
                made.mkdir(parents=True, exist_ok=True)
            fresh = self._fresh / uuid4().hex
            try:
                with open(fresh, "xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                yield fresh
                _sync(folder)
            finally:
                fresh.unlink(missing_ok=True)


class Remote:
    """A folder of a bucket. `seconds`: how long one request may take."""

    def __init__(self, address: Address, storage: Storage, path: str, seconds: float, connect: float) -> None:
        self._name = f"{address.cloud}://{address.bucket}"
        self._base = "/".join(part for part in (address.prefix, path) if part) + "/"
        with self._translated():
            self._store = opened(address, storage, Path(), retries=0, seconds=seconds, connect=connect)

    def probe(self) -> None:
        """Asks for a write under a condition that cannot hold, which needs the right to write."""
        from obstore.exceptions import PermissionDeniedError, PreconditionError

        key = f"{OURS}/probe"
        with self._translated():
            try:
                self._put(key, b"", {"e_tag": '"retl"'})
            except (PreconditionError, FileNotFoundError):
                return
            except PermissionDeniedError:
                raise Systemic(
                    "NOPERM",
                    f"the bucket {self._name}: this account may not write there",
                    hint="allow it to read, write and list below `path`",
                ) from None
        self.remove([key])
        raise Systemic(
            "CONDITIONS_IGNORED",
            f"{self._name} ignores conditions on writes, so two writers could overwrite each other",
            hint="update the store's server, or use one that supports If-Match and If-None-Match",
        )

    def sweep(self) -> None:
        pass  # nothing is left behind: a request is a whole object

    def get(self, key: str) -> Held | None:
        import obstore

        with self._translated():
            try:
                found = obstore.get(self._store, self._base + key)
                return Held(bytes(found.bytes()), _version(found.meta))
            except FileNotFoundError:
                return None

    def sizes(self, folder: str, after: str = "") -> dict[str, int]:
        import obstore

        offset = self._base + after if after else None
        with self._translated():
            pages = obstore.list(self._store, prefix=self._base + folder, offset=offset, chunk_size=1000)
            found = {one["path"].removeprefix(self._base): one["size"] for page in pages for one in page}
        return dict(sorted(found.items()))

    def put(self, key: str, data: bytes) -> None:
        with self._translated():
            self._put(key, data, None)

    def create(self, key: str, data: bytes) -> bool:
        from obstore.exceptions import AlreadyExistsError

        with self._translated(decides=True):
            try:
                self._put(key, data, "create")
            except AlreadyExistsError:
                return False
        return True

    def swap(self, key: str, data: bytes, former: Held | None) -> bool:
        from obstore.exceptions import PreconditionError

        if former is None:
            return self.create(key, data)
        with self._translated(decides=True):
            try:
                self._put(key, data, former.version)
            except (PreconditionError, FileNotFoundError):
                return False
        return True

    def remove(self, keys: list[str]) -> None:
        import obstore

        with self._translated(), suppress(FileNotFoundError):
            if keys:
                obstore.delete(self._store, [self._base + key for key in keys])

    def _put(self, key: str, data: bytes, mode: Any) -> None:
        import obstore

        obstore.put(self._store, self._base + key, data, mode=mode, use_multipart=False)

    @contextmanager
    def _translated(self, *, decides: bool = False) -> Iterator[None]:
        """The client's errors as our own. A request that `decides` and got no answer may be applied."""
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        try:
            yield
        except (AlreadyExistsError, PreconditionError, FileNotFoundError):
            raise
        except (BaseError, ValueError, OSError) as problem:
            said = answer(str(problem))
        else:
            return
        sentence = f"the bucket {self._name}: {said.why}"
        if said.keyless or (said.status is not None and said.status not in _BUSY):
            hint = "compare `root` and `storage` of the connection with the bucket and its permissions"
            raise Systemic("BUCKET_REFUSED", sentence, hint=hint)
        if decides and said.status not in (425, 429, 503):
            raise Ambiguous("NO_ANSWER", sentence)
        raise Unavailable("UNREACHABLE", sentence)


def _version(meta: Any) -> dict[str, str]:
    return {name: meta[name] for name in ("e_tag", "version") if meta[name] is not None}


@contextmanager
def _disk(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        why = problem.strerror or type(problem).__name__
        raise unusable(str(root), why) from problem


def unusable(folder: str, why: str | None) -> Systemic:
    """The error of a local folder that is full, read-only or closed to this user."""
    return Systemic(
        "FOLDER_UNWRITABLE",
        f"the folder {folder} cannot be used" + (f": {why}" if why else ""),
        hint="free space there, or let this user write there; then run again",
    )


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
