-- Queue up for a lock or semaphore; who is first and finds it free has it at once.
-- Goes behind lock_one.lua or lock_many.lua, and lock_turn.lua.
-- KEYS[1]  the lease or leases
-- KEYS[2]  the last fencing token
-- KEYS[3]  the queue
-- ARGV[1]  the caller's token
-- ARGV[2]  the life of its lease, in milliseconds
-- ARGV[3]  how many may hold it
-- ARGV[4]  the channel on which the caller's process listens
-- returns  its fencing token, 0 when it waits now; the time; for the first in the queue the milliseconds after which to ask, else 0
local now = server_time()
local waiting = redis.call('RPUSH', KEYS[3], ARGV[4] .. ' ' .. ARGV[2] .. ' ' .. ARGV[1])
if waiting == 1 and is_free(KEYS[1], now, tonumber(ARGV[3])) then
  redis.call('DEL', KEYS[3])
  lend(KEYS[1], ARGV[1], ARGV[2], now)
  return {next_fence(KEYS[2], now), now, 0}
end
redis.call('PEXPIRE', KEYS[3], 60000)
return {0, now, waiting == 1 and until_free(KEYS[1], now) or 0}
