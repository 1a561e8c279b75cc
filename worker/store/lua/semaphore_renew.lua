-- Prolong one lease of a semaphore, if it is still the caller's.
-- KEYS[1]  the leases
-- ARGV[1]  the caller's token
-- ARGV[2]  its new life, in milliseconds
-- returns  1 when prolonged, 0 when it ran out
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local ends = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not ends or tonumber(ends) <= now then
  return 0
end
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2] * 1000), ARGV[1])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 1
