"""Definitions with variables → models; every error at once and each at its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retl.errors import DefinitionError
from retl.project.definitions import Sync
from retl.project.settings import Environment
from retl.project.validation import DefinitionErrors, each, validate
from retl.project.variables import Filled, fill
from retl.project.yamlfile import load

BASE = "source: {table: m}\nkey: [id]\ndestination: {type: redis}\n"
NOWHERE = Path("/nonexistent")


def filled(text: str, **environ: str) -> Filled:
    return fill(load(Path("syncs/a.yml"), text), Environment(NOWHERE, environ=environ))


def sync(text: str, **environ: str) -> Sync:
    return validate(Sync, filled(BASE + text, **environ), name="a")


def errors(text: str, base: str = BASE, **environ: str) -> dict[str, DefinitionError]:
    with pytest.raises(DefinitionError) as caught:
        validate(Sync, filled(base + text, **environ), name="a")
    return {str(error.where).removeprefix("syncs/a.yml:"): error for error in each(caught.value)}


def only(text: str, **environ: str) -> DefinitionError:
    (error,) = errors(text, **environ).values()
    return error


def test_every_error_of_a_file_is_reported_at_its_place() -> None:
    found = errors(
        "tag: [a]\nenabled: no\nguards: {max_reject_rat: 1, max_delete_rate: 2, min_rows: 0777}\n"
        "contract: {id: {type: strin}, x: {typ: string}}\nfields: {a: {colum: x}}\nname: b\n"
    )
    assert {place: (error.code, error.hint) for place, error in found.items()} == {
        "4:1": ("OPTION_UNKNOWN", "did you mean 'tags'?"),
        "5:10": ("DEFINITION_INVALID", found["5:10"].hint),
        "6:10": ("OPTION_UNKNOWN", "did you mean 'max_reject_rate'?"),
        "6:46": ("DEFINITION_INVALID", None),
        "6:59": ("DEFINITION_INVALID", found["6:59"].hint),
        "7:23": ("DEFINITION_INVALID", "did you mean 'string'?"),
        "7:35": ("OPTION_UNKNOWN", "did you mean 'type'?"),
        "8:14": ("OPTION_UNKNOWN", "did you mean 'column'?"),
        "9:1": ("OPTION_UNKNOWN", found["9:1"].hint),
    }
    assert list(found) == sorted(found)
    assert found["5:10"].hint == "for 'no' write false"


def test_several_errors_print_one_per_line() -> None:
    with pytest.raises(DefinitionErrors) as caught:
        sync("a: 1\nb: 1\n")
    assert str(caught.value).splitlines() == [
        "syncs/a.yml:4:1: there is no key 'a' here [OPTION_UNKNOWN]",
        "syncs/a.yml:5:1: there is no key 'b' here [OPTION_UNKNOWN]",
    ]


@pytest.mark.parametrize("text", ["", "- a\n", "text\n"])
def test_a_file_that_is_no_mapping_is_refused(text: str) -> None:
    assert list(errors(text, base="")) == ["1:1"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("write: append\n", "needs `first_run`"),
        (
            "write: append\nfirst_run: send\ndeletes: delete\n",
            "`deletes` is not possible with `write: append`",
        ),
        ("changes: all\ndeletes: delete\n", "needs `changes: hash`"),
        ("changes: watermark\n", "watermark: column"),
        ("changes: {watermark: t, hash: {}}\n", "`watermark` has only the option lookback"),
        ("changes: {hash: {ignored: [a]}}\n", "`hash` has only the option ignore"),
        ("changes: {strategy: hash}\n", "`changes` must be hash"),
        ("changes: {watermark: t, lookback: 1 hour}\n", "a duration must be"),
        ("deletes: {how: delete}\n", "`deletes`: must be keep"),
        ("deletes: {set: {}}\n", "at least one field"),
        (
            "deletes: {set: {a: 1}, restore: {b: 1}}\n",
            "b, which is not in `set`; it can only restore what `set` changed",
        ),
        ("contract: users\n", "`contract` must be columns"),
        ("contract: {a: {type: decimal}}\n", "max_digits"),
        ("fields: {a: {column: x, value: 1}}\n", "exactly one of"),
        ("fields: {a: $run_day}\n", "$run_id"),
        ("fields: {a: '*'}\n", "* has no other use"),
        ("fields: {'*': a}\n", "* has no other use"),
        ("fields: {a: {value: x, transform: [lower]}}\n", "`transform` is only for"),
        ("batch: {rows: 0}\n", "greater than or equal to 1"),
        ("source: {}\n", "twice"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(text: str, says: str) -> None:
    with pytest.raises(DefinitionError, match=r"syncs/a.yml:[0-9]+:[0-9]+: ") as caught:
        sync(text)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["when", "conflicts", "rollback", "contract"])
def test_a_sentence_names_its_option_once(name: str) -> None:
    said = only(f"{name}: sometimes\n").message
    assert said.count(f"`{name}`") == 1, said


def test_every_spelling_of_the_grammar_is_understood() -> None:
    found = sync(
        "changes: {hash: {ignore: [b]}}\ndeletes: {set: {a: 1}, restore: {a: 0}}\ncontract: c/u.yml\n"
        "fields: {'*': '*', a: x, b: $run_id, c: {value: 1}, d: {column: y, nulls: keep, transform: [trim]}}\n"
    )
    assert (found.changes.strategy, found.changes.ignore) == ("hash", ("b",))
    assert (found.deletes.how, found.deletes.set) == ("set", {"a": 1})
    assert found.contract is not None
    assert found.contract.file == "c/u.yml"
    assert found.fields is not None
    assert (found.fields["a"].column, found.fields["b"].run_value, found.fields["c"].value) == (
        "x",
        "$run_id",
        1,
    )
    other = sync("changes: {watermark: t, lookback: 1h30m}\ncontract: {model: my.mod:User, edits: true}\n")
    assert (other.changes.strategy, other.changes.watermark, other.changes.lookback) == (
        "watermark",
        "t",
        5400,
    )
    assert other.contract is not None
    assert (other.contract.model, other.contract.edits) == ("my.mod:User", True)
    assert sync("contract: my_marts.contracts:User\n").contract is not None


def test_a_variable_may_hold_a_number_or_a_truth_value() -> None:
    found = sync(
        'enabled: "${E}"\nguards: {max_reject_rate: "${R}", min_rows: "${M:-3}"}\n', E="false", R="0.5"
    )
    assert (found.enabled, found.guards.max_reject_rate, found.guards.min_rows) == (False, 0.5, 3)
    assert "number" in only('guards: {max_reject_rate: "${R}"}\n', R="many").message


def test_what_came_out_of_a_variable_is_never_read_again() -> None:
    found = sync('description: "${A} $${A} ${B:-$x}"\n', A="${HOME} $${A}")
    assert found.description == "${HOME} $${A} ${A} $x"


def test_an_unset_variable_is_reported_and_not_judged() -> None:
    waiting = filled(BASE + 'description: "${D}"\nguards: {min_rows: "${M}"}\nwrite: ${W}\n', D="")
    found = validate(Sync, waiting, name="a")
    assert (found.description, found.guards.min_rows, found.write) == ("${D}", None, "upsert")
    missing = {one.name: str(one.place) for one in waiting.all_missing()}
    assert missing == {"D": "syncs/a.yml:4:14", "M": "syncs/a.yml:5:20", "W": "syncs/a.yml:6:8"}
    error = waiting.all_missing()[0].error()
    assert (error.code, "D is not set or is empty" in error.message) == ("VARIABLE_UNSET", True)


def test_a_variable_that_a_definition_cannot_do_without_is_named() -> None:
    found = errors("source: {table: m}\nkey: ${K}\ndestination: {type: redis}\n", base="")
    assert {place: error.code for place, error in found.items()} == {"2:6": "VARIABLE_UNSET"}


def test_errors_beside_an_unset_variable_are_still_reported() -> None:
    assert list(errors('guards: {min_rows: "${M}"}\nwrite: no\n')) == ["5:8"]


@pytest.mark.parametrize("text", ["${}", "${1A}", "${A", "${A B}", "${A-b}"])
def test_what_names_no_variable_is_refused_at_its_place(text: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        filled(f'a: "{text}"\n', A="1")
    assert (caught.value.code, str(caught.value.where)) == ("VARIABLE_INVALID", "syncs/a.yml:1:4")


def test_no_value_of_a_variable_is_in_an_error() -> None:
    environ: dict[str, Any] = {"S": "hunter22"}
    found = errors(
        "enabled: ${S}\nwrite: ${S}\nguards: ${S}\ntimeout: ${S}\nkey: 1\n".replace("key: 1\n", ""), **environ
    )
    assert len(found) == 4
    assert not any("hunter22" in f"{error} {error.hint}" for error in found.values())
