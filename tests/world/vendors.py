"""Scenes of vendors over HTTP: answers that are lost, late, compressed or preceded, keys that a vendor forgets or
does not tell apart, rows that nobody knows of. Each has a sync and a vendor of its own.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

from tests.api import TOKEN, Api, Fault, answer, passed, reset
from tests.world.play import Play, Wrong, error
from tests.world.scenes import scene
from tests.world.shapes import define, run_all

CONNECTION = (
    '  vendor: {type: http, base_url: "${VENDOR_URL}", auth: {type: bearer, token: "${VENDOR_TOKEN}"}}\n'
)
EVENTS = (
    "key: [id]\nwrite: append\nfirst_run: send\ndelivery: at_most_once\nretry: {attempts: 3, budget: 20s}\n"
    "destination: {connection: vendor, insert: {path: /v1/events, wrap: events, max_rows: 5, row: {id: $id}},"
    " outcome: {ok: [200], rows: all_or_nothing}"
)
USERS = (
    "key: [id]\ndeletes: delete\nguards: {max_delete_rate: 1}\n"
    "destination: {connection: vendor, upsert: {path: /v1/users/batch, wrap: users, max_rows: 50, row: {id: $id,"
    " attributes: $fields}}, delete: {method: DELETE, path: /v1/users/$key}, outcome: {ok: [200, 204, 207],"
    " rows: positional, at: results, row_ok: {at: status, in: [updated]}, code: error.code, reason: error.message}"
)
TWENTY = "SELECT i AS id FROM range(20) t(i)"


class Vendor(Api):
    """Does not tell apart users whose ids differ in case, and forgets idempotency keys when it is told to."""

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        *where, name = path.split("/")
        if method == "DELETE":
            path = "/".join([*where, unquote(name).lower()])
        return super().serve(method, path, headers, body)

    def put(self, key: str, attributes: dict[str, Any]) -> dict[str, Any]:
        return super().put(key.lower(), attributes)

    def forget(self, fault: Fault) -> Fault:
        """The fault, after which no key is known any more."""

        def forgetting(exchange: Any) -> bool:
            done = fault(exchange)
            self.answers.clear()
            return done

        return forgetting

    def must_have(self, wanted: int) -> None:
        found = Counter(event["id"] for event in self.events)
        if twice := [key for key, times in found.items() if times > 1]:
            raise Wrong(f"DOUBLED {len(twice)} events: {twice[:4]}")
        if len(found) != wanted:
            raise Wrong(f"LOST: {len(found)} events where {wanted} should be")


@contextmanager
def _vendor(play: Play) -> Iterator[Vendor]:
    with Vendor() as vendor:
        yml = play.target.folder / "retl.yml"
        yml.write_text(yml.read_text() + CONNECTION)
        play.target.project.environ |= {"VENDOR_URL": vendor.url, "VENDOR_TOKEN": TOKEN}
        yield vendor


def _resolve(play: Play, *words: str) -> int:
    """Rows that `retl resolve` lists, or decides."""
    ended = play.command("resolve", *words, "--output", "json")
    found = json.loads(ended.stdout)
    return int(found["resolved"]) if words else sum(one["rows"] for one in found["in_doubt"])


@scene("a row in doubt, then a run of other rows", "http insert")
def in_doubt_and_forgotten(play: Play) -> None:
    with _vendor(play) as vendor:
        vendor.misbehave(passed, reset(applied=True))
        define(play, "events", TWENTY, EVENTS + "}")
        run_all(play)
        define(play, "events", "SELECT i AS id FROM range(30) t(i)", EVENTS + "}")
        ended, _ = run_all(play, "--where", "id >= 20")
        if ended.code:
            raise Wrong(f"FALSE REFUSAL {error(ended)}")
        if (waiting := _resolve(play)) != 5:
            raise Wrong(f"STUCK: {waiting} rows to resolve where 5 are in doubt")
        _resolve(play, "--delivered", "--yes")
        if run_all(play)[0].code:
            raise Wrong("STUCK after `retl resolve`")
        vendor.must_have(30)


@scene("an idempotency key outlives the vendor's memory of it", "http insert")
def a_key_past_its_window(play: Play) -> None:
    with _vendor(play) as vendor:
        vendor.misbehave(passed, reset(applied=True), vendor.forget(answer(429, b"{}", Retry_After="3")))
        keyed = EVENTS.replace(" outcome:", " idempotency: {header: Idempotency-Key, window: 2s}, outcome:")
        define(play, "events", TWENTY, keyed + "}")
        run_all(play)
        if waiting := _resolve(play):
            play.said.append(f"{waiting} rows to resolve")
            _resolve(play, "--delivered", "--yes")
        run_all(play)
        vendor.must_have(20)


@scene("addresses become lower case at a vendor that ignores case", "http")
def keys_that_fold(play: Play) -> None:
    with _vendor(play) as vendor:
        says = USERS + ", folds: {case: true}}"
        for case in ("upper", "lower", "lower"):
            mart = f"SELECT {case}('A' || i || '@example.com') AS id, 1 AS visits FROM range(50) t(i)"
            define(play, "people", mart, says)
            ended, found = run_all(play)
            if ended.code:
                raise Wrong(f"FALSE REFUSAL {error(ended)}")
            if len(vendor.users) != 50:
                raise Wrong(f"LOST {50 - len(vendor.users)} contacts that another row stands for")
        if found["people"]["unchanged"] != 50:
            raise Wrong(f"NOT IDLE {found['people']}")


@scene("an answer is compressed unasked", "http insert")
def an_unasked_encoding(play: Play) -> None:
    def compressed(exchange: Any) -> bool:
        status, content = exchange.perform()
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        exchange.reply(status, gzip.compress(json.dumps(content).encode()), headers)
        return True

    _understood(play, compressed)


@scene("a hint of status 103 comes before the answer", "http insert")
def an_early_hint(play: Play) -> None:
    def hinted(exchange: Any) -> bool:
        status, content = exchange.perform()
        exchange.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        exchange.reply(status, json.dumps(content).encode(), {"Content-Type": "application/json"})
        return True

    _understood(play, hinted)


def _understood(play: Play, fault: Fault) -> None:
    """Every request is answered like this, and nothing is in doubt."""
    with _vendor(play) as vendor:
        vendor.misbehave(*[fault] * 4)
        define(play, "events", TWENTY, EVENTS + "}")
        ended, _ = run_all(play)
        if ended.code:
            raise Wrong(f"FALSE REFUSAL {error(ended)}")
        vendor.must_have(20)


@scene("a vendor asks for a pause that is longer than a run may last", "http insert")
def held_off(play: Play) -> None:
    with _vendor(play) as vendor:
        vendor.misbehave(passed, answer(429, b"{}", Retry_After="400"))
        define(play, "events", TWENTY, EVENTS + "}")
        ended, _ = run_all(play)
        if ended.code != 75:
            raise Wrong(f"EXIT {ended.code} where 75 is promised: {error(ended)}")
        vendor.must_have(5)
