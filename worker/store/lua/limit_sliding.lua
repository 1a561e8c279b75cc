-- Count a sliding window: sixty closed sub-buckets and the open one, in one string of 72 bytes.
-- Goes before limit_one.lua or limit_all.lua. What a sub-bucket holds counts until the whole of it is older than the window, so no window of this length
-- ever holds more than the limit; room comes back a sixtieth of the window late at the most.
-- The string: number of the open sub-bucket, its sum, what a unit stands for, and a byte of units for each of the closed ones, oldest
-- first. What does not fill a unit when a sub-bucket closes moves on into the next.
-- sliding_look  asks whether a cost fits; when it is only asked in order to take, the moments are left out
-- sliding_take  charges it
-- returns  whether it fits, what is left, the microseconds until it fits and until all is free, and what to hand to sliding_take
local RING = 60
local HEAD = '<I5I4I3'
local HEAD_BYTES = 12
local EMPTY = string.rep('\0', RING)

local function sliding_sum(ring)
  if ring == EMPTY then
    return 0
  end
  local sum = 0
  for _, units in ipairs({string.byte(ring, 1, RING)}) do
    sum = sum + units
  end
  return sum
end

-- The ring in units of another size, as after a change of the limit: rounded up, and 255 is more than any limit has.
local function sliding_scaled(ring, from, to)
  local units = {string.byte(ring, 1, RING)}
  for i = 1, RING do
    units[i] = math.min(255, math.ceil(units[i] * from / to))
  end
  return string.char(unpack(units))
end

local function sliding_write(key, period, number, open, unit, ring)
  local life = math.ceil((period + period / RING) / 1000)
  redis.call('SET', key, struct.pack(HEAD, number, open, unit) .. ring, 'PX', life)
  return life
end

-- The ring after so many sub-buckets have passed: the open one closes, and as many of the oldest go as have come.
local function sliding_passed(ring, open, unit, passed)
  if passed > RING then
    return EMPTY, 0
  end
  local full = math.min(255, math.floor(open / unit))
  return string.sub(ring, passed + 1) .. string.char(full) .. string.rep('\0', passed - 1), open - full * unit
end

local function sliding_read(key, now, limit, period)
  local width = period / RING
  local unit = math.ceil(limit / 255)
  local number = math.floor(now / width)
  local raw = redis.call('GET', key)
  if not raw then
    return {number, 0, unit, EMPTY, 0}, width
  end
  local was, open, size = struct.unpack(HEAD, raw)
  local ring = string.sub(raw, HEAD_BYTES + 1)
  local passed = number - was
  if passed > 0 then
    ring, open = sliding_passed(ring, open, size, passed)
  elseif passed < -RING then
    -- The clock was set back by more than a window. What it had counted while it ran ahead counts as from now.
    ring, open = EMPTY, open + sliding_sum(ring) * size
    sliding_write(key, period, number, open, size, ring)
  else
    number = was  -- also when the clock was set back a little: then nothing ages until it has caught up
  end
  if size ~= unit then
    ring = sliding_scaled(ring, size, unit)
  end
  return {number, open, unit, ring, sliding_sum(ring)}, width
end

-- The microseconds until so much has gone, and until all has.
local function sliding_waits(state, now, width, over)
  local number, open, unit, ring = unpack(state)
  local freed, reset = 0, 0
  local retry
  for i, units in ipairs({string.byte(ring, 1, RING)}) do
    if units > 0 then
      freed = freed + units * unit
      reset = (number + i) * width - now + 1
      if not retry and freed >= over then
        retry = reset
      end
    end
  end
  if open > 0 then
    reset = (number + RING + 1) * width - now + 1
  end
  return over > 0 and (retry or reset) or 0, reset
end

local function sliding_look(key, now, cost, limit, period, burst, taking)
  local state, width = sliding_read(key, now, limit, period)
  local used = state[2] + state[3] * state[5]
  local over = used + cost - limit
  if taking and over <= 0 then
    return true, limit - used, 0, 0, state
  end
  local retry, reset = sliding_waits(state, now, width, over)
  return over <= 0, limit - used, retry, reset, state
end

local function sliding_take(key, now, cost, limit, period, burst, state)
  local number, open, unit, ring, closed = unpack(state)
  local life = sliding_write(key, period, number, open + cost, unit, ring)
  return limit - open - cost - unit * closed, life * 1000
end

local look, take = sliding_look, sliding_take
