"""The folder: what is found, filled in, selected, ordered and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retl.app.loaded import LoadedProject
from retl.app.resolve import open_project
from retl.errors import DefinitionError
from retl.project.validation import each

SYNC = "source: {table: m}\nkey: [id]\ndestination: {type: redis}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "syncs").mkdir()
    return tmp_path.resolve()


def write(folder: Path, name: str, text: str = SYNC) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def opened(folder: Path, environment: str | None = None, **options: Any) -> LoadedProject:
    return open_project(folder, environment, **{"environ": {}, **options})


def refusals(folder: Path) -> list[tuple[str, str]]:
    with pytest.raises(DefinitionError) as caught:
        opened(folder)
    return [(str(error.where), error.code) for error in each(caught.value)]


def names(project: LoadedProject, *args: Any, **options: Any) -> list[str]:
    return [sync.name for sync in project.select(*args, **options)]


def test_a_syncs_folder_alone_is_a_project(folder: Path) -> None:
    write(folder, "syncs/users.yml")
    write(folder, "syncs/crm/deals.yaml")
    write(folder, "syncs/.draft.yml", "not: a sync")
    write(folder, "syncs/readme.md", "text")
    project = opened(folder)
    assert list(project.syncs) == ["deals", "users"]
    assert project.warehouse.path == str(folder / "data/warehouse.duckdb")
    assert project.state_url == f"file:{folder}/.retl"


def test_a_folder_without_anything_is_no_project(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError) as caught:
        opened(tmp_path)
    assert (caught.value.code, "retl init" in str(caught.value.hint)) == ("NO_PROJECT", True)


def test_in_a_folder_of_a_project_the_hint_names_the_project(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`retl init` there would make a second project inside the first."""
    write(folder, "syncs/crm/users.yml")
    for below, named in (("syncs", ".."), ("syncs/crm", "../..")):
        monkeypatch.chdir(folder / below)
        with pytest.raises(DefinitionError) as caught:
            opened(Path())
        assert caught.value.code == "NO_PROJECT"
        assert caught.value.hint == f"{folder} is a project: `--project {named}` names it"
    monkeypatch.chdir("/")
    with pytest.raises(DefinitionError) as caught:
        opened(folder / "syncs")
    assert f"`--project {folder}`" in str(caught.value.hint)


def test_an_empty_project_file_says_nothing(folder: Path) -> None:
    write(folder, "retl.yml", "# nothing yet\n")
    assert opened(folder).syncs == {}


@pytest.mark.parametrize("name", ["Users", "1st", "all", "a b", "ä", "x" * 64])
def test_a_file_name_that_cannot_be_a_syncs_name_is_refused(name: str, folder: Path) -> None:
    write(folder, f"syncs/{name}.yml")
    assert refusals(folder) == [(f"syncs/{name}.yml", "SYNC_NAME")]


def test_a_name_stands_for_one_sync(folder: Path) -> None:
    write(folder, "syncs/a.yml")
    write(folder, "syncs/b/a.yaml")
    assert refusals(folder) == [("syncs/b/a.yaml", "SYNC_TWICE")]


def test_the_errors_of_all_files_are_told_at_once(folder: Path) -> None:
    write(folder, "syncs/a.yml", SYNC + "tag: [x]\nenable: true\n")
    write(folder, "syncs/b.yml", "a: [\n")
    write(folder, "syncs/c.yml", SYNC + "name: d\n")
    assert refusals(folder) == [
        ("syncs/a.yml:4:1", "OPTION_UNKNOWN"),
        ("syncs/a.yml:5:1", "OPTION_UNKNOWN"),
        ("syncs/b.yml:2:1", "YAML_INVALID"),
        ("syncs/c.yml:4:1", "OPTION_UNKNOWN"),
    ]


def test_defaults_lie_under_every_sync_and_answer_for_their_own_errors(folder: Path) -> None:
    write(folder, "retl.yml", "defaults:\n  guards: {min_rows: 1, max_row_drop: 0.2}\n  tags: [x]\n")
    write(folder, "syncs/a.yml", SYNC + "guards: {min_rows: 2}\ntags: [y]\n")
    sync = opened(folder).syncs["a"]
    assert (sync.guards.min_rows, sync.guards.max_row_drop, sync.tags) == (2, 0.2, ("y",))
    write(folder, "syncs/b.yml")
    write(folder, "retl.yml", "defaults:\n  guards: {max_row_drop: 2}\n")
    assert refusals(folder) == [("retl.yml:2:26", "DEFINITION_INVALID")]
    write(folder, "retl.yml", "defaults:\n  name: x\n")
    assert refusals(folder) == [("retl.yml:2:3", "DEFINITION_INVALID")]


@pytest.mark.parametrize(
    ("text", "where", "code"),
    [
        ("- a\n", "retl.yml:1:1", "DEFINITION_INVALID"),
        ("warehose: {}\n", "retl.yml:1:1", "OPTION_UNKNOWN"),
        ("alerts: [{to: x}]\n", "retl.yml:1:10", "OPTION_MISSING"),
        ("defaults: 1\n", "retl.yml:1:11", "DEFINITION_INVALID"),
        ("connections: {a: {host: x}}\n", "retl.yml:1:18", "OPTION_MISSING"),
        ("connections: {a: {type: http, limits: {share: 2}}}\n", "retl.yml:1:47", "DEFINITION_INVALID"),
        ("state: {url: 's3://x'}\n", "retl.yml:1:14", "STATE_URL"),
    ],
)
def test_what_is_wrong_in_the_project_file_is_placed_there(
    text: str, where: str, code: str, folder: Path
) -> None:
    write(folder, "retl.yml", text)
    assert refusals(folder) == [(where, code)]


def test_flag_environment_config_file_and_project_file_win_in_this_order(folder: Path) -> None:
    write(folder, "retl.yml", "warehouse: {path: yml, read_paths: [lake]}\nstate: {url: 'file:state'}\n")
    assert opened(folder).warehouse.path == str(folder / "yml")
    assert opened(folder).warehouse.read_paths == (str(folder / "lake"),)
    assert opened(folder).state_url == f"file:{folder}/state"
    write(folder, "config.env", "DUCKDB_PATH=config\nRETL_STATE_URL=file:elsewhere\n")
    assert opened(folder).warehouse.path == str(folder / "config")
    assert opened(folder).state_url == f"file:{folder}/elsewhere"
    environ = {"DUCKDB_PATH": "/env"}
    assert opened(folder, environ=environ).warehouse.path == "/env"
    assert opened(folder, environ=environ, duckdb_path="flag").warehouse.path == str(folder / "flag")


def test_every_environment_has_its_own_state_unless_it_names_one(folder: Path) -> None:
    write(folder, "config.prod.env", "")
    assert opened(folder, "prod").state_url == f"file:{folder}/.retl/prod"
    write(folder, "config.prod.env", "RETL_STATE_URL=postgresql://u:p@h/db\n")
    assert opened(folder, "prod").state_url == "postgresql://u:p@h/db"


def test_a_contract_file_is_read_and_answers_for_its_own_errors(folder: Path) -> None:
    write(folder, "contracts/u.yml", "id: {type: string}\n")
    write(folder, "syncs/a.yml", SYNC + "contract: contracts/u.yml\n")
    contract = opened(folder).syncs["a"].contract
    assert contract is not None
    assert contract.columns is not None
    assert (list(contract.columns), contract.file) == (["id"], "contracts/u.yml")
    write(folder, "contracts/u.yml", "id: {typ: string}\n")
    write(folder, "syncs/b.yml", SYNC + "contract: contracts/u.yml\n")
    assert refusals(folder) == [("contracts/u.yml:1:6", "OPTION_UNKNOWN")]  # a type may be left out


@pytest.mark.parametrize(
    ("file", "code"),
    [("../u.yml", "FILE_OUTSIDE"), ("/etc/u.yml", "FILE_OUTSIDE"), ("u.yml", "FILE_MISSING")],
)
def test_files_of_a_definition_are_in_the_project(file: str, code: str, folder: Path) -> None:
    write(folder, "syncs/a.yml", SYNC + f"contract: {file}\n")
    assert refusals(folder) == [("syncs/a.yml:4:11", code)]
    write(folder, "syncs/a.yml", SYNC.replace("table: m", f"file: {file}"))
    assert refusals(folder) == [("syncs/a.yml:1:16", code)]


def test_a_link_out_of_the_project_is_not_followed(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "u.yml"
    outside.write_text("id: {type: string}\n")
    (folder / "u.yml").symlink_to(outside)
    write(folder, "syncs/a.yml", SYNC + "contract: u.yml\n")
    assert refusals(folder) == [("syncs/a.yml:4:11", "FILE_OUTSIDE")]


def test_syncs_are_selected_by_name_and_tag_in_the_order_of_after(folder: Path) -> None:
    write(folder, "syncs/a.yml", SYNC + "after: [c]\ntags: [x]\n")
    write(folder, "syncs/b.yml", SYNC + "enabled: false\ntags: [x]\n")
    write(folder, "syncs/c.yml", SYNC + "after: [d]\n")
    write(folder, "syncs/d.yml", SYNC + "tags: [x, y]\n")
    project = opened(folder)
    assert names(project) == names(project, ["all"]) == names(project, all=True) == ["d", "c", "a"]
    assert names(project, ["a", "d"]) == ["d", "a"]
    assert names(project, ["b"]) == ["b"]
    assert names(project, tags=["x"]) == ["d", "a"]
    assert names(project, ["c"], tags=["y"]) == ["d", "c"]
    assert names(project, exclude=["d"]) == ["c", "a"]
    assert names(project, ["a"], exclude=["a"]) == []


def test_an_unknown_name_or_tag_is_refused_with_the_nearest_one(folder: Path) -> None:
    write(folder, "syncs/users.yml", SYNC + "tags: [daily]\n")
    project = opened(folder)
    unknown: list[dict[str, Any]] = [{"names": ["user"]}, {"exclude": ["user"]}, {"names": ["all", "user"]}]
    for options in unknown:
        with pytest.raises(DefinitionError) as caught:
            project.select(**options)
        assert (caught.value.code, caught.value.hint) == ("SYNC_UNKNOWN", "did you mean 'users'?")
    with pytest.raises(DefinitionError) as caught:
        project.select(tags=["dayly"])
    assert (caught.value.code, caught.value.hint) == ("TAG_UNKNOWN", "did you mean 'daily'?")


def test_after_names_syncs_and_never_goes_round(folder: Path) -> None:
    write(folder, "syncs/a.yml", SYNC + "after: [b, x]\n")
    write(folder, "syncs/b.yml", SYNC + "after: [a]\n")
    assert refusals(folder) == [("syncs/a.yml:4:8", "AFTER_CYCLE"), ("syncs/a.yml:4:12", "SYNC_UNKNOWN")]
    write(folder, "syncs/a.yml", SYNC + "after: [a]\n")
    assert ("syncs/a.yml:4:8", "AFTER_CYCLE") in refusals(folder)


def test_unset_variables_are_listed_and_refused_only_where_they_are_needed(folder: Path) -> None:
    write(
        folder,
        "retl.yml",
        'connections:\n  crm: {type: postgres, host: "${CRM_HOST}", password: "${CRM_PASSWORD}"}\n'
        '  postgres: {type: postgres, password: "${PG}"}\n  unused: {type: http, base_url: "${NEVER}"}\n',
    )
    crm = "source: {table: '${SCHEMA}.m'}\nkey: [id]\ndestination: {connection: crm, table: t}\n"
    write(folder, "syncs/a.yml", crm)
    write(folder, "syncs/b.yml")
    write(
        folder,
        "syncs/c.yml",
        crm.replace("connection: crm", "type: postgres").replace("${SCHEMA}", "${S:-main}"),
    )
    project = opened(folder)
    found = {one.name: str(one.place) for one in project.missing()}
    assert found == {
        "SCHEMA": "syncs/a.yml:1:17",
        "CRM_HOST": "retl.yml:2:31",
        "CRM_PASSWORD": "retl.yml:2:56",
        "PG": "retl.yml:3:40",
    }
    project.require(project.select(["b"]))
    with pytest.raises(DefinitionError) as caught:
        project.require(project.select(["a"]))
    assert {error.code for error in each(caught.value)} == {"VARIABLE_UNSET"}
    assert len(each(caught.value)) == 3
    environ = {
        "POSTGRES_PASSWORD_COMMAND": "false",
        "SCHEMA": "x",
        "CRM_HOST": "x",
        "CRM_PASSWORD_FILE": "none",
    }
    assert opened(folder, environ=environ).missing() == []


def test_a_variable_in_the_warehouse_concerns_every_sync(folder: Path) -> None:
    write(folder, "retl.yml", "warehouse: {path: '${W}'}\nstate: {url: '${S}'}\n")
    write(folder, "syncs/a.yml")
    assert [one.name for one in opened(folder).missing([])] == ["W", "S"]
    assert opened(folder, environ={"W": "w", "S": "file:s"}).state_url == f"file:{folder}/s"


def test_a_variable_may_name_the_connection_or_stand_in_a_contract_file(folder: Path) -> None:
    write(folder, "c.yml", "id: {type: string, max_length: '${LENGTH}'}\n")
    write(folder, "syncs/a.yml", SYNC.replace("type: redis", "connection: '${WHERE}'") + "contract: c.yml\n")
    project = opened(folder)
    assert [one.name for one in project.missing()] == ["WHERE", "LENGTH"]
    with pytest.raises(DefinitionError) as caught:
        project.destination(project.syncs["a"])
    assert caught.value.code == "VARIABLE_UNSET"
    contract = opened(folder, environ={"LENGTH": "3"}).syncs["a"].contract
    assert contract is not None
    assert contract.columns is not None
    assert contract.columns["id"].max_length == 3


def test_no_secret_is_in_the_projects_own_text(folder: Path) -> None:
    write(folder, "retl.yml", "connections: {a: {type: postgres, password: hunter22}}\n")
    project = opened(folder, environ={"RETL_STATE_URL": "postgresql://u:hunter22@h/d"})
    assert (
        "hunter22"
        not in f"{project!r} {project.settings!r} {project.environment!r} {project.connections!r} {project.sources!r} {project.file!r}"
    )


TABLE = "source: {table: m}\nkey: [id]\ndestination: {type: postgres, table: t}\n"
COLUMNS = "contract: {id: {type: string}, a: {type: string}, b: {type: string}}\n"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("fields: {a: a}\n", "write: update_only\nfields: {b: b}\n", []),
        ("fields: {a: a}\n", "fields: {b: b}\n", [("syncs/b.yml:1:1", "OBJECT_SHARED")]),
        ("fields: {a: a}\n", "fields: {b: b}\nenabled: false\n", []),
        ("fields: {a: a}\n", "fields: {b: b}\nwrite: insert_only\n", [("syncs/b.yml:5:8", "OBJECT_SHARED")]),
        (
            "fields: {a: a}\ndeletes: delete\n",
            "fields: {b: b}\nwrite: update_only\ndeletes: delete\n",
            [("syncs/b.yml:6:10", "OBJECT_SHARED")],
        ),
        (
            "fields: {a: a}\n",
            "write: update_only\nfields: {id: id, a: b}\n",
            [("syncs/b.yml:5:21", "FIELD_SHARED")],
        ),
        (COLUMNS, "write: update_only\nfields: {b: b}\n", [("syncs/b.yml:5:13", "FIELD_SHARED")]),
        (COLUMNS + "fields: {'*': '*', c: b}\n", "write: update_only\nfields: {b: b}\n", []),
    ],
)
def test_syncs_of_one_table_own_different_fields_and_one_of_them_inserts_or_deletes(
    first: str, second: str, expected: list[tuple[str, str]], folder: Path
) -> None:
    write(folder, "syncs/a.yml", TABLE + first)
    write(folder, "syncs/b.yml", TABLE + second)
    if expected:
        assert refusals(folder) == expected
    else:
        assert list(opened(folder).syncs) == ["a", "b"]


REDIS = "source: {table: m}\nkey: [%s]\ndestination: {type: redis, key: '%s', ttl: none}\n"
HTTP = """source: {table: m}
key: [%s]
destination: {connection: %s, upsert: {path: '%s', row: $row}}
"""
MAILCHIMP = "source: {table: m}\nkey: [email]\ndestination: {connection: %s, list: l%s}\ndeletes: delete\n"
PEOPLE = "source: {table: m}\nkey: [id]\ndestination: {connection: %s, table: '%s'}\n"
CONNECTIONS = """connections:
  main: {type: postgres, host: localhost, dbname: d, user: u}
  same: {type: postgres, host: 127.0.0.1, port: 5432, dbname: d, user: other, password: '${P}'}
  else: {type: postgres, host: localhost, dbname: e, user: u}
  hidden: {type: postgres, host: '${HOST}', port: '${PORT}', dbname: d, user: u}
  veiled: {type: postgres, host: '${HOST}', dbname: d, user: u}
  mail: {type: mailchimp, api_key: '${K}', server: us1}
  again: {type: mailchimp, api_key: '${K2}', server: us1}
  api: {type: http, base_url: 'https://API.example.com/v1', auth: {type: bearer, token: '${T}'}}
  twin: {type: http, base_url: 'https://api.example.com:443/v1/', auth: {type: bearer, token: '${T}'}}
  theirs: {type: http, base_url: 'https://api.example.com/v1', auth: {type: bearer, token: '${T2}'}}
  unset: {type: http, base_url: '${URL}', auth: {type: bearer, token: '${T}'}}
  cache: {type: redis, host: '::1'}
  hubspot: {type: hubspot, token: '${H}'}
  org: {type: salesforce, client_id: c, client_secret: '${S}', domain: org.example.com}
  bulk: {type: salesforce_bulk, client_id: d, client_secret: '${S2}', domain: org.example.com}
  chat: {type: slack, url: '${SLACK}'}
"""
SHARED = [
    (TABLE.replace(" t}", " users}"), TABLE.replace(" t}", " public.users}")),
    (TABLE.replace(" t}", " users}"), TABLE.replace(" t}", " '\"users\"'}")),
    (PEOPLE % ("main", "crm.users"), PEOPLE % ("same", '"crm".users')),
    (PEOPLE % ("hidden", "users"), PEOPLE % ("veiled", "public.users")),
    (MAILCHIMP % ("mail", "7"), MAILCHIMP % ("mail", "7")),
    (MAILCHIMP % ("mail", "7"), MAILCHIMP % ("again", "7")),
    (HTTP % ("id", "api", "/users/{id}"), HTTP % ("user_id", "api", "/users/{user_id}")),
    (HTTP % ("id", "api", "/users"), HTTP % ("id", "twin", "/users?mode=fast")),
    (HTTP % ("id", "unset", "/users"), HTTP % ("id", "unset", "/users")),
    (REDIS % ("id", "u:{id}"), REDIS % ("user_id", "u:{user_id}")),
    (REDIS % ("id", "u:{id}"), (REDIS % ("id", "u:{id}")).replace("type: redis", "connection: cache")),
    (
        "source: {table: m}\nkey: [email]\ndestination: {connection: hubspot}\n",
        "source: {table: m}\nkey: [id]\ndestination: {connection: hubspot, object: contacts, match: hs_object_id}\n",
    ),
    (
        "source: {table: m}\nkey: [A__c]\ndestination: {connection: org, object: Contact, match: A__c}\n",
        "source: {table: m}\nkey: [B__c]\ndestination: {connection: bulk, object: Contact, match: B__c}\n",
    ),
]
APART = [
    (PEOPLE % ("main", "users"), PEOPLE % ("main", "crm.users")),
    (PEOPLE % ("main", "users"), PEOPLE % ("main", "Users")),  # spelled as in the catalog, never folded
    (PEOPLE % ("main", "users"), PEOPLE % ("else", "users")),
    (MAILCHIMP % ("mail", "7"), MAILCHIMP % ("mail", "8")),
    (HTTP % ("id", "api", "/users"), HTTP % ("id", "api", "/orders")),
    (HTTP % ("id", "api", "/users"), HTTP % ("id", "theirs", "/users")),  # another account of the server
    (REDIS % ("id", "u:{id}"), REDIS % ("id", "v:{id}")),
    *[
        (
            "source: {table: m}\nkey: [id]\ndestination: {connection: chat}\nwrite: append\nfirst_run: send\n"
            "delivery: at_most_once\n",
        )
        * 2
    ],
]


@pytest.mark.parametrize(("first", "second"), SHARED)
def test_one_object_is_found_however_it_is_spelled(first: str, second: str, folder: Path) -> None:
    write(folder, "retl.yml", CONNECTIONS)
    write(folder, "syncs/a.yml", first + "fields: {a: a}\n")
    write(folder, "syncs/b.yml", second + "fields: {b: b}\n")
    ((place, code),) = refusals(folder)
    assert (place.partition(":")[0], code) == ("syncs/b.yml", "OBJECT_SHARED")
    write(folder, "syncs/b.yml", second + "fields: {b: b}\nenabled: false\n")
    assert list(opened(folder).syncs) == ["a", "b"]


@pytest.mark.parametrize(("first", "second"), APART)
def test_different_objects_and_messages_may_have_several_syncs(first: str, second: str, folder: Path) -> None:
    write(folder, "retl.yml", CONNECTIONS)
    write(folder, "syncs/a.yml", first)
    write(folder, "syncs/b.yml", second)
    assert list(opened(folder).syncs) == ["a", "b"]


def test_a_place_is_compared_without_running_a_command(folder: Path) -> None:
    write(folder, "retl.yml", CONNECTIONS)
    write(folder, "syncs/a.yml", MAILCHIMP % ("mail", "7"))
    write(folder, "syncs/b.yml", MAILCHIMP % ("mail", "8"))
    opened(folder, environ={"K_COMMAND": f"touch {folder}/ran"})
    assert not (folder / "ran").exists()


def test_columns_and_fields_that_do_not_fit_are_refused_at_their_place(folder: Path) -> None:
    write(
        folder, "syncs/a.yml", TABLE.replace("[id]", "[idd]") + COLUMNS + "fields: {x: bb, y: {column: c}}\n"
    )
    assert refusals(folder) == [
        ("syncs/a.yml:2:7", "COLUMN_UNKNOWN"),
        ("syncs/a.yml:5:13", "COLUMN_UNKNOWN"),
        ("syncs/a.yml:5:29", "COLUMN_UNKNOWN"),
    ]
    write(
        folder,
        "syncs/a.yml",
        TABLE + COLUMNS + "deletes: {set: {status: x}}\nchanges: {hash: {ignore: [z]}}\n",
    )
    assert refusals(folder) == [
        ("syncs/a.yml:5:25", "SOFT_DELETE_FIELD"),
        ("syncs/a.yml:6:27", "FIELD_UNKNOWN"),
    ]
