"""What is wrong between the definitions of a project, each right by itself: orders, references, owners."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress

from retl.app.loaded import LoadedProject
from retl.app.selection import ordered
from retl.errors import DefinitionError
from retl.project.definitions import Sync
from retl.project.fields import Claim, claimed, problems, sharing
from retl.project.validation import did_you_mean, each
from retl.project.variables import fill


def faults(project: LoadedProject) -> Iterator[DefinitionError]:
    """Everything, each with the place where it was written."""
    yield from _orders(project)
    yield from _wrong_sources(project)
    yield from _wrong_references(project)
    yield from _broken_rules(project)
    yield from _unknown_to_alerts(project)
    yield from _wrong_recipients(project)
    yield from _wrong_follow_ups(project)
    yield from _wrong_topics(project)
    yield from _unapprovable(project)
    yield from _unshared(project)


def _orders(project: LoadedProject) -> Iterator[DefinitionError]:
    """What is wrong with `after`."""
    syncs = project.syncs
    for sync in syncs.values():
        for index, name in enumerate(sync.after):
            if name not in syncs:
                yield DefinitionError(
                    "SYNC_UNKNOWN",
                    f"there is no sync {name!r}",
                    hint=did_you_mean(name, syncs),
                    where=project.place(sync, ("after", index)),
                )
    try:
        ordered(syncs)
    except DefinitionError as error:
        error.where = project.place(str(error.where), ("after",))
        yield error


def _wrong_sources(project: LoadedProject) -> Iterator[DefinitionError]:
    """What is wrong with the options of sources that syncs name."""
    for sync in project.syncs.values():
        if not project.missing([sync]):
            try:
                project.source(sync)
            except DefinitionError as error:
                yield from each(error)


def _wrong_topics(project: LoadedProject) -> Iterator[DefinitionError]:
    """Topics of keys that cannot be read, or of whose keys nothing can be sent."""
    for sync in project.syncs.values():
        topics = [one for one in sync.when if one.topic is not None]
        where, wrong = project.place(sync, ("when",)), list[str]()
        if len(topics) > 1:
            wrong.append("a sync follows one topic: let a second sync follow the other")
        with suppress(DefinitionError):
            found = project.destination(sync, offline=True) if topics else None
            if found and found.destination.publishes(found.options):
                wrong.append("a snapshot has every row: use `every`, `changed` or `event`")
        if any(one.format == "text" for one in topics) and len(sync.key) > 1:
            wrong.append("`format: text` is for a key of one column: use json")
        yield from (DefinitionError("WHEN_UNKNOWN", one, where=where) for one in wrong)
        try:
            for one in topics:
                project.heard(sync, one, assumed=True)
        except DefinitionError as error:
            yield from each(error)


def _unknown_to_alerts(project: LoadedProject) -> Iterator[DefinitionError]:
    """Unknown syncs and tags in `alerts`."""
    tags = {tag for sync in project.syncs.values() for tag in sync.tags}
    for index, alert in enumerate(project.definitions.alerts):
        for part, known, code in (
            ("syncs", set(project.syncs), "SYNC_UNKNOWN"),
            ("tags", tags, "TAG_UNKNOWN"),
        ):
            for at, name in enumerate(getattr(alert, part)):
                if name not in known:
                    yield DefinitionError(
                        code,
                        f"no sync is named {name!r}" if part == "syncs" else f"no sync has the tag {name!r}",
                        hint=did_you_mean(name, known),
                        where=project.file.place(("alerts", index, part, at)),
                    )


def _wrong_recipients(project: LoadedProject) -> Iterator[DefinitionError]:
    """Alerts through connections that are missing, or that take no messages."""
    from retl.app.alerts import require_fit

    for index, alert in enumerate(project.definitions.alerts):
        if alert.to.connection is not None:
            to = fill(project.file.tree, project.environment.plain(), ("alerts", index, "to"))
            try:
                target = project.connections.recipient(alert, to, assumed=True)
                if target is not None:
                    require_fit(target)
            except DefinitionError as error:
                error.where = error.where or to.place(())
                yield from each(error)


def _wrong_follow_ups(project: LoadedProject) -> Iterator[DefinitionError]:
    """What is wrong with `then`, as far as the files show."""
    for sync in project.syncs.values():
        try:
            project.following(sync, assumed=True)
        except DefinitionError as error:
            yield from each(error)


def _wrong_references(project: LoadedProject) -> Iterator[DefinitionError]:
    """What is wrong with `ref`, as far as the files show."""
    for sync in project.syncs.values():
        for field, source in sync.refers_to.items():
            where = project.place(sync, ("fields", field, "ref"))
            other = project.syncs.get(str(source.ref))
            if other is None:
                message, hint = (
                    f"there is no sync {source.ref!r}",
                    did_you_mean(str(source.ref), project.syncs),
                )
                yield DefinitionError("SYNC_UNKNOWN", message, hint=hint, where=where)
            elif other is sync:
                message = f"field {field!r}: a row cannot wait for the id of another row of the same run"
                hint = f"give {field} to a second sync of this object, `write: update_only`, after this one"
                yield DefinitionError("REF_SELF", message, hint=hint, where=where)
            elif len(source.by) != len(other.key):
                message = (
                    f"the key of sync {other.name!r} is {', '.join(other.key)}: `by` names as many columns"
                )
                yield DefinitionError("REF_BY", message, where=project.place(sync, ("fields", field, "by")))


def _broken_rules(project: LoadedProject) -> Iterator[DefinitionError]:
    """Conflicts between columns and fields of a sync, or between syncs of one object."""
    claims = []
    several = sum(sync.enabled for sync in project.syncs.values()) > 1
    for sync in project.syncs.values():
        columns = sync.contract.named if sync.contract else None
        for problem in problems(sync, columns):
            where = project.place(sync, problem.loc)
            yield DefinitionError(problem.code, problem.message, hint=problem.hint, where=where)
        if several and sync.enabled and (object := project.claim(sync)) is not None:
            claims.append(Claim(sync, object, claimed(sync, columns)))
    for problem in sharing(claims):
        where = project.place(problem.sync, problem.loc)
        yield DefinitionError(problem.code, problem.message, hint=problem.hint, where=where)


def shared(project: LoadedProject, fields: Mapping[str, frozenset[str]]) -> Iterator[DefinitionError]:
    """The same field in two syncs of one object, where a mart says which fields a sync writes: `fields`, by
    sync."""
    claims = []
    for name, written in fields.items():
        sync = project.syncs[name]
        if len(fields) > 1 and sync.enabled and (object := project.claim(sync)) is not None:
            claims.append(Claim(sync, object, written))
    for problem in sharing(claims):
        if problem.code == "FIELD_SHARED":
            where = project.place(problem.sync, problem.loc)
            yield DefinitionError(problem.code, problem.message, hint=problem.hint, where=where)


def _unshared(project: LoadedProject) -> Iterator[DefinitionError]:
    """Syncs whose rows cannot be shared between processes."""
    for sync in project.syncs.values():
        if (sync.shards or project.definitions.engine.shards) == 1:
            continue
        if reason := unshared(project, sync):
            yield DefinitionError(
                "SHARDS_UNSUPPORTED",
                f"`shards` is not possible here: {reason}",
                hint="`shards: 1` in this sync",
                where=project.place(sync, ("shards",) if sync.shards else ()),
            )


def unshared(project: LoadedProject, sync: Sync) -> str | None:
    """Why the rows of a sync cannot be shared between processes."""
    reasons = {
        "`ref` looks up ids that other rows got": bool(sync.refers_to),
        "`changes: cdf` reads only what changed": sync.changes.strategy == "cdf",
        "`drift` measures whole columns": bool(sync.guards.drift),
        "`rejects: {payload: true}` keeps rows of the mart": sync.rejects.payload,
    }
    with suppress(DefinitionError):  # a wrong connection is reported where it is used
        kind = project.kind(sync)
        reasons["only PostgreSQL and Redis take rows of one run from several processes"] = not kind.shards
        found = project.destination(sync, offline=True)
        reasons["a snapshot is written in one transaction"] = found.destination.publishes(found.options)
    return next((reason for reason, holds in reasons.items() if holds), None)


def _unapprovable(project: LoadedProject) -> Iterator[DefinitionError]:
    """Syncs that ask for an approval that nobody can give."""
    if project.definitions.allowed_signers is not None:
        return
    for sync in project.syncs.values():
        if sync.require == "approval":
            yield DefinitionError(
                "SIGNERS_MISSING",
                "`require: approval` needs `allowed_signers` in retl.yml: who may sign plans",
                hint="allowed_signers: FILE, with a line `NAME KEY` per person: see ssh-keygen(1)",
                where=project.place(sync, ("require",)),
            )
