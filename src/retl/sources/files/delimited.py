"""CSV files as a relation of texts, with the columns that their headers name.

Nothing is guessed: not the delimiter, not a type, not whether there is a header.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from retl.engine.workspace import Workspace
from retl.errors import SourceError
from retl.sources.files.relation import STRING, Partitions, Relation, listed
from retl.values.sql import literal
from retl.values.types import Type


class Dialect(Struct, frozen=True):
    """How CSV is written. `names`: the columns, if the files have no header."""

    delimiter: str
    quote: str
    null: str
    encoding: str
    names: Sequence[str] | None


def relation(
    workspace: Workspace,
    files: Mapping[str, Path],
    partitions: Partitions,
    types: Mapping[str, Type],
    how: Dialect,
) -> Relation:
    dialect = (
        f"auto_detect = false, delim = {literal(how.delimiter)}, quote = {literal(how.quote)},"
        f" escape = {literal(how.quote)}, nullstr = {literal(how.null)}, encoding = {literal(how.encoding)},"
        f" header = {how.names is None}, allow_quoted_nulls = false, strict_mode = true,"
        f" null_padding = false, max_line_size = 16777216, {partitions.options}"
    )
    headers: dict[tuple[str, ...], list[Path]] = {}
    for key, path in files.items():
        names = how.names or _header(workspace, key, path, how)
        if names is not None:
            headers.setdefault(tuple(names), []).append(path)
    if not headers:
        raise SourceError("MART_UNREADABLE", "the files are empty: they have not even a header")
    parts = []
    for header, paths in headers.items():
        named = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in header)
        parts.append(f"SELECT * FROM read_csv({listed(paths)}, columns = {{{named}}}, {dialect})")
    found = dict.fromkeys((name for header in headers for name in header), "VARCHAR")
    found |= dict.fromkeys(partitions.types, "VARCHAR")
    texts = {name: types.get(name, STRING) for name in found} | partitions.types
    return Relation(" UNION ALL BY NAME ".join(parts), found, texts)


def _header(workspace: Workspace, key: str, path: Path, how: Dialect) -> list[str] | None:
    """The column names in the first line; None if the file is empty."""
    line = workspace.run(
        f"SELECT line FROM read_csv({listed([path])}, auto_detect = false, columns = {{'line': 'VARCHAR'}},"
        " delim = chr(1), quote = '', escape = '', header = false, parallel = false,"
        f" hive_partitioning = false, encoding = {literal(how.encoding)}) LIMIT 1"
    )
    if not line:
        return None
    (names,) = csv.reader([line[0][0] or ""], delimiter=how.delimiter, quotechar=how.quote or None) or [[]]
    named = [name or f"column{number}" for number, name in enumerate(names)]
    folded = [name.lower() for name in named]
    if twice := next((name for name in named if folded.count(name.lower()) > 1), None):
        raise SourceError("MART_UNREADABLE", f"{key} has two columns {twice}", hint="give each its own name")
    if not names:
        raise SourceError("MART_UNREADABLE", f"{key} begins with an empty line, not with a header")
    return named
