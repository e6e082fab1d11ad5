"""The scenes and their names: each is a function, with the kinds of delivery that it concerns.

A scene ends with `play.settle()`: from there on only what retl itself says is done. `quiet` scenes are
ordinary life, where a refusal would be wrong.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from tests import mssql_driver, mysql_server
from tests.world.play import Play

FOLLOWING = ("upsert", "mirror", "update_only", "partitioned")  # they may be told to send everything again
POSTGRES = (*FOLLOWING, "append", "snapshot", "partitioned append")
INSERTING = ("upsert", "mirror", "append")
CACHE = ("json", "ttl", "mirror in Redis", "hash", "ranking", "audience", "stream")
REFILLED = tuple(kind for kind in CACHE if kind != "stream")  # entries of a stream are never sent again
CLUSTER = ("cluster json", "cluster ttl", "cluster mirror", "cluster ranking", "cluster stream")
ALL = (*POSTGRES, *CACHE)
FILES = tuple(f"{name} {kind}" for name in ("sqlite", "duckdb") for kind in INSERTING)
MYSQL = tuple(f"mysql {kind}" for kind in INSERTING) if mysql_server.AVAILABLE else ()
MSSQL = tuple(f"mssql {kind}" for kind in INSERTING) if mssql_driver.AVAILABLE else ()
CLICKHOUSE = ("clickhouse upsert", "clickhouse mirror")
MONGODB = ("mongodb", "mongodb mirror", "mongodb append")  # with transactions, and so with marks
KAFKA = ("kafka", "kafka append")
EVERY = (
    *ALL,
    *FILES,
    *MYSQL,
    *MSSQL,
    *CLICKHOUSE,
    *MONGODB,
    *CLUSTER,
)  # a file is opened by one process at a time: nobody acts there during a run
EXPORTS = ("files", "files, append", "files, snapshot", "delta", "delta, append")  # in a folder
HTTP = ("http", "http insert")


ROWS = tuple(kind for kind in EVERY if "stream" not in kind)  # of a stream, readers take entries away


@dataclass(frozen=True)
class Scene:
    name: str
    kinds: tuple[str, ...]
    act: Callable[[Play], None] = field(repr=False)
    short: tuple[str, ...] = ()  # kinds for which `make test` plays it
    ledgers: bool = False  # played with a ledger in PostgreSQL too
    rows: int = 120
    own_server: bool = False  # it stops or restarts its PostgreSQL
    needs: str = ""  # what is not always installed


SCENES: list[Scene] = []


def scene(
    name: str,
    *kinds: str,
    short: tuple[str, ...] = (),
    ledgers: bool = False,
    rows: int = 120,
    own_server: bool = False,
    needs: str = "",
) -> Callable[[Callable[[Play], None]], Callable[[Play], None]]:
    def registered(act: Callable[[Play], None]) -> Callable[[Play], None]:
        SCENES.append(Scene(name, kinds, act, short, ledgers, rows, own_server, needs))
        return act

    return registered


def terminate() -> None:
    """What a scheduler does to a run that takes too long."""
    os.kill(os.getpid(), signal.SIGTERM)
