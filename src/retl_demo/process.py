"""A server process on a free port of the loopback interface, which ends when we end.

It is independent of the kind of server: `servers.py` has that. On Linux the kernel ends the server when the
*thread* that started it ends, so start it from a thread that stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Self, TypedDict

from retl.errors import Failure

LOOPBACK = "127.0.0.1"
START_WITHIN = 30.0  # seconds until a server must answer
PORTS_TRIED = 5  # another process may take a free port before the server binds it
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}  # no PGDATA or LD_LIBRARY_PATH of the caller
_PR_SET_PDEATHSIG = 1


class Identity(TypedDict, total=False):
    """The user of a process; empty: our own."""

    user: int
    group: int
    extra_groups: list[int]


class Server(ABC):
    """A running server process; a context manager that stops it."""

    name: ClassVar[str]
    user: ClassVar[str]
    ending: ClassVar[tuple[signal.Signals, ...]]  # tried in this order until the process is gone
    orphaned: ClassVar[signal.Signals]  # the kernel sends it to the server when we die

    def __init__(self, directory: Path) -> None:
        self.host = LOOPBACK
        self.port = 0
        self.password = secrets.token_hex(16)
        self.directory = directory.resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Address and password in one text."""

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        """The server's process, None once it was stopped."""
        return self._process.pid if self._process else None

    @abstractmethod
    def _prepare(self) -> None:
        """Called once before the first start: find the binaries, create what they need."""

    @abstractmethod
    def _spawn(self, port: int) -> subprocess.Popen[bytes]: ...

    @abstractmethod
    def _answers(self, port: int) -> bool: ...

    def start(self) -> Self:
        """Start for the first time. Failure SERVER_NOT_STARTED or DEPENDENCY_MISSING leaves no process."""
        try:
            self._prepare()
            self._launch()
        except BaseException:
            self.stop()
            raise
        return self

    def _launch(self) -> None:
        for _ in range(PORTS_TRIED):
            port = self.port or _free_port()
            self._process = self._spawn(port)
            if self._wait(port):
                self.port = port
                return
            self._end()
        tail = " | ".join(self.log.read_text(errors="replace").splitlines()[-5:])
        raise Failure("SERVER_NOT_STARTED", f"{self.name} did not start: {tail}", hint=f"see {self.log}")

    def _wait(self, port: int) -> bool:
        """True if the server answers, False if it died or is not ready within START_WITHIN."""
        deadline = time.monotonic() + START_WITHIN
        while self._process and self._process.poll() is None and time.monotonic() < deadline:
            if self._answers(port):
                return True
            time.sleep(0.01)
        return False

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for number in self.ending:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
                return

    def restart(self) -> None:
        """Stop, and start again on the same port with the same password."""
        self._end()
        self._launch()

    def stop(self) -> None:
        """End the process and wait for it; stopping twice is fine."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _popen(
        self,
        command: list[str],
        cwd: Path,
        *,
        identity: Identity | None = None,
        given: str = "",
        variables: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - the command is ours, no shell reads it
                command,
                cwd=cwd,
                env={**ENVIRONMENT, **(variables or {})},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                preexec_fn=_dies_with_us(self.orphaned),
                start_new_session=True,  # a Ctrl-C at our terminal must reach only us
                **(identity or {}),
            )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(given.encode())
        return process


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _dies_with_us(number: signal.Signals) -> Callable[[], None] | None:
    """On Linux: the kernel sends this signal when the thread that started the server ends."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # before the fork, because the child must not import

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)

    return ask
