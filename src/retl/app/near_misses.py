"""Variables of config.env that nothing uses and that are nearly named like others: typing mistakes."""

from __future__ import annotations

from difflib import get_close_matches

from retl.app.loaded import LoadedProject
from retl.project.settings import named_by_settings, plain_name

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
