"""SQL clears only what Pydantic accepts: asked of a real DuckDB table and a real model."""

from __future__ import annotations

import re
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from retl.contract import judge
from retl.contract.judge import MISFIT, Contract, Verdict
from retl.errors import DefinitionError, Mismatch
from retl.project import contracts
from retl.values import sql

NOWHERE = Path("/nonexistent")
con = duckdb.connect()
con.execute("SET timezone = 'UTC'")


def written(**columns: dict[str, Any]) -> contracts.Contract:
    return contracts.Contract(columns=TypeAdapter(dict[str, contracts.Column]).validate_python(columns))


def verdicts(made: Contract, relation: str) -> list[tuple[bool, Verdict | dict[str, Any]]]:
    """Per row of the relation whether SQL clears it, and what Pydantic says of it."""
    cursor = con.execute(f"SELECT {made.prefilter()}, {made.select()} FROM {relation}")
    names = [column[0] for column in cursor.description][1:]
    rows = cursor.fetchall()
    judged = made.judge_and_edit([dict(zip(names, row[1:], strict=True)) for row in rows])
    return list(zip([row[0] for row in rows], judged, strict=True))


def codes(made: Contract, relation: str) -> list[str | None]:
    """Per row the code it is refused with; never one for a row that SQL clears."""
    found = verdicts(made, relation)
    assert not [judged for cleared, judged in found if cleared and isinstance(judged, Verdict)]
    return [judged.code if isinstance(judged, Verdict) else None for _, judged in found]


def model(folder: Path, name: str, text: str) -> contracts.Contract:
    (folder / f"{name}.py").write_text(
        "from datetime import date, datetime\nfrom decimal import Decimal\nfrom enum import Enum\n"
        "from typing import Annotated, Any, Literal, Optional\nfrom uuid import UUID\n"
        "from pydantic import *\n" + text
    )
    return contracts.Contract(model=f"{name}:Row")


def test_each_limit_refuses_with_its_code() -> None:
    made = judge.build(
        written(
            id={"type": "string", "min_length": 2, "max_length": 3, "pattern": "^[a-z]+$"},
            mood={"type": "string", "one_of": ["up", "down"], "nullable": True},
            n={"type": "integer", "ge": 0, "lt": 10},
            m={"type": "decimal", "max_digits": 5, "decimal_places": 2, "gt": "0.10"},
        ),
        {"id": "VARCHAR", "mood": "VARCHAR", "n": "BIGINT", "m": "DECIMAL(10,3)", "other": "BLOB"},
        NOWHERE,
        ["id"],
    )
    relation = """(VALUES ('abc', 'up', 0, 1.100), ('ab', NULL, 9, 0.110), (NULL, 'up', 1, 1.000), ('a', 'up', 1, 1.000),
        ('abcd', 'up', 1, 1.000), ('aB', 'up', 1, 1.000), ('abc', 'UP', 1, 1.000), ('abc', 'up', 10, 1.000),
        ('abc', 'up', -1, 1.000), ('abc', 'up', 1, 0.100), ('abc', 'up', 1, 1.001), ('abc', 'up', 1, 1000.000))
        AS t(id, mood, n, m)"""
    relation = f"(SELECT id, mood, n, m::DECIMAL(10,3) AS m FROM {relation})"
    assert codes(made, relation) == [
        None, None, "NULL_VALUE", "TOO_SHORT", "TOO_LONG", "PATTERN", "NOT_ONE_OF",
        "OUT_OF_RANGE", "OUT_OF_RANGE", "OUT_OF_RANGE", "UNREPRESENTABLE", "UNREPRESENTABLE",
    ]  # fmt: skip
    assert [cleared for cleared, _ in verdicts(made, relation)] == [True] * 2 + [False] * 10


def test_reasons_hold_no_values() -> None:
    made = judge.build(written(id={"type": "string", "max_length": 3}), {"id": "VARCHAR"}, NOWHERE, ["id"])
    (verdict,) = made.judge([{"id": "secret", MISFIT: None}])
    assert verdict == Verdict("id", "TOO_LONG", "id is longer than 3")


def test_without_a_contract_every_column_keeps_the_warehouse_type() -> None:
    made = judge.build(
        None,
        {"a": "ENUM('x', 'y')", "b": "DECIMAL(5,1)", "c": "INTEGER[]", "d": "MAP(VARCHAR, DOUBLE)"},
        NOWHERE,
        ["a"],
    )
    assert [str(rule.type) for rule in made.columns.values()] == [
        "string",
        "decimal(5,1)",
        "list of integer",
        "json",
    ]
    assert all(rule.nullable for rule in made.columns.values())
    relation = "(SELECT 'x'::ENUM('x', 'y') AS a, 1.5::DECIMAL(5,1) AS b, [1, NULL] AS c, MAP {'k': x} AS d FROM (VALUES (1.0::DOUBLE), ('nan'::DOUBLE)) t(x))"
    assert [cleared for cleared, _ in verdicts(made, relation)] == [True, False]
    assert codes(made, relation) == [None, "UNREPRESENTABLE"]
    with pytest.raises(DefinitionError, match="b is BLOB"):
        judge.build(None, {"a": "INTEGER", "b": "BLOB"}, NOWHERE, ["a"])


def test_drift_names_the_column_and_both_types() -> None:
    asked = written(id={"type": "integer"})
    with pytest.raises(Mismatch, match="id is VARCHAR, the contract's type is integer") as caught:
        judge.build(asked, {"id": "VARCHAR"}, NOWHERE, ["id"])
    assert caught.value.code == "SOURCE_DRIFT"
    with pytest.raises(Mismatch, match="id is not in the mart") as caught:
        judge.build(asked, {"other": "INTEGER"}, NOWHERE, ["id"])
    assert caught.value.code == "SOURCE_DRIFT"


@pytest.mark.parametrize(
    "column",
    [
        {"type": "integer", "max_length": 3},
        {"type": "string", "pattern": "("},
        {"type": "string", "one_of": [1]},
        {"type": "integer", "one_of": []},
        {"type": "integer", "ge": "many"},
        {"type": "timestamptz", "ge": "2026-01-01"},
        {"type": "float", "ge": "nan"},
        {"type": "boolean", "ge": 1},
    ],
)
def test_a_limit_that_does_not_go_with_its_type_is_a_definition_error(column: dict[str, Any]) -> None:
    names = {
        "integer": "BIGINT",
        "string": "VARCHAR",
        "timestamptz": "TIMESTAMP",
        "float": "DOUBLE",
        "boolean": "BOOLEAN",
    }
    with pytest.raises(DefinitionError):
        judge.build(written(c=column), {"c": names[column["type"]]}, NOWHERE, [])


def test_a_key_must_be_in_the_contract_and_tell_rows_apart() -> None:
    asked = written(id={"type": "float"})
    with pytest.raises(DefinitionError, match="cannot identify rows reliably"):
        judge.build(asked, {"id": "DOUBLE"}, NOWHERE, ["id"])
    with pytest.raises(DefinitionError, match="not in the contract"):
        judge.build(asked, {"id": "DOUBLE", "k": "BIGINT"}, NOWHERE, ["k"])


def test_a_contract_file_has_the_columns_at_its_top(tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_text("id: {type: integer, sensitive: true}\n")
    made = judge.build(contracts.Contract(file="c.yml"), {"id": "BIGINT"}, tmp_path, ["id"])
    assert made.columns["id"].sensitive
    (tmp_path / "c.yml").write_text("id: {type: int}\n")
    with pytest.raises(DefinitionError, match=r"id\.type"):
        judge.build(contracts.Contract(file="c.yml"), {"id": "BIGINT"}, tmp_path, ["id"])
    with pytest.raises(DefinitionError, match="cannot be read"):
        judge.build(contracts.Contract(file="gone.yml"), {"id": "BIGINT"}, tmp_path, ["id"])


def test_a_plain_model_is_cleared_in_sql(tmp_path: Path) -> None:
    asked = model(
        tmp_path,
        "plain_model",
        """
class Mood(str, Enum):
    up = "up"
class Row(BaseModel):
    id: Annotated[str, Field(min_length=1, max_length=3)]
    mood: Mood
    size: Literal["s", "m"] | None
    amount: Decimal = Field(max_digits=5, decimal_places=2, ge=0)
    born: Optional[date] = Field(None, json_schema_extra={"sensitive": True})
    at: datetime
    tags: list[str]
    ok: bool
    uid: UUID
    n: int = Field(gt=0, alias="count")
    f: float
""",
    )
    types = {
        "id": "VARCHAR", "mood": "VARCHAR", "size": "VARCHAR", "amount": "DOUBLE", "born": "DATE", "at": "TIMESTAMP",
        "tags": "VARCHAR[]", "ok": "BOOLEAN", "uid": "UUID", "count": "INTEGER", "f": "DECIMAL(5,2)",
    }  # fmt: skip
    made = judge.build(asked, types, tmp_path, ["id"])
    assert made.prefilter() != "FALSE"
    assert made.columns["born"].sensitive
    assert str(made.columns["amount"].type) == "decimal(5,2)"
    good = "'a' AS id, 'up' AS mood, NULL::VARCHAR AS size, 0.1::DOUBLE AS amount, NULL::DATE AS born, TIMESTAMP '2026-01-01' AS at, ['x'] AS tags, TRUE AS ok, uuid() AS uid, 1 AS count, 1.5::DECIMAL(5,2) AS f"
    bad = [
        good.replace("'up'", "'Up'"), good.replace("NULL::VARCHAR", "'l'"), good.replace("['x']", "['x', NULL]"),
        good.replace("1 AS count", "0 AS count"), good.replace("0.1::", "0.111::"),
    ]  # fmt: skip
    relation = "(" + " UNION ALL ".join(f"(SELECT {row})" for row in [good, *bad]) + ")"
    found = verdicts(made, relation)
    assert [cleared for cleared, _ in found] == [True] + [False] * 5
    assert codes(made, relation) == [
        None,
        "NOT_ONE_OF",
        "NOT_ONE_OF",
        "TYPE",
        "OUT_OF_RANGE",
        "UNREPRESENTABLE",
    ]


def test_a_model_with_code_clears_nothing_and_may_not_change_values(tmp_path: Path) -> None:
    text = """
class Row(BaseModel):
    id: str
    n: int
    @field_validator("id")
    def _trim(cls, value):
        if value == "bad":
            raise ValueError(f"no {value}")
        if value == "crash":
            return 1 / 0
        return value.strip()
"""
    asked = model(tmp_path, "edit_model", text)
    mart = {"id": "VARCHAR", "n": "BIGINT"}
    relation = "(VALUES ('a', 1), (' a', 2), ('bad', 3), ('crash', 4)) AS t(id, n)"
    made = judge.build(asked, mart, tmp_path, ["id"])
    assert made.prefilter() == "FALSE"
    assert codes(made, relation) == [None, "CONTRACT_EDITED", "MODEL", "MODEL"]
    assert not [
        judged
        for _, judged in verdicts(made, relation)
        if isinstance(judged, Verdict) and "no bad" in judged.reason
    ]
    edits = judge.build(asked.model_copy(update={"edits": True}), mart, tmp_path, ["id"])
    assert edits.edits
    assert [judged for _, judged in verdicts(edits, relation)][:2] == [
        {"id": "a", "n": 1},
        {"id": "a", "n": 2},
    ]


def test_a_row_is_looked_at_twice_unless_the_model_leaves_every_value_alone(tmp_path: Path) -> None:
    """1 is no True, and what a model replaces by its equal is as it was."""
    text = """
class Row(BaseModel):
    id: str
    n: int
    mood: Literal["good", "bad"]
    price: Decimal
    @field_validator("n")
    @classmethod
    def _told(cls, value, info):
        return {"flag": bool(value), "float": float(value), "same": int(str(value))}.get(info.data["id"], value)
"""
    columns = {"id": "VARCHAR", "n": "BIGINT", "mood": "VARCHAR", "price": "DECIMAL(9,2)"}
    made = judge.build(model(tmp_path, "twice_model", text), columns, tmp_path, ["id"])
    names = ("plain", "same", "flag", "float", "misfit", "refused")
    price = Decimal("1.50")
    rows = [
        (name, 1, "odd" if name == "refused" else "good", price, "n" if name == "misfit" else None, number)
        for number, name in enumerate(names)
    ]
    assert [row[0] for row in made.doubtful(rows)] == ["flag", "float", "misfit", "refused"]
    verdicts = made.judge([dict(zip((*columns, MISFIT), row, strict=False)) for row in rows])
    said = [None if verdict is None else verdict.code for verdict in verdicts]
    assert said == [None, None, "CONTRACT_EDITED", "CONTRACT_EDITED", "UNREPRESENTABLE", "NOT_ONE_OF"]


def test_an_edit_that_cannot_be_carried_is_refused(tmp_path: Path) -> None:
    asked = model(
        tmp_path,
        "wild_model",
        """
class Row(BaseModel):
    s: str
    n: int
    d: Decimal = Field(max_digits=5, decimal_places=2)
    f: float
    @model_validator(mode="after")
    def _wild(self):
        if self.s == "s": self.s = "\\0"
        if self.s == "n": self.n = 2**63
        if self.s == "d": self.d = Decimal("1.001")
        if self.s == "f": self.f = float("nan")
        if self.s == "t": self.n = True
        return self
""",
    ).model_copy(update={"edits": True})
    made = judge.build(
        asked, {"s": "VARCHAR", "n": "BIGINT", "d": "DECIMAL(5,2)", "f": "DOUBLE"}, tmp_path, ["s"]
    )
    relation = "(SELECT s, 5::BIGINT AS n, 1.5::DECIMAL(5,2) AS d, 1.5::DOUBLE AS f FROM (VALUES ('s'), ('n'), ('d'), ('f'), ('t'), ('ok')) t(s))"
    assert codes(made, relation) == ["UNREPRESENTABLE"] * 5 + [None]


def test_a_nested_model_is_json_as_it_was_written(tmp_path: Path) -> None:
    asked = model(
        tmp_path,
        "nested_model",
        """
class Inner(BaseModel):
    a: int
    x: float
class Row(BaseModel):
    id: int
    inside: Inner
""",
    )
    made = judge.build(asked, {"id": "BIGINT", "inside": "VARCHAR"}, tmp_path, ["id"])
    relation = """(VALUES (1, '{"a": 1, "x": 1.50}'), (2, '{"a": "x"}'), (3, '{"a": "1", "x": 1}')) AS t(id, inside)"""
    assert codes(made, relation)[:2] == [None, "TYPE"]
    assert codes(made, relation)[2] == "CONTRACT_EDITED"
    assert verdicts(made, relation)[0][1] == {"id": 1, "inside": '{"a": 1, "x": 1.50}'}


def test_an_unknown_model_or_type_is_a_definition_error(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="cannot be imported"):
        judge.build(contracts.Contract(model="no_such_module:Row"), {}, tmp_path, [])
    with pytest.raises(DefinitionError, match="is not a Pydantic model"):
        judge.build(contracts.Contract(model="pathlib:Path"), {}, tmp_path, [])
    asked = model(tmp_path, "bytes_model", "class Row(BaseModel):\n    b: bytes\n")
    with pytest.raises(DefinitionError, match="field b"):
        judge.build(asked, {"b": "BLOB"}, tmp_path, [])


def test_a_type_of_ones_own_is_left_to_the_model(tmp_path: Path) -> None:
    asked = model(
        tmp_path,
        "own_type_model",
        """
from typing import NewType
Code = NewType("Code", str)
class Row(BaseModel):
    a: Code
    b: int | str
    c: Annotated[str, AfterValidator(lambda value: value)]
    d: Annotated[str, StringConstraints(strip_whitespace=True)]
""",
    )
    made = judge.build(asked, dict.fromkeys("abcd", "VARCHAR"), tmp_path, ["a"])
    assert made.prefilter() == "FALSE"
    assert not any(rule.plain for rule in made.columns.values())
    assert codes(made, "(VALUES ('x', 'y', 'z', 'd'), ('x', 'y', 'z', ' d')) AS t(a, b, c, d)") == [
        None,
        "CONTRACT_EDITED",
    ]
    asked = model(tmp_path, "digits_model", "class Row(BaseModel):\n    d: Decimal\n")
    with pytest.raises(DefinitionError, match="field d"):
        judge.build(asked, {"d": "DOUBLE"}, tmp_path, [])
    assert str(judge.build(asked, {"d": "DECIMAL(7,3)"}, tmp_path, []).columns["d"].type) == "decimal(7,3)"


@pytest.mark.parametrize(
    ("limit", "passing"),
    [
        ("ge", ["0.01", "0.02"]),
        ("gt", ["0.01", "0.02"]),
        ("le", ["-0.01", "0.00"]),
        ("lt", ["-0.01", "0.00"]),
    ],
)
def test_a_limit_finer_than_the_column_is_rounded_inwards(limit: str, passing: list[str]) -> None:
    column = {"type": "decimal", "max_digits": 5, "decimal_places": 2, limit: "0.005"}
    made = judge.build(written(d=column), {"d": "DECIMAL(5,2)"}, NOWHERE, [])
    found = verdicts(made, "(SELECT d::DECIMAL(5,2) AS d FROM (VALUES (-0.01), (0.00), (0.01), (0.02)) t(d))")
    assert [cleared for cleared, _ in found] == [isinstance(judged, dict) for _, judged in found]
    assert [str(judged["d"]) for _, judged in found if isinstance(judged, dict)] == passing


def test_a_collation_does_not_clear_another_case() -> None:
    made = judge.build(written(a={"type": "string", "one_of": ["up"]}), {"a": "VARCHAR"}, NOWHERE, ["a"])
    con.execute("CREATE OR REPLACE TABLE collated (a VARCHAR COLLATE NOCASE)")
    con.execute("INSERT INTO collated VALUES ('UP'), ('up')")
    assert codes(made, "collated") == ["NOT_ONE_OF", None]


@pytest.mark.parametrize(
    "pattern",
    [
        r"^\d{5}$",
        r"^[^@\s]+@[^@]+$",
        r"\bx",
        r"^(a|b)*$",
        r"(?i)a",
        r"[\w.+-]+@x\.de",
        "[[:alpha:]]",
        "ä",
        "[a-z&&[^b]]",
        r"^.$",
    ],
)
def test_a_pattern_clears_nothing_that_it_refuses(pattern: str) -> None:
    made = judge.build(written(a={"type": "string", "pattern": pattern}), {"a": "VARCHAR"}, NOWHERE, ["a"])
    texts = [
        "",
        "12345",
        "12345\n",
        "١٢٣٤٥",
        "a@b",
        "a @b",
        "x",
        "äx",
        "ab",
        "A",
        "\u017f",
        "K",
        "a.b@x.de",
        "b",
        "c",
        "ä",
        "\n",
        "👨‍👩‍👧",
        "e\u0301",
    ]
    relation = "(VALUES " + ", ".join(f"({sql.literal(text)})" for text in texts) + ") AS t(a)"
    codes(made, relation)


# --- the property: SQL never clears what Pydantic refuses ---------------------------------------------

texts = st.sampled_from(
    ["", " ", "a", "A", "ab", "abc", "NULL", "e\u0301", "👨‍👩‍👧", "ß", "a\n", "1", "é", "a' b"]
) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4)
STRINGS = st.fixed_dictionaries(
    {"type": st.just("string")},
    optional={
        "min_length": st.integers(0, 3),
        "max_length": st.integers(0, 4),
        "pattern": st.sampled_from(["^a", "a$", "^[a-z]*$", r"^\w+$", "^.$", "^[^a]+$", r"\s", "^(a|b)?$"]),
        "nullable": st.booleans(),
    },
) | st.fixed_dictionaries(
    {"type": st.just("string"), "one_of": st.lists(texts, min_size=1, max_size=3, unique=True)}
)
limits = st.sampled_from([0, -1, 1, "0.005", "-0.1", 0.1, "1e3", 2**53 + 1, 2**63 - 1, 10**40, "-1e30"])
wholes = st.sampled_from([0, 1, -1, 7, 2**53 + 1, 2**63 - 1, -(2**63), 2**63])
NUMBERS = st.fixed_dictionaries(
    {"type": st.sampled_from(["float", "decimal"])},
    optional=dict.fromkeys(("ge", "gt", "le", "lt"), limits) | {"nullable": st.booleans()},
)
INTEGERS = st.fixed_dictionaries(
    {"type": st.just("integer")},
    optional=dict.fromkeys(("ge", "gt", "le", "lt"), wholes) | {"nullable": st.booleans()},
)
days = st.sampled_from(["0001-01-01", "1969-12-31", "2026-11-21", "9999-12-31"])
DAYS = st.fixed_dictionaries(
    {"type": st.sampled_from(["date", "timestamp"])},
    optional=dict.fromkeys(("ge", "gt", "le", "lt"), days),
)
LISTS = st.fixed_dictionaries(
    {"type": st.just("list"), "items": st.just("integer")},
    optional={"min_length": st.integers(0, 2), "max_length": st.integers(0, 3)},
)
numbers = [
    "0",
    "1",
    "-1",
    "0.1",
    "0.005",
    "-0.005",
    "1.5",
    "999.99",
    "9007199254740993",
    "9223372036854775807",
    "-9223372036854775808",
    "1e22",
]
STORED = {
    "string": (["VARCHAR"], texts),
    "integer": (["BIGINT", "HUGEINT", "DOUBLE", "DECIMAL(38,3)", "UBIGINT", "TINYINT"], st.sampled_from(numbers)),
    "decimal": (["DECIMAL(38,10)", "DOUBLE", "FLOAT", "HUGEINT", "DECIMAL(6,3)"], st.sampled_from([*numbers, "nan", "inf", "-inf"])),
    "float": (["DOUBLE", "FLOAT", "BIGINT", "DECIMAL(38,10)"], st.sampled_from([*numbers, "nan", "inf", "-inf", "-0.0"])),
    "date": (["DATE"], days | st.sampled_from(["infinity", "-infinity", "10000-01-01", "0001-01-01 (BC)"])),
    "timestamp": (["TIMESTAMP", "TIMESTAMP_NS"], days | st.sampled_from(["infinity", "2026-01-01 00:00:00.123456789", "290000-01-01"])),
    "list": (["BIGINT[]", "HUGEINT[]"], st.sampled_from(["[]", "[1]", "[1, NULL]", "[1, 2, 3, 4]", "[9223372036854775808]"])),
}  # fmt: skip


def test_the_least_integer_is_not_beyond_itself() -> None:
    column = contracts.Column(type="integer", gt=-(2**63))
    made = judge.build(contracts.Contract(columns={"c": column}), {"c": "BIGINT"}, Path(), ["c"])
    with duckdb.connect() as con:
        con.execute(f"CREATE TABLE mart AS SELECT CAST({-(2**63)} AS BIGINT) AS c")
        assert con.execute(f"SELECT {made.prefilter()} FROM mart").fetchone() == (False,)


@given(st.data(), STRINGS | NUMBERS | INTEGERS | DAYS | LISTS)
def test_sql_never_clears_what_pydantic_refuses(data: st.DataObject, column: dict[str, Any]) -> None:
    kind = column["type"]
    if kind == "decimal":
        places = data.draw(st.sampled_from([0, 2, 10]))
        column |= {"decimal_places": places, "max_digits": data.draw(st.sampled_from([10, 38]))}
    column_types, stored = STORED[kind]
    column_type = data.draw(st.sampled_from(column_types))
    made = judge.build(written(c=column), {"c": column_type}, NOWHERE, [])
    given_texts = data.draw(st.lists(stored | st.none(), min_size=1, max_size=6))
    rows = ", ".join("(NULL)" if text is None else f"({sql.literal(text)})" for text in given_texts)
    relation = f"(SELECT TRY_CAST(x AS {column_type}) AS c FROM (VALUES {rows}, (NULL)) t(x))"
    con.execute(f"CREATE OR REPLACE TABLE hostile AS FROM {relation}")
    for cleared, judged in verdicts(made, "hostile"):
        assert isinstance(cleared, bool)
        assert not (cleared and isinstance(judged, Verdict)), judged
        if isinstance(judged, dict):
            value = judged["c"]
            assert not isinstance(value, Decimal | float) or value == value
            assert not isinstance(value, date | datetime) or value.year <= 9999
        elif judged.code != "UNREPRESENTABLE":
            assert re.fullmatch("[A-Z_]+", judged.code)


def test_what_is_good_is_cleared_and_not_only_judged() -> None:
    made = judge.build(
        written(
            a={"type": "float", "ge": 0},
            b={"type": "decimal", "max_digits": 38, "decimal_places": 2, "lt": "1e30"},
            c={"type": "timestamptz"},
        ),
        {"a": "DOUBLE", "b": "DOUBLE", "c": "TIMESTAMP"},
        NOWHERE,
        [],
        timezone="Europe/Vienna",
    )
    ((cleared, judged),) = verdicts(
        made, "(SELECT 0.5::DOUBLE AS a, 0.1::DOUBLE AS b, TIMESTAMP '2026-11-21 07:00:00' AS c)"
    )
    assert cleared
    assert isinstance(judged, dict)
    assert (judged["b"], judged["c"].isoformat()) == (Decimal("0.10"), "2026-11-21T06:00:00+00:00")
