"""Events on stderr: two faces, no secrets, no forged lines, and the tests' crash point."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from retl.observe import log, redact


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    redact.forget()
    yield
    redact.forget()
    log.configure()


def test_an_event_is_one_json_line_when_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    with log.bound(run_id="r1", sync="users"):
        log.event("batch_committed", rows=5, seconds=float("nan"), places=("a", "b"))
    log.event("after")
    out, err = capsys.readouterr()
    first, second = [json.loads(line) for line in err.splitlines()]
    assert out == ""
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "event": "batch_committed",
        "level": "info",
        "run_id": "r1",
        "sync": "users",
        "rows": 5,
        "seconds": "nan",
        "places": ["a", "b"],
    }
    assert "run_id" not in second


@pytest.mark.parametrize("face", ["json", "console"])
def test_no_secret_reaches_the_log(face: log.Format, capsys: pytest.CaptureFixture[str]) -> None:
    redact.register('pa"ss\\word')
    log.configure(face)
    try:
        raise OSError('refused pa"ss\\word')
    except OSError:
        log.get().error('x pa"ss\\word', why={"dsn": ['pa"ss\\word']}, exc_info=True)
    err = capsys.readouterr().err
    assert "ss\\" not in err
    assert err.count("***") >= 3


def test_no_value_forges_a_line_or_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("console")
    log.event("done\nfake line", name="a\r\n\x1b[31mred\u202e\x9b", inner=["\x1b[2J"])
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert not set("\r\x1b\u202e\x9b") & set(err)
    assert "\\x1b[31mred" in err


def test_the_level_hides_a_line_but_not_the_event(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("json", "warning")
    heard: list[tuple[str, dict[str, object]]] = []
    log.listen(lambda name, fields: heard.append((name, dict(fields))))
    log.event("quiet", rows=1)
    log.event("loud", level="warning")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["loud"]
    assert heard == [("quiet", {"rows": 1}), ("loud", {})]


def run(script: str, **options: object) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [sys.executable, "-c", f"from retl.observe import log\n{script}"],
        text=True,
        check=False,
        **{"capture_output": True, **options},  # type: ignore[call-overload]
    )
    return done


def test_a_crash_point_kills_at_the_nth_event_right_after_it_was_said() -> None:
    done = run("log.configure(crash_at='b:2')\nfor _ in range(5):\n log.event('a')\n log.event('b')")
    assert done.returncode == -signal.SIGKILL
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["a", "b", "a", "b"]


def test_a_closed_stderr_neither_stops_the_run_nor_sends_the_log_to_stdout() -> None:
    done = run("import os\nos.close(2)\nlog.configure()\nlog.event('a')\nprint('fine')")
    assert (done.returncode, done.stdout) == (0, "fine\n")
    script = "import sys\nsys.stderr = None\nlog.configure()\nlog.event('a')\nprint('fine')"
    done = run(script)
    assert (done.returncode, done.stdout) == (0, "fine\n")


def test_a_terminal_gets_the_face_for_reading() -> None:
    master, slave = pty.openpty()
    try:
        done = run(
            "log.configure(color=False)\nlog.event('hello', rows=1)", capture_output=False, stderr=slave
        )
        text = os.read(master, 4096).decode()
    finally:
        os.close(master)
        os.close(slave)
    assert done.returncode == 0
    assert "hello" in text
    assert "rows=1" in text
    assert not text.startswith("{")
