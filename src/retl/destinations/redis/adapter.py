"""Redis and Valkey: every row is one key, or one member of a set, written by one command.

`key: "reco:{user_id}"` is the template of the Redis key; its placeholders are exactly the sync's key. Values
are percent-encoded as in a URL (`a:b` → `a%3Ab`; letters, digits and `-._~` stay), so two rows never share a
Redis key. Between two placeholders there must be a character that a URL encodes, such as `:`. `{{` and `}}`
are literal braces, for hash tags. Keys that begin with `retl:` are reserved for retl.

| option | the key holds |
| --- | --- |
| `value: json` | a string: the JSON object of all fields but the key's |
| `value: hash` | a hash: one entry per field, see below |
| `value: {field: score}` | a string: that one field as text; if it is NULL, the row has no key |
| `value: set` | a set of many rows: each is a member, see below |
| `value: zset` | a sorted set of many rows: each is a member with its score |
| `ttl: 24h`, `ttl: none` | whole seconds, renewed with every write; required |

Entries of a hash are texts; numbers, lists and json are written as JSON. A NULL field removes its entry, or
keeps it (`nulls: keep`). Other entries are not changed. A row without any entry has no key and is a reject.

## Audiences and rankings

```yaml
key: [audience, user_id]
fields: {audience: audience, user_id: user_id, visits: visits}
destination: {type: redis, key: "audience:{audience}", value: zset, ttl: none}
deletes: delete
```

One Redis key holds many rows. Its template names all columns of the sync's key but one; that one is the
member, and its text is not encoded. With `key: [user_id]` the template is a text without placeholders. A
sorted set has one more field, the score: an integer, decimal or float. A set has none. A run adds and
removes only what changed (SADD, SREM, ZADD, ZREM), and never a member that it did not put there. The set is
not replaced as a whole: while a run writes, readers see a part of its changes.

A score is a double. A row with NULL, or with a number that a double cannot hold, is a reject (`NO_SCORE`,
`SCORE`), and its member is removed. Two syncs cannot fill one set. `retl reconcile`, `retl state rebuild`
and `retl erase` read and list members. `conflicts` and `rollback` are refused. The TTL is that of the whole
set, and each write to a member renews it, so it needs `deletes: delete`: a member that left the mart would
stay while others are renewed. `ttl: none` leaves the TTL that a set has.

## The account

It needs, on the keys of the template and on `retl:stamp:*`: `+set +unlink +mget` (json, field), or `+eval
+hset +hdel +expire +exists +unlink +hmget` (hash), or `+sadd +srem +sismember` (set) or `+zadd +zrem
+zscore` (zset) and for both `+multi +discard`, with a TTL also `+eval +expire`; and always `+hset +hincrby
+hgetall +hdel +select +ping`. `retl state rebuild` also needs `+pttl`, and with `--take-ownership` `+scan`
and for members `+sscan` or `+zscan`. `check` sends the commands that add a member between MULTI and
DISCARD: the server tests the rights and runs nothing.

A user of an ACL is `user` with its `password`. With `tls: true` the server is verified; `tls_cert_file` and
`tls_key_file` are shown to a server that asks for a certificate (`tls-auth-clients`).

## Sentinel

With `sentinels: [sentinel-1:26379, …]` and `service: NAME` instead of `host` and `port`, each new
connection asks the Sentinels for the primary, in their order, and tests that it is one. `tls` and its files
are for both; `sentinel_password` is theirs. The first Sentinel and the service name the target: another
first one is another target. During a failover a run waits and tries again, as its `retry` allows. Writes
that the new primary lacks, because replication lagged, are noticed by the stamp, before a run ends or by
the next run.

## The stamp

The stamp, a hash, has an entry per batch of the last run: 1 when the batch begins, 2 when it ends. If the
server was flushed, restored, restarted or replaced, entries are missing. A target without TTL is then
refused (TARGET_LOST); with a TTL the run sends every row again.

Another hash, `retl:stamp::TEMPLATE`, lists the ledgers that deliver with this template to this database. A
ledger that is not in it is new, or its state is lost: its run is refused (STATE_LOST).

With `conflicts` or `rollback` a script compares and writes each batch in one step. The account then also
needs `+eval +hget` and, for strings, `+get`. A value of another kind is never replaced then: its row is a
reject.

## Limits

One primary. A Redis Cluster is refused (`REDIS_CLUSTER`): a batch and its marks would be on many servers,
each of which can lose them alone. Streams and vector sets are not written. A string replaces any value of
its key. The TTL of a hash is for the whole key: syncs that share a hash share it. With an eviction policy
other than noeviction the server may remove rows, and retl detects that only if the stamp is removed too:
`retl check` warns of it, if the account also has `+info`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from string import Formatter
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BeforeValidator, Field

from retl.destinations.api import Destination
from retl.destinations.batch import (
    UNKNOWN,
    WRITTEN,
    Answer,
    Batch,
    Capabilities,
    Kind,
    Outcome,
    Peeked,
    RowResult,
    Shape,
    Trace,
    Visit,
    WriteMode,
)
from retl.destinations.redis.assumed import Assumed
from retl.destinations.redis.conditional import MOST_ROWS, Conditional
from retl.destinations.redis.connection import RedisConnection, wire
from retl.destinations.redis.keys import Template, encoded
from retl.destinations.redis.members import Members
from retl.destinations.redis.plain import WRITE_HASH, Plain
from retl.destinations.redis.reading import Hashes, Reader, Reading, Strings, json_object
from retl.destinations.redis.resp import (
    AGAIN,
    CHUNK,
    STOP,
    Command,
    Packed,
    Refusal,
    judge,
    why,
)
from retl.destinations.redis.stamp import ENDED, NOT_APPLIED, Stamp, ended, entries_of_others
from retl.destinations.redis.values import Hash, String
from retl.destinations.verdicts import refuse_mixed
from retl.errors import Ambiguous, DefinitionError, Poisoned, Systemic, Unavailable
from retl.model import Definition, is_loopback, seconds
from retl.net.gate import Gate

ABSENT_KEY = "retl:stamp:"  # a key that never exists


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
    key: str = Field(
        description="Template of the Redis key, with all columns of the sync's key: `reco:{user_id}`."
    )
    value: Literal["json", "hash", "set", "zset"] | OneField = Field(
        "json", description="What the key holds: `json`, `hash`, `{field: NAME}`, `set` or `zset`."
    )
    ttl: Annotated[
        int | None,
        BeforeValidator(_ttl),
        Field(
            description="When the key expires: seconds, or 24h. `none`: never.",
            json_schema_extra={"anyOf": [{"type": ["string", "number"]}]},
        ),
    ]


class Redis(Destination[RedisOptions]):
    Connection = RedisConnection
    Options = RedisOptions
    shards = True

    def __init__(self, options: RedisOptions, shape: Shape, gate: Gate | None = None) -> None:
        super().__init__(options, shape, gate)
        self._kept, self._template = _kept(options, shape)
        self._plain = Plain(self._kept, shape, self._template, options.ttl)
        self._stamp = Stamp(shape, options.key)
        self._attempts: dict[str, int] = {}  # of conditional batches without an answer
        self._wire = wire(options.connection)
        self._reading = Reading(
            _reader(self._kept, shape, self._template), self._template, options.ttl, self._look
        )
        self._conditional: Conditional | None = None
        compares = not isinstance(self._kept, Members)
        if shape.conditional and not isinstance(self._kept, Members):
            self._conditional = Conditional(
                self._kept,
                self._template,
                self._stamp,
                options.ttl,
                self._wire.server,
                self._ask,
                Assumed.of(self._kept, shape, self._template),
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
            resolves=shape.conditional,
            max_rows=MOST_ROWS if shape.conditional else None,
            images=compares,
            compares="atomic" if compares else "no",
        )

    @classmethod
    def place(cls, options: RedisOptions, write: WriteMode) -> str:
        """Of Sentinels the first names it, because the primary's address changes."""
        to = options.connection
        host, port = to.addresses[0] if to.sentinels else (to.host, to.port)
        host = "localhost" if is_loopback(host) else host.lower()
        service = f"{to.service}@" if to.sentinels else ""
        return f"redis://{service}{host}:{port}/{to.db}/{options.key}"

    @classmethod
    def claim(cls, options: RedisOptions, write: WriteMode) -> str | None:
        """Placeholders may have any name: `u:{id}` and `u:{user_id}` are the same keys."""
        place = cls.place(options, write).removesuffix(options.key)
        try:
            parts = [(text, name is not None) for text, name, _, _ in Formatter().parse(options.key)]
        except ValueError:  # `Template` raises the error
            return place + options.key
        return place + "".join(text + "{}" * is_value for text, is_value in parts)

    # --- check and prepare

    def check(self, visit: Visit) -> Trace:
        """Sends commands that fail or change nothing. The server tests rights, role and memory before it
        detects that. The primary that the Sentinels name now is asked, not the one of before."""
        if self._wire.follows:
            self._wire.close()
        row, stamp = ["probe"] * len(self.shape.key), self._stamp.key
        key = self._template.key(row)
        probes: list[Command] = [("SET", key, "", "EX", 0), ("UNLINK", ABSENT_KEY)]
        if isinstance(self._kept, Hash):
            probes[0:1] = [("HSET", key, "a", "b", "odd"), ("EVAL", WRITE_HASH, 1, ABSENT_KEY, 1, 0, "field")]
        elif isinstance(self._kept, Members):
            self._raise_if_stopped(self._wire.ask([("MULTI",), ("DISCARD",)]))  # else they would be done
            probes = self._kept.probes(row)
        probes += [("HSET", stamp, "a", 1, "odd"), ("HDEL", stamp, "")]
        if self._conditional is not None:
            probes += [self._conditional.value.look(key), ("HGET", stamp, ""), ("EVAL", "return 0", 0)]
        probes += [("HINCRBY", stamp, "", "no number"), ("HGETALL", self._stamp.ledgers), ("HGETALL", stamp)]
        replies = self._wire.ask(probes)
        self._raise_if_stopped(replies)
        if isinstance(replies[-1], Refusal):  # the stamp could not be read, which is no evidence of a loss
            code, sentence = judge(replies[-1])
            kind = Unavailable if code in AGAIN else Systemic
            raise kind(code, f"{self._wire.server}: {stamp}: {sentence}")
        known, signed = replies[-1], replies[-2]
        return Trace(ended(known), strangers=self._stamp.others(signed), taken=self._stamp.taken(signed))

    def prepare(self, visit: Visit) -> None:
        """Signs for this ledger, and removes the stamps of earlier runs, except those that the ledger will
        ask for."""
        held, ledgers = self._wire.ask([("HGETALL", self._stamp.key), ("HGETALL", self._stamp.ledgers)])
        commands = self._stamp.signing(ledgers)
        old = entries_of_others(held, frozenset({visit.run_id, *visit.keep}))
        if old:
            commands.append(("HDEL", self._stamp.key, *old))
        if commands:
            self._wire.ask(commands)

    # --- write and resolve

    def write(self, batch: Batch) -> Answer:
        try:
            return (
                self._write(batch) if self._conditional is None else self._compare(batch, self._conditional)
            )
        except (UnicodeEncodeError, msgspec.DecodeError):
            raise Poisoned("NOT_UNICODE", "a value is not valid Unicode") from None

    def _write(self, batch: Batch) -> Outcome:
        begin, end = self._stamp.around(batch)
        replies = self._ask([begin, *self._plain.commands(batch), end], writes=True)
        self._raise_if_stopped(replies, batch)
        rows, stamps = replies[1:-1], (replies[0], replies[-1])
        refused = self._refused(rows, batch) | self._plain.refused(batch)
        if len(refused) == len(batch) and all(result.kind == Kind.RETRY for result in refused.values()):
            raise Unavailable(refused[0].code or "", f"{self._wire.server}: {refused[0].reason}")
        for reply in stamps:
            if isinstance(reply, Refusal):
                sentence = judge(reply)[1]
                raise Systemic(
                    "STAMP_REFUSED", f"{self._wire.server} does not keep {self._stamp.key}: {sentence}"
                )
        if stamps[-1] != ENDED:
            raise Unavailable("TARGET_RESET", f"{self._wire.server} was emptied while the batch was written")
        return Outcome(WRITTEN, refused)

    def _compare(self, batch: Batch, conditional: Conditional) -> Outcome:
        """An attempt whose answer was lost is resolved before another: its rows may be written already."""
        if batch.id in self._attempts:
            known = self.resolve(batch, None)
            if known != Outcome(NOT_APPLIED):
                return known
        attempt = self._attempts.setdefault(batch.id, 0)
        found = conditional.write(batch, self._stamp.entry(batch, attempt))
        del self._attempts[batch.id]
        return found

    def resolve(self, batch: Batch, handle: str | None, *, act: bool = True) -> Outcome:
        """The outcome of a conditional batch by its entry in the stamp. Without an entry nothing was applied;
        if it may act, nothing of it ever will be."""
        if self._conditional is None:
            return Outcome(UNKNOWN)
        known, attempt = self._conditional.resolve(batch, self._attempts.get(batch.id, 0), act=act)
        if known is None:
            if act:
                self._attempts[batch.id] = attempt
            return Outcome(NOT_APPLIED)
        self._attempts.pop(batch.id, None)
        return known

    def _ask(self, commands: Iterable[Command | Packed], *, writes: bool = False) -> list[Any]:
        if not writes:
            return self._wire.ask(commands)
        try:
            return self._wire.exchange(commands, self._count)
        except OSError as error:
            raise Ambiguous("NO_ANSWER", f"{self._wire.server} did not answer: {why(error)}") from error

    def _count(self, size: int) -> None:
        self._bytes += size

    # --- read, compare, preview

    def read(self, batch: Batch) -> Iterator[Mapping[str, Any] | None]:
        return self._reading.read(batch)

    def peek(self, batch: Batch) -> Iterator[Peeked]:
        assert self._conditional is not None
        for first in range(batch.first, batch.last + 1, CHUNK):
            yield from self._conditional.peek(batch.slice(first, min(first + CHUNK - 1, batch.last)))

    def differing(self, batch: Batch) -> Iterator[tuple[str, ...] | None]:
        """A value of another kind than ours counts as lacking. A value that expires in less than half of its
        TTL counts as different, because the next run would renew it."""
        return self._reading.differing(batch)

    def scan(self) -> Iterator[tuple[str, ...]]:
        """Every key of the template in the database, also one with a value of another kind; of sets every
        member."""
        return self._reading.scan()

    def _look(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to commands that change nothing; a refusal among them concerns one key alone."""
        replies = self._wire.ask(commands)
        self._raise_if_stopped(replies)
        for reply in replies:
            if isinstance(reply, Refusal) and (code := judge(reply)[0]) in AGAIN:
                raise Unavailable(code, f"{self._wire.server}: {AGAIN[code]}")
        return replies

    def preview(self, batch: Batch) -> bytes:
        """The commands for redis-cli, one per line. Of a conditional batch the script that is sent first; it
        is sent again for rows that are not as we left them."""
        if self._conditional is not None:
            commands = [self._conditional.first(batch, self._stamp.entry(batch))]
        else:
            begin, end = self._stamp.around(batch)
            commands = [begin, *self._plain.by_row(batch), end]
        lines = [" ".join(map(_typed, command)) for command in commands]
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

    # --- refusals

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


def _kept(options: RedisOptions, shape: Shape) -> tuple[Hash | String | Members, Template]:
    """How a row is kept, and where. DefinitionError if options and shape do not fit."""
    names, kind = [field.name for field in shape.key], options.value
    if kind == "set" or kind == "zset":
        template = Template(options.key, names, members=True)
        return Members(kind, shape, template, options.ttl), template
    template = Template(options.key, names)
    _check_shape(options, shape)
    only = kind.field if isinstance(kind, OneField) else None
    return Hash(shape) if kind == "hash" else String(shape, only), template


def _reader(kept: Hash | String | Members, shape: Shape, template: Template) -> Reader:
    if isinstance(kept, Members):
        return kept
    return Hashes(kept, shape, template) if isinstance(kept, Hash) else Strings(kept, shape, template)


def _check_shape(options: RedisOptions, shape: Shape) -> None:
    """DefinitionError if options and shape do not fit."""
    only = options.value.field if isinstance(options.value, OneField) else None
    if only is not None and only not in [field.name for field in shape.fields]:
        raise DefinitionError("VALUE", f"`value` names {only!r}, which is not a field")
    if options.value == "hash":
        return
    if refuse_mixed(shape):
        raise DefinitionError(
            "CONFLICTS_UNSUPPORTED",
            "fields of one value cannot have strategies of their own: Redis replaces the value as a whole",
            hint="use `value: hash`, or one `conflicts` for the sync",
        )
    if only is not None and shape.newest:
        raise DefinitionError(
            "CONFLICTS_UNSUPPORTED",
            "newest_wins needs a time beside the field, and this value is one field",
            hint="use `value: hash` or json, or target_wins",
        )
    if shape.flags:
        raise DefinitionError(
            "ROLLBACK_UNSUPPORTED",
            "`rollback: {soft: …}` sets an entry of its own, which only a hash can have",
            hint="use `value: hash`, or `rollback: {keep: …}` alone",
        )


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
    fields = json_object(row[-1].encode(errors="replace")) if row and isinstance(row[-1], str) else {}
    return [encoded(value) for value in row] + [str(value) for value in (*row, *fields.values())]


def _typed(argument: str | bytes | int) -> str:
    text = argument.decode() if isinstance(argument, bytes) else str(argument)
    if re.fullmatch(r"[\w.:%~/-]+", text):
        return text
    return (
        '"' + re.sub(r'[\x00-\x1f"\\\x7f]', lambda m: _ESCAPES.get(m[0]) or f"\\x{ord(m[0]):02x}", text) + '"'
    )


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
