"""A ClickHouse of recordings: what the engine answered to the very queries of the source.

`python -m tests.clickhouse PYTHON` asks the engine again; PYTHON is one that has the package chdb, which is too
large for the tests' own environment. A query that was not recorded is a failure of the test.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from retl.testing.server import FakeApi

RECORDED = Path(__file__).with_name("clickhouse.json")
USER, PASSWORD = "reader", "pass-of-the-tests"
TABLES = """
CREATE TABLE items (id UInt64, price Decimal(12, 2), big Decimal(38, 10), name Nullable(String),
  kind Enum8('new' = 1, 'old' = 2), code LowCardinality(String), day Date, far Date32, at DateTime('Europe/Berlin'),
  exact DateTime64(6, 'UTC'), fine DateTime64(9, 'UTC'), uid UUID, yes Bool, ratio Float64, tags Array(String),
  nums Array(Nullable(Int32)), wide Int256, ip IPv4, fixed FixedString(4), sums AggregateFunction(sum, UInt8),
  huge Decimal(76, 20), pairs Map(String, UInt8)) ENGINE = MergeTree ORDER BY id;
INSERT INTO items SELECT number, toDecimal64('1234567890.12', 2) - number, toDecimal128('12345678901234567.8901234567', 10),
  if(number = 1, NULL, 'é\\n''"'), 'new', 'x', '2026-11-28', '1925-01-01', toDateTime('2026-11-28 10:00:00', 'Europe/Berlin') + number,
  '2026-11-28 10:00:00.123456', '2026-11-28 10:00:00.123456000', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', true, 0.1,
  ['a', 'b'], [1, NULL], 1, '1.2.3.4', 'ab', initializeAggregation('sumState', 1), 1, map('a', 1) FROM numbers(3);
"""
ENGINE = """
import base64, json, sys
import chdb
from chdb.session import Session
tables, queries = json.load(sys.stdin)
session = Session()
session.query(tables)
found = []
for sql, parameters in queries:
    try:
        body, code = session.query(sql, params=parameters).bytes(), 0
    except Exception as problem:
        body = str(problem).encode()
        code = int(str(problem).partition("Code: ")[2].partition(".")[0])
    found.append([sql, parameters, code, base64.b64encode(body).decode()])
json.dump(found, sys.stdout)
"""


class Engine(FakeApi):
    """Answers what was recorded. `asked`: the settings of each request; `locked`: the account may not change
    them."""

    def __init__(self) -> None:
        super().__init__()
        recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else []
        self.answers = {
            (sql, json.dumps(given, sort_keys=True)): (code, base64.b64decode(body))
            for sql, given, code, body in recorded
        }
        self.asked: list[dict[str, str]] = []
        self.missing: list[tuple[str, dict[str, str]]] = []
        self.locked = False

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        settings = dict(parse_qsl(urlsplit(path).query))
        self.asked.append(settings)
        if (headers.get("x-clickhouse-user"), headers.get("x-clickhouse-key")) != (USER, PASSWORD):
            return refusal(516, f"{USER}: Authentication failed (AUTHENTICATION_FAILED)")
        if self.locked and "readonly" in settings:
            return refusal(164, "Cannot modify 'readonly' setting in readonly mode. (READONLY)")
        given = {n.removeprefix("param_"): v for n, v in settings.items() if n.startswith("param_")}
        asked = (body.decode(), json.dumps(given, sort_keys=True))
        if asked not in self.answers:
            self.missing.append((body.decode(), given))
            return refusal(1, "not recorded")
        code, content = self.answers[asked]
        return refusal(code, content.decode()) if code else (200, content)


def refusal(code: int, text: str) -> tuple[int, Any]:
    """As the server says that it refuses a query."""
    return 500, (text.encode(), {"X-ClickHouse-Exception-Code": str(code), "Content-Type": "text/plain"})


def record(python: str, queries: list[tuple[str, dict[str, str]]]) -> None:
    """Ask the engine, and keep its answers."""
    done = subprocess.run(
        [python, "-c", ENGINE],
        input=json.dumps([TABLES, queries]).encode(),
        capture_output=True,
        check=True,
    )
    found = json.loads(done.stdout)
    lines = ",\n".join(json.dumps(one) for one in found)
    RECORDED.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    from tests.test_source_clickhouse import queries

    record(sys.argv[1], queries())
