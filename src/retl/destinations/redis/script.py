"""The script that writes a batch under a condition, in Lua: the server runs it as one step.

Each row comes with the digests that its value must have. The script compares, writes, and records what
became of the batch in the stamp, so nobody can write in between, and a batch whose answer was lost is not
written twice. Of a row that differs it returns the value and changes nothing. It knows no strategy: what is
done about a value that somebody edited is decided outside, in `verdicts`, and sent again for that value.

Digests are 8 bytes of SHA-1, of a string as a whole and of a hash per field: `Value` makes the same ones.
"""

from __future__ import annotations

_STRING = """\
local function held(key)
  local value = redis.pcall('GET', key)
  if not value then return '', false end
  if type(value) == 'table' then return '?', value end
  return string.sub(redis.sha1hex(value), 1, 16), value
end
local function put(key, at, sets, clears)
  if sets < 0 then return redis.pcall('UNLINK', key) end
  if ttl == 'none' then return redis.pcall('SET', key, ARGV[at]) end
  return redis.pcall('SET', key, ARGV[at], 'EX', ttl)
end
"""

# `rest` is one more digest over the entries that are not ours: in any order, so they are sorted by their
# digests, which every locale sorts alike.
_HASH = """\
local ours, count = {}, ARGV[7] + 0
for n = 1, count do ours[ARGV[first + n - 1]] = n end
local compared, rest, names = ARGV[6] + 0, ARGV[5] == '1', first
first = first + count
local function held(key)
  local flat = redis.pcall('HGETALL', key)
  if flat.err then return '?', flat end
  if #flat == 0 then return '', false end
  local entries, parts, others = {}, {}, {}
  for n = 1, #flat, 2 do
    entries[flat[n]] = flat[n + 1]
    if rest and not ours[flat[n]] then
      others[#others + 1] = redis.sha1hex(#flat[n] .. ':' .. flat[n] .. flat[n + 1])
    end
  end
  for n = 1, compared do
    local entry = entries[ARGV[names + n - 1]]
    parts[n] = entry and string.sub(redis.sha1hex(entry), 1, 16) or 'ffffffffffffffff'
  end
  if rest then
    table.sort(others)
    parts[#parts + 1] = string.sub(redis.sha1hex(table.concat(others)), 1, 16)
  end
  return table.concat(parts), flat
end
local function put(key, at, sets, clears, flat)
  if sets < 0 then return redis.pcall('UNLINK', key) end
  local last = at + sets - 1
  if sets == 0 then
    local gone, left = {}, 0
    for n = last + 1, last + clears do gone[ARGV[n]] = true end
    for n = 1, flat and #flat or 0, 2 do if not gone[flat[n]] then left = left + 1 end end
    if left == 0 then return redis.error_reply('EMPTYHASH') end
  else
    local done = redis.pcall('HSET', key, unpack(ARGV, at, last))
    if type(done) == 'table' and done.err then return done end
  end
  if clears > 0 then redis.call('HDEL', key, unpack(ARGV, last + 1, last + clears)) end
  if ttl ~= 'none' then redis.call('EXPIRE', key, ttl) end
end
"""

# ARGV: the stamp's entry, the round of this batch, its outcome if every condition holds, the TTL; for a hash
# whether there is a digest of the rest, how many fields are compared, how many are ours, and their names;
# per key its row, the digests it must have, how many arguments set it (-1: remove it) and how many clear it,
# and those.
_HEAD = """\
local stored = redis.call('HGET', KEYS[1], ARGV[1])
local round, ttl, first = ARGV[2] + 0, ARGV[4], 8
local former = stored and string.match(stored, '^2 (%d+) ')
if stored and (not former or former + 0 >= round) then return {stored} end
if round > 0 and not stored then return {'reset'} end
"""
_TAIL = """\
redis.call('HSET', KEYS[1], ARGV[1], '1')
local told, left, at = {false}, {}, first
for n = 2, #KEYS do
  local sets, clears = ARGV[at + 2] + 0, ARGV[at + 3] + 0
  local digests, value = held(KEYS[n])
  if digests == ARGV[at + 1] then
    local done = put(KEYS[n], at + 4, sets, clears, value)
    value = type(done) == 'table' and done.err and done or nil
  end
  if value ~= nil then
    left[#left + 1] = ARGV[at]
    told[#told + 1] = tonumber(ARGV[at])
    told[#told + 1] = value
  end
  at = at + 4 + math.max(sets, 0) + clears
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
