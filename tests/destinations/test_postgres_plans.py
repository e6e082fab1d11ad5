"""A batch costs the same in a table of any size: none of its statements reads the whole table."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from msgspec.structs import replace

from retl.destinations.batch import Field, Shape, SoftDelete
from retl.destinations.postgres.relation import Relation
from retl.destinations.postgres.statements import KEPT, ROW, SEEN, STAGE, Statements
from retl.values.types import Type
from tests.servers import Database

FIELDS = (Field("segment", Type("string"), conflicts="target_wins"), Field("visits", Type("integer")))
SHAPE = Shape(
    "people",
    "state-1",
    (Field("id", Type("string")),),
    FIELDS,
    deletes="delete",
    digests="row",
    conflicts="target_wins",
    images=True,
)
ROWS, STAGED = 100_000, 10_000
FILL = f"""INSERT INTO {STAGE} ({ROW}, id, segment, visits, {SEEN}, {KEPT})
SELECT i - 1, 'user ' || i, 'new', i, '\\x00', NULL FROM generate_series(1, {STAGED}) AS i"""


def statements(sql: Statements, soft: Statements) -> Mapping[str, str]:
    last = STAGED - 1
    found = {
        "lock": sql.lock("upsert"),
        "lock for a delete": sql.lock("delete"),
        "image": sql.image(STAGE, 0, ["segment"]),
        "update_untouched": sql.update_untouched(),
        "update_untouched, with images": sql.update_untouched("joined"),
        "not_updated": sql.not_updated(),
        "judge": sql.judge(note=True),
        "touched": sql.touched(),
        "returned": sql.returned(),
        "unequal": sql.unequal(),
        "present": sql.present(),
        "left": sql.left("upsert", 0, last),
        "in_place": sql.in_place(0, last),
        "update": sql.apply("update_only", 0, last),
        "delete": sql.apply("delete", 0, last),
        "soft delete": soft.apply("delete", 0, last),
    }
    return {
        name: text.removeprefix("COPY (").removesuffix(") TO STDOUT (FORMAT csv)")
        for name, text in found.items()
    }


@pytest.mark.parametrize("analysed", [True, False])
def test_no_statement_of_a_batch_reads_the_whole_table(every_postgres: Database, analysed: bool) -> None:
    sql = Statements(Relation("public", "people"), SHAPE, others=["note"])
    soft = Statements(Relation("public", "people"), replace(SHAPE, deletes=SoftDelete({"note": "gone"})))
    with every_postgres.connect() as session:
        session.autocommit = False
        session.execute("CREATE TABLE people (id text PRIMARY KEY, segment text, visits bigint, note text)")
        session.execute(f"INSERT INTO people SELECT 'user ' || i FROM generate_series(1, {ROWS}) AS i")
        if analysed:
            session.execute("ANALYZE people")
        session.execute(sql.stage())
        session.execute(FILL)
        whole = {}
        for name, text in statements(sql, soft).items():
            plan = [line for (line,) in session.execute(f"EXPLAIN {text}").fetchall()]
            read = [line for line in plan if "people" in line and "->" in line and "Scan" in line]
            assert read, plan
            if not all("Index" in line or "Tid Scan" in line for line in read) or any(
                "Merge Join" in line for line in plan
            ):
                whole[name] = plan
    assert not whole
