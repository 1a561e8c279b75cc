-- Lend slots to those who work at the same time: a member a holder, by the moment its lease ends.
-- Goes before limit_one.lua or limit_all.lua. A holder that is dead gives its slot back with the end of its lease; one that asks again holds it already.
-- slots_look  asks whether a cost fits
-- slots_take  charges it, to the holder ARGV[2], for a lease of `period`
-- returns  whether it fits, what is left, the microseconds until a lease ends and until all have, and what to hand to slots_take
local function slots_look(key, now, cost, limit)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  local member = cost .. ':' .. ARGV[2]
  local used = 0
  local held = false
  for _, other in ipairs(redis.call('ZRANGE', key, 0, -1)) do
    if other == member then
      held = true
    else
      used = used + tonumber(string.match(other, '^%d+'))
    end
  end
  local fits = used + cost <= limit
  local first, last = 0, 0
  if used > 0 then
    last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')[2] - now
    first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2] - now
  end
  return fits or held, limit - used - (held and cost or 0), (fits or held) and 0 or first, last, used
end

local function slots_take(key, now, cost, limit, period, burst, used)
  redis.call('ZADD', key, string.format('%.0f', now + period), cost .. ':' .. ARGV[2])
  if redis.call('PTTL', key) * 1000 < period then
    redis.call('PEXPIRE', key, period / 1000)
  end
  return limit - used - cost, period
end

local look, take = slots_look, slots_take
