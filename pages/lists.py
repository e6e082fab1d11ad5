"""docs/reference/: lists of all sources, destinations and decisions, with links to their pages."""

from __future__ import annotations

from pathlib import Path

from retl import destinations, sources
from retl.app import reference

_DECISIONS = Path(__file__).parents[1] / "docs" / "decisions"


def all_destinations() -> str:
    rows = ["| type | | |", "|---|---|---|"]
    for name in reference.types():
        page = reference.page(name, destinations.load(name))
        state = "preview" if page["preview"] else ""
        rows.append(f"| [{name}](../destinations/{name}.md) | {page['summary']} | {state} |")
    intro = "`retl destinations` lists them, `retl destinations NAME` shows a page. A preview is based only on the vendor's documentation."
    return "\n\n".join(["# Destinations", intro, "\n".join(rows)]) + "\n"


def all_sources() -> str:
    rows = ["| type | | tried against |", "|---|---|---|"]
    for name in sources.names():
        page = reference.source_page(name)
        rows.append(f"| [{name}](../sources/{name}.md) | {page['summary']} | {page['evidence']} |")
    intro = (
        "`retl sources` lists them, `retl sources NAME` shows a page. The warehouse is the default source."
    )
    return "\n\n".join(["# Sources", intro, "\n".join(rows)]) + "\n"


def all_decisions() -> str:
    found = []
    for path in sorted(_DECISIONS.glob("*.md")):
        title = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        found.append(f"- [{title}](../decisions/{path.name})")
    return (
        "\n".join(
            ["# Decisions", "", "Choices that a newcomer would question, with the reasons.", "", *found]
        )
        + "\n"
    )
