"""One row, as `retl explain` explains it, on a page: "why did customer 42 not update?".

It reads the mart as a dry run does and asks no target. One row is explained at a time, and for a limited
time, so that a page never becomes a load.
"""

from __future__ import annotations

import itertools
import json
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from retl.app import html
from retl.app.loaded import LoadedProject
from retl.app.serve.views import Query, link
from retl.app.session import Session
from retl.contract.model import types_of
from retl.errors import DefinitionError, Later, RetlError, Stopped
from retl.observe.signals import Stop
from retl.project.definitions import Sync
from retl.run import explain
from retl.run.job import Options
from retl.values.types import Type

SECONDS = 30.0
WAYS = 64  # at most so many ways to read one composite key

_BARE = re.compile(r"-?\d+|true|false")


class Explainer:
    """Explains one row at a time."""

    def __init__(self, project: LoadedProject, environment: str | None, *, seconds: float = SECONDS) -> None:
        self.project, self.environment, self.seconds = project, environment, seconds
        self._turn, self._ending = threading.Lock(), threading.Lock()
        self._stop: Stop | None = None

    def close(self) -> None:
        """End what is being explained."""
        self._end()

    def page(self, query: Query, made_at: datetime) -> str:
        """The page for `sync=NAME&key=…`, with one key or a key per column. DefinitionError SYNC_UNKNOWN;
        Later ROW_BUSY while another row is explained, or if this one took too long."""
        name = next(iter(query.get("sync", ())), "")
        sync = self.project.syncs.get(name)
        if sync is None:
            raise DefinitionError("SYNC_UNKNOWN", "there is no such sync", hint="the first page lists them")
        given = [one for one in query.get("key", ()) if one]
        rows: Sequence[Mapping[str, Any]] = ()
        problems: list[tuple[str, str, str | None]] = []
        if given:
            rows, problems = self.explained(sync, list(keys(self.project, sync, given)))
        whole = len(given) == len(sync.key)
        return html.render(
            "row",
            "syncs",
            link,
            name=name,
            columns=sync.key if whole or not given else ("key",),
            key=given,
            rows=rows,
            problems=problems,
            made_at=made_at,
        )

    def explained(
        self, sync: Sync, asked: Sequence[str]
    ) -> tuple[Sequence[Mapping[str, Any]], list[tuple[str, str, str | None]]]:
        """The rows that are known, and what is wrong. Later ROW_BUSY."""
        if not self._turn.acquire(blocking=False):
            raise busy("another row is being explained")
        stop = self._stop = Stop()
        timer = threading.Timer(self.seconds, self._end)
        timer.daemon = True
        timer.start()
        try:
            found = self._explain(sync, asked, stop)
        except Stopped:
            raise busy(f"the row could not be explained within {self.seconds:.0f} s") from None
        except RetlError as problem:
            return (), [(problem.code, problem.message, problem.hint)]
        finally:
            timer.cancel()
            self._stop = None
            self._turn.release()
        problems = [(one["code"], one["message"], one["hint"]) for one in found["guards"]]
        known = [row for row in found["rows"] if explain.is_known(row)]
        if not known:
            message = f"neither the mart nor the baseline of {sync.name} has such a key"
            problems.append(("KEY_UNKNOWN", message, f"the key is {', '.join(sync.key)}"))
        return known, problems

    def _explain(self, sync: Sync, asked: Sequence[str], stop: Stop) -> dict[str, Any]:
        with Session(self.project, self.environment, stop=stop) as session:
            session.require([sync], offline=True)
            job = session.job(sync, session.ledger(), Options(dry_run=True))
            return explain.explain(job, asked, 1, read=False, reveal=False)

    def _end(self) -> None:
        with self._ending:
            stop = self._stop
            if stop is not None and not stop.event.is_set():  # a second request would end the process
                stop.request(signal.SIGTERM)


def keys(project: LoadedProject, sync: Sync, given: Sequence[str]) -> Iterator[str]:
    """The texts of the keys that a person may mean: one text as it is, or a value per column. Where the
    contract does not tell the type of a column, 7 may be a number or a text."""
    if len(given) != len(sync.key) or len(given) == 1:
        yield given[0]
        return
    types = types_of(sync.contract, project.folder)
    ways = [list(_written(text, types.get(name))) for text, name in zip(given, sync.key, strict=True)]
    for parts in itertools.islice(itertools.product(*ways), WAYS):
        yield f"[{','.join(parts)}]"


def _written(text: str, type: Type | None) -> Iterator[str]:
    is_bare = _BARE.fullmatch(text) is not None and (type is None or type.name in ("integer", "boolean"))
    if is_bare:
        yield text
    if type is None or not is_bare:
        yield json.dumps(text, ensure_ascii=False)


def busy(why: str) -> Later:
    return Later("ROW_BUSY", why, hint="try again, or use `retl explain SYNC --key KEY`")
