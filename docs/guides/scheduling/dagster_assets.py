"""One Dagster asset per sync of a retl project: `dagster dev -f dagster_assets.py`.

retl has a virtual environment of its own. A run that ends with 75 (nothing is wrong, run again later)
materializes nothing and does not fail. A run that a guard refused (3) is not retried automatically.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import yaml
from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    Definitions,
    Failure,
    Output,
    RetryPolicy,
    ScheduleDefinition,
    asset,
    define_asset_job,
)

RETL = os.environ.get("RETL_COMMAND", "/opt/retl/bin/retl")
PROJECT = Path(os.environ.get("RETL_PROJECT", "/srv/shop"))
COUNTS = ("read", "unchanged", "inserted", "updated", "deleted", "rejected", "in_doubt")


def delivered(name: str, after: list[str]) -> AssetsDefinition:
    """The target of one sync, as an asset."""

    @asset(
        name=name,
        deps=after,
        group_name="retl",
        output_required=False,
        retry_policy=RetryPolicy(max_retries=2, delay=300),
    )
    def target(context: AssetExecutionContext) -> Iterator[Output[None]]:
        done = subprocess.run(
            [RETL, "sync", "--sync", name, "--output", "json"],
            cwd=PROJECT,
            env={**os.environ, "RETL_CORRELATION_ID": context.run_id},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode == 75:
            context.log.info(f"{name}: run again later")
            return
        answer = json.loads(done.stdout) if done.stdout else {}
        if done.returncode != 0:
            raise Failure(
                f"{name}: exit code {done.returncode}",
                metadata={"answer": json.dumps(answer, indent=2)},
                allow_retries=done.returncode == 1,
            )
        yield Output(None, metadata={count: answer["syncs"][0][count] for count in COUNTS})

    return target


SYNCS = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted([*PROJECT.glob("syncs/**/*.yml"), *PROJECT.glob("syncs/**/*.yaml")])
}
assets = [delivered(name, sync.get("after") or []) for name, sync in SYNCS.items()]
everything = define_asset_job("retl", selection="*")

defs = Definitions(
    assets=assets,
    jobs=[everything],
    schedules=[ScheduleDefinition(job=everything, cron_schedule="15 * * * *")],
)
