"""Files in a bucket: read from a real S3, each at the ETag that was listed, or not at all."""

from __future__ import annotations

import gzip
import os
import re
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import obstore
import pytest
from obstore.store import S3Store

from retl.engine.workspace import Workspace
from retl.errors import SourceError
from retl.observe.signals import Stop
from retl.sources.api import Invocation
from retl.sources.delta import Delta, Lake, Table
from retl.sources.files import Files, Folder, Pattern
from tests.commands import Workshop
from tests.servers import Database, ObjectStore, RedisServer

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "files.md"


class Bucket:
    """A folder of the bucket for one test."""

    def __init__(self, server: ObjectStore) -> None:
        self.server = server
        self.folder = f"drop-{secrets.token_hex(4)}"
        self.store: S3Store = server.store(self.folder)
        self.root = f"s3://{server.bucket}/{self.folder}"

    @property
    def storage(self) -> dict[str, Any]:
        server = self.server
        return {
            "endpoint": server.url,
            "region": server.region,
            "access_key_id": server.user,
            "secret_access_key": server.password,
        }

    def source(self, path: str, folder: Path, **storage: Any) -> Files:
        connection = Folder.model_validate({"root": self.root, "storage": self.storage | storage})
        return Files(connection, Pattern(path=path), Invocation(folder, {}))

    def parquet(self, key: str, sql: str) -> None:
        path = Path(os.environ.get("TMPDIR", "/tmp")) / f"retl-test-{secrets.token_hex(8)}.parquet"
        duckdb.execute(f"COPY ({sql}) TO '{path}' (FORMAT parquet, COMPRESSION uncompressed)")
        obstore.put(self.store, key, path.read_bytes())
        path.unlink()


class Meddling(Stop):
    """Somebody who acts before every request for a part of a file."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.act = act

    def check(self) -> None:
        self.act()


@pytest.fixture
def bucket(objectstore: ObjectStore) -> Bucket:
    return Bucket(objectstore)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with closing(Workspace(tmp_path, Stop())) as made:
        yield made


def rows(source: Files, workspace: Workspace) -> list[tuple[Any, ...]]:
    with source.open(workspace) as snapshot:
        workspace.harden(source.readable)
        return workspace.run(f"SELECT * FROM ({snapshot.rows([]).sql}) ORDER BY ALL")


def test_folders_and_patterns_are_those_of_a_disk(
    bucket: Bucket, workspace: Workspace, tmp_path: Path
) -> None:
    for day in (27, 28):
        bucket.parquet(f"seg/dt=2026-11-{day}/deep/a [1].parquet", f"SELECT {day} AS id")
    bucket.parquet("seg/dt=2026-11-28/_temporary/0/a.parquet", "SELECT 0 AS id")
    bucket.parquet("seg/dt=2026-11-28/a 1.parquet", "SELECT 1 AS id")
    bucket.parquet("segments/dt=2026-11-28/a.parquet", "SELECT -1 AS id")
    found = rows(bucket.source("seg/**/*.parquet", tmp_path), workspace)
    assert [(id, str(day)) for id, day in found] == [
        (1, "2026-11-28"),
        (27, "2026-11-27"),
        (28, "2026-11-28"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == []  # the copies are gone


def test_copies_are_private_and_the_version_is_that_of_the_list(
    bucket: Bucket, workspace: Workspace, tmp_path: Path
) -> None:
    bucket.parquet("a.parquet", "SELECT 1 AS id")
    source = bucket.source("*.parquet", tmp_path)
    with source.open(workspace) as snapshot:
        modes = {path.stat().st_mode & 0o077 for path in tmp_path.rglob("*.parquet")}
        first = snapshot.description.version
    assert modes == {0}
    with source.open(workspace) as snapshot:
        assert snapshot.description.version == first
    bucket.parquet("a.parquet", "SELECT 2 AS id")
    with source.open(workspace) as snapshot:
        assert snapshot.description.version != first


def test_a_file_of_many_parts_is_copied_whole(bucket: Bucket, workspace: Workspace, tmp_path: Path) -> None:
    bucket.parquet("a.parquet", "SELECT i AS id, sha256(i::VARCHAR) AS text FROM range(300000) t(i)")
    assert obstore.head(bucket.store, "a.parquet")["size"] > 2 * (8 << 20)
    with bucket.source("*.parquet", tmp_path).open(workspace) as snapshot:
        sql = f"SELECT count(*), count(DISTINCT text), sum(id) FROM ({snapshot.rows([]).sql})"
        assert workspace.one(sql) == (300000, 300000, 299999 * 150000)


@pytest.mark.parametrize("does", ["replaced", "removed"])
def test_a_file_that_moves_once_is_listed_again(bucket: Bucket, tmp_path: Path, does: str) -> None:
    bucket.parquet("a.parquet", "SELECT 1 AS id")
    bucket.parquet("b.parquet", "SELECT 2 AS id")
    once: list[str] = []

    def act() -> None:
        if not once:
            once.append(does)
            if does == "removed":
                obstore.delete(bucket.store, "a.parquet")
            else:
                bucket.parquet("a.parquet", "SELECT 3 AS id")

    with closing(Workspace(tmp_path, Meddling(act))) as workspace:
        found = rows(bucket.source("*.parquet", tmp_path), workspace)
    assert found == ([(2,)] if does == "removed" else [(2,), (3,)])


def test_files_that_never_rest_are_not_read(bucket: Bucket, tmp_path: Path) -> None:
    bucket.parquet("a.parquet", "SELECT 0 AS id")
    number = iter(range(1, 100))
    act = lambda: bucket.parquet("a.parquet", f"SELECT {next(number)} AS id")  # noqa: E731
    with closing(Workspace(tmp_path, Meddling(act))) as workspace, pytest.raises(SourceError) as caught:
        rows(bucket.source("*.parquet", tmp_path), workspace)
    assert caught.value.code == "SOURCE_MOVES"
    assert next(number) == 4
    assert list(tmp_path.iterdir()) == []


def test_what_comes_meanwhile_is_for_the_next_run(bucket: Bucket, tmp_path: Path) -> None:
    bucket.parquet("a.parquet", "SELECT 1 AS id")
    act = lambda: bucket.parquet("b.parquet", "SELECT 2 AS id")  # noqa: E731
    with closing(Workspace(tmp_path, Meddling(act))) as workspace:
        source = bucket.source("*.parquet", tmp_path)
        assert rows(source, workspace) == [(1,)]
    with closing(Workspace(tmp_path, Stop())) as workspace:
        assert rows(source, workspace) == [(1,), (2,)]


def test_a_bucket_that_cannot_be_read_is_said_without_its_keys(
    bucket: Bucket, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.parquet("a.parquet", "SELECT 1 AS id")
    wrong = "canary-" + secrets.token_hex(8)
    cases = {
        "answers 403 (SignatureDoesNotMatch)": bucket.source("*", tmp_path, secret_access_key=wrong),
        "cannot be reached": bucket.source("*", tmp_path, endpoint="http://127.0.0.1:9"),
    }
    lost = bucket.source("*", tmp_path)
    lost.connection = lost.connection.model_copy(update={"root": "s3://no-such-bucket"})
    for says, source in {**cases, "answers 404": lost}.items():
        with pytest.raises(SourceError) as caught:
            source.open(workspace)
        assert caught.value.code == "MART_UNREADABLE"
        assert says in caught.value.message
        assert wrong not in repr(caught.value) + str(caught.value.hint)
        assert bucket.server.password not in str(caught.value)


def test_keys_of_the_environment_are_used_where_none_are_given_and_never_mixed(
    bucket: Bucket, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.parquet("a.parquet", "SELECT 1 AS id")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of other keys")
    assert rows(bucket.source("*.parquet", tmp_path), workspace) == [(1,)]
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", bucket.server.user)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", bucket.server.password)
    named = {"endpoint": bucket.server.url, "region": bucket.server.region}
    connection = Folder.model_validate({"root": bucket.root, "storage": named})
    source = Files(connection, Pattern(path="*.parquet"), Invocation(tmp_path, {}))
    with source.open(workspace) as snapshot:
        assert list(snapshot.description.columns) == ["id"]


def test_the_environment_does_not_allow_plaintext(
    bucket: Bucket, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.server.url)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    keys = {name: value for name, value in bucket.storage.items() if name != "endpoint"}
    connection = Folder.model_validate({"root": bucket.root, "storage": keys})
    with pytest.raises(SourceError, match="cannot be reached"):
        Files(connection, Pattern(path="*"), Invocation(tmp_path, {})).open(workspace)


def test_a_machine_without_any_keys_is_told_so(
    bucket: Bucket, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")  # of no cloud
    connection = Folder.model_validate({"root": bucket.root, "storage": {"endpoint": bucket.server.url}})
    with pytest.raises(SourceError, match="there are no keys"):
        Files(connection, Pattern(path="*"), Invocation(tmp_path, {})).open(workspace)


def test_a_stop_ends_a_copy(bucket: Bucket, tmp_path: Path) -> None:
    bucket.parquet("a.parquet", "SELECT 1 AS id")
    stop = Stop()
    with closing(Workspace(tmp_path, stop)) as workspace:
        stop.event.set()
        with pytest.raises(Exception, match="stopped by SIGTERM"):
            bucket.source("*.parquet", tmp_path).open(workspace)
    assert list(tmp_path.iterdir()) == []


ONELAKE = "abfss://sales@onelake.dfs.fabric.microsoft.com"
ENTRA = {"tenant_id": "tenant", "client_id": "app", "client_secret": "secret-canary"}
WRONG = {
    "s3://key:secret@bucket/x": "keys belong under `storage`",
    "ftp://bucket/x": "an address begins with one of s3://",
    "s3://bucket/a/../b": "no `..`",
    "abfss://bucket/x": "abfss://CONTAINER@ACCOUNT",
    "abfss://ws@other.dfs.fabric.microsoft.com/x": "abfss://WORKSPACE@onelake",
    "abfss://ws@onelake.dfs.fabric.microsoft.com": "goes on with an item",
    "abfss://two words@onelake.dfs.fabric.microsoft.com/x": "abfss://WORKSPACE@onelake",
}


@pytest.mark.parametrize(("root", "says"), WRONG.items())
def test_a_wrong_address_is_a_wrong_definition(root: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Folder(root=root)


OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "is no option of gs://": ("gs://bucket", {"region": "eu-central-1"}),
    "`storage` is for a bucket": ("exports", {"region": "eu-central-1"}),
    "belong together": ("s3://bucket", {"access_key_id": "a"}),
    "must be https": ("s3://bucket", {"endpoint": "http://minio.internal:9000"}),
    "is for an `endpoint`": ("s3://bucket", {"allow_plaintext": True}),
    "OneLake has no account keys": (f"{ONELAKE}/x.Lakehouse/Files", {"account_key": "a2V5"}),
    "must look like": ("s3://bucket", {"endpoint": "https://key:secret@minio.internal"}),
}


@pytest.mark.parametrize(("says", "given"), OPTIONS.items())
def test_an_option_without_effect_is_a_wrong_definition(says: str, given: tuple[str, dict[str, Any]]) -> None:
    root, storage = given
    with pytest.raises(ValueError, match=says):
        Folder.model_validate({"root": root, "storage": storage})
    allowed = {"endpoint": "http://minio.internal:9000", "allow_plaintext": True}
    assert Folder.model_validate({"root": "s3://bucket", "storage": allowed})


@pytest.mark.parametrize(
    "root", ["gs://bucket/x", "az://container/x", "abfss://c@acc.dfs.core.windows.net/x"]
)
def test_the_other_clouds_open_with_their_own_options(root: str, tmp_path: Path) -> None:
    """Nothing is read: no such cloud is at hand."""
    storage = {} if root.startswith("gs") else {"account_key": "a2V5"}
    if root.startswith("az:"):
        storage["account_name"] = "acc"
    source = Files(
        Folder.model_validate({"root": root, "storage": storage}), Pattern(path="*"), Invocation(tmp_path, {})
    )
    source.place()


class Refusing:
    """A proxy of this machine that connects nobody; `asked`: the hosts that were asked for."""

    def __enter__(self) -> Refusing:
        self.asked, self._socket = set[str](), socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._refuse, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _refuse(self) -> None:
        with suppress(OSError):
            while True:
                asking, _ = self._socket.accept()
                with asking:
                    self.asked.add(asking.recv(4096).split(b"\r\n")[0].decode())
                    asking.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize(
    ("account", "keys", "host"),
    [
        ("onelake", {"sas_token": "sv=1&sig=x"}, "onelake.blob.fabric.microsoft.com"),
        ("westus-onelake", {"sas_token": "sv=1&sig=x"}, "westus-onelake.blob.fabric.microsoft.com"),
        ("onelake", ENTRA, "login.microsoftonline.com"),
    ],
)
def test_onelake_and_entra_are_asked_by_both_clients(
    account: str, keys: dict[str, str], host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No OneLake is at hand: a proxy tells whom the clients of files and of Delta tables want to reach."""
    root = f"{ONELAKE}/x.Lakehouse/Files".replace("onelake", account, 1)
    with Refusing() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        folder = Folder.model_validate({"root": root, "storage": keys})
        files = Files(folder, Pattern(path="*"), Invocation(tmp_path, {}))
        lake = Lake.model_validate({"root": root, "storage": keys})
        delta = Delta(lake, Table(path="t"), Invocation(tmp_path, {}))
        for source in (files, delta):
            with closing(Workspace(tmp_path, Stop())) as workspace, pytest.raises(SourceError) as caught:
                source.open(workspace)
            assert "canary" not in caught.value.message
            assert proxy.asked == {f"CONNECT {host}:443 HTTP/1.1"}
            proxy.asked.clear()


def test_the_guide_comes_true(bucket: Bucket, tmp_path: Path, postgres: Database) -> None:
    blocks = re.findall(r"```yaml\n# (\S+)\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    workshop = Workshop(tmp_path / "shop")
    workshop.use(postgres=postgres)
    workshop.environment |= {"LAKE_KEY": bucket.server.user, "LAKE_SECRET": bucket.server.password}
    for path, block in blocks:
        text = block.replace("s3://company-lake/exports", bucket.root)
        workshop.write(path, text.replace("region: eu-central-1", f"endpoint: {bucket.server.url}"))
    bucket.parquet("scores/day=2026-11-28/a.parquet", "SELECT 'u1' AS user_id, 0.5 AS score")
    line = b"order_no;amount;placed_at\n007;1,50;28.11.2026\n008;2.50;2026-11-28T10:00:00Z\n"
    obstore.put(bucket.store, "orders/a.csv.gz", gzip.compress(line))
    with postgres.connect() as connection:
        connection.execute("CREATE SCHEMA crm")
        runs = [workshop.retl("sync", "--sync", name, "--output", "json") for name in ("scores", "orders")]
        assert not [run.err for run in runs if not run.out]
        assert [run.document["syncs"][0]["status"] for run in runs] == ["SUCCESS", "REFUSED"]  # REJECT_RATE
        workshop.json("sync", "--sync", "orders", "--accept", "REJECT_RATE")
        rows = connection.execute("SELECT order_no, amount FROM crm.orders").fetchall()
        assert rows == [("008", Decimal("2.50"))]
        obstore.put(
            bucket.store,
            "orders/a.csv.gz",
            gzip.compress(line.splitlines(keepends=True)[0] + line.splitlines()[1]),
        )
        workshop.json("sync", "--sync", "orders_of_users")
        (row,) = connection.execute("SELECT * FROM crm.orders_of_users").fetchall()
        assert row == ("007", Decimal("1.50"), date(2026, 11, 28))


def test_a_project_reads_its_bucket_with_keys_from_variables(
    bucket: Bucket, tmp_path: Path, redis_server: RedisServer
) -> None:
    workshop = Workshop(tmp_path / "shop")
    workshop.use(redis=redis_server)
    workshop.environment |= {"LAKE_KEY": bucket.server.user, "LAKE_SECRET": bucket.server.password}
    workshop.write(
        "retl.yml",
        f'sources:\n  lake:\n    type: files\n    root: "{bucket.root}"\n    storage:\n'
        f'      endpoint: "{bucket.server.url}"\n      region: us-east-1\n      access_key_id: "${{LAKE_KEY}}"\n'
        '      secret_access_key: "${LAKE_SECRET}"\n',
    )
    obstore.put(bucket.store, "day=2026-11-28/a.csv", b"user_id,spend\n007,1.10\nx,1.005\n")
    workshop.sync(
        "s",
        source="{from: lake, path: 'day=*/*.csv', format: csv}",
        contract="{user_id: {type: string}, spend: {type: decimal, max_digits: 12, decimal_places: 2},"
        " day: {type: date}}",
        guards="{max_reject_rate: 1}",
    )
    (run,) = workshop.json("sync")["syncs"]
    assert (run["status"], run["inserted"], run["rejected"]) == ("SUCCESS_WITH_REJECTS", 1, 1)
    assert run["rejects"][0]["code"] == "UNREPRESENTABLE"
    assert redis_server.client().get("s:007") == b'{"spend":1.10,"day":"2026-11-28"}'
    (run,) = workshop.json("sync")["syncs"]
    assert run["unchanged"] == 1
    everything = "".join(workshop.retl(*words).out for words in (["show"], ["list"], ["sources", "files"]))
    assert bucket.server.password not in everything
