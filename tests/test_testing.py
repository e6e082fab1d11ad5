"""What users test their syncs with: the guide's own example, and that it costs nothing to have."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from retl import destinations, testing
from retl.testing import FakeWebhook, slow

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "testing-targets.md"


def test_the_guide_s_example_passes(tmp_path: Path) -> None:
    first, own = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "test_example.py").write_text(first)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:valkey", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    found: dict[str, type[testing.FakeApi]] = {}
    exec(own, found)
    with found["FakeShop"]() as shop, pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(shop.url)


def test_the_guide_names_everything_there_is() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    assert [name for name in testing.__all__ if name not in ("TOKEN", "Fault") and name not in text] == []
    rows = re.findall(r"^\| `Fake.*? \| ([a-z_, ]+) \|", text, re.MULTILINE)
    assert {name for row in rows for name in row.split(", ")} <= {*destinations.preset_names()}


def test_it_is_imported_when_it_is_asked_for_and_needs_no_other_package() -> None:
    code = (
        "import sys, retl.testing as t\n"
        "assert not [m for m in sys.modules if m.startswith('retl.testing.')]\n"
        "[getattr(t, name) for name in t.__all__]\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)))"
    )
    ours = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'retl'" in ours.stdout
    assert "pytest" not in ours.stdout
    assert "pydantic" not in ours.stdout
    with pytest.raises(AttributeError):
        testing.FakeNobody  # noqa: B018


def test_a_late_answer_is_an_answer() -> None:
    with FakeWebhook() as receiver:
        receiver.misbehave(slow(0.05))
        request = urllib.request.Request(receiver.webhook, b'{"id": "a", "n": 1}', method="POST")
        with urllib.request.urlopen(request) as reply:
            assert reply.status == 200
        assert receiver.objects == {"a": {"n": 1}}
