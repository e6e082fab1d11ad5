"""The guide's dashboard in a real browser, over files that retl wrote: drawn light, dark and on a phone.

Collected where Chromium is installed and nowhere else: see tests/conftest.py. What needs no browser is in
test_dashboard.py.
"""

from __future__ import annotations

import functools
import re
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.commands import Workshop
from tests.test_dashboard import FOLDER, beside, shop
from tests.test_report_browser import SCHEMES, pixels, rgb, visit

LOUD = "<img src=x onerror=console.error(1)><script>console.error(2)</script>"
HEIGHT = 1400


class Shown(NamedTuple):
    workshop: Workshop
    address: str


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """The page beside a published set, whose description is a script."""
    workshop = shop(tmp_path_factory.mktemp("dashboard") / "project")
    text = (workshop.folder / "syncs" / "revenue_by_month.yml").read_text()
    workshop.write(
        "syncs/revenue_by_month.yml", text.replace("description: Paid orders", f"description: '{LOUD}'")
    )
    workshop.json("sync")
    made = functools.partial(Quiet, directory=str(beside(workshop)))
    server = ThreadingHTTPServer(("127.0.0.1", 0), made)
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    yield Shown(workshop, f"http://127.0.0.1:{server.server_address[1]}/")
    server.shutdown()
    server.server_close()


def colours(scheme: str) -> dict[str, str]:
    """The page's own, of a scheme."""
    blocks = re.findall(
        r"color-scheme: \w+;.*?--page[^}]*", (FOLDER / "dashboard.html").read_text(), re.DOTALL
    )
    (found,) = [one for one in blocks if one.startswith(f"color-scheme: {scheme}")]
    return dict(re.findall(r"--(\w+): (#\w+)", found))


@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 390)], ids=["light", "dark, phone"])
def test_the_dashboard_is_drawn_in_its_colours_and_nothing_sticks_out(
    shown: Shown, tmp_path: Path, scheme: str, width: int
) -> None:
    picture = tmp_path / "page.png"
    options = (
        f"--blink-settings=preferredColorScheme={SCHEMES[scheme][0]}",
        f"--window-size={width},{HEIGHT}",
        *("--virtual-time-budget=10000", f"--screenshot={picture}"),
    )
    assert visit(shown.address, tmp_path, *options)[1] == []
    lines = pixels(picture.read_bytes())
    seen = Counter(pixel for line in lines for pixel in line)
    known = colours(scheme)
    assert lines[0][0] == rgb(known["page"])
    for name, least in {"panel": 20_000, "bar": 5_000, "text": 20, "muted": 20, "good": 20}.items():
        assert seen[rgb(known[name])] > least, name
    assert {pixel for line in lines for pixel in line[-8:]} == {rgb(known["page"])}


def test_the_page_shows_the_rows_and_reads_no_text_as_html(shown: Shown, tmp_path: Path) -> None:
    dom, console = visit(shown.address, tmp_path, "--virtual-time-budget=10000", "--dump-dom")
    assert console == []
    assert "<title>Revenue by month</title>" in dom
    assert (dom.count("<rect "), dom.count("<svg ")) == (2 * 29, 2)
    assert "29 rows, as of" in dom
    assert "&lt;img src=x onerror" in dom
    assert dom.count("<tr>") == 13
    assert dom.index("2026-11-01</td>") < dom.index("2026-10-01</td>")


@pytest.mark.parametrize("rows", [29, 13, 7, 5, 2, 1])
def test_no_label_of_a_chart_is_cut_and_the_last_bar_has_one(shown: Shown, tmp_path: Path, rows: int) -> None:
    folder, page = beside(shown.workshop), (FOLDER / "dashboard.html").read_text()
    cut = (
        "load().then(([latest, rows]) => [latest, rows.slice(-ROWS)]).then(draw).then(() => {"
        " for (const one of document.querySelectorAll('svg text')) { const box = one.getBBox();"
        " if (box.x < 0 || box.x + box.width > 400) one.setAttribute('data-cut', ''); } })"
    )
    measured = page.replace("load().then(draw)", cut.replace("ROWS", str(rows)))
    assert measured != page
    (folder / "measured.html").write_text(measured)
    dom, console = visit(
        f"{shown.address}measured.html", tmp_path, "--virtual-time-budget=10000", "--dump-dom"
    )
    assert console == []
    assert dom.count("<rect ") == 2 * rows
    assert 'data-cut=""' not in dom
    assert dom.count(">2026-11-01</text>") == 2


def test_old_data_are_stale_and_missing_data_are_said(shown: Shown, tmp_path: Path) -> None:
    latest = shown.workshop.folder / "out" / "revenue" / "latest.json"
    whole = latest.read_text()
    try:
        latest.write_text(re.sub(r'"as_of":"\d{4}', '"as_of":"2020', whole))
        dom, _ = visit(shown.address, tmp_path, "--virtual-time-budget=10000", "--dump-dom")
        assert 'class="stale"' in dom
        latest.write_text(whole.replace("part-00000", "part-00009"))
        other = tmp_path / "other"  # a browser that has nothing in its cache: this server's clock has seconds
        other.mkdir()
        dom, _ = visit(shown.address, other, "--virtual-time-budget=10000", "--dump-dom")
        assert "The data cannot be read: sets/" in dom
    finally:
        latest.write_text(whole)
