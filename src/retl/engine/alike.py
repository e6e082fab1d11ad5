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
_NUMBER = f"hash(key) % {1 << 16}"  # many buckets of few rows: a row that differs costs its whole bucket


class Alike(Struct, frozen=True):
    """`rows`: how many rows of the mart need no comparison; `others`: the SQL predicate of all other keys."""

    rows: int = 0
    others: str = "TRUE"


NOTHING = Alike()


def find(
    workspace: Workspace, field_map: FieldMap, sent: Sequence[str], dumped: str, texts: Sequence[str]
) -> Alike:
    """Compare the buckets. `sent`: SQL of the texts that the target would get, over the payload `m` of the
    mart's rows; `texts`: the columns of the table `dumped` with what it has.

    A bucket with a faulty row or an unknown key is not alike. The sums are of 64-bit hashes, so those of
    different rows are equal once in 2⁶⁴ buckets."""
    bucket, known = f"{_NUMBER} AS bucket, count(*) AS n", "sum(hash(hash(key, hash))) AS known"
    mart = f'SELECT {field_map.key} AS key, "retl hash" AS hash, "retl fault" AS fault, {field_map.payload}'
    workspace.run(
        f"CREATE TABLE {_BUCKETS} AS"
        f" WITH m AS (SELECT {bucket}, count(fault) AS faults, {known}, {_held(sent)}"
        f" FROM ({mart} FROM {MART}) m GROUP BY bucket),"
        f" b AS (SELECT {bucket}, {known} FROM {BASELINE} GROUP BY bucket),"
        f" d AS (SELECT {bucket}, {_held(texts)} FROM {dumped} GROUP BY bucket)"
        " SELECT bucket, m.n AS rows, (m.n = b.n AND m.n = d.n AND m.faults = 0 AND m.known = b.known"
        " AND m.held = d.held) IS TRUE AS alike"
        " FROM m FULL JOIN b USING (bucket) FULL JOIN d USING (bucket)"
    )
    (rows,) = workspace.one(f"SELECT coalesce(sum(rows), 0) FROM {_BUCKETS} WHERE alike")
    return Alike(int(rows), f"{_NUMBER} IN (SELECT bucket FROM {_BUCKETS} WHERE NOT alike)")


def _held(texts: Sequence[str]) -> str:
    return f"sum(hash(hash({', '.join(['key', *texts])}))) AS held"
