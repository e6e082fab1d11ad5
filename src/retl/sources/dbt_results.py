"""What dbt reports about its models: how they were built, and whether their tests passed.

dbt overwrites run_results.json with every command. So every `run_results*.json` of its target folder is read,
with what earlier runs of retl have seen (`Reported.after`), and the newest result of each node counts. What
has no result is unknown, which never counts as good. Only tests can stand in for it: if one command saw all
tests of a model pass, later than the last known result of its run, the rows that are there are good. dbt's
messages are not repeated, because they may quote rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from retl.sources.dbt import MANIFEST, Manifest, Metadata, Node, decoded, find, read_manifest

_RESULTS = "run_results*.json"
_BUILDS = {"run", "build", "retry", "seed", "snapshot"}  # not `compile` and `docs`: they build nothing
_TESTS = {"test", "build", "retry"}
_GOOD = ("pass", "warn")
_NAMED = 3  # tests in a note
TESTED = "tested"  # the status of a build that only its tests vouch for


class _Step(msgspec.Struct):
    name: str
    completed_at: datetime | None = None


class _Result(msgspec.Struct):
    unique_id: str
    status: str
    timing: list[_Step] = []
    relation_name: str | None = None


class _RunResults(msgspec.Struct):
    metadata: Metadata
    results: list[_Result]
    args: dict[str, Any] = {}

    @property
    def at(self) -> datetime:
        return _aware(self.metadata.generated_at)


class Outcome(msgspec.Struct, frozen=True):
    """How a run or a test ended; `at` (aware) is when dbt wrote it down. `built`: when a run that built the
    mart ended."""

    status: str
    at: datetime
    built: datetime | None = None


class Memory(msgspec.Struct, frozen=True):
    """The newest results of a model: of its run, of the last run that built it, of each test. `passed`: when
    one command saw all of its tests pass on this relation."""

    run: Outcome | None = None
    success: Outcome | None = None
    tests: dict[str, Outcome] = {}
    passed: datetime | None = None

    def after(self, former: Memory) -> Memory:
        """These results, and the former ones where those are newer."""
        names = [*former.tests, *(name for name in self.tests if name not in former.tests)]
        tests = {name: _newest(former.tests.get(name), self.tests.get(name)) for name in names}
        return Memory(
            _newest(former.run, self.run),
            _newest(former.success, self.success),
            {name: one for name, one in tests.items() if one is not None},
            max((at for at in (former.passed, self.passed) if at is not None), default=None),
        )

    def text(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def parse(cls, text: str) -> Memory:
        return msgspec.json.decode(text, type=cls)


class Build(Struct, frozen=True):
    """dbt's last results for a model. `status` is None if nothing has a run of it. `ended_at` (aware) is when
    the last run that is known to have built the mart did so."""

    model: str
    status: str | None
    ended_at: datetime | None = None
    failed_tests: tuple[str, ...] = ()
    warned_tests: tuple[str, ...] = ()
    untested: tuple[str, ...] = ()  # no result, skipped, or a result older than the model's run
    unfinished: bool = False  # manifest.json is newer than every result


class Reported(Struct, frozen=True):
    """What the files in dbt's target folder say about a model. `expected` are the names of its enabled tests
    by id."""

    model: str
    id: str
    relation: str | None
    memory: Memory
    expected: dict[str, str]
    unfinished: bool = False
    remembered: bool = False  # the result of the run is not in the files

    def after(self, former: str | None) -> Reported:
        """With what was seen before, as `memory.text` wrote it."""
        if former is None:
            return self
        memory = self.memory.after(Memory.parse(former))
        return Reported(
            *(self.model, self.id, self.relation, memory, self.expected, self.unfinished),
            remembered=memory.run != self.memory.run,
        )

    def build(self) -> Build:
        run, tests = self.memory.run, {verdict: list[str]() for verdict in (*_GOOD, "failed", "silent")}
        built = run.built if run is not None else None
        for test, name in self.expected.items():
            tests[_verdict(self.memory.tests.get(test), built)].append(name)
        status = run.status if run is not None else None
        if self._vouched():
            status = TESTED
        success = self.memory.success
        failing = run is not None and run.status != "success" and status != TESTED
        return Build(
            self.model,
            status,
            None if failing or success is None else success.built,
            tuple(sorted(tests["failed"])),
            tuple(sorted(tests["warn"])),
            tuple(sorted(tests["silent"])),
            self.unfinished,
        )

    def _vouched(self) -> bool:
        """Whether the tests alone say that the rows are good. A failure that stands in the files is no
        unknown result, so they say nothing about it."""
        run, passed = self.memory.run, self.memory.passed
        if run is None or passed is None:
            return passed is not None
        return run.status != "success" and self.remembered and passed > run.at


def reported(target: Path, models: Iterable[str]) -> list[Reported]:
    """What dbt reports about these models, from its target folder. SourceError if there is no manifest or a
    file cannot be read."""
    if not (models := list(models)):
        return []
    manifest = read_manifest(target / MANIFEST)
    files = [decoded(path, _RunResults) for path in sorted(target.glob(_RESULTS))]
    files.sort(key=lambda one: one.at)
    return [_reported(name, find(manifest, name), manifest, files) for name in models]


def build(target: Path, name: str) -> Build:
    """What the files alone say about a model."""
    return reported(target, [name])[0].build()


def note(builds: Sequence[Build]) -> Iterator[str]:
    """What does not stop a run but should be known, in one sentence."""
    parts = []
    for one in builds:
        if one.status == TESTED:
            parts.append(f"{one.model} passed its tests, and no result says how its last run ended")
        if one.warned_tests:
            parts.append(f"tests of {one.model} warned: {', '.join(one.warned_tests)}")
        if one.untested:
            parts.append(f"not tested since the last run of {one.model}: {_few(one.untested)}")
    if any(one.unfinished for one in builds):
        parts.append("manifest.json is newer than the results: the last command only parsed, or died")
    if parts:
        yield f"dbt: {'; '.join(parts)}"


def _reported(name: str, node: Node, manifest: Manifest, files: Sequence[_RunResults]) -> Reported:
    runs = [
        _run(node, result, file)
        for file in files
        if file.args.get("which") in _BUILDS
        for result in file.results
        if result.unique_id == node.unique_id and result.relation_name in (None, node.relation_name)
    ]
    tests = {
        result.unique_id: Outcome(result.status, file.at)
        for file in files
        if file.args.get("which") in _TESTS
        for result in file.results
        if result.status != "skipped"  # does not change an earlier result
    }
    enabled = [one for one in manifest.tests(node) if one.config.get("enabled") is not False]
    expected = {one.unique_id: one.name for one in enabled}
    built = [run for run in runs if run.built is not None]
    memory = Memory(
        runs[-1] if runs else None,
        built[-1] if built else None,
        {test: tests[test] for test in expected if test in tests},
        _passed(expected, manifest, files),
    )
    newest = files[-1] if files else None
    unfinished = (
        newest is not None
        and newest.metadata.invocation_id != manifest.metadata.invocation_id
        and newest.at < _aware(manifest.metadata.generated_at)
    )
    return Reported(name, node.unique_id, node.relation_name, memory, expected, unfinished)


def _passed(expected: Iterable[str], manifest: Manifest, files: Sequence[_RunResults]) -> datetime | None:
    """When all tests passed in the command that wrote manifest.json: they were of the relation it names."""
    wanted, invocation = set(expected), manifest.metadata.invocation_id
    own = [file for file in files if file.metadata.invocation_id == invocation]
    for file in own if wanted else ():
        if wanted <= {result.unique_id for result in file.results if result.status in _GOOD}:
            return file.at
    return None


def _run(node: Node, result: _Result, file: _RunResults) -> Outcome:
    """How a run ended, and when if it built the mart; `--empty` and `--sample` build only a part."""
    partly = next((option for option in ("empty", "sample") if file.args.get(option)), None)
    if result.status == "success" and partly and node.resource_type == "model":
        return Outcome(f"built with --{partly}", file.at)
    if result.status != "success":
        return Outcome(result.status, file.at)
    ends = [step.completed_at for step in result.timing if step.name == "execute" and step.completed_at]
    return Outcome(result.status, file.at, _aware(ends[-1]) if ends else None)


def _verdict(result: Outcome | None, built: datetime | None) -> str:
    """failed, warn, pass, or silent. A failure counts until the test passes; a pass only for its build."""
    if result is None:
        return "silent"
    if result.status in ("fail", "error", "runtime error"):
        return "failed"
    if result.status not in _GOOD or (built is not None and result.at < built):  # of another build
        return "silent"
    return result.status


def _newest(former: Outcome | None, now: Outcome | None) -> Outcome | None:
    if former is None or now is None:
        return former or now
    return former if former.at > now.at else now


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _few(names: Sequence[str]) -> str:
    """The first names, and how many there are more."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
