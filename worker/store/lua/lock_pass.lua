-- Give a lock or semaphore up, if it is still the caller's: to the next in the queue, or to nobody.
-- Goes behind lock_one.lua or lock_many.lua, and lock_turn.lua.
-- KEYS[1]  the lease or leases
-- KEYS[2]  the last fencing token
-- KEYS[3]  the queue
-- ARGV[1]  the caller's token
-- ARGV[2]  the channel on which the caller's process listens, if the caller tells those who wait in it
-- returns  1 when it was given up, 0 when it was not the caller's; the news that the caller is to tell, else an empty text
local now = server_time()
if not holds(KEYS[1], ARGV[1], now) then
  return {0, ''}
end
local news, is_here = serve_next(KEYS[1], KEYS[2], KEYS[3], now, ARGV[1], nil, ARGV[2])
if not news then
  take_back(KEYS[1], ARGV[1])
end
return {1, is_here and news or ''}
