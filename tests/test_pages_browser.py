"""The pages of `retl serve` and `retl docs` in a real browser: drawn, silent, and nothing in them runs.

Collected where Chromium is installed and nowhere else: see tests/conftest.py. What needs no browser is proved
in test_serve.py and test_project_site.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from urllib.parse import quote

import pytest

from retl.app.resolve import open_project
from retl.app.serve import Serve
from tests import inprocess, screenshots, served
from tests.commands import Workshop
from tests.served import LOUD
from tests.test_report_browser import SCHEMES, pixels, rgb, shoot, visit

PHONE, DESK = 390, 1280


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A project with a script in every text."""
    made = served.shop(tmp_path_factory.mktemp("evil") / "shop")
    served.troubled(made)
    served.customers(made, description=f'"{LOUD.replace(chr(34), "")}"', tags="['<script>']")
    served.hostile(made)
    return made


@pytest.fixture(scope="module")
def address(evil: Workshop) -> Iterator[str]:
    opened = lambda: open_project(evil.folder, environ=evil.environ())  # noqa: E731
    with inprocess.own_state(), Serve(opened, listen="127.0.0.1:0") as serve:
        yield f"http://{serve.address}"


@pytest.fixture(scope="module")
def site(evil: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages") / "site"
    assert evil.retl("docs", "--out", str(folder)).code == 0
    return folder


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/rejects", "/conflicts", "/doubts", "/syncs/customers", "/row?sync=customers&key=30"),
        *(f"/runs/{quote(LOUD, safe='')}", f"/syncs/{quote(LOUD, safe='')}", "/nowhere"),
    ],
)
def test_no_script_of_the_ledger_runs(address: str, path: str, tmp_path: Path) -> None:
    dom, console = visit(f"{address}{path}", tmp_path, "--dump-dom")
    assert console == []
    assert "· retl</title>" in dom or "· &lt;script&gt;" in dom
    assert "<title>it ran" not in dom
    assert "<script" not in dom


def test_a_script_that_got_in_would_be_stopped_and_noticed(address: str, tmp_path: Path) -> None:
    """The policy, not only the escaping."""
    dom, _ = visit(f"{address}/", tmp_path, "--dump-dom")
    (tmp_path / "page.html").write_text(dom.replace("<h1>", f"{LOUD}<h1>", 1), encoding="utf-8")
    dom, console = visit(f"file://{tmp_path}/page.html", tmp_path, "--dump-dom")
    assert "<title>it ran" not in dom
    assert any("Content Security Policy" in line for line in console)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("path", ["/", "/syncs/customers"])
def test_a_page_is_drawn_in_its_colours_and_inside_its_width(
    address: str, path: str, scheme: str, width: int, tmp_path: Path
) -> None:
    assert shoot(f"{address}{path}", tmp_path, scheme=scheme, width=width) == []
    is_drawn(tmp_path, scheme, width)


@pytest.mark.parametrize("page", ["index.html", "syncs/customers.html", "lineage.html", "rejects.html"])
def test_the_site_fits_on_a_phone(site: Path, page: str, tmp_path: Path) -> None:
    assert shoot(f"file://{site}/{page}", tmp_path, scheme="light", width=PHONE) == []
    is_drawn(tmp_path, "light", PHONE)


def is_drawn(folder: Path, scheme: str, width: int) -> None:
    lines, colours = pixels((folder / "page.png").read_bytes()), SCHEMES[scheme][1]
    assert len(lines[0]) == width
    seen = Counter(chain.from_iterable(lines))
    for name in ("text", "muted", "link"):
        assert seen[rgb(colours[name])] > 20, name
    # Nothing sticks out to the right: the margin there is empty.
    assert {pixel for line in lines for pixel in line[-8:]} == {rgb(colours["page"])}


def test_the_pictures_in_the_docs_are_of_these_pages() -> None:
    assert screenshots.made_of() == screenshots.templates(), "run `python -m tests.screenshots`"
