"""Values → the YAML of definitions. Reading the text gives the same values."""

from __future__ import annotations

import json
import re
from typing import Any

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_TYPED = {"true", "false", "null"}


def flow(value: Any) -> str:
    """A value on one line. A `${NAME}` in it stays a variable."""
    match value:
        case None | bool() | int() | float():
            return json.dumps(value)
        case dict():
            return "{" + ", ".join(f"{flow(str(name))}: {flow(item)}" for name, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(flow, value)) + "]"
    text = str(value)
    if _PLAIN.fullmatch(text) and text not in _TYPED:
        return text
    escaped = json.dumps(text, ensure_ascii=False)
    return re.sub(r"[\x7f-\x9f\u2028\u2029\ufeff]", lambda found: f"\\u{ord(found[0]):04x}", escaped)


def sentence(text: str) -> str:
    """A sentence on one line, with `${` escaped."""
    return flow(" ".join(text.split()).replace("${", "$${"))
