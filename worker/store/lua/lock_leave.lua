-- Leave the queue, unless the caller's turn has come in the meantime.
-- Goes behind lock_one.lua or lock_many.lua, and lock_turn.lua. Harmless to repeat.
-- KEYS[1]  the lease or leases
-- KEYS[2]  the last fencing token
-- KEYS[3]  the queue
-- ARGV[1]  the caller's token
-- ARGV[2]  the life of its lease, in milliseconds
-- ARGV[3]  the channel on which the caller's process listens
-- returns  its fencing token, 0 when it has left; the time
local now = server_time()
redis.call('LREM', KEYS[3], 1, ARGV[3] .. ' ' .. ARGV[2] .. ' ' .. ARGV[1])
if not holds(KEYS[1], ARGV[1], now) then
  return {0, now}
end
lend(KEYS[1], ARGV[1], ARGV[2], now)
return {next_fence(KEYS[2], now), now}
