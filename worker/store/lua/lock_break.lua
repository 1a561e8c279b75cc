-- Take a lock or semaphore away from whoever holds it, and serve those who wait.
-- Goes behind lock_one.lua or lock_many.lua, and lock_turn.lua.
-- KEYS[1]  the lease or leases
-- KEYS[2]  the last fencing token
-- KEYS[3]  the queue
-- ARGV[1]  how many may hold it
-- returns  1 when somebody held it, 0 when nobody did
local held = redis.call('DEL', KEYS[1])
serve(KEYS[1], KEYS[2], KEYS[3], server_time(), tonumber(ARGV[1]))
return held
