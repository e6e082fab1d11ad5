"""Which scene is played where, and how: every scene on every server and ledger that it concerns."""

from __future__ import annotations

import shutil
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from tests import clickhouse_server, kafka, mongo, mssql, mysql_server, redis_cluster
from tests.databases import ClickHouseShell, MsSqlShell, Shell, shell_of
from tests.world import alterations, backups, columns, elsewhere, failovers, losses, shapes, vendors  # noqa: F401 - they register their scenes
from tests.world.hosts import CACHES, POSTGRES, Hosts, absent
from tests.world.play import Play, Wrong
from tests.world.scenes import (
    CACHE,
    CLICKHOUSE,
    CLUSTER,
    EXPORTS,
    FILES,
    HTTP,
    KAFKA,
    MSSQL,
    MYSQL,
    SCENES,
    Scene,
)
from tests.world.stores import CLUSTERED, COLLECTIONS, TOPICS
from tests.world.targets import CACHED, CAMPAIGNS, EXPORTED, IN_TABLES, TABLES, Target, fresh

_VERDICTS = {"FALSE": "false refusal", "STUCK": "stuck", "NO": "stuck", "NOT": "stuck"}  # by the first word


OLDER = 3  # of so many kinds one is played on the older servers too


_SERVERS: list[tuple[Iterable[str], list[str]]] = [
    ((*FILES, *EXPORTS), ["file"]),
    (MYSQL, ["MariaDB"]),
    (MSSQL, ["SQL Server (emulator)"]),
    (CLICKHOUSE, ["ClickHouse"]),
    (COLLECTIONS, ["MongoDB (emulator)"]),
    (KAFKA, ["Tansu"]),
    (CACHE, [*CACHES]),
    (CLUSTER, [*CACHES]),
    (HTTP, ["campaigns"]),
]


@dataclass(frozen=True)
class Part:
    """One scene for one kind of delivery, on one server, with one place for the ledger."""

    number: int
    kind: str
    server: str
    ledger: bool = False

    @property
    def scene(self) -> Scene:
        return SCENES[self.number]

    @property
    def target(self) -> str:
        return f"{self.kind}, {self.server}" + (", ledger in PostgreSQL" if self.ledger else "")

    @property
    def line(self) -> str:
        return f"{self.scene.name} | {self.target}"


@dataclass(frozen=True)
class Line:
    """What came of it."""

    order: tuple[int, str, int]
    scene: str
    target: str
    verdict: str
    outcome: str
    story: tuple[str, ...] = ()

    @property
    def fine(self) -> bool:
        return self.verdict == "ok"


def parts() -> list[Part]:
    """Everything that can be played with the servers at hand. Older servers take turns with the kinds."""
    found, lacking = [], absent()
    for number, one in enumerate(SCENES):
        if one.needs in lacking:
            continue
        for turn, kind in enumerate(one.kinds):
            first, *others = servers_of(kind)
            found.append(Part(number, kind, first))
            if one.ledgers:
                found.append(Part(number, kind, first, ledger=True))
            if (number + turn) % OLDER == 0:
                found += [Part(number, kind, server) for server in others]
    return found


def servers_of(kind: str) -> list[str]:
    for kinds, servers in _SERVERS:
        if kind in kinds:
            return servers
    return [*POSTGRES]


def play_all(chosen: list[Part], folder: Path) -> list[Line]:
    with Hosts(folder) as hosts:
        return [line for part in chosen for line in play(part, hosts)]


def play(part: Part, hosts: Hosts) -> Iterator[Line]:
    """The lines of a part: one, and one more for each further remedy that was named."""
    for seed in count():
        with staged(part, hosts, seed) as made:
            line = _played(part, made)
        print(f"{line.verdict:14} {line.scene} | {line.target} | {line.outcome}", file=sys.stderr, flush=True)
        yield line
        if seed + 1 >= made.remedies:
            return


def _played(part: Part, made: Play) -> Line:
    verdict, outcome = "ok", ""
    try:
        made.target.begin()
        part.scene.act(made)
    except Wrong as wrong:
        outcome = str(wrong)
        doubled = "DOUBLED" in outcome.partition(" after ")[0]
        verdict = _VERDICTS.get(outcome.split()[0], "doubled" if doubled else "lost")
    except Exception as problem:  # noqa: BLE001 - the table says that it could not be played
        where = traceback.extract_tb(problem.__traceback__)[-1]
        verdict, outcome = "error", f"{type(problem).__name__} {where.name}:{where.lineno}: {problem}"[:600]
    told = " → ".join(made.said)
    return Line(
        (part.number, part.target, made.seed),
        part.scene.name,
        part.target,
        verdict,
        " → ".join(filter(None, (told, outcome or "ok"))).replace("\n", " "),
        tuple(made.story),
    )


@contextmanager
def staged(part: Part, hosts: Hosts, seed: int = 0) -> Iterator[Play]:
    """A target that nobody has delivered to yet."""
    with ExitStack() as hold:
        folder = hosts.folder()
        hold.callback(shutil.rmtree, folder, ignore_errors=True)
        state = None
        if part.ledger:
            server = hosts.postgres("PostgreSQL 18")
            state = hold.enter_context(fresh(server.address()))
        url = state.url if state else None
        target = _target(part, hosts, folder / "project", url, hold)
        target.rows = part.scene.rows
        yield Play(target, hosts, seed, part.server, ledger=state, hold=hold)


def _target(part: Part, hosts: Hosts, folder: Path, url: str | None, hold: ExitStack) -> Target:
    kind = part.kind
    if kind in CACHE:
        return CACHED[kind](folder, hold.enter_context(hosts.own_cache(part.server)), url)
    if kind in CLUSTER:
        return CLUSTERED[kind](folder, _cluster(part, hosts, hold), url)
    if kind in EXPORTS:
        return EXPORTED[kind](folder, url)
    if kind in COLLECTIONS:
        return COLLECTIONS[kind](folder, hosts.lasting("mongodb", lambda _: mongo.server()), url)
    if kind in KAFKA:
        return TOPICS[kind](folder, hosts.lasting("kafka", kafka.broker), url)
    if kind in (*FILES, *MYSQL, *MSSQL, *CLICKHOUSE):
        return IN_TABLES[kind.partition(" ")[2]](folder, _shell(kind, hosts, folder, hold), url)
    if kind in HTTP:
        made = CAMPAIGNS[kind](folder)
        hold.callback(made.stop)
        return made
    shared = not part.scene.own_server
    server = hosts.postgres(part.server) if shared else hold.enter_context(hosts.own_postgres(part.server))
    database = hold.enter_context(fresh(server.address()))
    return TABLES[kind](folder, server, database, url)


def _cluster(part: Part, hosts: Hosts, hold: ExitStack) -> redis_cluster.RedisCluster:
    """Three primaries; with replicas if a scene has it for itself."""

    def made(folder: Path, *, replicas: bool = False) -> AbstractContextManager[redis_cluster.RedisCluster]:
        return redis_cluster.started(folder, replicas=replicas, binary=CACHES[part.server])

    if part.scene.own_server:
        return hold.enter_context(made(hosts.folder(), replicas=True))
    return hosts.lasting(f"cluster of {part.server}", made)


def _shell(kind: str, hosts: Hosts, folder: Path, hold: ExitStack) -> Shell:
    if kind in CLICKHOUSE:
        return ClickHouseShell(hosts.lasting("clickhouse", clickhouse_server.server))
    if kind in MSSQL:
        server = hold.enter_context(mssql.Sql(hosts.folder()))
        hold.callback(server.shutdown)
        return MsSqlShell(server)
    if kind in MYSQL:
        database = hosts.lasting("mysql", mysql_server.mysql_server)
        return shell_of(kind, folder, hold.enter_context(mysql_server.fresh(database)))
    return shell_of(kind, folder)
