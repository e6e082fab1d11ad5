"""The mart's row as JSON. The ledger keeps it with a reject if the sync asks for it.

It has every column of the contract with its exact value: in JSON form if the contract's type can represent
it, else as DuckDB's text (NaN, infinity, a number with more digits). Masked columns are never included. It is
only for people to read; nothing is delivered from it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from decimal import Decimal
from math import isfinite
from typing import Any

from msgspec import Struct

from retl.contract.judge import Contract
from retl.engine.workspace import Workspace
from retl.model import Formats
from retl.observe.mask import MASK
from retl.values import json_text, storage
from retl.values.sql import literal, quoted

LONGEST = 64 << 10  # bytes of one row; a larger one is not kept
MOST = 64 << 20  # bytes of all rows of a run; no more are kept


class Payload(Struct, frozen=True):
    """SQL that makes documents of rejected rows; `table` has the original rows of the mart."""

    table: str
    document: str

    def load(self, workspace: Workspace, rejected: str) -> Mapping[int | None, str]:
        """Row number → document of rejected rows (SQL of a relation with the columns key and row): the first
        row of each key, up to the size limit."""
        found = workspace.run(
            f"WITH chosen AS (SELECT min(row) AS row FROM ({rejected}) GROUP BY key, row_id),"
            f' documents AS (SELECT "retl row" AS row, {self.document} AS document FROM {self.table}'
            ' WHERE "retl row" IN (SELECT row FROM chosen)),'
            " sized AS (SELECT row, document, strlen(document) AS size FROM documents)"
            f" SELECT row, document FROM (SELECT *, sum(size) OVER (ORDER BY row) AS room FROM sized"
            f" WHERE size <= {LONGEST}) WHERE room <= {MOST}"
        )
        return dict(found)


def shown(document: str, masked: Collection[str] = ()) -> dict[str, Any]:
    """A kept document for a reader. Columns that are masked now are masked; a number that a float would
    change is a text."""
    row: dict[str, Any] = json.loads(document, parse_float=_number)
    hidden = {one for one in row if {one, one.lower(), "*"} & {*masked}}
    return {name: MASK if name in hidden and value is not None else value for name, value in row.items()}


def _number(text: str) -> float | str:
    number = float(text)
    return number if isfinite(number) and Decimal(repr(number)) == Decimal(text) else text


def of(contract: Contract, table: str, masked: Collection[str]) -> Payload:
    """The documents of a contract's columns; sensitive columns are always masked."""
    members = []
    for name, rule in contract.columns.items():
        column = quoted(name)
        if rule.sensitive or name in masked:
            text = f"CASE WHEN {column} IS NULL THEN 'null' ELSE {literal(json.dumps(MASK))} END"
        else:
            held = storage.exact(rule.type, column, rule.column_type, contract.timezone)
            value = storage.cast(rule.type, column, rule.column_type, contract.timezone)
            exactly = json_text.json_sql(rule.type, value, Formats(), contract.timezone)
            as_text = f"CAST(to_json(CAST({column} AS VARCHAR)) AS VARCHAR)"
            text = f"CASE WHEN {held} THEN {exactly} ELSE {as_text} END"
        members.append(f"{literal(json.dumps(name, ensure_ascii=False) + ':')} || {text}")
    return Payload(table, "'{' || " + " || ',' || ".join(members) + " || '}'")
