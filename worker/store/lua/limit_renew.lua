-- Prolong the lease of a slot, if it has not run out.
-- KEYS[1]  the slots of a limit
-- ARGV[1]  the slot: its cost, :, and its holder
-- ARGV[2]  its new life, in milliseconds
-- returns  1 when prolonged, 0 when it is gone
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local ends = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not ends or ends + 0 <= now then
  return 0
end
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2] * 1000), ARGV[1])
redis.call('PEXPIRE', KEYS[1], math.max(redis.call('PTTL', KEYS[1]), ARGV[2]))
return 1
