-- Count a fixed window: a counter that dies with its window.
-- Goes before limit_one.lua or limit_all.lua. The window opens with the first cost and is twice the limit at most across its edge.
-- fixed_look  asks whether a cost fits; when it is only asked in order to take, the moments are left out
-- fixed_take  charges it
-- returns  whether it fits, what is left, the microseconds until it fits and until all is free, and what to hand to fixed_take
local function fixed_look(key, now, cost, limit, period, burst, taking)
  local used = tonumber(redis.call('GET', key) or 0)
  local fits = used + cost <= limit
  if used == 0 or (taking and fits) then
    return fits, limit - used, 0, 0, used
  end
  local reset = redis.call('PTTL', key) * 1000
  return fits, limit - used, fits and 0 or reset, reset, used
end

local function fixed_take(key, now, cost, limit, period, burst, used)
  if used == 0 then
    redis.call('SET', key, cost, 'PX', period / 1000)
    return limit - cost, period
  end
  redis.call('INCRBY', key, cost)
  return limit - used - cost, redis.call('PTTL', key) * 1000
end

local look, take = fixed_look, fixed_take
