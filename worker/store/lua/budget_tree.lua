-- Read and change what a tree of subjects has spent.
-- Goes before budget_reserve.lua, budget_settle.lua, budget_load.lua and budget_peek.lua.
-- KEYS[1]  the tree: a hash. `run` is the run of the server it was built on, `at` the latest moment it was changed at,
--          `<period>:<subject>` a window, `call:<id>` a call
-- KEYS[2]  its calls by the moment something is to be done: their lease ends, or they are forgotten
-- returns  nothing by itself
--
-- A window is a list of sub-buckets {number, spent requests, tokens, micros, and how much of each is still open}. A minute and an
-- hour slide over sixty closed sub-buckets and the one that is open; a day and a month are one each, in UTC.
-- A call is {state, estimate, places, actual}: open or restored (out of Postgres) while it is reserved, then settled, released or
-- returned (by the end of its lease). Its places are {period, subject, number} of each sub-bucket it counts in, in one list.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- Microseconds for which the end of a call is remembered, so that whoever repeats it does no harm.
local REMEMBERED = 3600 * 1000000
-- Milliseconds a tree lives on after its last call: longer than its longest window.
local LIFE = 32 * 86400 * 1000
-- Calls that one script takes back or forgets at most: a server that is busy with them for longer keeps everybody waiting.
local AT_ONCE = 500
-- Microseconds by which a clock may be set back before what was counted by it is in doubt.
local SET_BACK = 1000000
local SECOND, MINUTE, DAY = 1000000, 60000000, 86400000000

-- Months since the year 0 of a day since 1970, and the first day of a month: the proleptic Gregorian calendar, its years begun in
-- March so that the leap day comes last.
local function month_of(day)
  local since = day + 719468
  local era = math.floor(since / 146097)
  local rest = since - era * 146097
  local year = math.floor((rest - math.floor(rest / 1460) + math.floor(rest / 36524) - math.floor(rest / 146096)) / 365)
  local inside = rest - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  return (era * 400 + year) * 12 + math.floor((5 * inside + 2) / 153) + 2
end

local function first_day(month)
  local year, inside = math.floor((month - 2) / 12), (month - 2) % 12
  local era = math.floor(year / 400)
  local of = year - era * 400
  return era * 146097 + of * 365 + math.floor(of / 4) - math.floor(of / 100) + math.floor((153 * inside + 2) / 5) - 719468
end

-- How a period numbers its sub-buckets, how many closed ones count, and when one stops to count.
local PERIODS = {
  minute = {math.floor(now / SECOND), 60, function(number) return (number + 61) * SECOND end},
  hour = {math.floor(now / MINUTE), 60, function(number) return (number + 61) * MINUTE end},
  day = {math.floor(now / DAY), 0, function(number) return (number + 1) * DAY end},
  month = {month_of(math.floor(now / DAY)), 0, function(number) return first_day(number + 1) * DAY end},
}

-- Begin anew on another run of the server: what it remembers may lack what was admitted last. And when the clock was set back: while
-- it ran ahead, days and minutes may have been dropped that are not over.
local function be_sound()
  local info = redis.pcall('INFO', 'server')
  local run = type(info) == 'string' and string.match(info, 'run_id:(%w+)') or 'unknown'
  local known, at = unpack(redis.call('HMGET', KEYS[1], 'run', 'at'))
  if known ~= run or tonumber(at or 0) > now + SET_BACK then
    redis.call('DEL', KEYS[1], KEYS[2])
    redis.call('HSET', KEYS[1], 'run', run)
    redis.call('PEXPIRE', KEYS[1], LIFE)
  end
end

-- A window with its sums, or nil where it is not known; what is over does not count any more.
local function window_of(period, subject)
  local raw = redis.call('HGET', KEYS[1], period .. ':' .. subject)
  if not raw then
    return nil
  end
  local number, closed = PERIODS[period][1], PERIODS[period][2]
  local window = {field = period .. ':' .. subject, period = period, buckets = {}, spent = {0, 0, 0}, open = {0, 0, 0}}
  for _, bucket in ipairs(cmsgpack.unpack(raw)) do
    if bucket[1] >= number - closed then
      table.insert(window.buckets, bucket)
      for i = 1, 3 do
        window.spent[i] = window.spent[i] + bucket[1 + i]
        window.open[i] = window.open[i] + bucket[4 + i]
      end
    end
  end
  return window
end

local function write(field, buckets)
  redis.call('HSET', KEYS[1], field, cmsgpack.pack(buckets))
end

-- Add to one sub-bucket of a window: what is spent, and what of it is open.
local function add(period, subject, number, spent, open)
  local window = window_of(period, subject)
  if not window or number < PERIODS[period][1] - PERIODS[period][2] then
    return
  end
  local found
  for _, bucket in ipairs(window.buckets) do
    if bucket[1] == number then
      found = bucket
    end
  end
  if not found then
    found = {number, 0, 0, 0, 0, 0, 0}
    table.insert(window.buckets, found)
  end
  for i = 1, 3 do
    found[1 + i] = found[1 + i] + spent[i]
    found[4 + i] = found[4 + i] + open[i]
  end
  write(window.field, window.buckets)
end

local function add_call(places, spent, open)
  for i = 1, #places, 3 do
    add(places[i], places[i + 1], places[i + 2], spent, open)
  end
end

local function call_of(id)
  local raw = redis.call('HGET', KEYS[1], 'call:' .. id)
  return raw and cmsgpack.unpack(raw)
end

local function keep_call(id, call, until_us)
  redis.call('HSET', KEYS[1], 'call:' .. id, cmsgpack.pack(call), 'at', string.format('%.0f', now))
  redis.call('ZADD', KEYS[2], string.format('%.0f', until_us), id)
  redis.call('PEXPIRE', KEYS[1], LIFE)
  redis.call('PEXPIRE', KEYS[2], LIFE)
end

local function forget_call(id)
  redis.call('HDEL', KEYS[1], 'call:' .. id)
  redis.call('ZREM', KEYS[2], id)
end

local function negative(amounts)
  return {-amounts[1], -amounts[2], -amounts[3]}
end

-- Take back what the dead had reserved, and forget calls that ended long ago.
local function sweep()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now), 'LIMIT', 0, AT_ONCE)) do
    local call = call_of(id)
    if call and (call[1] == 'open' or call[1] == 'restored') then
      add_call(call[3], negative(call[2]), negative(call[2]))
      call[1] = 'returned'
      keep_call(id, call, now + REMEMBERED)
    else
      forget_call(id)
    end
  end
end

be_sound()
sweep()
