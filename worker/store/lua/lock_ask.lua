-- Ask again, as a waiter that heard nothing: its turn may have come unheard, a holder may have died, the queue may be lost.
-- Goes behind lock_one.lua or lock_many.lua, and lock_turn.lua. Harmless to repeat.
-- KEYS[1]  the lease or leases
-- KEYS[2]  the last fencing token
-- KEYS[3]  the queue
-- ARGV[1]  the caller's token
-- ARGV[2]  the life of its lease, in milliseconds
-- ARGV[3]  how many may hold it
-- ARGV[4]  the channel on which the caller's process listens
-- returns  its fencing token, 0 while it waits; the time; for the first in the queue the milliseconds after which to ask again, else 0
local now = server_time()
if not holds(KEYS[1], ARGV[1], now) then
  local waiter = ARGV[4] .. ' ' .. ARGV[2] .. ' ' .. ARGV[1]
  if not redis.call('LPOS', KEYS[3], waiter) then
    redis.call('RPUSH', KEYS[3], waiter)
  end
  redis.call('PEXPIRE', KEYS[3], 60000)
  serve(KEYS[1], KEYS[2], KEYS[3], now, tonumber(ARGV[3]), ARGV[1])
  if not holds(KEYS[1], ARGV[1], now) then
    return {0, now, redis.call('LINDEX', KEYS[3], 0) == waiter and until_free(KEYS[1], now) or 0}
  end
end
lend(KEYS[1], ARGV[1], ARGV[2], now)
return {next_fence(KEYS[2], now), now, 0}
