-- Write a session's data, if it lives and nobody has written it since it was read.
-- KEYS[1]  the session
-- ARGV[1]  the version that was read
-- ARGV[2]  the data, JSON
-- returns  the new version; 0 when the session is gone, minus the version that stands when it is another
local version = redis.call('HGET', KEYS[1], 'version')
if not version then
  return 0
end
if version ~= ARGV[1] then
  return -tonumber(version)
end
redis.call('HSET', KEYS[1], 'data', ARGV[2])
return redis.call('HINCRBY', KEYS[1], 'version', 1)
