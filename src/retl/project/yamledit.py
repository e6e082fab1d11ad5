"""Changes to the text of a definition that leave every other byte as it is: comments, order, quotes.

It finds the places of values in the text and replaces only these. The result is read again: one that does not
say what was meant is refused.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from msgspec import Struct

from retl.errors import DefinitionError
from retl.project import yamlfile
from retl.project.yamlfile import Loc


class Edit(Struct, frozen=True):
    """Of the mapping at `loc`: the key gets the value (YAML on one line), and is new if it was not there.
    With `name` it is renamed, with neither it is removed. Of a list, `key` is the position."""

    loc: Loc
    key: str | int
    text: str | None = None
    name: str | None = None


def edited(text: str, edits: Sequence[Edit], file: str) -> str:
    """The text after these edits, one after the other. DefinitionError EDIT_BY_HAND if the text cannot be
    changed without touching more."""
    for edit in edits:
        before = yamlfile.load(Path(file), text, name=file).value
        try:
            text = _applied(text, edit)
            done = yamlfile.load(Path(file), text, name=file).value == _meant(before, edit)
        except (DefinitionError, LookupError, TypeError):
            done = False
        if not done:
            at = ".".join(map(str, (*edit.loc, edit.key)))
            raise DefinitionError(
                "EDIT_BY_HAND", f"{at} cannot be changed here without touching more", hint="change it by hand"
            )
    return text


def _meant(value: Any, edit: Edit) -> Any:
    """What the text must say afterwards."""
    value = copy.deepcopy(value)
    inner = value
    for part in edit.loc:
        inner = inner[part]
    if edit.name is not None:
        items = [(edit.name if key == edit.key else key, item) for key, item in inner.items()]
        inner.clear()
        inner.update(items)
    elif edit.text is None:
        del inner[edit.key]
    else:
        inner[edit.key] = yamlfile.load(Path("value"), edit.text).value
    return value


def _applied(text: str, edit: Edit) -> str:
    mapping = _at(yaml.compose(text, Loader=yaml.SafeLoader), edit.loc)
    if isinstance(mapping, yaml.SequenceNode):
        assert isinstance(edit.key, int)
        return _replaced(text, mapping.value[edit.key], str(edit.text))
    found = next((pair for pair in mapping.value if pair[0].value == edit.key), None)
    if found is None:
        key = edit.key if re.fullmatch(r"[A-Za-z_]\w*", str(edit.key)) else json.dumps(edit.key)
        return _inserted(text, mapping, f"{key}: {edit.text}")
    if edit.name is not None:
        return _replaced(text, found[0], edit.name)
    if edit.text is not None:
        return _replaced(text, found[1], edit.text)
    return _removed(text, mapping, found)


def _at(node: Any, loc: Loc) -> Any:
    for part in loc:
        if isinstance(node, yaml.SequenceNode):
            node = node.value[part]
        else:
            node = {key.value: value for key, value in node.value}[part]
    return node


def _replaced(text: str, node: yaml.Node, new: str) -> str:
    return text[: node.start_mark.index] + new + text[_end(text, node) :]


def _inserted(text: str, mapping: yaml.MappingNode, item: str) -> str:
    if not mapping.value:
        return _replaced(text, mapping, f"{{{item}}}")
    end = _end(text, mapping.value[-1][1])
    if mapping.flow_style:
        return f"{text[:end]}, {item}{text[end:]}"
    newline = text.find("\n", end)
    line_end = len(text) if newline < 0 else newline
    return f"{text[:line_end]}\n{' ' * mapping.start_mark.column}{item}{text[line_end:]}"


def _removed(text: str, mapping: yaml.MappingNode, pair: tuple[yaml.Node, yaml.Node]) -> str:
    start, end = pair[0].start_mark.index, _end(text, pair[1])
    if not mapping.flow_style:
        newline = text.find("\n", end)
        return text[: text.rfind("\n", 0, start) + 1] + ("" if newline < 0 else text[newline + 1 :])
    at = mapping.value.index(pair)
    if at + 1 < len(mapping.value):
        return text[:start] + text[mapping.value[at + 1][0].start_mark.index :]
    return text[: _end(text, mapping.value[at - 1][1]) if at else start] + text[end:]


def _end(text: str, node: yaml.Node) -> int:
    """Where the last character of a value ends: a block ends with its last value, not with what follows."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(text, last[1] if isinstance(last, tuple) else last)
    end = int(node.end_mark.index)
    return end - 1 if end and text[end - 1] == "\n" else end
