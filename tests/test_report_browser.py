"""The report in a real browser, light and dark: drawn, in its colours, and without a word on the console.

It is collected where Chromium is installed (`apt-get install chromium`) and nowhere else: see
tests/conftest.py. What needs no browser is proved in test_report.py on every machine.
"""

from __future__ import annotations

import subprocess
import zlib
from collections import Counter
from functools import lru_cache
from itertools import chain
from pathlib import Path

import pytest

from retl.app.report.page import page
from tests.chromium import CHROMIUM
from tests.test_report import DARK, EVIL, LIGHT, facts, run

QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--enable-logging=stderr", "--force-device-scale-factor=1"),
)
SCHEMES = {"dark": ("0", DARK), "light": ("1", LIGHT)}  # Chromium's own numbers for what people prefer
Pixel = tuple[int, ...]


def visit(address: str, folder: Path, *options: str) -> tuple[str, list[str]]:
    """Open an address: what was asked for on stdout, and what its console said."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *QUIET, f"--user-data-dir={folder / 'profile'}", *options, address],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, [one for one in (done.stdout + done.stderr).splitlines() if "CONSOLE" in one]


def shoot(address: str, folder: Path, *, scheme: str, width: int, height: int = 1200) -> list[str]:
    """Make folder/page.png; what the console said."""
    return visit(
        address,
        folder,
        f"--blink-settings=preferredColorScheme={SCHEMES[scheme][0]}",
        f"--window-size={width},{height}",
        f"--screenshot={folder / 'page.png'}",
    )[1]


def screenshot(
    document: str, folder: Path, *, scheme: str, width: int
) -> tuple[list[list[Pixel]], list[str]]:
    """The pixels of the page, and what its console said."""
    (folder / "page.html").write_text(document, encoding="utf-8")
    said = shoot(f"file://{folder}/page.html", folder, scheme=scheme, width=width)
    return pixels((folder / "page.png").read_bytes()), said


def pixels(png: bytes) -> list[list[Pixel]]:
    """The lines of an 8-bit RGB or RGBA image that is not interlaced."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    chunks: list[tuple[bytes, bytes]] = []
    at = 8
    while at < len(png):
        size = int.from_bytes(png[at : at + 4])
        chunks.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + size]))
        at += size + 12
    head = dict(chunks)[b"IHDR"]
    width, height, depth, kind = int.from_bytes(head[:4]), int.from_bytes(head[4:8]), head[8], head[9]
    assert (depth, head[12]) == (8, 0)
    step = {2: 3, 6: 4}[kind]
    data = zlib.decompress(b"".join(content for name, content in chunks if name == b"IDAT"))
    size = width * step
    before, lines = bytes(size), []
    for start in range(0, height * (size + 1), size + 1):
        before = _unfiltered(data[start], data[start + 1 : start + 1 + size], before, step)
        lines.append(_split(before, step))
    return lines


@lru_cache(8)  # most lines of a page are those above them
def _unfiltered(kind: int, line: bytes, above: bytes, step: int) -> bytes:
    out = bytearray(line)
    for x in range(len(out)):
        left, up = out[x - step] if x >= step else 0, above[x]
        corner = above[x - step] if x >= step else 0
        if kind == 4:
            near = left + up - corner
            guess = min(
                (abs(near - left), 0, left), (abs(near - up), 1, up), (abs(near - corner), 2, corner)
            )[2]
        else:
            guess = (0, left, up, (left + up) // 2)[kind]
        out[x] = (out[x] + guess) & 255
    return bytes(out)


@lru_cache(8)
def _split(line: bytes, step: int) -> list[Pixel]:
    return list(zip(*(line[colour::step] for colour in range(3)), strict=True))


def rgb(colour: str) -> Pixel:
    return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))


@pytest.mark.parametrize("width", [500, 1000], ids=["narrow", "wide"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_report_is_drawn_in_its_colours_and_the_console_is_silent(
    tmp_path: Path, scheme: str, width: int
) -> None:
    lines, console = screenshot(page(facts()), tmp_path, scheme=scheme, width=width)
    assert console == []
    colours = SCHEMES[scheme][1]
    assert (len(lines[0]), len(lines)) == (width, 1200)
    assert lines[0][0] == lines[-1][-1] == rgb(colours["page"])
    seen = Counter(chain.from_iterable(lines))
    for name in ("panel", "text", "muted", "good", "idle", "bad"):
        assert seen[rgb(colours[name])] > 20, name
    # Nothing sticks out to the right: the margin there is empty.
    assert {pixel for line in lines for pixel in line[-8:]} == {rgb(colours["page"])}


def test_a_script_in_a_value_does_not_run(tmp_path: Path) -> None:
    shout = "<script>console.error('it ran')</script><img src=x onerror=console.error(2)>"
    _, console = screenshot(
        page(facts(run=run(2, sync=shout, object=EVIL))), tmp_path, scheme="light", width=500
    )
    assert console == []


def test_a_faulty_page_would_be_noticed(tmp_path: Path) -> None:
    _, console = screenshot("<script>console.error('it ran')</script>", tmp_path, scheme="light", width=500)
    assert "it ran" in console[0]
