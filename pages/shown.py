"""Files beside a guide, shown in it: the file is what is tested, the page follows it."""

from __future__ import annotations

import re
from pathlib import Path

_SHOWN = re.compile(r'^(```\w+ title="([\w.-]+)"\n).*?^```$', re.MULTILINE | re.DOTALL)


def filled(text: str, folder: Path) -> str:
    """The page with the present content of every file it shows."""
    return _SHOWN.sub(lambda found: f"{found[1]}{(folder / found[2]).read_text(encoding='utf-8')}```", text)
