"""`python -m pages`: write every generated page, and copy the guides' files into their pages."""

from __future__ import annotations

from pathlib import Path

from pages import commands, lists, loads, measured, shown, tables, tutorial
from retl.app import reference

ROOT = Path(__file__).parents[1]
PAGES = {
    "commands": commands.page,
    "settings": tables.settings,
    "project": tables.project,
    "syncs": tables.syncs,
    "ledger": tables.ledger,
    "sources": lists.all_sources,
    "destinations": lists.all_destinations,
    "catalogue": lists.catalogue,
    "decisions": lists.all_decisions,
}


def made() -> dict[Path, str]:
    """Path → text of every page that is made or filled here, except those of sources and destinations."""
    docs = ROOT / "docs"
    found = {docs / "reference" / f"{name}.md": page() for name, page in PAGES.items()}
    for guide in sorted((docs / "guides").rglob("*.md")):
        found[guide] = shown.filled(guide.read_text(encoding="utf-8"), guide.parent)
    readme, benchmarks = (
        path.read_text(encoding="utf-8") for path in (ROOT / "README.md", docs / "benchmarks.md")
    )
    readme = measured.filled(readme, benchmarks)
    found[docs / "benchmarks.md"] = loads.filled(benchmarks)
    return {**found, ROOT / "README.md": readme, docs / "index.md": tutorial.page(readme)}


if __name__ == "__main__":
    reference.write_pages(ROOT / "docs" / "destinations")
    reference.write_source_pages(ROOT / "docs" / "sources")
    for path, text in made().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
