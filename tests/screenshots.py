"""The pictures in docs/screenshots: the report, the pages and the site at the widths of a phone, a tablet and a
desk. `python -m tests.screenshots` makes them, with Chromium."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from retl.app import html
from retl.app.report.page import page
from retl.app.resolve import open_project
from retl.app.serve import Serve
from tests import inprocess, served

FOLDER = Path(__file__).parents[1] / "docs" / "screenshots"
SIZES = {"phone": (390, 844), "tablet": (768, 1024), "desk": (1280, 900)}
SHOWN = ("report", "pages", "row", "site")
NAMES = {f"{name}-{size}.png" for name in SHOWN for size in SIZES}
MADE_OF = FOLDER / "made-of.json"


def templates() -> dict[str, str]:
    """The digest of every template: what the pictures were made of."""
    folder = Path(html.__file__).parent
    found = sorted(one for one in folder.iterdir() if one.suffix in (".html", ".css"))
    return {one.name: sha256(one.read_bytes()).hexdigest()[:16] for one in found}


def made_of() -> dict[str, str]:
    """What the pictures in the docs were made of."""
    found: dict[str, str] = json.loads(MADE_OF.read_text(encoding="utf-8"))
    return found


@contextmanager
def addresses(folder: Path) -> Iterator[dict[str, str]]:
    """Where each of SHOWN can be seen."""
    from tests.test_report import facts

    made = served.shop(folder / "shop")
    served.troubled(made)
    served.settled(made)
    (folder / "report.html").write_text(page(facts()), encoding="utf-8")
    assert made.retl("docs", "--out", str(folder / "site")).code == 0
    opened = lambda: open_project(made.folder, environ=made.environ())  # noqa: E731
    with inprocess.own_state(), Serve(opened, listen="127.0.0.1:0") as serve:
        yield {
            "report": f"file://{folder}/report.html",
            "pages": f"http://{serve.address}/",
            "row": f"http://{serve.address}/row?sync=customers&key=30",
            "site": f"file://{folder}/site/syncs/customers.html",
        }


def make() -> None:
    from tests.test_report_browser import shoot

    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name, addresses(Path(name)) as found:
        for shown, address in found.items():
            for size, (width, height) in SIZES.items():
                scheme = "dark" if size == "tablet" else "light"
                assert shoot(address, Path(name), scheme=scheme, width=width, height=height) == []
                (FOLDER / f"{shown}-{size}.png").write_bytes((Path(name) / "page.png").read_bytes())
    MADE_OF.write_text(json.dumps(templates(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    make()
