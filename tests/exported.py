"""What a reader finds in a folder of the target `files`: it follows latest.json, or else the log."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import duckdb

Objects = dict[str, bytes]  # by path
Row = dict[str, str | None]


def objects(folder: Path) -> Objects:
    """Every file of a folder of this machine."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(found)}


def log(of: Objects) -> list[dict[str, Any]]:
    """The entries, in their order. Their numbers have no gap."""
    found = [json.loads(data) for path, data in sorted(of.items()) if path.startswith("_retl/log/")]
    assert [entry["entry"] for entry in found] == list(range(len(found)))
    return found


def named(of: Objects) -> list[dict[str, Any]]:
    """The files that count, in their order."""
    if "latest.json" in of:
        return list(json.loads(of["latest.json"])["files"])
    return [file for entry in log(of) if entry["state"] == "applied" for file in entry["files"]]


def texts(path: str, data: bytes) -> list[Row]:
    """The rows of a file, every value as text."""
    if path.endswith("json"):
        rows = json.loads(data, parse_float=str, parse_int=str) if path.endswith(".json") else None
        rows = rows or [json.loads(line, parse_float=str, parse_int=str) for line in data.splitlines()]
        return [dict(row) for row in rows]
    how = "read_parquet" if path.endswith(".parquet") else "read_csv"
    options = "" if how == "read_parquet" else ", all_varchar = true, allow_quoted_nulls = false"
    with tempfile.NamedTemporaryFile() as file, duckdb.connect() as connection:
        file.write(data)
        file.flush()
        found = connection.execute(f"SELECT COLUMNS(*)::VARCHAR FROM {how}('{file.name}'{options})")
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def held(of: Objects, key: str) -> list[Row]:
    """The rows that a reader has at the end. A key that was appended twice is there twice."""
    rows: list[Row] = []
    for file in named(of):
        for row in texts(file["path"], of[file["path"]]):
            operation = row.pop("_op", None)
            if operation is not None:
                rows = [one for one in rows if one[key] != row[key]]
            if operation != "delete":
                rows.append(row)
    return rows
