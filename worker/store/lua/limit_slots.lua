-- Lend slots to those who work at the same time: a member a holder, by the moment its lease ends.
-- Goes before limit_one.lua or limit_all.lua. A holder that is dead gives its slot back with the end of its lease; one that asks again holds it already.
-- slots_look  asks whether a cost fits
-- slots_take  charges it, to the holder ARGV[2], for a lease of `period`
-- returns  whether it fits, what is left, the microseconds until a lease ends and until all have, and what to hand to slots_take
local function slots_look(key, now, cost, limit)
  local member = cost .. ':' .. ARGV[2]
  local used, first, last = 0, 0, 0
  local held, ended = false, false
  local found = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for i = 1, #found, 2 do
    local left = found[i + 1] - now
    if left <= 0 then
      ended = true
    else
      first, last = first > 0 and first or left, left
      if found[i] == member then
        held = true
      else
        used = used + tonumber(string.match(found[i], '^%d+'))
      end
    end
  end
  if ended then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  end
  local fits = held or used + cost <= limit
  local reset = used > 0 and last or 0
  return fits, limit - used - (held and cost or 0), fits and 0 or first, reset, {used, last}
end

local function slots_take(key, now, cost, limit, period, burst, state)
  local used, last = unpack(state)
  redis.call('ZADD', key, string.format('%.0f', now + period), cost .. ':' .. ARGV[2])
  redis.call('PEXPIRE', key, math.ceil(math.max(period, last) / 1000))
  return limit - used - cost, period
end

local look, take = slots_look, slots_take
