"""What a watch takes from a project's files: the syncs, the token, and what it looks at and listens to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, cast

from retl.app import modified
from retl.app.choice import Choice
from retl.app.loaded import LoadedProject
from retl.app.selection import select
from retl.app.server import SHORTEST_TOKEN
from retl.app.session import Session, options
from retl.app.watch.looks import View
from retl.app.watch.notify import Ears
from retl.app.watch.topics import Ear
from retl.errors import DefinitionError
from retl.project.definitions import Sync

if TYPE_CHECKING:
    from retl.destinations.kafka.client import KafkaConnection
    from retl.ledger import Ledger
    from retl.net.postgres import PostgresConnection


def chosen(project: LoadedProject, choice: Choice) -> list[Sync]:
    """The syncs to watch, each after those that it waits for. DefinitionError if there are none, or if one
    cannot run."""
    found = [one for one in select(project, choice) if one.enabled]
    if bare := next((one.name for one in found if not one.when and one.name in choice.names), None):
        raise DefinitionError(
            "NOTHING_TO_WATCH",
            f"the sync {bare} has no `when`",
            hint="for example `when: {every: 1h}`",
            where=project.place(bare),
        )
    syncs = [one for one in found if one.when]
    if not syncs:
        hint = "give a sync a `when`, for example `when: {every: 1h}`"
        raise DefinitionError("NOTHING_TO_WATCH", "no sync has a `when`", hint=hint)
    Session(project).require(syncs, options())
    if takes_events(syncs) and token(project) is None:
        raise DefinitionError(
            "WATCH_TOKEN",
            f"`when: event` needs a token of at least {SHORTEST_TOKEN} characters",
            hint="set RETL_WATCH_TOKEN, or RETL_WATCH_TOKEN_FILE to a file that contains it",
            where="environment RETL_WATCH_TOKEN",
        )
    return syncs


def takes_events(syncs: Sequence[Sync]) -> bool:
    return any(one.event for sync in syncs for one in sync.when)


def token(project: LoadedProject) -> str | None:
    """The token of requests; None if there is none, or a short one."""
    given = project.settings.retl_watch_token
    text = given.get_secret_value() if given is not None else ""
    return text if len(text) >= SHORTEST_TOKEN else None


def ears(project: LoadedProject, syncs: Sequence[Sync]) -> list[Ears]:
    """What to listen to, by database."""
    channels: dict[PostgresConnection, dict[str, set[str]]] = {}
    missed: set[str] = set()
    for sync in syncs:
        for trigger in (one for one in sync.when if one.notify is not None):
            if trigger.catch_up == "once":
                missed.add(sync.name)
            for database in project.source(sync).announces:
                channels.setdefault(database, {}).setdefault(str(trigger.notify), set()).add(sync.name)
    return [
        Ears(
            database,
            {channel: frozenset(names) for channel, names in heard.items()},
            frozenset(missed & set[str]().union(*heard.values())),
        )
        for database, heard in channels.items()
    ]


def topics(project: LoadedProject, syncs: Sequence[Sync]) -> list[Ear]:
    """The topics of keys. DefinitionError if a variable of their connection is not set."""
    found = []
    files = modified.digests(project.folder) if any(one.topic for sync in syncs for one in sync.when) else {}
    for sync in syncs:
        said = files.get(sync.name, "") + sync.model_dump_json()  # with what is filled in
        written = sha256(said.encode()).hexdigest()
        for one in (one for one in sync.when if one.topic is not None):
            by_text = one.part == "key" and len(sync.key) == 1
            connection = cast("KafkaConnection", project.heard(sync, one))
            how = one.format or ("text" if by_text else "json")
            found.append(
                Ear(sync.name, connection, str(one.topic), sync.key, one.part, how, one.window, written)
            )
    return found


def views(project: LoadedProject, syncs: Sequence[Sync], ledger: Ledger, now: datetime) -> Mapping[str, View]:
    """What to look at, by sync. A view begins with the version that was delivered last."""
    found = {}
    variables = Session(project).variables({}, now.date())
    for sync in syncs:
        trigger = next((one for one in sync.when if one.changed and one.notify is None), None)
        if trigger is not None:
            rows = ledger.checkpoints(sync.name)
            newest = max(rows, key=lambda one: one.updated_at or now, default=None)
            seen, skips = newest.source_version if newest else None, trigger.catch_up == "skip"
            found[sync.name] = View(project.source(sync, variables), trigger.look, seen, skips=skips)
    return found
