"""Which syncs are not what they were: `state:modified` against a commit, another copy, or a list of digests.

A sync's digest is of what its files say: the sync with the defaults of retl.yml, its SQL, contract and
preset, and the warehouse, sources, connection and variables of retl.yml that it uses. Order of keys and
comments do not count, `${NAME}` counts as it is written. The rows of marts do not count: every run compares
them anyway.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from retl.errors import DefinitionError
from retl.project.files import GROUPS, PROJECT_FILE, sync_paths
from retl.project.yamlfile import Tree, empty, load

DEADLINE = 60.0  # seconds for each answer of git
READ = (".yml", ".yaml", ".sql", ".py")  # the files that say what a sync is


def modified(folder: Path, state: str) -> set[str]:
    """The syncs that are new or differ from `state`: a folder, a file of `retl list --output json`, or a
    commit. DefinitionError STATE_REFERENCE."""
    before, now = _before(folder, state), digests(folder)
    return {name for name, digest in now.items() if before.get(name) != digest}


def digests(folder: Path) -> dict[str, str]:
    """The digest of each sync of a project, by name; a file that cannot be read has none."""
    project = _tree(folder / PROJECT_FILE) or empty(PROJECT_FILE)
    found = {}
    for path in sync_paths(folder):
        tree = _tree(path)
        if tree is None:
            continue
        if isinstance(project.value.get("defaults"), dict):
            tree = tree.over(project, ("defaults",), GROUPS)
        said = json.dumps(_said(folder, project.value, tree.value), sort_keys=True)
        found[path.stem] = sha256(said.encode()).hexdigest()
    return found


def _said(folder: Path, project: Mapping[str, Any], sync: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides what a sync does."""
    source, target = _mapping(sync.get("source")), _mapping(sync.get("destination"))
    inputs = [_mapping(one) for one in _mapping(source.get("inputs")).values()] or [source]
    connection = target.get("connection") or target.get("type")
    known = _mapping(_mapping(project.get("connections")).get(str(connection)))
    kind = known.get("type") or connection
    files = [source.get("file"), *(one.get("file") for one in inputs), *_contract(sync.get("contract"))]
    return {
        "sync": sync,
        "warehouse": project.get("warehouse"),
        "vars": project.get("vars"),
        "sources": [_mapping(project.get("sources")).get(str(one.get("from"))) for one in inputs],
        "connection": known,
        "files": [_text(folder, file) for file in (*files, f"presets/{kind}.yml", f"presets/{kind}.yaml")],
    }


def _contract(contract: Any) -> Iterator[str]:
    """The file of a contract: YAML, or the Python module of a model, if it is the project's."""
    named = _mapping(contract).get("model") or contract
    if isinstance(named, str) and named.endswith((".yml", ".yaml")):
        yield named
    elif isinstance(named, str):
        module = named.partition(":")[0].replace(".", "/")
        yield from (f"{module}.py", f"{module}/__init__.py")


def _text(folder: Path, file: Any) -> Any:
    """What a file says, None without one. A YAML file by its values."""
    if not isinstance(file, str):
        return None
    path = folder / file
    if path.suffix in (".yml", ".yaml"):
        tree = _tree(path)
        return None if tree is None else tree.value
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return None


def _tree(path: Path) -> Tree | None:
    """The mapping in a file, None if there is none."""
    try:
        tree = load(path)
    except DefinitionError:
        return None
    return tree if isinstance(tree.value, dict) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _before(folder: Path, state: str) -> Mapping[str, str]:
    """The digests of what a sync is compared with."""
    try:
        path = Path(state)
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError):  # too long, or contains NUL
        is_folder = is_file = False
    if is_folder:
        return _of_folder(path, state)
    if is_file:
        return _listed(path, state)
    with tempfile.TemporaryDirectory(prefix="retl-") as former:
        _check_out(folder, state, Path(former))
        return digests(Path(former))


def _of_folder(path: Path, state: str) -> Mapping[str, str]:
    if not (path / PROJECT_FILE).is_file() and not (path / "syncs").is_dir():
        raise _unusable(f"the folder {state} is no project: it has neither {PROJECT_FILE} nor syncs/")
    return digests(path)


def _listed(path: Path, state: str) -> Mapping[str, str]:
    try:
        syncs = json.loads(path.read_text(encoding="utf-8"))["syncs"]
        return {one["sync"]: one["digest"] for one in syncs}
    except (OSError, ValueError, KeyError, TypeError):
        raise _unusable(f"the file {state} is not what `retl list --output json` prints") from None


def _check_out(folder: Path, commit: str, into: Path) -> None:
    """Write what a commit has of the project's folder. It moves nothing in the repository, and no filter or
    attribute of it changes what is written."""
    tree = _git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}")
    listing = _git(folder, "ls-tree", "-r", "-z", tree.decode().strip()) if tree else b""
    if not tree:
        raise _unusable(f"--state {commit} is neither a folder, nor a file, nor a commit that git knows here")
    entries = [one.partition("\t") for one in listing.decode("utf-8", "surrogateescape").split("\0")]
    wanted = [
        (name, facts.split()[2])
        for facts, _, name in entries
        if name.endswith(READ) and facts.startswith("100")  # a file, no link
    ]
    said = _git(folder, "cat-file", "--batch", told="".join(f"{blob}\n" for _, blob in wanted).encode())
    for name, _ in wanted:
        head, _, said = said.partition(b"\n")  # BLOB blob SIZE
        size = int(head.split()[2])
        path = into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(said[:size])
        said = said[size + 1 :]


def _git(folder: Path, *words: str, told: bytes = b"") -> bytes:
    """What git prints, nothing if it refuses."""
    try:
        done = subprocess.run(  # noqa: S603 - no shell; the commit is one word after --end-of-options
            ["git", "-C", str(folder), *words],  # noqa: S607 - the user's own git
            input=told,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=DEADLINE,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as problem:
        raise _unusable(f"git cannot be asked: {type(problem).__name__}") from None
    return done.stdout if done.returncode == 0 else b""


def _unusable(message: str) -> DefinitionError:
    hint = "--state main (a commit), --state FOLDER (another copy of the project), or --state FILE"
    return DefinitionError("STATE_REFERENCE", message, hint=hint)
