"""Several runs in one process, as from Python: none of them meets what another left behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from retl.app.observers import listening
from retl.cli.invocation import Invocation
from retl.contract.model import _imported
from retl.errors import DefinitionError
from retl.observe import log
from retl.observe.signals import Stop
from tests import inprocess
from tests.commands import Workshop
from tests.servers import RedisServer

MODEL = "from pydantic import BaseModel\n\nclass Users(BaseModel):\n    {field}: int\n"


def package(folder: Path, field: str, *, init: bool) -> Path:
    (folder / "marts_of_the_tests").mkdir(parents=True)
    if init:
        (folder / "marts_of_the_tests" / "__init__.py").touch()
    (folder / "marts_of_the_tests" / "contracts.py").write_text(MODEL.format(field=field))
    return folder


@pytest.mark.parametrize("init", [True, False], ids=["package", "namespace"])
def test_each_project_imports_its_own_models(tmp_path: Path, init: bool) -> None:
    first, second = (package(tmp_path / name, name, init=init) for name in ("first", "second"))
    for folder in (first, second, first):
        model = _imported("marts_of_the_tests.contracts:Users", folder)
        assert list(model.model_fields) == [folder.name]
    with pytest.raises(DefinitionError):
        _imported("marts_of_the_tests.contracts:Users", tmp_path / "third")


def test_a_stop_is_asked_for_by_its_own_signals_only() -> None:
    former = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with Stop().listening() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.event.wait(10)
            assert stop.signum == signal.SIGTERM
    finally:
        signal.signal(signal.SIGUSR1, former)


def test_a_run_in_a_thread_leaves_signals_to_the_process() -> None:
    before, heard = signal.getsignal(signal.SIGTERM), []

    def listen() -> None:
        with Stop().listening() as stop:
            heard.append((stop.event.is_set(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert heard == [(False, before)]


def test_nobody_listens_after_the_command_that_asked_for_it(tmp_path: Path) -> None:
    (tmp_path / "syncs").mkdir()
    (tmp_path / "config.env").write_text("OTEL_TRACES_EXPORTER=console\nOPENLINEAGE_DISABLED=true\n")
    environ = dict(os.environ)
    with inprocess.own_state():
        invocation = Invocation(folder=tmp_path)
        assert invocation.project
        with listening(invocation.project):
            assert len(log._listeners) == 1
            assert os.environ["OTEL_TRACES_EXPORTER"] == "console"
        assert log._listeners == []
        assert dict(os.environ) == environ


def test_a_run_takes_no_longer_than_the_command_that_called_it(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.use(redis_server)
    workshop.sync("users")
    begun = time.monotonic()
    summary = workshop.json("sync")["syncs"][0]
    assert sum(summary["phases"].values()) <= time.monotonic() - begun
