"""`retl presets`: a vendor of one's own from a curl line or an OpenAPI file, rehearsed against a vendor made
from it. The commands and the transcript are those of the guide."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from retl.app.scaffold.curl import is_secret, parse
from retl.app.scaffold.preset import shaped
from retl.destinations import preset_names
from retl.errors import DefinitionError
from retl.testing.script import Script
from tests import inprocess
from tests.inprocess import Said

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "own-vendor.md"
SECRET = "s3cr3t-canary-value"
JSON = """-H 'Content-Type: application/json' -d '{"email": "ann@example.com", "name": "Ann"}'"""


def retl(folder: Path, *words: str) -> Said:
    environment = {name: value for name, value in os.environ.items() if name != "RETL_PROJECT"}
    return inprocess.answer(words, environment, folder)


def test_the_guide_s_commands_do_what_its_transcript_says(tmp_path: Path) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if language == "console":
            command, _, shown = block.removeprefix("$ ").replace("\\\n", " ").partition("\n")
            said = retl(tmp_path, *shlex.split(command)[1:])
            assert said.code == 0, said.err
            assert _lines(said.raw + said.out) == _lines(shown)
        elif language == "yaml":
            name, _, whole = block.partition("\n")
            file = tmp_path / name.removeprefix("# ").strip()
            assert _undated(file.read_text(encoding="utf-8")) == _undated(whole)
    assert SECRET not in "".join(path.read_text() for path in (tmp_path / "presets").rglob("*.yml"))


def _lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def _undated(text: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\d", "DATE", text).strip()


@pytest.mark.parametrize(
    ("credential", "auth"),
    [
        (f"-H 'Authorization: Bearer {SECRET}'", {"type": "bearer", "token": "<token>"}),
        (f"-H 'Authorization: Token {SECRET}'", ("header", "Authorization", "Token <token>")),
        (f"-H 'X-Api-Key: {SECRET}'", ("header", "X-Api-Key", "<token>")),
        (f"-u {SECRET}:", {"type": "basic", "username": "<token>", "password": ""}),
        (f"-u me-{SECRET}:{SECRET}", {"type": "basic", "username": "<user>", "password": "<token>"}),
        (f"'https://api.example.com/v1/people?token={SECRET}'", ("query", "token", "<token>")),
        (f"-uann:{SECRET}", {"type": "basic", "username": "<user>", "password": "<token>"}),
    ],
)
def test_a_credential_never_lands_in_a_file(tmp_path: Path, credential: str, auth: Any) -> None:
    said = retl(
        tmp_path,
        *("presets", "new", "shop", "--curl"),
        f"curl -X POST {credential} https://api.example.com/v1/people {JSON}",
    )
    assert said.code == 0, said.err
    assert SECRET not in said.out + said.raw
    texts = [path.read_text() for path in (tmp_path / "presets").rglob("*.yml")]
    assert len(texts) == 2
    assert SECRET not in "".join(texts)
    made = yaml.safe_load((tmp_path / "presets" / "shop.yml").read_text())
    wanted = dict(zip(("type", "name", "value"), auth, strict=True)) if isinstance(auth, tuple) else auth
    assert made["auth"] == wanted
    assert all(one["secret"] for one in made["connection"].values())
    assert '"${SHOP_TOKEN}"' in said.out
    assert retl(tmp_path, "destinations", "shop").code == 0


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (f"wget https://x.example/{SECRET}", "does not begin"),
        (f'curl https://x.example -d \'{{"a": {{"password": "{SECRET}"}}}}\'', "looks like a secret"),
        (f"curl https://x.example -d '{SECRET}", "not closed"),
        (f"curl https://x.example -d @{SECRET}", "in a file"),
        (f"curl https://x.example --proxy {SECRET}", "does not know"),
        (
            f"curl -u a:{SECRET} -H 'Authorization: Bearer b{SECRET}' https://x.example -d 'a=1'",
            "two credentials",
        ),
        (f"curl ftp://x.example/{SECRET} -d 'a=1'", "https://"),
    ],
)
def test_a_line_that_is_not_understood_whole_is_refused_without_its_values(line: str, why: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        parse(line)
    assert why in caught.value.message
    assert SECRET not in f"{caught.value!r} {caught.value.hint}"


def test_requests_of_one_vendor_agree_in_host_and_credential(tmp_path: Path) -> None:
    lines = ("curl -X PUT https://x.example/p/a1 " + JSON, "curl -u k1: -X DELETE https://x.example/p/a1")
    said = retl(tmp_path, "presets", "new", "shop", "--curl", lines[0], "--curl", lines[1])
    assert (said.code, "the requests differ" in said.err) == (2, True)
    assert not (tmp_path / "presets").exists()


def test_a_webhook_s_address_is_the_secret() -> None:
    call = parse(f'curl https://hooks.example/services/T01/{SECRET}1 -d \'{{"text": "hi"}}\'')
    assert (call.auth, call.path) == ({"type": "url", "url": "<url>"}, "/")
    assert SECRET not in f"{call!r}"


def test_names_of_secrets_are_told_from_names_of_data() -> None:
    secrets = ("access_token", "apiKey", "X-Api-Key", "client_secret", "Cookie", "routing_key", "sig")
    data = ("author", "key", "email", "design", "monkey", "keyword", "tokenized_at", "name")
    assert [name for name in (*secrets, *data) if is_secret(name)] == list(secrets)


@pytest.mark.parametrize(
    ("line", "endpoint"),
    [
        (
            f"POST https://x.example/p {JSON}",
            {"path": "/p", "row": {"$merge": [{"email": "$key"}, "$fields"]}},
        ),
        (
            "PUT https://x.example/p/ann%40x.io -d '{\"age\": 3}'",
            {"method": "PUT", "path": "/p/$key", "row": "$fields"},
        ),
        (
            """POST https://x.example/p -d '{"data": {"type": "p", "attributes": {"email": "a", "n": 1}}}'""",
            {
                "path": "/p",
                "row": {"data": {"type": "p", "attributes": {"$merge": [{"email": "$key"}, "$fields"]}}},
            },
        ),
        (
            """POST https://x.example/p -d '{"dry": false, "rows": [{"id": "1", "properties": {"n": 1}}]}'""",
            {
                "path": "/p",
                "wrap": "rows",
                "envelope": {"dry": False},
                "max_rows": 100,
                "row": {"id": "$key", "properties": "$fields"},
            },
        ),
        ("DELETE https://x.example/p/17", {"method": "DELETE", "path": "/p/$key"}),
        (
            "POST https://x.example/p -d 'email=a%40x.io&tags[a]=1'",
            {"path": "/p", "encoding": "form", "row": {"$merge": [{"email": "$key"}, "$fields"]}},
        ),
    ],
)
def test_a_request_shows_where_key_and_fields_go(line: str, endpoint: dict[str, Any]) -> None:
    assert shaped(parse(f"curl -X {line}")).endpoint == endpoint


POST = f"curl -X POST https://x.example/people {JSON}"
PUT = """curl -X PUT https://x.example/people/123 -d '{"name": "Ann"}'"""


def test_an_address_with_the_vendor_s_own_id_asks_for_a_search(tmp_path: Path) -> None:
    def said(*lines: str) -> Said:
        return retl(tmp_path, "presets", "new", "x", *(word for one in lines for word in ("--curl", one)))

    for lines, why in [
        ((POST, PUT), "so a search is needed"),
        (("curl https://x.example/people?email=bob%40x.io", POST, PUT), "no GET line looks for"),
        (("curl https://x.example/people?email=a", POST), "a GET line is a search"),
        (("curl https://x.example/people",), "write no rows"),
    ]:
        refused = said(*lines)
        assert (refused.code, why in refused.err) == (2, True), refused.err
    search = "curl 'https://x.example/people?all=1&email=ann%40example.com'"
    assert said(search, POST, PUT, "curl -X DELETE https://x.example/people/123").code == 0
    made = yaml.safe_load((tmp_path / "presets" / "x.yml").read_text())
    assert made["find"] == {"path": "/people?all=1&email=$key", "at": "data", "ref": "id"}
    paths = [made[name]["path"] for name in ("insert", "update", "delete")]
    assert (paths, made["outcome"]["ref"]) == (["/people", "/people/$ref", "/people/$ref"], "id")


def test_an_address_with_the_key_needs_no_search(tmp_path: Path) -> None:
    put = """curl -X PUT https://x.example/people/ann%40example.com -d '{"name": "Ann"}'"""
    said = retl(tmp_path, "presets", "new", "x", "--key", "email", "--curl", POST, "--curl", put)
    assert said.code == 0, said.err
    assert "find" not in yaml.safe_load((tmp_path / "presets" / "x.yml").read_text())


PEOPLE = {
    "openapi": "3.0.3",
    "info": {"title": "People", "version": "7"},
    "servers": [{"url": "https://api.people.example/v7"}],
    "paths": {
        "/people": {
            "get": {
                "parameters": [{"name": "email", "in": "query", "schema": {"type": "string"}}],
                "responses": {
                    "200": {
                        "content": {
                            "application/json": {"schema": {"properties": {"data": {"type": "array"}}}}
                        }
                    }
                },
            },
            "post": {
                "requestBody": {
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/P"}}}
                },
                "responses": {
                    "201": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/P"}}}}
                },
            },
        },
        "/people/{id}": {
            "patch": {
                "requestBody": {
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Change"}}}
                }
            },
            "delete": {"responses": {"204": {}}},
        },
    },
    "components": {
        "securitySchemes": {"k": {"type": "apiKey", "in": "header", "name": "X-Key"}},
        "schemas": {
            "Change": {"type": "object", "properties": {"name": {"type": "string", "nullable": True}}},
            "P": {
                "type": "object",
                "required": ["email"],
                "properties": {
                    "id": {"type": "string", "readOnly": True},
                    "email": {"type": "string", "format": "email"},
                    "name": {"type": "string", "nullable": True},
                },
            },
        },
    },
}


def test_paths_of_an_openapi_file_become_operations(tmp_path: Path) -> None:
    (tmp_path / "people.json").write_text(json.dumps(PEOPLE))
    words = ("presets", "new", "people", "--openapi", str(tmp_path / "people.json"))
    said = retl(tmp_path, *words, "--path", "/people", "--path", "/people/{id}")
    assert said.code == 0, said.err
    made = yaml.safe_load((tmp_path / "presets" / "people.yml").read_text())
    assert made["find"] == {"path": "/v7/people?email=$key", "at": "data", "ref": "id"}
    assert made["insert"]["row"] == {"$merge": [{"email": "$key"}, "$fields"]}
    assert (made["update"]["path"], made["delete"]["path"]) == ("/v7/people/$ref", "/v7/people/$ref")
    assert (made["outcome"]["ref"], made["evidence"]) == ("id", ["contract"])
    assert made["auth"] == {"type": "header", "name": "X-Key", "value": "<token>"}
    script = Script.read(tmp_path / "presets" / "tests" / "people.yml")
    kept = json.loads((tmp_path / "presets" / "tests" / script.schemas[0].file).read_text())
    assert kept["components"]["schemas"]["P"]["properties"]["name"]["type"] == ["string", "null"]
    test = tmp_path / "presets" / "tests" / "people.yml"
    recorded = "{operation: insert, status: 201, body: {id: '7'}, keys: [a], means: [rejected]}"
    test.write_text(test.read_text() + f"recorded: [{recorded}]\n")
    done = retl(tmp_path, "presets", "test", "presets/people.yml", "--output", "json")
    proof = done.document
    assert (done.code, proof["problems"]) == (
        1,
        ["recorded 1: read as written"],
    )  # what was recorded is wrong
    assert (proof["faults"], proof["rows"]) == (8, 27)
    assert proof["schema"] >= 27
    assert retl(tmp_path, *words, "--path", "/people").code == 2  # nothing is overwritten
    assert "/people" in retl(tmp_path, *words, "--path", "/peple").err


FILES = """
summary: A vendor that takes a file in a form, and gives a file of what it refused.
docs: Made up.
evidence: [own]
source: none
checked_on: 2026-11-29
connection: {token: {about: A token., secret: true}}
base_url: https://vendor.example
root: /v2
auth: {type: bearer, token: <token>}
cast: {keys: string}
upsert: {path: /rows, encoding: multipart, wrap: file, envelope: {format: csv}, row: $row, max_rows: 100}
job:
  id: id
  path: /jobs/$job
  every: 1ms
  done: {at: waiting, empty: true}
  errors_url: file
  errors_format: csv
  outcome: {rows: errors_by_index, at: errors, index: line, first: 2, reason: why}
outcome: {ok: [200], ok_when: {at: faults, empty: true}}
limits: {concurrency: 2, source: none, checked_on: 2026-11-29}
example: "source: {table: t}"
"""


def test_a_vendor_of_files_is_rehearsed(tmp_path: Path) -> None:
    (tmp_path / "presets").mkdir()
    (tmp_path / "retl.yml").touch()
    (tmp_path / "presets/shop.yml").write_text(FILES)
    said = retl(tmp_path, "presets", "test", "presets/shop.yml")
    assert said.code == 0, said.err
    assert "one bad row: survived" in said.raw + said.out + said.err


def test_the_list_shows_every_preset_and_the_project_s_own(tmp_path: Path) -> None:
    assert (
        retl(tmp_path, "presets", "new", "shop", "--curl", f"curl -X PUT https://x.example/p/1 {JSON}").code
        == 0
    )
    listed = retl(tmp_path, "presets", "--output", "json").document["presets"]
    assert [one["name"] for one in listed] == sorted([*preset_names(), "shop"])
    states = {one["name"]: one["state"] for one in listed}
    assert (states["shop"], states["stripe"], states["hubspot"]) == ("own", "preview", "proved")
    assert all(
        one[part] for one in listed for part in ("operations", "evidence", "limits", "erasure", "conflicts")
    )
    assert "delete: gdpr" in retl(tmp_path, "presets", "list").out
