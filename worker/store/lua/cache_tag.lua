-- Tell the version of a tag, making one if there is none, and let it live at least so long.
-- KEYS[1]  the tag
-- ARGV[1]  the version to give it: random, for a counter that was evicted would count the same numbers again
-- ARGV[2]  the life it must have, in milliseconds
-- returns  the version
local version = redis.call('GET', KEYS[1])
if not version then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return ARGV[1]
end
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return version
