"""The pages of `retl serve`: what each shows, read from the ledger and the project's files.

It writes nothing and shows no sensitive value or key. Every name in an address is quoted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from msgspec.structs import replace

from retl.app import catalog, html, masking
from retl.app.freshness import renamed, states
from retl.app.loaded import LoadedProject
from retl.app.report import Reason, delivered, gather, open_reasons
from retl.app.report.page import page
from retl.errors import DefinitionError
from retl.ledger import Ledger
from retl.observe.mask import MASK
from retl.run.conflicts import STAGE, queue
from retl.run.resolve import doubts, is_asked

RUNS, ROWS = 100, 200  # on one page

Query = Mapping[str, Sequence[str]]
View = Callable[[LoadedProject, Ledger, str, Query], str]


def link(kind: str, name: str = "") -> str | None:
    """The address of a page."""
    quoted = quote(name, safe="")
    if kind == "syncs":
        return "/"
    if kind in ("sync", "run") and name:
        return f"/{kind}s/{quoted}"
    if kind in ("runs", "rejects", "conflicts"):
        return f"/{kind}?sync={quoted}" if name else f"/{kind}"
    return f"/{kind}" if kind in ("doubts", "lineage", "row") else None


def overview(project: LoadedProject, ledger: Ledger, _name: str, _query: Query) -> str:
    syncs = [project.syncs[name] for name in sorted(project.syncs)]
    return html.render(
        "overview",
        "syncs",
        link,
        syncs=states(syncs, ledger, Path(project.warehouse.path), former=renamed(project, ledger)),
        newest=ledger.runs(limit=10),
        listed=[],
        note="",
        made_at=ledger.now(),
        delivered=delivered,
    )


def sync(project: LoadedProject, ledger: Ledger, name: str, _query: Query) -> str:
    known = project.syncs.get(name)
    runs = ledger.runs(name, 30)
    if known is None and not runs:
        raise DefinitionError("SYNC_UNKNOWN", "there is no such sync")
    former = renamed(project, ledger)
    found = states([known], ledger, Path(project.warehouse.path), former=former) if known else []
    return html.render(
        "sync",
        "syncs",
        link,
        name=name,
        entry=catalog.entry(project, known) if known else None,
        state=found[0] if found else None,
        open=open_reasons(ledger, name, masked=masking.hides_key(project, name)),
        conflicts=len(queue(ledger, [name])),
        newest=runs,
        made_at=ledger.now(),
        delivered=delivered,
    )


def runs(_project: LoadedProject, ledger: Ledger, _name: str, query: Query) -> str:
    name = _only(query)
    return html.render(
        "runs",
        "runs",
        link,
        name=name,
        newest=ledger.runs(name, RUNS),
        most=RUNS,
        made_at=ledger.now(),
        delivered=delivered,
    )


def run(project: LoadedProject, ledger: Ledger, name: str, _query: Query) -> str:
    """The page of `retl report`, as of now."""
    found = ledger.run(name)
    if found is None:
        raise DefinitionError("RUN_UNKNOWN", "there is no such run")
    return page(gather(ledger, found, masked=masking.hides_key(project, found.sync)), link)


def rejects(project: LoadedProject, ledger: Ledger, _name: str, query: Query) -> str:
    name = _only(query)
    found = ledger.rejects(name)
    alike = Counter((one.sync, one.stage, one.code, one.reason) for one in found).most_common()
    hidden = {one for one in {row.sync for row in found} if masking.hides_key(project, one)}
    return html.render(
        "rejects",
        "rejects",
        link,
        name=name,
        grouped=[(one[0], Reason(*one[1:], number, ())) for one, number in alike],
        rows=[replace(one, key=MASK) if one.sync in hidden else one for one in found[:ROWS]],
        total=len(found),
        made_at=ledger.now(),
    )


def conflicts(project: LoadedProject, ledger: Ledger, _name: str, query: Query) -> str:
    found = queue(ledger, None if (only := _only(query)) is None else [only])
    hidden = {one for one in {row.sync for row in found} if masking.hides_key(project, one)}
    return html.render(
        "conflicts",
        STAGE + "s",
        link,
        rows=[replace(one, key=MASK) if one.sync in hidden else one for one in found[:ROWS]],
        total=len(found),
        made_at=ledger.now(),
    )


def in_doubt(project: LoadedProject, ledger: Ledger, _name: str, _query: Query) -> str:
    asked = [name for name, one in sorted(project.syncs.items()) if is_asked(one)]
    found = [one for name in asked for one in doubts(ledger, name)]
    return html.render("doubts", "doubts", link, rows=found, made_at=ledger.now())


def lineage(project: LoadedProject, _ledger: Ledger, _name: str, _query: Query) -> str:
    lines = catalog.lineage([catalog.entry(project, one) for one in project.syncs.values()])
    return html.render("lineage", "lineage", link, lines=lines)


VIEWS: Mapping[str, View] = {
    "": overview,
    "runs": runs,
    "rejects": rejects,
    "conflicts": conflicts,
    "doubts": in_doubt,
    "lineage": lineage,
    "syncs/": sync,
    "runs/": run,
}


def _only(query: Query) -> str | None:
    """The sync that a list is limited to."""
    return next(iter(query.get("sync", ())), None) or None
