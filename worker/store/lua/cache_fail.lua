-- Turn a lease into the marker of a failed load, and tell those who wait.
-- KEYS[1]  the entry: the channel of those who wait for it
-- KEYS[2]  its lease
-- ARGV[1]  the caller's lease
-- ARGV[2]  the marker: !, the failures in a row, :, the milliseconds it is remembered beyond the back-off, :, the error
-- ARGV[3]  its life, in milliseconds: the back-off and what is beyond
-- returns  1 when marked, 0 when the lease was no longer the caller's
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('PUBLISH', KEYS[1], 'x' .. ARGV[1] .. ARGV[3] .. ARGV[2])
return 1
