"""A schema registry on a real socket, with Confluent's paths, error codes and compatibility of Avro and JSON.

    GET    /subjects/{s}/versions, /subjects/{s}/versions/{n|latest}     40401 no subject, 40402 no version
    POST   /subjects/{s}                                                 is it there? 40403 if not
    POST   /subjects/{s}/versions                                        409 if it is incompatible, 42201 invalid
    POST   /compatibility/subjects/{s}/versions/{n|latest}               {"is_compatible", "messages"}
    GET    /schemas/ids/{id}
    GET    /config, /config/{s}    PUT /config/{s}                       NONE, or BACKWARD (the default)

`decoded` reads a record as consumers do: by the id in it, with fastavro and jsonschema, which retl's JSON has no
part in.
"""

from __future__ import annotations

import json
import ssl
import struct
from base64 import b64encode
from collections.abc import Iterator
from decimal import Decimal
from io import BytesIO
from typing import Any, Self
from urllib.parse import unquote

import fastavro
import jsonschema

from retl.testing.server import FakeApi
from tests.kafka import LOGIN

Said = tuple[int, Any]


class SchemaRegistry(FakeApi):
    """`login`: who may ask. `readonly`: the account may not register. `asked`: methods and paths so far."""

    def __init__(self, login: tuple[str, str] | None = LOGIN, tls: ssl.SSLContext | None = None) -> None:
        super().__init__()
        self.login, self.tls, self.readonly = login, tls, False
        self.schemas: dict[int, tuple[str, str]] = {}  # by id: the type and the text
        self.subjects: dict[str, list[int]] = {}
        self.levels: dict[str, str] = {}

    def __enter__(self) -> Self:
        super().__enter__()
        if self.tls is not None:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        return self

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def connection(self) -> dict[str, Any]:
        """The value for `registry` of a connection."""
        user, password = self.login or (None, None)
        return {"url": self.url} | ({"user": user, "password": password} if user else {})

    @property
    def asked(self) -> list[str]:
        return [f"{method} {path.split('?')[0]}" for method, path, *_ in self.seen]

    def add(self, subject: str, schema: Any, kind: str = "AVRO") -> int:
        """The id of a version that somebody else has registered."""
        text = schema if isinstance(schema, str) else json.dumps(schema)
        known = [number for number, one in self.schemas.items() if one == (kind, text)]
        number = known[0] if known else len(self.schemas) + 1
        self.schemas[number] = kind, text
        versions = self.subjects.setdefault(subject, [])
        if number not in versions:
            versions.append(number)
        return number

    def newest(self, subject: str) -> dict[str, Any]:
        """The schema itself."""
        found: dict[str, Any] = json.loads(self.schemas[self.subjects[subject][-1]][1])
        return found

    def decoded(self, value: bytes) -> Any:
        magic, number = struct.unpack(">bI", value[:5])
        kind, text = self.schemas[number]
        assert magic == 0
        if kind == "AVRO":
            into = BytesIO(value[5:])
            found = fastavro.schemaless_reader(into, json.loads(text), None)
            assert into.read() == b""
            return found
        jsonschema.validate(json.loads(value[5:]), json.loads(text))
        return json.loads(value[5:], parse_float=Decimal)

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Said:
        if self.login is not None:
            basic = "Basic " + b64encode(":".join(self.login).encode()).decode()
            if headers.get("authorization") != basic:
                return 401, {"error_code": 401, "message": f"no such account: {headers.get('authorization')}"}
        content: dict[str, Any] = json.loads(body) if body else {}
        kind, text = content.get("schemaType", "AVRO"), content.get("schema", "")
        match (method, [unquote(part) for part in path.split("?")[0].split("/")[1:]]):
            case ("GET", ["schemas", "ids", number]):
                found = self.schemas.get(int(number))
                return (200, {"schema": found[1]}) if found else _missing(40403, "Schema not found")
            case ("GET", ["config", *subject]):
                return 200, {"compatibilityLevel": self._level("".join(subject))}
            case ("PUT", ["config", subject]):
                self.levels[subject] = content["compatibility"]
                return 200, content
            case (_, ["subjects", subject, *rest]) if method == "GET" or not rest:
                return self._looked_up(subject, rest, kind, text)
            case ("POST", ["subjects", subject, "versions"]):
                return self._registered(subject, kind, text)
            case ("POST", ["compatibility", "subjects", subject, "versions", _]):
                if subject not in self.subjects:
                    return _missing(40401, f"Subject '{subject}' not found.")
                found_ = self._objections(subject, kind, text)
                return 200, {"is_compatible": not found_, "messages": found_}
        return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}

    def _looked_up(self, subject: str, rest: list[str], kind: str, text: str) -> Said:
        versions = self.subjects.get(subject)
        if versions is None:
            return _missing(40401, f"Subject '{subject}' not found.")
        if rest == ["versions"]:
            return 200, list(range(1, len(versions) + 1))
        if not rest:
            found = [number for number in versions if self.schemas[number] == (kind, text)]
            return (200, self._version(subject, found[0])) if found else _missing(40403, "Schema not found")
        if rest[1] == "latest":
            return 200, self._version(subject, versions[-1])
        if not 1 <= int(rest[1]) <= len(versions):
            return _missing(40402, f"Version {rest[1]} not found.")
        return 200, self._version(subject, versions[int(rest[1]) - 1])

    def _registered(self, subject: str, kind: str, text: str) -> Said:
        if self.readonly:
            return 403, {"error_code": 40301, "message": "User is denied operation Write on Subject"}
        if not _valid(kind, text):
            return 422, {"error_code": 42201, "message": "Invalid schema"}
        if objections := self._objections(subject, kind, text):
            message = f"Schema being registered is incompatible with an earlier schema: {objections}"
            return 409, {"error_code": 409, "message": message}
        return 200, {"id": self.add(subject, text, kind)}

    def _objections(self, subject: str, kind: str, text: str) -> list[str]:
        """As for BACKWARD: whether a reader with the new schema reads what has the newest one."""
        versions = self.subjects.get(subject, [])
        if not versions or self._level(subject) == "NONE":
            return []
        old_kind, old = self.schemas[versions[-1]]
        read = _avro if kind == "AVRO" else _json
        found = list(read(json.loads(text), json.loads(old))) if kind == old_kind else ["SCHEMA_TYPE"]
        more = [f"{{oldSchemaVersion: {len(versions)}}}", f"{{oldSchema: '{old}'}}"]
        return [*found, *more, f"{{compatibility: '{self._level(subject)}'}}"] if found else []

    def _level(self, subject: str) -> str:
        return self.levels.get(subject, "BACKWARD")

    def _version(self, subject: str, number: int) -> dict[str, Any]:
        kind, text = self.schemas[number]
        version = self.subjects[subject].index(number) + 1
        named = {} if kind == "AVRO" else {"schemaType": kind}
        return {"subject": subject, "version": version, "id": number, "schema": text, **named}


def _missing(code: int, message: str) -> Said:
    return 404, {"error_code": code, "message": message}


def _valid(kind: str, text: str) -> bool:
    try:
        if kind == "AVRO":
            fastavro.parse_schema(json.loads(text))
        else:
            jsonschema.Draft7Validator.check_schema(json.loads(text))
    except (fastavro.schema.SchemaParseException, jsonschema.SchemaError, ValueError):
        return False
    return True


def _avro(reader: dict[str, Any], writer: dict[str, Any]) -> Iterator[str]:
    if (reader["name"], reader.get("namespace")) != (writer["name"], writer.get("namespace")):
        yield "{errorType:'NAME_MISMATCH', description:'The name of the schema has changed'}"
    old = {one["name"]: one for one in writer["fields"]}
    for one in reader["fields"]:
        name = one["name"]
        if name not in old and "default" not in one:
            yield (
                "{errorType:'READER_FIELD_MISSING_DEFAULT_VALUE', description:'The field"
                f" '{name}' in the new schema has no default value and is missing in the old schema'}}"
            )
        elif name in old and not _readable(one["type"], old[name]["type"]):
            yield f"{{errorType:'TYPE_MISMATCH', description:'The type of field '{name}' does not match'}}"


def _readable(reader: Any, writer: Any) -> bool:
    if isinstance(writer, list):
        return all(_readable(reader, one) for one in writer)
    if isinstance(reader, list):
        return any(_readable(one, writer) for one in reader)
    new, old = (one if isinstance(one, dict) else {"type": one} for one in (reader, writer))
    if new["type"] != old["type"]:
        return (old["type"], new["type"]) in {("int", "long"), ("long", "double"), ("float", "double")}
    if new["type"] == "array":
        return _readable(new["items"], old["items"])
    return (new.get("precision"), new.get("scale")) == (old.get("precision"), old.get("scale"))


def _json(reader: dict[str, Any], writer: dict[str, Any]) -> Iterator[str]:
    new, old = reader["properties"], writer["properties"]
    open_ = writer.get("additionalProperties", True) is not False
    for name in new.keys() - old.keys():
        if open_:
            yield f"{{errorType:'PROPERTY_ADDED_TO_OPEN_CONTENT_MODEL', description:'{name}'}}"
        elif name in reader.get("required", ()):
            yield f"{{errorType:'REQUIRED_PROPERTY_ADDED_TO_UNOPEN_CONTENT_MODEL', description:'{name}'}}"
    for name in old.keys() - new.keys():
        if reader.get("additionalProperties", True) is False:
            yield f"{{errorType:'PROPERTY_REMOVED_FROM_CLOSED_CONTENT_MODEL', description:'{name}'}}"
    for name in new.keys() & old.keys():
        if new[name] != old[name] and old[name] not in new[name].get("oneOf", ()):
            yield f"{{errorType:'TYPE_CHANGED', description:'{name}'}}"
