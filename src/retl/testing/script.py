"""The test file of a preset, and what of it is compared with the preset: requests that are known to be right,
recorded answers, and the schema of what is sent.

It sends nothing. `rehearsal` runs syncs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote

from msgspec import Struct, field
from pydantic import Field

from retl.app.scaffold.curl import nested
from retl.destinations.batch import Kind, Mode, Outcome, RowResult, WriteMode
from retl.destinations.http.body import Template
from retl.destinations.http.outcome import Sent, interpret
from retl.errors import Poisoned, RetlError
from retl.model import Definition
from retl.net.messages import Reply
from retl.project.validation import validate
from retl.project.variables import Filled
from retl.project.yamlfile import load
from retl.testing.vendor import Vendor

HEADERS = ("preset", "evidence", "schema", "golden", "recorded", "faults", "rows once")
COUNTED = ("schema", "golden", "recorded", "faults", "rows")
_OPERATIONS: dict[str, Mode] = {
    "upsert": "upsert",
    "insert": "append",
    "update": "update_only",
    "delete": "delete",
}


class Golden(Definition):
    """A request that is known to be right, and the row that it is for."""

    operation: Literal["upsert", "insert", "update", "delete"]
    method: str
    path: str
    body: Any = None
    row: dict[str, Any]


class Recording(Definition):
    """A recorded answer and what it really meant for each row: written, rejected, skipped or unknown."""

    operation: Literal["upsert", "insert", "update", "delete"]
    status: int
    headers: dict[str, str] = Field(default={})
    body: Any = None
    keys: tuple[str, ...]
    means: tuple[Literal["written", "rejected", "skipped", "unknown"], ...]


class Schema(Definition):
    """A JSON Schema of the bodies of an operation: a file beside this one, and a pointer into it."""

    operation: Literal["upsert", "insert", "update", "delete"]
    file: str
    pointer: str = ""


class Script(Definition):
    """The test file of a preset. `rows` are the rows of a mart with the key in the column `key`."""

    name: str
    key: str = "id"
    rows: tuple[dict[str, Any], ...] = Field(default=(), max_length=3)
    connection: dict[str, Any] = Field(default={})
    parameters: dict[str, Any] = Field(default={})
    golden: tuple[Golden, ...] = ()
    schemas: tuple[Schema, ...] = ()
    recorded: tuple[Recording, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Script:
        """The test file at a path; the defaults if there is none."""
        if not path.exists():
            return cls(name=path.stem)
        tree = load(path, name=path.name)
        return validate(cls, Filled(tree, (), tree.value), name=path.stem)


class Proof(Struct):
    """What was proved of a preset, and what went wrong."""

    preset: str
    evidence: tuple[str, ...]
    write: WriteMode
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def row(self) -> tuple[str, ...]:
        return (self.preset, ", ".join(self.evidence), *(str(self.counts[name]) for name in COUNTED))


def golden(script: Script, vendor: Vendor, proof: Proof) -> None:
    """Our requests for the rows of known requests."""
    for n, one in enumerate(script.golden, start=1):
        key = script.key
        endpoint = getattr(vendor.options, one.operation)
        if endpoint is None:
            proof.problems.append(f"golden {n}: the preset has no `{one.operation}`")
            continue
        fields = [name for name in one.row if name != key] if one.operation != "delete" else []
        given = (one.row[key], json.dumps({name: one.row[name] for name in fields}))
        row = given if one.operation != "delete" else given[:1]
        request = Template(endpoint, [key], fields).request([row])
        body = request.body
        form = dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True))
        sent = json.loads(body) if is_json(body) else nested(list(form.items())) or None
        ours = request.method, unquote(request.target), sent
        if ours == (one.method, unquote(one.path), one.body):
            proof.counts["golden"] += 1
        else:
            proof.problems.append(f"golden {n}: the preset sends {ours[0]} {ours[1]} {json.dumps(ours[2])}")


def recorded(script: Script, vendor: Vendor, proof: Proof) -> None:
    """What the preset's rules make of recorded answers."""
    for n, one in enumerate(script.recorded, start=1):
        try:
            outcome = _read(one, vendor)
        except RetlError as error:
            proof.problems.append(f"recorded {n}: {error.message} [{error.code}]")
            continue
        means = tuple(outcome.result(row).kind.value.lower() for row in range(len(one.keys)))
        if means == one.means:
            proof.counts["recorded"] += 1
        else:
            proof.problems.append(f"recorded {n}: read as {', '.join(means)}")


def _read(one: Recording, vendor: Vendor) -> Outcome:
    """What a recorded answer means; a refusal of all rows is a refusal of each."""
    rules = vendor.destination.rules(_OPERATIONS[one.operation])
    numbers = [str(number) for number in range(len(one.keys))]
    sent = Sent(
        len(one.keys),
        one.operation != "insert",
        lambda to: numbers if to == "$row_no" else one.keys,
        lambda row: [],
    )
    body = b"" if one.body is None else json.dumps(one.body).encode()
    try:
        return interpret(Reply(one.status, {k.lower(): v for k, v in one.headers.items()}, body), rules, sent)
    except Poisoned as error:
        return Outcome(RowResult(Kind.REJECTED, error.code))


def schema(script: Script, vendor: Vendor, proof: Proof, folder: Path) -> None:
    """Hold what was sent against the vendor's schema."""
    if not script.schemas:
        return
    try:
        import jsonschema  # type: ignore[import-untyped]
    except ImportError:
        proof.notes.append("the schema is not checked: `pip install 'retl-cli[presets]'`")
        return
    for one in script.schemas:
        document = json.loads((folder / one.file).read_text(encoding="utf-8"))
        schema = {**document, "$ref": one.pointer} if one.pointer else document
        checked = jsonschema.Draft202012Validator(schema)
        for operation, _, body in vendor.bodies:
            if operation != one.operation or not is_json(body):
                continue
            error = next(iter(checked.iter_errors(json.loads(body))), None)
            if error is not None:
                where = "/".join(map(str, error.absolute_path))
                proof.problems.append(f"schema: {operation} at {where or 'the top'}: {error.validator}")
                break
            proof.counts["schema"] += 1


def is_json(body: bytes) -> bool:
    return body[:1] in (b"{", b"[")
