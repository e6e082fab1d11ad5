"""`retl demo --serve`: servers that stay until `retl demo stop`, for projects that have none yet.

They are a PostgreSQL, a Valkey, a fake HubSpot and a fake Slack, on 127.0.0.1 only. One process, the keeper,
has started them and ends with them. It has a session of its own, so it outlives the terminal. It holds a lock
as long as it lives: that lock, and no process id, says whether it runs. `stop` asks the keeper to end, with a
secret from its record, so that nothing else can be hit. What was delivered is gone then; addresses and
passwords are used again the next time, so that a config.env that has them stays right.
"""

from __future__ import annotations

import fcntl
import hmac
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from retl.errors import Failure
from retl.testing import FakeHubSpot, FakeSlack
from retl.testing.server import FakeApi
from retl_demo import servers
from retl_demo.process import LOOPBACK, Server

READY_WITHIN = 60.0  # seconds
ENDED_WITHIN = 60.0


@dataclass(frozen=True)
class Served:
    """What runs. `variables`: the environment with which a project reaches it; `door` and `secret`: where and
    with what the keeper is asked to end; `folder`: its data."""

    since: str
    pid: int
    door: int
    secret: str
    folder: str
    variables: Mapping[str, str]


def serve() -> tuple[Served, bool]:
    """The servers, and whether they ran already. Failure SERVER_NOT_STARTED or DEPENDENCY_MISSING."""
    servers.require(*servers.PACKAGES)
    place = _place()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (place / "lock").open("a") as lock:
        if not _taken(lock.fileno()):
            return _ready(place, None), True
        with suppress(FileNotFoundError):
            _record(place).replace(_former(place))
        with (place / "keeper.log").open("wb") as log:
            keeper = subprocess.Popen(  # noqa: S603 - our own interpreter, no shell
                [sys.executable, "-m", "retl_demo.keeper", str(place)],
                pass_fds=[lock.fileno()],  # the lock is the keeper's from now on
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    try:
        return _ready(place, keeper), False
    except BaseException:
        keeper.terminate()
        keeper.wait()
        raise


def stop() -> Served | None:
    """End the servers, and return what ran; None if nothing did. Failure SERVER_NOT_STOPPED."""
    place = _place()
    if not (place / "lock").exists():
        return None
    with (place / "lock").open("a") as lock:
        if _taken(lock.fileno()):
            return None
        served, deadline = _ready(place, None), time.monotonic() + ENDED_WITHIN
        with suppress(OSError), socket.create_connection((LOOPBACK, served.door), ENDED_WITHIN) as door:
            door.sendall(served.secret.encode() + b"\n")
            door.recv(1)  # nothing comes: the keeper closes when all have ended
        while time.monotonic() < deadline:
            if _taken(lock.fileno()):
                return served
            time.sleep(0.02)
    raise Failure("SERVER_NOT_STOPPED", f"the demo's servers did not end: process {served.pid} has them")


def keep(place: Path) -> None:
    """Start the servers, write down where they are, and stay until somebody says the secret or a signal
    comes."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    former = _read(_former(place))
    if former is not None:  # a keeper that was killed could not remove its data
        shutil.rmtree(former.folder, ignore_errors=True)
    with ExitStack() as asked, ExitStack() as started, socket.create_server((LOOPBACK, 0)) as door:
        folder = Path(tempfile.mkdtemp(prefix="retl-demo-servers-"))
        started.callback(shutil.rmtree, folder, ignore_errors=True)
        variables = _start(started, folder, former.variables if former else {})
        secret, since = secrets.token_hex(16), datetime.now(UTC).isoformat(timespec="seconds")
        served = Served(since, os.getpid(), door.getsockname()[1], secret, str(folder), variables)
        fresh = place / "record.new"
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(served), file)
        fresh.replace(_record(place))
        while True:
            caller, _ = door.accept()
            caller.settimeout(5)
            with suppress(OSError):
                if hmac.compare_digest(caller.recv(64).strip(), secret.encode()):
                    asked.enter_context(caller)
                    return
            caller.close()


def _start(started: ExitStack, folder: Path, former: Mapping[str, str]) -> dict[str, str]:
    """Start all servers, with the former addresses where they are free."""
    folder.chmod(0o711)  # PostgreSQL may run as another user
    tempfile.tempdir = str(folder)
    token = former.get("HUBSPOT_TOKEN") or secrets.token_hex(8)
    postgres = servers.Postgres(folder / "postgres", None, servers.EXPENDABLE)
    valkey, hubspot, slack = servers.Valkey(folder / "valkey"), FakeHubSpot(token), FakeSlack(token)
    known: dict[str, Server | FakeApi] = {"POSTGRES": postgres, "REDIS": valkey}
    for name, server in (known | {"HUBSPOT": hubspot, "SLACK": slack}).items():
        server.port = _free(former.get(f"{name}_PORT") or former.get(f"{name}_URL", ""))
    for name, one in (("POSTGRES", postgres), ("REDIS", valkey)):
        one.password = former.get(f"{name}_PASSWORD", one.password)
        started.enter_context(one.start())
    for fake in (hubspot, slack):
        started.enter_context(fake)
    return {
        "POSTGRES_HOST": postgres.host,
        "POSTGRES_PORT": str(postgres.port),
        "POSTGRES_DB": postgres.dbname,
        "POSTGRES_USER": postgres.user,
        "POSTGRES_PASSWORD": postgres.password,
        "REDIS_HOST": valkey.host,
        "REDIS_PORT": str(valkey.port),
        "REDIS_PASSWORD": valkey.password,
        "HUBSPOT_URL": hubspot.url,
        "HUBSPOT_TOKEN": token,
        "SLACK_URL": slack.webhook,
    }


def _free(address: str) -> int:
    """The port at the end of an address or alone, if it is free; else 0, which is any."""
    port = address.partition("//")[2].partition("/")[0].rpartition(":")[2] if "//" in address else address
    with suppress(OSError, ValueError), socket.create_server((LOOPBACK, int(port))) as probe:
        return int(probe.getsockname()[1])
    return 0


def _place() -> Path:
    """The folder of the lock and the record, one per user."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "state") / "retl" / "demo"


def _record(place: Path) -> Path:
    return place / "record.json"


def _former(place: Path) -> Path:
    return place / "former.json"


def _read(path: Path) -> Served | None:
    try:
        return Served(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _taken(lock: int) -> bool:
    """Take the lock; False if the keeper has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _ready(place: Path, keeper: subprocess.Popen[bytes] | None) -> Served:
    """Wait for the record. Failure SERVER_NOT_STARTED if our keeper ends without one, or if none comes."""
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline:
        if served := _read(_record(place)):
            return served
        if keeper is not None and keeper.poll() is not None:
            break
        time.sleep(0.05)
    log = place / "keeper.log"
    tail = " | ".join(log.read_text(errors="replace").splitlines()[-3:])
    raise Failure("SERVER_NOT_STARTED", f"the demo's servers did not start: {tail}", hint=f"see {log}")


def _end(_number: int, _frame: object) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(0)


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
