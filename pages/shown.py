"""Files next to a guide, copied into its page: the file is tested, the page follows."""

from __future__ import annotations

import re
from pathlib import Path

_SHOWN = re.compile(r'^(```\w+ title="([\w.-]+)"\n).*?^```$', re.MULTILINE | re.DOTALL)


def filled(text: str, folder: Path) -> str:
    """The page with the current content of every file it shows."""
    return _SHOWN.sub(lambda found: f"{found[1]}{(folder / found[2]).read_text(encoding='utf-8')}```", text)
