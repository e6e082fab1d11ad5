"""Durable run files: the baseline's snapshot and deltas, and requests that must be sent again unchanged.

With a SQLite ledger they are files in a private directory, in PostgreSQL rows of `retl_files`. A file appears
complete or not at all, and survives a power failure once `put` has returned. Names are flat: no name can
lead out of the directory.
"""

from __future__ import annotations

import contextlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from hashlib import sha256
from pathlib import Path

from retl.errors import LedgerError, damaged_state
from retl.ledger.database import Database

CHUNK = 8 * 1024 * 1024
_REQUEST, _RETURNED = "request-", "returned-"


def request_of(batch_id: str) -> str:
    """The file of the bytes that every resend of an open batch must have."""
    return f"{_REQUEST}{batch_id}"


def returned_of(batch_id: str) -> str:
    """The file of what the target returns with an open batch, if it arrives."""
    return f"{_RETURNED}{batch_id}"


def stored_for(batch_id: str) -> tuple[str, str]:
    """The files that a batch has until it has an outcome."""
    return request_of(batch_id), returned_of(batch_id)


def batch_of(name: str) -> str | None:
    """The batch of such a file; None for a file of another kind."""
    found = name.startswith((_REQUEST, _RETURNED))
    return name.removeprefix(_REQUEST).removeprefix(_RETURNED) if found else None


class Files(ABC):
    """Where run files are kept."""

    @abstractmethod
    def put(self, name: str, chunks: Iterable[bytes]) -> None:
        """Store the chunks under this name; an older file is replaced."""

    @abstractmethod
    def get(self, name: str, directory: Path) -> Path:
        """A path of the file, in `directory` if it had to be fetched. LedgerError if there is none."""

    @abstractmethod
    def read(self, name: str) -> bytes | None: ...

    @abstractmethod
    def digest(self, name: str) -> str:
        """The SHA-256 of a file that is there, in hex."""

    @abstractmethod
    def size(self, name: str) -> int:
        """The bytes of a file that is there."""

    @abstractmethod
    def drop(self, names: Iterable[str]) -> None:
        """Remove these files if they exist."""

    @abstractmethod
    def names(self) -> list[str]: ...

    def scrap(self, owners: Collection[str]) -> None:  # noqa: B027 - most have nothing to remove
        """Remove what killed runs with these ids left half written."""


class Directory(Files):
    """Files (0600) in one directory (0700)."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def put(self, name: str, chunks: Iterable[bytes]) -> None:
        target = self._path / checked(name)
        fresh = target.with_name(f".{name}.new")
        with accessing(target):
            make_private(self._path)
            fresh.unlink(missing_ok=True)
            try:
                with open(private(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                    file.writelines(chunks)
                    file.flush()
                    os.fsync(file.fileno())
                fresh.rename(target)
            except BaseException:
                fresh.unlink(missing_ok=True)  # on a full disk the ledger needs its room
                raise
            sync_directory(self._path)

    def get(self, name: str, directory: Path) -> Path:
        path = self._path / checked(name)
        with accessing(path):
            if not path.is_file():
                raise damaged_state(str(path), "this run file is missing")
            path.open("rb").close()  # DuckDB's words do not tell a lack of rights from damage
        return path

    def read(self, name: str) -> bytes | None:
        path = self._path / checked(name)
        with accessing(path):
            return path.read_bytes() if path.is_file() else None

    def digest(self, name: str) -> str:
        path = self._path / checked(name)
        with accessing(path):
            return _digest(chunks_of(path))

    def size(self, name: str) -> int:
        path = self._path / checked(name)
        with accessing(path):
            return path.stat().st_size

    def drop(self, names: Iterable[str]) -> None:
        for name in names:
            path = self._path / checked(name)
            with accessing(path):
                path.unlink(missing_ok=True)
                path.with_name(f".{name}.new").unlink(missing_ok=True)

    def names(self) -> list[str]:
        with accessing(self._path):
            if not self._path.is_dir():
                return []
            return sorted(name for name in os.listdir(self._path) if not name.startswith("."))

    def scrap(self, owners: Collection[str]) -> None:
        for path in self._path.glob(".*.new"):
            if path.name[1:].split(".")[0] in owners:
                path.unlink(missing_ok=True)


class Table(Files):
    """Rows of `retl_files`, one chunk each."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, name: str, chunks: Iterable[bytes]) -> None:
        with self._database.transaction():
            self.drop([name])
            for number, chunk in enumerate(chunks):
                self._database.change("INSERT INTO retl_files VALUES (?, ?, ?)", checked(name), number, chunk)

    def get(self, name: str, directory: Path) -> Path:
        path = directory / checked(name)
        if not self._numbers(name):
            raise damaged_state(f"run file {name}", "it is missing from retl_files")
        with accessing(path):
            path.unlink(missing_ok=True)
            with open(private(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                file.writelines(self._chunks(name))
        return path

    def read(self, name: str) -> bytes | None:
        return b"".join(self._chunks(name)) if self._numbers(name) else None

    def digest(self, name: str) -> str:
        return _digest(self._chunks(name))

    def size(self, name: str) -> int:
        return sum(len(chunk) for chunk in self._chunks(name))

    def drop(self, names: Iterable[str]) -> None:
        self._database.change_many("DELETE FROM retl_files WHERE name = ?", [(name,) for name in names])

    def names(self) -> list[str]:
        return [
            name for (name,) in self._database.query("SELECT DISTINCT name FROM retl_files ORDER BY name")
        ]

    def _numbers(self, name: str) -> list[tuple[int]]:
        return self._database.query(
            "SELECT chunk FROM retl_files WHERE name = ? ORDER BY chunk", checked(name)
        )

    def _chunks(self, name: str) -> Iterator[bytes]:
        for (number,) in self._numbers(name):
            sql = "SELECT bytes FROM retl_files WHERE name = ? AND chunk = ?"
            for (chunk,) in self._database.query(sql, name, number):
                yield bytes(chunk)


def _digest(chunks: Iterable[bytes]) -> str:
    digest = sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def chunks_of(path: Path) -> Iterator[bytes]:
    """The file's bytes, 8 MiB at a time; an empty file is one empty chunk, so that it exists."""
    with path.open("rb") as file:
        yield file.read(CHUNK)
        while chunk := file.read(CHUNK):
            yield chunk


def checked(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}", name):
        raise ValueError("a run file's name is letters, digits, '.', '_' and '-', and begins with no dot")
    return name


@contextlib.contextmanager
def accessing(path: Path) -> Iterator[None]:
    """Turns an error of the file system into a LedgerError."""
    try:
        yield
    except OSError as error:
        raise LedgerError(
            "STATE_UNWRITABLE",
            f"{path}: {error.strerror or error}",
            hint="make room or fix the permissions; run again",
        ) from error


def private(path: Path, flags: int) -> int:
    """A descriptor of the file, 0600 whatever the umask. A symlink is refused."""
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


def make_private(directory: Path) -> None:
    """Create the directory, 0700 whatever the umask. An existing one may be the user's: its mode stays."""
    if not directory.exists():
        make_private(directory.parent)
        with contextlib.suppress(FileExistsError):
            directory.mkdir(0o700)
            directory.chmod(0o700)
            sync_directory(directory.parent)


def sync_directory(path: Path) -> None:
    """Make the file names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
