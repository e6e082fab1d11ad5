"""Redis and Valkey: every row is one key, one member of a set, or one entry of a stream.

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
| `value: stream` | a stream of all rows: each is an entry, see below |
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

## Streams

```yaml
key: [event_id]
destination: {type: redis, key: events, value: stream, ttl: none, max_len: 1000000}
write: append
first_run: send
```

Each row is one entry (XADD) with the key and the fields as names and values; NULL has none. The server makes
its id. `key` is a text without placeholders. Entries are in the order of the rows, and those of others stay.
A script adds a batch of at most 1,000 rows and its mark in one step: each row comes once, whatever becomes of
an answer or a run. The stamp also has a fence, so a run that wakes up after another has begun adds nothing.

An entry cannot be changed or removed by its key, so there are no deletes, and `retl erase` says that a person
must do it. With `max_len` the server removes the oldest entries when there are more, a little later than that
(MAXLEN ~). A TTL is refused. A value of another kind under the key stays, and the run fails (`WRONGTYPE`).

## The account

It needs, on the keys of the template and on `retl:stamp:*`: `+set +unlink +mget` (json, field), or `+eval
+hset +hdel +expire +exists +unlink +hmget` (hash), or `+sadd +srem +sismember` (set) or `+zadd +zrem
+zscore` (zset) and for both `+multi +discard`, with a TTL also `+eval +expire`, or `+eval +xadd +xlen +hget`
(stream); and always `+hset +hincrby +hgetall +hdel +select +ping`. `retl state rebuild` also needs `+pttl`,
and with `--take-ownership` `+scan` and for members `+sscan` or `+zscan`. `check` sends the commands that add
a member between MULTI and DISCARD: the server tests the rights and runs nothing.

A user of an ACL is `user` with its `password`. With `tls: true` the server is verified; `tls_cert_file` and
`tls_key_file` are shown to a server that asks for a certificate (`tls-auth-clients`).

## Sentinel

With `sentinels: [sentinel-1:26379, …]` and `service: NAME` instead of `host` and `port`, each new
connection asks the Sentinels for the primary, in their order, and tests that it is one. `tls` and its files
are for both; `sentinel_password` is theirs. The first Sentinel and the service name the target: another
first one is another target. During a failover a run waits and tries again, as its `retry` allows. Writes
that the new primary lacks, because replication lagged, are noticed by the stamp, before a run ends or by
the next run.

## Cluster

```yaml
connections:
  cache: {type: redis, cluster: [redis-1:6379, redis-2:6379], password: "${REDIS_PASSWORD}", tls: true}
```

`cluster` lists some nodes, instead of `host` and `port`. The first that answers names all others; the first
in the list names the target, so another first one is another target. Each row is sent to the server that has
the slot of its key, and all servers work at the same time. Slots that move during a run are followed (MOVED,
ASK). The account also needs `+cluster|slots +asking`, and to list keys `+cluster|nodes`, on every server.

Each server can lose rows alone, in a restart or a failover. So the stamp is 128 hashes, one in each 128th
part of the slots, and each batch is marked in all of them: every server has some, and they move with the
slots. A batch counts only if all of them have it. A server with so few slots that it has no part of the stamp
gets no rows: the run waits for it, as `retry` allows (`TRYAGAIN`, `CLUSTER_SLOTS`). So a cluster may have up
to 64 equal primaries. Not noticed is a replica that takes over while slots move to its primary, and lacks the
last of the moved keys and no part of the stamp.

`conflicts` and `rollback` are refused in a cluster, because no step can span slots. Keys are not listed while
slots move (`CLUSTER_MOVING`): some would be missed. A set of many rows is one key, so it is on one server.

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

Vector sets are not written. A string replaces any value of its key. The TTL of a hash is for the whole key:
syncs that share a hash share it. With an eviction policy other than noeviction the server may remove rows,
and retl detects that only if the stamp is removed too: `retl check` warns of it, if the account also has
`+info`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from string import Formatter
from typing import Any

import msgspec

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
from retl.destinations.redis import eviction
from retl.destinations.redis.appends import Appends
from retl.destinations.redis.assumed import Assumed
from retl.destinations.redis.attempts import resolved
from retl.destinations.redis.cluster import Cluster, Mark, moving
from retl.destinations.redis.conditional import LANES, MOST_KEPT, MOST_ROWS, Conditional
from retl.destinations.redis.connection import RedisConnection, wire
from retl.destinations.redis.fitness import kept_as, reader_of, stamp_tags
from retl.destinations.redis.keys import encoded
from retl.destinations.redis.members import Members
from retl.destinations.redis.options import RedisOptions
from retl.destinations.redis.plain import WRITE_HASH, Plain
from retl.destinations.redis.reading import Reading, json_object
from retl.destinations.redis.resp import (
    AGAIN,
    CHUNK,
    STOP,
    Command,
    Packed,
    Refusal,
    Wire,
    advice,
    judge,
    key_of,
    pack,
    why,
)
from retl.destinations.redis.slots import slot
from retl.destinations.redis.stamp import (
    ENDED,
    NOT_APPLIED,
    Stamp,
    ended,
    entries_of_others,
    fenced,
)
from retl.destinations.redis.values import Hash
from retl.errors import Ambiguous, Poisoned, Systemic, Unavailable
from retl.model import is_loopback
from retl.net.gate import Gate

ABSENT_KEY = "retl:stamp:"  # a key that never exists


class Redis(Destination[RedisOptions]):
    Connection = RedisConnection
    Options = RedisOptions
    keeps_marks = True
    shards = True

    def __init__(self, options: RedisOptions, shape: Shape, gate: Gate | None = None) -> None:
        super().__init__(options, shape, gate)
        clustered = bool(options.connection.cluster)
        self._kept, self._template = kept_as(options, shape)
        self._plain = Plain(self._kept, shape, self._template, options.ttl)
        within = stamp_tags(options.value, self._template) if clustered else None
        self._stamp = Stamp(shape, options.key, within)
        self._attempts: dict[str, int] = {}  # of batches that a script writes, without an answer
        self._wire = wire(options.connection)
        reader = reader_of(self._kept, shape, self._template, clustered=clustered)
        self._reading = Reading(reader, self._template, options.ttl, self._look, self._servers)
        self._conditional: Conditional | None = None
        self._appends: Appends | None = None
        if options.value == "stream":
            self._appends = self._appending()
        elif shape.conditional and not isinstance(self._kept, Members):
            self._conditional = Conditional(
                self._kept,
                self._template,
                self._stamp,
                options.ttl,
                self._wire.server,
                self._ask,
                Assumed.of(self._kept, shape, self._template),
            )
        self._scripted = self._appends or self._conditional
        self.capabilities = self._able(clustered=clustered)

    def _appending(self) -> Appends:
        options, shape = self.options, self.shape
        key = self._template.key([])
        server, call, ask = self._wire.server, self._call, self._ask_one
        return Appends(key, shape, self._stamp, options.max_len, server, call, ask)

    def _able(self, *, clustered: bool) -> Capabilities:
        options, shape, appends = self.options, self.shape, self._appends is not None
        compares = not (clustered or appends or isinstance(self._kept, Members))
        most = MOST_KEPT if shape.images else MOST_ROWS
        return Capabilities(
            object=self.place(options, shape.write),
            modes=frozenset({"append"} if appends else {"upsert", "delete"}),
            idempotent=not appends,
            form="documents",
            shaping=options.model_dump(include={"value", "ttl"}),
            readable=not appends,
            entries=options.value == "hash",
            nulls_keep=options.value == "hash",
            expires=options.ttl,
            resolves=self._scripted is not None,
            max_rows=most if self._scripted is not None else None,
            lanes=LANES if self._conditional is not None else 1,
            images=compares,
            digested=self._conditional.value.digested if self._conditional is not None else None,
            compares="atomic" if compares else "no",
        )

    @classmethod
    def forgets(cls, options: RedisOptions) -> bool:
        return options.value != "stream"

    @classmethod
    def comparable(cls, options: RedisOptions) -> bool:
        return options.value != "stream"

    @classmethod
    def place(cls, options: RedisOptions, write: WriteMode) -> str:
        """The first of the Sentinels, or of the cluster's nodes, names it, because the primary's address
        changes."""
        to = options.connection
        host, port = to.addresses[0] if to.addresses else (to.host, to.port)
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
        detects that. The servers that are primaries now are asked, not those of before."""
        if self._wire.follows:
            self._wire.close()
        stamps = self._stamp.keys
        if isinstance(self._wire, Cluster) and self._appends is None:
            self._wire.require(map(slot, stamps))
        if isinstance(self._kept, Members):
            self._raise_if_stopped(self._wire.probe([("MULTI",), ("DISCARD",)]))  # else they would be done
        self._raise_if_stopped(self._wire.probe(self._probes()))
        if self._appends is not None:
            self._raise_if_unfit(self._wire.ask([self._appends.length()])[0])
        asked: list[Command] = [("HSET", key, "a", 1, "odd") for key in stamps]
        asked += [("HGETALL", key) for key in (self._stamp.ledgers, *stamps)]
        replies = self._wire.ask(asked)
        self._raise_if_stopped(replies)
        signed, *known = replies[len(stamps) :]
        for reply in known:
            if isinstance(reply, Refusal):  # it could not be read, which is no evidence of a loss
                code, sentence = judge(reply)
                kind = Unavailable if code in AGAIN else Systemic
                raise kind(code, f"{self._wire.server}: {self._stamp.key}: {sentence}")
        epoch = fenced(known[0])
        others, taken = self._stamp.others(signed), self._stamp.taken(signed)
        return Trace(ended(known), epoch=epoch, strangers=others, taken=taken)

    def _raise_if_unfit(self, reply: Any) -> None:
        """Systemic, or Unavailable, if the key of the stream cannot be used: it holds something else."""
        if isinstance(reply, Refusal):
            code, sentence = judge(reply)
            kind = Unavailable if code in AGAIN else Systemic
            raise kind(code, f"{self._wire.server}: {self.options.key}: {sentence}")

    def _probes(self) -> list[Command]:
        row, stamp = ["probe"] * len(self.shape.key), self._stamp.keys[0]
        key = self._template.key(row)
        probes: list[Command] = [("SET", key, "", "EX", 0), ("UNLINK", ABSENT_KEY)]
        if isinstance(self._kept, Hash):
            probes[0:1] = [("HSET", key, "a", "b", "odd"), ("EVAL", WRITE_HASH, 1, ABSENT_KEY, 1, 0, "field")]
        elif isinstance(self._kept, Members):
            probes = self._kept.probes(row)
        elif self._appends is not None:
            probes = [*self._appends.probes()]
        probes += [("HSET", stamp, "a", 1, "odd"), ("HDEL", stamp, "")]
        if self._conditional is not None:
            probes += [self._conditional.value.look(key), ("HGET", stamp, ""), ("EVAL", "return 0", 0)]
            probes += [("MGET", key)] if self._conditional.looks_at_once else []
        return [*probes, ("HINCRBY", stamp, "", "no number")]

    def prepare(self, visit: Visit) -> None:
        """Signs for this ledger, and removes the stamps of earlier runs, except those that the ledger will
        ask for. Of a stream it also sets the fence: Systemic VOIDED if a newer run has begun."""
        if self._appends is not None:
            self._appends.begin(visit.epoch, visit.run_id)
        keys = self._stamp.keys
        ledgers, *held = self._wire.ask([("HGETALL", key) for key in (self._stamp.ledgers, *keys)])
        commands = self._stamp.signing(ledgers)
        for key, reply in zip(keys, held, strict=True):
            if old := entries_of_others(reply, frozenset({visit.run_id, *visit.keep})):
                commands.append(("HDEL", key, *old))
        if commands:
            self._wire.ask(commands)

    # --- write and resolve

    def write(self, batch: Batch) -> Answer:
        try:
            return self._write(batch) if self._scripted is None else self._run(batch, self._scripted)
        except (UnicodeEncodeError, msgspec.DecodeError):
            raise Poisoned("NOT_UNICODE", "a value is not valid Unicode") from None

    def _write(self, batch: Batch) -> Outcome:
        rows, stamps = self._sent(batch)
        self._raise_if_stopped(rows, batch)
        self._raise_if_stopped(stamps)
        refused = self._refused(rows, batch) | self._plain.refused(batch)
        if len(refused) == len(batch) and all(result.kind == Kind.RETRY for result in refused.values()):
            raise Unavailable(refused[0].code or "", f"{self._wire.server}: {refused[0].reason}")
        for reply in stamps:
            if isinstance(reply, Refusal):
                code, sentence = judge(reply)
                kind, code = (Unavailable, code) if code in AGAIN else (Systemic, "STAMP_REFUSED")
                raise kind(code, f"{self._wire.server} does not keep {self._stamp.key}: {sentence}")
        if any(end != ENDED for end in stamps[1::2]):
            raise Unavailable("TARGET_RESET", f"{self._wire.server} was emptied while the batch was written")
        return Outcome(WRITTEN, refused)

    def _sent(self, batch: Batch) -> tuple[list[Any], list[Any]]:
        """The replies to the rows of a batch; and to its marks, for each its beginning and end."""
        marks = self._stamp.around(batch)
        if not isinstance(self._wire, Cluster):
            ((begin, end),) = marks
            first, *rows, last = self._ask([begin, *self._plain.commands(batch), end], writes=True)
            return rows, [first, last]
        slots, lines = self._plain.by_slot(batch)
        given = [Mark(slot(key), *mark) for key, mark in zip(self._stamp.keys, marks, strict=True)]
        try:
            rows, stamps = self._wire.exchange(slots, lines, given, self._count)
        except OSError as error:
            raise self._unanswered(error) from error
        return rows, [reply for both in stamps for reply in both]

    def _run(self, batch: Batch, scripted: Conditional | Appends) -> Outcome:
        """An attempt whose answer was lost is resolved before another: its rows may be written already."""
        if batch.id in self._attempts:
            known = self.resolve(batch, None)
            if known != Outcome(NOT_APPLIED):
                return known
        attempt = self._attempts.setdefault(batch.id, 0)
        found = scripted.write(batch, self._stamp.entry(batch, attempt))
        del self._attempts[batch.id]
        return found

    def resolve(self, batch: Batch, handle: str | None, *, act: bool = True) -> Outcome:
        """The outcome of a batch that a script writes, by its entry in the stamp. Without an entry nothing
        was applied; if it may act, nothing of it ever will be. UNKNOWN if of a stream only the stamp is
        lost."""
        if self._scripted is None:
            return Outcome(UNKNOWN)
        if self._appends is not None and self._appends.forgot(batch, self._stamp.entry(batch)):
            return Outcome(UNKNOWN)
        attempt = self._attempts.get(batch.id, 0)
        known, attempt = resolved(self._stamp, self._wire.server, self._ask_one, batch, attempt, act=act)
        if known is None:
            if act:
                self._attempts[batch.id] = attempt
            return Outcome(NOT_APPLIED)
        self._attempts.pop(batch.id, None)
        return known

    def _ask_one(self, command: Command) -> Any:
        return self._wire.ask([command])[0]

    def _call(self, command: Command) -> Any:
        """The reply to a command that must not be sent twice."""
        if isinstance(self._wire, Wire):
            return self._ask([command], writes=True)[0]
        try:
            return self._wire.exchange([slot(key_of(command))], [pack(command)], (), self._count)[0][0]
        except OSError as error:
            raise self._unanswered(error) from error

    def _ask(self, commands: Iterable[Command | Packed], *, writes: bool = False) -> list[Any]:
        """Of a single server."""
        assert isinstance(self._wire, Wire)
        if not writes:
            return self._wire.ask(commands)
        try:
            return self._wire.exchange(commands, self._count)
        except OSError as error:
            raise self._unanswered(error) from error

    def _unanswered(self, error: OSError) -> Ambiguous:
        return Ambiguous("NO_ANSWER", f"{self._wire.server} did not answer: {why(error)}")

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

    def _servers(self) -> Iterator[Callable[[Sequence[Command]], list[Any]]]:
        """`_look` of every server that stores rows. Unavailable CLUSTER_MOVING if slots move meanwhile."""
        if not isinstance(self._wire, Cluster):
            yield self._look
            return
        before = self._wire.steady()
        for one in self._wire.each():
            yield partial(self._look, server=one)
        if self._wire.steady() != before:
            raise moving(self._wire.server)

    def _look(self, commands: Sequence[Command], *, server: Wire | None = None) -> list[Any]:
        """The replies to commands that change nothing; a refusal among them concerns one key alone."""
        replies = (server or self._wire).ask(commands)
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
        elif self._appends is not None:
            commands = [self._appends.command(batch, self._stamp.entry(batch))]
        else:
            begins, ends = zip(*self._stamp.around(batch), strict=True)
            commands = [*begins, *self._plain.by_row(batch), *ends]
        lines = [" ".join(map(_typed, command)) for command in commands]
        return "\n".join(lines).encode(errors="backslashreplace")

    def notes(self) -> list[str]:
        """What the server does with rows without TTL when its memory is full, if the account may know."""
        if self.options.ttl is not None:
            return []
        found = [note for one in self._wire.each() for note in eviction.notes(eviction.policy(one))]
        return list(dict.fromkeys(found))

    def close(self) -> None:
        self._wire.close()

    # --- refusals

    def _raise_if_stopped(self, replies: Sequence[Any], batch: Batch | None = None) -> None:
        """Systemic if a reply says that no command can succeed. `batch`: what was sent."""
        for n, reply in enumerate(replies):
            if isinstance(reply, Refusal) and judge(reply)[0] in STOP:
                row = batch.documents()[n] if batch is not None and n < len(batch) else ()
                code, sentence = judge(reply, _values(row))
                raise Systemic(code, f"{self._wire.server}: {sentence}", hint=advice(code))

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
