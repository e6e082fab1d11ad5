"""What is compared with what. Each function adds one round to its series: both sides, one after the other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from benchmarks import mart, pipe, post
from benchmarks.timing import Measured, Series, apart, timed
from benchmarks.workbench import BATCH, CONTRACT, TO_POSTGRES, TO_REDIS, Workbench

ROOT = Path(__file__).parents[1]


def summary(measured: Measured) -> dict[str, Any]:
    """The sync's own summary; AssertionError unless it succeeded."""
    found: dict[str, Any] = json.loads(measured.output)["syncs"][0]
    assert found["status"] == "SUCCESS", found
    return found


class Postgres:
    """Full load, nothing changed, 1 % changed: all against one load of the whole mart by hand."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.full = Series("full load", 1.25, 1.0)
        self.none = Series("nothing changed", 0.30, 0.25)
        self.change = Series("1 % updated, 0.1 % deleted", 0.40, 0.30)
        self.none_away = Series("nothing changed, state in PostgreSQL", 0.40, 0.40)
        self.change_away = Series("1 % updated, 0.1 % deleted, state in PostgreSQL", 0.50, 0.50)
        self.phases: list[tuple[float, dict[str, float]]] = []
        bench.write_sync("users", TO_POSTGRES + CONTRACT + BATCH)

    @property
    def series(self) -> list[Series]:
        return [self.full, self.none, self.change, self.none_away, self.change_away]

    def round(self) -> None:
        bench = self.bench
        bench.forget()
        floor = bench.load_by_hand().seconds
        for full, none, change, there in (
            (self.full, self.none, self.change, {}),
            (None, self.none_away, self.change_away, {"RETL_STATE_URL": bench.ledger_url}),
        ):
            bench.forget()
            first = bench.sync("users", there)
            said = summary(first)
            assert said["inserted"] == bench.rows, said
            if full is not None:
                full.add(first, floor)
                self.phases.append((first.seconds, said["phases"]))
            bench.rest()
            before = self._touched()
            again = bench.sync("users", there)
            assert summary(again)["unchanged"] == bench.rows, again.output
            assert self._touched() == before, "a run without changes wrote to the table or scanned it"
            none.add(again, floor)
            bench.rest()
            some = bench.sync("users", {**there, "DUCKDB_PATH": str(bench.changed)})
            said = summary(some)
            assert (said["updated"], said["deleted"]) == (bench.rows // 100, bench.rows // 1000), said
            change.add(some, floor)
            bench.rest()

    def _touched(self) -> object:
        """Rows written and scans begun so far. A run asks for 200 keys by the index: TARGET_LOST."""
        self.bench.execute("SELECT pg_stat_force_next_flush()")
        return self.bench.query(
            "SELECT n_tup_ins, n_tup_upd, n_tup_del, seq_scan FROM pg_stat_user_tables"
            " WHERE relname = 'users'"
        )


class Contract:
    """What judging a million rows adds: in SQL, and by the user's own model."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.sql = Series("contract on every row", 1.05, 1.02)
        self.model = Series("own Pydantic model on every row", 1.2, 1.0)

    @property
    def series(self) -> list[Series]:
        return [self.sql, self.model]

    def round(self) -> None:
        bare = self._load("").seconds
        self.sql.add(self._load(CONTRACT), bare)
        loop = float(self.bench.python("benchmarks.model", str(self.bench.mart)).output)
        self.model.add(self._load("contract: benchmarks.model:User\n"), bare + loop)

    def _load(self, contract: str) -> Measured:
        self.bench.write_sync("users", TO_POSTGRES + contract)
        self.bench.forget()
        environment = {"PYTHONPATH": f"{ROOT}:{self.bench.environment.get('PYTHONPATH', '')}"}
        measured = self.bench.sync("users", environment)
        assert summary(measured)["inserted"] == self.bench.rows, measured.output
        return measured


class Others:
    """Every row updated where somebody else may edit: what it costs to keep their edits, and the rows as they
    were, beside the same update without. And a comparison of the whole table, beside the full load."""

    WAYS: ClassVar[Mapping[str, str]] = {
        "target_wins": "conflicts: target_wins\n",
        "rows kept for a rollback": "rollback: {keep: 1d}\n",
        "both": "conflicts: target_wins\nrollback: {keep: 1d}\n",
    }

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        goals = {"target_wins": 1.75, "rows kept for a rollback": 1.3, "both": 2.0}
        self.ways = {way: Series(f"every row updated, {way}", goals[way], goals[way]) for way in self.WAYS}
        self.cache = Series("every key updated in Redis, target_wins", 2.0, 2.0)
        self.compared = Series("reconcile", 0.6, 0.6)
        self.updated = bench.folder / "updated.duckdb"
        apart(mart.build_changed, self.updated, bench.mart, bench.rows, 0)

    @property
    def series(self) -> list[Series]:
        return [*self.ways.values(), self.cache, self.compared]

    def round(self) -> None:
        load, floor = self._update(TO_POSTGRES + BATCH)
        found = self.bench.retl("reconcile", "users", environment={"DUCKDB_PATH": str(self.updated)})
        self.compared.add(found, load.seconds)
        for way, says in self.WAYS.items():
            self.ways[way].add(self._update(TO_POSTGRES + BATCH + says)[1], floor.seconds)
        _, floor = self._update(TO_REDIS)
        self.cache.add(self._update(TO_REDIS + self.WAYS["target_wins"])[1], floor.seconds)

    def _update(self, says: str) -> tuple[Measured, Measured]:
        """The first load of the mart, and the run that updates every row of it."""
        bench = self.bench
        bench.write_sync("users", says + CONTRACT)
        bench.flush_redis()
        bench.forget()
        load = bench.sync("users")
        assert summary(load)["inserted"] == bench.rows, load.output
        bench.rest()
        done = bench.sync("users", {"DUCKDB_PATH": str(self.updated)})
        assert summary(done)["updated"] == bench.rows, done.output
        return load, done


class Redis:
    """One key per user, JSON and TTL, against prepared RESP."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.keys = Series("Redis keys, JSON with TTL", 2.0, 1.7)
        self.resp = bench.folder / "prepared.resp"
        apart(pipe.prepare, bench.mart, bench.folder / "lines.tsv", self.resp)
        bench.write_sync("keys", TO_REDIS + CONTRACT)

    @property
    def series(self) -> list[Series]:
        return [self.keys]

    def round(self) -> None:
        self.bench.flush_redis()
        floor = self.bench.pipe_by_hand(self.resp)
        assert int(floor.output.split()[0]) == self.bench.rows, floor.output
        self.bench.flush_redis()
        self.bench.forget()
        ours = self.bench.sync("keys")
        assert summary(ours)["inserted"] == self.bench.rows, ours.output
        self.keys.add(ours, floor.seconds)


class Http:
    """Batches of 100 rows to a server on this machine, against the same bodies sent by httpx2."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.posts = Series("HTTP, batches of 100 rows", 1.5, 1.2)
        self.bodies = bench.folder / "bodies.jsonl"
        apart(post.prepare, bench.mart, bench.folder / "lines.tsv", self.bodies)

    @property
    def series(self) -> list[Series]:
        return [self.posts]

    def round(self) -> None:
        bench = self.bench
        command = [sys.executable, "-m", "benchmarks.post", "serve"]
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)  # noqa: S603
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            project = bench.project / "retl.yml"
            project.write_text(f'connections: {{api: {{type: http, base_url: "http://127.0.0.1:{port}"}}}}\n')
            bench.write_sync("posts", post.SYNC + CONTRACT)
            floor = bench.python("benchmarks.post", "send", port, str(self.bodies))
            bench.forget()
            ours = bench.sync("posts")
            assert summary(ours)["inserted"] == bench.rows, ours.output
            self.posts.add(ours, floor.seconds)
        finally:
            (bench.project / "retl.yml").unlink(missing_ok=True)
            server.terminate()
            server.wait()


class Start:
    """What it takes to begin at all; the floor is an interpreter that does nothing."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.version = Series("retl --version", 0.20, 0.15, "s")
        self.help = Series("retl --help", 0.20, 0.15, "s")
        self.ten = Series("a sync of 10 rows to PostgreSQL", 1.0, 0.6, "s")
        self.more = Series("each further sync of a command that finds nothing", 0.15, 0.15, "s")
        self.small = bench.folder / "ten.duckdb"
        apart(mart.build, self.small, 10)

    @property
    def series(self) -> list[Series]:
        return [self.version, self.help, self.ten, self.more]

    def round(self) -> None:
        bench = self.bench
        nothing = timed([sys.executable, "-c", "pass"], folder=bench.folder, environment=bench.environment)
        self.version.add(bench.retl("--version"), nothing.seconds)
        self.help.add(bench.retl("--help"), nothing.seconds)
        bench.write_sync("users", TO_POSTGRES + CONTRACT + BATCH)
        bench.forget()
        small = {"DUCKDB_PATH": str(self.small)}
        self.ten.add(bench.sync("users", small), 0.0)
        names = [f"users_{n}" for n in range(10)]
        for name in names:
            text = (
                f"destination: {{type: postgres, table: {name}, create: true}}\ndeletes: delete\n{CONTRACT}"
            )
            bench.write_sync(name, text, alone=name == names[0])
        bench.sync("all", small)
        one, all_ten = bench.sync(names[0], small), bench.sync("all", small)
        assert summary(all_ten)["unchanged"] == 10, all_ten.output
        each = (all_ten.seconds - one.seconds) / (len(names) - 1)
        self.more.add(Measured(each, all_ten.processor, all_ten.megabytes, ""), 0.0)
        bench.execute(*(f"DROP TABLE {name}" for name in names))


class Growth:
    """The same at ten times the rows: how our time grows beside the floor's, and how much memory it takes."""

    def __init__(self, small: Workbench, large: Workbench) -> None:
        self.benches = (small, large)
        self.load = Series("growth of the full load beside the floor's", 1.1, 1.0)
        self.few = Series("100 changes: ten times the keys", 12.0, 10.0)
        self.memory = Series("peak memory at ten times the rows", 600, 400, "MB")
        for bench in self.benches:
            bench.write_sync("users", TO_POSTGRES + CONTRACT + BATCH)
            apart(mart.build_changed, bench.folder / "few.duckdb", bench.mart, 100, 0)

    @property
    def series(self) -> list[Series]:
        return [self.load, self.few, self.memory]

    def round(self) -> None:
        floors, loads, fews = [], [], []
        for bench in self.benches:
            bench.forget()
            floors.append(bench.load_by_hand().seconds)
            bench.forget()
            loads.append(bench.sync("users"))
            summary(loads[-1])
            bench.rest()
            fews.append(bench.sync("users", {"DUCKDB_PATH": str(bench.folder / "few.duckdb")}))
            assert summary(fews[-1])["updated"] == 100, fews[-1].output
        grown = loads[1].seconds / loads[0].seconds
        self.load.add(Measured(grown, loads[1].processor, loads[1].megabytes, ""), floors[1] / floors[0])
        self.few.add(fews[1], fews[0].seconds)
        peak = max(loads[1].megabytes, fews[1].megabytes)
        self.memory.add(Measured(peak, peak, peak, ""), 1.0)
