"""A plan as a file: exactly the reviewed plan is applied, or nothing.

The file contains no row of the mart. It has the state, baseline, definition and digest of a change set;
`apply` makes the plan again and delivers it only if all of them are the same. Every run changes the
baseline, so a plan can be applied once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import msgspec

from retl import __version__
from retl.engine.selection import Selection
from retl.errors import DefinitionError, Mismatch, writing
from retl.ledger.erasures import masked, without
from retl.project.definitions import Sync
from retl.run import counts
from retl.run.job import Job, Options
from retl.run.plan import Plan

FORMAT = 1
LOOK_BACK = 1000  # runs of a sync among which the one that applied a plan is looked for
LARGEST = 64 << 20  # bytes of a plan; only a selection of very many keys makes a large one
Text = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]*$")]  # no SQL can contain NUL
Number = Annotated[int, msgspec.Meta(ge=0)]
Value = Text | int | float | bool | None


class Chosen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The rows that the plan selects: a `Selection`."""

    full: bool = False
    limit: Annotated[int, msgspec.Meta(ge=1)] | None = None
    keys: tuple[Text, ...] = ()
    where: Text | None = None


class Artifact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a plan was made from, and what it will do."""

    format: int
    version: str
    sync: str
    environment: str | None
    state_id: str
    object: str
    fingerprints: Mapping[str, str]
    how: str
    baseline: list[str]
    digest: str
    counts: dict[str, Any]
    selection: Chosen
    accept: list[str]
    allow_deletes: Number | None
    variables: dict[str, Value]
    created_at: str


def make(job: Job, plan: Plan) -> Artifact:
    """The artifact of a plan, while it can be read."""
    return Artifact(
        format=FORMAT,
        version=__version__,
        sync=job.sync.name,
        environment=job.environment,
        state_id="" if job.ledger.fresh else job.ledger.state_id,
        object=plan.capabilities.object,
        fingerprints=plan.fingerprints,
        how=_how(job.sync),
        baseline=_baseline(plan),
        digest=plan.changes.digest(),
        counts=counts.if_taken(plan).document(),
        selection=_chosen(job.options.selection),
        accept=list(job.options.accept),
        allow_deletes=job.options.allow_deletes,
        variables={
            name: str(value) if isinstance(value, date) else value
            for name, value in job.options.variables.items()
        },
        created_at=plan.run.started_at.isoformat(),
    )


def _chosen(selection: Selection) -> Chosen:
    """A plan has no keys that may have changed: only a watch has them."""
    return Chosen(selection.full, selection.limit, selection.keys, selection.where)


def write(artifact: Artifact, path: Path) -> None:
    """Write a file that only this user can read: variables may be personal. Failure FILE_UNWRITABLE."""
    with writing(path), open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(artifact)) + b"\n")


def content(path: Path) -> bytes:
    """The bytes of a plan; empty if there is no such file."""
    try:
        with path.open("rb") as file:
            return file.read(LARGEST + 1)[:LARGEST]
    except OSError:
        return b""


def read(path: Path, given: bytes | None = None) -> Artifact:
    """The plan in a file, or in the bytes that were read of it. DefinitionError if it is not a plan of this
    version of retl."""
    if not given and not path.is_file():
        raise DefinitionError(
            "PLAN_UNREADABLE", f"there is no file {path}", hint="`retl plan --sync … --out FILE` makes one"
        )
    try:
        found = msgspec.json.decode(content(path) if given is None else given, type=Artifact)
    except (ValueError, RecursionError) as problem:  # msgspec's errors are ValueErrors
        raise DefinitionError(
            "PLAN_UNREADABLE",
            f"{path} is not a plan of retl",
            hint="make one with `retl plan --sync … --out FILE`",
        ) from problem
    if found.format != FORMAT:
        raise DefinitionError("PLAN_UNREADABLE", f"{path} was made by another version of retl")
    return found


def options(artifact: Artifact) -> Options:
    """The options that the plan was made with."""
    return Options(
        selection=Selection(**msgspec.structs.asdict(artifact.selection)),
        allow_deletes=artifact.allow_deletes,
        accept=tuple(artifact.accept),
        variables=artifact.variables,
        purpose="apply",
    )


def verify(artifact: Artifact, job: Job, plan: Plan) -> None:
    """Mismatch PLAN_MOVED, with what changed, unless the new plan is the plan in the file."""
    now = make(job, plan)
    names: Mapping[str, str] = {
        "state_id": "this is another ledger",
        "object": "the destination is another one",
        "fingerprints": "the sync's key, fields or shape changed",
        "how": "the sync's definition changed",
        "baseline": "a run has started since then",
        "digest": "the mart changed, or an external id in its rows",
    }
    for name, sentence in names.items():
        if name == "state_id" and not artifact.state_id:
            continue  # made before there was a ledger: an empty baseline is enough
        if json.dumps(getattr(now, name)) != json.dumps(getattr(artifact, name)):
            if name == "baseline" and (spent := _applied(job, plan)) is not None:
                raise spent
            hint = f"plan again: `retl plan {job.sync.name} --out FILE`"
            raise Mismatch("PLAN_MOVED", f"the plan no longer holds: {sentence}", hint=hint)


def _applied(job: Job, plan: Plan) -> Mismatch | None:
    """What to say of a plan that a run has applied already."""
    runs = (one for one in job.ledger.runs(job.sync.name, LOOK_BACK) if one.run_id != plan.run.run_id)
    mine = (one for one in runs if one.options.get("plan") == job.options.plan and one.status != "REFUSED")
    if job.options.plan is None or (found := next(mine, None)) is None:
        return None
    name = job.sync.name
    due = f"`retl plan {name}` what is due now, and `retl sync {name}` sends it"
    if job.sync.require == "approval":
        due = f"`retl plan {name} --out FILE` makes a new plan of what is due now, to be signed and applied"
    return Mismatch(
        "PLAN_MOVED",
        f"the plan was applied already, by run {found.run_id}, which ended as {found.status}; a plan is"
        " applied once",
        hint=f"`retl show {found.run_id}` has what it did; {due}",
    )


def forget(folder: Path, sync: str, keys: Collection[str], needles: Collection[str]) -> list[str]:
    """Mask these keys in the plans of a sync that are in the project's folder; returns the files. Such a plan
    can no longer be applied, as after every run."""
    found = []
    for path in sorted(_json_files(folder)):
        try:
            plan = read(path)
        except DefinitionError:
            continue
        chosen = plan.selection
        less = msgspec.structs.replace(
            plan,
            selection=msgspec.structs.replace(
                chosen,
                keys=tuple(without(chosen.keys, keys)),
                where=chosen.where and masked(chosen.where, needles),
            ),
            variables={name: masked(value, needles) for name, value in plan.variables.items()},
        )
        if plan.sync == sync and less != plan:
            draft = path.with_name(f".{path.name}.new")
            write(less, draft)
            draft.replace(path)
            found.append(str(path.relative_to(folder)))
    return found


def _json_files(folder: Path) -> Iterator[Path]:
    """The files in a folder that may be plans. Hidden folders are none of the user's."""
    for base, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "node_modules"]
        for path in (Path(base) / name for name in names):
            with suppress(OSError):
                if path.is_file() and not path.is_symlink() and path.stat().st_size <= LARGEST:
                    with path.open("rb") as file:
                        if b'"format"' in file.read(200):
                            yield path


def _how(sync: Sync) -> str:
    """Digest of the definition, without texts for people."""
    return sha256(
        sync.model_dump_json(exclude={"description", "tags", "tests", "shards"}).encode()
    ).hexdigest()


def _baseline(plan: Plan) -> list[str]:
    """What the baseline was made from: the checkpoint's run and all newer deltas."""
    return [
        plan.basis.checkpoint.run_id if plan.basis.checkpoint else "",
        *(one.run_id for one in plan.basis.deltas),
    ]
