"""What `retl init` says under "next:" works to the letter in a fresh folder, with the servers of the demo."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from retl.app.scaffold.templates import TEMPLATES
from retl_demo import wanted
from tests.commands import Workshop

pytestmark = pytest.mark.timeout(900)  # the first test waits for dbt to be installed
SERVED = {
    f"{kind}_{part}": f"{kind} {part}".lower()
    for kind, parts in {
        "POSTGRES": ("HOST", "PORT", "DB", "USER", "PASSWORD"),
        "REDIS": ("HOST", "PORT", "PASSWORD"),
        "HUBSPOT": ("URL", "TOKEN"),
        "SLACK": ("URL",),
    }.items()
    for part in parts
}


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Workshop]:
    """A person who has a dbt project in `analytics`, and whose servers, if any, end with the test."""
    made = Workshop(tmp_path / "shop", {"XDG_STATE_HOME": str(tmp_path / "state")})
    shutil.rmtree(made.folder / "syncs")
    try:
        yield made
    finally:
        made.retl("demo", "stop")


def replaced(path: Path, *pairs: tuple[str, str]) -> None:
    text = path.read_text()
    for before, after in pairs:
        assert before in text, text
        text = text.replace(before, after)
    path.write_text(text)


def of_customers(folder: Path) -> None:
    """The model and its key are those of the dbt project; the table is another sync's."""
    replaced(folder / "syncs/customers.yml", ("table: crm.customers", "table: crm.people"))


def of_contacts(folder: Path) -> None:
    replaced(
        folder / "syncs/contacts.yml",
        ("{dbt: customers, max_age: 26h}", '{sql: "SELECT * FROM customers WHERE email IS NOT NULL"}'),
        ("firstname: first_name", "firstname: segment"),
        ("  lastname: {column: last_name, nulls: keep}", "  #"),
    )


SENTENCES: dict[str, Callable[[Path], None]] = {
    "set warehouse.path in retl.yml, if your warehouse is another file": lambda _: None,  # there is none
    "set `path` and `dbt` in retl.yml, and run `dbt build`": lambda _: None,  # both are beside it, and built
    "set model, key and table in syncs/customers.yml": of_customers,
    "set model, key and fields in syncs/contacts.yml": of_contacts,
    "set the SELECT in syncs/messages.yml": lambda _: None,  # it is one
}


def follow(newcomer: Workshop, *words: str) -> None:
    """Do what `retl init` says, in this order."""
    done, command = [], ""
    for step in newcomer.json("init", *words)["next"]:
        if step.startswith(" "):  # the rest of a sentence
            continue
        command, _, _ = step.partition("   ")
        if step.startswith("cd "):
            newcomer.folder = newcomer.folder / step.removeprefix("cd ")
        elif command.startswith("retl "):
            asked, _, file = command.removeprefix("retl ").partition(" >> ")
            said = newcomer.retl(*asked.split())
            assert said.code == 0, (words, step, said.out, said.err)
            if file:
                with (newcomer.folder / file).open("a") as there:
                    there.write(said.out)
            done.append(asked)
        else:
            SENTENCES[step](newcomer.folder)
    assert ("demo --serve" in done, done[-1]) == (True, "sync")
    runs = newcomer.json("runs")["runs"]
    assert runs
    assert {(one["status"], one["counts"]["inserted"] > 0) for one in runs} == {("SUCCESS", True)}, words


def test_every_way_to_begin_can_be_followed_to_the_letter(newcomer: Workshop, analytics: Path) -> None:
    above = newcomer.folder
    shutil.copytree(analytics, above / "analytics")
    shutil.copytree(above / "analytics/target_built", above / "analytics/target")
    follow(newcomer, "example")
    for template in TEMPLATES:
        newcomer.folder = above
        follow(newcomer, template, "--template", template)
    newcomer.folder = above / "analytics"
    follow(newcomer, "--from-dbt", "target/manifest.json")


def test_the_variables_of_a_projects_connections_are_found_by_their_type(tmp_path: Path) -> None:
    assert wanted.variables(tmp_path, SERVED) == {}
    (tmp_path / "retl.yml").write_text(
        "connections:\n"
        '  crm_db: {type: postgres, host: "${CRM_HOST}", port: "${CRM_PORT:-5432}", dbname: crm, user: "me${ME}"}\n'
        '  cache: {type: redis, host: "${POSTGRES_HOST}", password: "${CACHE}"}\n'
        '  hs: {type: hubspot, token: "${HS_TOKEN}"}\n'
        '  other: {type: mysql, host: "${OTHER}"}\n'
        "  wrong: [1]\n"
    )
    assert wanted.variables(tmp_path, SERVED) == {
        "CRM_HOST": "postgres host",
        "CRM_PORT": "postgres port",
        "CACHE": "redis password",
        "HS_TOKEN": "hubspot token",
    }
    for text in ("connections: {a: }", "connections: 3", "connections: {a: ", "- 1"):
        (tmp_path / "retl.yml").write_text(text)
        assert wanted.variables(tmp_path, SERVED) == {}
