"""Every source that runs here, which changes, vanishes or is lost while a run reads it: `python -m tests.world
sources`, with words after it only the lines that contain them."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests import mysql_server, servers
from tests.sourced import BUCKETS, KINDS, FromSource, Servers, acts, broken, mart_in


@dataclass(frozen=True)
class Outcome:
    """What came of one line."""

    kind: str
    what: str
    said: str
    fine: bool

    def __str__(self) -> str:
        return f"{self.kind:20} {self.what:15} {'ok' if self.fine else 'WRONG':6} {self.said}"


def everything(folder: Path, words: Sequence[str] = ()) -> Iterator[Outcome]:
    """Every line that contains all words, in turn."""
    lines = [(k, w) for k in KINDS for w in acts(k) if all(word in f"{k} {w}" for word in words)]
    kinds = {kind for kind, _ in lines}
    for name in ("postgres", "objectstore", "mysql"):
        (folder / name).mkdir()
    with ExitStack() as hold:
        server = hold.enter_context(servers.postgres_server(folder / "postgres"))
        store = mysql = None
        if kinds & {*BUCKETS}:
            store = hold.enter_context(servers.ObjectStore(folder / "objectstore").start())
        if "mysql" in kinds:
            mysql = hold.enter_context(mysql_server.mysql_server(folder / "mysql"))
        for kind, what in lines:
            yield _played(kind, what, folder / "project", server, store, mysql)


def _played(
    kind: str,
    what: str,
    folder: Path,
    server: servers.Database,
    store: servers.ObjectStore | None,
    mysql: mysql_server.MySQLDatabase | None,
) -> Outcome:
    with ExitStack() as hold:
        hold.callback(shutil.rmtree, folder, ignore_errors=True)
        database = hold.enter_context(servers.fresh_database(server))
        own = hold.enter_context(mysql_server.fresh(mysql)) if mysql else None
        made = hold.enter_context(mart_in(kind, Servers(database, store, own)))
        try:
            return Outcome(kind, what, broken(FromSource(folder, database, made), what), True)
        except AssertionError as problem:
            return Outcome(kind, what, str(problem).partition("\n")[0][:600], False)
        except Exception as problem:  # noqa: BLE001 - the table says that it could not be played
            where = traceback.extract_tb(problem.__traceback__)[-1]
            said = f"not played: {type(problem).__name__} {where.name}:{where.lineno}: {problem}"[:600]
            return Outcome(kind, what, said.replace("\n", " "), False)
