-- Ask whether a party that failed too often in a row may be called again; of those who ask then, one is let through to try.
-- KEYS[1]  the circuit: `failures` in a row, `until` when it stays open (microseconds)
-- ARGV[1]  failures that open it
-- ARGV[2]  milliseconds the one that tries is given before the next may
-- returns  the milliseconds to wait, 0 to go ahead
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local kept = redis.call('HMGET', KEYS[1], 'failures', 'until')
if tonumber(kept[1] or 0) < tonumber(ARGV[1]) then
  return 0
end
local left = tonumber(kept[2] or 0) - now
if left > 0 then
  return math.ceil(left / 1000)
end
redis.call('HSET', KEYS[1], 'until', string.format('%.0f', now + ARGV[2] * 1000))
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
