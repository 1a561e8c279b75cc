-- Prolong a lease, if it is still the caller's.
-- KEYS[1]  the lease
-- ARGV[1]  the caller's token
-- ARGV[2]  its new life, in milliseconds
-- returns  1 when prolonged, 0 when it is gone or another's
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
