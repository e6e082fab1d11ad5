"""Text → values with file, line and column, for the subset of YAML in definitions.

Only `true`, `false`, `null`, `~`, an empty value and JSON numbers have a type. Every other plain word
(`no`, `0777`, `12:30:00`, `2026-11-20`) stays text. It refuses what is easy to overlook: duplicate keys,
anchors, aliases, merge keys, tags, several documents, keys that are not text. It reads events, not nodes,
so a file that nests too deep or expands too much is refused before it uses memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from msgspec import Struct

from retl.errors import DefinitionError, Place

try:
    from yaml import CSafeLoader as _Loader
except ImportError:  # PyYAML built without libyaml: slower, the same events
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 50

Loc = tuple[str | int, ...]

_INT = re.compile(r"-?(0|[1-9][0-9]{0,999})")
_FLOAT = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}


class Tree(Struct, frozen=True):
    """Plain Python values (dict, list, str, int, float, bool, None) and the place of each."""

    file: str
    value: Any
    places: Mapping[Loc, Place]
    keys: Mapping[Loc, Place]

    def place(self, loc: Loc) -> Place:
        """Where the value at `loc` starts. Parts of `loc` that are not in the file (a name added by a
        model, a missing key) are skipped."""
        return self.places[self.written(loc)]

    def key_place(self, loc: Loc) -> Place:
        """Where the key of `loc` starts; for a list item or the whole document, where the value starts."""
        written = self.written(loc)
        return self.keys.get(written, self.places[written])

    def written(self, loc: Loc) -> Loc:
        """`loc` without the parts that are not in the text."""
        found: Loc = ()
        for part in loc:
            if (*found, part) in self.places:
                found = (*found, part)
        return found

    def at(self, loc: Loc) -> Any:
        """The value at `loc`; KeyError or IndexError if there is none."""
        value = self.value
        for part in loc:
            value = value[part]
        return value

    def under(self, key: str) -> Tree:
        """The same values under one key of a new mapping."""
        places = {(key, *loc): place for loc, place in self.places.items()}
        keys = {(key, *loc): place for loc, place in self.keys.items()}
        return Tree(self.file, {key: self.value}, {(): self.places[()], **places}, keys)

    def over(self, lower: Tree, under: Loc, groups: frozenset[str]) -> Tree:
        """This mapping merged over the one at `under` of `lower`. Keys given here win; those in `groups`
        are merged key by key. Every value keeps its own place."""
        below = lower.at(under)
        value = {**below, **self.value}
        for group in groups & below.keys() & self.value.keys():
            if isinstance(below[group], dict) and isinstance(self.value[group], dict):
                value[group] = {**below[group], **self.value[group]}
        start = len(under)
        places = {loc[start:]: place for loc, place in lower.places.items() if loc[:start] == under}
        keys = {loc[start:]: place for loc, place in lower.keys.items() if loc[:start] == under}
        return Tree(self.file, value, {**places, **self.places}, {**keys, **self.keys})


def load(path: Path, text: str | None = None, *, name: str | None = None) -> Tree:
    """The document of a file; `text` replaces its content, `name` its path in messages.

    DefinitionError YAML_INVALID or YAML_LIMIT with the place; FILE_UNREADABLE if it cannot be read.
    """
    name = name or str(path)
    text = _read(path, name) if text is None else text.removeprefix("\ufeff")
    if len(text) > MAX_BYTES:
        raise _too_large(name)
    try:
        return _Builder(name).build(yaml.parse(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text, name) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = Place(name, before.count("\n") + 1, len(before) - before.rfind("\n"))
        raise DefinitionError("YAML_INVALID", "control characters are not allowed", where=place) from None
    except UnicodeError:
        raise DefinitionError("YAML_INVALID", "the file is not UTF-8 text", where=Place(name)) from None


def empty(name: str) -> Tree:
    """An empty mapping, for a file that does not exist."""
    return Tree(name, {}, {(): Place(name)}, {})


def _read(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DefinitionError(
            "FILE_UNREADABLE", f"cannot be read: {error.strerror}", where=Place(name)
        ) from None
    if len(data) > MAX_BYTES:
        raise _too_large(name)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DefinitionError("YAML_INVALID", "the file is not UTF-8 text", where=Place(name, line)) from None


def _too_large(name: str) -> DefinitionError:
    return DefinitionError(
        "YAML_LIMIT", f"the file is larger than {MAX_BYTES // 1024} KiB; split it", where=Place(name)
    )


def _syntax_error(error: yaml.MarkedYAMLError, text: str, name: str) -> DefinitionError:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return DefinitionError("YAML_INVALID", str(error.problem), where=Place(name))
    place = Place(name, mark.line + 1, mark.column + 1)
    index = _index(text, mark.line, mark.column)
    if text[max(index - 1, 0) : index + 1] == "${":
        return DefinitionError(
            "YAML_UNQUOTED",
            "inside {…} or […] ${NAME} must be quoted",
            hint='write "${NAME}", in double quotes',
            where=place,
        )
    if text[index : index + 1] == "\t" or (error.problem and "tab" in error.problem):
        return DefinitionError("YAML_INVALID", "this line is indented with a tab; use spaces", where=place)
    what, mark = _mistake(error, mark, text)
    place = Place(name, mark.line + 1, mark.column + 1)
    return DefinitionError("YAML_INVALID", f"this is not valid YAML: {what}", where=place)


def _mistake(error: yaml.MarkedYAMLError, mark: yaml.Mark, text: str) -> tuple[str, yaml.Mark]:
    """What is wrong, in words about the text, and where: the parser notices some only on the next line."""
    context, problem, begin = error.context or "", error.problem or "", error.context_mark or mark
    here = text[_index(text, mark.line, mark.column) :][:1]
    before = text[_index(text, mark.line, 0) : _index(text, mark.line, mark.column)]
    if "could not find expected ':'" in problem:
        return "this line has no ':' after its key", begin
    if problem.startswith("mapping values are not allowed"):
        if ": " in before:
            return "a value with ': ' in it must be quoted", mark
        return "this line does not fit the one above it, which has no ':' or another indentation", mark
    if context.startswith("while parsing a flow"):
        if begin.line != mark.line:
            return f"nothing closes this {text[_index(text, begin.line, begin.column)]!r}", begin
        return f"before {here!r} a comma or the end of {{…}} or […] is missing", mark
    if "quoted scalar" in context and "end of stream" in problem:
        return "nothing closes this quote", begin
    if "cannot start any token" in problem:
        return f"a value that starts with {here!r} must be quoted", mark
    if context.startswith("while parsing a block"):
        if before.strip():
            return f"the value ended before {here!r}: quote the whole value", mark
        return "this line is not indented like the lines above it", mark
    return f"{context} {problem}".strip(), mark


def _index(text: str, line: int, column: int) -> int:
    """The offset of a mark. The parser's own index counts bytes or characters, so lines are used."""
    lines = re.split(r"\r\n|[\n\r\x85\u2028\u2029]", text)
    breaks = re.findall(r"\r\n|[\n\r\x85\u2028\u2029]", text)
    return sum(len(part) for part in (*lines[:line], *breaks[:line])) + column


class _Builder:
    """Turns parse events into one Tree."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.places: dict[Loc, Place] = {}
        self.keys: dict[Loc, Place] = {}

    def build(self, events: Iterator[yaml.Event]) -> Tree:
        value: Any = None
        documents = 0
        self.places[()] = Place(self.name, 1, 1)
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._error("a file must contain only one document", event)
            elif isinstance(event, yaml.NodeEvent):
                value = self._value(event, events, ())
        return Tree(self.name, value, self.places, self.keys)

    def _value(self, event: yaml.Event, events: Iterator[yaml.Event], loc: Loc) -> Any:
        self._refuse(event, len(loc))
        self.places[loc] = self._place(event)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(events, loc)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(item := next(events), yaml.SequenceEndEvent):
                items.append(self._value(item, events, (*loc, len(items))))
            return items
        assert isinstance(event, yaml.ScalarEvent)
        return _scalar(event)

    def _mapping(self, events: Iterator[yaml.Event], loc: Loc) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            self._refuse(event, len(loc))
            key = _scalar(event) if isinstance(event, yaml.ScalarEvent) else None
            if not isinstance(event, yaml.ScalarEvent) or not isinstance(key, str):
                raise self._error("a key must be text", event, 'put it in quotes if it is a name: "1": …')
            if key == "<<" and event.implicit[0]:
                raise self._error("merge keys (<<) are not allowed", event, "write the keys out")
            if key in found:
                first = self.keys[(*loc, key)].line
                raise self._error(f"the key {key!r} is used twice; the first is on line {first}", event)
            self.keys[(*loc, key)] = self._place(event)
            found[key] = None
            found[key] = self._value(next(events), events, (*loc, key))
        return found

    def _refuse(self, event: yaml.Event, depth: int) -> None:
        if isinstance(event, yaml.AliasEvent):
            raise self._error("aliases (*name) are not allowed", event, "write the value out")
        if getattr(event, "anchor", None) is not None:
            raise self._error("anchors (&name) are not allowed", event, "write the value out")
        if getattr(event, "tag", None) is not None:
            raise self._error(
                "tags (!name) are not allowed", event, "put the value in quotes if the ! is part of it"
            )
        if depth > MAX_DEPTH:
            message = f"nested deeper than {MAX_DEPTH} levels"
            raise DefinitionError("YAML_LIMIT", message, where=self._place(event))

    def _place(self, event: yaml.Event) -> Place:
        assert event.start_mark is not None
        return Place(self.name, event.start_mark.line + 1, event.start_mark.column + 1)

    def _error(self, message: str, event: yaml.Event, hint: str | None = None) -> DefinitionError:
        return DefinitionError("YAML_INVALID", message, hint=hint, where=self._place(event))


def _scalar(event: yaml.ScalarEvent) -> str | int | float | bool | None:
    text: str = event.value
    return plain(text) if event.implicit[0] else text  # else it is quoted, or a block scalar


def plain(text: str) -> str | int | float | bool | None:
    """The value of a word without quotes."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        number = float(text)
        return text if number in (float("inf"), float("-inf")) else number
    return text
