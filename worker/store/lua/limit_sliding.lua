-- Count a sliding window: sixty closed sub-buckets and the open one, in one string of some seventy bytes.
-- Goes before limit_one.lua or limit_all.lua. What a sub-bucket holds counts until the whole of it is older than the window, so no window of this length
-- ever holds more than the limit; room comes back a sixtieth of the window late at the most.
-- The string: number of the open sub-bucket, its sum, what a unit stands for, the units in the closed ones together, and a byte of
-- units for each of them, oldest first. What does not fill a unit when a sub-bucket closes moves on into the next.
-- sliding_look  asks whether a cost fits
-- sliding_take  charges it
-- returns  whether it fits, what is left, the microseconds until it fits and until all is free, and what to hand to sliding_take
local RING = 60
local HEAD = '<I6I5I4I2'
local HEAD_BYTES = 17

-- The ring in units of another size, as after a change of the limit: rounded up, and 255 is more than any limit has.
local function sliding_scaled(ring, from, to)
  local units, sum = {string.byte(ring, 1, RING)}, 0
  for i = 1, RING do
    units[i] = math.min(255, math.ceil(units[i] * from / to))
    sum = sum + units[i]
  end
  return string.char(unpack(units)), sum
end

local function sliding_read(key, now, limit, period)
  local width = period / RING
  local unit = math.ceil(limit / 255)
  local number = math.floor(now / width)
  local raw = redis.call('GET', key)
  if not raw then
    return {number, 0, unit, 0, string.rep('\0', RING)}, width
  end
  local was, open, size, closed = struct.unpack(HEAD, raw)
  local ring = string.sub(raw, HEAD_BYTES + 1)
  local passed = number - was
  if passed > 0 then
    -- The open one closes, and as many go as have come.
    local full = math.min(255, math.floor(open / size))
    local gone = math.min(passed, RING)
    for _, units in ipairs({string.byte(ring, 1, gone)}) do
      closed = closed - units
    end
    if passed <= RING then
      ring = string.sub(ring, gone + 1) .. string.char(full) .. string.rep('\0', passed - 1)
      closed, open = closed + full, open - full * size
    else
      ring, closed, open = string.rep('\0', RING), 0, 0
    end
  else
    number = was  -- also when the clock was set back: then nothing ages until it has caught up
  end
  if size ~= unit then
    ring, closed = sliding_scaled(ring, size, unit)
  end
  return {number, open, unit, closed, ring}, width
end

-- The microseconds until so much has gone, and until all has.
local function sliding_waits(state, now, width, over)
  local number, open, unit, closed, ring = unpack(state)
  if over <= 0 and open > 0 then
    return 0, (number + RING + 1) * width - now + 1
  end
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

local function sliding_look(key, now, cost, limit, period)
  local state, width = sliding_read(key, now, limit, period)
  local used = state[2] + state[3] * state[4]
  local over = used + cost - limit
  local retry, reset = sliding_waits(state, now, width, over)
  return over <= 0, limit - used, retry, reset, state
end

local function sliding_take(key, now, cost, limit, period, burst, state)
  local number, open, unit, closed, ring = unpack(state)
  local life = math.ceil((period + period / RING) / 1000)
  redis.call('SET', key, struct.pack(HEAD, number, open + cost, unit, closed) .. ring, 'PX', life)
  return limit - open - cost - unit * closed, life * 1000
end

local look, take = sliding_look, sliding_take
