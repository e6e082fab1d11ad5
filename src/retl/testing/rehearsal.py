"""Rehearses a preset: whole runs of a sync against a vendor made from it (`vendor`), one for each fault.

    from retl.testing.rehearsal import rehearse

    assert not rehearse("presets/shop.yml").problems

What the test file beside the preset names (tests/NAME.yml) is held against it too: requests that are known to
be right, the schema of their bodies, and recorded answers. Nothing is sent to anybody else.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import duckdb

from retl.app.resolve import open_project
from retl.app.session import Session, open_session
from retl.destinations.batch import Field as Column
from retl.destinations.batch import Shape, WriteMode
from retl.destinations.http.adapter import HttpDestination
from retl.destinations.presets import Preset
from retl.errors import DefinitionError
from retl.observe.summary import Summary
from retl.project.yamlfile import load
from retl.testing.faults import answer, cut, instead, passed, reset
from retl.testing.script import HEADERS, Proof, Script, golden, recorded, schema
from retl.testing.server import TOKEN, Fault
from retl.testing.vendor import Vendor
from retl.values.sql import quoted
from retl.values.types import Type

_PLAIN_AUTH = ("none", "bearer", "basic", "header", "query", "body", "url")


def schedule(throttled: bytes = b"{}") -> dict[str, Sequence[Fault]]:
    """What goes wrong, by name. `throttled` is the body of a 429."""
    return {
        "429 and when to come back": [answer(429, throttled, Retry_After="0")] * 3,
        "429 and no word of when": [answer(429, throttled)] * 3,
        "500 after the commit": [instead(500, b"")],
        "reset before the commit": [reset(applied=False)],
        "reset after the commit": [reset(applied=True)],
        "broken off in the answer": [cut()],
    }


def rehearse(file: Path | str, told: Callable[[str], object] = lambda line: None) -> Proof:
    """What can be proved of the preset in a file. `told` gets a line for each step.

    DefinitionError if the preset or its test file is wrong.
    """
    path = Path(file)
    if not path.is_file():
        raise DefinitionError("FILE_MISSING", f"there is no file {path.name!r}", where=str(path))
    preset = Preset.load(path, path.name)
    script = Script.read(path.parent / "tests" / f"{path.stem}.yml")
    with tempfile.TemporaryDirectory(prefix="retl-rehearsal-") as folder, Vendor() as vendor:
        run = _Rehearsal(path, preset, script, vendor, Path(folder))
        told(f"{path.name}: `write: {run.proof.write}`, deletes: {'yes' if run.deletes else 'no'}")
        golden(script, vendor, run.proof)
        recorded(script, vendor, run.proof)
        with open_session(Path(folder)) as run.session:
            for name, step in run.steps():
                before = len(run.proof.problems)
                step()
                told(f"  {name}: {'FAILED' if len(run.proof.problems) > before else 'survived'}")
        schema(script, vendor, run.proof, path.parent / "tests")
    return run.proof


class _Rehearsal:
    """One preset in a project of its own."""

    session: Session

    def __init__(self, path: Path, preset: Preset, script: Script, vendor: Vendor, folder: Path) -> None:
        self.preset, self.script, self.vendor, self.folder = preset, script, vendor, folder
        self.rows = {text_of(row[script.key]): dict(row) for row in script.rows or _invented()}
        self.columns = [name for name in next(iter(self.rows.values())) if name != script.key]
        self.round = 0
        self.write, self.deletes = _ways(preset)
        self.proof = Proof(path.stem, preset.evidence, self.write)
        self._make_project(path)

    # the project

    def _make_project(self, path: Path) -> None:
        """A copy of the preset without its pauses and limits, in a project that uses it."""
        made = _hurried(load(path, name=path.name).value)
        if self.preset.auth and all(way["type"] not in _PLAIN_AUTH for way in self.preset.auth):
            made["auth"] = {"type": "none"}
            self.proof.notes.append(f"the credential ({self.preset.auth[0]['type']}) is not rehearsed")
        name = "rehearsed"
        _write(self.folder / "presets" / f"{name}.yml", made)
        connection = {**_given(self.preset, self.script), **self.script.connection}
        for key, value in connection.items():
            connection[key] = (
                value.replace("https://vendor", self.vendor.url) if isinstance(value, str) else value
            )
        if not any(way["type"] == "url" for way in self.preset.auth):
            connection["base_url"] = self.vendor.url
        _write(
            self.folder / "retl.yml",
            {"warehouse": {"path": "mart.duckdb"}, "connections": {"vendor": {"type": name, **connection}}},
        )
        parameters = {**_samples(self.preset.parameters), **self.script.parameters}
        sync: dict[str, Any] = {
            "source": {"table": "mart"},
            "key": [self.script.key],
            "destination": {"connection": "vendor", **parameters},
            "write": self.write,
        }
        if self.write == "append":
            sync |= {} if self._once_by_key(made) else {"delivery": "at_most_once"}
            sync |= {"first_run": "send"}
        if self.deletes:
            sync |= {"deletes": "delete"}
        _write(self.folder / "syncs" / "rehearsal.yml", sync)
        self._fill_mart()
        self.vendor.speak(self._destination())

    def _once_by_key(self, made: Mapping[str, Any]) -> bool:
        return bool(made.get("idempotency"))

    def _destination(self) -> HttpDestination:
        project = open_project(self.folder, environ={})
        found = project.destination(project.syncs["rehearsal"])
        shape = Shape(
            "rehearsal",
            "state",
            (Column(self.script.key, _type(next(iter(self.rows.values()))[self.script.key])),),
            tuple(Column(name, _type(next(iter(self.rows.values()))[name])) for name in self.columns),
            self.write,
            "delete" if self.deletes else "keep",
        )
        made = found.destination(found.options, shape)
        assert isinstance(made, HttpDestination)
        return made

    def _fill_mart(self) -> None:
        """The mart, and what the vendor may be sent, from `rows`."""
        names = [self.script.key, *self.columns]
        first = next(iter(self.rows.values()))
        columns = ", ".join(f"{quoted(name)} {_storage(first[name])}" for name in names)
        with duckdb.connect(str(self.folder / "mart.duckdb")) as mart:
            mart.execute(f"CREATE OR REPLACE TABLE mart ({columns})")
            places = ", ".join("?" * len(names))
            for row in self.rows.values():
                mart.execute(
                    f"INSERT INTO mart VALUES ({places})",
                    [_cell(row.get(name)) for name in names],
                )
        self.vendor.gone |= {name: (row[self.script.key],) for name, row in self.rows.items()}
        self.vendor.sent = {
            name: ((row[self.script.key],), json.dumps({one: row.get(one) for one in self.columns}))
            for name, row in self.rows.items()
        }

    def _sync(self) -> Summary:
        return self.session.sync("rehearsal")

    # the steps

    def steps(self) -> list[tuple[str, Callable[[], None]]]:
        faults: list[tuple[str, Callable[[], None]]] = [
            (name, lambda name=name, faults=faults: self._fault(name, faults))  # type: ignore[misc]
            for name, faults in schedule().items()
        ]
        more: list[tuple[str, Callable[[], None]]] = [
            ("401", self._expired),
            ("one bad row", self._bad_row),
            ("nothing changed", self._unchanged),
        ]
        return [("the first run", lambda: self._expect("the first run")), *faults, *more]

    def _change(self) -> None:
        """A new value in each row; rows that are appended get new keys."""
        self.round += 1
        changed = {}
        for former in self.rows.values():
            row = dict(former)
            if self.write == "append":
                row[self.script.key] = _next(row[self.script.key], self.round)
            for one in self.columns:
                if isinstance(row[one], str):
                    row[one] = f"{row[one].partition(' #')[0]} #{self.round}"
                    break
                if type(row[one]) is int:
                    row[one] += 1
                    break
            changed[text_of(row[self.script.key])] = row
        self.rows = changed
        self._fill_mart()

    def _fault(self, name: str, faults: Sequence[Fault]) -> None:
        self._change()
        self.vendor.faults.extend([*self._first, *faults])
        self._expect(name)
        if self.vendor.faults:
            self.proof.problems.append(f"{name}: only {len(faults) - len(self.vendor.faults)} were met")
            self.vendor.faults.clear()

    @property
    def _first(self) -> list[Fault]:
        """What comes before the requests of rows: `check`, and the token against forged requests."""
        return [passed] * sum(one is not None for one in (self.preset.check, self.preset.csrf))

    def _expired(self) -> None:
        self._change()
        self.vendor.faults.extend([*self._first, answer(401, b"{}")])
        summary = self._sync()
        if summary.exit_code != 1:
            self.proof.problems.append(f"401: the run ended {summary.status}")
        self._expect("401", doubtful=True)

    def _bad_row(self) -> None:
        self._change()
        bad, *good = self.rows
        self.vendor.bad = {bad}
        summary = self._sync()
        if (summary.counts.rejected, summary.counts.written) != (1, len(good)):
            self.proof.problems.append(f"one bad row: {_told(summary)}")
        self.vendor.bad = set()
        self._expect("one bad row", doubtful=True)

    def _unchanged(self) -> None:
        before = len(self.vendor.bodies)
        summary = self._sync()
        if len(self.vendor.bodies) != before or summary.counts.unchanged != len(self.rows):
            self.proof.problems.append(f"nothing changed: {_told(summary)}")

    def _expect(self, name: str, *, doubtful: bool = False) -> None:
        """Run, and compare what the vendor holds with the mart."""
        summary = self._sync()
        wanted = {name: json.loads(fields) for name, (_, fields) in self.vendor.sent.items()}
        found = {key: self.vendor.objects.get(key) for key in wanted}
        lost = [key for key, row in wanted.items() if found[key] != row]
        in_doubt = summary.counts.in_doubt if self.write == "append" else 0
        if (summary.exit_code and not in_doubt) or len(lost) > in_doubt:
            self.proof.problems.append(f"{name}: {_told(summary)}")
        elif self.deletes and set(self.vendor.objects) != set(wanted):
            self.proof.problems.append(f"{name}: other keys are left than the mart has")
        elif self.vendor.doubled:
            self.proof.problems.append(f"{name}: {self.vendor.doubled} rows came twice")
        else:
            self.proof.counts["faults"] += name != "the first run"
            self.proof.counts["rows"] += len(wanted) - len(lost)
        if in_doubt:
            self.proof.notes.append(f"{name}: {in_doubt} of {len(wanted)} rows in doubt, none twice")
        self.vendor.doubled = 0


def table(proofs: Sequence[tuple[str, ...]]) -> list[str]:
    """Proof rows as lines."""
    cells = [HEADERS, *proofs]
    widths = [max(len(line[n]) for line in cells) for n in range(len(HEADERS))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in cells]


def _hurried(part: Any) -> Any:
    """A preset that waits for nothing: limits, pauses, the time of a job and of a search."""
    if isinstance(part, dict):
        made = {name: _hurried(value) for name, value in part.items()}
        made |= {name: 0.01 for name in ("wait", "every", "settles") if name in made}
        if isinstance(made.get("limits"), dict):
            made["limits"] = {"source": "a rehearsal", "checked_on": "2026-01-01", "share": 1}
        return made
    if isinstance(part, list):
        return [_hurried(one) for one in part]
    return str(part) if isinstance(part, date) else part


def _samples(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A value for each parameter that needs one."""
    return {
        name: list(one.sample) if isinstance(one.sample, tuple) else one.sample
        for name, one in parameters.items()
        if one.is_required
    }


def _given(preset: Preset, script: Script) -> dict[str, Any]:
    """The keys of the connection; a whole URL where that is the secret."""
    urls = {way["url"][1:-1] for way in preset.auth if way["type"] == "url"}
    return {
        name: "https://vendor/hook" if name in urls else TOKEN if one.secret else one.sample
        for name, one in preset.connection.items()
        if one.is_required and name not in script.connection
    }


def _ways(preset: Preset) -> tuple[WriteMode, bool]:
    """The write mode to rehearse, and whether deletes are always possible."""
    if preset.upsert or (preset.find and preset.insert and preset.update):
        write: WriteMode = "upsert"
    else:
        write = "append" if preset.insert else "update_only"
    return write, bool(preset.delete) and write == "upsert" and not any(
        "only_if" in one for one in preset.delete
    )


def _invented() -> list[dict[str, Any]]:
    return [
        {"id": f"k{n}@example.com", "name": name, "visits": n}
        for n, name in enumerate(("Ann", "Bob", "Cid"), start=1)
    ]


def _next(key: Any, number: int) -> Any:
    """A key that was never used."""
    if isinstance(key, int):
        return key + 1000
    return f"n{number}-{key.removeprefix(f'n{number - 1}-')}"


def _told(summary: Summary) -> str:
    counts = summary.counts
    error = f": {summary.error['message']} [{summary.error['code']}]" if summary.error else ""
    parts = {name: getattr(counts, name) for name in ("written", "rejected", "in_doubt", "not_attempted")}
    said = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in parts.items() if count)
    return f"the run ended {summary.status} ({said or 'no rows'}){error}"


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _type(value: Any) -> Type:
    names = {bool: "boolean", int: "integer", float: "float", dict: "json", list: "json"}
    return Type(names.get(type(value), "string"))  # type: ignore[arg-type]


def _storage(value: Any) -> str:
    return {bool: "BOOLEAN", int: "BIGINT", float: "DOUBLE", dict: "JSON", list: "JSON"}.get(
        type(value), "VARCHAR"
    )


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
