"""Rows as entries of a stream: a script adds those of a batch and its mark in one step, so none comes twice.

The script adds nothing unless the fence in the stamp is that of the run. So a run that wakes up late, or that
meets a server which was emptied or put back, adds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from msgspec import Struct

from retl.destinations.batch import UNKNOWN, WRITTEN, Batch, Outcome, Shape
from retl.destinations.redis import stamp
from retl.destinations.redis.keys import text_of
from retl.destinations.redis.resp import AGAIN, STOP, Command, Refusal, judge
from retl.destinations.redis.values import field_texts, json_fields
from retl.errors import DefinitionError, Systemic, Unavailable

MOST_ROWS = 1000  # of a batch: the server does nothing else meanwhile
ENTRIES = 7000  # names and values of a row, which Lua can unpack

# KEYS: the stamp, the stream. ARGV: the fence, the stamp's entry, what it says afterwards, how many entries
# stay or nothing, and per row the number of its names and values, and those.
APPEND = """\
local stored = redis.call('HGET', KEYS[1], ARGV[2])
if stored then return {'', stored} end
local fence = redis.call('HGET', KEYS[1], 'fence')
if fence ~= ARGV[1] then return {fence and 'fenced' or 'reset'} end
redis.call('HSET', KEYS[1], ARGV[2], '1')
local trim = ARGV[4] == '' and {'*'} or {'MAXLEN', '~', ARGV[4], '*'}
local at, width = 5, #trim
while at <= #ARGV do
  local last = at + ARGV[at]
  local parts = {unpack(trim)}
  for n = at + 1, last do parts[width + n - at] = ARGV[n] end
  local done = redis.pcall('XADD', KEYS[2], unpack(parts))
  if type(done) == 'table' and done.err then
    if at > 5 then return {'', '1'} end
    redis.call('HDEL', KEYS[1], ARGV[2])
    return done
  end
  at = last + 1
end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
return {}"""

# ARGV: the epoch and the run. Returns the fence of another run that is newer.
FENCE = """\
local held = redis.call('HGET', KEYS[1], 'fence')
local mine = ARGV[1] .. ' ' .. ARGV[2]
if held and held ~= mine and string.match(held, '^%d+') + 0 >= ARGV[1] + 0 then return held end
redis.call('HSET', KEYS[1], 'fence', mine)
return false"""

Call = Callable[[Command], Any]


class Appends(Struct, frozen=True):
    """The batches of one lane. `call` and `ask` send a command and return its reply. Without one `call` is
    Ambiguous, and `ask` is Unavailable."""

    stream: str
    shape: Shape
    stamp: stamp.Stamp
    max_len: int | None
    server: str
    call: Call
    ask: Call

    def __post_init__(self) -> None:
        """DefinitionError if the sync does not fit."""
        if 2 * (len(self.shape.key) + len(self.shape.fields)) > ENTRIES:
            raise DefinitionError(
                "TOO_WIDE", f"an entry of a stream has at most {ENTRIES // 2:,} fields here"
            )

    def write(self, batch: Batch, entry: str) -> Outcome:
        """The outcome, also if the batch was written before and the answer was lost."""
        reply = self.call(self.command(batch, entry))
        if isinstance(reply, Refusal):
            code, sentence = judge(reply)
            kind = Unavailable if code in AGAIN else Systemic
            code = code if code in AGAIN or code in STOP or code == "WRONGTYPE" else "STAMP_REFUSED"
            raise kind(code, f"{self.server}: {self.stream}: {sentence}")
        if not reply:
            return Outcome(WRITTEN)
        if reply[0] == b"reset":
            raise Unavailable("TARGET_RESET", f"{self.server} was emptied since this run began")
        if reply[0] == b"fenced":
            raise self._voided()
        return stamp.outcome(reply[1]) or Outcome(UNKNOWN)

    def command(self, batch: Batch, entry: str) -> Command:
        done = f"{stamp.ENDED} 0 {stamp.noted({})}\n"
        most = "" if self.max_len is None else self.max_len
        arguments: list[str | bytes | int] = [f"{batch.epoch} {batch.run_id}", entry, done, most]
        for row in self._rows(batch):
            arguments += [len(row), *row]
        return ("EVAL", APPEND, 2, self.stamp.keys[0], self.stream, *arguments)

    def _rows(self, batch: Batch) -> Iterator[list[str | bytes]]:
        """Per row the names and values of its entry; what is NULL is left out."""
        names, json = [field.name for field in self.shape.key], json_fields(self.shape)
        for row in batch.documents():
            parts: list[str | bytes] = []
            for name, value in zip(names, row, strict=False):
                parts += [name, text_of(value)]
            for name, text in field_texts(row[-1], json).items():
                if text is not None:
                    parts += [name, text]
            yield parts

    def probes(self) -> Sequence[Command]:
        """Commands of which the server tests the rights, and that add nothing."""
        key = self.stamp.keys[0]
        return [
            ("XADD", self.stream, "0-0", "a", "b"),
            ("HGET", key, ""),
            ("EVAL", "return 0", 1, key),
        ]

    def length(self) -> Command:
        """Refused if the key holds something else."""
        return ("XLEN", self.stream)

    def forgot(self, batch: Batch, entry: str) -> bool:
        """Whether a missing entry says nothing of the batch: the stamp that its run began is lost, by
        eviction or because somebody deleted it, and the stream is not."""
        fence = self._answered(("HGET", self.stamp.keys[0], stamp.FENCE)) or b""
        if fence.partition(b" ")[2] == batch.run_id.encode():
            return False
        stored = self._answered(("HGET", self.stamp.keys[0], entry))
        return stored is None and bool(self._answered(self.length()))

    def begin(self, epoch: int, run_id: str) -> None:
        """From now on only this run may add entries. Systemic VOIDED if a newer one has begun."""
        if self._answered(("EVAL", FENCE, 1, self.stamp.keys[0], epoch, run_id)) is not None:
            raise self._voided()

    def _answered(self, command: Command) -> Any:
        reply = self.ask(command)
        if isinstance(reply, Refusal):
            code, sentence = judge(reply)
            raise (Unavailable if code in AGAIN else Systemic)(code, f"{self.server}: {sentence}")
        return reply

    def _voided(self) -> Systemic:
        return Systemic(
            "VOIDED", f"a newer run appends to {self.stream} of {self.server}: this one may no longer write"
        )


def check_shape(shape: Shape, ttl: int | None) -> None:
    """DefinitionError if the sync cannot be appended to a stream."""
    if shape.write != "append":
        raise DefinitionError(
            "STREAM_APPENDS",
            "an entry of a stream cannot be changed or removed by its key, so a stream needs `write: append`",
            hint="set `write: append`, or use `value: json` or hash",
        )
    if ttl is not None:
        raise DefinitionError(
            "STREAM_TTL",
            "a row is appended once, so a stream that expires would lose rows for good",
            hint="use `ttl: none`, and `max_len` to limit the stream",
        )
