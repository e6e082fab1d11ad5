"""Presets as types of connections: resolved, refused with a place, a project's own, and run to the end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from retl.app.loaded import Resolved
from retl.app.resolve import open_project
from retl.destinations import load, preset_names
from retl.destinations.api import About
from retl.destinations.batch import Field, Shape
from retl.errors import DefinitionError
from retl.observe import redact
from retl.project.validation import each
from retl.testing import FakeHubSpotLists, FakeKlaviyo
from retl.values.types import Type
from tests import duckdb_files, inprocess
from tests.api import TOKEN
from tests.inprocess import Said

HEAD = "source: {table: m}\nkey: [email]\n"
RETL_YML = 'connections:\n  crm: {type: hubspot, token: "${HUBSPOT_TOKEN}"%s}\n'
OWN = """
summary: The shop's own service
docs: Customers of the shop.
evidence: [docs]
source: the shop
checked_on: 2026-11-21
connection:
  token: {about: Its token., secret: true}
parameters:
  shop: {about: Which shop., type: integer}
base_url: https://shop.example.com
auth: {type: bearer, token: <token>}
upsert: {path: /shops/<shop>/customers, wrap: customers, max_rows: 50}
limits: {requests: 10, per: 1s, source: the shop, checked_on: 2026-11-21}
example: none
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    redact.forget()
    (tmp_path / "syncs").mkdir()
    yield tmp_path
    redact.forget()


def resolved(folder: Path, destination: str, project: str, **environ: str) -> Resolved:
    (folder / "syncs" / "a.yml").write_text(f"{HEAD}destination: {destination}\n")
    (folder / "retl.yml").write_text(project)
    loaded = open_project(folder, environ=environ)
    return loaded.destination(loaded.syncs["a"])


def refusals(folder: Path, destination: str, project: str, **environ: str) -> list[tuple[str, str]]:
    with pytest.raises(DefinitionError) as caught:
        resolved(folder, destination, project, **environ)
    return [(str(error.where), error.code) for error in each(caught.value)]


def codes(act: Callable[[], object]) -> set[str]:
    """The codes of the errors that it ends with, if any."""
    try:
        act()
    except DefinitionError as error:
        return {one.code for one in each(error)}
    return set()


def test_a_preset_is_a_type_of_connection(folder: Path) -> None:
    found: Any = resolved(folder, "{connection: crm, object: deals}", RETL_YML % "", HUBSPOT_TOKEN=TOKEN)
    assert found.destination is load("hubspot")
    assert found.options.http.upsert.path == "/crm/v3/objects/deals/batch/upsert"
    assert (found.limits.requests, found.limits.per, found.limits.share) == (100, 10, 0.5)
    assert TOKEN not in repr(found)
    assert redact.redact(f"it said {TOKEN}") == "it said ***"


def test_the_connection_s_own_limits_win(folder: Path) -> None:
    project = RETL_YML % ", limits: {share: 0.25, concurrency: 2}"
    limits = resolved(folder, "{connection: crm}", project, HUBSPOT_TOKEN=TOKEN).limits
    assert (limits.requests, limits.share, limits.concurrency) == (100, 0.25, 2)


@pytest.mark.parametrize(
    ("destination", "expected"),
    [
        ("{connection: crm, objct: deals}", ("syncs/a.yml:3:32", "OPTION_UNKNOWN")),
        ("{connection: crm, object: 5}", ("syncs/a.yml:3:40", "DEFINITION_INVALID")),
        ('{connection: crm, object: ""}', ("syncs/a.yml:3:14", "DEFINITION_INVALID")),
        ("{connection: crm, upsert: {path: /}}", ("syncs/a.yml:3:32", "OPTION_UNKNOWN")),
    ],
)
def test_what_does_not_fit_is_refused_where_it_was_written(
    folder: Path, destination: str, expected: tuple[str, str]
) -> None:
    assert refusals(folder, destination, RETL_YML % "", HUBSPOT_TOKEN=TOKEN) == [expected]


def test_a_key_that_the_connection_lacks_is_asked_for(folder: Path) -> None:
    assert refusals(folder, "{connection: crm}", "connections:\n  crm: {type: hubspot}\n") == [
        ("retl.yml:2:8", "OPTION_MISSING")
    ]
    assert refusals(folder, "{connection: crm}", "connections:\n  crm: {type: hubspt, token: x}\n") == [
        ("retl.yml:2:15", "DESTINATION_UNKNOWN")
    ]


@pytest.mark.parametrize("name", preset_names())
def test_a_project_is_valid_before_its_secrets_are_there(folder: Path, name: str) -> None:
    preset = load(name).preset  # type: ignore[attr-defined]
    keys = "".join(f', {key}: "${{{key.upper()}_OF_THE_TESTS}}"' for key in preset.connection)
    (folder / "retl.yml").write_text(f"connections:\n  {name}: {{type: {name}{keys}}}\n")
    (folder / "syncs" / "a.yml").write_text(preset.example)
    loaded = open_project(folder, environ={})
    assert {one.name for one in loaded.missing()} == {
        f"{key.upper()}_OF_THE_TESTS" for key in preset.connection
    }
    assert codes(lambda: loaded.destination(loaded.syncs["a"])) <= {"VARIABLE_UNSET"}


def test_an_operation_that_a_preset_has_not_got_says_what_it_takes(folder: Path) -> None:
    found: Any = resolved(
        folder, "{connection: crm, object: deals, delete: gdpr}", RETL_YML % "", HUBSPOT_TOKEN=TOKEN
    )
    shape = Shape("a", "s", (Field("email", Type("string")),), (), deletes="delete")
    with pytest.raises(DefinitionError) as caught:
        found.destination(found.options, shape)
    assert "`match: hs_object_id`" in caught.value.message


def test_a_project_has_presets_of_its_own(folder: Path) -> None:
    (folder / "presets").mkdir()
    (folder / "presets" / "shop.yml").write_text(OWN)
    project = f"connections:\n  shop: {{type: shop, token: {TOKEN}}}\n"
    found: Any = resolved(folder, "{connection: shop, shop: 7}", project)
    assert found.options.http.upsert.path == "/shops/7/customers"
    assert refusals(folder, "{connection: shop, shop: seven}", project) == [
        ("syncs/a.yml:3:39", "DEFINITION_INVALID")
    ]
    page = retl(folder, "destinations", "shop")
    assert "POST /shops/<shop>/customers" in page.out
    assert "The shop's own service" in retl(folder, "destinations").out


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("hubspot", OWN, ("presets/hubspot.yml", "PRESET_TWICE")),
        ("postgres", OWN, ("presets/postgres.yml", "PRESET_TWICE")),
        ("The-Shop", OWN, ("presets/The-Shop.yml", "PRESET_NAME")),
        ("shop", OWN + "upsrt: {}\n", ("presets/shop.yml:16:1", "OPTION_UNKNOWN")),
        ("shop", OWN.replace("<shop>", "<shp>"), ("presets/shop.yml:13:16", "DEFINITION_INVALID")),
        ("shop", OWN.replace("max_rows", "max_rws"), ("presets/shop.yml:13:58", "OPTION_UNKNOWN")),
        ("shop", OWN.replace("bearer,", "bearer, relm: x,"), ("presets/shop.yml:12:22", "OPTION_UNKNOWN")),
        ("shop", OWN.replace("/shops", "shops"), ("presets/shop.yml:13:9", "DEFINITION_INVALID")),
        ("shop", OWN + "check: {method: GET}\n", ("presets/shop.yml:16:8", "OPTION_MISSING")),
    ],
)
def test_a_preset_that_is_wrong_is_a_definition_error(
    folder: Path, name: str, text: str, expected: tuple[str, str]
) -> None:
    (folder / "presets").mkdir()
    (folder / "presets" / f"{name}.yml").write_text(text)
    assert refusals(folder, "{connection: crm}", RETL_YML % "", HUBSPOT_TOKEN=TOKEN) == [expected]


def retl(folder: Path, *words: str, **environ: str) -> Said:
    words = ("--project", str(folder), *words)
    return inprocess.answer(words, {**os.environ, **environ}, Path.cwd())


def process(folder: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "retl", "--project", str(folder), *words],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def shop(folder: Path, parts: str, destination: str = "shop: 7", parameters: str = "") -> Any:
    """The options of a sync to a shop with these operations, and these parameters beside its own."""
    operations, limits = OWN.partition("upsert:")[0], OWN.partition("limits:")[2]
    (folder / "presets").mkdir(exist_ok=True)
    text = operations.replace("base_url", parameters + "base_url") + parts + "\nlimits:" + limits
    (folder / "presets" / "shop.yml").write_text(text)
    project = f"connections:\n  shop: {{type: shop, token: {TOKEN}}}\n"
    return resolved(folder, f"{{connection: shop, {destination}}}", project)


PARAMETERS = """
  name: {about: A field., default: title}
  fields: {about: Fields., type: list, default: [a, b]}
  note: {about: A text., optional: true}
"""


@pytest.mark.parametrize(
    ("row", "given", "expected"),
    [
        ("{shop: <shop>, at: 'shop <shop>'}", "", {"shop": 7, "at": "shop 7"}),
        ("{t: $field.<name>}", "", {"t": "$field.title"}),
        (
            "{all: $field.<fields>, names: <fields>}",
            "",
            {"all": ["$field.a", "$field.b"], "names": ["a", "b"]},
        ),
        ("{<name>: $key, note: <note>, l: [<note>, 1]}", "", {"title": "$key", "l": [1]}),
        ("{a: <note>, b: '<note>!'}", ", note: $key", {"a": "$$key", "b": "$$key!"}),
        ("{$path: /a/<note>/$key}", ", note: a b/$c", {"$path": "/a/a%20b%2F%24c/$key"}),
        ("{o: {only_if: {note: given}, n: 1}, p: {only_if: {note: missing}, n: 2}}", "", {"p": {"n": 2}}),
        ("[{only_if: {shop: [7], name: [x]}, n: 1}, {only_if: {shop: [6, 7]}, n: 2}]", "", [{"n": 2}]),
    ],
)
def test_parameters_are_filled_into_what_is_sent(folder: Path, row: str, given: str, expected: Any) -> None:
    found = shop(folder, f"upsert: {{path: /s, row: {row}}}", "shop: 7" + given, PARAMETERS.lstrip("\n"))
    assert found.options.http.upsert.row == expected


def test_a_path_takes_a_parameter_for_one_segment(folder: Path) -> None:
    found = shop(folder, "upsert: {path: /s/<note>}", "shop: 7, note: a/$b", PARAMETERS.lstrip("\n"))
    assert found.options.http.upsert.path == "/s/a%2F%24b"


@pytest.mark.parametrize(
    ("part", "place", "said"),
    [
        ("{path: /s, row: {shop: <shp>}}", "14:32", "did you mean 'shop'?"),
        ("{path: /s, row: {<shp>: 1}}", "14:26", "did you mean 'shop'?"),
        ("{path: /s, only_if: {shp: [1]}}", "14:30", "did you mean 'shop'?"),
        ("{path: /s, only_if: {shop: ['1']}}", "14:36", "never 1"),
        ("{path: /s, only_if: {shop: always}}", "14:36", "`given`, or `missing`"),
        ("{path: \"/s?q='{$key}'\"}", "14:9", "{…:odata}, {…:soql}"),
        ("{path: /s, row: {t: <token>}}", "14:29", "auth: {type: body"),
        ("{path: /s, row: {}, headers: {X: 'k <token>'}}", "14:42", "auth: {type: body"),
        ("[{only_if: {shop: [1]}, path: /s, wrp: rows}, {path: /t}]", "14:43", "did you mean 'wrap'?"),
    ],
)
def test_a_mistake_in_a_preset_is_named_where_it_stands(
    folder: Path, part: str, place: str, said: str
) -> None:
    with pytest.raises(DefinitionError) as caught:
        shop(folder, f"\nupsert: {part}")
    (error,) = each(caught.value)
    assert str(error.where) == f"presets/shop.yml:{place}"
    assert said in f"{error.message} {error.hint}"


def test_a_field_that_the_rows_lack_is_named_where_the_preset_asks_for_it(folder: Path) -> None:
    found = shop(folder, "upsert: {path: /s, row: {id: $key, n: $nme}}")
    with pytest.raises(DefinitionError) as caught:
        found.destination(found.options, Shape("a", "s", (Field("email", Type("string")),), ()))
    assert (str(caught.value.where), caught.value.code) == ("presets/shop.yml:13:39", "HTTP_PLACEHOLDER")


def test_a_run_that_died_while_a_job_was_at_work_asks_after_it(folder: Path) -> None:
    with duckdb_files.opened(folder / "mart.duckdb") as mart:
        mart.execute("CREATE TABLE m AS SELECT 'k' || i || '@x.io' AS email, i AS visits FROM range(7) t(i)")
    with FakeKlaviyo() as api:
        (folder / "syncs" / "a.yml").write_text(f"{HEAD}destination: {{connection: news}}\n")
        (folder / "retl.yml").write_text(
            "warehouse: {path: mart.duckdb}\n"
            f"connections:\n  news: {{type: klaviyo, api_key: {TOKEN}, base_url: '{api.url}'}}\n"
        )
        killed = process(folder, "sync", RETL_CRASH_AT="handle_attached:1")
        assert killed.returncode == -9, killed.stderr
        assert not api.objects
        again = retl(folder, "sync")
        assert again.code == 0, again.err
        assert [method for method, _, _, _ in api.seen].count("POST") == 1
        assert len(api.objects) == 7
        before = len(api.seen)
        assert retl(folder, "sync").code == 0
        assert len(api.seen) == before


def test_what_only_documentation_says_is_a_preview_and_says_so(folder: Path) -> None:
    with duckdb_files.opened(folder / "mart.duckdb") as mart:
        mart.execute("CREATE TABLE m AS SELECT '101' AS email")
    (folder / "syncs" / "a.yml").write_text(f'{HEAD}destination: {{connection: crm, list: "7"}}\n')
    with FakeHubSpotLists() as api:
        (folder / "retl.yml").write_text(
            "warehouse: {path: mart.duckdb}\n"
            f"connections:\n  crm: {{type: hubspot_lists, token: {TOKEN}, base_url: '{api.url}'}}\n"
        )
        for words in (["validate"], ["sync", "--dry-run"], ["sync"], ["destinations", "hubspot_lists"]):
            told = retl(folder, *words, COLUMNS="1000")
            assert told.code == 0, told.err
            assert (told.out + told.err).count(About(evidence=("docs",)).preview or "") == 1, words
    listed = {one["name"]: one["preview"] for one in listing(folder)}
    assert (listed["hubspot_lists"], listed["hubspot"], listed["webhook"]) == (True, False, False)


def listing(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = retl(folder, "destinations", "--output", "json").document["destinations"]
    return found


def test_an_operation_may_be_like_another_one(folder: Path) -> None:
    one = "upsert: {path: /s, wrap: rows, row: {t: $title}, outcome: {like: outcome, code: c}}"
    found = shop(folder, f"{one}\nupdate: {{like: upsert, method: PATCH, row: $row}}\noutcome: {{ok: [207]}}")
    upsert, update = found.options.http.upsert, found.options.http.update
    assert (update.path, update.wrap, update.method, update.row) == ("/s", "rows", "PATCH", "$row")
    assert (upsert.outcome.ok, upsert.outcome.code, upsert.row) == ((207,), ("c",), {"t": "$title"})


def test_what_all_operations_share_is_written_once(folder: Path) -> None:
    job = "{open: {path: /j, id: id}, start: {path: /go}, path: /j/$job, errors_path: /e, done: {at: a, in: [b]}, outcome: {}}"
    found = shop(
        folder,
        "root: /v2/a\ncast: {nulls: omit}\ncheck: {path: '?limit=1'}\n"
        f"upsert: {{path: /s/$job, wrap: rows, job: {job}}}\n"
        "update: {path: /u, cast: {keys: string}}\ndelete: {method: DELETE, path: /d/$key, then: /d/$key/now}",
    ).options.http
    steps = found.upsert.job
    paths = (found.check.path, found.upsert.path, found.update.path, found.delete.path, found.delete.then)
    assert paths == ("/v2/a?limit=1", "/v2/a/s/$job", "/v2/a/u", "/v2/a/d/$key", "/v2/a/d/$key/now")
    assert (steps.open.path, steps.start.path, steps.path) == ("/v2/a/j", "/v2/a/go", "/v2/a/j/$job")
    assert steps.errors_path == "/v2/a/e"
    assert (found.upsert.cast.nulls, found.delete.cast.nulls) == ("omit", "omit")
    assert (found.update.cast.keys, found.update.cast.nulls) == ("string", None)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("root: v2\nupsert: {path: /s}", "13:7"),
        ("root: /v2/\nupsert: {path: /s}", "13:7"),
        ("root: /v2\nupsert: {path: //s}", "14:9"),
        ("cast: {nuls: omit}\nupsert: {path: /s}", "13:8"),
        ("cast: {nulls: omit}\nupsert: {path: /s, cast: {}}", None),
    ],
)
def test_a_mistake_in_what_they_share_is_named(folder: Path, text: str, line: str | None) -> None:
    with pytest.raises(DefinitionError) as caught:
        shop(folder, text)
    assert str(caught.value.where).endswith(line) if line else "no effect" in str(caught.value)


LONG = ("hubspot", "salesforce")  # two ways to name a record, and their documentation


def test_a_preset_is_short() -> None:
    found = (files("retl.destinations.presets") / f"{name}.yml" for name in preset_names())
    lines = {one.name.removesuffix(".yml"): len(one.read_text().splitlines()) for one in found}
    assert {name for name, count in lines.items() if count > 60} == set(LONG)
    assert all(lines[name] < 80 for name in LONG)


@pytest.mark.parametrize("like", ["upsrt", "update", "upsert.0", "outcome.x"])
def test_what_an_operation_is_like_is_a_part_that_says_everything(folder: Path, like: str) -> None:
    with pytest.raises(DefinitionError, match=f"like: {like}") as caught:
        shop(folder, f"upsert: {{path: /s}}\nupdate: {{like: {like}}}")
    assert str(caught.value.where).endswith("14:16")
