"""The report: what it tells, that no text in it is more than text, and that everybody can read it."""

from __future__ import annotations

import itertools
import re
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from retl.app.html import policy, style
from retl.app.report import Facts, Reason, delivered, funnel
from retl.app.report.page import page
from retl.ledger import BatchRow, RunRow
from tests.commands import ROWS, Workshop
from tests.ledgers import batch
from tests.servers import RedisServer

EVIL = "<script>alert('1')</script>\"&\u202e\x00"
SHOWN = "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&#34;&amp;\\u202e\\x00"
VOID = {"meta", "link", "br", "input"}
SHEET = style()
LIGHT, DARK = (
    dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", part)) for part in SHEET.split("prefers-color-scheme: dark")
)
RULES = SHEET.partition("* {")[2]
# What is seen, on what, and the contrast it needs (WCAG AA): 4.5 for text, 3 for bars, lines and borders that
# mean something.
PAIRS = [
    (ink, ground, 4.5)
    for ink in ("text", "muted", "good", "bad", "warn", "link")
    for ground in ("page", "panel")
] + [(mark, ground, 3.0) for mark in ("idle", "line") for ground in ("page", "panel")]
BEGAN = datetime(2026, 11, 21, 6, 0, tzinfo=UTC)
COUNTS = {
    "read": 1000,
    "unchanged": 700,
    "inserted": 150,
    "updated": 50,
    "refreshed": 5,
    "rejected": 60,
    "skipped": 20,
    "in_doubt": 10,
    "not_attempted": 5,
    "deleted": 3,
    "deletes": {"planned": 4, "rejected": 1, "in_doubt": 0, "not_attempted": 0},
}


class Elements(HTMLParser):
    """A document's elements with their attributes, its texts, and whether each one opened was closed."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def run(number: int = 0, **given: Any) -> RunRow:
    began = BEGAN + timedelta(days=number)
    values: dict[str, Any] = {
        "run_id": f"run-{number}",
        "sync": "users",
        "object": "pg://crm/users",
        "purpose": "sync",
        "environment": "prod",
        "correlation_id": None,
        "epoch": number,
        "started_at": began,
        "vars": {},
        "fingerprint": {},
        "source_identity": {},
        "host": "here",
        "pid": 1,
        "user": "ada",
        "version": "0.1.0",
        "status": "SUCCESS",
        "finished_at": began + timedelta(seconds=4),
        "counts": COUNTS,
        "phases": {"freeze": 1.0, "deliver": 3.0},
    }
    return RunRow(**{**values, **given})


def facts(**given: Any) -> Facts:
    values: dict[str, Any] = {
        "run": run(2),
        "runs": [run(0), run(1, status="FAILED"), run(2)],
        "batches": [batch(0), batch(1, status="done", duration_ms=750)],
        "batches_in_all": 2,
        "met": [Reason("contract", "TOO_LONG", "email is longer than 5", 60, ["7", "9"])],
        "open": [Reason("target", "23505", "a duplicate", 1, ["11"])],
        "last_success": BEGAN + timedelta(days=2),
        "made_at": BEGAN + timedelta(days=2, hours=3, minutes=30),
    }
    return Facts(**{**values, **given})


def test_the_funnel_adds_up_from_read_to_delivered() -> None:
    steps = funnel(COUNTS)
    assert [step.name for step in steps if step.kind == "through"] == ["read", "delivered"]
    lost = sum(step.rows for step in steps if step.kind == "less")
    assert steps[0].rows - lost == delivered(COUNTS) == 205
    assert sum(step.rows for step in steps if step.kind == "of which") == 205
    assert {step.name: step.share for step in steps}["in doubt"] == 0.01


def test_a_funnel_of_nothing_is_all_zero() -> None:
    assert [(step.name, step.rows, step.share) for step in funnel({})] == [
        ("read", 0, 0.0),
        ("unchanged", 0, 0.0),
        ("rejected", 0, 0.0),
        ("delivered", 0, 0.0),
    ]


def test_the_page_tells_the_run_the_history_the_reasons_and_the_batches() -> None:
    document = page(facts())
    text = " ".join(Elements(document).texts)
    for said in ("users", "SUCCESS", "run-2", "1,000", "205", "70.0%", "3 h 30 m ago"):
        assert said in text
    for said in ("TOO_LONG", "email is longer than 5", "7", "23505", "11", "0.75 s", "FAILED"):
        assert said in text
    assert "3 of 4 planned" in text
    charts = re.findall(r'<svg[^>]* role="img" aria-label="([^"]+)"', document)
    assert [name.split(" (")[0] for name in charts] == [
        "rows delivered",
        "rows per second",
        "age of the target's data before it was renewed".replace("'", "&#39;"),
        "time per batch",
    ]
    assert "2026-11-23 06:00: 2 d 0 h" in document  # how old the data became, over the failed run


def test_the_page_is_whole_in_itself() -> None:
    elements = Elements(page(facts()))
    assert elements.open == []
    tags = {tag for tag, _ in elements.found}
    assert tags.isdisjoint({"script", "iframe", "img", "object", "embed", "form"})
    for tag, attributes in elements.found:
        assert not any(name.startswith("on") for name in attributes), tag
        assert attributes.get("href", "data:,") == "data:,"
        assert "src" not in attributes
    assert "url(" not in SHEET
    assert "@import" not in SHEET


def test_the_policy_of_a_page_allows_its_own_style_and_nothing_else() -> None:
    document = page(facts())
    written = document.partition("<style>")[2].partition("</style>")[0]
    digest = b64encode(sha256(written.encode()).digest()).decode()
    assert policy().startswith(f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:;")
    escaped = policy().replace("'", "&#39;")
    assert f'content="{escaped}"' in document
    assert not any("style" in attributes for _, attributes in Elements(document).found)


def test_no_text_of_others_is_more_than_text() -> None:
    evil = run(
        2,
        **dict.fromkeys(("sync", "run_id", "object", "environment", "host", "user", "version"), EVIL),
        status=EVIL,
        guards=[{"code": EVIL, "message": EVIL, "hint": EVIL}],
        error={"code": EVIL, "message": EVIL, "hint": EVIL},
        phases={"freeze": 1.0},
    )
    hostile: Any = EVIL
    state = {
        "sync": EVIL,
        "status": EVIL,
        "stale": True,
        "age_seconds": None,
        "lag_seconds": None,
        "open_rejects": 0,
        "in_doubt": 0,
        "next": EVIL,
    }
    document = page(
        facts(
            run=evil,
            runs=[evil],
            batches=[
                BatchRow("b", 1, hostile, 0, 9, status=hostile, error=EVIL),
            ],
            met=[Reason(EVIL, EVIL, EVIL, 1, [EVIL])],
            open=[Reason(EVIL, EVIL, EVIL, 1, [EVIL])],
            states=[state],
        )
    )
    assert "<script" not in document
    assert document.count(SHOWN) >= 25
    assert Elements(document).open == []
    assert "\u202e" not in document
    assert "\x00" not in document


@pytest.mark.parametrize("size", [0, 1, 30])
def test_a_history_of_any_length_is_drawn_inside_its_frame(size: int) -> None:
    runs = [run(n, counts={**COUNTS, "inserted": n * 1000}) for n in range(size)]
    document = page(facts(runs=runs, batches=[batch(n, duration_ms=n) for n in range(size)]))
    for attributes in (a for tag, a in Elements(document).found if tag == "rect"):
        x, y = (float(str(attributes.get(name, "0")).rstrip("%")) for name in ("x", "y"))
        width = float(str(attributes["width"]).rstrip("%"))
        assert 0 <= x <= x + width <= 100.01
        assert 0 <= y <= 100


def test_a_run_that_never_began_to_count_has_a_page_too() -> None:
    bare = run(0, status="RUNNING", finished_at=None, counts={}, phases={})
    document = page(
        facts(run=bare, runs=[bare], batches=[], batches_in_all=0, met=[], open=[], last_success=None)
    )
    text = " ".join(Elements(document).texts)
    assert "RUNNING" in text
    assert "never" in text


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_computed_as_wcag_has_it() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize(("ink", "ground", "needed"), PAIRS)
def test_every_colour_can_be_read(scheme: dict[str, str], ink: str, ground: str, needed: float) -> None:
    assert contrast(scheme[ink], scheme[ground]) >= needed


def test_every_colour_that_is_used_is_one_that_was_measured() -> None:
    assert LIGHT.keys() == DARK.keys()
    assert len(LIGHT) == 10
    assert not re.findall(r"#[0-9a-fA-F]{3,8}\b|\b(?:rgba?|hsla?)\(", RULES)
    text = set(re.findall(r"(?<![-\w])color: var\(--(\w+)\)", RULES))
    marks = set(re.findall(r"fill: var\(--(\w+)\)", RULES))
    grounds = set(re.findall(r"background: var\(--(\w+)\)", RULES))
    strict = {(ink, ground) for ink, ground, needed in PAIRS if needed >= 4.5}
    seen = {(ink, ground) for ink, ground, _ in PAIRS}
    assert grounds == {"page", "panel"}
    assert set(itertools.product(text, grounds)) <= strict
    assert set(itertools.product(marks, grounds)) <= seen


@pytest.fixture
def workshop(tmp_path: Path, redis_server: RedisServer) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(redis_server)
    return made


CONTRACT = "{user_id: {type: string%s}, email: {type: string}, spend: {type: float, le: 29}}"


def hostile_mart(workshop: Workshop) -> None:
    workshop.warehouse(
        "ALTER TABLE users ALTER user_id TYPE VARCHAR;"
        f" UPDATE users SET user_id = '<script>alert({ROWS})</script>' WHERE user_id = '{ROWS}'"
    )


def test_a_script_in_the_mart_is_shown_as_text(workshop: Workshop) -> None:
    hostile_mart(workshop)
    workshop.sync("users", contract=CONTRACT % "")
    workshop.json("sync")
    made = workshop.json("report")
    assert made["report"] == "retl-report.html"
    document = (workshop.folder / "retl-report.html").read_text(encoding="utf-8")
    assert "<script" not in document
    assert document.count(f"<code>&lt;script&gt;alert({ROWS})&lt;/script&gt;</code>") == 2
    assert "OUT_OF_RANGE" in document
    assert "<code>retl rejects --sync users</code>" in document
    assert (workshop.folder / "retl-report.html").stat().st_mode & 0o077 == 0


def test_sensitive_keys_are_masked_unless_revealed(workshop: Workshop) -> None:
    hostile_mart(workshop)
    workshop.sync("users", contract=CONTRACT % ", sensitive: true")
    workshop.json("sync")
    workshop.json("report", "--out", "masked.html")
    masked = (workshop.folder / "masked.html").read_text(encoding="utf-8")
    assert "alert(" not in masked
    assert masked.count("<code>***</code>") == 2
    workshop.json("report", "--out", "open.html", "--reveal")
    assert (workshop.folder / "open.html").read_text(encoding="utf-8").count(f"alert({ROWS})") == 2


def test_a_run_is_chosen_by_id_by_sync_or_is_the_last(workshop: Workshop) -> None:
    workshop.sync("users")
    workshop.sync("others")
    assert workshop.retl("report").code == 2
    workshop.json("sync", "--sync", "users")
    first = workshop.json("report", "--out", "1.html")
    workshop.json("sync", "--sync", "others")
    before = {name: data for name, data in workshop.snapshot().items() if name.startswith(".retl")}
    assert workshop.json("report", "--out", "2.html")["sync"] == "others"
    assert workshop.json("report", "--sync", "users", "--out", "3.html")["run_id"] == first["run_id"]
    assert workshop.json("report", first["run_id"], "--out", "4.html")["sync"] == "users"
    for words in (("report", "20000101"), ("report", first["run_id"], "--sync", "others")):
        assert "RUN_UNKNOWN" in workshop.retl(*words).err
    assert "SYNC_UNKNOWN" in workshop.retl("report", "--sync", "nobody").err
    assert "REPORT_UNWRITABLE" in workshop.retl("report", "--out", "no/such/folder.html").err
    assert {n: d for n, d in workshop.snapshot().items() if n.startswith(".retl")} == before
