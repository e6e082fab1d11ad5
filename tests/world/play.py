"""A scene under way: runs of retl, what somebody else does meanwhile, and the judgement of every run.

A run that says SUCCESS must leave the target as the mart is. A run that refuses or fails must name a remedy;
it is carried out to the letter, once. After that everything must be right, and a further run idle.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from tests.crashes import Ended
from tests.servers import Database
from tests.world.hosts import Hosts
from tests.world.targets import InPostgres, InRedis, Target, copied, restored

KILLED = -9
_NAMED = re.compile(r"`([^`]+)`|(--accept [A-Z_]+)")
_MOVED = ("inserted", "updated", "deleted", "refreshed")
Act = Callable[[], object]


class Wrong(AssertionError):
    """The promise is broken: what the table says of this scene."""


@dataclass
class Play:
    """One scene on one target. `seed` says which of several named remedies is tried."""

    target: Target
    hosts: Hosts
    seed: int = 0
    server: str = ""
    name: str = "users"  # of the sync
    ledger: Database | None = None
    hold: ExitStack = field(default_factory=ExitStack)
    said: list[str] = field(default_factory=list)  # the codes of refusals and failures, in order
    remedies: int = 1  # how many were named at once, at most
    story: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # of all runs that ended well
    _adopted: frozenset[str] = frozenset()  # rows that a person called sent, and were not
    _kept: dict[str, object] = field(default_factory=dict)
    _days: Any = field(default_factory=lambda: itertools.count(2))

    # what happens

    def next_day(self) -> None:
        self.target.next_day(next(self._days))

    def run(self, *words: str, partial: bool = False) -> Ended:
        """A run of the sync; SUCCESS is judged unless the run was asked for a part only."""
        return self.judged(
            self.target.project.answered(*self._sync(words), hears=None, **self._quiet()), words, partial
        )

    def during(
        self, event: str, act: Act | Mapping[int, Act], *words: str, nth: int = 1, partial: bool = False
    ) -> Ended:
        """A run; `act` happens while the run waits at its n-th such event. Or several, by their n."""
        acts = act if isinstance(act, Mapping) else {1 if self.target.at_once else nth: act}
        seen, left = itertools.count(1), set(acts)

        def hears(text: str) -> None:
            if f'"event": "{event}"' in text and (now := next(seen)) in left:
                self.hosts.beside(acts[now])
                left.remove(now)

        ended = self.target.project.answered(*self._sync(words), hears=hears, RETL_LOG_FORMAT="json")
        assert not left, f"the run never came to {event}:{left}: {ended.stdout or ended.stderr}"
        return self.judged(ended, words, partial)

    def killed(self, at: str, *words: str) -> None:
        """A run that dies there, for example at batch_acknowledged:3."""
        ended = self.target.project.start(*words, RETL_CRASH_AT=at).end()
        assert ended.code == KILLED, f"{at} was not reached: {ended.stdout}"
        self.story.append(f"killed at {at} {' '.join(words)}")

    def command(self, *words: str) -> Ended:
        """Any command; it must get through."""
        ended = self.target.project.answered(*words, hears=None, **self._quiet())
        self.story.append(f"retl {' '.join(words)} -> {ended.code}")
        self.notes.append(ended.stdout + ended.stderr)
        if ended.code:
            raise Wrong(f"STUCK `retl {' '.join(words)}` exits {ended.code}: {_reason(ended)}")
        return ended

    def follow(self, url: str) -> None:
        """From now on a request to this server follows each run that changed something."""
        folder, base = self.target.folder, url.removesuffix("/")
        settings, sync = folder / "retl.yml", folder / "syncs" / "users.yml"
        server = f"  ear: {{type: http, base_url: '{base}', auth: {{type: none}}}}\n"
        settings.write_text(settings.read_text().replace("connections:\n", f"connections:\n{server}", 1))
        sync.write_text(sync.read_text() + "then: {connection: ear, if: changed, path: '/done/{$run.id}'}\n")

    def keep_ledger(self) -> None:
        if self.ledger is not None:
            self._kept["ledger"] = copied(self.ledger)
        else:
            self._kept["ledger"] = copy = self.hosts.folder() / "retl"
            shutil.copytree(self.target.folder / ".retl", copy)

    def restore_ledger(self) -> None:
        copy = self._kept["ledger"]
        if self.ledger is not None:
            assert isinstance(copy, Database)
            restored(self.ledger, copy)
        else:
            shutil.rmtree(self.target.folder / ".retl")
            shutil.copytree(str(copy), self.target.folder / ".retl")
        self.story.append("the ledger is restored")

    def keep_target(self) -> None:
        """Everything that is there, with the traces that retl left."""
        self._kept["target"] = self.target.keep()

    def restore_target(self) -> None:
        self.target.restore(self._kept["target"])
        self.story.append("the target is restored")

    @property
    def table(self) -> InPostgres:
        assert isinstance(self.target, InPostgres)
        return self.target

    @property
    def cached(self) -> InRedis:
        assert isinstance(self.target, InRedis)
        return self.target

    # judgement

    def settle(self, *, quiet: bool = False, hidden: bool = False) -> None:
        """Plain runs must bring the target where the mart is, by what they say themselves. `quiet`: nothing
        is wrong, so nothing may be refused. `hidden`: the documentation says that a run may not see it, and
        that `retl state rebuild` does."""
        if hidden and self.run(partial=True).code == 0 and self.target.difference():
            self.said.append("not noticed, as documented → `state rebuild`")
            self.command("state", "rebuild", self.name, "--yes")
        ended = self.run()
        if ended.code:
            problem = error(ended)
            if quiet:
                raise Wrong(f"FALSE REFUSAL {problem['code']}: {problem['message']}")
            self._remedied(problem)
            self._own_what_is_left(problem)
        for _ in range(2):  # the first may still have something to do
            again = self.run()
            if again.code:
                raise Wrong(f"STUCK {_reason(again)}")
            if not any(again.summary[name] for name in _MOVED):
                return
        raise Wrong(f"NOT IDLE: {_counts(again)}")

    def _remedied(self, problem: dict[str, str]) -> None:
        """Do what the hint says, to the letter."""
        found = remedies(str(problem.get("hint") or ""))
        if not found:
            raise Wrong(f"NO REMEDY {problem['code']}: {problem['message']} ({problem.get('hint')})")
        self.remedies = max(self.remedies, len(found))
        words = found[self.seed % len(found)]
        self.said.append("`" + " ".join(words or ["sync"]) + "`")
        if words and words[0] != "sync" and not words[0].startswith("-"):
            self.command(*words)
            if words[:2] == ["state", "adopt"] and (unsent := self.target.difference().lost):
                self.said.append(f"{len(unsent)} rows of today count as sent, as the hint says")
                self._adopted = frozenset(unsent)
            return
        ended = self.run(*[word for word in words if word != "sync"], partial="--full" in words)
        if ended.code:
            raise Wrong(f"STUCK {problem['code']}, then {_reason(ended)}")

    @property
    def _owned(self) -> bool:
        return self.said[-1].endswith("--take-ownership`")

    def _own_what_is_left(self, problem: dict[str, str]) -> None:
        """An older ledger cannot know whose the rows are that only the target has: nothing deletes them until
        somebody says that they are ours."""
        if problem["code"] == "STATE_BEHIND" and self.target.difference().extra:
            if not self.target.lists:
                self.said.append("what only the target has stays there, as documented")
                return
            self.said.append("`state rebuild --take-ownership`")
            self.command("state", "rebuild", self.name, "--take-ownership", "--yes")

    def judged(self, ended: Ended, words: tuple[str, ...] = (), partial: bool = False) -> Ended:
        name = " ".join(("sync", *words))
        if ended.code == 0:
            wrong = self.target.difference()
            self.notes += ended.summary.get("notes", ())
            self.story.append(f"{name} -> {ended.summary['status']} {_counts(ended)}")
            wrong = replace(wrong, lost=tuple(key for key in wrong.lost if key not in self._adopted))
            if "STATE_BEHIND" in self.said:  # what only the target has is left alone, as documented
                wrong = replace(wrong, extra=() if not self._owned else wrong.extra)
            if wrong.doubled or (wrong and not partial):
                raise Wrong(f"{wrong} after {name} said {ended.summary['status']} ({_counts(ended)})")
        else:
            self.said.append(error(ended)["code"])
            self.story.append(f"{name} -> {ended.code} {_reason(ended)}")
            if doubled := self.target.difference().doubled:
                raise Wrong(f"DOUBLED {len(doubled)} after {name} said {_reason(ended)}")
        return ended

    def _sync(self, words: tuple[str, ...]) -> tuple[str, ...]:
        return ("sync", "--sync", self.name, *words, "--output", "json")

    @staticmethod
    def _quiet() -> dict[str, str]:
        return {"RETL_LOG_LEVEL": "error"}


def remedies(hint: str) -> list[list[str]]:
    """What a hint offers to do, in its order: words after `retl`; [] of words is the same run again."""
    found: list[list[str]] = []
    for named in _NAMED.finditer(hint):
        words = (named[1] or named[2]).removeprefix("retl ").split()
        if words[0].startswith("--") or words[0] in ("sync", "state", "resolve"):
            found.append([*words, "--yes"] if words[0] == "state" and "--yes" not in words else words)
    if not found and re.search(r"\brun\b.*\bagain\b|next (plain )?run", hint):
        found.append([])
    return found


def error(ended: Ended) -> dict[str, str]:
    """What a run that did not succeed says: code, message, hint."""
    if ended.stdout:
        with_error = json.loads(ended.stdout)
        found = with_error["syncs"][0]["error"] if "syncs" in with_error else with_error.get("error")
        if found:
            return dict(found)
    return {"code": f"EXIT {ended.code}", "message": (ended.stderr or ended.stdout)[-300:], "hint": ""}


def _reason(ended: Ended) -> str:
    problem = error(ended)
    return f"{problem['code']}: {problem['message']} ({problem.get('hint')})"


def _counts(ended: Ended) -> str:
    summary = ended.summary
    names = ("unchanged", *_MOVED, "rejected", "skipped", "in_doubt", "not_attempted")
    return ", ".join(f"{name} {summary[name]}" for name in names if summary[name])
