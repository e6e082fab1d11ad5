"""Faults of a database that is a file: what a network is to a server, another process is to a file."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

from tests.proxy import Proxy


class FileFaults(Proxy):
    """Stands where the suite expects a proxy. Somebody else may keep the file to himself; between a process
    and its file there is no wire, so no answer is lost there, cut or late: runs that are killed are that."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> FileFaults:
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()

    @property
    def sent(self) -> int:  # type: ignore[override]
        """All that this process ever wrote."""
        counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(counts["wchar"])

    @property
    @abstractmethod
    def connections(self) -> int:  # type: ignore[override]
        """How often the adapter opened the file."""

    @abstractmethod
    def refuse(self) -> None: ...

    @abstractmethod
    def heal(self) -> None: ...

    def blackhole(self) -> None:
        self.refuse()

    def drop_reply(self, pattern: bytes) -> None: ...

    def cut(self, after: int) -> None: ...

    def slow(self, seconds: float) -> None: ...
