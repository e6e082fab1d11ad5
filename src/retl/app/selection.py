"""Which syncs an invocation is about, and in which order they run.

One grammar for every command. A word is a sync's name, a glob over names, or METHOD:VALUE; words with a comma
between them must all fit. A word that is unknown or that selects nothing is an error, because a typo must not
look like success. Only `state:modified` may select nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from retl.app.choice import MODIFIED, Choice
from retl.errors import DefinitionError
from retl.project.definitions import Sync
from retl.project.validation import did_you_mean, raise_all

if TYPE_CHECKING:
    from retl.app.loaded import LoadedProject

ALL = "all"
FORMS = "a sync, a glob, tag:T, to:CONNECTION, dbt:MODEL+ or state:modified"


def select(project: LoadedProject, choice: Choice, *, paused: bool = False) -> list[Sync]:
    """The chosen syncs; each comes after those in its `after`. `choice.failed` is the caller's: it needs the
    ledger. A sync that is not enabled is chosen only by its name, or with `paused`.

    DefinitionError SYNC_UNKNOWN, TAG_UNKNOWN, DBT_MODEL, NOTHING_SELECTED, USAGE."""
    syncs = project.syncs
    words, errors = Words(project, choice.state), list[DefinitionError]()
    able = {name for name, sync in syncs.items() if sync.enabled or paused}

    def found(given: Iterable[str], among: Collection[str]) -> set[str]:
        union: set[str] = set()
        for word in given:
            try:
                union |= words.find(word, among)
            except DefinitionError as problem:
                errors.append(problem)
        return union

    named = [*choice.names, *(f"tag:{tag}" for tag in choice.tags)]
    chosen = found(named, able)
    left_out = found(choice.exclude, syncs.keys())
    if choice.state is not None and not choice.compares:
        errors.append(_usage(f"--state has no effect without {MODIFIED}", f"retl … {MODIFIED} --state main"))
    raise_all(errors)
    if choice.all or not named:
        chosen |= able
    order = sorted(syncs) if project.faults else ordered(syncs)  # with faults nothing runs
    return [syncs[name] for name in order if name in chosen - left_out]


class Words:
    """The words of a selection, for one project. What a word needs is read once, when it comes up."""

    def __init__(self, project: LoadedProject, state: str | None) -> None:
        self._project, self._state = project, state
        self._modified: set[str] | None = None
        self._methods: Mapping[str, Callable[[str], set[str]]] = {
            "tag": self._tagged,
            "to": self._sent_to,
            "dbt": self._read_from,
            "state": self._changed,
        }

    def find(self, word: str, among: Collection[str]) -> set[str]:
        """The syncs of `among` that fit a word; a sync that is named stands for itself. DefinitionError."""
        fitting = [self._one(part, among) for part in word.split(",")]
        found = set.intersection(*fitting)
        if not found and word != ALL and MODIFIED not in word.split(","):
            raise DefinitionError(
                "NOTHING_SELECTED", f"no sync fits {word!r}", hint="`retl list` shows the syncs"
            )
        return found

    def _one(self, part: str, among: Collection[str]) -> set[str]:
        syncs = self._project.syncs
        method, colon, value = part.partition(":")
        if colon and method in self._methods and value:
            return self._methods[method](value) & {*among}
        if colon:
            hint = did_you_mean(method, self._methods) if value else None
            raise _usage(f"there is no selector {part!r}", hint or f"write {FORMS}")
        if part == ALL:
            return {*among}
        if part in syncs:
            return {part}
        if any(sign in part for sign in "*?["):
            return {name for name in among if fnmatchcase(name, part)}
        raise unknown(part, self._project)

    def _tagged(self, tag: str) -> set[str]:
        known = {one for sync in self._project.syncs.values() for one in sync.tags}
        if not any(fnmatchcase(one, tag) for one in known):
            hint = did_you_mean(tag, known) or "`retl list` shows the syncs with their tags"
            raise DefinitionError("TAG_UNKNOWN", f"no sync has the tag {tag!r}", hint=hint)
        return self._those(tag, lambda sync: sync.tags)

    def _sent_to(self, name: str) -> set[str]:
        known = {name for sync in self._project.syncs.values() for name in self._targets(sync)}
        if not any(fnmatchcase(one, name) for one in known):
            message = f"no sync sends to a connection or type {name!r}"
            hint = did_you_mean(name, known) or "`retl list` shows the syncs"
            raise DefinitionError("NOTHING_SELECTED", message, hint=hint)
        return self._those(name, self._targets)

    def _targets(self, sync: Sync) -> list[str]:
        """The connection of a sync, and its type."""
        ref, connections = sync.destination, self._project.definitions.connections
        name = ref.connection or ref.type or ""
        return [
            name,
            *([ref.type] if ref.type else []),
            *([connections[name].type] if name in connections else []),
        ]

    def _those(self, pattern: str, parts: Callable[[Sync], Iterable[str]]) -> set[str]:
        return {
            name
            for name, sync in self._project.syncs.items()
            if any(fnmatchcase(part, pattern) for part in parts(sync))
        }

    def _read_from(self, spec: str) -> set[str]:
        from retl.app.models import readers

        return readers(self._project, spec)

    def _changed(self, value: str) -> set[str]:
        if value != "modified":
            raise _usage(f"there is no selector 'state:{value}'", f"write {MODIFIED}")
        if self._state is None:
            hint = "--state main (a commit), --state FOLDER (another copy of the project), or --state FILE"
            raise _usage(f"{MODIFIED} needs --state: what to compare with", hint)
        if self._modified is None:
            from retl.app.modified import modified

            self._modified = modified(self._project.folder, self._state)
        return self._modified


def unknown(name: str, project: LoadedProject) -> DefinitionError:
    """SYNC_UNKNOWN for a name, with what may be meant: a sync, or a method that was left out."""
    methods = {f"tag:{tag}": tag for sync in project.syncs.values() for tag in sync.tags}
    methods |= {f"to:{connection}": connection for connection in project.definitions.connections}
    exact = next((f"did you mean {written!r}?" for written, word in methods.items() if word == name), None)
    hint = exact or did_you_mean(name, project.syncs) or "`retl list` shows the syncs"
    if name in project.unread:
        return DefinitionError("SYNC_UNKNOWN", f"the file of sync {name!r} is wrong", hint="`retl validate`")
    return DefinitionError("SYNC_UNKNOWN", f"there is no sync {name!r}", hint=hint)


def _usage(message: str, hint: str) -> DefinitionError:
    return DefinitionError("USAGE", message, hint=hint)


def ordered(syncs: Mapping[str, Sync]) -> list[str]:
    """The names, each after those in its `after`, otherwise by name. DefinitionError AFTER_CYCLE."""
    done: dict[str, None] = {}
    open_names: list[str] = []

    def visit(name: str) -> None:
        if name in done or name not in syncs:
            return
        if name in open_names:
            circle = " → ".join([*open_names[open_names.index(name) :], name])
            raise DefinitionError("AFTER_CYCLE", f"these syncs wait for one another: {circle}", where=name)
        open_names.append(name)
        for earlier in sorted(syncs[name].earlier):
            visit(earlier)
        done[open_names.pop()] = None

    for name in sorted(syncs):
        visit(name)
    return list(done)
