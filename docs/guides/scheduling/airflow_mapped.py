"""One sync as 16 mapped tasks of Airflow, which are one run together. Put it into the dags folder.

All tasks have the same command but for their number. Any number of them may run at the same time.
"""

import os
from datetime import UTC, datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

RETL = os.environ.get("RETL_COMMAND", "/opt/retl/bin/retl")
PROJECT = os.environ.get("RETL_PROJECT", "/mnt/shared/shop")
SYNC = os.environ.get("RETL_SYNC", "user_segments")
TASKS = 16

with DAG(
    "retl_mapped",
    schedule="15 3 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
    tags=["retl"],
):
    BashOperator.partial(
        task_id="shard",
        cwd=PROJECT,
        env={"RETL_CORRELATION_ID": "{{ dag.dag_id }}/{{ run_id }}", "RETL_LOG_FORMAT": "json"},
        append_env=True,
        skip_on_exit_code=75,
    ).expand(
        bash_command=[f"exec {RETL} sync {SYNC} --shard {number}/{TASKS}" for number in range(1, TASKS + 1)]
    )
