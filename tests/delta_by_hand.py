"""Delta tables written action by action, for what delta-rs cannot write: features, deletion vectors, columns
that are mapped, a log with gaps."""

from __future__ import annotations

import json
import struct
import uuid
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_MAGIC = struct.pack("<Iq", 1681511377, 1)  # a bitmap of 64 bits, with one part of 32


def column(name: str, kind: Any, **metadata: Any) -> dict[str, Any]:
    """A field of the schema; `metadata` without the `delta.columnMapping.` of its keys."""
    named = {f"delta.columnMapping.{part}": value for part, value in metadata.items()}
    return {"name": name, "type": kind, "nullable": True, "metadata": named}


ID_AND_NAME = (column("id", "long"), column("name", "string"))


def people(*ids: int, names: Sequence[str] = ("id", "name")) -> pa.Table:
    """Rows of ID_AND_NAME."""
    return pa.table([pa.array(ids, pa.int64()), [f"n{one}" for one in ids]], names=list(names))


class ByHand:
    """A table whose log is written by the test."""

    def __init__(
        self,
        folder: Path,
        *features: str,
        fields: Sequence[Mapping[str, Any]] = ID_AND_NAME,
        configuration: Mapping[str, str] = {},
        partitions: Sequence[str] = (),
        writer_features: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        (folder / "_delta_log").mkdir(parents=True)
        self.version = -1
        written = [*features, *writer_features]
        self.protocol = (
            {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": [*features]}
            | {"writerFeatures": written}
            if written
            else {"minReaderVersion": 1, "minWriterVersion": 2}
        )
        self.metadata = {
            "id": "d0000000-0000-4000-8000-000000000001",
            "format": {"provider": "parquet", "options": {}},
            "schemaString": json.dumps({"type": "struct", "fields": list(fields)}),
            "partitionColumns": list(partitions),
            "configuration": dict(configuration),
            "createdTime": 1,
        }

    def commit(
        self, *actions: Mapping[str, Any], operation: str | None = "WRITE", at: int | None = None
    ) -> int:
        """Write the next version; returns its number."""
        self.version += 1
        first = [{"protocol": self.protocol}, {"metaData": self.metadata}] if self.version == 0 else []
        info = {"timestamp": self.version if at is None else at}
        told = [] if operation is None else [{"commitInfo": info | {"operation": operation}}]
        self.commit_file(self.version).write_text("\n".join(map(json.dumps, [*told, *first, *actions])))
        return self.version

    def commit_file(self, version: int) -> Path:
        return self.folder / "_delta_log" / f"{version:020}.json"

    def add(
        self,
        name: str,
        rows: pa.Table | None = None,
        *,
        vector: Mapping[str, Any] | None = None,
        values: Mapping[str, str | None] = {},
        changes: bool = True,
    ) -> dict[str, Any]:
        """The action that adds a file, which is written if `rows` are given."""
        if rows is not None:
            pq.write_table(rows, self.folder / name)
        action = self._file(name, changes) | {"partitionValues": dict(values), "modificationTime": 1}
        return {"add": action | ({"deletionVector": vector} if vector else {})}

    def remove(
        self, name: str, *, vector: Mapping[str, Any] | None = None, changes: bool = True
    ) -> dict[str, Any]:
        """The action that removes a file."""
        action = self._file(name, changes) | {"partitionValues": {}, "deletionTimestamp": 1}
        return {"remove": action | ({"deletionVector": vector} if vector else {})}

    def vector(self, *positions: int, in_file: bool = False) -> dict[str, Any]:
        """A deletion vector, in the log or in a file of its own."""
        bits = _MAGIC + struct.pack("<I", 0) + _bitmap(positions)
        sizes = {"sizeInBytes": len(bits), "cardinality": len(positions)}
        if not in_file:
            return {"storageType": "i", "pathOrInlineDv": _z85(bits), **sizes}
        name = uuid.uuid4()
        data = b"\x01" + struct.pack(">I", len(bits)) + bits + struct.pack(">I", zlib.crc32(bits))
        (self.folder / f"deletion_vector_{name}.bin").write_bytes(data)
        return {"storageType": "u", "pathOrInlineDv": _z85(name.bytes), "offset": 1, **sizes}

    def _file(self, name: str, changes: bool) -> dict[str, Any]:
        size = (self.folder / name).stat().st_size if (self.folder / name).exists() else 0
        return {"path": name, "size": size, "dataChange": changes}


def _bitmap(positions: Sequence[int]) -> bytes:
    """A Roaring bitmap with one container, an array of the sorted positions."""
    head = struct.pack("<IIHHI", 12346, 1, 0, len(positions) - 1, 16)
    return head + struct.pack(f"<{len(positions)}H", *sorted(positions))


def _z85(data: bytes) -> str:
    """Base 85 in the alphabet of ZeroMQ."""
    text = ""
    for (number,) in struct.iter_unpack(">I", data + b"\0" * (-len(data) % 4)):
        part = ""
        for _ in range(5):
            number, digit = divmod(number, 85)
            part = _Z85[digit] + part
        text += part
    return text
