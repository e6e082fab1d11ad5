"""Items of an Amazon DynamoDB table: every row is one item, by its key.

The sync's key is the key of the table: one column for a partition key, two with a sort key, under the names
that the table has. A text, uuid, date or timestamp is S, an integer or decimal N with all its digits (38 at
most), a boolean BOOL, a list L, json what it is (M, L, S, N, BOOL). A NULL field is removed, or stays
(`nulls: keep`), so that a row without a value is not in an index. DynamoDB keeps 1.10 as 1.1. A number that
it cannot keep, such as a float of 1e300 or a negative zero, makes the row a reject (`NOT_EXACT`).

`item: merge`, the default, writes only fields of the sync, and attributes of others stay: requests are
`TransactWriteItems` of up to 100 updates, which take twice the write capacity. With `item: whole` an item is
what the sync sends, and attributes of others are removed: requests are `BatchWriteItem` of up to 25 puts. It
is for `write: upsert` alone.

`write: insert_only` and `update_only` are a condition on the item (`attribute_not_exists`,
`attribute_exists`), which DynamoDB tests in the same step. Deletes are `BatchWriteItem` of up to 25.

**What is atomic:** each transaction of `item: merge`, which is a batch of retl unless its rows have more than
3 MB. If DynamoDB refuses some of its rows, they get their answers and the others go again. **What is not:**
of `item: whole` and deletes each row is written alone. Items that a request leaves unprocessed, and what is
throttled, go again as `retry` says. A request without an answer goes again too: the same row written twice is
the same item. A transaction has a token made of its batch, by which DynamoDB recognises it for ten minutes.
After a kill `insert_only` may find a row that the killed run inserted, and calls it skipped.

    connections:
      app:
        type: dynamodb
        region: eu-central-1
        access_key_id: "${AWS_ACCESS_KEY_ID}"
        secret_access_key: "${AWS_SECRET_ACCESS_KEY}"

    destination: {connection: app, table: user_segments}
    key: [user_id]
    deletes: delete

Without keys those of the environment are used, or of `profile`, or of the machine's role. `create: true`
makes a missing table, billed on demand, and waits until it is there. The account needs
`dynamodb:DescribeTable`, `dynamodb:UpdateItem` (merge), `dynamodb:BatchWriteItem` (whole, deletes), for
`retl reconcile` and `retl state rebuild` `dynamodb:BatchGetItem` and `dynamodb:Scan`, and for `create`
`dynamodb:CreateTable`.
`check` asks for an update under a condition that cannot hold, and for the delete of a key that nobody has.

**TTL.** Send the second at which an item expires as a field of the sync, a whole number
(`epoch(valid_until)::BIGINT AS expires_at`), and turn TTL on for that attribute. DynamoDB removes an item
some time after it; retl goes on to call the row delivered until the mart changes it.

What it cannot do: `write: append`, soft deletes, `conflicts` and rollback. It keeps no marks: a table that
was restored, or made again, is noticed only by the sample of keys that a run reads, and by `retl reconcile`;
and nothing keeps two ledgers from writing to one table. An item has at most 400 KB.

Evidence: moto, which speaks DynamoDB's protocol on this machine. **It was not run on Amazon's own DynamoDB**:
throttling, capacity and the limits of indexes are built from its documentation.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, Literal, NamedTuple
from uuid import uuid4

from pydantic import Field, field_validator

from retl.destinations.api import Destination
from retl.destinations.batch import (
    ABSENT,
    PRESENT,
    WRITTEN,
    Batch,
    Capabilities,
    Condition,
    Kind,
    Mode,
    Outcome,
    RowResult,
    Shape,
    Visit,
    WriteMode,
)
from retl.destinations.dynamodb import items
from retl.destinations.dynamodb.connection import THROTTLED, Cancelled, Client, DynamoDBConnection, Missing
from retl.destinations.dynamodb.reading import Reading
from retl.errors import Ambiguous, DefinitionError, Mismatch, TargetError, Unavailable
from retl.model import Definition
from retl.net.gate import Gate

BATCH_ROWS = 100
TRANSACTION_ROWS, TRANSACTION_BYTES = 100, 3 << 20  # 4 MB, less what the items have from others
PUTS = 25
PUT_BYTES = 15 << 20  # of a request, which may have 16 MB
_FOUND_BY = "attribute_exists(#k0)"
_CONDITIONS = {
    Condition.NONE: None,
    Condition.ABSENT: "attribute_not_exists(#k0)",
    Condition.PRESENT: _FOUND_BY,
}
_IMPOSSIBLE = f"{_FOUND_BY} AND attribute_not_exists(#k0)"
_NOTHING = "retl.nothing"  # an attribute that nobody has: an update needs an action
_WHOLE: frozenset[Mode] = frozenset({"upsert", "delete"})
_MERGES: frozenset[Mode] = _WHOLE | {"insert_only", "update_only"}
_SECONDS = 300.0  # for a new table
Found = dict[int, RowResult]


class DynamoDBOptions(Definition):
    """The table, and how its items are written."""

    connection: DynamoDBConnection
    table: str
    item: Literal["merge", "whole"] = Field(
        "merge", description="`merge`: attributes of others stay. `whole`: an item is what the sync sends."
    )
    create: bool = Field(False, description="Make the table if it is missing, billed on demand.")

    @field_validator("table")
    @classmethod
    def _named(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{3,255}", name):
            raise ValueError("a table's name has 3 to 255 letters, digits, `_`, `-` and `.`")
        return name


class _Row(NamedTuple):
    """A row to be sent: its number in the batch, and its attributes."""

    number: int
    key: items.Item
    fields: Mapping[str, items.Attribute | None]
    size: int

    @property
    def item(self) -> items.Item:
        return self.key | {name: one for name, one in self.fields.items() if one is not None}


class DynamoDB(Destination[DynamoDBOptions]):
    """One table."""

    Connection = DynamoDBConnection
    Options = DynamoDBOptions

    def __init__(self, options: DynamoDBOptions, shape: Shape, gate: Gate | None = None) -> None:
        super().__init__(options, shape, gate)
        _check(shape)
        self._merges = options.item == "merge"
        self._client = Client(options.connection, self.gate)
        self._reading = Reading(self._client, options.table, shape)
        self._interrupted = False
        self.capabilities = Capabilities(
            object=self.place(options, shape.write),
            modes=_MERGES if self._merges else _WHOLE,
            idempotent=True,
            form="documents",
            shaping={"item": options.item},
            readable=True,
            nulls_keep=self._merges,
            max_rows=BATCH_ROWS,
            lanes=4,
        )

    @property
    def sent(self) -> int:
        return self._client.sent

    @classmethod
    def place(cls, options: DynamoDBOptions, write: WriteMode) -> str:
        return f"dynamodb:{options.connection.identity}/{options.table}"

    # --- check and prepare

    def check(self, visit: Visit) -> None:
        """Systemic AWS_LOGIN, NOPERM; Mismatch TARGET_DRIFT."""
        described = self._described()
        if described is None:
            if not self.options.create:
                raise Mismatch(
                    "TARGET_DRIFT",
                    f"there is no table {self.options.table} in {self.options.connection.name}",
                    hint="`create: true` makes it; or fix the name or the region",
                )
            return
        self._judge(described)
        self._probe()

    def _described(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._client.ask("describe_table", TableName=self.options.table)["Table"]
        except Missing:
            return None
        return found

    def _judge(self, described: Mapping[str, Any]) -> None:
        kinds = {one["AttributeName"]: one["AttributeType"] for one in described["AttributeDefinitions"]}
        theirs = {one["AttributeName"]: kinds[one["AttributeName"]] for one in described["KeySchema"]}
        ours = {one.name: items.key_kind(one.type) for one in self.shape.key}
        if theirs != ours:
            listed = ", ".join(f"{name} ({kind})" for name, kind in theirs.items())
            raise Mismatch(
                "TARGET_DRIFT",
                f"the key of the table {self.options.table} is {listed}, and not that of the sync",
                hint="`key` names the same attributes; S is a text, uuid or time, N an integer or decimal",
            )

    def _probe(self) -> None:
        """Ask for the rights to write, so that nothing is written."""
        nobody = self._nobody()
        if self._merges:
            update = {"Update": self._update(_Row(0, nobody, {}, 0), _IMPOSSIBLE)}
            try:
                self._client.write("transact_write_items", TransactItems=[update])
            except Cancelled as answer:
                if answer.codes != ["ConditionalCheckFailed"]:
                    raise
        if not self._merges or self.shape.deletes == "delete":
            self._client.write("batch_write_item", RequestItems={self.options.table: [_deletion(nobody)]})

    def _nobody(self) -> items.Item:
        """A key that no row has."""
        drawn = f"retl-probe-{uuid4().hex}", f"0.{uuid4().int % 10**37:037d}"
        return {
            one.name: {"S": drawn[0]} if items.key_kind(one.type) == "S" else {"N": drawn[1]}
            for one in self.shape.key
        }

    def prepare(self, visit: Visit) -> None:
        """Makes the table that `create` asks for."""
        if not self.options.create or self._described() is not None:
            return
        kinds = {one.name: items.key_kind(one.type) for one in self.shape.key}
        self._client.ask(
            "create_table",
            TableName=self.options.table,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": n, "AttributeType": kind} for n, kind in kinds.items()],
            KeySchema=[
                {"AttributeName": name, "KeyType": kind}
                for name, kind in zip(kinds, ("HASH", "RANGE"), strict=False)
            ],
        )
        end = time.monotonic() + _SECONDS
        while (self._described() or {}).get("TableStatus") != "ACTIVE":
            if self._interrupted or time.monotonic() > end:
                raise Unavailable("UNAVAILABLE", f"the new table {self.options.table} is not yet active")
            time.sleep(0.5)

    # --- write

    def write(self, batch: Batch) -> Outcome:
        """Request after request. Once one was applied, the rows of those that could not be sent are RETRY."""
        rows, found = self._rows(batch)
        before = len(found)
        left = list(self._requests(batch, rows))
        while left:
            try:
                if self._interrupted:
                    raise Unavailable("UNAVAILABLE", "the run was asked to stop")
                found |= self._send(batch, left[0])
            except Ambiguous:
                raise
            except TargetError as problem:
                if len(found) == before:
                    raise
                again = RowResult(Kind.RETRY, problem.code, problem.message)
                found |= {row.number: again for request in left for row in request}
                break
            left.pop(0)
        return Outcome(WRITTEN, {number: one for number, one in found.items() if one is not WRITTEN})

    def _rows(self, batch: Batch) -> tuple[list[_Row], Found]:
        """What is sent, and the rows that cannot be items."""
        rows, refused = list[_Row](), Found()
        for number, row in enumerate(batch.documents()):
            try:
                key = items.key_of(self.shape, row)
                fields = items.fields(row[-1]) if batch.operation != "delete" else {}
                made = _Row(number, key, fields, 0)
                if (size := items.size(made.item)) > items.LARGEST:
                    raise items.Refused("TOO_LARGE")
            except items.Refused as why:
                refused[number] = RowResult(Kind.REJECTED, why.code, items.REASONS[why.code])
            else:
                rows.append(made._replace(size=size))
        return rows, refused

    def _requests(self, batch: Batch, rows: Iterable[_Row]) -> Iterator[list[_Row]]:
        """The rows of each request: as many as it takes, and no key twice."""
        transacts = self._transacts(batch)
        most, room = (TRANSACTION_ROWS, TRANSACTION_BYTES) if transacts else (PUTS, PUT_BYTES)
        some, keys, size = list[_Row](), set[str](), 0
        for row in rows:
            key = str(row.key)
            if some and (len(some) == most or key in keys or size + row.size > room):
                yield some
                some, keys, size = [], set(), 0
            some.append(row)
            keys.add(key)
            size += row.size
        if some:
            yield some

    def _transacts(self, batch: Batch) -> bool:
        return self._merges and batch.operation != "delete"

    def _send(self, batch: Batch, rows: Sequence[_Row]) -> Found:
        """What became of each row of one request. A TargetError: nothing of it was applied."""
        if self._transacts(batch):
            return self._transact(batch, rows)
        answer = self._client.write("batch_write_item", RequestItems=self._puts(batch, rows))
        left = answer.get("UnprocessedItems", {}).get(self.options.table, [])
        if len(left) == len(rows):
            raise Unavailable("THROTTLED", f"DynamoDB takes no writes to {self.options.table} for now")
        asked = [item for one in left for request in one.values() for item in request.values()]
        keys = {str(items.key_in(self.shape, one)) for one in asked}
        again = RowResult(Kind.RETRY, "THROTTLED", "DynamoDB left the row unprocessed")
        return {row.number: again if str(row.key) in keys else WRITTEN for row in rows}

    def _puts(self, batch: Batch, rows: Sequence[_Row]) -> dict[str, Any]:
        gone = batch.operation == "delete"
        asked = [_deletion(row.key) if gone else {"PutRequest": {"Item": row.item}} for row in rows]
        return {self.options.table: asked}

    def _transact(self, batch: Batch, rows: Sequence[_Row]) -> Found:
        """A transaction, and another without the rows that it refuses."""
        found, left = Found(), list(rows)
        while left:
            try:
                self._client.write("transact_write_items", **self._transaction(batch, left))
            except Cancelled as answer:
                codes = dict(zip((row.number for row in left), answer.codes, strict=True))
            else:
                return found | {row.number: WRITTEN for row in left}
            refused = _refused(codes, batch.condition)
            if not refused:
                raise Unavailable("THROTTLED", f"DynamoDB takes no writes to {self.options.table} for now")
            found |= refused
            left = [row for row in left if row.number not in refused]
        return found

    def _transaction(self, batch: Batch, rows: Sequence[_Row]) -> dict[str, Any]:
        condition = _CONDITIONS[batch.condition]
        token = sha256(f"{batch.id}/{[row.number for row in rows]}".encode()).hexdigest()[:32]
        updates = [{"Update": self._update(row, condition)} for row in rows]
        return {"TransactItems": updates, "ClientRequestToken": token}

    def _update(self, row: _Row, condition: str | None) -> dict[str, Any]:
        fields = row.fields or {_NOTHING: None}
        names = {f"#f{n}": name for n, name in enumerate(fields)}
        values = {f":f{n}": one for n, one in enumerate(fields.values()) if one is not None}
        sets = ", ".join(f"#f{n} = :f{n}" for n, one in enumerate(fields.values()) if one is not None)
        removed = ", ".join(f"#f{n}" for n, one in enumerate(fields.values()) if one is None)
        clauses = (f"SET {sets}" if sets else "", f"REMOVE {removed}" if removed else "")
        update: dict[str, Any] = {
            "TableName": self.options.table,
            "Key": row.key,
            "UpdateExpression": " ".join(filter(None, clauses)),
            "ExpressionAttributeNames": names,
        }
        if values:
            update["ExpressionAttributeValues"] = values
        if condition is not None:
            names["#k0"] = self.shape.key[0].name
            update["ConditionExpression"] = condition
        return update

    # --- read

    def read(self, batch: Batch) -> Iterator[Mapping[str, Any] | None]:
        return self._reading.read(batch)

    def differing(self, batch: Batch) -> Iterator[tuple[str, ...] | None]:
        return self._reading.differing(batch)

    def scan(self) -> Iterator[tuple[str, ...]]:
        return self._reading.scan()

    # --- preview, interrupt

    def preview(self, batch: Batch) -> bytes:
        """The body of each request, a line each."""
        rows, _ = self._rows(batch)
        bodies = [
            self._transaction(batch, some)
            if self._transacts(batch)
            else {"RequestItems": self._puts(batch, some)}
            for some in self._requests(batch, rows)
        ]
        return "\n".join(map(json.dumps, bodies)).encode()

    def interrupt(self) -> None:
        """The request under way ends; no other begins."""
        self._interrupted = True

    def close(self) -> None:
        self._client.close()


def _check(shape: Shape) -> None:
    if len(shape.key) > 2 or any(items.key_kind(one.type) is None for one in shape.key):
        raise DefinitionError(
            "KEY_UNFIT",
            "the key of a DynamoDB table has one or two columns, of texts, times or numbers",
            hint="join columns of the key to a text in the source's SQL",
        )


def _deletion(key: items.Item) -> dict[str, Any]:
    return {"DeleteRequest": {"Key": key}}


def _refused(codes: Mapping[int, str], condition: Condition) -> Found:
    """The rows for whose sake a transaction was cancelled for good. Empty if all of it may go again."""
    found = Found()
    for number, code in codes.items():
        if code == "ConditionalCheckFailed":
            found[number] = PRESENT if condition is Condition.ABSENT else ABSENT
        elif code != "None" and code not in THROTTLED:
            found[number] = RowResult(
                Kind.REJECTED, "ITEM_REFUSED", "DynamoDB refuses the row for a reason of its own"
            )
    return found
