"""`retl docs`: a static site of the project, for people who need not know retl.

Every sync with its contract, mapping and lineage, the last runs, rejects by reason and freshness, in plain
files. It has no key and no value of a row, needs no secret and no network, and the same files and the same
ledger make the same bytes: times are those of the ledger, ages those at its newest moment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec.structs import replace

from retl.app import catalog, html
from retl.app.freshness import states
from retl.app.loaded import LoadedProject
from retl.app.report import Reason, delivered, gather, open_reasons
from retl.app.report.page import page
from retl.app.session import Session
from retl.errors import DefinitionError
from retl.ledger import Ledger, RunRow

RUNS = 100  # on one page
MARK = ".retl-docs"  # in a folder that may be written again
WITHOUT = "This site was made without the ledger: it has no runs. It needs the variable {}."

_ID = re.compile(r"[A-Za-z0-9-]{1,80}")


def pages(project: LoadedProject, environment: str | None = None) -> Iterator[tuple[str, str]]:
    """Path and text of every file of the site. LedgerError."""
    unset = project.file.missing.get(("state", "url"), ())
    with Session(project, environment) as session:
        ledger = None if unset else session.ledger()
        yield from _Site(project, ledger, WITHOUT.format(unset[0].name) if unset else "").pages()


def write(found: Iterator[tuple[str, str]], folder: Path) -> list[str]:
    """Write the files, and remove those of the last time that are no more; returns the paths. DefinitionError
    SITE_UNWRITABLE, also for a folder with files that are not of a site."""
    try:
        if folder.exists() and any(folder.iterdir()) and not (folder / MARK).is_file():
            raise _unwritable(f"{folder} has files that are not of a site")
        former = (folder / MARK).read_text(encoding="utf-8").splitlines() if folder.exists() else []
        paths = []
        for path, text in found:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8", errors="replace")
            paths.append(path)
        for path in set(former) - set(paths):
            if re.fullmatch(r"(\w+/)?[\w.-]+\.html", path):
                (folder / path).unlink(missing_ok=True)
        (folder / MARK).write_text("".join(f"{path}\n" for path in sorted(paths)), encoding="utf-8")
    except OSError as problem:
        raise _unwritable(f"{folder} cannot be written: {problem.strerror}") from None
    return sorted(paths)


class _Site:
    def __init__(self, project: LoadedProject, ledger: Ledger | None, note: str) -> None:
        self.project, self.ledger, self.note = project, ledger, note
        self.syncs = [project.syncs[name] for name in sorted(project.syncs)]
        self.runs = ledger.runs(limit=RUNS) if ledger else []
        moments = [moment for run in self.runs for moment in (run.started_at, run.finished_at) if moment]
        self.as_of = max(moments, default=None)
        self.states = states(self.syncs, ledger, None, self.as_of) if ledger else []
        self.shown = {one.run_id: one for sync in self.syncs for one in self._last(sync.name)}

    def pages(self) -> Iterator[tuple[str, str]]:
        project, at = self.project, {"made_at": self.as_of, "delivered": delivered}
        entries = [catalog.entry(project, one) for one in self.syncs]
        top = self._link("")
        yield (
            "index.html",
            html.render(
                "overview",
                "syncs",
                top,
                syncs=self.states,
                listed=[] if self.ledger else entries,
                newest=self.runs[:10],
                note=self.note,
                **at,
            ),
        )
        yield "runs.html", html.render("runs", "runs", top, name=None, newest=self.runs, most=RUNS, **at)
        yield "rejects.html", html.render("rejects", "rejects", top, name=None, **self._rejects(), **at)
        yield "lineage.html", html.render("lineage", "lineage", top, lines=catalog.lineage(entries))
        below = self._link("../")
        for one in entries:
            name = one.sync.name
            yield (
                f"syncs/{name}.html",
                html.render("sync", "syncs", below, name=name, entry=one, **self._history(name), **at),
            )
        for run_id, run in sorted(self.shown.items()):
            assert self.ledger is not None
            facts = gather(self.ledger, run, masked=True, made_at=self.as_of)
            facts = replace(facts, met=_keyless(facts.met), open=_keyless(facts.open))
            yield f"runs/{run_id}.html", page(facts, below)

    def _last(self, sync: str) -> list[RunRow]:
        """The run of a sync that has a page: the last one, if its id can be the name of a file."""
        found = self.ledger.last_run(sync) if self.ledger else None
        return [found] if found is not None and _ID.fullmatch(found.run_id) else []

    def _history(self, name: str) -> dict[str, object]:
        ledger = self.ledger
        return {
            "state": next((one for one in self.states if one.sync == name), None),
            "open": [replace(one, keys=()) for one in open_reasons(ledger, name, masked=True)]
            if ledger
            else [],
            "conflicts": 0,
            "newest": ledger.runs(name, 30) if ledger else [],
        }

    def _open(self, sync: str) -> list[Reason]:
        return _keyless(open_reasons(self.ledger, sync, masked=True)) if self.ledger else []

    def _rejects(self) -> dict[str, object]:
        grouped = [(sync.name, reason) for sync in self.syncs for reason in self._open(sync.name)]
        grouped.sort(key=lambda one: -one[1].rows)
        return {"grouped": grouped, "rows": (), "total": 0}

    def _link(self, root: str) -> html.Link:
        """Links from a page to the others; `root` leads to the first."""

        def link(kind: str, name: str = "") -> str | None:
            known = {"sync": self.project.syncs, "run": self.shown}.get(kind, ())
            if name in known:
                return f"{root}{kind}s/{name}.html"
            files = {"syncs": "index", "runs": "runs", "rejects": "rejects", "lineage": "lineage"}
            return f"{root}{files[kind]}.html" if kind in files else None

        return link


def _keyless(reasons: Sequence[Reason]) -> list[Reason]:
    return [replace(one, keys=()) for one in reasons]


def _unwritable(message: str) -> DefinitionError:
    return DefinitionError("SITE_UNWRITABLE", message, hint="name another folder with --out")
