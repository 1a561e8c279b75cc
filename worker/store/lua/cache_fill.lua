-- Store what a caller loaded, if the lease it loaded under is still its own, and hand it to those who wait.
-- KEYS[1]  the entry, and the channel of those who wait for it
-- KEYS[2]  its lease
-- ARGV[1]  the caller's lease
-- ARGV[2]  the new entry
-- ARGV[3]  its life, in milliseconds
-- returns  1 when stored, 0 when the lease was invalidated, ran out or was taken over
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('DEL', KEYS[2])
redis.call('PUBLISH', KEYS[1], 'f' .. ARGV[1] .. ARGV[2])
return 1
