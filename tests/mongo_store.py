"""What the emulator of MongoDB keeps: collections of documents, read and changed as its commands say, with
transactions that see a snapshot and fail at the first conflict. Commands and operators that retl does not use
are an error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import bson
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion

CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    dict, uuid_representation=UuidRepresentation.STANDARD, datetime_conversion=DatetimeConversion.DATETIME_MS
)
Document = dict[str, Any]
Token = Any
_TRANSIENT = (112, 251)
_LARGEST = 16 << 20
_WAIT = 5.0  # seconds for a transaction that has the document
_LOOK = 0.05


class Failed(Exception):
    """An error that a command answers with."""

    def __init__(self, code: int, words: str, **more: Any) -> None:
        super().__init__(words)
        self.code, self.words, self.more = code, words, more

    def answer(self, *, transacts: bool) -> Document:
        labels = ["TransientTransactionError"] if transacts or self.code in _TRANSIENT else []
        answer = {"ok": 0, "code": self.code, "codeName": f"E{self.code}", "errmsg": self.words}
        return answer | ({"errorLabels": labels} if labels else {}) | self.more


@dataclass
class Collection:
    options: Document = field(default_factory=dict)
    uuid: UUID = field(default_factory=uuid4)
    held: dict[Token, Document] = field(default_factory=dict)
    unique: list[list[str]] = field(default_factory=list)
    locked: dict[Token, Transaction] = field(default_factory=dict)


@dataclass
class Transaction:
    """`base`: what was there when it began; `seen`: that with its own writes."""

    base: dict[str, dict[Token, Document]]
    seen: dict[str, dict[Token, Document]]
    writes: dict[tuple[str, Token], Document | None] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    state: str = "open"


def token(value: Any) -> Token:
    """Equal for values that MongoDB takes for one."""
    match value:
        case bool():
            return ("bool", value)
        case int() | float():
            return ("number", Decimal(value))
        case bson.Decimal128():
            return ("number", value.to_decimal())
        case dict():
            return ("object", tuple((name, token(one)) for name, one in value.items()))
        case list():
            return ("array", tuple(map(token, value)))
        case _:
            return (type(value).__name__, value)


_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "$in": lambda held, asked: token(held) in set(map(token, asked)),
    "$nin": lambda held, asked: token(held) not in set(map(token, asked)),
    "$ne": lambda held, asked: token(held) != token(asked),
    "$lt": lambda held, asked: held is not None and held < asked,
    "$lte": lambda held, asked: held is not None and held <= asked,
}


def matcher(asked: Document) -> Callable[[Document], bool]:
    """Whether a document fits a filter."""
    tests = list[Callable[[Document], bool]]()
    for name, wanted in asked.items():
        if name == "$or":
            either = [matcher(one) for one in wanted]
            tests.append(lambda held, either=either: any(one(held) for one in either))
        elif _is_test(wanted):
            for operator, value in wanted.items():
                if operator == "$in":
                    among = set(map(token, value))
                    tests.append(lambda held, n=name, among=among: token(held.get(n)) in among)
                else:
                    test = _TESTS[operator]
                    tests.append(lambda held, n=name, v=value, test=test: test(held.get(n), v))
        else:
            exact = token(wanted)
            tests.append(lambda held, n=name, exact=exact: token(held.get(n)) == exact)
    return lambda held: all(test(held) for test in tests)


def _is_test(wanted: Any) -> bool:
    return isinstance(wanted, dict) and next(iter(wanted), "").startswith("$") and "$ref" not in wanted


def changed(held: Document | None, asked: Document, update: Document) -> Document:
    """The document after an update, made from the filter if there is none."""
    equal = {n: v for n, v in asked.items() if not n.startswith("$") and not _is_test(v)}
    found = dict(equal if held is None else held)
    for operator, values in update.items():
        if operator == "$set" or (operator == "$setOnInsert" and held is None):
            if "_id" in values and "_id" in found and token(values["_id"]) != token(found["_id"]):
                raise Failed(66, "_id is immutable")
            found |= values
        elif operator == "$unset":
            found = {name: one for name, one in found.items() if name not in values}
        elif operator == "$inc":
            found |= {name: found.get(name, 0) + more for name, more in values.items()}
        elif operator != "$setOnInsert":
            raise Failed(9, f"unknown operator {operator}")
    return found if "_id" in found else {"_id": bson.ObjectId()} | found


class Store:
    """All databases; one command is served at a time. `lifetime`: the seconds after which a transaction that
    somebody waits for is ended; MongoDB's own is a minute."""

    lifetime = 60.0

    def __init__(self) -> None:
        self._collections: dict[str, Collection] = {}
        self._transactions: dict[tuple[bytes, int], Transaction] = {}
        self._free = threading.Condition(threading.RLock())

    def serve(self, name: str, command: Document) -> Document:
        served = getattr(self, f"_do_{name}", None)
        if served is None:
            raise Failed(59, f"no such command: {name}")
        with self._free:
            transaction = self._transaction(command)
            try:
                answer: Document = served(command, transaction)
            except Failed:
                if transaction is not None and transaction.state == "open":
                    self._end(transaction, "aborted")
                raise
            if answer.get("writeErrors") and transaction is not None:
                self._end(transaction, "aborted")
            return answer

    # --- transactions

    def _transaction(self, command: Document) -> Transaction | None:
        if "autocommit" not in command:  # else a write that its client may send again
            return None
        named = (bytes(command["lsid"]["id"].bytes), int(command["txnNumber"]))
        if command.get("startTransaction"):
            held = {name: one.held for name, one in self._collections.items()}
            self._transactions[named] = Transaction(
                {name: dict(one) for name, one in held.items()},
                {name: dict(one) for name, one in held.items()},
            )
        found = self._transactions.get(named)
        if found is None or (found.state != "open" and "commitTransaction" not in command):
            raise Failed(251, "no such transaction")
        return found

    def _end(self, transaction: Transaction, state: str) -> None:
        transaction.state = state
        for name, at in transaction.writes:
            self._collections[name].locked.pop(at, None)
        self._free.notify_all()

    def _do_commitTransaction(self, command: Document, transaction: Transaction) -> Document:
        if transaction.state == "aborted":
            raise Failed(251, "it was aborted")
        if transaction.state == "open":
            for (name, at), document in transaction.writes.items():
                self._put(self._collections[name], at, document)
            self._end(transaction, "committed")
        return {}

    def _do_abortTransaction(self, command: Document, transaction: Transaction) -> Document:
        self._end(transaction, "aborted")
        return {}

    def expire(self, older: float = 0.0) -> None:
        """End every open transaction of this age in seconds."""
        with self._free:
            for one in self._transactions.values():
                if one.state == "open" and time.monotonic() - one.began >= older:
                    self._end(one, "aborted")

    def _await(self, collection: Collection, at: Token) -> None:
        end = time.monotonic() + max(_WAIT, self.lifetime)
        while not self._free.wait_for(lambda: at not in collection.locked, _LOOK):
            self.expire(self.lifetime)
            if time.monotonic() > end:
                raise Failed(50, "a transaction has the document")

    # --- backups

    def backup(self) -> dict[str, Collection]:
        """What is committed, as a copy of the disk has it: collections stay the same ones."""
        with self._free:
            return _copied(self._collections)

    def restore(self, kept: Mapping[str, Collection]) -> None:
        """What was open is aborted."""
        self.expire()
        with self._free:
            self._collections = _copied(kept)

    # --- documents

    def _named(self, command: Document) -> str:
        return f"{command['$db']}.{next(iter(command.values()))}"

    def _collection(self, command: Document) -> Collection:
        return self._collections.setdefault(self._named(command), Collection())

    def _seen(self, command: Document, transaction: Transaction | None) -> dict[Token, Document]:
        if transaction is None:
            return self._collection(command).held
        return transaction.seen.setdefault(self._named(command), {})

    def _found(self, seen: dict[Token, Document], asked: Document) -> Iterable[tuple[Token, Document]]:
        if "_id" in asked and not _is_test(asked["_id"]):
            at = token(asked["_id"])
            items = [(at, seen[at])] if at in seen else []
        else:
            items = list(seen.items())
        fits = matcher(asked)
        return ((at, one) for at, one in items if fits(one))

    @staticmethod
    def _put(collection: Collection, at: Token, document: Document | None) -> None:
        if document is None:
            collection.held.pop(at, None)
        else:
            collection.held[at] = document

    def _write(
        self, command: Document, transaction: Transaction | None, at: Token, document: Document | None
    ) -> None:
        collection, name = self._collection(command), self._named(command)
        if document is not None:
            self._judge(collection, self._seen(command, transaction), at, document)
        if transaction is None:
            self._await(collection, at)
            if document is not None and "insert" in command and at in collection.held:
                raise _duplicate(["_id"])
            self._put(collection, at, document)
            return
        base = transaction.base.get(name, {})
        if collection.locked.get(at, transaction) is not transaction or collection.held.get(
            at
        ) is not base.get(at):
            raise Failed(112, "write conflict")
        collection.locked[at] = transaction
        transaction.writes[name, at] = document
        transaction.seen.setdefault(name, {}).pop(at, None)
        if document is not None:
            transaction.seen[name][at] = document

    def _judge(
        self, collection: Collection, seen: dict[Token, Document], at: Token, document: Document
    ) -> None:
        if len(bson.encode(document, codec_options=CODEC)) > _LARGEST:
            raise Failed(10334, "too large")
        for names in collection.unique:
            ours = [token(document.get(name)) for name in names]
            for other, one in seen.items():
                if other != at and [token(one.get(name)) for name in names] == ours:
                    raise _duplicate(names)
        if broken := _broken(collection.options.get("validator", {}), document):
            raise Failed(121, "Document failed validation", errInfo={"details": broken})

    # --- commands

    def _each(self, command: Document, name: str, do: Callable[[int, Document], None]) -> list[Document]:
        """The errors of a bulk; its rows are done in order."""
        errors = list[Document]()
        for index, one in enumerate(command[name]):
            try:
                do(index, one)
            except Failed as failed:
                if failed.code in _TRANSIENT:
                    raise
                about = {"index": index, "code": failed.code, "errmsg": failed.words}
                errors.append(about | failed.more)
                if command.get("ordered", True):
                    break
        return errors

    def _do_insert(self, command: Document, transaction: Transaction | None) -> Document:
        def insert(_: int, document: Document) -> None:
            at = token(document["_id"])
            if at in self._seen(command, transaction):
                raise _duplicate(["_id"])
            self._write(command, transaction, at, document)

        errors = self._each(command, "documents", insert)
        return {"n": len(command["documents"]) - len(errors)} | ({"writeErrors": errors} if errors else {})

    def _do_update(self, command: Document, transaction: Transaction | None) -> Document:
        counted, made = 0, list[Document]()

        def update(index: int, one: Document) -> None:
            nonlocal counted
            asked = one["q"]
            found = next(iter(self._found(self._seen(command, transaction), asked)), None)
            if found is None and not one.get("upsert"):
                return
            at, held = found or (None, None)
            document = changed(held, asked, one["u"])
            if held is None:
                at = token(document["_id"])
                if at in self._seen(command, transaction):
                    raise _duplicate(["_id"])
                self._write(command, transaction, at, document)
                made.append({"index": index, "_id": document["_id"]})
            else:
                self._write(command, transaction, at, document)
            counted += 1

        errors = self._each(command, "updates", update)
        answer: Document = {"n": counted, "nModified": counted - len(made)}
        return answer | ({"upserted": made} if made else {}) | ({"writeErrors": errors} if errors else {})

    def _do_delete(self, command: Document, transaction: Transaction | None) -> Document:
        counted = 0

        def delete(_: int, one: Document) -> None:
            nonlocal counted
            for at, _held in list(self._found(self._seen(command, transaction), one["q"])):
                self._write(command, transaction, at, None)
                counted += 1
                if one["limit"]:
                    return

        errors = self._each(command, "deletes", delete)
        return {"n": counted} | ({"writeErrors": errors} if errors else {})

    def _do_find(self, command: Document, transaction: Transaction | None) -> Document:
        wanted = command.get("projection") or {}
        named = {name for name, one in wanted.items() if one}
        rows = [one for _, one in self._found(self._seen(command, transaction), command.get("filter", {}))]
        if named:
            rows = [{name: one[name] for name in one if name in named} for one in rows]
        limit = command.get("limit") or len(rows)
        return _cursor(command, rows[:limit])

    def _do_listCollections(self, command: Document, _: Any) -> Document:
        wanted = command.get("filter", {}).get("name")
        prefix = f"{command['$db']}."
        listed = [
            {"name": name.removeprefix(prefix), "options": one.options, "info": {"uuid": one.uuid}}
            | {"type": one.options.get("kind", "collection")}
            for name, one in self._collections.items()
            if name.startswith(prefix) and (wanted is None or name == prefix + wanted)
        ]
        return _cursor(command, listed)

    def _do_create(self, command: Document, _: Any) -> Document:
        if self._named(command) in self._collections:
            raise Failed(48, "it exists")
        options = {name: command[name] for name in ("capped", "collation", "kind") if name in command}
        self._collections[self._named(command)] = Collection(options)
        return {}

    def _do_drop(self, command: Document, _: Any) -> Document:
        self._collections.pop(self._named(command), None)
        return {}

    def _do_collMod(self, command: Document, _: Any) -> Document:
        self._collection(command).options["validator"] = command["validator"]
        return {}

    def _do_listIndexes(self, command: Document, _: Any) -> Document:
        unique = [
            {"key": dict.fromkeys(one, 1), "name": "u", "unique": True}
            for one in self._collection(command).unique
        ]
        return _cursor(command, [{"key": {"_id": 1}, "name": "_id_"}, *unique])

    def _do_createIndexes(self, command: Document, _: Any) -> Document:
        collection = self._collection(command)
        for one in command["indexes"]:
            names = list(one["key"])
            keys = [tuple(token(held.get(name)) for name in names) for held in collection.held.values()]
            if len(set(keys)) < len(keys):
                raise _duplicate(names)
            collection.unique.append(names)
        return {}

    def _do_ping(self, command: Document, _: Any) -> Document:
        return {}

    _do_endSessions = _do_ping


def _copied(of: Mapping[str, Collection]) -> dict[str, Collection]:
    return {
        name: replace(one, held=dict(one.held), options=dict(one.options), unique=list(one.unique), locked={})
        for name, one in of.items()
    }


def _cursor(command: Document, rows: list[Document]) -> Document:
    return {"cursor": {"id": bson.Int64(0), "ns": f"{command['$db']}.x", "firstBatch": rows}}


def _duplicate(names: list[str]) -> Failed:
    return Failed(11000, "E11000 duplicate key error", keyPattern=dict.fromkeys(names, 1), keyValue={})


def _broken(validator: Document, document: Document) -> Document | None:
    """The details of an error, as MongoDB gives them, with the value. Of `$jsonSchema` it knows `maxLength`."""
    properties = validator.get("$jsonSchema", {}).get("properties", {})
    for name, rules in properties.items():
        value = document.get(name)
        if isinstance(value, str) and len(value) > rules["maxLength"]:
            broken = {"operatorName": "maxLength", "consideredValue": value}
            named = [{"propertyName": name, "details": [broken]}]
            rule = {"operatorName": "properties", "propertiesNotSatisfied": named}
            return {"operatorName": "$jsonSchema", "schemaRulesNotSatisfied": [rule]}
    return None
