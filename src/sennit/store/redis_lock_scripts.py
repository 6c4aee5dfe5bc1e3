"""The moves of `redis_locks`, in Lua: each is one script, and Redis runs one script at a time.

KEYS of every script: the newest token of a name, its holders (hash by token), its line (list), the set of names in use.

    ask ─► RPUSH line ─► serve: while the first of the line fits beside the holders ─► LPOP, a token, HSET holders
                                                                                        └─► RPUSH to the ear of its process

A *token* is `max(the last one + 1, the server's clock in µs)`. With that it still grows after Redis has lost its data, as long
as that clock does not go back; a plain counter would begin again at 1, and then the store would refuse every new holder.
Source of the check by tokens: M. Kleppmann, "How to do distributed locking" (2016).
"""

from __future__ import annotations

from typing import Final

_KEEP_S: Final = 7 * 86_400
"""How long a name is remembered that nobody uses. Its next token is from the clock then, which is greater."""

# What a holder is: id, process, owner, shared, n_max, asked, granted, until.   Who waits: id, process, owner, shared, n_max, ttl, asked.
_PRELUDE: Final = f"""
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function text(n) return string.format('%.0f', n) end

local function tell(process, message)
  local ear = 'sennit:locks:ear:' .. process
  redis.call('RPUSH', ear, cmsgpack.pack(message))
  redis.call('EXPIRE', ear, {_KEEP_S})
end

local function holders()
  local found, all = {{}}, redis.call('HGETALL', KEYS[2])
  for i = 1, #all, 2 do
    local holder = cmsgpack.unpack(all[i + 1])
    if holder[8] <= now then
      redis.call('HDEL', KEYS[2], all[i])
    else
      found[all[i]] = holder
    end
  end
  return found
end

local function next_token()
  local token = math.max(tonumber(redis.call('GET', KEYS[1]) or '0') + 1, now)
  redis.call('SET', KEYS[1], text(token), 'EX', {_KEEP_S})
  return token
end

-- Let all through that come first and fit. Returns the grant of `mine`, and until when those who wait have to.
local function serve(mine, was_until)
  local n, all_shared, over, granted = 0, true, 0, false
  for _, holder in pairs(holders()) do
    n = n + 1
    all_shared = all_shared and holder[4] == 1
    if over == 0 or holder[8] < over then over = holder[8] end
  end
  while true do
    local first = redis.call('LINDEX', KEYS[3], 0)
    if not first then break end
    local id, process, owner, shared, n_max, ttl, asked = unpack(cmsgpack.unpack(first))
    if n > 0 and not (shared == 1 and all_shared and (n_max == 0 or n < n_max)) then
      if was_until and over < was_until then tell(process, {{0}}) end
      break
    end
    redis.call('LPOP', KEYS[3])
    local token, till = next_token(), now + ttl
    redis.call('HSET', KEYS[2], text(token), cmsgpack.pack({{id, process, owner, shared, n_max, asked, now, till}}))
    redis.call('EXPIRE', KEYS[2], {_KEEP_S})
    if id == mine then
      granted = {{token, now, till}}
    else
      tell(process, {{id, token, now, till, asked}})
    end
    n, all_shared = n + 1, all_shared and shared == 1
    if over == 0 or till < over then over = till end
  end
  if n == 0 then redis.call('SREM', KEYS[4], ARGV[1]) end
  return granted, over
end
"""

# Each takes the name first, and returns the server's clock first.
ASK: Final = (
    _PRELUDE
    + f"""
local id, process, owner, shared, n_max, ttl, waits = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]),
  tonumber(ARGV[7]), ARGV[8] == '1'
redis.call('SADD', KEYS[4], ARGV[1])
redis.call('RPUSH', KEYS[3], cmsgpack.pack({{id, process, owner, shared, n_max, ttl, now}}))
redis.call('EXPIRE', KEYS[3], {_KEEP_S})
local granted, over = serve(id)
if granted then return {{now, 1, granted[1], granted[2], granted[3]}} end
if waits then return {{now, 0, over}} end
redis.call('RPOP', KEYS[3])
local owners = {{}}
for _, holder in pairs(holders()) do owners[#owners + 1] = holder[3] end
return {{now, -1, table.concat(owners, ', ')}}
"""
)

EXTEND: Final = (
    _PRELUDE
    + """
local raw = redis.call('HGET', KEYS[2], ARGV[2])
if not raw then return {now, 0} end
local holder = cmsgpack.unpack(raw)
local was = holder[8]
if was <= now then return {now, 0} end
holder[8] = now + tonumber(ARGV[3])
redis.call('HSET', KEYS[2], ARGV[2], cmsgpack.pack(holder))
if holder[8] < was then
  local first = redis.call('LINDEX', KEYS[3], 0)
  if first then tell(cmsgpack.unpack(first)[2], {0}) end
end
return {now, 1, holder[4], holder[6], holder[7], holder[8]}
"""
)

RELEASE: Final = (
    _PRELUDE
    + """
local raw = redis.call('HGET', KEYS[2], ARGV[2])
local over = raw and cmsgpack.unpack(raw)[8] or 0
if over <= now then return {now, 0} end
redis.call('HDEL', KEYS[2], ARGV[2])
serve(nil, over)
return {now, 1}
"""
)

GIVE_UP: Final = (
    _PRELUDE
    + """
for _, raw in ipairs(redis.call('LRANGE', KEYS[3], 0, -1)) do
  if cmsgpack.unpack(raw)[1] == ARGV[2] then
    redis.call('LREM', KEYS[3], 1, raw)
    serve(nil)
    return {now, 1}
  end
end
for token, holder in pairs(holders()) do
  if holder[1] == ARGV[2] then
    redis.call('HDEL', KEYS[2], token)
    serve(nil, holder[8])
    return {now, 1}
  end
end
return {now, 0}
"""
)

# A lock may be over: pass it on; return until when the next one has to wait.
POKE: Final = (
    _PRELUDE
    + """
local _, over = serve(nil)
return {now, over}
"""
)

SEIZE: Final = (
    _PRELUDE
    + """
local n, over = 0, 0
for token, holder in pairs(holders()) do
  n, over = n + 1, math.max(over, holder[8])
  redis.call('HDEL', KEYS[2], token)
end
if redis.call('EXISTS', KEYS[1]) == 1 then
  next_token()
  serve(nil, over)
end
return {now, n}
"""
)

LOOK: Final = (
    _PRELUDE
    + """
local held = {}
for token, holder in pairs(holders()) do
  held[#held + 1] = {token, holder[1], holder[3], holder[4], holder[5], holder[7], holder[8]}
end
local line = {}
for _, raw in ipairs(redis.call('LRANGE', KEYS[3], 0, -1)) do
  local id, process, owner, shared, n_max, ttl, asked = unpack(cmsgpack.unpack(raw))
  line[#line + 1] = {id, owner, shared, n_max, asked}
end
return {now, redis.call('GET', KEYS[1]) or '0', cmsgpack.pack(held), cmsgpack.pack(line)}
"""
)

NAMES: Final = _PRELUDE + "return {now, redis.call('SMEMBERS', KEYS[4])}"

WAKE: Final = _PRELUDE + "tell(ARGV[2], {0}) return {now}"

SCRIPTS: Final = (ASK, EXTEND, RELEASE, GIVE_UP, POKE, SEIZE, LOOK, NAMES, WAKE)
