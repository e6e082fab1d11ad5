"""The table that compares sources: from what each one declares, what its tests saw, and what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests import seen

from retl import sources
from retl.sources.api import Source

_FIGURES = Path(__file__).parents[1] / "benchmarks" / "sources.json"
_WORDS = """\
**snapshot**: what a run reads is one state of the source. **types**: what the tests saw of the types that the system offers;
a value that its type has no room for makes its row a reject, and is never bent. **deletes**: how a row that left is seen; without
a snapshot a missing row may only have been missed, so a sync has to say `source: {complete: true}`. **pushed down**: a watermark is
part of the query that the server runs; PostgreSQL, Redshift, MySQL, MariaDB, SQLite and Trino also read only the rows of whole numbers
that `retl sync --key` and `retl explain --key` name, if no other row can matter. **memory** and **time**: %(rows)s rows of six columns, read and frozen as a run does, the
peak of the process (and that of the bare scan by the library: Arrow and Parquet end in a table of DuckDB in memory, rows of a driver and of
JSON are dropped) and the seconds of a processor, as a multiple of that scan's (%(machine)s, %(measured_on)s; `make bench-sources`). **—**: not measured, or no server to see it on."""


def sources_compared() -> list[str]:
    """The parts of the section."""
    figures, types = json.loads(_FIGURES.read_text(encoding="utf-8")), seen.types()
    titles = ("source", "snapshot", "types", "deletes", "feed", "pushed down", "memory", "time", "evidence")
    rows = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name in sources.names():
        kind = sources.load(name)
        cells = [f"[{name}](../sources/{name}.md)", _snapshot(kind), types.get(name, "—"), _deletes(kind)]
        cells += ["yes" if "cdf" in kind.changes else "", "yes" if kind.narrows else ""]
        cells += [*_measured(figures["sources"].get(name)), kind.evidence]
        rows.append("| " + " | ".join(cells) + " |")
    about = figures | {"rows": f"{figures['rows']:,}"}
    return ["## Compared", _WORDS % about, "\n".join(rows)]


def _snapshot(kind: type[Source[Any]]) -> str:
    return "yes" if kind.one_state else "no"


def _deletes(kind: type[Source[Any]]) -> str:
    absence = "by absence" if kind.one_state else "by absence, if `complete`"
    return f"{absence}; named by the feed" if "cdf" in kind.changes else absence


def _measured(found: dict[str, Any] | None) -> tuple[str, str]:
    if found is None:
        return "—", "—"
    memory = f"{found['ours_megabytes']:,} MB ({found['bare_megabytes']:,})"
    ratio = found["ours_processor"] / found["bare_processor"]
    return memory, f"{found['ours_processor']} s, {ratio:.1f} × {found['library']}"
