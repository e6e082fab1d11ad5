"""One Airflow task per sync of a retl project. Put it into the dags folder.

retl has a virtual environment of its own, so its dependencies cannot conflict with Airflow's. A task that
ends with 75 (nothing is wrong, run again later) is skipped, and the tasks `after` it are skipped too.
"""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

RETL = os.environ.get("RETL_COMMAND", "/opt/retl/bin/retl")
PROJECT = Path(os.environ.get("RETL_PROJECT", "/srv/shop"))
VARIABLES = ""  # such as "--var run_date={{ ds }}", if the project has a variable run_date
SYNCS = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted([*PROJECT.glob("syncs/**/*.yml"), *PROJECT.glob("syncs/**/*.yaml")])
}


def retl(task_id: str, words: str) -> BashOperator:
    return BashOperator(
        task_id=task_id,
        bash_command=f"exec {RETL} {words}",
        cwd=str(PROJECT),
        env={"RETL_CORRELATION_ID": "{{ run_id }}", "RETL_LOG_FORMAT": "json"},
        append_env=True,
        skip_on_exit_code=75,
    )


settings = {
    "start_date": datetime(2026, 1, 1, tzinfo=UTC),
    "catchup": False,
    "max_active_runs": 1,
    "default_args": {"retries": 2, "retry_delay": timedelta(minutes=5)},
    "tags": ["retl"],
}

with DAG("retl", schedule="15 * * * *", **settings):
    tasks = {name: retl(name, f"sync --sync {name} {VARIABLES}") for name in SYNCS}
    for name, sync in SYNCS.items():
        for former in sync.get("after") or []:
            tasks[former] >> tasks[name]

# Plan and apply as two tasks, started by hand, for a review in between. `apply` delivers exactly the plan.
# It refuses (exit 3) if mart, ledger or definition changed since.
with DAG("retl_reviewed", schedule=None, **settings):
    for name in SYNCS:
        file = f"/srv/shop-plans/{name}-{{{{ run_id | replace(':', '') }}}}.plan"
        planned = retl(f"plan_{name}", f"plan --sync {name} --out '{file}' {VARIABLES}")
        planned >> retl(f"apply_{name}", f"apply '{file}'")
