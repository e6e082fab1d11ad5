"""What helps a person who does not know the next word."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from retl.cli import families
from retl.cli.app import app
from retl.cli.codes import codes
from retl.cli.grouping import EXAMPLES, GROUPS
from retl.project.validation import did_you_mean
from tests.cli_words import assert_known
from tests.commands import Workshop
from tests.servers import RedisServer

ROOT = Path(__file__).parents[1]


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path / "project")


def commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, one in group.commands.items():
        yield f"{path}{name}", one
        if hasattr(one, "commands"):
            yield from commands(one, f"{path}{name} ")


def test_every_command_has_an_example_that_its_own_parser_takes() -> None:
    found = dict(commands(families.commands()))
    assert [name for name in found if name not in EXAMPLES] == []
    for name, one in found.items():
        example = EXAMPLES[name]
        assert example.startswith(f"retl {name.split()[0]}")
        assert_known([word for word in shlex.split(example)[1:] if word != ">" and "schema." not in word])
        assert one.epilog == f"Example: {example}"
    tops = {name for name in found if " " not in name}
    assert tops <= {name for names in GROUPS.values() for name in names}


def test_the_modules_of_a_first_word_have_all_of_its_commands() -> None:
    """A process imports only these modules."""
    found: dict[str, set[str]] = {name: set() for name in families.FAMILIES}
    families.commands()
    for one in app.registered_commands:
        if one.name != "help":
            found[module_of(one)].add(one.name or "")
    for group in app.registered_groups:
        assert group.typer_instance is not None
        for one in group.typer_instance.registered_commands:
            found[module_of(one)].add(group.name or "")
    assert found == {name: set(words) for name, words in families.FAMILIES.items()}


def module_of(command: typer.models.CommandInfo) -> str:
    return command.callback.__module__.removeprefix("retl.cli.")


def test_help_says_what_the_page_of_errors_says_about_a_code(workshop: Workshop) -> None:
    rows = [line for line in (ROOT / "docs/errors.md").read_text().splitlines() if line.startswith("| `")]
    assert codes().keys() == {row.split("`")[1] for row in rows}
    said = workshop.json("help", "delete_rate")
    assert (said["code"], "exit 3" in said["kind"]) == ("DELETE_RATE", True)
    assert f"| `DELETE_RATE` | {said['text']} |" in rows
    assert "--allow-deletes" in workshop.retl("help", "DELETE_RATE").out
    assert "a code of the target" in workshop.retl("help", "23505").out
    assert "a code of the target" in workshop.retl("help", "hv00r").out
    assert workshop.retl("help", "QQQQQ").code == 2
    assert workshop.retl("help", "state", "mv").out == workshop.retl("state", "mv", "--help").out
    assert workshop.retl("help").out.rstrip() == workshop.retl("--help").out.rstrip()
    for typo, meant in (("DELETE_RAT", "DELETE_RATE"), ("snyc", "sync"), ("SYNCC", "sync")):
        said = workshop.retl("help", typo)
        assert (said.code, f"did you mean '{meant}'?" in said.err) == (2, True)


def test_a_shell_completes_syncs_tags_guards_codes_and_runs(
    workshop: Workshop, redis_server: RedisServer
) -> None:
    workshop.sync("users", tags="[daily]")
    workshop.use(redis_server)
    run = workshop.json("sync")["syncs"][0]["run_id"]

    def completed(line: str) -> list[str]:
        words = line.split(" ")
        environ = {
            "_RETL_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        }
        return workshop.retl(**environ).out.split()

    assert completed("retl sync us") == ["users"]
    assert completed("retl plan ta") == ["tag:daily"]
    assert completed("retl sync --tag d") == ["daily"]
    assert completed("retl sync --accept DELETE_R") == ["DELETE_RATE"]
    assert completed("retl state reset u") == ["users"]
    assert completed(f"retl rollback {run[:6]}") == [run]
    assert completed("retl help STATE_BE") == ["STATE_BEHIND"]
    (workshop.folder / "syncs/users.yml").write_text("{")
    assert completed("retl sync us") == []


MISTAKES = """\
source: {table: "{{ ref('orders') }}"}
key: [id]
contract:
  id: {type: int}
  name: {type: varchar(20)}
  price: {type: flaot}
destination: {type: postgress, table: t}
write: mirror
deletes: remove
changes: hsh
when: {evry: 1h}
"""
HINTS = [
    "1 write `source: {dbt: orders}`",
    "4 for 'int' write integer",
    "5 for 'varchar' write string",
    "6 did you mean 'float'?",
    "7 did you mean 'postgres'?",
    "8 for 'mirror' write upsert and `deletes: delete`",
    "9 for 'remove' write delete",
    "10 did you mean 'hash'?",
    "11 did you mean 'every'?",
]


def test_all_mistakes_of_a_file_are_reported_with_what_was_meant(workshop: Workshop) -> None:
    workshop.write("syncs/orders.yml", MISTAKES)
    document = workshop.retl("validate", "--output", "json").document
    assert len(document["errors"]) == len(HINTS)
    for error, hint in zip(document["errors"], HINTS, strict=True):
        line, _, meant = hint.partition(" ")
        assert error["where"].startswith(f"syncs/orders.yml:{line}:")
        assert meant in f"{error['message']} {error['hint']}"


def test_options_of_the_destination_are_judged_in_a_wrong_file_too(workshop: Workshop) -> None:
    workshop.sync("users", destination='{type: redis, kye: "u:{user_id}", value: json, ttl: none}', write="9")
    workshop.write("retl.yml", "connections: {crm: {type: redis, host: h}}\n")
    said = workshop.retl("validate")
    assert "did you mean 'key'?" in said.err
    assert "`write`" in said.err
    workshop.sync("users", destination="{connection: crn}", write="9", source='{sql: "SELECT {{ x }}"}')
    assert "did you mean 'crm'?" in workshop.retl("validate").err
    workshop.sync("users", source='{sql: "SELECT {{ x }} FROM users"}')
    assert "retl renders no Jinja" in workshop.retl("validate", REDIS_HOST="h").err


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("hubspot_contacts", "hubspot"),  # has more letters in common with hubspot_lists
        ("hubspot_list", "hubspot_lists"),
        ("hubspt", "hubspot"),
        ("postgresql", "postgres"),
    ],
)
def test_a_word_is_near_that_of_which_it_says_more(word: str, meant: str) -> None:
    assert did_you_mean(word, ["postgres", "hubspot", "hubspot_lists"]) == f"did you mean {meant!r}?"


def test_what_is_missing_is_described(workshop: Workshop) -> None:
    workshop.write("retl.yml", "connections: {crm: {type: hubspot}}\n")
    workshop.sync("cached", destination="{type: redis, key: 'c:{user_id}'}")
    workshop.sync("people", destination="{connection: crm}")
    said = workshop.retl("validate").err
    assert "ttl: When the key expires: seconds, or 24h. `none`: never." in said
    assert "token: Access token of a private app." in said
