"""What to do about a CODE: the text of docs/errors.md, which the wheel carries."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from msgspec import Struct

import retl

_ROW = re.compile(r"\| `([A-Z0-9_]+)` \| (.+) \|")


class Code(Struct, frozen=True):
    """A code, the heading that it stands under, and what to do."""

    code: str
    kind: str
    text: str


@cache
def codes() -> dict[str, Code]:
    """Every code of docs/errors.md, by name."""
    package = Path(retl.__file__).parent
    pages = (root / "docs" / "errors.md" for root in (package, package.parents[1]))
    text = next(page for page in pages if page.is_file()).read_text(encoding="utf-8")
    found, kind = {}, ""
    for line in text.splitlines():
        if line.startswith("## "):
            kind = line.removeprefix("## ")
        elif row := _ROW.fullmatch(line):
            found[row[1]] = Code(row[1], kind, row[2].replace("\\|", "|"))
    return found
