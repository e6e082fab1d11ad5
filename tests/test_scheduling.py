"""The files of docs/guides/scheduling do what their pages say: read, parsed, and where it can be had, run."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml
from pages.shown import filled

from retl.app.engines import part
from tests.cli_words import assert_known, in_shell
from tests.commands import Workshop
from tests.servers import Database, RedisServer

FOLDER = Path(__file__).parents[1] / "docs" / "guides" / "scheduling"
PAGES = sorted(FOLDER.glob("*.md"))
OURS = {"SUCCESS": 0, "FAILED": 1, "DEFINITION": 2, "REFUSED": 3, "LATER": 75, "TERMINATED": 143}


def read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def python_with(module: str) -> str | None:
    """A Python that has the scheduler: RETL_TEST_AIRFLOW or RETL_TEST_DAGSTER, else this one if it does."""
    given = os.environ.get(f"RETL_TEST_{module.upper()}")
    if given:
        return given
    probe = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True)
    return sys.executable if probe.returncode == 0 else None


@pytest.fixture
def workshop(tmp_path: Path, redis_server: RedisServer) -> Workshop:
    """Two syncs, the second `after` the first, and a command `retl` that is ours."""
    made = Workshop(tmp_path / "project")
    made.use(redis_server)
    made.write("retl.yml", "warehouse: {lock_wait: 0s}\n")
    made.sync("first")
    made.sync("second", after="[first]")
    command = tmp_path / "bin" / "retl"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m retl "$@"\n')
    command.chmod(0o755)
    made.environment |= {"RETL_COMMAND": str(command), "RETL_PROJECT": str(made.folder)}
    made.environment["PATH"] = f"{command.parent}:{os.environ['PATH']}"
    return made


def run(workshop: Workshop, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        cwd=workshop.folder,
        env=workshop.environ(**more),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=400,
    )


def delivered(redis_server: RedisServer, name: str) -> int:
    with redis_server.client() as client:
        return len(client.keys(f"{name}:*"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_its_files_as_they_are(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == filled(text, FOLDER), "run `make docs`"


def test_every_file_is_shown_in_some_page() -> None:
    shown = re.findall(r'^```\w+ title="(.+)"$', "".join(map(Path.read_text, PAGES)), re.MULTILINE)
    assert sorted(shown) == sorted(one.name for one in FOLDER.iterdir() if one.suffix != ".md")


def test_the_crontab_has_times_and_commands_that_exist() -> None:
    lines = [line for line in read("crontab").splitlines() if line and not line.startswith("#")]
    jobs = [line for line in lines if not re.match(r"[A-Z_]+=", line)]
    assert len(jobs) == 2
    for job in jobs:
        *times, command = job.split(maxsplit=5)
        assert all(re.fullmatch(r"\*|\d+", time) for time in times), times
        assert command.startswith("/srv/shop/retl-cron ")
        (words,) = in_shell(job)
        assert_known(words)


def test_cron_is_silent_unless_somebody_has_to_look(workshop: Workshop, redis_server: RedisServer) -> None:
    wrapper = str(FOLDER / "retl-cron")
    good = run(workshop, wrapper, "sync", "--all")
    assert good.returncode == 0, good.stdout
    assert good.stdout + good.stderr == ""
    assert delivered(redis_server, "second") == 30
    with duckdb.connect(str(workshop.folder / "data" / "warehouse.duckdb")):
        later = run(workshop, wrapper, "sync", "--sync", "first")
    assert (later.returncode, later.stdout, later.stderr) == (75, "", "")
    wrong = run(workshop, wrapper, "sync", "--sync", "third")
    assert wrong.returncode == 2
    assert "[SYNC_UNKNOWN]" in wrong.stdout
    assert "retl sync --sync third ended with exit code 2" in wrong.stdout
    failed = run(workshop, wrapper, "sync", "--all", REDIS_PORT="1")
    assert (failed.returncode, "run_started" in failed.stdout) == (1, False)
    assert len(failed.stdout.splitlines()) < 20
    assert workshop.retl("state", "unblock", "redis", "--yes").code == 0
    told = run(workshop, wrapper, "sync", "--all", REDIS_PORT="1", RETL_LOG_LEVEL="info")
    assert "run_started" in told.stdout


def unit(name: str) -> configparser.ConfigParser:
    made = configparser.ConfigParser(strict=False, interpolation=None)
    made.optionxform = str  # type: ignore[assignment,method-assign]
    made.read_string(read(name))
    return made


def test_the_service_takes_coming_again_later_for_no_failure() -> None:
    service = unit("retl.service")["Service"]
    assert service["Type"] == "oneshot"
    successes = [int(code) for code in service["SuccessExitStatus"].split()]
    assert successes == [OURS["LATER"], OURS["TERMINATED"]]
    (words,) = in_shell(service["ExecStart"])
    assert_known(words)
    assert service["ReadWritePaths"] == f"{service['WorkingDirectory']}/.retl"
    assert "Environment=POSTGRES_PASSWORD_FILE=%d/postgres" in read("retl.service")
    assert unit("retl.timer")["Timer"]["Persistent"] == "true"


if verifier := shutil.which("systemd-analyze"):

    def test_systemd_itself_finds_no_fault(tmp_path: Path) -> None:
        installed = read("retl.service").replace("/opt/retl/bin/retl", "/bin/true")
        (tmp_path / "retl.service").write_text(installed)
        (tmp_path / "retl.timer").write_text(read("retl.timer"))
        units = [str(tmp_path / "retl.service"), str(tmp_path / "retl.timer")]
        done = subprocess.run([str(verifier), "verify", *units], capture_output=True, text=True)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_cronjob_relies_on_fields_that_say_what_the_page_says() -> None:
    job: dict[str, Any] = yaml.safe_load(read("cronjob.yml"))
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    inner = job["spec"]["jobTemplate"]["spec"]
    pod = inner["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # without it there is no podFailurePolicy
    (container,) = pod["containers"]
    policy: dict[int, str] = {}
    for rule in inner["podFailurePolicy"]["rules"]:
        assert ("onExitCodes" in rule) != ("onPodConditions" in rule)
        if codes := rule.get("onExitCodes"):
            assert (codes["containerName"], codes["operator"]) == (container["name"], "In")
            policy |= dict.fromkeys(codes["values"], rule["action"])
    assert policy == {
        OURS["DEFINITION"]: "FailJob",
        OURS["REFUSED"]: "FailJob",
        OURS["LATER"]: "Ignore",
        OURS["TERMINATED"]: "Ignore",
    }
    assert_known(container["args"])
    environment = {one["name"]: one.get("value") for one in container["env"]}
    assert not {"POSTGRES_PASSWORD", "RETL_STATE_URL"} & environment.keys()
    mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    for name in ("RETL_STATE_URL_FILE", "POSTGRES_PASSWORD_FILE", "POSTGRES_SSLROOTCERT"):
        assert str(environment[name]).startswith(mounts["secrets"])
    assert mounts.keys() == {one["name"] for one in pod["volumes"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_indexed_job_is_one_run_of_its_pods() -> None:
    job: dict[str, Any] = yaml.safe_load(read("indexed-job.yml"))
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    pod = spec["template"]["spec"]
    assert (spec["completionMode"], pod["restartPolicy"]) == ("Indexed", "Never")
    cron = yaml.safe_load(read("cronjob.yml"))["spec"]["jobTemplate"]["spec"]
    assert spec["podFailurePolicy"] == cron["podFailurePolicy"]
    (container,) = pod["containers"]
    assert container["name"] == "retl"
    (line,) = container["args"]
    assert container["command"] == ["/bin/sh", "-c"]
    for index in (0, spec["completions"] - 1):
        shown = line.replace("exec retl", "printf '%s '")
        shell = {"JOB_COMPLETION_INDEX": str(index), "PATH": os.environ["PATH"]}
        words = subprocess.run(
            ["/bin/sh", "-c", shown], env=shell, capture_output=True, text=True
        ).stdout.split()
        assert_known(words)
        assert words[-1] == f"{index + 1}/{spec['completions']}"
        assert part(words[-1])
    environment = {one["name"]: one for one in container["env"]}
    named = environment["RETL_CORRELATION_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert named == "metadata.labels['batch.kubernetes.io/controller-uid']", "of this Job and its pods alone"
    assert not {"POSTGRES_PASSWORD", "RETL_STATE_URL"} & environment.keys()
    engine = yaml.safe_load(re.findall(r"^```yaml\n(.+?)^```", read("several-machines.md"), re.M | re.S)[0])[
        "engine"
    ]
    assert container["ports"] == [{"name": "run", "containerPort": engine["port"]}]
    mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    assert engine["folder"].startswith(mounts["shared"])
    assert mounts.keys() == {one["name"] for one in pod["volumes"]}


def test_the_watching_service_stays_reloads_and_leaves_a_wrong_definition_to_people() -> None:
    service = unit("retl-watch.service")["Service"]
    (words,) = in_shell(service["ExecStart"])
    assert_known(words)
    assert "Type" not in service  # it stays in the foreground
    assert (service["Restart"], service["ExecReload"]) == ("on-failure", "/bin/kill -HUP $MAINPID")
    assert int(service["SuccessExitStatus"]) == OURS["TERMINATED"]
    assert int(service["RestartPreventExitStatus"]) == OURS["DEFINITION"]
    for name in ("POSTGRES_PASSWORD", "RETL_WATCH_TOKEN"):
        assert f"Environment={name}_FILE=%d/" in read("retl-watch.service")


def test_the_deployment_runs_one_watch_and_asks_after_its_health() -> None:
    made: dict[str, Any] = yaml.safe_load(read("watch-deployment.yml"))
    assert (made["apiVersion"], made["kind"]) == ("apps/v1", "Deployment")
    assert (made["spec"]["replicas"], made["spec"]["strategy"]) == (1, {"type": "Recreate"})
    pod = made["spec"]["template"]["spec"]
    assert made["spec"]["template"]["metadata"]["labels"] == made["spec"]["selector"]["matchLabels"]
    (container,) = pod["containers"]
    assert_known(container["args"])
    (port,) = container["ports"]
    assert container["args"][-1].endswith(f":{port['containerPort']}")
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": port["name"]}
    environment = {one["name"]: one.get("value") for one in container["env"]}
    assert not {"POSTGRES_PASSWORD", "RETL_STATE_URL", "RETL_WATCH_TOKEN"} & environment.keys()
    mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    assert environment["RETL_WATCH_TOKEN_FILE"].startswith(mounts["secrets"])
    assert mounts.keys() == {one["name"] for one in pod["volumes"]}


def test_the_compose_service_is_the_other_one_that_stays() -> None:
    root = yaml.safe_load((FOLDER.parents[2] / "docker-compose.yml").read_text())
    service = yaml.safe_load(read("watch-compose.yml"))["services"]["watch"]
    assert service["extends"] == {"file": "docker-compose.yml", "service": "reverse-etl"}
    assert "reverse-etl" in root["services"]
    assert_known(service["command"])
    assert service["environment"]["RETL_WATCH_TOKEN"].startswith("${RETL_WATCH_TOKEN:?")
    assert service["ports"] == ["127.0.0.1:8080:8080"], "only this machine reaches it"
    compile(service["healthcheck"]["test"][-1], "healthcheck", "exec")


def test_the_workflow_keeps_its_state_outside_and_its_commands_exist() -> None:
    workflow: dict[Any, Any] = yaml.safe_load(read("github-actions.yml"))
    assert workflow[True].keys() == {"schedule", "workflow_dispatch", "pull_request"}  # YAML 1.1 reads `on`
    deliver, review = workflow["jobs"]["deliver"], workflow["jobs"]["review"]
    assert deliver["env"]["RETL_STATE_URL"] == "${{ secrets.RETL_STATE_URL }}"
    assert deliver["concurrency"]["cancel-in-progress"] is False
    assert "secrets." not in str(review)
    assert "actions/cache" not in str(workflow)
    lines = [step["run"] for job in (deliver, review) for step in job["steps"] if "run" in step]
    ours = [words for line in lines for words in in_shell(line)]
    assert [words[0] for words in ours] == ["check", "sync", "status", "validate"]
    for words in ours:
        assert_known(words)


def test_a_workflows_step_passes_where_it_is_to_come_again_later(workshop: Workshop) -> None:
    workflow = yaml.safe_load(read("github-actions.yml"))
    (step,) = [s["run"] for s in workflow["jobs"]["deliver"]["steps"] if "--all" in s.get("run", "")]
    with duckdb.connect(str(workshop.folder / "data" / "warehouse.duckdb")):
        assert run(workshop, "bash", "-e", "-c", step).returncode == 0
    workshop.sync("first", source="{table: nobody}")
    assert run(workshop, "bash", "-e", "-c", step).returncode == 1


def calls(name: str, function: str) -> list[dict[str, Any]]:
    """The keyword arguments of every call of a function in a Python file."""
    found = [node for node in ast.walk(ast.parse(read(name))) if isinstance(node, ast.Call)]
    return [
        {one.arg: one.value for one in node.keywords if one.arg}
        for node in found
        if isinstance(node.func, ast.Name) and node.func.id == function
    ]


def test_the_dag_skips_what_is_to_come_again_later_and_its_commands_exist() -> None:
    (operator,) = calls("airflow_dag.py", "BashOperator")
    assert ast.literal_eval(operator["skip_on_exit_code"]) == OURS["LATER"]
    commands = re.findall(r'retl\([^,]+, f"(.+)"\)', read("airflow_dag.py"))
    assert len(commands) == 3
    for command in commands:
        plain = re.sub(r"\{\{\{\{.*?\}\}\}\}|\{\w+\}", "X", command.replace("{VARIABLES}", ""))
        (words,) = in_shell("retl " + plain)
        assert_known(words)


OPERATORS = """
class BashOperator:
    def __init__(self, *, bash_command, **settings):
        print(bash_command)
    def __rshift__(self, other):
        return other
class DAG:
    def __init__(self, *words, **settings): ...
    def __enter__(self): ...
    def __exit__(self, *error): ...
"""


@pytest.mark.parametrize("variables", ["", "--var run_date={{ ds }}"])
def test_the_commands_of_the_copied_dag_work_in_a_project_with_and_without_a_variable(
    workshop: Workshop, tmp_path: Path, variables: str
) -> None:
    for module in ("airflow/providers/standard/operators/bash.py", "airflow/sdk.py"):
        (tmp_path / "operators" / module).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "operators" / module).write_text(OPERATORS)
    if variables:
        given = "vars: {run_date: today}"
        assert given in read("airflow.md")
        workshop.write("retl.yml", f"warehouse: {{lock_wait: 0s}}\n{given}\n")
    dag, plans = read("airflow_dag.py"), tmp_path / "plans"
    dag = dag.replace('VARIABLES = ""', f'VARIABLES = "{variables}"').replace("/srv/shop-plans", str(plans))
    assert str(plans) in dag
    plans.mkdir()
    more = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "operators"), os.environ.get("PYTHONPATH", "")])}
    made = run(workshop, sys.executable, "-c", dag, **more)
    assert made.returncode == 0, made.stderr
    commands = [
        re.sub(r"\{\{ run_id.*?\}\}", "1", one).replace("{{ ds }}", "2026-11-21")
        for one in made.stdout.splitlines()
    ]
    assert len(commands) == 6
    for command in commands:
        done = run(workshop, "bash", "-c", command)
        assert done.returncode == 0, f"{command}: {done.stderr}"


def test_the_mapped_tasks_differ_only_in_their_number() -> None:
    source = read("airflow_mapped.py")
    (tasks,) = re.findall(r"^TASKS = (\d+)$", source, re.M)
    (command,) = re.findall(r'f"(exec .+?)" for number in range\(1, TASKS \+ 1\)', source)
    for number in ("1", tasks):
        filled = command.format(RETL="retl", SYNC="people", number=number, TASKS=tasks)
        (words,) = in_shell(filled.removeprefix("exec "))
        assert_known(words)
        assert part(words[-1]) == (int(number), int(tasks))
    assert f"skip_on_exit_code={OURS['LATER']}" in source
    assert '"RETL_CORRELATION_ID": "{{ dag.dag_id }}/{{ run_id }}"' in source


def test_the_asset_runs_a_command_that_exists() -> None:
    (words,) = re.findall(r'\[RETL, ("sync".*?)\]', read("dagster_assets.py"))
    assert_known([word.strip('" ') or "X" for word in words.replace("name", '"X"').split(",")])
    compile(read("dagster_assets.py"), "dagster_assets.py", "exec")


AIRFLOW = r"""
import sys, warnings
warnings.simplefilter("ignore")
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
assert not bag.import_errors, bag.import_errors
dag, reviewed = bag.dags["retl"], bag.dags["retl_reviewed"]
assert {name: sorted(task.upstream_task_ids) for name, task in dag.task_dict.items()} == {"first": [], "second": ["first"]}
assert reviewed.task_dict["apply_first"].upstream_task_ids == {"plan_first"}
from airflow.sdk.exceptions import AirflowSkipException
for name, task in dag.task_dict.items():
    task.render_template_fields({"ds": "2026-11-21", "run_id": "scheduled__1"})
    assert "{" not in task.bash_command, task.bash_command
    try:
        task.execute({})
    except AirflowSkipException:
        print("skipped", name)
    else:
        print("done", name)
"""

MAPPED = r"""
import sys, threading, warnings
warnings.simplefilter("ignore")
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
assert not bag.import_errors, bag.import_errors
mapped = bag.dags["retl_mapped"].task_dict["shard"]
commands = mapped.expand_input.value["bash_command"]
assert len(commands) == 16
def execute(command):
    task = mapped.unmap({"bash_command": command})
    task.render_template_fields({"dag": mapped.dag, "run_id": "scheduled__1"})
    assert task.env["RETL_CORRELATION_ID"] == "retl_mapped/scheduled__1"
    task.execute({})
    print("done", command[-4:])
several = [threading.Thread(target=execute, args=(one,)) for one in commands[:3]]
[one.start() for one in several], [one.join() for one in several]
execute(commands[15])
"""

DAGSTER = r"""
import sys
from dagster import load_definitions_from_module, materialize
sys.path.insert(0, sys.argv[1])
import dagster_assets
dagster_assets.defs.resolve_job_def("retl")
done = materialize(dagster_assets.assets, raise_on_error=False)
for name in dagster_assets.SYNCS:
    made = done.asset_materializations_for_node(name)
    print("done" if made else "nothing", name, *(one.metadata["inserted"].value for one in made))
sys.exit(0 if done.success else 1)
"""

if airflow := python_with("airflow"):

    @pytest.mark.timeout(900)  # a scheduler takes its time to be imported
    def test_airflow_runs_the_dag_and_skips_what_is_to_come_again_later(
        workshop: Workshop, tmp_path: Path, redis_server: RedisServer
    ) -> None:
        (tmp_path / "dags").mkdir()
        shutil.copy(FOLDER / "airflow_dag.py", tmp_path / "dags")
        words = (str(airflow), "-c", AIRFLOW, str(tmp_path / "dags"))
        more = {"AIRFLOW_HOME": str(tmp_path / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
        done = run(workshop, *words, **more)
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.findall(r"^(?:done|skipped) \w+", done.stdout, re.MULTILINE) == [
            "done first",
            "done second",
        ]
        assert delivered(redis_server, "first") == delivered(redis_server, "second") == 30
        with duckdb.connect(str(workshop.folder / "data" / "warehouse.duckdb")):
            later = run(workshop, *words, **more)
        assert "skipped first" in later.stdout, later.stdout + later.stderr

    @pytest.mark.timeout(900)
    def test_airflow_runs_one_sync_as_mapped_tasks(
        workshop: Workshop, tmp_path: Path, postgres: Database, redis_server: RedisServer
    ) -> None:
        (tmp_path / "dags").mkdir()
        shutil.copy(FOLDER / "airflow_mapped.py", tmp_path / "dags")
        workshop.write("retl.yml", "engine: {folder: ../shared}\n")
        more = {"AIRFLOW_HOME": str(tmp_path / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
        more |= {"RETL_SYNC": "first", "RETL_STATE_URL": postgres.url}
        done = run(workshop, str(airflow), "-c", MAPPED, str(tmp_path / "dags"), **more)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(re.findall(r"^done", done.stdout, re.MULTILINE)) == 4, done.stdout + done.stderr
        assert delivered(redis_server, "first") == 30
        told = run(workshop, "retl", "runs", "--output", "json", RETL_STATE_URL=postgres.url)
        assert [one["status"] for one in json.loads(told.stdout)["runs"]] == ["SUCCESS"]


if dagster := python_with("dagster"):

    @pytest.mark.timeout(900)  # a scheduler takes its time to be imported
    def test_dagster_materializes_what_was_delivered_and_nothing_else(
        workshop: Workshop, tmp_path: Path, redis_server: RedisServer
    ) -> None:
        words = (str(dagster), "-c", DAGSTER, str(FOLDER))
        more = {"DAGSTER_HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        done = run(workshop, *words, **more)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.split("\n")[:2] == ["done first 30", "done second 30"]
        assert delivered(redis_server, "second") == 30
        with duckdb.connect(str(workshop.folder / "data" / "warehouse.duckdb")):
            later = run(workshop, *words, **more)
        assert (later.returncode, later.stdout.split("\n")[:2]) == (0, ["nothing first", "nothing second"])
        workshop.sync("first", source="{table: nobody}")
        assert run(workshop, *words, **more).returncode == 1
