"""The result of a run: one frozen Summary with its counts.

Numbers that do not add up are never shown as a success.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct, field
from msgspec.structs import asdict

from retl.errors import InvariantBroken, RetlError

PHASES = ("start", "begin", "recover", "freeze", "diff", "judge", "guard", "prepare", "deliver", "commit")
REJECTS_SHOWN = 20


class Deletes(Struct, frozen=True):
    planned: int = 0
    rejected: int = 0
    in_doubt: int = 0
    not_attempted: int = 0
    kept: int = 0


class Conflicts(Struct, frozen=True):
    """Rows that somebody else edited: written in part (of the updated ones), left alone (of the skipped
    ones), waiting for a decision (of the rejected ones)."""

    merged: int = 0
    kept: int = 0
    queued: int = 0


class Counts(Struct, frozen=True):
    """Rows of the mart by result. `deleted` and `deletes` count keys that left the mart."""

    read: int = 0
    unchanged: int = 0
    inserted: int = 0
    updated: int = 0
    refreshed: int = 0
    rejected: int = 0
    skipped: int = 0
    in_doubt: int = 0
    not_attempted: int = 0
    deleted: int = 0
    deletes: Deletes = field(default_factory=Deletes)
    conflicts: Conflicts = field(default_factory=Conflicts)

    @property
    def written(self) -> int:
        """Rows that changed at the target, or that it confirmed as gone."""
        return self.inserted + self.updated + self.refreshed + self.deleted

    def document(self) -> dict[str, Any]:
        """As the ledger and `--output json` have them."""
        return {**asdict(self), "deletes": asdict(self.deletes), "conflicts": asdict(self.conflicts)}

    def check(self) -> None:
        """InvariantBroken if a row is missing or was counted twice."""
        ends = (
            self.unchanged
            + self.inserted
            + self.updated
            + self.refreshed
            + self.rejected
            + self.skipped
            + self.in_doubt
            + self.not_attempted
        )
        gone = self.deletes
        deletes = self.deleted + gone.rejected + gone.in_doubt + gone.not_attempted + gone.kept
        inside = (
            self.conflicts.merged <= self.inserted + self.updated + self.refreshed
            and self.conflicts.kept <= self.skipped
            and self.conflicts.queued <= self.rejected
        )
        if self.read != ends or gone.planned != deletes or self.unchanged < 0 or not inside:
            raise InvariantBroken(
                "NUMBERS_DO_NOT_ADD_UP",
                f"read {self.read} rows but account for {ends}; planned {self.deletes.planned} deletes"
                f" but account for {deletes}",
                hint="this is a bug in retl: please report it with the output of `retl show`",
            )


KINDS = tuple(name for name in Counts.__struct_fields__ if name not in ("deletes", "conflicts"))
CONFLICTS = Conflicts.__struct_fields__
DELETES = Deletes.__struct_fields__


class Estimate(Struct, frozen=True):
    """What a run asks of a connection with limits: at least so many requests, and about how many seconds the
    limits (`allowed`) make of them."""

    requests: int
    seconds: float
    allowed: str
    word: str = "requests"  # or messages
    days: int = 0  # that a daily budget makes of them, if more than one

    def __str__(self) -> str:
        time = f"≈ {duration(self.seconds)}" if self.seconds >= 1 else "with no wait"
        if self.days:
            time = f"on {self.days:,} days"
        asked = counted(self.requests, self.word.removesuffix("s"))
        return f"{asked} {time} at the allowed pace ({self.allowed})"


_PLURALS = {"is": "are", "was": "were"}


def counted(number: int, noun: str, verb: str = "") -> str:
    """A number with its noun and, if given, a verb in the form that goes with it: `1 reject`, `1,204
    rejects`; `1 delete waits`, `3 deletes wait`. A verb is `is`, `was`, or a stem."""
    if number == 1:
        return f"1 {noun}" + (f" {verb if verb in _PLURALS else f'{verb}s'}" if verb else "")
    many = f"{noun[:-1]}ies" if noun.endswith("ry") else f"{noun}es" if noun.endswith("ch") else f"{noun}s"
    return f"{number:,} {many}" + (f" {_PLURALS.get(verb, verb)}" if verb else "")


def duration(seconds: float) -> str:
    """A duration in at most two units: 44 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    for size, unit, below, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"


class Summary(Struct, frozen=True):
    """One sync's run, as `retl sync --output json` prints it."""

    sync: str
    run_id: str | None
    status: str
    exit_code: int
    dry_run: bool = False
    counts: Counts = field(default_factory=Counts)
    batches: int = 0
    retries: int = 0
    bytes: int = 0
    seconds: float = 0.0
    phases: Mapping[str, float] = field(default_factory=dict)
    rejects: Sequence[Mapping[str, Any]] = ()
    guards: Sequence[Mapping[str, Any]] = ()
    error: Mapping[str, Any] | None = None
    notes: Sequence[str] = ()  # sentences for the reader of the plan
    asserts: Sequence[Mapping[str, Any]] = ()  # name, passed, found; where the sync has assertions
    then: Sequence[Mapping[str, Any]] = ()  # the requests that were to be sent after the run
    estimate: Estimate | None = None  # of a dry run, where the connection has limits
    rest: bool = False  # only a run of the whole mart does the rest; for who asked for keys, not printed

    @property
    def changes(self) -> int:
        """The rows that a dry run would send."""
        counts = self.counts
        return counts.inserted + counts.updated + counts.refreshed + counts.deletes.planned

    def document(self) -> dict[str, Any]:
        """The JSON form; the order of keys is part of the interface."""
        counts = self.counts.document()
        deletes, conflicts = counts.pop("deletes"), counts.pop("conflicts")
        return {
            "sync": self.sync,
            "run_id": self.run_id,
            "status": self.status,
            "exit_code": self.exit_code,
            "dry_run": self.dry_run,
            "read": counts["read"],
            "unchanged": counts["unchanged"],
            "inserted": counts["inserted"],
            "updated": counts["updated"],
            "refreshed": counts["refreshed"],
            "deleted": counts["deleted"],
            "deletes": deletes,
            "rejected": counts["rejected"],
            "skipped": counts["skipped"],
            "in_doubt": counts["in_doubt"],
            "not_attempted": counts["not_attempted"],
            "conflicts": conflicts,
            "batches": self.batches,
            "retries": self.retries,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "rows_per_second": round(self.counts.written / self.seconds) if self.seconds > 0 else 0,
            "phases": {name: round(self.phases.get(name, 0.0), 4) for name in PHASES},
            "rejects": list(self.rejects[:REJECTS_SHOWN]),
            "guards": list(self.guards),
            "error": self.error,
            **({"notes": list(self.notes)} if self.notes else {}),
            **({"assert": list(self.asserts)} if self.asserts else {}),
            **({"then": list(self.then)} if self.then else {}),
            **({"estimate": {**asdict(self.estimate), "text": str(self.estimate)}} if self.estimate else {}),
        }


def described(problem: RetlError) -> dict[str, Any]:
    """An error as the summary and the ledger store it."""
    return {"code": problem.code, "message": problem.message, "hint": problem.hint}


def exit_code(codes: Sequence[int]) -> int:
    """The exit code of several syncs: the first that occurs of 130/143, 1, 2, 3, 75, 0."""
    for wanted in ((130, 143), (1,), (2,), (3,), (75,)):
        for code in codes:
            if code in wanted:
                return code
    return 0
