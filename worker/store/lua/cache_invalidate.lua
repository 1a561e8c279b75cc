-- Forget an entry, and the lease of whoever loads it now, so that what was read before this cannot be stored after it.
-- KEYS[1]  the entry, and the channel of those who wait for it
-- KEYS[2]  its lease
-- ARGV[1]  the channel on which processes hear what to drop from their memory
-- ARGV[2]  the key as callers name it
-- returns  1 when there was an entry, 0 when not
local gone = redis.call('DEL', KEYS[1])
redis.call('DEL', KEYS[2])
redis.call('PUBLISH', KEYS[1], 'd')
redis.call('PUBLISH', ARGV[1], 'k' .. ARGV[2])
return gone
