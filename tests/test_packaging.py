"""What is shipped is pinned, unprivileged and without passwords: read from the files themselves."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
LOCKS = {
    "requirements.lock": [
        *PYPROJECT["project"]["dependencies"],
        *PYPROJECT["project"]["optional-dependencies"]["demo"],
    ],
    "requirements-dev.lock": [
        *PYPROJECT["project"]["dependencies"],
        *PYPROJECT["dependency-groups"]["dev"],
    ],
}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, rest), continuation lines joined."""
    text = re.sub(r"\\\n", " ", read("Dockerfile"))
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, rest in lines]


def package(requirement: str) -> str:
    """The name under which the index knows the package of a requirement."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def pins(lock: str) -> dict[str, list[str]]:
    """Package → its hashes."""
    parts = re.findall(r"^(\S+?)(?:\[.*\])?==\S+(.*(?:\n    --hash=.*)+)", read(lock), re.MULTILINE)
    return {name: re.findall(r"sha256:[0-9a-f]{64}", hashes) for name, hashes in parts}


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_pins_every_dependency_with_its_hashes(lock: str) -> None:
    pinned = pins(lock)
    assert {package(requirement) for requirement in LOCKS[lock]} <= pinned.keys()
    assert all(pinned.values())
    assert len(pinned) == len(re.findall(r"==", re.sub(r";.*", "", read(lock))))


def test_both_locks_agree() -> None:
    runtime, dev = pins("requirements.lock"), pins("requirements-dev.lock")
    assert runtime.items() <= dev.items()


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_names_no_index_and_no_path_of_anybody_s_machine(lock: str) -> None:
    assert not re.search(r"://|--index|--find-links|^\s*#.*\s/", read(lock), re.MULTILINE)


def test_the_image_is_built_in_stages_from_the_lock_and_runs_as_nobody_in_particular() -> None:
    lines = instructions()
    stages = [rest for word, rest in lines if word == "FROM"]
    assert len(stages) == 2
    assert all("slim" in stage for stage in stages)
    last = lines[max(i for i, (word, _) in enumerate(lines) if word == "FROM") :]
    users = [rest for word, rest in last if word == "USER"]
    assert users
    assert users[-1].split(":")[0] not in ("root", "0")
    assert ("ENTRYPOINT", '["retl"]') in last
    installs = [rest for word, rest in lines if word == "RUN" and "pip install" in rest]
    assert all("--require-hashes -r requirements" in rest or "--no-deps" in rest for rest in installs)


def test_the_image_holds_no_secret() -> None:
    for word, rest in instructions():
        if word in ("ENV", "ARG"):
            assert not re.search(r"PASSWORD|TOKEN|SECRET|KEY", rest)
    allowed = read(".dockerignore").split()
    assert "*" in allowed
    assert not {f"!{name}" for name in (".env", "config.env", ".retl", "data", ".git")} & set(allowed)


def test_what_the_image_is_built_from_may_enter_the_build() -> None:
    allowed = {line.removeprefix("!") for line in read(".dockerignore").splitlines() if line.startswith("!")}
    copied = [rest.split()[:-1] for word, rest in instructions() if word == "COPY" and "--from" not in rest]
    assert {name for names in copied for name in names} == allowed


@pytest.mark.parametrize("service", ["postgres", "redis"])
def test_a_server_has_a_health_check_and_is_seen_from_this_machine_only(service: str) -> None:
    assert SERVICES[service]["healthcheck"]["test"]
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[service]["ports"])


def test_reverse_etl_waits_for_healthy_servers_and_has_few_rights() -> None:
    service = SERVICES["reverse-etl"]
    assert service["depends_on"] == {
        "postgres": {"condition": "service_healthy"},
        "redis": {"condition": "service_healthy"},
    }
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]


def test_no_password_has_a_default() -> None:
    for name, service in SERVICES.items():
        for variable, value in service["environment"].items():
            if "PASSWORD" in variable:
                assert re.fullmatch(rf"\$\{{{variable}:\?[^}}]+\}}", value), (name, variable)
            if "TOKEN" in variable:
                assert value == f"${{{variable}:-}}"


def test_a_module_stands_in_one_import_layer() -> None:
    (contract,) = PYPROJECT["tool"]["importlinter"]["contracts"]
    names = re.findall(r"\w+", " ".join(contract["layers"]))
    assert len(names) == len(set(names))


@pytest.mark.parametrize("target", ["sync", "dry-run"])
def test_make_asks_for_the_sync(target: str) -> None:
    recipe = subprocess.run(
        ["make", "--dry-run", target, "SYNC=user_segments"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert '/retl sync --sync "user_segments"' in recipe
    assert ("--dry-run" in recipe) == (target == "dry-run")


def test_the_sample_project_is_in_the_wheel() -> None:
    included = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    project = {inside: ROOT / outside for outside, inside in included.items() if "/demo/project/" in inside}
    assert {inside.rpartition("/")[2] for inside in project} == {"retl.yml", "marts", "syncs"}
    assert all(path.exists() for path in project.values())


def test_the_wheel_holds_every_preset_and_every_module(tmp_path: Path) -> None:
    make = "from hatchling.builders.wheel import WheelBuilder as B; import sys; print(*B('.').build(directory=sys.argv[1]))"
    subprocess.run([sys.executable, "-c", make, str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.startswith("retl/")}
        preset = "retl/destinations/presets/hubspot.yml"
        assert archive.read(preset) == (ROOT / "src" / preset).read_bytes()
    kept = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.[py][ym]*")}
    assert {name for name in kept if name.endswith((".py", ".yml", ".yaml"))} <= inside
    assert (
        len(
            [
                name
                for name in inside
                if name.startswith("retl/destinations/presets/") and name.endswith(".yml")
            ]
        )
        > 12
    )
