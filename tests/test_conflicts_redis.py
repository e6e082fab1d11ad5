"""Somebody else edits what a sync writes to Redis: the table of docs/guides/conflicts.md under each strategy, for
hashes entry by entry and for JSON as a whole; and what only Redis has: a TTL, and a script whose answer is lost."""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retl.destinations.batch import Field, Shape
from retl.destinations.redis.script import HASH
from retl.destinations.redis.values import Hash
from retl.values.types import Type
from tests.commands import Workshop
from tests.proxy import Proxy
from tests.redis_fixtures import proxied, proxy
from tests.servers import RedisServer
from tests.test_conflict_history import IMAGED, KEEPING, agree
from tests.test_conflict_race import KEYS as RACED
from tests.test_conflict_race import RACE, SECONDS, raced
from tests.test_conflict_race import mart as everything
from tests.test_conflicts import (
    CELLS,
    COUNTS,
    STRATEGIES,
    Held,
    Played,
    listed,
    mart,
    numbers,
    rows,
    run,
    take,
)
from tests.truth_table import PROPERTY, shown

__all__ = ["proxied", "proxy"]  # fixtures

Kind = Literal["hash", "json"]
P1, H1, H1N = ("p", 1, None), ("h", 1, None), ("p", 1, "n")
AS_A_WHOLE: dict[
    str, tuple[Held, Held, Held, Held]
] = {  # where JSON differs: it is kept or written as one value
    "note of theirs": (("q", 1, None), H1N, H1N, H1N),
    "edited, other field changed": (("p", 2, None), H1, H1, H1),
    "both changed, one field of two": (("q", 2, None), H1, H1, H1),
}
COUNTS_AS_A_WHOLE = {
    "warehouse_wins": COUNTS["warehouse_wins"],
    "target_wins": ((101, 2, 2, 10, 0), (0, 10, 0), (2, 2, 0)),
    "newest_wins": ((101, 3, 3, 8, 0), (0, 8, 0), (2, 2, 0)),
    "manual": ((101, 2, 2, 0, 10), (0, 0, 10), (2, 0, 2)),
}


class People:
    """The rows of a sync in Redis, as others see and edit them."""

    versioned, reversible, points = False, True, IMAGED
    strategies = KEEPING

    def __init__(self, server: RedisServer, kind: Kind) -> None:
        self.server, self.kind = server, kind
        self.client: Any = server.client()

    def project(self, folder: Path, conflicts: str, **parts: str) -> Workshop:
        return project(folder, self.server, self.kind, conflicts, **parts)

    def edit(self, key: str, what: str, *, timed: bool = True) -> None:
        name = f"people:{key.replace(' ', '%20').replace(',', '%2C')}"
        match what.split(" ", 1):
            case ["DELETE"]:
                self.client.delete(name)
                return
            case ["INSERT", values]:
                phone, score = values.strip("()").replace("'", "").split(", ")
                found: dict[str, Any] = {"phone": phone, "score": int(score)}
            case _:
                found = {}
                for part in what.removeprefix("SET ").split(", "):
                    field, _, text = part.partition(" = ")
                    found[field] = None if text == "NULL" else json.loads(text.replace("'", '"'))
        found |= {"edited": "2026-01-02T00:00:00Z"} if timed else {}
        if self.kind == "json":
            held = json.loads(self.client.get(name) or "{}")
            self.client.set(name, json.dumps(held | found))
            return
        for field, value in found.items():
            if value is None:
                self.client.hdel(name, field)
            else:
                self.client.hset(name, field, value)

    def held(self) -> dict[str, Held]:
        found: dict[str, Held] = {}
        for name in self.client.scan_iter("people:*"):
            if self.kind == "json":
                one = json.loads(self.client.get(name))
            else:
                one = {n.decode(): v.decode() for n, v in self.client.hgetall(name).items()}
                one["score"] = int(one["score"]) if "score" in one else None
            key = name.decode().removeprefix("people:").replace("%20", " ").replace("%2C", ",")
            found[key] = (one.get("phone"), one.get("score"), one.get("note"))
        return found


def project(folder: Path, server: RedisServer, kind: Kind, conflicts: str, **parts: str) -> Workshop:
    workshop = Workshop(folder)
    workshop.use(redis=server)
    given = {
        "source": "{table: people}",
        "key": "[id]",
        "fields": "{phone: phone, score: score}",
        "destination": f'{{type: redis, key: "people:{{id}}", value: {kind}, ttl: none}}',
        "deletes": "delete",
        "conflicts": conflicts,
    } | parts
    workshop.sync("people", **given)
    return workshop


@pytest.fixture(scope="module", params=[(kind, one) for kind in ("hash", "json") for one in STRATEGIES])
def played(
    request: pytest.FixtureRequest, session_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Kind, Played]:
    kind, strategy = request.param
    people = People(session_redis, kind)
    people.client.flushall()
    workshop = project(
        tmp_path_factory.mktemp("cells") / "project", session_redis, kind, STRATEGIES[strategy]
    )
    workshop.warehouse(mart({name: (cell.before, "2026-01-01 00:00:00+00") for name, cell in CELLS.items()}))
    assert run(workshop)["status"] == "SUCCESS"
    for name, cell in CELLS.items():
        if cell.edit is not None:
            people.edit(name, cell.edit, timed="agree" not in name)
    workshop.warehouse(mart({name: (cell.after, cell.changed) for name, cell in CELLS.items()}))
    predicted = run(workshop, "--dry-run")
    summary = run(workshop)
    assert numbers(predicted) == numbers(summary)
    return kind, Played(strategy, summary, people.held())


@pytest.mark.parametrize("name", list(CELLS))
def test_each_cell_of_the_table(
    played: tuple[Kind, Played], name: str, record_property: Callable[[str, object], None]
) -> None:
    kind, found = played
    record_property(PROPERTY, (f"Redis, value: {kind}", found.strategy, name, shown(found.held.get(name))))
    ends = AS_A_WHOLE.get(name, CELLS[name].ends) if kind == "json" else CELLS[name].ends
    assert found.held.get(name) == ends[list(STRATEGIES).index(found.strategy)]


def test_the_numbers_say_what_was_kept(played: tuple[Kind, Played]) -> None:
    kind, found = played
    assert found.summary["error"] is None
    assert numbers(found.summary) == (COUNTS if kind == "hash" else COUNTS_AS_A_WHOLE)[found.strategy]


@pytest.fixture
def people(redis_server: RedisServer) -> People:
    return People(redis_server, "hash")


def begun(folder: Path, people: People, conflicts: str, **parts: str) -> Workshop:
    """A project that has delivered a, b and c."""
    workshop = project(folder / "project", people.server, people.kind, conflicts, **parts)
    workshop.warehouse(rows(a=("p", 1), b=("p", 1), c=("p", 1)))
    assert run(workshop)["inserted"] == 103
    return workshop


def some(people: People) -> dict[str, Held]:
    return {key: one for key, one in people.held().items() if key in "abc"}


def test_what_is_kept_stays_kept_until_both_agree(tmp_path: Path, people: People) -> None:
    workshop = begun(tmp_path, people, "target_wins")
    people.edit("a", "SET phone = 'h'")
    for phone in ("q", "r"):
        workshop.warehouse(rows(a=(phone, 1), b=("p", 1), c=("p", 1)))
        assert run(workshop)["conflicts"] == {"merged": 0, "kept": 1, "queued": 0}
        assert run(workshop)["unchanged"] == 103
    workshop.warehouse(rows(a=("h", 1), b=("p", 1), c=("p", 1)))
    assert run(workshop)["updated"] == 1  # they agree: it is ours again
    workshop.warehouse(rows(a=("t", 1), b=("p", 1), c=("p", 1)))
    assert run(workshop)["updated"] == 1
    assert people.held()["a"] == ("t", 1, None)


def test_each_entry_of_a_hash_may_have_a_strategy_and_a_json_value_may_not(
    tmp_path: Path, people: People
) -> None:
    fields = "{phone: {column: phone, conflicts: target_wins}, score: score}"
    workshop = begun(tmp_path, people, "warehouse_wins", fields=fields, deletes="keep")
    people.edit("a", "SET phone = 'h', score = 9")
    people.edit("b", "DELETE")
    workshop.warehouse(rows(a=("q", 2), b=("q", 2), c=("q", 2)))
    found = run(workshop)
    assert (found["updated"], found["conflicts"]) == (3, {"merged": 1, "kept": 0, "queued": 0})
    assert some(people) == {"a": ("h", 2, None), "b": ("q", 2, None), "c": ("q", 2, None)}
    mixed = project(tmp_path / "other", people.server, "json", "warehouse_wins", fields=fields)
    mixed.warehouse(rows(a=("p", 1)))
    said = mixed.retl("sync", "--sync", "people")
    assert (said.code, "CONFLICTS_UNSUPPORTED" in said.err) == (2, True)


def test_a_value_that_expired_was_removed_by_nobody(tmp_path: Path, people: People) -> None:
    destination = '{type: redis, key: "people:{id}", value: hash, ttl: 24h}'
    workshop = begun(tmp_path, people, "target_wins", destination=destination)
    people.client.delete("people:a")
    people.edit("b", "SET phone = 'h'")
    workshop.warehouse(rows(a=("q", 1), b=("q", 2), c=("p", 1)))
    found = run(workshop)
    assert (found["updated"], found["conflicts"]) == (2, {"merged": 1, "kept": 0, "queued": 0})
    assert some(people) == {"a": ("q", 1, None), "b": ("h", 2, None), "c": ("p", 1, None)}
    assert min(people.client.ttl(f"people:{key}") for key in "abc") > 86000


def test_a_person_decides_what_waits_and_a_later_edit_refuses(tmp_path: Path, people: People) -> None:
    workshop = begun(tmp_path, people, "manual")
    people.edit("a", "SET phone = 'h'")
    people.edit("b", "DELETE")
    people.edit("c", "SET note = 'n'")
    workshop.warehouse(rows(a=("q", 2), b=("q", 2)))
    assert run(workshop)["conflicts"] == {"merged": 0, "kept": 0, "queued": 2}
    waiting = listed(workshop)
    assert [one[:2] for one in waiting] == [("a", "CONFLICT"), ("b", "GONE"), ("c", "DELETE_CONFLICT")]
    people.edit("a", "SET phone = 'i'")
    assert take(workshop, "mart", "--key", "a", "--expect", waiting[0][2]) == 1  # edited since it was shown
    assert people.held()["a"] == ("i", 1, None)
    assert take(workshop, "target", "--key", "c") == 0
    assert take(workshop, "mart") == 0
    assert listed(workshop) == []
    assert some(people) == {"a": ("q", 2, None), "b": ("q", 2, None), "c": ("p", 1, "n")}


def test_a_plan_and_an_explanation_say_what_becomes_of_edits(tmp_path: Path, people: People) -> None:
    workshop = begun(tmp_path, people, "target_wins")
    people.edit("a", "SET phone = 'h'")
    people.edit("b", "DELETE")
    people.edit("c", "SET note = 'n'")
    workshop.warehouse(rows(a=("q", 2), b=("q", 2)))
    before = people.held()
    predicted = run(workshop, "--dry-run")
    (planned,) = workshop.json("plan", "--sync", "people")["syncs"]
    (row,) = workshop.json("explain", "people", "--key", "a", "--read")["rows"]
    assert {name: one["verdict"] for name, one in row["sides"]["fields"].items()} == {
        "phone": "keep", "score": "write"
    }  # fmt: skip
    assert {one["key"]: one["verdict"] for one in planned["samples"]} == {
        "a": "merged", "b": "kept", "c": "kept"
    }  # fmt: skip
    assert people.held() == before
    assert numbers(run(workshop)) == numbers(predicted) == ((100, 0, 1, 1, 0), (1, 1, 0), (0, 1, 0))


def test_a_value_of_another_kind_is_never_replaced(tmp_path: Path, people: People) -> None:
    workshop = begun(tmp_path, people, "target_wins")
    people.client.delete("people:a", "people:c")
    people.client.set("people:a", "somebody's")
    people.client.rpush("people:c", "somebody's")
    workshop.warehouse(rows(a=("q", 1), b=("q", 1)))
    found = run(workshop)
    assert (found["updated"], found["rejected"], found["deletes"]["rejected"]) == (1, 1, 1)
    assert {one["code"] for one in workshop.json("rejects")["rejects"]} == {"WRONGTYPE"}
    assert people.client.get("people:a") == b"somebody's"


SCRIPT = b"redis.sha1hex", b"people:a"  # what is sent with a batch


def test_an_edit_made_while_nobody_knows_whether_a_batch_arrived_stays(
    tmp_path: Path, people: People, proxied: RedisServer, proxy: Proxy
) -> None:
    workshop = begun(tmp_path, People(proxied, "hash"), "target_wins", retry="{attempts: 2}")
    workshop.warehouse(rows(a=("q", 2), b=("q", 1), c=("p", 1), new=("q", 1)))
    proxy.drop_reply(*SCRIPT, refuse=True)
    assert run(workshop)["in_doubt"] == 3
    proxy.heal()
    assert people.held()["a"] == ("q", 2, None), "the script ran, its answer did not arrive"
    people.edit("a", "SET phone = 'h'")
    found = run(workshop)
    assert (found["updated"], found["conflicts"]) == (2, {"merged": 0, "kept": 1, "queued": 0})
    workshop.warehouse(rows(a=("r", 3), b=("r", 1), c=("p", 1)))
    found = run(workshop)
    assert (found["updated"], found["conflicts"]["merged"], found["deleted"]) == (2, 1, 1), "`new` is ours"
    assert some(people) == {"a": ("h", 3, None), "b": ("r", 1, None), "c": ("p", 1, None)}


def test_a_run_that_died_before_conflicts_were_asked_for_is_made_good(tmp_path: Path, people: People) -> None:
    workshop = begun(tmp_path, people, "warehouse_wins")
    workshop.warehouse(rows(a=("q", 1), b=("p", 1), c=("p", 1)))
    assert workshop.process("sync", RETL_CRASH_AT="batch_answered").code == -9
    people.project(tmp_path / "other", "target_wins")
    shutil.copy(tmp_path / "other" / "syncs" / "people.yml", workshop.folder / "syncs")
    done = run(workshop)
    assert (done["error"], done["updated"]) == (None, 103)
    assert some(people) == {"a": ("q", 1, None), "b": ("p", 1, None), "c": ("p", 1, None)}


@pytest.mark.parametrize("fault", ["drop_reply", "drop_request"])
def test_a_batch_without_an_answer_is_written_once(
    tmp_path: Path, people: People, proxied: RedisServer, proxy: Proxy, fault: str
) -> None:
    workshop = begun(tmp_path, People(proxied, "hash"), "target_wins", rollback="{keep: 30d}")
    workshop.warehouse(rows(a=("q", 2), b=("p", 1), c=("p", 1), new=("q", 1)))
    getattr(proxy, fault)(*SCRIPT)
    found = run(workshop)
    assert (found["error"], found["updated"], found["inserted"]) == (None, 1, 1)
    assert found["conflicts"] == {"merged": 0, "kept": 0, "queued": 0}
    assert run(workshop)["unchanged"] == 104
    before = workshop.retl("rollback", found["run_id"], "--output", "json").document["syncs"][0]
    assert (before["updated"], before["deleted"]) == (1, 1), (
        "its images are of the rows before the first attempt"
    )
    assert some(people) == {"a": ("p", 1, None), "b": ("p", 1, None), "c": ("p", 1, None)}


@contextmanager
def hashes(server: RedisServer) -> Iterator[People]:
    people = People(server, "hash")
    people.client.flushdb()
    yield people
    people.client.close()


def test_random_histories_agree_with_an_oracle_that_knows_all_values(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    agree(partial(hashes, redis_server), tmp_path)


SWAP = """\
local was = redis.call('HGET', KEYS[1], 'phone')
redis.call('HSET', KEYS[1], 'phone', ARGV[1], 'edited', '2026-01-02T00:00:00Z')
return was"""
SWAP_JSON = """\
local was = cjson.decode(redis.call('GET', KEYS[1]))
redis.call('SET', KEYS[1], cjson.encode({phone = ARGV[1], score = was.score, edited = '2026-01-02T00:00:00Z'}))
return was.phone"""


def editing(people: People, stop: threading.Event, seed: int, met: list[tuple[str, str]]) -> None:
    """Logs (key, the value met) of each edit."""
    chance, number, script = random.Random(seed), 0, SWAP if people.kind == "hash" else SWAP_JSON
    with people.server.client() as client:
        while not stop.wait(chance.random() * 0.002):
            number += 1
            key = f"k{chance.randrange(RACED)}"
            met.append((key, client.eval(script, 1, f"people:{key}", f"h{seed}-{number}").decode()))


@pytest.mark.parametrize(
    ("kind", "strategy"), [("hash", "target_wins"), ("hash", "manual"), ("json", "newest_wins")]
)
def test_no_edit_is_overwritten_while_syncs_run(
    tmp_path: Path,
    redis_server: RedisServer,
    kind: Kind,
    strategy: str,
    record_property: Callable[[str, object], None],
) -> None:
    """Nobody may ever meet a value of retl's where somebody edited before: neither the next editor nor whoever
    looks at the end."""
    people = People(redis_server, kind)
    parts = {"batch": "{rows: 200}", "deletes": "keep", "guards": "{max_conflict_rate: 1}"}
    workshop = people.project(tmp_path / "project", STRATEGIES[strategy], **parts)
    workshop.warehouse(everything(0))
    assert run(workshop)["inserted"] == RACED
    met: list[tuple[str, str]] = []
    runs, written, stop = 0, 0, threading.Event()
    with ExitStack() as stack:
        editors = [threading.Thread(target=editing, args=(people, stop, n, met)) for n in range(3)]
        stack.callback(lambda: [one.join() for one in editors])
        stack.callback(stop.set)
        for one in editors:
            one.start()
        until = time.monotonic() + SECONDS
        while time.monotonic() < until or runs < 2:
            runs += 1
            workshop.warehouse(everything(runs))
            found = run(workshop)
            assert found["error"] is None, found["error"]
            written += found["updated"]
    edited = {key for key, _ in met}
    ours = Counter(key for key, was in met if was.startswith("w"))  # met by the first editor of a key alone
    assert {key: number for key, number in ours.items() if number > 1} == {}, "edits were overwritten"
    ends = {key: one[0] for key, one in people.held().items() if one is not None}
    assert [key for key in edited if not str(ends[key]).startswith("h")] == []
    record_property(RACE, raced(runs, written, len(met), len(edited)))
    assert written > 0
    assert edited
    assert all(ends[key] == f"w{runs}" for key in ends.keys() - edited)


@pytest.mark.parametrize("whole", [False, True])
@given(
    held=st.dictionaries(
        st.binary(max_size=4) | st.sampled_from([b"phone", b"score"]), st.binary(max_size=9), min_size=1
    )
)
def test_the_script_and_python_make_the_same_digests(
    session_redis: RedisServer, held: dict[bytes, bytes], whole: bool
) -> None:
    """A row is written exactly if its digests are those that Python makes of it."""
    text = Type("string")
    shape = Shape(
        "s",
        "state",
        (Field("id", text),),
        (Field("phone", text), Field("score", text)),
        digests="row" if whole else "fields",
        images=True,
    )
    value = Hash(shape)
    seen = value.held([part for pair in held.items() for part in pair])
    assert seen is not None
    with session_redis.client() as client:
        client.delete("digested", "retl:stamp:digested")
        client.hset("digested", mapping=held)
        ours = ["", int(whole), 2, 2, "phone", "score"]
        for number, digests in enumerate(
            (value.digests(seen).hex(), value.digests(seen | {"phone": b"other!!!!!"}).hex())
        ):
            about = [f"r/{number}", 0, "[]", "none", len(digests), digests]
            row = [2, 0, "phone", "written"]
            told = client.eval(HASH, 2, "retl:stamp:digested", "digested", *about, *ours, *row)
            assert (told == [None], client.hget("digested", "phone") == b"written") == (number == 0, True)
            client.delete("digested")
            client.hset("digested", mapping=held | {b"phone": b"written"})
