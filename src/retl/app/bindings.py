"""Which variables of SQL a project has, and whether those that a run is given are among them.

A name that nothing declares and nothing uses is mistyped, and the run without its value would be another one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from retl.app.loaded import LoadedProject
from retl.errors import DefinitionError
from retl.project import parameters
from retl.project.validation import did_you_mean

_USE = re.compile(r"(?<![\w$])\$([A-Za-z_]\w*)")
_PARTS = ("source", "checks", "deletes")  # of a sync: where SQL stands


def require(project: LoadedProject, given: Iterable[str], *texts: str | None) -> None:
    """DefinitionError USAGE for a name that is neither under `vars` nor used as `$name` in a sync, or in one
    of `texts`, which are SQL of the command line."""
    if project.faults:  # a file that cannot be read may use it
        return
    known = {*project.definitions.vars, *_used([*project.texts(_PARTS), *_files(project), *texts])}
    for name in given:
        if name not in known:
            listed = f"variables: {', '.join(sorted(known))}" if known else "this project has no variables"
            hint = did_you_mean(name, sorted(known)) or f"{listed}; SQL reads one as ${name}"
            message = f"--var {name}: nothing under `vars` in retl.yml and no sync has a variable {name!r}"
            raise DefinitionError("USAGE", message, hint=hint)


def typed(project: LoadedProject, given: Mapping[str, Any], *texts: str | None) -> dict[str, Any]:
    """The variables that Python code gives: a text becomes what --var makes of it where retl.yml has a value.
    DefinitionError USAGE as `require`, VAR_INVALID."""
    require(project, given, *texts)
    declared = project.definitions.vars
    return {
        name: parameters.given(name, value, declared[name])
        if isinstance(value, str) and declared.get(name) is not None
        else value
        for name, value in given.items()
    }


def _files(project: LoadedProject) -> Iterator[str]:
    """The SQL that syncs have in files; one that cannot be read is an error when it is needed."""
    for sync in project.syncs.values():
        inputs = (sync.source.inputs or {}).values()
        for file in (sync.source.file, *(one.get("file") for one in inputs)):
            with suppress(OSError, UnicodeDecodeError):
                yield (project.folder / file).read_text(encoding="utf-8") if file else ""


def _used(texts: Iterable[str | None]) -> Iterator[str]:
    for text in texts:
        yield from _USE.findall(text or "")
