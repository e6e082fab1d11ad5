"""Typing mistakes in names: variables of config.env that nothing uses and that are nearly named like others,
and files in `syncs` whose ending is nearly that of a sync."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from retl.app.loaded import LoadedProject
from retl.project.files import ENDINGS, sync_folder
from retl.project.settings import named_by_settings, plain_name

_ENDING = 0.7  # .ymll and .YML are like .yml; .xml and .sql are not
_ALIKE = 0.8  # POSTGRES_PROT is like POSTGRES_PORT, and CRM_HOST is not like CRM_PORT


def find(project: LoadedProject) -> dict[str, str]:
    """The names in config.env that neither a setting nor a definition uses → the used name that each is like.
    A variable that is like none may be for another program, and is not named."""
    used = {*named_by_settings(), *project.variable_names()}
    found = {}
    for name in sorted(project.environment.in_file()):
        plain = plain_name(name)
        near = get_close_matches(plain.upper(), sorted(used), n=1, cutoff=_ALIKE)
        if near and not used & {name, plain}:
            found[name] = near[0]
    return found


def endings(folder: Path) -> dict[str, str]:
    """The files in `syncs` that are not read, and whose ending is nearly that of a sync → that ending."""
    found = {}
    for path in sync_folder(folder):
        suffix = path.suffix
        near = get_close_matches(suffix.lower(), ENDINGS, n=1, cutoff=_ENDING)
        if near and suffix not in ENDINGS and not suffix.endswith("~"):  # a copy that an editor made
            found[path.relative_to(folder).as_posix()] = near[0]
    return found
