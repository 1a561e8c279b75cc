-- Drop the oldest entries that are beyond a length or an age, none that a group has yet to read or to acknowledge.
-- KEYS[1]  the stream
-- ARGV[1]  entries to keep; -1 for no bound
-- ARGV[2]  milliseconds to keep an entry; -1 for no bound
-- ARGV[3]  entries to drop at the most
-- ARGV[4]  1 to let a stream without any group be trimmed as well; its entries nobody has read
-- returns  how many were dropped
local LAST = '18446744073709551615-18446744073709551615'

local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return ms, seq
end

-- Numbers of 64 bits are compared as text: Lua's have 53.
local function is_smaller(one, other)
  if #one ~= #other then
    return #one < #other
  end
  return one < other
end

local function is_before(one, other)
  local ms, seq = parts(one)
  local other_ms, other_seq = parts(other)
  if ms ~= other_ms then
    return is_smaller(ms, other_ms)
  end
  return is_smaller(seq, other_seq)
end

local function behind(id)
  local ms, seq = parts(id)
  local number = tonumber(seq)
  if number >= 9007199254740991 then
    return id
  end
  return ms .. '-' .. string.format('%.0f', number + 1)
end

local function fields(flat)
  local told = {}
  for at = 1, #flat, 2 do
    told[flat[at]] = flat[at + 1]
  end
  return told
end

-- The first id that some group still needs.
local function floor()
  local found = nil
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local group = fields(flat)
    local needed = behind(group['last-delivered-id'])
    if group.pending > 0 then
      local lowest = redis.call('XPENDING', KEYS[1], group.name)[2]
      if lowest and is_before(lowest, needed) then
        needed = lowest
      end
    end
    if not found or is_before(needed, found) then
      found = needed
    end
  end
  return found
end

-- Drop what is before `limit`, so many at the most, and return how many that were.
local function drop(limit, most)
  if most <= 0 then
    return 0
  end
  local first = redis.call('XRANGE', KEYS[1], '-', '(' .. limit, 'COUNT', most + 1)
  if #first == 0 then
    return 0
  end
  return redis.call('XTRIM', KEYS[1], 'MINID', '=', #first > most and first[most + 1][1] or limit)
end

if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
local limit = floor()
if not limit then
  if ARGV[4] ~= '1' then
    return 0
  end
  limit = LAST
end
local keep, age, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if keep < 0 and age < 0 then
  return drop(limit, most)
end
local dropped = 0
if keep >= 0 then
  dropped = drop(limit, math.min(most, redis.call('XLEN', KEYS[1]) - keep))
end
if age >= 0 then
  local now = redis.call('TIME')
  local oldest = string.format('%.0f', math.max(0, now[1] * 1000 + math.floor(now[2] / 1000) - age)) .. '-0'
  dropped = dropped + drop(is_before(oldest, limit) and oldest or limit, most - dropped)
end
return dropped
