"""A secret nobody may ever read again, every form it could take on its way out, and where one would look."""

from __future__ import annotations

import contextlib
import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, quote_plus

from tests import forked
from tests.commands import Said, Workshop
from tests.servers import Database

SECRET = "k4Na\"ry'%/+&=\\zQ9@#w"


def forms(secret: str) -> set[str]:
    """A text as it is, in URLs, in JSON, in Python, in base64, and behind a user's name in base64."""
    raw = secret.encode()
    found = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret), secret.replace("'", "''")}
    found |= {
        json.dumps(secret)[1:-1],
        json.dumps(json.dumps(secret)[1:-1])[1:-1],
        repr(secret)[1:-1],
        raw.hex(),
    }
    for before in ("", "a", "ab", "retl:"):
        for encoded in (b64encode, urlsafe_b64encode):
            text = encoded(before.encode() + raw).decode().rstrip("=")
            found.add(text[len(before) * 4 // 3 + 2 : -2])  # what its neighbours cannot change
    return found


@dataclass
class Watch:
    """Runs commands of a workshop and gathers all that they said and left behind, their argv included."""

    workshop: Workshop
    temporary: Path
    own: set[Path] = field(default_factory=set)  # files the user wrote the secret in
    heard: list[tuple[str, str]] = field(default_factory=list)

    def retl(self, *words: str, **more: str) -> Said:
        self.temporary.mkdir(exist_ok=True)
        out, err = self.temporary.with_name("stdout"), self.temporary.with_name("stderr")
        environ = self.workshop.environ(TMPDIR=str(self.temporary), **more)
        process, seen = forked.started(words, environ, out, err, self.workshop.folder), set()
        while process.exitcode is None:
            seen |= arguments(process.pid)
            process.join(0.02)
        said = Said(process.exitcode, out.read_text(), err.read_text())
        command = " ".join(words)
        self.heard += [(f"stdout of {command}", said.out), (f"stderr of {command}", said.raw)]
        self.heard += [(f"argv of {command}", text) for text in seen]
        return said

    def files(self) -> Iterable[tuple[str, str]]:
        for folder in (self.workshop.folder, self.temporary):
            for path in sorted(folder.rglob("*")):
                yield f"the name of {path.name}", str(path.relative_to(folder))
                if path.is_file() and path not in self.own:
                    yield str(path), path.read_bytes().decode("utf-8", "replace")

    def leaks(self, secret: str, *, files: bool = True) -> list[str]:
        """Where the secret can be read, in whatever form."""
        found = [*self.heard, *(self.files() if files else ())]
        wanted = forms(secret)
        return [f"{where}: {form!r}" for where, text in found for form in wanted if form in text]


def arguments(pid: int) -> set[str]:
    """The command lines of a process and of its children."""
    found = set()
    with contextlib.suppress(OSError):
        found.add(Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace"))
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found |= arguments(int(child))
    return found


def everything(database: Database) -> str:
    """Every row of every table there, as text."""
    with database.connect() as connection:
        tables = connection.execute(
            "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE relkind = 'r' AND nspname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        parts = []
        for (name,) in tables:
            rows = connection.execute(f"SELECT t::text FROM {name} t").fetchall()  # type: ignore[arg-type]
            parts += [str(row[0]) for row in rows]
    return "\n".join(parts)


def unused_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
