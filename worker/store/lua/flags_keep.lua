-- Keep a snapshot of the flags, unless a newer one is kept.
-- KEYS[1]  the kept snapshot
-- ARGV[1]  its version
-- ARGV[2]  the snapshot
-- ARGV[3]  its life, in milliseconds
-- returns  whether it is kept
local kept = tonumber(redis.call('HGET', KEYS[1], 'version') or -1)
if kept > tonumber(ARGV[1]) then
  return 0
end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'flags', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
