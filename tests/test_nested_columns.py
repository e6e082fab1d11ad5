"""Lists, STRUCTs and vectors of a mart in arrays, composite types and pgvector: exactly, or a reject of the row."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Workshop
from tests.servers import Database
from tests.test_table_snapshots import code, execute, rows

GUARDS = "{max_failed_rate: 1, max_reject_rate: 1}"
HOSTILE = "['', 'NULL', 'null', '{}', 'a,b', '\"', '\\', '''', ' a ', '{\"x\":1}', '(1,\"a\")', 'é𝄞', NULL]"


def run(workshop: Workshop, *words: str) -> dict[str, Any]:
    (found,) = workshop.retl("sync", "--sync", "people", *words, "--output", "json").document["syncs"]
    return dict(found)


def project(folder: Path, database: Database, table: str, columns: str, **values: str) -> Workshop:
    """The mart `people` has a row per value, by the name that is its key; the table is made before."""
    workshop = Workshop(folder / "project")
    workshop.use(postgres=database)
    execute(database, table)
    workshop.warehouse(f"CREATE TABLE people (id VARCHAR, {columns})")
    for name, sql in values.items():
        workshop.warehouse(f"INSERT INTO people VALUES ('{name}', {sql})")
    workshop.sync(
        "people",
        source="{table: people}",
        key="[id]",
        destination="{type: postgres, table: people}",
        guards=GUARDS,
    )
    return workshop


def delivered(workshop: Workshop, database: Database) -> tuple[dict[str, Any], dict[str, str]]:
    """The values by key, as JSON reads them, and the codes of rejected keys. What arrived is the same to every
    later look: a second run is idle, reconcile finds nothing, and to send all again changes no row."""
    done = run(workshop)
    assert done["status"] in ("SUCCESS", "SUCCESS_WITH_REJECTS"), done["error"]
    found = dict(rows(database, "SELECT id, to_jsonb(people) - 'id' FROM people"))
    versions = "SELECT id, xmin::text FROM people ORDER BY 1"
    before = rows(database, versions)
    assert run(workshop)["unchanged"] == len(found)
    assert run(workshop, "--full")["rejected"] == done["rejected"]
    assert rows(database, versions) == before, "a row was written again that has these values"
    compared = workshop.retl("reconcile", "people", "--output", "json").document
    assert (compared["reconcile"]["same"], compared["reconcile"]["edited"]) == (len(found), 0), compared
    named = workshop.retl("rejects", "--reveal", "--output", "json").document["rejects"]
    return found, {one["key"]: one["code"] for one in named}


def test_lists_arrive_in_arrays(tmp_path: Path, every_postgres: Database) -> None:
    workshop = project(
        tmp_path,
        every_postgres,
        "CREATE TABLE people (id text PRIMARY KEY, n int[], t text[], f float8[], m numeric(5,2)[], d date[])",
        "n INTEGER[], t VARCHAR[], f DOUBLE[], m DECIMAL(7,4)[], d DATE[]",
        full=f"[1, NULL, -2147483648], {HOSTILE}, [0.1, '-0'::DOUBLE, 1e300], [1.25, NULL], ['2024-02-29'::DATE]",
        empty="[], [], [], [], []",
        null="NULL, NULL, NULL, NULL, NULL",
        only_null="[NULL], [NULL], [NULL], [NULL], [NULL]",
        places="NULL, NULL, NULL, [1.255], NULL",
    )
    found, rejected = delivered(workshop, every_postgres)
    texts = ["", "NULL", "null", "{}", "a,b", '"', "\\", "'", " a ", '{"x":1}', '(1,"a")', "é𝄞", None]
    assert found == {
        "full": {
            "n": [1, None, -(2**31)],
            "t": texts,
            "f": [0.1, 0, 10**300],
            "m": [1.25, None],
            "d": ["2024-02-29"],
        },
        "empty": {name: [] for name in "ntfmd"},
        "null": dict.fromkeys("ntfmd"),
        "only_null": {name: [None] for name in "ntfmd"},
    }
    assert rejected == {"places": "NOT_EXACT"}
    assert rows(every_postgres, "SELECT f::text FROM people WHERE id = 'full'") == [("{0.1,-0,1e+300}",)]


def test_lists_of_lists_arrive_where_they_are_rectangles(tmp_path: Path, every_postgres: Database) -> None:
    workshop = project(
        tmp_path,
        every_postgres,
        "CREATE TABLE people (id text PRIMARY KEY, v text[])",
        "v VARCHAR[][]",
        square="[['a', NULL], ['\"', '\\']]",
        one="[['x']]",
        empty="[]",
        null="NULL",
        ragged="[['a'], ['b', 'c']]",
        hollow="[[], []]",
        gap="[['a'], NULL]",
    )
    found, rejected = delivered(workshop, every_postgres)
    assert {key: one["v"] for key, one in found.items()} == {
        "square": [["a", None], ['"', "\\"]],
        "one": [["x"]],
        "empty": [],
        "null": None,
    }
    assert rejected == {"ragged": "22P02", "hollow": "NOT_EXACT", "gap": "22P02"}


PERSON = """
CREATE TYPE place AS (street text, zip varchar(5), lat float8, tags text[]);
CREATE TYPE person AS (n int, name text, spend numeric(6,2), born date, home place);
"""
STRUCT = (
    "STRUCT(n BIGINT, name VARCHAR, spend DECIMAL(8,4), born DATE,"
    " home STRUCT(street VARCHAR, zip VARCHAR, lat DOUBLE, tags VARCHAR[]))"
)


def test_structs_arrive_in_composite_types(tmp_path: Path, every_postgres: Database) -> None:
    def person(n: str = "1", name: str = "'a'", spend: str = "1.5", home: str = "NULL") -> str:
        return f"{{'n': {n}, 'name': {name}, 'spend': {spend}, 'born': '2024-02-29'::DATE, 'home': {home}}}"

    def home(zip: str = "'12345'", tags: str = HOSTILE) -> str:
        return f"{{'street': 'a,\"b\"(c)\\', 'zip': {zip}, 'lat': 0.1, 'tags': {tags}}}"

    workshop = project(
        tmp_path,
        every_postgres,
        f"{PERSON} CREATE TABLE people (id text PRIMARY KEY, v person, many person[])",
        f"v {STRUCT}, many {STRUCT}[]",
        full=f"{person(home=home())}, [{person()}, NULL, {person(home=home())}]",
        null="NULL, NULL",
        nulls="{'n': NULL, 'name': NULL, 'spend': NULL, 'born': NULL, 'home': NULL}, []",
        large=f"{person(n='3000000000')}, NULL",
        digits=f"{person(spend='1.2345')}, NULL",
        long=f"{person(home=home(zip=repr('123456')))}, NULL",
        blank=f"{person(home=home(zip=repr('12345 ')))}, NULL",
        deep=f"NULL, [{person(spend='1.2345')}]",
    )
    found, rejected = delivered(workshop, every_postgres)
    texts = ["", "NULL", "null", "{}", "a,b", '"', "\\", "'", " a ", '{"x":1}', '(1,"a")', "é𝄞", None]
    plain = {"n": 1, "name": "a", "spend": 1.5, "born": "2024-02-29", "home": None}
    housed = plain | {"home": {"street": 'a,"b"(c)\\', "zip": "12345", "lat": 0.1, "tags": texts}}
    assert found == {
        "full": {"v": housed, "many": [plain, None, housed]},
        "null": {"v": None, "many": None},
        "nulls": {"v": dict.fromkeys(plain), "many": []},
    }
    assert rejected == {
        "large": "22003",
        "digits": "NOT_EXACT",
        "long": "22001",
        "blank": "NOT_EXACT",
        "deep": "NOT_EXACT",
    }


def test_a_field_that_the_type_lacks_is_never_dropped(tmp_path: Path, postgres: Database) -> None:
    workshop = project(
        tmp_path,
        postgres,
        "CREATE TYPE pair AS (a int, b int); CREATE TABLE people (id text PRIMARY KEY, v pair)",
        "v JSON",
        same="""'{"b": 2, "a": 1}'""",
        more="""'{"a": 1, "b": 2, "c": 3}'""",
        fewer="""'{"a": 1}'""",
        other="""'[1, 2]'""",
        text="""'{"a": "1", "b": 2}'""",
        zero="""'{"a": 1, "b": 2, "c": "\\u0000"}'""",
    )
    found, rejected = delivered(workshop, postgres)
    assert found == {"same": {"v": {"a": 1, "b": 2}}}
    assert rejected.pop("other") in ("22P02", "22023", "NOT_EXACT")
    assert rejected.pop("zero") in ("22P05", "UNREPRESENTABLE")
    assert rejected == {"more": "NOT_EXACT", "fewer": "NOT_EXACT", "text": "NOT_EXACT"}


def vectors(database: Database) -> None:
    """pgvector, in a schema that is not on the search path. It comes with the wheel."""
    if not rows(database, "SELECT FROM pg_available_extensions WHERE name = 'vector'"):
        assert "CI" not in os.environ, "this PostgreSQL has no pgvector"
        pytest.skip("this PostgreSQL has no pgvector: apt-get install postgresql-NN-pgvector")
    execute(database, "CREATE SCHEMA ext; CREATE EXTENSION vector SCHEMA ext")


def test_lists_of_numbers_arrive_in_vectors(tmp_path: Path, postgres: Database) -> None:
    vectors(postgres)
    workshop = project(
        tmp_path,
        postgres,
        "CREATE TABLE people (id text PRIMARY KEY, v ext.vector(3), h ext.halfvec(3), free ext.vector)",
        "v FLOAT[3], h DOUBLE[], free FLOAT[]",
        full="[0.1, '-0'::FLOAT, 3e38], [0.5, -2, 65504], [1, 2, 3, 4]",
        null="NULL, NULL, NULL",
        short="NULL, [1, 2], NULL",
        long="NULL, [1, 2, 3, 4], NULL",
        empty="NULL, NULL, []",
        hole="[1, NULL, 3], NULL, NULL",
        nan="['nan'::FLOAT, 2, 3], NULL, NULL",
        infinite="NULL, ['infinity'::DOUBLE, 2, 3], NULL",
        large="NULL, [70000, 1, 1], NULL",
        inexact="NULL, [0.1, 1, 1], NULL",
    )
    done = run(workshop)
    assert code(done) == ("SUCCESS_WITH_REJECTS", None)
    assert rows(postgres, "SELECT id, v::text, h::text, free::text FROM people ORDER BY 1") == [
        ("full", "[0.1,-0,3e+38]", "[0.5,-2,65504]", "[1,2,3,4]"),
        ("null", None, None, None),
    ]
    named = workshop.retl("rejects", "--reveal", "--output", "json").document["rejects"]
    codes = {one["key"]: one["code"] for one in named}
    assert codes.keys() == {"short", "long", "empty", "hole", "nan", "infinite", "large", "inexact"}
    assert codes["inexact"] == "NOT_EXACT"
    assert {codes[one] for one in ("short", "long", "empty")} == {"22000"}
    versions = rows(postgres, "SELECT xmin::text FROM people ORDER BY id")
    assert run(workshop)["unchanged"] == 2
    assert run(workshop, "--full")["rejected"] == len(codes)
    assert rows(postgres, "SELECT xmin::text FROM people ORDER BY id") == versions


def test_a_double_that_single_precision_cannot_hold_is_never_rounded(
    tmp_path: Path, postgres: Database
) -> None:
    vectors(postgres)
    workshop = project(
        tmp_path,
        postgres,
        "CREATE TABLE people (id text PRIMARY KEY, v ext.vector(1))",
        "v DOUBLE[]",
        exact="[0.5]",
        shown="[0.1]",
        more="[0.1000000000000001]",
    )
    done = run(workshop)
    assert (done["inserted"], [one["code"] for one in done["rejects"]]) == (2, ["NOT_EXACT"])
    assert rows(postgres, "SELECT id, v::text FROM people ORDER BY 1") == [
        ("exact", "[0.5]"),
        ("shown", "[0.1]"),
    ]


@pytest.mark.parametrize(
    ("column", "mart", "said"),
    [
        ("pair", "v BIGINT", "{type: json}"),
        ("pair", "v BIGINT[]", "{type: json}"),
        ("ext.vector(2)", "v BIGINT[]", "{type: list, items: float}"),
        ("ext.vector(2)", "v STRUCT(a BIGINT)", "{type: list, items: float}"),
        ("regclass[]", "v VARCHAR[][]", "ALTER TABLE"),
    ],
)
def test_what_has_nothing_in_common_is_refused_with_both_ways_out(
    tmp_path: Path, postgres: Database, column: str, mart: str, said: str
) -> None:
    vectors(postgres)
    workshop = project(
        tmp_path,
        postgres,
        f"CREATE TYPE pair AS (a int, b int); CREATE TABLE people (id text PRIMARY KEY, v {column})",
        mart,
        one="NULL",
    )
    done = run(workshop)
    assert code(done) == ("REFUSED", "TARGET_DRIFT")
    assert said in done["error"]["hint"]
    assert "ALTER TABLE" in done["error"]["hint"]
