"""Redis and Valkey: every row is one key, written by one command that carries its TTL.

`key: "reco:{user_id}"` is the template of the Redis key; its placeholders are exactly the sync's key. Values
are percent-encoded as in a URL (`a:b` → `a%3Ab`; letters, digits and `-._~` stay), so two rows never share a
Redis key. Between two placeholders there must be a character that a URL encodes, such as `:`. `{{` and `}}`
are literal braces, for hash tags. Keys that begin with `retl:` are reserved for retl.

========================  ===========================================================================
`value: json`             a string: the JSON object of all fields but the key's
`value: hash`             a hash: one entry per field, numbers, lists and json as JSON; a NULL field
                          removes its entry, or keeps it (`nulls: keep`); other entries are not changed;
                          a row without any entry has no key and is a reject
`value: {field: score}`   a string: that one field as text; if it is NULL, the row has no key
`ttl: 24h`, `ttl: none`   whole seconds, renewed with every write; required
========================  ===========================================================================

The account needs, on the keys of the template and on `retl:stamp:*`: `+set` (json, field) or `+eval
+hset +hdel +expire +exists` (hash), `+unlink`, `+mget` or `+hmget`, `+hset +hincrby +hgetall +hdel`,
`+select +ping`; `retl state rebuild` also needs `+pttl`, and `+scan` with `--take-ownership`. The stamp,
a hash, has an entry per batch of the last run: 1 when the batch begins, 2 when it ends. If the server was
flushed, restored, restarted or replaced, entries are missing. A target without TTL is then refused
(TARGET_LOST); with a TTL the run sends every row again.

Limits: one primary, no Redis Cluster. A string replaces any value of its key. The TTL of a hash is for the
whole key: syncs that share a hash share it. With an eviction policy other than noeviction the server may
remove rows, and retl detects that only if the stamp is removed too: `retl check` warns of it, if the account
also has `+info`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from string import Formatter
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec
from pydantic import BeforeValidator, Field, SecretStr, model_validator

from retl.destinations.api import EXPIRES, Destination
from retl.destinations.batch import (
    LINE_KEYS,
    WRITTEN,
    Answer,
    Batch,
    Capabilities,
    FieldsText,
    KeyText,
    Kind,
    Line,
    Outcome,
    Piece,
    RowResult,
    Shape,
    Size,
    SoftDelete,
    Trace,
    Visit,
    WriteMode,
)
from retl.destinations.redis.comparison import entries_differ, field_differs, object_differs, stays
from retl.destinations.redis.keys import KeyPattern
from retl.destinations.redis.resp import (
    AGAIN,
    CHUNK,
    CHUNK_BYTES,
    STOP,
    Command,
    Packed,
    Refusal,
    Wire,
    judge,
    pack,
    why,
)
from retl.errors import Ambiguous, DefinitionError, Poisoned, Systemic, Unavailable
from retl.model import Definition, Duration, is_loopback, needs_tls, seconds
from retl.net.gate import Gate

SCANNED = 1000  # keys that the server looks at for one reply of a scan
ABSENT_KEY = "retl:stamp:"  # a key that never exists
BEGUN, ENDED = 1, 2  # a batch in the stamp

# One command per row, so that each reply belongs to one row. After a refused HSET, MULTI would continue and
# set a TTL on a key that is not ours; a script stops.
WRITE_HASH = """\
local last = 2 + ARGV[2]
if last > 2 then redis.call('HSET', KEYS[1], unpack(ARGV, 3, last)) end
if #ARGV > last then redis.call('HDEL', KEYS[1], unpack(ARGV, last + 1)) end
if ARGV[1] ~= 'none' then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
if last == 2 and redis.call('EXISTS', KEYS[1]) == 0 then return redis.error_reply('EMPTYHASH') end"""


class RedisConnection(Definition):
    """A server, the account, and timeouts."""

    host: str = "localhost"
    port: Annotated[int, Field(ge=1, le=65535)] = 6379
    db: Annotated[int, Field(ge=0)] = 0
    user: str | None = None
    password: SecretStr | None = None
    tls: bool = False
    tls_ca_file: str | None = None
    allow_plaintext: bool = False
    connect_timeout: Duration = 5.0
    timeout: Duration = 30.0

    @model_validator(mode="after")
    def _fits(self) -> RedisConnection:
        if not self.tls and needs_tls(self.host, allow_plaintext=self.allow_plaintext):
            raise ValueError("a server on another machine needs `tls: true` (or `allow_plaintext: true`)")
        if self.user is not None and self.password is None:
            raise ValueError("a `user` needs a `password`")
        return self


def _ttl(value: object) -> int | None:
    """'24h' → 86400, 'none' → None; ValueError unless it is whole seconds, 1 to 2^31."""
    if value == "none":
        return None
    ttl = seconds(value)
    if not (ttl.is_integer() and 1 <= ttl <= 2**31):
        raise ValueError("`ttl` is none or whole seconds, at least 1s")
    return int(ttl)


class OneField(Definition):
    """The value is this one field."""

    field: str


class RedisOptions(Definition):
    """The options under `destination:` in a sync."""

    connection: RedisConnection = RedisConnection()
    key: str
    value: Literal["json", "hash"] | OneField = "json"
    ttl: Annotated[
        int | None,
        BeforeValidator(_ttl),
        Field(json_schema_extra={"anyOf": [{"type": ["string", "number"]}]}),
    ]


class Redis(Destination[RedisOptions]):
    Connection = RedisConnection
    Options = RedisOptions

    def __init__(self, options: RedisOptions, shape: Shape, gate: Gate | None = None) -> None:
        super().__init__(options, shape, gate)
        self._template = _template(options, shape)
        self._line = _line(options, shape, self._template)
        self._compared = {field.name for field in shape.fields if field.compared}
        self._json_fields = {field.name for field in shape.fields if field.type.name == "json"}
        self._expiry: Command = () if options.ttl is None else ("EX", options.ttl)
        self._stamp = f"retl:stamp:{quote(shape.state_id)}:{quote(options.key, safe='')}"
        to = options.connection
        self._wire = Wire(
            to.host,
            to.port,
            to.db,
            login=(*filter(None, [to.user]), to.password.get_secret_value()) if to.password else None,
            tls=to.tls,
            ca_file=to.tls_ca_file,
            connect_timeout=to.connect_timeout,
            timeout=to.timeout,
        )
        self.capabilities = Capabilities(
            object=self.place(options, shape.write),
            modes=frozenset({"upsert", "delete"}),
            idempotent=True,
            form="documents",
            shaping=options.model_dump(include={"value", "ttl"}),
            readable=True,
            nulls_keep=options.value == "hash",
            expires=options.ttl,
        )

    @classmethod
    def place(cls, options: RedisOptions, write: WriteMode) -> str:
        to = options.connection
        host = "localhost" if is_loopback(to.host) else to.host.lower()
        return f"redis://{host}:{to.port}/{to.db}/{options.key}"

    @classmethod
    def claim(cls, options: RedisOptions, write: WriteMode) -> str | None:
        """Placeholders may have any name: `u:{id}` and `u:{user_id}` are the same keys."""
        place = cls.place(options, write).removesuffix(options.key)
        try:
            parts = [(text, name is not None) for text, name, _, _ in Formatter().parse(options.key)]
        except ValueError:  # `_template` raises the error
            return place + options.key
        return place + "".join(text + "{}" * is_value for text, is_value in parts)

    def check(self, visit: Visit) -> Trace:
        """Sends commands that fail or change nothing. The server tests rights, role and memory before it
        detects that."""
        key = self._key(["probe"] * len(self.shape.key))
        probes: list[Command] = [("SET", key, "", "EX", 0)]
        if self.options.value == "hash":
            probes = [("HSET", key, "a", "b", "odd"), ("EVAL", WRITE_HASH, 1, ABSENT_KEY, 1, 0, "field")]
        probes += [("UNLINK", ABSENT_KEY), ("HSET", self._stamp, "a", 1, "odd"), ("HDEL", self._stamp, "")]
        probes += [("HINCRBY", self._stamp, "", "no number"), ("HGETALL", self._stamp)]
        replies = self._wire.ask(probes)
        self._raise_if_stopped(replies)
        if isinstance(replies[-1], Refusal):  # the stamp could not be read, which is no evidence of a loss
            code, sentence = judge(replies[-1])
            kind = Unavailable if code in AGAIN else Systemic
            raise kind(code, f"{self._wire.server}: {self._stamp}: {sentence}")
        return Trace(frozenset(batch for batch, state in _stamped(replies[-1]) if state >= ENDED))

    def prepare(self, visit: Visit) -> None:
        """Removes the stamps of earlier runs, except those that the ledger will ask for."""
        (held,) = self._wire.ask([("HGETALL", self._stamp)])
        old = ["/".join(batch) for batch, _ in _stamped(held) if batch[0] not in {visit.run_id, *visit.keep}]
        if old:
            self._wire.ask([("HDEL", self._stamp, *old)])

    def write(self, batch: Batch) -> Answer:
        try:
            replies = self._wire.exchange(self._commands(batch), self._count)
        except (UnicodeEncodeError, msgspec.DecodeError):
            raise Poisoned("NOT_UNICODE", "a value is not valid Unicode") from None
        except OSError as error:
            raise Ambiguous("NO_ANSWER", f"{self._wire.server} did not answer: {why(error)}") from error
        self._raise_if_stopped(replies, batch)
        rows, stamps = replies[1:-1], (replies[0], replies[-1])
        refused = self._refused(rows, batch)
        if len(refused) == len(batch) and all(result.kind == Kind.RETRY for result in refused.values()):
            raise Unavailable(refused[0].code or "", f"{self._wire.server}: {refused[0].reason}")
        for reply in stamps:
            if isinstance(reply, Refusal):
                sentence = judge(reply)[1]
                raise Systemic(
                    "STAMP_REFUSED", f"{self._wire.server} does not keep {self._stamp}: {sentence}"
                )
        if stamps[-1] != ENDED:
            raise Unavailable("TARGET_RESET", f"{self._wire.server} was emptied while the batch was written")
        return Outcome(WRITTEN, refused)

    def read(self, batch: Batch) -> Iterator[Mapping[str, Any] | None]:
        names = [field.name for field in self.shape.fields]
        keys = list(map(self._key, batch.keys()))
        if self.options.value == "hash":
            replies = self._wire.ask([("HMGET", key, *names) for key in keys])
            self._raise_if_stopped(replies)
            for held in replies:
                texts = [] if isinstance(held, Refusal) else [_text(entry) for entry in held]
                yield dict(zip(names, texts, strict=True)) if any(t is not None for t in texts) else None
            return
        replies = self._wire.ask([("MGET", *keys)])
        self._raise_if_stopped(replies)
        for value in replies[0]:
            if isinstance(self.options.value, OneField):
                yield {self.options.value.field: _text(value)}
            else:
                yield None if value is None else {n: v for n, v in _object(value).items() if n in names}

    def differing(self, batch: Batch) -> Iterator[tuple[str, ...] | None]:
        """A value of another kind than ours counts as lacking. A value that expires in less than half of its
        TTL counts as different, because the next run would renew it."""
        for first in range(batch.first, batch.last + 1, CHUNK):
            yield from self._differing(batch.slice(first, min(first + CHUNK - 1, batch.last)))

    def _differing(self, batch: Batch) -> Iterator[tuple[str, ...] | None]:
        names, width = [field.name for field in self.shape.fields], len(self.shape.key)
        rows = [(self._key(row[:width]), row[width]) for row in batch.documents()]
        is_hash = self.options.value == "hash"
        asked: list[Command] = [("PTTL", key) for key, _ in rows]
        asked += [("HMGET", key, *names) for key, _ in rows] if is_hash else [("MGET", *(k for k, _ in rows))]
        replies = self._look(asked)
        times, held = replies[: len(rows)], replies[len(rows) :] if is_hash else replies[-1]
        for time, value, (_, document) in zip(times, held, rows, strict=True):
            found = self._differs(value, document)
            # writing a hash without TTL leaves that of its key
            stay = (is_hash and self.options.ttl is None) or stays(time, self.options.ttl)
            yield found if stay or found is None else (*found, EXPIRES)

    def _differs(self, held: Any, document: str) -> tuple[str, ...] | None:
        """The fields in which Redis does not hold what the document would make of it; None if it holds
        nothing of the row."""
        names = [field.name for field in self.shape.fields]
        if self.options.value == "json":
            return object_differs(held, document, names, self._compared)
        texts = dict(self._texts(document))
        if isinstance(self.options.value, OneField):
            name = self.options.value.field
            return field_differs(name, held, texts[name], compared=name in self._compared)
        entries = [None] * len(names) if isinstance(held, Refusal) else held
        return entries_differ(dict(zip(names, entries, strict=True)), texts, self._compared)

    def scan(self) -> Iterator[tuple[str, ...]]:
        """Every key of the template in the database, also one with a value of another kind."""
        pattern = KeyPattern(self._template)
        cursor: bytes = b"0"
        while True:
            ((cursor, keys),) = self._look([("SCAN", cursor, "MATCH", pattern.glob, "COUNT", SCANNED)])
            for key in keys:
                values = pattern.values(key)
                if values is not None and self._key(values).encode() == key:
                    yield values
            if cursor == b"0":
                return

    def _look(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to commands that change nothing; a refusal among them concerns one key alone."""
        replies = self._wire.ask(commands)
        self._raise_if_stopped(replies)
        for reply in replies:
            if isinstance(reply, Refusal) and (code := judge(reply)[0]) in AGAIN:
                raise Unavailable(code, f"{self._wire.server}: {AGAIN[code]}")
        return replies

    def preview(self, batch: Batch) -> bytes:
        """The commands for redis-cli, one per line."""
        begin, end = self._stamps(batch)
        lines = [" ".join(map(_typed, command)) for command in (begin, *self._row_commands(batch), end)]
        return "\n".join(lines).encode(errors="backslashreplace")

    def notes(self) -> list[str]:
        """What the server does with rows without TTL when its memory is full, if the account may know."""
        if self.options.ttl is not None:
            return []
        info, config = self._wire.ask([("INFO", "memory"), ("CONFIG", "GET", "maxmemory-policy")])
        found = (
            re.search(rb"^maxmemory_policy:(\S+)", info, re.MULTILINE) if isinstance(info, bytes) else None
        )
        held = found[1] if found else config[1] if isinstance(config, list) and len(config) == 2 else None
        return _eviction(held.decode(errors="replace") if isinstance(held, bytes) else None)

    def close(self) -> None:
        self._wire.close()

    def _commands(self, batch: Batch) -> Iterator[Command | Packed]:
        """One command per row, in the order of the rows, between two for the stamp."""
        begin, end = self._stamps(batch)
        yield begin
        if self._line and batch.operation != "delete":
            lines = batch.lines(self._line)
            for n in range(0, len(lines), CHUNK):
                some = lines[n : n + CHUNK]
                packed = "".join(some).encode()
                if len(packed) <= CHUNK_BYTES:
                    yield Packed(packed, len(some))
                else:
                    yield from (Packed(one.encode(), 1) for one in some)
        else:
            yield from self._row_commands(batch)
        yield end

    def _stamps(self, batch: Batch) -> tuple[Command, Command]:
        """Before and after the rows: if the server is emptied in between, the second finds no entry."""
        entry = f"{batch.run_id}/{batch.id}"
        return ("HSET", self._stamp, entry, BEGUN), ("HINCRBY", self._stamp, entry, ENDED - BEGUN)

    def _row_commands(self, batch: Batch) -> Iterator[Command]:
        width, value = len(self.shape.key), self.options.value
        for row in batch.documents():
            key = self._key(row[:width])
            if batch.operation == "delete":
                yield ("UNLINK", key)
            elif value == "json":
                yield ("SET", key, row[width], *self._expiry)
            elif value == "hash":
                yield self._hash(key, row[width])
            elif isinstance(value, OneField):
                text = dict(self._texts(row[width]))[value.field]
                yield ("UNLINK", key) if text is None else ("SET", key, text, *self._expiry)

    def _hash(self, key: str, document: str) -> Command:
        texts = list(self._texts(document))
        entries = [part for name, text in texts if text is not None for part in (name, text)]
        cleared = [name for name, text in texts if text is None]
        return ("EVAL", WRITE_HASH, 1, key, *(self._expiry[1:] or ["none"]), len(entries), *entries, *cleared)

    def _texts(self, document: str) -> Iterator[tuple[str, str | bytes | None]]:
        """Each field as Redis stores it: text unquoted, other types as JSON, NULL as None."""
        for name, raw in _FIELDS.decode(document).items():
            text = bytes(raw)
            if text == b"null":
                yield name, None
            elif text.startswith(b'"') and name not in self._json_fields:
                yield name, msgspec.json.decode(text, type=str)
            else:
                yield name, text

    def _key(self, values: Sequence[Any]) -> str:
        return self._template.format(*map(_encoded, values))

    def _count(self, size: int) -> None:
        self._bytes += size

    def _raise_if_stopped(self, replies: Sequence[Any], batch: Batch | None = None) -> None:
        """Systemic if a reply says that no command can succeed. `batch`: what was sent."""
        for n, reply in enumerate(replies):
            if isinstance(reply, Refusal) and judge(reply)[0] in STOP:
                row = batch.documents()[n] if batch is not None and n < len(batch) else ()
                code, sentence = judge(reply, _values(row))
                raise Systemic(code, f"{self._wire.server}: {sentence}")

    def _refused(self, replies: Sequence[Any], batch: Batch) -> dict[int, RowResult]:
        """The results of the refused rows."""
        if not any(isinstance(reply, Refusal) for reply in replies):
            return {}
        found = {}
        for n, (reply, row) in enumerate(zip(replies, batch.documents(), strict=True)):
            if isinstance(reply, Refusal):
                code, sentence = judge(reply, _values(row))
                found[n] = RowResult(Kind.RETRY if code in AGAIN else Kind.REJECTED, code, sentence)
        return found


_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _stamped(reply: Any) -> Iterator[tuple[tuple[str, str], int]]:
    """Per entry of the stamp its batch (run id, batch id) and its state."""
    entries = iter(() if isinstance(reply, Refusal) else reply)
    for entry, state in zip(entries, entries, strict=True):
        run_id, _, batch = entry.decode().partition("/")
        yield (run_id, batch), int(state)


def _template(options: RedisOptions, shape: Shape) -> str:
    """The key template with positions instead of names. DefinitionError if options and shape do not fit,
    if two rows could get the same Redis key, or a row a key of retl."""
    literals, names, keys = [""], list[str](), [field.name for field in shape.key]
    reason = None
    try:
        for text, name, spec, conversion in Formatter().parse(options.key):
            literals[-1] += text
            if name is not None:
                names.append(f"{name}!{conversion or ''}:{spec}" if spec or conversion else name)
                literals.append("")
    except ValueError as error:
        reason = f"{error} (`{{{{` is a literal brace)"
    if reason is None and sorted(names) != sorted(keys):
        reason = f"its placeholders must be exactly the key: {', '.join(keys)}, each once"
    elif any(re.fullmatch("[A-Za-z0-9%._~-]*", between) for between in literals[1:-1]):
        reason = "between two placeholders there must be a character that no value contains, such as `:`"
    elif options.key.startswith("retl:") or ("retl:".startswith(literals[0]) and ":" in "".join(literals)):
        reason = "it must begin with a text; keys that begin with `retl:` are reserved for retl"
    if reason:
        raise DefinitionError("KEY_TEMPLATE", f"key template {options.key!r}: {reason}")
    if isinstance(shape.deletes, SoftDelete):
        raise DefinitionError("DELETES", "redis has no soft delete: set `deletes` to keep or delete")
    if isinstance(options.value, OneField) and options.value.field not in [f.name for f in shape.fields]:
        raise DefinitionError("VALUE", f"`value` names {options.value.field!r}, which is not a field")
    escaped = [text.replace("{", "{{").replace("}", "}}") for text in literals]
    return (
        "".join(f"{text}{{{keys.index(name)}}}" for text, name in zip(escaped, names, strict=False))
        + escaped[-1]
    )


def _line(options: RedisOptions, shape: Shape, template: str) -> Line | None:
    """The packed command of a row with a JSON object as its value, made in SQL; None if Python must make
    it."""
    if options.value != "json" or any(field.type.name not in LINE_KEYS for field in shape.key):
        return None
    key: list[Piece] = []
    for literal, index, _, _ in Formatter().parse(template):
        key += [literal, *([KeyText(int(index), "url")] if index is not None else [])]
    expiry = pack(("EX", options.ttl)).decode().partition("\r\n")[2] if options.ttl is not None else ""
    return (
        f"*{5 if expiry else 3}\r\n$3\r\nSET\r\n",
        *("$", Size(tuple(key)), "\r\n", *key, "\r\n"),
        *("$", Size((FieldsText(),)), "\r\n", FieldsText(), "\r\n"),
        expiry,
    )


def _encoded(value: Any) -> str:
    """A key value inside a Redis key; different values stay different."""
    text = value if isinstance(value, str) else value.isoformat() if isinstance(value, date) else str(value)
    return text if _PLAIN.fullmatch(text) else quote(text, safe="")


_PLAIN = re.compile(r"[A-Za-z0-9._~-]*")


def _eviction(policy: str | None) -> list[str]:
    """What this policy means for rows without TTL. None: it is not known."""
    if policy is None:
        return [
            "this account may not ask for the eviction policy (it lacks +info): with any but noeviction, rows"
            " can vanish, and the next run calls them unchanged"
        ]
    full = f"maxmemory-policy is {policy}: when its memory is full the server removes"
    if policy.startswith("volatile-"):
        return [f"{full} keys that have a TTL; rows with `ttl: none` stay unless somebody sets one"]
    if policy != "noeviction":
        return [
            f"{full} any keys, also rows with `ttl: none`, and the next run calls them unchanged; set"
            " noeviction, or a `ttl`"
        ]
    return []


def _values(row: Sequence[Any]) -> list[str]:
    """The texts of a row of documents that a refusal may repeat."""
    fields = _object(row[-1].encode(errors="replace")) if row and isinstance(row[-1], str) else {}
    return [_encoded(value) for value in row] + [str(value) for value in (*row, *fields.values())]


def _text(held: bytes | None) -> str | None:
    return None if held is None else held.decode(errors="replace")


def _object(held: bytes) -> dict[str, Any]:
    """The JSON object of a value; {} if the value is not an object, so not ours."""
    try:
        document = json.loads(held, parse_float=Decimal)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _typed(argument: str | bytes | int) -> str:
    text = argument.decode() if isinstance(argument, bytes) else str(argument)
    if re.fullmatch(r"[\w.:%~/-]+", text):
        return text
    return (
        '"' + re.sub(r'[\x00-\x1f"\\\x7f]', lambda m: _ESCAPES.get(m[0]) or f"\\x{ord(m[0]):02x}", text) + '"'
    )


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
