"""`retl validate` names variables of config.env that nothing uses and that are like others; `retl log` tells
syncs of one table apart."""

from __future__ import annotations

from pathlib import Path

from tests.commands import Workshop
from tests.servers import Database


def test_validate_names_a_mistyped_variable_and_no_other_unused_one(tmp_path: Path) -> None:
    shop = Workshop(tmp_path / "project")
    shop.sync("users")
    shop.write(
        "retl.yml", "connections:\n  crm: {type: postgres, host: '${CRM_HOST:-db}', dbname: crm, user: u}\n"
    )
    shop.write(
        "config.env",
        "POSTGRES_PROT=1\nREDIS_PASWORD_FILE=x\nCRM_HOST=h\nCRM_HSOT=h\nPOSTGRES_PORT=5432\nSMTP_RELAY=y\n",
    )
    said = shop.retl("validate")
    assert said.code == 0
    assert [line for line in said.out.splitlines() if "nothing uses" in line] == [
        "nothing uses CRM_HSOT of config.env: did you mean 'CRM_HOST'?",
        "nothing uses POSTGRES_PROT of config.env: did you mean 'POSTGRES_PORT'?",
        "nothing uses REDIS_PASWORD_FILE of config.env: did you mean 'REDIS_PASSWORD'?",
    ]
    found = shop.json("validate")["unused_variables"]
    assert found[0] == {"name": "CRM_HSOT", "did_you_mean": "CRM_HOST"}


def test_a_sync_whose_file_is_gone_is_named_by_status_and_a_mistyped_ending_by_validate(
    tmp_path: Path, postgres: Database
) -> None:
    shop = Workshop(tmp_path / "project")
    shop.use(postgres=postgres)
    for name in ("first", "second"):
        shop.sync(name, destination=f"{{type: postgres, table: {name}, create: true}}")
    shop.json("sync")
    assert shop.json("status")["warnings"] == []
    first = shop.folder / "syncs" / "first.yml"
    for ending in (".ymll", ".YML"):
        lost = first.rename(first.with_suffix(ending))
        for other in ("notes.md", "first.yml~", "query.sql"):
            (first.parent / other).write_text("")
        said = shop.retl("validate")
        assert (said.code, f"syncs/first{ending} is not read: did you mean the ending .yml?" in said.out) == (
            0,
            True,
        )
        assert shop.json("validate")["unread_files"] == [
            {"file": f"syncs/first{ending}", "did_you_mean": ".yml"}
        ]
        (warning,) = shop.json("status")["warnings"]
        assert warning.startswith("first: it delivered, and no file defines it now: put syncs/first.yml back")
        assert shop.json("status", "second")["warnings"] == []
        first = lost.rename(first)
    assert shop.json("status")["warnings"] == []
    first.rename(first.with_name("third.yml"))  # its `next` names the move
    assert shop.json("status")["warnings"] == []
    first.with_name("third.yml").unlink()
    assert shop.retl("state", "reset", "first", "--yes").code == 0
    assert shop.json("status")["warnings"] == []


def test_a_log_of_several_syncs_has_a_column_for_them(tmp_path: Path, postgres: Database) -> None:
    shop = Workshop(tmp_path / "project")
    shop.use(postgres=postgres)
    shop.sync("first", fields="{email: email}", destination="{type: postgres, table: t, create: true}")
    shop.json("sync")
    assert "sync" not in shop.retl("log").out.splitlines()[0].split()
    shop.sync(
        "second",
        fields="{spend: spend}",
        write="update_only",
        after="[first]",
        destination="{type: postgres, table: t, create: true}",
    )
    shop.json("sync")
    said = shop.retl("log").out.splitlines()
    assert "sync" in said[0].split()
    assert {word for line in said for word in line.split()} >= {"first", "second"}
    assert "sync" not in shop.retl("log", "second").out.splitlines()[0].split()
