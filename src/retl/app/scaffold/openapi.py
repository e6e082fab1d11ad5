"""Paths of an OpenAPI 3 file as operations of a preset, with the schemas of their bodies.

It follows references inside the file only, and invents example values by name, type and format. What a
path cannot say, such as a vendor's limits, it leaves to a person.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from retl.app.scaffold.curl import Call
from retl.app.scaffold.lines import by_id
from retl.app.scaffold.preset import Draft, shaped
from retl.errors import DefinitionError
from retl.project.validation import did_you_mean
from retl.project.yamlfile import load

_METHODS = ("post", "put", "patch", "delete")
_FORMATS = {"email": "ann@example.com", "date": "2026-01-31", "date-time": "2026-01-31T06:00:00Z"}
_FORMATS |= {"uri": "https://example.com", "url": "https://example.com"}
_FORMATS |= {"uuid": "2f1e5a44-9d0a-4b8e-8a55-0f6f6d1f0c11"}
_TYPES: dict[str, Any] = {
    "string": "Ann",
    "integer": 1,
    "number": 1.5,
    "boolean": True,
    "array": [],
    "object": {},
}
_FORM = "application/x-www-form-urlencoded"


class Api:
    """An OpenAPI document. DefinitionError FILE_MISSING, OPENAPI_INVALID."""

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            raise DefinitionError("FILE_MISSING", f"there is no file {file.name!r}", where=str(file))
        try:
            text = file.read_text(encoding="utf-8")
            self.document: Any = json.loads(text) if text.lstrip().startswith("{") else load(file).value
        except ValueError as problem:
            raise _wrong("it is neither JSON nor YAML") from problem
        paths = self.document.get("paths") if isinstance(self.document, dict) else None
        self.paths: dict[str, Any] = paths if isinstance(paths, dict) else {}
        if not self.paths or not str(self.document.get("openapi", "")).startswith("3"):
            raise _wrong("it is no OpenAPI 3 document")

    def draft(self, vendor: str, paths: Sequence[str], key: str | None) -> Draft:
        """The operations of these paths. DefinitionError OPENAPI_INVALID if a path is not in the document."""
        base = urlsplit(str(next(iter(self.document.get("servers") or [{}])).get("url", "")))
        if not base.hostname:
            raise _wrong("it has no `servers` with an https address", "--base-url names it")
        source = (self.document.get("externalDocs") or {}).get("url") or f"the OpenAPI document {self._title}"
        draft = Draft(vendor, [], "contract", source)
        for path in paths:
            if path not in self.paths:
                raise _wrong(f"it has no path {path}", did_you_mean(path, self.paths))
            for method in _METHODS:
                if method in self.paths[path]:
                    self._operation(draft, base, path, method, key)
        if not draft.operations:
            raise _wrong("these paths write nothing", "give a path with POST, PUT, PATCH or DELETE")
        self._join(draft, base, key)
        return draft

    @property
    def _title(self) -> str:
        info = self.document.get("info") or {}
        return f"{info.get('title', '')} {info.get('version', '')}".strip()

    def _operation(self, draft: Draft, base: Any, path: str, method: str, key: str | None) -> None:
        said = self.paths[path][method]
        schema, encoding = self._body_schema(said)
        call = Call(method.upper(), f"{base.scheme}://{base.netloc}", base.path.rstrip("/") + path)
        call.encoding = "form" if encoding == _FORM else "json"
        call.body = self.example(schema) if schema is not None and method != "delete" else None
        self._credential(call, said)
        made = shaped(call, key)
        if any(one.name == made.name for one in draft.operations):
            return
        if schema is not None and method != "delete" and "wrap" not in made.endpoint:
            draft.schemas[made.name] = self.closed(schema)
        draft.operations.append(made)

    def _join(self, draft: Draft, base: Any, key: str | None) -> None:
        """Where POST creates objects and their own address changes them: look for a key by the list."""
        by_name = {one.name: one for one in draft.operations}
        insert, change = by_name.get("insert"), by_name.get("update") or by_name.get("upsert")
        if insert is None or change is None or "$key" not in change.endpoint["path"]:
            return
        collection = insert.call.path.removeprefix(base.path.rstrip("/"))
        listed = self.paths.get(collection, {}).get("get")
        names = [self.found(one).get("name") for one in (listed or {}).get("parameters", [])]
        if insert.key not in names:
            return
        at = self._list_at(listed)
        path = f"{insert.call.path}?{insert.key}=$key"
        draft.more["find"] = {"path": path, **({"at": at} if at else {}), "ref": "id"}
        draft.more["outcome"] = {"ref": self._id_at(self.paths[collection]["post"])}
        by_id(insert, [one for one in draft.operations if "$key" in one.endpoint["path"]])
        draft.operations.sort(key=lambda one: one.name != "insert")

    def _list_at(self, said: Any) -> str | None:
        """The path of the list in the answer to a question; None if the answer is the list."""
        schema = self._answer(said)
        members = schema.get("properties", {})
        return next((name for name, one in members.items() if self.found(one).get("type") == "array"), None)

    def _id_at(self, said: Any) -> str:
        members = self._answer(said).get("properties", {})
        for name, one in members.items():
            if name != "id" and "id" not in members and "id" in self.found(one).get("properties", {}):
                return f"{name}.id"
        return "id"

    def _answer(self, said: Any) -> Any:
        for status, one in (said.get("responses") or {}).items():
            if str(status).startswith("2"):
                for content in (self.found(one).get("content") or {}).values():
                    return self.found(content.get("schema", {}))
        return {}

    def _body_schema(self, said: Any) -> tuple[Any, str]:
        body = self.found(said.get("requestBody") or {})
        for kind in ("application/json", _FORM):
            for name, content in (body.get("content") or {}).items():
                if name.startswith(kind) or (kind.endswith("json") and name.endswith("+json")):
                    return content.get("schema"), kind
        return None, "application/json"

    def _credential(self, call: Call, said: Any) -> None:
        needed = said.get("security", self.document.get("security")) or []
        schemes = (self.document.get("components") or {}).get("securitySchemes") or {}
        names = [name for one in needed for name in one] or list(schemes)
        for scheme in (self.found(schemes[name]) for name in names if name in schemes):
            match scheme:
                case {"type": "http", "scheme": "basic"}:
                    call.auth = {"type": "basic", "username": "<user>", "password": "<token>"}
                    call.connection["user"] = {"about": "Name of the user.", "secret": True}
                case {"type": "http"} | {"type": "oauth2"} | {"type": "openIdConnect"}:
                    call.auth = {"type": "bearer", "token": "<token>"}
                case {"type": "apiKey", "in": "header" | "query" as where, "name": str(name)}:
                    call.auth = {"type": where, "name": name, "value": "<token>"}
                case _:
                    continue
            call.connection["token"] = {"about": "Credential of the API.", "secret": True}
            return

    # schemas

    def found(self, part: Any) -> Any:
        """A part, or what its `$ref` leads to."""
        for _ in range(20):
            if not (isinstance(part, dict) and isinstance(part.get("$ref"), str)):
                return part if isinstance(part, dict) else {}
            at = self.document
            for step in part["$ref"].removeprefix("#/").split("/"):
                at = at.get(step.replace("~1", "/").replace("~0", "~"), {}) if isinstance(at, dict) else {}
            part = at
        raise _wrong("its references lead in a circle")

    def example(self, schema: Any, name: str = "", depth: int = 0) -> Any:
        """A value of a schema: what is required of an object, and some simple members beside it."""
        schema = self.found(schema)
        for word in ("example", "default", "const"):
            if word in schema:
                return schema[word]
        if schema.get("enum"):
            return schema["enum"][0]
        for word in ("oneOf", "anyOf"):
            if schema.get(word):
                return self.example(schema[word][0], name, depth)
        members, required = self._properties(schema)
        kind = schema.get("type") or ("object" if members else "string")
        kind = next((one for one in kind if one != "null"), "string") if isinstance(kind, list) else kind
        if kind == "object":
            simple = [
                one
                for one in members
                if self.found(members[one]).get("type") in ("string", "integer", "number")
            ]
            wanted = [
                one
                for one in members
                if one in required or one in simple[:6] or (depth < 2 and one in required)
            ]
            return {
                one: self.example(members[one], one, depth + 1)
                for one in wanted
                if not self.found(members[one]).get("readOnly") and depth < 5
            }
        if kind == "array":
            items = self.found(schema.get("items"))
            return [self.example(items, name, depth + 1)] if items.get("properties") and depth < 3 else []
        if kind == "string":
            near = "ann@example.com" if "email" in name.lower() else None
            return _FORMATS.get(schema.get("format", "")) or near or _long_enough(schema)
        return schema.get("minimum", _TYPES.get(kind))

    def _properties(self, schema: Any) -> tuple[dict[str, Any], set[str]]:
        members, required = dict(schema.get("properties") or {}), set(schema.get("required") or ())
        for part in schema.get("allOf") or ():
            inner, needed = self._properties(self.found(part))
            members, required = {**inner, **members}, required | needed
        return members, required

    def closed(self, schema: Any) -> dict[str, Any]:
        """The schema with everything that it refers to, as JSON Schema."""
        named: dict[str, Any] = {}
        waiting = [schema]
        while waiting:
            for ref in _references(waiting.pop()):
                if ref not in named and ref.startswith("#/"):
                    named[ref] = self.found({"$ref": ref})
                    waiting.append(named[ref])
        whole: dict[str, Any] = dict(nullable(schema))
        for ref, part in named.items():
            *steps, last = ref.removeprefix("#/").split("/")
            at = whole
            for step in steps:
                at = at.setdefault(step, {})
            at[last] = nullable(part)
        return whole


def _long_enough(schema: Any) -> str:
    least, most = int(schema.get("minLength", 0)), int(schema.get("maxLength", 100))
    return ("Ann" * (1 + least // 3))[: max(least, min(most, 3))]


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)


def nullable(schema: Any) -> Any:
    """OpenAPI's `nullable` as JSON Schema says it."""
    if isinstance(schema, list):
        return [nullable(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: nullable(part) for name, part in schema.items()}
    if made.get("nullable") is True and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    return made


def _wrong(why: str, hint: str | None = None) -> DefinitionError:
    return DefinitionError("OPENAPI_INVALID", f"the OpenAPI file cannot be used: {why}", hint=hint)
