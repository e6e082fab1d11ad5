"""Alike: the buckets of keys in which mart, baseline and dump agree, so that only the other keys are compared
row by row.

A key's hash names its bucket. Where all three have as many rows in a bucket and the same sums of hashes, they
have the same rows. That takes one pass over each of them and no join.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from retl.engine.baseline import BASELINE
from retl.engine.hash import MART
from retl.engine.mapping import FieldMap
from retl.engine.workspace import Workspace

_BUCKETS = "buckets"  # bucket, rows (of the mart), alike
_DUMPED = "dumped_buckets"  # bucket, n, held
_NUMBER = f"hash(key) % {1 << 16}"  # many buckets of few rows: a row that differs costs its whole bucket
_BUCKET = f"{_NUMBER} AS bucket, count(*) AS n"


class Alike(Struct, frozen=True):
    """`rows`: how many rows of the mart need no comparison; `others`: the SQL predicate of all other keys."""

    rows: int = 0
    others: str = "TRUE"


NOTHING = Alike()


def add_up(workspace: Workspace, dumped: str, texts: Sequence[str]) -> None:
    """Count the rows of the dump (SQL) by bucket, and add up their hashes. `texts`: the columns with what the
    target has."""
    workspace.run(
        f"CREATE TABLE {_DUMPED} AS SELECT {_BUCKET}, {_held(texts)} FROM ({dumped}) GROUP BY bucket"
    )


def find(workspace: Workspace, field_map: FieldMap, sent: Sequence[str]) -> Alike:
    """Compare the buckets of mart and baseline with those that `add_up` made. `sent`: SQL of the texts that
    the target would get, over the payload `m` of the mart's rows.

    A bucket with a faulty row or an unknown key is not alike. The sums are of 64-bit hashes, so those of
    different rows are equal once in 2⁶⁴ buckets."""
    known = "sum(hash(hash(key, hash))) AS known"
    mart = f'SELECT {field_map.key} AS key, "retl hash" AS hash, "retl fault" AS fault, {field_map.payload}'
    workspace.run(
        f"CREATE TABLE {_BUCKETS} AS"
        f" WITH m AS (SELECT {_BUCKET}, count(fault) AS faults, {known}, {_held(sent)}"
        f" FROM ({mart} FROM {MART}) m GROUP BY bucket),"
        f" b AS (SELECT {_BUCKET}, {known} FROM {BASELINE} GROUP BY bucket)"
        " SELECT bucket, m.n AS rows, (m.n = b.n AND m.n = d.n AND m.faults = 0 AND m.known = b.known"
        " AND m.held = d.held) IS TRUE AS alike"
        f" FROM m FULL JOIN b USING (bucket) FULL JOIN {_DUMPED} d USING (bucket)"
    )
    rows, others = workspace.one(
        f"SELECT coalesce(sum(rows) FILTER (alike), 0), count(*) FILTER (NOT alike) FROM {_BUCKETS}"
    )
    among = f"{_NUMBER} IN (SELECT bucket FROM {_BUCKETS} WHERE NOT alike)" if others else "FALSE"
    return Alike(int(rows), among)


def _held(texts: Sequence[str]) -> str:
    return f"sum(hash(hash({', '.join(['key', *texts])}))) AS held"
