"""A first preset, and its test, from a request that works: which value is the key, where the fields go.

It writes no credential and guesses no answer: what a refusal looks like, and the vendor's limits, are left to
a person, and the file says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from msgspec import Struct, field

from retl import destinations
from retl.app.scaffold.curl import Call
from retl.app.scaffold.yamltext import flow
from retl.errors import DefinitionError, writing

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_KEYS = (
    "external_id",
    "externalId",
    "user_id",
    "userId",
    "customer_id",
    "email",
    "email_address",
    "id",
    "key",
)
_CONTAINERS = {"fields", "properties", "attributes", "traits", "dataFields", "custom_fields", "values"}
_CONTAINERS |= {"user_properties", "profile", "contact", "customer"}
_OPERATIONS = {"PUT": "upsert", "PATCH": "update", "POST": "insert", "DELETE": "delete"}


class Shaped(Struct):
    """An operation of the preset, and the row that makes the request it came from."""

    name: str
    endpoint: dict[str, Any]
    key: str
    row: dict[str, Any]
    call: Call


class Draft(Struct):
    """What will be written: operations by name, `more` parts of the preset, and notes for the user."""

    vendor: str
    operations: list[Shaped]
    evidence: str
    source: str
    more: dict[str, Any] = field(default_factory=dict)
    schemas: dict[str, Any] = field(default_factory=dict)  # operation → JSON Schema of its body

    @property
    def first(self) -> Shaped:
        return self.operations[0]


def shaped(call: Call, key: str | None = None, operation: str | None = None) -> Shaped:
    """The operation that sends rows as this call does. DefinitionError USAGE if no value can be the key."""
    name = operation or _OPERATIONS.get(call.method)
    if name is None:
        raise DefinitionError(
            "USAGE", f"a {call.method} request writes no rows", hint="give a request that writes"
        )
    body, path = call.body, call.path
    row: dict[str, Any] = {}
    wrap, envelope = None, dict[str, Any]()
    if (found := _wrapped(body, key)) is not None:
        wrap, envelope, body = found
        call.body = [body] if wrap == "" else {**envelope, wrap: [body]}
    column = key or "id"
    in_path = _in_path(call, body, key)
    if in_path is not None:
        path, column, row[column] = in_path
    made: Any = None
    if body is not None:
        where = _key_path(body, column if in_path else key)
        if where is None and in_path is None:
            raise DefinitionError(
                "USAGE", "no value of the request can be the key", hint="name it: --key NAME"
            )
        if where is not None:
            column = where[-1]
        made = _row(body, where, column, row)
    endpoint: dict[str, Any] = {} if call.method == "POST" else {"method": call.method}
    endpoint["path"] = path
    endpoint |= {"encoding": call.encoding} if call.encoding == "form" else {}
    endpoint |= {"wrap": wrap} if wrap is not None else {}
    endpoint |= {"envelope": envelope} if envelope else {}
    endpoint |= {"row": made} if made is not None else {}
    endpoint |= {"max_rows": 100} if wrap is not None else {}
    return Shaped(name, endpoint, column, row, call)


def _wrapped(body: Any, key: str | None) -> tuple[str, dict[str, Any], Any] | None:
    """The path of a list of rows, what is around it, and its first row."""
    if isinstance(body, list) and body and isinstance(body[0], dict):
        return "", {}, body[0]
    if not isinstance(body, dict) or (key or "") in body or set(_KEYS) & body.keys():
        return None
    for name, part in body.items():
        if isinstance(part, list) and part and isinstance(part[0], dict):
            return name, {other: value for other, value in body.items() if other != name}, part[0]
    return None


def _in_path(call: Call, body: Any, key: str | None) -> tuple[str, str, str] | None:
    """The path with `$key`, the column and the value, if the address names the row."""
    path, mark, query = call.path.partition("?")
    *before, last = path.split("/")
    placed = re.fullmatch(r"\{(\w+)\}", unquote(last))
    if call.method not in ("PUT", "PATCH", "DELETE") and not placed:
        return None
    value = unquote(last)
    held = [name for name, one in (body.items() if isinstance(body, dict) else ()) if one == value]
    if not (placed or held or re.search(r"[0-9@]", value)):
        return None
    column = held[0] if held else key or (placed[1] if placed else "id")
    return "/".join([*before, "$key"]) + mark + query, column, "k1" if placed else value


def _key_path(body: Any, key: str | None) -> tuple[str, ...] | None:
    """The way to the key in a body: the shallowest member of that name."""
    found = [way for way, value in _members(body) if not isinstance(value, dict | list | bool | None)]
    if key is not None:
        named = [way for way in found if way[-1] == key or ".".join(way) == key]
        return min(named, key=len, default=None)
    for name in _KEYS:
        if named := [way for way in found if way[-1] == name]:
            return min(named, key=len)
    ids = [way for way in found if way[-1].lower().endswith(("id", "email", "key", "name"))]
    return min(ids or found, key=len, default=None)


def _members(body: Any, way: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if not isinstance(body, dict):
        return []
    return [
        one for name, part in body.items() for one in [((*way, name), part), *_members(part, (*way, name))]
    ]


def _row(body: Any, where: tuple[str, ...] | None, column: str, row: dict[str, Any]) -> Any:
    """The shape of a body, and its values into `row`."""
    if not isinstance(body, dict):
        return body
    if where is not None and len(where) > 1:
        return {
            name: _row(part, where[1:], column, row) if name == where[0] else part
            for name, part in body.items()
        }
    inner = [name for name, part in body.items() if name in _CONTAINERS and isinstance(part, dict)]
    if where is None and not inner:
        row.update(body)
        return "$fields"
    if where is not None:
        row[column] = body[where[0]]
    if inner:
        row.update(body[inner[0]])
        own = {name: part for name, part in body.items() if name != inner[0]}
        return own | ({where[0]: "$key"} if where else {}) | {inner[0]: "$fields"}
    assert where is not None
    others = {name: value for name, value in body.items() if name != where[0]}
    row.update(others)
    return {"$merge": [{where[0]: "$key"}, "$fields"]} if others else {where[0]: "$key"}


def write(folder: Path, draft: Draft) -> list[Path]:
    """Write presets/VENDOR.yml, its test and the schemas; returns the files. DefinitionError PRESET_NAME,
    FILE_EXISTS, or USAGE if a secret would be in one of them."""
    if not _NAME.fullmatch(draft.vendor):
        raise DefinitionError("PRESET_NAME", f"{draft.vendor!r} cannot be a preset's name")
    if draft.vendor in (*destinations.names(), *destinations.preset_names()):
        raise DefinitionError("PRESET_TWICE", f"there is already a destination type {draft.vendor!r}")
    ways = [(one.call.base_url, one.call.auth, one.call.headers) for one in draft.operations]
    names = [one.name for one in draft.operations]
    if any(way != ways[0] for way in ways) or len(set(names)) < len(names):
        raise DefinitionError("USAGE", "the requests differ in host, credential or headers, or do the same")
    files = {folder / "presets" / f"{draft.vendor}.yml": preset_text(draft)}
    tests = folder / "presets" / "tests"
    files[tests / f"{draft.vendor}.yml"] = test_text(draft)
    for name, schema in draft.schemas.items():
        files[tests / f"{draft.vendor}.{name}.json"] = json.dumps(schema, indent=1) + "\n"
    secrets = [one for shape in draft.operations for one in shape.call.secrets if len(one) > 3]
    for path, text in files.items():
        if path.exists():
            raise DefinitionError("FILE_EXISTS", f"{path} already exists; nothing was written")
        if any(secret in text for secret in secrets):
            raise DefinitionError("USAGE", "the credential is also in another part of the request")
    for path, text in files.items():
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return list(files)


def preset_text(draft: Draft) -> str:
    """The preset as YAML, with comments on what is not known yet."""
    call = draft.first.call
    names = ", ".join(shape.name for shape in draft.operations)
    lines = [f"summary: {draft.vendor} by HTTP ({names})"]
    lines += [
        "docs: |",
        f"  The key is the column `{draft.first.key}`; other fields have the names of the API.",
    ]
    lines += [
        "  Say here which rights the account needs, and what a delete does.",
        f"evidence: [{draft.evidence}]",
    ]
    lines += [f"source: {flow(draft.source)}", f"checked_on: {date.today()}"]
    if call.connection:
        lines += ["connection:", *(f"  {name}: {flow(one)}" for name, one in call.connection.items())]
    lines += [f"base_url: {flow(call.base_url)}"] if call.auth["type"] != "url" else []
    lines += [f"auth: {flow(call.auth)}"] if call.auth["type"] != "none" else []
    lines += [f"headers: {flow(call.headers)}"] if call.headers else []
    if "find" in draft.more and draft.evidence == "docs":
        lines += [
            "# `at`: where the answer to the search has its objects; `ref`: where each has its id. Look."
        ]
    lines += [f"{name}: {flow(part)}" for name, part in draft.more.items() if name != "outcome"]
    for shape in draft.operations:
        lines += [f"{shape.name}:", *(f"  {name}: {flow(part)}" for name, part in shape.endpoint.items())]
        if "wrap" in shape.endpoint:
            lines[-1] += "  # look the vendor's limit up"
    outcome = {"ok": [200, 201, 202, 204], **draft.more.get("outcome", {})}
    lines += ["# What an answer means: a refusal of all rows, until you say where it names the bad ones."]
    lines += [f"outcome: {flow(outcome)}"]
    lines += ["# Look the vendor's limits up, and say where."]
    limits = {"requests": 5, "per": "1s", "source": "a guess", "checked_on": str(date.today())}
    lines += [f"limits: {flow(limits)}"]
    lines += ["example: |", f"  source: {{table: mart_{draft.vendor}}}", f"  key: [{draft.first.key}]"]
    lines += [f"  destination: {{connection: {draft.vendor}}}"]
    if {shape.name for shape in draft.operations} <= {"insert"}:
        lines += ["  write: append", "  delivery: at_most_once"]
    return "\n".join(lines) + "\n"


def test_text(draft: Draft) -> str:
    """The test of the preset as YAML."""
    same = [shape for shape in draft.operations if shape.key == draft.first.key]
    first = max(same, key=lambda shape: len(shape.row))
    rows = [_varied(first.row, first.key, n) for n in range(3)]
    lines = [f"# What `retl presets test presets/{draft.vendor}.yml` sends, and what it compares."]
    lines += [f"key: {flow(first.key)}", "rows:", *(f"  - {flow(row)}" for row in rows)]
    known = draft.operations if draft.evidence == "docs" else []  # an invented example proves nothing
    golden = [one for one in map(_golden, known) if one is not None]
    lines += ["# Requests that are known to be right, and the rows that they are for."] if golden else []
    lines += ["golden:", *(f"  - {flow(one)}" for one in golden)] if golden else []
    if draft.schemas:
        parts = [{"operation": name, "file": f"{draft.vendor}.{name}.json"} for name in draft.schemas]
        lines += ["schemas:", *(f"  - {flow(one)}" for one in parts)]
    lines += ["# Answers of the vendor, with what they really meant:"]
    lines += ["# recorded:"]
    example = {"operation": draft.first.name, "status": 422, "body": {"message": "…"}}
    lines += [f"#   - {flow({**example, 'keys': [str(rows[0][first.key])], 'means': ['rejected']})}"]
    return "\n".join(lines) + "\n"


def _golden(shape: Shaped) -> dict[str, Any] | None:
    if "$ref" in shape.endpoint["path"] or "{" in unquote(shape.call.path) or not shape.row:
        return None
    path, mark, query = ("/" + shape.call.path.lstrip("/")).partition("?")
    body = {} if shape.call.body is None else {"body": shape.call.body}
    path = "/".join(quote(unquote(part), safe="$&+,;=:@") for part in path.split("/")) + mark + query
    return {"operation": shape.name, "method": shape.call.method, "path": path, **body, "row": shape.row}


def _varied(row: dict[str, Any], key: str, n: int) -> dict[str, Any]:
    """The same row under another key."""
    value = row[key]
    if n:
        value = value + n if isinstance(value, int) else f"r{n}-{value}"
    return {key: value, **{name: part for name, part in row.items() if name != key}}


def next_steps(draft: Draft) -> Sequence[str]:
    """What to do with the files."""
    upper = draft.vendor.upper()
    keys = ", ".join(f'{name}: "${{{upper}_{name.upper()}}}"' for name in draft.first.call.connection)
    more = f", {keys}" if keys else ""
    steps = [
        f"retl presets test presets/{draft.vendor}.yml",
        f"add to retl.yml: connections: {{{draft.vendor}: {{type: {draft.vendor}{more}}}}}",
        f"retl destinations {draft.vendor}    # its page, with an example of a sync",
    ]
    if {shape.name for shape in draft.operations} == {"insert"}:
        steps.append(
            "if the vendor takes a row twice without making two objects, rename `insert` to `upsert`"
        )
    return steps
