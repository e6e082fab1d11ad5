"""A data frame of Spark as the mart of a sync: for a notebook, or a job of spark-submit.

    import retl.spark

    summary = retl.spark.sync(df, "user_segments", project="/mnt/shared/shop")

Spark writes the frame once, as Parquet files, into the folder that `engine` names; from then on the run is
like any other. With `engine: {type: spark}` the shards read these files where they run.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retl.app import engines
from retl.app.session import Session, open_session
from retl.engine.scratch import private_directory
from retl.run import spark

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from retl.observe.summary import Summary

_MARTS = "retl-marts"
_VOLUMES = "/Volumes"  # of Databricks, which Spark does not know as files of a machine
_OLD = 7 * 86400.0  # seconds after which no run reads a frame any more
_TIMES = "spark.sql.parquet.outputTimestampType"


def sync(
    df: DataFrame, name: str, project: Path | str | None = None, env: str | None = None, **asked: Any
) -> Summary:
    """Run one sync with the rows of a frame in place of its source; returns its summary, also if it failed.

    `project` and `env` are those of `retl.open`, `asked` the options of `Session.sync`. The frame is
    evaluated once. DefinitionError for all that is wrong in files, SPARK_FOLDER without a shared folder.
    """
    with open_session(project, env) as session, _written(df, session) as folder:
        session.marts[session.definition(name).name] = folder
        return session.sync(name, **asked)


@contextmanager
def _written(df: DataFrame, session: Session) -> Iterator[Path]:
    """The frame as Parquet files in a folder, until the body ends."""
    shared = engines.shared_folder(session.project)
    spark.require_shared(df.sparkSession, shared)
    if shared is None:
        with private_directory() as root:
            yield _write(df, root / _MARTS)
        return
    _remove_old(shared / _MARTS)
    folder = shared / _MARTS / uuid.uuid4().hex
    try:
        yield _write(df, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(df: DataFrame, folder: Path) -> Path:
    """Times as Parquet has them: the old form of Spark's has no zone."""
    conf = df.sparkSession.conf
    former = conf.get(_TIMES)
    conf.set(_TIMES, "TIMESTAMP_MICROS")
    try:
        df.write.parquet(str(folder) if folder.is_relative_to(_VOLUMES) else folder.as_uri())
    finally:
        conf.set(_TIMES, str(former))
    return folder


def _remove_old(folder: Path) -> None:
    """What killed processes left."""
    for path in folder.glob("*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _OLD:
                shutil.rmtree(path, ignore_errors=True)
