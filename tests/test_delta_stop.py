"""A request to stop does not wait for a storage that is silent: when a run opens a Delta table, reads its rows, or looks
at the commits of its feed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from deltalake import DeltaTable, write_deltalake

from retl.engine.freeze import freeze
from retl.engine.workspace import Workspace
from retl.errors import Stopped
from retl.net.bucket import Storage
from retl.observe.signals import Stop
from retl.sources.api import Invocation
from retl.sources.delta import Delta, Lake, Table
from tests.proxy import Proxy
from tests.servers import ObjectStore

NAMES = ["id", "name"]


def people(first: int) -> object:
    return duckdb.sql(
        f"SELECT i AS id, 'n' || i AS name FROM range({first}, {first + 5}) AS t(i)"
    ).to_arrow_table()


def written(store: ObjectStore, name: str) -> dict[str, str]:
    """Write a table of two versions, with a feed; returns the keys of the source."""
    keys = {"access_key_id": store.user, "secret_access_key": store.password, "region": store.region}
    options = {"endpoint_url": store.url, "allow_http": "true", **keys}
    uri = f"s3://{store.bucket}/stop/{name}"
    feed = {"delta.enableChangeDataFeed": "true"}
    write_deltalake(uri, people(0), configuration=feed, storage_options=options)
    DeltaTable(uri, storage_options=options).update(updates={"name": "'other'"}, predicate="id = 1")
    return keys


def opening(source: Delta, workspace: Workspace, silent: Callable[[], None]) -> None:
    silent()
    source.open(workspace)


def reading(source: Delta, workspace: Workspace, silent: Callable[[], None]) -> None:
    with source.open(workspace) as snapshot:
        query, types = snapshot.rows(NAMES), snapshot.description.columns
        silent()
        freeze(workspace, query, {name: types[name] for name in NAMES})


def following(source: Delta, workspace: Workspace, silent: Callable[[], None]) -> None:
    with source.open(workspace) as snapshot:
        former = snapshot.description.version.replace("1 of", "0 of")
        silent()
        snapshot.feed(NAMES, ["id"], former)


@pytest.mark.parametrize("step", [opening, reading, following])
def test_a_request_to_stop_does_not_wait_for_a_silent_storage(
    objectstore: ObjectStore, tmp_path: Path, step: Callable[[Delta, Workspace, Callable[[], None]], None]
) -> None:
    name, stop = step.__name__, Stop()
    keys = written(objectstore, name)
    with Proxy(objectstore.host, objectstore.port) as line, Workspace(tmp_path, stop) as workspace:
        storage = Storage.model_validate({**keys, "endpoint": f"http://127.0.0.1:{line.port}"})
        lake = Lake(root=f"s3://{objectstore.bucket}/stop", storage=storage)

        def silent() -> None:
            line.blackhole()
            threading.Timer(0.3, stop.request, [15]).start()

        with pytest.raises(Stopped):
            step(Delta(lake, Table(table=name), Invocation(tmp_path, {})), workspace, silent)
