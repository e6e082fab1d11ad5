"""docs/reference/: lists of all sources, destinations and decisions, with links to their pages."""

from __future__ import annotations

from pathlib import Path

from pages import compared
from retl import destinations, sources
from retl.app import reference

_CATALOGUE = """\
{count} vendors' APIs as data: `retl presets` prints this table. A [vendor of your own](../guides/own-vendor.md) takes minutes.

**evidence**: `contract` requests are valid under the vendor's schema · `golden` they equal those of the vendor's own client ·
`recording` recorded answers are read as they were meant · `docs` only the documentation · `own` there is no vendor.
**limits** are the vendor's; half of them are used unless the connection says otherwise. **erasure**: `delete` a delete fulfils
an erasure request (the page says when) · `name: value` it does with this parameter, which `retl erase` sets by itself ·
`elsewhere` another call or a person has to · `asked` it asks a receiver of yours, who has to · `unsaid` the vendor does not say. **conflicts**: what the vendor offers to see that
somebody else changed an object; `none` means the last write wins. **state**: a preview has no evidence but documentation.
Every preset survives the faults of its proof: 429 with and without a time, 500 after the commit, broken connections and
answers, an expired token, a bad row."""
_DECISIONS = Path(__file__).parents[1] / "docs" / "decisions"


def all_destinations() -> str:
    rows = ["| type | | |", "|---|---|---|"]
    for name in reference.types():
        page = reference.page(name, destinations.load(name))
        state = "preview" if page["preview"] else ""
        rows.append(f"| [{name}](../destinations/{name}.md) | {page['summary']} | {state} |")
    intro = "`retl destinations` lists them, `retl destinations NAME` shows a page. A preview is based only on the vendor's documentation."
    return "\n\n".join(["# Destinations", intro, "\n".join(rows)]) + "\n"


def catalogue() -> str:
    """Every preset at a glance."""
    titles = ("preset", "operations", "evidence", "limits", "erasure", "conflicts", "state")
    rows = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for one in reference.catalogue():
        name = f"[{one['name']}](../destinations/{one['name']}.md)"
        rows.append("| " + " | ".join([name, *(one[title] for title in titles[1:])]) + " |")
    intro = _CATALOGUE.format(count=len(rows) - 2)
    return "\n\n".join(["# Presets at a glance", intro, "\n".join(rows)]) + "\n"


def all_sources() -> str:
    rows = ["| type | |", "|---|---|"]
    rows += [
        f"| [{name}](../sources/{name}.md) | {reference.source_page(name)['summary']} |"
        for name in sources.names()
    ]
    intro = (
        "`retl sources` lists them, `retl sources NAME` shows a page. The warehouse is the default source."
    )
    return "\n\n".join(["# Sources", intro, "\n".join(rows), *compared.sources_compared()]) + "\n"


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
