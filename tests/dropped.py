"""A project whose mart is in files: parts of it in a folder or a bucket, written anew for every state."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import obstore

from tests import duckdb_files
from tests.crashes import SYNC_YML, Project
from tests.servers import ObjectStore

KINDS = {"parquet": "parquet", "csv": "csv", "ndjson": "json"}  # a format → DuckDB's name of it
PARTS = 3


class Drop:
    """Where files are put: a folder, or a folder of a bucket."""

    def __init__(self, folder: Path, server: ObjectStore | None = None) -> None:
        self.folder, self.server = folder, server
        self.store = server.store(folder.as_posix().strip("/")) if server else None

    @property
    def definition(self) -> str:
        """The source `drop` as lines of retl.yml."""
        if self.server is None:
            source: dict[str, Any] = {"root": str(self.folder)}
        else:
            keys = {"access_key_id": self.server.user, "secret_access_key": self.server.password}
            prefix = self.folder.as_posix().strip("/")
            source = {"root": f"s3://{self.server.bucket}/{prefix}"}
            source["storage"] = {"endpoint": self.server.url, **keys}
        return "sources:\n  drop: " + json.dumps({"type": "files", **source}) + "\n"

    def clear(self) -> None:
        if self.store is not None:
            obstore.delete(self.store, [one["path"] for page in obstore.list(self.store) for one in page])
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def put(self, name: str, content: bytes) -> None:
        if self.store is not None:
            obstore.put(self.store, name, content)
            return
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = path.with_name(f"_{path.name}")
        hidden.write_bytes(content)
        hidden.rename(path)

    def remove(self, name: str) -> None:
        if self.store is not None:
            obstore.delete(self.store, name)
        else:
            (self.folder / name).unlink()


def written(connection: duckdb.DuckDBPyConnection, sql: str, format: str, scratch: Path) -> bytes:
    """The rows of a query as the bytes of a file."""
    path = scratch / "scratch.file"
    header = ", HEADER true" if format == "csv" else ""
    connection.execute(f"COPY ({sql}) TO '{path}' (FORMAT {KINDS[format]}{header})")
    content = path.read_bytes()
    path.unlink()
    return content


def from_files(format: str, server: ObjectStore | None = None) -> type[Project]:
    """The kind of a project whose source is files of this format."""

    class Dropped(Project):
        def __init__(self, folder: Path, sync: str, environ: Mapping[str, str], **more: Any) -> None:
            self.drop = Drop(folder / "drop", server)
            self.drop.clear()
            self._states = itertools.count()
            self._present: list[str] = []
            more["connections"] = more.get("connections", "") + self.drop.definition
            super().__init__(folder, sync, environ, **more)

        def define(self, sync: str) -> None:
            source = f"source: {{from: drop, path: 'state=*/*.{format}', format: {format}}}"
            text = SYNC_YML.replace("source: {table: mart}", source) + sync
            (self.folder / "syncs" / "users.yml").write_text(text)

        def mart(self, sql: str) -> None:
            super().mart(sql)
            former, state = self._present, next(self._states)
            with duckdb_files.opened(self.folder / "mart.duckdb", read_only=True) as connection:
                parts = [
                    written(
                        connection,
                        f"SELECT * FROM mart WHERE hash(user_id) % {PARTS} = {part}",
                        format,
                        self.folder,
                    )
                    for part in range(PARTS)
                ]
            for name in former:
                self.drop.remove(name)
            self._present = [f"state={state}/part-{part}.{format}" for part in range(PARTS)]
            for name, content in zip(self._present, parts, strict=True):
                self.drop.put(name, content)

    return Dropped
