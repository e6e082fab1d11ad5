"""A Spark application whose tasks are the shards of runs: `engine: {type: spark}`.

The driver is the run. Each step of a shard (plan it, place its rows, send a phase of them) is a Spark job of
one task, so that a cluster may have fewer slots than a run has shards. A task reaches the driver over a line
of its own, and starts the process that serves at its end. What becomes of a lost task is up to the run: a
ticket is good once, so a task that Spark tries again, or runs twice at the same time, does nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retl.errors import DefinitionError, Failure
from retl.observe import log
from retl.run.depot import Depot
from retl.run.lines import Exchange, Line, Ticket, attend

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

_QUIET = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "ERROR",
}
_ERROR = re.compile(r"[A-Za-z_.]*(Error|Exception)\b")
_SAID = 300  # characters of what Spark says about a failed task


class Task:
    """A Spark job of one task, as `subprocess.Popen` shows a process."""

    def __init__(self, context: SparkContext, line: Line, exchange: Exchange, name: str) -> None:
        from pyspark import InheritableThread

        self.returncode: str | None = None
        self._context, self._line, self._exchange = context, line, exchange
        self._name, self._group = name, f"retl {uuid.uuid4()}"
        self._thread: Any = InheritableThread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._context.setJobGroup(self._group, self._name, interruptOnCancel=True)
            _do(self._context, self._line.ticket)
            self.returncode = "the task ended"
        except Exception as problem:  # noqa: BLE001 - py4j's are of many kinds; the run says what it means
            self.returncode = _said(problem)
        finally:
            self._exchange.forget(self._line)

    def wait(self, seconds: float | None = None) -> None:
        """subprocess.TimeoutExpired if it does not end in time."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            raise subprocess.TimeoutExpired(self._name, seconds or 0)

    def kill(self) -> None:
        with suppress(Exception):  # Spark is gone
            self._context.cancelJobGroup(self._group)
        self._exchange.forget(self._line)


class SparkCluster:
    """Where shards run. Spark is started, or the running session taken, when the first shard begins."""

    def __init__(self, master: str | None, folder: Path | None, port: int = 0) -> None:
        """`master`: as Spark writes it; None: as the session that runs, or spark-submit, says. `folder`: what
        all machines share; None if Spark runs on this machine. `port`: where shards connect; 0: any."""
        self.folder = folder
        self._master, self._port = master, port
        self._turn = threading.Lock()
        self._session: SparkSession | None = None
        self._exchange: Exchange | None = None
        self._is_own = False

    @contextmanager
    def open(self, _depot: Depot) -> Iterator[None]:
        """Start Spark, which stays for later runs. DefinitionError SPARK_MISSING, JAVA_MISSING, SPARK_FOLDER,
        SPARK_CONNECT, Failure SPARK_NOT_STARTED."""
        self._opened()
        yield

    def begin(self, name: str) -> tuple[Connection, Task]:
        """A process of a shard: the line to it, and the task that has it."""
        context, exchange = self._opened()
        line = exchange.line()
        return line.ours, Task(context, line, exchange, name)

    def _opened(self) -> tuple[SparkContext, Exchange]:
        with self._turn:
            if self._session is None or self._exchange is None:
                self._session = self._start()
                conf = self._session.sparkContext.getConf()
                host = conf.get("spark.driver.host") or "127.0.0.1"
                bind = conf.get("spark.driver.bindAddress") or host
                if str(conf.get("spark.master")).startswith("local"):
                    host = bind = "127.0.0.1"
                self._exchange = Exchange(host, bind, self._port)
            return self._session.sparkContext, self._exchange

    def _start(self) -> SparkSession:
        """The session that runs, or a new one, without Spark's answer to SIGINT: runs have their own."""
        _require_spark()
        from pyspark.sql import SparkSession

        session = _running()
        if session is None:
            _require_java()
            if (self._master or "").startswith("local"):
                os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
            builder: Any = SparkSession.builder
            for name, value in _QUIET.items():
                builder = builder.config(name, value)
            if self._master is not None:
                builder = builder.master(self._master)
            former = signal.getsignal(signal.SIGINT)
            try:
                session = builder.appName("retl").getOrCreate()
            except Exception as problem:  # py4j's and pyspark's are of many kinds
                raise Failure(
                    "SPARK_NOT_STARTED",
                    f"Spark did not start: {_said(problem)}",
                    hint="stderr has Spark's own words; check `master`, and that Java is 17 or newer",
                ) from problem
            self._is_own = True
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, former)
        require_shared(session, self.folder)
        log.event("spark_opened", application=session.sparkContext.applicationId)
        return session

    def close(self) -> None:
        """End what this object has started."""
        with self._turn:
            if self._exchange is not None:
                self._exchange.close()
            if self._session is not None and self._is_own:
                self._session.stop()
            self._session = self._exchange = None


def require_shared(session: SparkSession, folder: Path | None) -> None:
    """DefinitionError SPARK_CONNECT, or SPARK_FOLDER if its machines share no folder that we know."""
    try:
        master = str(session.sparkContext.master)
    except Exception as problem:  # its type depends on the version
        raise DefinitionError(
            "SPARK_CONNECT",
            "this session is a client of Spark Connect: it cannot run tasks of its own",
            hint="run retl in the driver of a cluster: as a job, or with dedicated access on Databricks",
        ) from problem
    if folder is None and not master.startswith("local"):
        raise DefinitionError(
            "SPARK_FOLDER",
            f"Spark at {master} has several machines, and `engine` names no folder that they share",
            hint="engine: {type: spark, folder: /mnt/shared/retl}",
        )


def _do(context: SparkContext, ticket: Ticket) -> None:
    """Run the task of a ticket, and wait for its end."""

    def serve(_rows: Iterable[int]) -> Iterator[bool]:
        yield attend(ticket)

    context.parallelize([0], 1).mapPartitions(serve).collect()


def _said(problem: Exception) -> str:
    """What a failed task said: the first line of Spark's error that names Python's."""
    lines = [line.strip() for line in str(problem).splitlines()]
    named = [line for line in lines if _ERROR.match(line)]
    return (named or lines or [type(problem).__name__])[0][:_SAID]


def _running() -> SparkSession | None:
    """The session of this process, whichever thread has made it."""
    from pyspark.errors import PySparkRuntimeError
    from pyspark.sql import SparkSession

    try:
        return SparkSession.active()
    except PySparkRuntimeError:
        return None


def _require_spark() -> None:
    try:
        import pyspark  # noqa: F401
    except ImportError as problem:
        raise DefinitionError(
            "SPARK_MISSING",
            "`engine: {type: spark}` needs pyspark, which is not installed",
            hint="pip install 'retl-cli[spark]'",
        ) from problem


def _require_java() -> None:
    home = os.environ.get("JAVA_HOME")
    if not (shutil.which(str(Path(home, "bin", "java"))) if home else shutil.which("java")):
        where = f"JAVA_HOME ({home})" if home else "PATH"
        raise DefinitionError(
            "JAVA_MISSING",
            f"Spark needs Java 17 or newer, and there is none in {where}",
            hint="install a JRE, such as openjdk-17-jre-headless, or set JAVA_HOME",
        )
