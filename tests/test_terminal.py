"""What a terminal shows: golden texts at three widths, and which run a person means."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import pytest
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from retl.cli import history, output
from retl.cli.drawing import drawn
from retl.cli.output import Piece, Table
from retl.cli.running import summary_pieces
from retl.observe.progress import Drawing, columns
from retl.observe.summary import Counts, Deletes, Summary, counted
from tests.commands import Workshop
from tests.servers import RedisServer

GOLDEN = Path(__file__).parent / "golden"
DOCS = Path(__file__).parents[1] / "docs"
STYLE = re.compile(r"\x1b\[[\d;]*m")


@contextmanager
def terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """While open, stdout is a terminal of this width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    with monkeypatch.context() as patch, io.TextIOWrapper(os.fdopen(theirs, "wb"), "utf-8") as stream:
        patch.delenv("COLUMNS", raising=False)
        patch.delenv("NO_COLOR", raising=False)
        patch.setenv("TERM", "xterm")
        patch.setattr(sys, "stdout", stream)
        yield
    os.close(ours)


def run(sync: str, status: str, counts: Counts, seconds: float, **more: object) -> dict[str, object]:
    code = 0 if status.startswith("SUCCESS") else 1
    return Summary(sync, "r", status, code, counts=counts, seconds=seconds, **more).document()  # type: ignore[arg-type]


def pieces() -> list[Piece]:
    """A run of three million rows, one with everything in it, and tables as long as people's words are."""
    reason = "must be one of active, dormant or churned: the contract allows no other segment"
    reject = {"key": "customer-0000004711", "stage": "contract", "code": "NOT_ALLOWED", "reason": reason}
    numbers = {"read": 3_000_000, "unchanged": 2_991_998, "inserted": 1, "updated": 1, "rejected": 8_000}
    busy = Counts(
        12_345_678,
        1_000_000,
        2_000_000,
        3_000_000,
        4_000_000,
        1_345_678,
        1_000_000,
        0,
        0,
        7_000,
        Deletes(7_000),
    )
    few = run("customer_segments", "SUCCESS_WITH_REJECTS", Counts(**numbers), 12.345, rejects=[reject])
    many = run("orders_to_hubspot", "FAILED", busy, 1234.5)
    at = datetime(2026, 11, 28, 6, tzinfo=UTC)
    ids = [
        ("20261128T060000123-a1b2c3", "customer_segments", "SUCCESS_WITH_REJECTS", at, 3_000_000, 0, 12.345)
    ]
    headers = ("run", "sync", "status", "started", "read", "deleted", "seconds")
    return [
        *summary_pieces([few]),
        *summary_pieces([few, many]),
        Table(headers, ids),
        Table(
            ("type", "what it is", ""),
            [("postgres", "Tables of PostgreSQL, by COPY " + "and more " * 12, True)],
        ),
    ]


@pytest.mark.parametrize("width", [80, 110, 140])
def test_nothing_is_broken_at_any_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(width, monkeypatch):
        said = STYLE.sub("", output.pieces_text(pieces()))
    said = "".join(f"{line.rstrip()}\n" for line in said.splitlines())
    golden = GOLDEN / f"terminal-{width}.txt"
    if os.environ.get("RETL_TEST_GOLDEN"):
        golden.write_text(said, encoding="utf-8")
    assert said == golden.read_text(encoding="utf-8")
    assert max(map(len, said.splitlines())) <= width
    for whole in (
        "3,000,000",
        "2,991,998",
        "SUCCESS_WITH_REJECTS",
        "20261128T060000123-a1b2c3",
        "12,345,678",
    ):
        assert whole in said


def test_on_a_narrow_terminal_a_sync_and_a_run_stay_a_line_with_what_matters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A long cell does not make records of them all: columns go, then cells are folded."""
    at = datetime(2026, 11, 28, 6, tzinfo=UTC)
    ids = [f"20261128T060000{n}-a1b2c{n % 10}" for n in (123, 124, 125)]
    counts = (100, 3, 97, 0, 1, 0)
    runs = [
        (ids[0], "customer_cache", "sync", "SUCCESS", at, 1.5, *counts),
        (ids[1], "customers_pg", "sync", "SUCCESS_WITH_REJECTS", at, 1.5, *counts),
        (ids[2], "orders_webhook", "sync", "FAILED", at, 1.5, *counts),
    ]
    shown = ("read", "inserted", "updated", "refreshed", "deleted", "rejected")
    headers = ("run", "sync", "purpose", "status", "started", "seconds", *shown)
    states = [
        ("customers_pg", "SUCCESS_WITH_REJECTS", at, "3m", 2, "`retl rejects --sync customers_pg`"),
        ("lines", "FAILED", at, "3m", 0, f"`retl show {ids[2]}`: REJECT_RATE"),
    ]
    asked = ("sync", "status", "last success", "age", "open rejects", "next")
    tables = [
        history._runs_table(headers, runs),
        Table(asked, states, spares=history.STATUS_SPARED, folds=("next",)),
    ]
    with terminal(80, monkeypatch):
        narrow = STYLE.sub("", output.pieces_text(tables))
    assert max(map(len, narrow.splitlines())) <= 80
    assert len(narrow.splitlines()) < 25
    lines = narrow.splitlines()
    assert [line.split()[:3] for line in lines[2:5]] == [
        ["a1b2c3", "customer_cache", "SUCCESS"],
        ["a1b2c4", "customers_pg", "SUCCESS_WITH_REJECTS"],
        ["a1b2c5", "orders_webhook", "FAILED"],
    ]
    assert {"run", "sync", "status", "started", "read", "inserted"} <= set(narrow.splitlines()[0].split())
    assert narrow.count("11-28 06:00Z") == 3, "when it was stays, in whole cells"
    runs[1] = (*runs[1][:2], "reconcile", *runs[1][3:])
    with terminal(80, monkeypatch):
        head, _, *lines = STYLE.sub("", output.pieces_text([history._runs_table(headers, runs)])).splitlines()
    assert ("purpose" in head, "reconcile" in lines[1], len([one for one in lines if one.strip()])) == (
        True, True, 3,
    )  # fmt: skip
    with terminal(160, monkeypatch):
        wide = STYLE.sub("", output.pieces_text(tables))
    assert wide.splitlines()[0].split()[:6] == ["run", "sync", "purpose", "status", "started", "seconds"]
    assert f"`retl show {ids[2]}`: REJECT_RATE" in wide


@pytest.mark.parametrize("width", [80, 110, 140])
def test_the_pictures_in_the_docs_are_of_this_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """RETL_TEST_GOLDEN=1 makes them; the fonts are the reader's, so that nothing is fetched."""
    with terminal(width, monkeypatch):
        said = output.pieces_text(pieces())
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(Text.from_ansi(said))
    form = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    title = f"a terminal of {width} columns"
    picture = console.export_svg(title=title, code_format=form, unique_id=f"terminal-{width}")
    file = DOCS / "screenshots" / f"terminal-{width}.svg"
    if os.environ.get("RETL_TEST_GOLDEN"):
        file.write_text(picture, encoding="utf-8")
    assert picture == file.read_text(encoding="utf-8")
    assert "url(http" not in picture
    assert f"../screenshots/{file.name}" in (DOCS / "guides" / "observing.md").read_text(encoding="utf-8")


def test_a_line_of_one_sync_has_less_than_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(100, monkeypatch):
        head, _, line = STYLE.sub("", output.pieces_text(pieces()[:1])).splitlines()[:3]
    assert head.split() == [
        "sync",
        "status",
        "read",
        "unchanged",
        "inserted",
        "updated",
        "rejected",
        "seconds",
    ]
    assert len(line) < 100


def test_a_delivery_that_took_long_because_of_retries_says_so() -> None:
    def said(retries: int, seconds: float) -> str:
        done = run("a", "SUCCESS", Counts(), seconds, retries=retries, phases={"deliver": seconds})
        return output.pieces_text(summary_pieces([done]))

    assert "339 retries; delivery took 2 min 40 s" in said(339, 160.0)
    assert "1 retry; delivery took 6 s" in said(1, 6.0)
    assert "delivery took" not in said(339, 1.0) + said(0, 160.0)


def test_a_status_has_its_colour_and_zeros_have_no_column(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(110, monkeypatch):
        said = output.pieces_text(pieces()[:1])
    assert "\x1b[33mSUCCESS_WITH_REJECTS" in said
    assert "deleted" not in said


def test_a_name_and_its_value_stay_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(40, monkeypatch):
        text = STYLE.sub("", output.pieces_text([Table(("run", "r1"), [("object", "x" * 60), ("pid", 1)])]))
    assert [line.rstrip() for line in text.splitlines()] == [
        "run     r1",
        "object  " + "x" * 60,
        "pid     1",
        "",
    ]


def test_a_value_of_a_row_is_written_as_it_is() -> None:
    assert [output.datum(one) for one in (8.0, 1234567, True, None, [1, "a"])] == [
        "8.0", "1234567", "true", "NULL", '[1, "a"]',
    ]  # fmt: skip


def test_a_heading_is_a_line_however_narrow_the_terminal_is() -> None:
    title = "rejects (20 of 303 rows), of which none is new:"
    lines = drawn([Table(("key",), [(1,)], title)], 30).splitlines()
    assert title in lines[0]


@pytest.mark.parametrize(
    ("number", "noun", "verb", "said"),
    [
        (1, "row", "", "1 row"),
        (0, "row", "", "0 rows"),
        (1204, "key", "", "1,204 keys"),
        (2, "batch", "", "2 batches"),
        (2, "retry", "", "2 retries"),
        (1, "retry", "", "1 retry"),
        (1, "delete", "wait", "1 delete waits"),
        (3, "delete", "wait", "3 deletes wait"),
        (1, "row", "was", "1 row was"),
        (2, "row", "was", "2 rows were"),
        (2, "suppressed key", "is", "2 suppressed keys are"),
    ],
)
def test_a_number_goes_with_its_noun_and_verb(number: int, noun: str, verb: str, said: str) -> None:
    assert counted(number, noun, verb) == said


def test_a_run_is_named_by_a_part_of_its_id_by_its_sync_or_from_the_end(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.use(redis_server)
    workshop.sync("users")
    workshop.sync("others")
    workshop.json("sync")
    last, first = (one["run_id"] for one in workshop.json("runs")["runs"])
    for words, run_id in {
        "-1": last, "-2": first, "users": last, "others": first, first[-6:]: first, last[:-2]: last,
    }.items():  # fmt: skip
        assert workshop.json("show", words)["run_id"] == run_id, words
    for words in ("-3", first[:5], "nobody", "--imags"):
        assert workshop.retl("show", words).code == 2, words
    shown, summed = workshop.json("show"), sum(workshop.json("show")["phases"].values())
    assert abs(shown["seconds"] - summed) < 0.01, "one clock"


def test_progress_goes_forward_through_the_phases_and_counts_what_was_read() -> None:
    """Reading and asking overlap, so their events come in turn."""
    shown: list[str] = []
    events: list[tuple[str, dict[str, object]]] = [
        ("phase", {"phase": phase}) for phase in ("begin", "freeze", "guard", "recover", "freeze")
    ]
    events += [
        ("mart_reading", {"share": 0.25, "rows": None}),
        ("mart_reading", {"share": 0.5, "rows": 1_500_000}),
    ]
    events += [("mart_frozen", {"rows": 3_000_000})]
    events += [("phase", {"phase": phase}) for phase in ("diff", "judge", "diff", "guard")]
    events += [("guards_judged", {"changes": 20}), ("phase", {"phase": "deliver"})]
    events += [("batch_acknowledged", {"rows": 5})]
    events += [("room_awaited", {"seconds": 0.4}), ("room_awaited", {"seconds": 9.7})]
    events += [("retry_awaited", {"seconds": 30.0}), ("batch_acknowledged", {"rows": 5})]
    events += [("room_awaited", {"seconds": 2.0}), ("phase", {"phase": "commit"})]
    with Progress(console=Console(file=io.StringIO())) as progress:
        drawing = Drawing(progress)
        for event, fields in events:
            drawing(event, fields)
            shown.append(progress.tasks[0].description)
        assert (progress.tasks[0].completed, progress.tasks[0].total) == (10, 20)
    assert [text for text, _ in groupby(shown)] == [
        "begin (2 of 10)",
        "freeze (4 of 10)",
        "freeze (4 of 10), 25% of the mart read",
        "freeze (4 of 10), 1,500,000 rows read",
        "freeze (4 of 10), 3,000,000 rows read",
        "diff (5 of 10), 3,000,000 rows read",
        "judge (6 of 10), 3,000,000 rows read",
        "guard (7 of 10), 3,000,000 rows read",
        "deliver (9 of 10), 3,000,000 rows read",
        "waits 10 s for the connection's limits",
        "waits 30 s for another attempt",
        "deliver (9 of 10), 3,000,000 rows read",
        "waits 2 s for the connection's limits",
        "commit (10 of 10), 3,000,000 rows read",
    ]


@pytest.mark.parametrize("width", [60, 80, 110, 140])
def test_the_progress_is_one_line_with_whole_numbers(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    progress = Progress(*columns(width), console=console)
    progress.add_task("orders_to_the_webhook: deliver (9 of 10), 3,000,000 rows read", total=3_000_000)
    progress.advance(progress.task_ids[0], 2_345_678)
    console.print(progress.get_renderable())
    assert isinstance(console.file, io.StringIO)
    (line,) = STYLE.sub("", console.file.getvalue()).splitlines()
    assert "2,345,678/3,000,000" in line
    assert re.search(r"-:--:--|\d:\d\d:\d\d", line)
    assert line.startswith("orders_to_the_webhook")


def test_the_clock_of_the_progress_counts_what_the_summary_counts() -> None:
    """From the start of the process."""
    with Progress(console=Console(file=io.StringIO())) as progress:
        Drawing(progress, begun=time.monotonic() - 100)
        assert 100 <= (progress.tasks[0].elapsed or 0) < 160


def on_terminal(workshop: Workshop, *words: str) -> list[str]:
    """The lines that a command shows on a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**workshop.environ(TERM="xterm")}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen(
        workshop.command(*words),
        cwd=workshop.folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    said = b""
    with suppress(OSError):  # the end of a terminal
        while part := os.read(ours, 65536):
            said += part
    os.close(ours)
    assert process.wait(60) == 0
    return [line.rstrip() for line in STYLE.sub("", said.decode()).splitlines() if line.strip()]


def test_lists_of_three_syncs_are_three_lines_on_a_narrow_terminal(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.use(redis_server)
    rules = "{user_id: {type: integer}, email: {type: string}, spend: {type: float, le: 29}}"
    names = ["customer_cache", "customers", "orders"]
    for name in names:
        workshop.sync(name, contract=rules, tags="[crm, daily]", deletes="delete")
    workshop.json("sync")
    for words in (("list",), ("check",), ("runs",)):
        head, _, *lines = on_terminal(workshop, *words)
        assert (sorted(one for line in lines for one in line.split() if one in names), len(lines)) == (
            names,
            3,
        )
        assert max(map(len, (head, *lines))) <= 80
    assert "enabled" not in on_terminal(workshop, "list")[0]
    lines = on_terminal(workshop, "rejects")
    assert len([one for one in lines if one.startswith(tuple(names))]) == 6, "three reasons, three rejects"
    heads = [line.split() for line in on_terminal(workshop, "log", "orders")]
    assert {"run", "key", "status"} <= set(heads[0])
    assert len(heads) == 2 + 29 + 0
