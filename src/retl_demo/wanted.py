"""The variables of a project's own connections, with the addresses of the demo's servers.

The project says which variables it has, whatever their names are; nothing of it is changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from retl.errors import DefinitionError
from retl.project import yamlfile
from retl.project.files import PROJECT_FILE

# Per type of connection: its options, and the demo's name for what they say.
_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "postgres": {"dbname": "DB", "host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"},
    "redis": {"host": "HOST", "port": "PORT", "password": "PASSWORD"},
    "hubspot": {"base_url": "URL", "token": "TOKEN"},
    "slack": {"url": "URL"},
}
_VARIABLE = re.compile(r"\$\{(\w+)(?::-[^}]*)?\}")


def variables(folder: Path, served: Mapping[str, str]) -> dict[str, str]:
    """The variables that connections of the project in `folder` have for options of the servers in `served`.
    None if there is no project yet, or its file is wrong, which other commands say."""
    tree: Any = {}
    if (folder / PROJECT_FILE).is_file():
        with suppress(DefinitionError):
            tree = yamlfile.load(folder / PROJECT_FILE).value
    connections = tree.get("connections") if isinstance(tree, dict) else None
    found: dict[str, str] = {}
    for written in connections.values() if isinstance(connections, dict) else ():
        if isinstance(written, dict) and isinstance(type := written.get("type"), str):
            for option, name in _OPTIONS.get(type, {}).items():
                if used := _VARIABLE.fullmatch(str(written.get(option))):
                    found[used[1]] = served[f"{type.upper()}_{name}"]
    return {name: value for name, value in found.items() if name not in served}
