"""Text → values with places: what is typed, what stays text, what is refused and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retl.errors import DefinitionError, Place
from retl.project.yamlfile import MAX_BYTES, Tree, load

FILE = Path("syncs/a.yml")


def read(text: str) -> Tree:
    return load(FILE, text)


def refusal(text: str) -> DefinitionError:
    with pytest.raises(DefinitionError) as caught:
        read(text)
    return caught.value


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("0", 0),
        ("-12", -12),
        ("1.50", 1.5),
        ("-1e3", -1000.0),
        ('"1"', "1"),
        ("''", ""),
        ("|\n  1\n", "1\n"),
        *((word, word) for word in ("no", "yes", "on", "off", "n", "True", "NULL", "0777", "0o17", "0x1F")),
        *(
            (word, word)
            for word in ("12:30:00", "2026-11-20", "1_000", "+1", ".5", "1.", ".inf", ".nan", "1e999")
        ),
    ],
)
def test_only_json_like_scalars_are_typed(written: str, value: object) -> None:
    tree = read(f"a: {written}")
    assert tree.value == {"a": value}
    assert type(tree.value["a"]) is type(value)


def test_every_value_and_key_knows_its_place() -> None:
    tree = read("key: [a, b]\nsource:\n  table: mart\n")
    assert tree.value == {"key": ["a", "b"], "source": {"table": "mart"}}
    assert tree.place(("key", 1)) == Place("syncs/a.yml", 1, 10)
    assert tree.place(("source", "table")) == Place("syncs/a.yml", 3, 10)
    assert tree.key_place(("source", "table")) == Place("syncs/a.yml", 3, 3)
    assert tree.place(()) == Place("syncs/a.yml", 1, 1)


def test_parts_of_a_location_that_nobody_wrote_are_passed_over() -> None:
    tree = read("contract:\n  id: {type: string}\n")
    assert tree.place(("contract", "columns", "id", "type")) == Place("syncs/a.yml", 2, 14)
    assert tree.place(("source",)) == Place("syncs/a.yml", 1, 1)


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", "3:1", "'a' is used twice; the first is on line 1"),
        ("x: {a: 1, a: 2}\n", "1:11", "'a' is used twice"),
        ("a: &x 1\n", "1:4", "anchors"),
        ("a: *x\n", "1:4", "aliases"),
        ("*x : 1\n", "1:1", "aliases"),
        ("<<: {a: 1}\n", "1:1", "merge keys"),
        ("a: !!python/object:os.system x\n", "1:4", "tags"),
        ("!t a: 1\n", "1:1", "tags"),
        ("1: a\n", "1:1", "a key must be text"),
        ("null: a\n", "1:1", "a key must be text"),
        ("? [a]\n: 1\n", "1:3", "a key must be text"),
        ("---\na: 1\n---\nb: 1\n", "3:1", "one document"),
        ("a:\n\tb: 1\n", "2:1", "tab"),
        ("a: 1\n\tb: 2\n", "2:1", "tab"),
        ("a: 1\nb: \x07\n", "2:4", "control characters"),
        ("a: b: c\n", "1:5", "a value with ': ' in it must be quoted"),
        ("a: 'x\n", "1:4", "nothing closes this quote"),
        ('a: 1\nb: "x\nc: 1\n', "2:4", "nothing closes this quote"),
        ("a: 1\ncontract\n  b: {c: 1}\n", "2:1", "this line has no ':' after its key"),
        ("a: 1\nb 2\nc: 3\n", "2:1", "this line has no ':' after its key"),
        ("a:\n  b: {c: 1}\n   d: 2\n", "3:4", "not indented like the lines above it"),
        ("a:\n   b: {c: 1}\n  d: 2\ne: 3\n", "3:3", "not indented like the lines above it"),
        ("a:\n  b: 1\n   c: 2\n", "3:5", "does not fit the one above it"),
        ("a: {b: 1\nc: 2\n", "1:4", "nothing closes this '{'"),
        ("a: [b, c\nd: 1\n", "1:4", "nothing closes this '['"),
        ("a: {b: 1 c: 2}\n", "1:11", "before ':' a comma or the end of {…} or […] is missing"),
        ('a: "x" y\n', "1:8", "the value ended before 'y': quote the whole value"),
        ("a: {b: 1}}\n", "1:10", "the value ended before '}'"),
        ("a: @x\n", "1:4", "a value that starts with '@' must be quoted"),
    ],
)
def test_what_a_reader_could_not_see_is_refused_with_its_place(text: str, place: str, says: str) -> None:
    error = refusal(text)
    assert str(error.where) == f"syncs/a.yml:{place}"
    assert says in error.message
    assert error.exit_code == 2


@pytest.mark.parametrize("text", ["c: {password: ${NAME}}\n", "c: [x, ${NAME}]\n", "é: {p: x${A}y}\n"])
def test_an_unquoted_variable_inside_braces_is_told_to_be_quoted(text: str) -> None:
    error = refusal(text)
    assert error.code == "YAML_UNQUOTED"
    assert "must be quoted" in error.message
    assert error.hint is not None
    assert '"${NAME}"' in error.hint


def test_a_variable_outside_braces_needs_no_quotes() -> None:
    assert read("password: ${NAME}\nkey: reco:{user_id}\n").value == {
        "password": "${NAME}",
        "key": "reco:{user_id}",
    }


def test_a_byte_order_mark_and_windows_line_ends_are_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "a.yml"
    path.write_bytes("\ufeffa: 1\r\nb:\r\n  - x\r\n".encode())
    tree = load(path, name="a.yml")
    assert tree.value == {"a": 1, "b": ["x"]}
    assert tree.place(("b", 0)) == Place("a.yml", 3, 5)


def test_a_file_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yml"
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(DefinitionError, match="not UTF-8") as caught:
        load(path, name="a.yml")
    assert caught.value.where == Place("a.yml", 2)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="No such file"):
        load(tmp_path / "none.yml")


def test_an_empty_file_is_no_value() -> None:
    assert read("").value is None
    assert read("# nothing\n").value is None
    assert read("").place(("a",)) == Place("syncs/a.yml", 1, 1)


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 5000 + "]" * 5000,
        "a: " + "{a: " * 5000 + "1" + "}" * 5000,
        "\n".join(" " * depth + "a:" for depth in range(1000)),
        "- " * 5000 + "x",
        "a: " + "x" * (MAX_BYTES + 1),
    ],
)
def test_a_file_that_nests_or_swells_is_refused_at_once(text: str) -> None:
    error = refusal(text)
    assert error.code == "YAML_LIMIT"


def test_a_billion_laughs_stop_at_the_first_anchor() -> None:
    lines = ['a0: &a0 "ha"'] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert "anchors" in refusal("\n".join(lines)).message


def test_a_large_file_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.yml"
    with path.open("wb") as file:
        file.truncate(10 * 1024**3)
    with pytest.raises(DefinitionError) as caught:
        load(path)
    assert caught.value.code == "YAML_LIMIT"


def test_defaults_lie_under_a_file_and_keep_their_places() -> None:
    lower = load(Path("retl.yml"), "defaults:\n  guards: {min_rows: 1, max_row_drop: 0.1}\n  write: append\n")
    upper = read("guards: {min_rows: 5}\nwrite: upsert\n")
    both = upper.over(lower, ("defaults",), frozenset({"guards"}))
    assert both.value == {"guards": {"min_rows": 5, "max_row_drop": 0.1}, "write": "upsert"}
    assert both.place(("guards", "max_row_drop")) == Place("retl.yml", 2, 39)
    assert both.place(("guards", "min_rows")) == Place("syncs/a.yml", 1, 20)


def test_values_replaced_whole_leave_nothing_of_the_default() -> None:
    lower = load(Path("retl.yml"), "defaults: {changes: {watermark: t}, guards: {min_rows: 1}}")
    upper = read("changes: {hash: {ignore: [a]}}\nguards: 1\n")
    both = upper.over(lower, ("defaults",), frozenset({"guards"}))
    assert both.value == {"changes": {"hash": {"ignore": ["a"]}}, "guards": 1}


@given(st.text(max_size=60))
def test_any_text_is_a_value_or_a_refusal_with_a_place(text: str) -> None:
    try:
        tree = read(text)
    except DefinitionError as error:
        place = error.where
    else:
        place = tree.place(())
        check_places(tree, tree.value, ())
    assert isinstance(place, Place)


def check_places(tree: Tree, value: Any, loc: tuple[str | int, ...]) -> None:
    assert tree.places[loc].line is not None
    items: Any = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for part, inner in items:
        check_places(tree, inner, (*loc, part))
