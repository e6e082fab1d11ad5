"""The files of a project → definitions: retl.yml, syncs/**/*.yml and the contracts they name.

It finds the files, applies the defaults and validates. It does not check syncs against each other. No path
of a definition may lead outside the project.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from retl.errors import DefinitionError, Place
from retl.project.contracts import ContractFile
from retl.project.definitions import SYNC_NAME, Project, Sync
from retl.project.settings import Environment
from retl.project.validation import each, raise_all, validate
from retl.project.variables import Filled, fill
from retl.project.yamlfile import Loc, Tree, empty, load

PROJECT_FILE = "retl.yml"
ENDINGS = (".yml", ".yaml")  # of the files of syncs
# Groups of settings in `defaults` that a sync overrides key by key. Other keys are replaced as a whole.
GROUPS = frozenset({"guards", "rejects", "batch", "retry", "formats", "destination"})


class Read(Struct, frozen=True):
    """A sync and its written form, with places in its file and in the defaults."""

    sync: Sync
    written: Filled


def read_project_file(folder: Path, environment: Environment) -> tuple[Project, Filled]:
    """retl.yml, or the defaults without it. Values of connections are not filled in yet: a secret is looked
    up when its connection is used."""
    path = folder / PROJECT_FILE
    tree = load(path, name=PROJECT_FILE) if path.exists() else empty(PROJECT_FILE)
    if tree.value is None:
        tree = empty(PROJECT_FILE)
    written = fill(tree, environment, later=_waits)
    if isinstance(defaults := tree.value.get("defaults") if isinstance(tree.value, dict) else None, dict):
        raise_all(
            DefinitionError(
                "DEFINITION_INVALID",
                "`name` cannot have a default: a sync's name is its file name",
                where=tree.key_place(loc),
            )
            for loc in [("defaults", "name")]
            if "name" in defaults
        )
    return validate(Project, written), written


def read_syncs(
    folder: Path,
    environment: Environment,
    project_file: Filled,
    more: Callable[[Filled], Iterable[DefinitionError]] = lambda _written: (),
    wrong: dict[str, DefinitionError] | None = None,
) -> dict[str, Read]:
    """Every sync by name, sorted. DefinitionError(s) for all files at once; `more` finds those of a wrong
    file that its models do not see. If `wrong` is given, it gets the first error of each wrong file, by the
    file's stem, and nothing is raised."""
    found: dict[str, Read] = {}
    errors: list[DefinitionError] = []

    def failed(path: Path, error: DefinitionError) -> None:
        if wrong is None:
            errors.append(error)
        else:
            wrong[path.stem] = each(error)[0]

    for path in sync_paths(folder, lambda problem: _denied(folder, problem, failed)):
        try:
            read = _read_sync(folder, path, environment, project_file.tree)
            if (other := found.get(read.sync.name)) is not None:
                message = f"the sync {read.sync.name!r} is already defined in {other.written.tree.file}"
                raise DefinitionError(
                    "SYNC_TWICE",
                    message,
                    hint="rename one file: the file name is the sync's name, in every folder",
                    where=Place(read.written.tree.file),
                )
            found[read.sync.name] = read
        except DefinitionError as error:
            failed(path, error)
            if wrong is None:
                with suppress(DefinitionError):  # it cannot even be read
                    errors += more(_written(folder, path, environment, project_file.tree))
    raise_all(errors)
    return dict(sorted(found.items()))


def _denied(folder: Path, problem: OSError, failed: Callable[[Path, DefinitionError], None]) -> None:
    """A folder that cannot be listed may have syncs in it; one that is not there has none."""
    if not isinstance(problem, FileNotFoundError):
        path = Path(problem.filename)
        place = Place(path.relative_to(folder).as_posix())
        failed(path, DefinitionError("FILE_UNREADABLE", f"cannot be read: {problem.strerror}", where=place))


def _waits(loc: Loc) -> bool:
    """What is filled in when it is used: a secret is read by those who need it."""
    used = {"connections": ("type", "limits"), "sources": ("type",), "alerts": ("on", "syncs", "tags")}
    return len(loc) > 2 and loc[0] in used and loc[2] not in used[str(loc[0])]


def sync_paths(folder: Path, denied: Callable[[OSError], object] = lambda _problem: None) -> Iterator[Path]:
    yield from (path for path in sync_folder(folder, denied) if path.suffix in ENDINGS)


def sync_folder(folder: Path, denied: Callable[[OSError], object] = lambda _problem: None) -> Iterator[Path]:
    """Every file in `syncs`, also those that define no sync, and links to files that are gone. `denied` is
    called for a folder that cannot be listed."""
    found: list[Path] = []
    seen: set[str] = set()  # links may lead in a circle
    for base, folders, names in os.walk(folder / "syncs", onerror=denied, followlinks=True):
        seen.add(os.path.realpath(base))
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(base, name)) not in seen
        ]
        found += [Path(base, name) for name in names if not name.startswith(".")]
    yield from (path for path in sorted(found) if path.is_file() or _leads_nowhere(path))


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _read_sync(folder: Path, path: Path, environment: Environment, project: Tree) -> Read:
    file, name = path.relative_to(folder).as_posix(), path.stem
    if not SYNC_NAME.fullmatch(name) or name == "all":
        raise DefinitionError(
            "SYNC_NAME",
            f"{name!r} is not a valid name of a sync",
            hint="a lower-case letter, then up to 62 lower-case letters, digits, - and _; `all` is reserved",
            where=Place(file),
        )
    written = _written(folder, path, environment, project)
    sync = validate(Sync, written, name=name)
    if sync.source.file is not None:
        inside(folder, sync.source.file, written.place(("source", "file")))
    if sync.contract is not None and sync.contract.file is not None:
        columns = _read_columns(folder, sync.contract.file, environment, written.place(("contract",)))
        contract = validate(ContractFile, columns).contract
        sync = sync.model_copy(update={"contract": sync.contract.model_copy(update={"columns": contract})})
        written = replace(written, missing={**written.missing, **columns.missing})
    return Read(sync, written)


def _written(folder: Path, path: Path, environment: Environment, project: Tree) -> Filled:
    """A sync's file over the defaults of retl.yml, with its variables filled in."""
    tree = load(path, name=path.relative_to(folder).as_posix())
    if isinstance(tree.value, dict) and "defaults" in project.value:
        tree = tree.over(project, ("defaults",), GROUPS)
    return fill(tree, environment)


def _read_columns(folder: Path, file: str, environment: Environment, place: Place) -> Filled:
    tree = load(inside(folder, file, place), name=file)
    return fill(tree.under("contract"), environment)


def inside(folder: Path, relative: str, place: Place) -> Path:
    """A file of the project. DefinitionError FILE_OUTSIDE or FILE_MISSING."""
    try:
        path = (folder / relative).resolve()
        exists = path.is_file()
    except (OSError, ValueError):  # too long, or contains NUL
        exists, path = False, folder
    if not path.is_relative_to(folder):
        raise DefinitionError("FILE_OUTSIDE", f"{relative!r} leads outside the project", where=place)
    if not exists:
        raise DefinitionError(
            "FILE_MISSING",
            f"there is no file {relative!r}",
            hint="paths in a definition are relative to the project",
            where=place,
        )
    return path
