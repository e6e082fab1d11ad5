"""docs/reference/: all destinations, and all decisions, as lists that lead to their pages."""

from __future__ import annotations

from pathlib import Path

from retl import destinations
from retl.app import reference

_DECISIONS = Path(__file__).parents[1] / "docs" / "decisions"


def all_destinations() -> str:
    rows = ["| type | | |", "|---|---|---|"]
    for name in reference.types():
        page = reference.page(name, destinations.load(name))
        state = "preview" if page["preview"] else ""
        rows.append(f"| [{name}](../destinations/{name}.md) | {page['summary']} | {state} |")
    said = "`retl destinations` lists them, `retl destinations NAME` shows a page. A preview is made from the vendor's documentation alone."
    return "\n\n".join(["# Destinations", said, "\n".join(rows)]) + "\n"


def all_decisions() -> str:
    found = []
    for path in sorted(_DECISIONS.glob("*.md")):
        title = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        found.append(f"- [{title}](../decisions/{path.name})")
    return (
        "\n".join(["# Decisions", "", "What a newcomer would question, and why it is so.", "", *found]) + "\n"
    )
