"""The mart's row as JSON, for the ledger to keep beside a reject where the sync asks for that.

Every column of the contract, each value exactly: in its JSON form where the contract's type holds it, else
as DuckDB's own text (NaN, infinity, a number with more digits). Masked columns never get this far. What it
makes is for people to look at: nothing is ever delivered from it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite
from typing import Any

from retl.contract.judge import Contract
from retl.engine.workspace import Workspace
from retl.model import Formats
from retl.values import json_text, storage
from retl.values.sql import literal, quoted

MASK = "***"
LONGEST = 64 << 10  # bytes of one row; a larger one is not kept
MOST = 64 << 20  # bytes of all rows of a run; past them no more are kept


@dataclass(frozen=True)
class Payload:
    """How rejected rows become documents: SQL over the columns of `table`, the rows as the mart had them."""

    table: str
    document: str

    def load(self, workspace: Workspace, rejected: str) -> Mapping[int | None, str]:
        """Row number → document, of these rows (SQL of a relation with the columns key and row): the first
        of each key, as long as there is room."""
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
    """A kept document for a reader: columns that have to be masked by now are, and a number that a float
    would change is a text."""
    row: dict[str, Any] = json.loads(document, parse_float=_number)
    return {name: MASK if name in masked and value is not None else value for name, value in row.items()}


def _number(text: str) -> float | str:
    number = float(text)
    return number if isfinite(number) and Decimal(repr(number)) == Decimal(text) else text


def of(contract: Contract, table: str, masked: Collection[str]) -> Payload:
    """The documents of a contract's columns; what the contract calls sensitive is masked in any case."""
    members = []
    for name, rule in contract.columns.items():
        column = quoted(name)
        if rule.sensitive or name in masked:
            text = f"CASE WHEN {column} IS NULL THEN 'null' ELSE {literal(json.dumps(MASK))} END"
        else:
            held = storage.exact(rule.type, column, rule.column_type, contract.timezone)
            carried = storage.cast(rule.type, column, rule.column_type, contract.timezone)
            exactly = json_text.json_sql(rule.type, carried, Formats(), contract.timezone)
            as_text = f"CAST(to_json(CAST({column} AS VARCHAR)) AS VARCHAR)"
            text = f"CASE WHEN {held} THEN {exactly} ELSE {as_text} END"
        members.append(f"{literal(json.dumps(name, ensure_ascii=False) + ':')} || {text}")
    return Payload(table, "'{' || " + " || ',' || ".join(members) + " || '}'")
