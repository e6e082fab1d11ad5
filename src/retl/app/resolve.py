"""The project's folder: find retl.yml and syncs/, fill in variables and check everything that is written."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from retl.app.connections import Connections
from retl.app.consistency import faults
from retl.app.loaded import LoadedProject
from retl.errors import DefinitionError
from retl.observe.redact import register_model
from retl.project.definitions import Project, Warehouse
from retl.project.files import PROJECT_FILE, read_project_file, read_syncs
from retl.project.settings import Environment, Settings, read
from retl.project.validation import each, raise_all
from retl.project.variables import Filled

if TYPE_CHECKING:
    from retl.destinations.presets import Preset


def open_project(
    folder: Path,
    environment: str | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    to_read: bool = False,
    **flags: Any,
) -> LoadedProject:
    """Read the project in `folder` with --env `environment`; `flags` override Settings.

    DefinitionError(s) for everything wrong in any file; unset variables are not an error here. With `to_read`
    only the ledger is going to be read: what is wrong with syncs or presets is in `faults`, and `syncs` are
    the others. retl.yml must be right, because it says where the ledger is.
    """
    folder = folder.resolve()
    variables = Environment(folder, environment, environ)
    settings = read(Settings, variables, **flags)
    if not _is_project(folder):
        raise _no_project(folder)
    definitions, file = read_project_file(folder, variables)

    wrong: dict[str, DefinitionError] | None = {} if to_read else None
    presets, lacking = _readable(folder) if to_read else (None, [])

    def more(written: Filled) -> list[DefinitionError]:
        return Connections(definitions.connections, variables, file, _presets(folder)).faults(written)

    found = read_syncs(folder, variables, file, more, wrong)
    project = LoadedProject(
        folder=folder,
        environment=variables,
        settings=settings,
        definitions=definitions,
        warehouse=_warehouse(folder, definitions.warehouse, settings),
        state_url=_state_url(folder, definitions, file, settings, environment),
        syncs={name: read.sync for name, read in found.items()},
        presets=_presets(folder) if presets is None else presets,
        file=file,
        _written={name: read.written for name, read in found.items()},
        unread=frozenset(wrong or ()) - found.keys(),
    )
    register_model(definitions)
    if to_read:
        # What is wrong between syncs can only be seen when all of them are known.
        return replace(project, faults=(*lacking, *(wrong or {}).values()) or tuple(faults(project)))
    raise_all(faults(project))
    return project


def _is_project(folder: Path) -> bool:
    return (folder / PROJECT_FILE).is_file() or (folder / "syncs").is_dir()


def _no_project(folder: Path) -> DefinitionError:
    """With the nearest folder above that is a project, if there is one: a new one would be inside it."""
    above = next((one for one in folder.parents if _is_project(one)), None)
    hint = "`retl init` makes a project; --project names one"
    if above is not None:
        name = shlex.quote(os.path.relpath(above) if Path.cwd() == folder else str(above))
        hint = f"{above} is a project: `--project {name}` names it"
    message = f"there is neither {PROJECT_FILE} nor a folder syncs/ in {folder}"
    return DefinitionError("NO_PROJECT", message, hint=hint)


def _readable(folder: Path) -> tuple[Mapping[str, Preset], list[DefinitionError]]:
    """The presets, and what is wrong with them: then there are none."""
    try:
        return _presets(folder), []
    except DefinitionError as problem:
        return {}, [*each(problem)]


def _presets(folder: Path) -> Mapping[str, Preset]:
    if not (folder / "presets").is_dir():
        return {}
    from retl.destinations import presets  # loads all of HTTP, which other projects do not need

    return presets.own(folder)


def _warehouse(folder: Path, warehouse: Warehouse, settings: Settings) -> Warehouse:
    path = _beside(folder, settings.duckdb_path or warehouse.path)
    read_paths = tuple(_beside(folder, each) for each in warehouse.read_paths)
    dbt = _beside(folder, warehouse.dbt)
    return warehouse.model_copy(update={"path": path, "read_paths": read_paths, "dbt": dbt})


def _beside(folder: Path, path: str) -> str:
    """A path from the project's folder. It has no symbolic links, so each leading `..` is its parent."""
    parts = Path(path).parts
    while parts[:1] == ("..",):
        folder, parts = folder.parent, parts[1:]
    return str(folder.joinpath(*parts))


def _state_url(
    folder: Path, definitions: Project, file: Filled, settings: Settings, environment: str | None
) -> str:
    """Absolute. A file state gets its own folder per --env NAME, unless the environment names the state."""
    url = settings.retl_state_url or definitions.state.url
    scheme, _, rest = url.partition(":")
    if scheme in ("postgresql", "postgres") or ("state", "url") in file.missing:
        return url
    if scheme != "file" or not rest or rest.startswith("//"):
        where = "environment RETL_STATE_URL" if settings.retl_state_url else file.place(("state", "url"))
        filled = "write the address itself, or `state: {url: …}` in retl.yml, which fills in variables"
        hint = filled if settings.retl_state_url and "${" in url else None
        raise DefinitionError("STATE_URL", "a state is file:FOLDER or postgresql://…", hint=hint, where=where)
    own = () if settings.retl_state_url or environment is None else (environment,)
    return f"file:{Path(_beside(folder, rest)).joinpath(*own)}"
