"""The script that writes a batch under a condition, in Lua: the server runs it as one step.

Each row comes with the digests that its value must have. The script compares, writes, and records what
became of the batch in the stamp, so nobody can write in between, and a batch whose answer was lost is not
written twice. Of a row that differs it returns the value and changes nothing. It knows no strategy: what is
done about a value that somebody edited is decided outside, in `verdicts`, and sent again for that value.

Digests are 8 bytes of SHA-1, of a string as a whole and of a hash per field: `Value` makes the same ones.

The server does nothing else meanwhile, and most of its time goes into calls of commands and arguments. So the
digests of all rows are one argument, a row of strings has one more, and rows have numbers only if some are
left out.
"""

from __future__ import annotations

NOTHING = "-"  # repeated: the digests of a key that is not there
CHANGED = "!"  # repeated: no value has these digests
REMOVES, SETS = "-", "+"  # what is done to a string

# After ARGV[7]: REMOVES or SETS per row, or nothing if all are set; per row its value.
_STRING = """\
local removed = ARGV[8]
local function held(key)
  local value = call('GET', key)
  if not value then return absent, false end
  if type(value) == 'table' then return '?', value end
  return sub(sha1hex(value), 1, 16), value
end
local function put(key, n)
  if removed ~= '' and sub(removed, n, n) == '-' then return call('UNLINK', key) end
  if ttl == 'none' then return call('SET', key, ARGV[8 + n]) end
  return call('SET', key, ARGV[8 + n], 'EX', ttl)
end
"""

# After ARGV[7]: whether there is a digest of the rest, how many fields are compared, how many are ours, and
# their names; per row how many arguments set it (-1: remove it) and how many clear it, and those.
# `rest` is one more digest over the entries that are not ours: in any order, so they are sorted by their
# digests, which every locale sorts alike.
_HASH = """\
local ours, count = {}, ARGV[10] + 0
for n = 1, count do ours[ARGV[10 + n]] = n end
local compared, rest, starts, at = ARGV[9] + 0, ARGV[8] == '1', {}, 11 + count
for n = 1, #KEYS - 1 do
  starts[n] = at
  at = at + 2 + math.max(ARGV[at] + 0, 0) + ARGV[at + 1]
end
local function held(key)
  local flat = call('HGETALL', key)
  if flat.err then return '?', flat end
  if #flat == 0 then return absent, flat end
  local entries, parts, others = {}, {}, {}
  for n = 1, #flat, 2 do
    entries[flat[n]] = flat[n + 1]
    if rest and not ours[flat[n]] then
      others[#others + 1] = sha1hex(#flat[n] .. ':' .. flat[n] .. flat[n + 1])
    end
  end
  for n = 1, compared do
    local entry = entries[ARGV[10 + n]]
    parts[n] = entry and sub(sha1hex(entry), 1, 16) or 'ffffffffffffffff'
  end
  if rest then
    table.sort(others)
    parts[#parts + 1] = sub(sha1hex(table.concat(others)), 1, 16)
  end
  if #parts == 0 then return absent, flat end
  return table.concat(parts), flat
end
local function put(key, n, flat)
  local at, sets, clears = starts[n] + 2, ARGV[starts[n]] + 0, ARGV[starts[n] + 1] + 0
  if sets < 0 then return call('UNLINK', key) end
  local last = at + sets - 1
  if sets == 0 then
    local gone, left = {}, 0
    for n = last + 1, last + clears do gone[ARGV[n]] = true end
    for n = 1, flat and #flat or 0, 2 do if not gone[flat[n]] then left = left + 1 end end
    if left == 0 then return redis.error_reply('EMPTYHASH') end
  else
    local done = call('HSET', key, unpack(ARGV, at, last))
    if type(done) == 'table' and done.err then return done end
  end
  if clears > 0 then redis.call('HDEL', key, unpack(ARGV, last + 1, last + clears)) end
  if ttl ~= 'none' then redis.call('EXPIRE', key, ttl) end
end
"""

# KEYS: the stamp, and those of the rows. ARGV: the stamp's entry, the round of this batch, its outcome if
# every condition holds, the TTL, characters of a row's digests, those that the rows must have, and the
# numbers of the rows with commas, or nothing if they are 0, 1, 2 and so on.
_HEAD = """\
local stored = redis.call('HGET', KEYS[1], ARGV[1])
local round, ttl, width, expected = ARGV[2] + 0, ARGV[4], ARGV[5] + 0, ARGV[6]
local former = stored and string.match(stored, '^2 (%d+) ')
if stored and (not former or former + 0 >= round) then return {stored} end
if round > 0 and not stored then return {'reset'} end
local call, sha1hex, sub, absent = redis.pcall, redis.sha1hex, string.sub, string.rep('-', width)
"""
_TAIL = """\
redis.call('HSET', KEYS[1], ARGV[1], '1')
local told, left, numbers = {false}, {}, {}
for number in string.gmatch(ARGV[7], '%d+') do numbers[#numbers + 1] = number end
for n = 1, #KEYS - 1 do
  local key = KEYS[n + 1]
  local digests, value = held(key)
  if digests == sub(expected, (n - 1) * width + 1, n * width) then
    local done = put(key, n, value)
    value = type(done) == 'table' and done.err and done or nil
  end
  if value ~= nil then
    left[#left + 1] = numbers[n] or n - 1
    told[#told + 1] = left[#left] + 0
    told[#told + 1] = value
  end
end
redis.call('HSET', KEYS[1], ARGV[1], '2 ' .. ARGV[2] .. ' ' .. ARGV[3] .. '\\n' .. table.concat(left, ','))
return told"""

STRING = _HEAD + _STRING + _TAIL
HASH = _HEAD + _HASH + _TAIL
# Ensures that an attempt is never applied; returns what became of it if that is known already.
VOID = """\
local stored = redis.call('HGET', KEYS[1], ARGV[1])
if not stored then redis.call('HSET', KEYS[1], ARGV[1], '0') end
return stored"""


def width(size: int) -> int:
    """Characters of the digests of a row, which are of this size in bytes. One if nothing is compared."""
    return max(1, 2 * size)
