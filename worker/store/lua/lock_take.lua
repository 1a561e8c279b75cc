-- Take a lock or semaphore if it is free and nobody waits for it; its holder takes it again, with a whole lease.
-- Goes behind lock_one.lua or lock_many.lua, and lock_turn.lua.
-- KEYS[1]  the lease or leases
-- KEYS[2]  the last fencing token
-- KEYS[3]  the queue
-- ARGV[1]  the caller's token
-- ARGV[2]  the life of its lease, in milliseconds
-- ARGV[3]  how many may hold it
-- returns  its fencing token, 0 when it was not taken; the time
local now = server_time()
if not holds(KEYS[1], ARGV[1], now) then
  serve(KEYS[1], KEYS[2], KEYS[3], now, tonumber(ARGV[3]))
  if not is_free(KEYS[1], now, tonumber(ARGV[3])) then
    return {0, now}
  end
end
lend(KEYS[1], ARGV[1], ARGV[2], now)
return {next_fence(KEYS[2], now), now}
