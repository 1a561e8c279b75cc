-- Store a value that was written, unless a newer one was, and refuse the fills of those who loaded before.
-- KEYS[1]  the entry, and the channel of those who wait for it
-- KEYS[2]  its lease
-- KEYS[3]  the newest version written
-- ARGV[1]  the new entry
-- ARGV[2]  its life, in milliseconds
-- ARGV[3]  the version, a whole number below 2^53, or empty for none
-- ARGV[4]  the channel on which processes hear what to drop from their memory
-- ARGV[5]  the key as callers name it
-- ARGV[6]  the life of the version, in milliseconds
-- returns  1 when stored, 0 when a newer version was
if ARGV[3] ~= '' then
  local newest = tonumber(redis.call('GET', KEYS[3]) or '-1')
  if newest > tonumber(ARGV[3]) then
    return 0
  end
  redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[6])
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('DEL', KEYS[2])
redis.call('PUBLISH', KEYS[1], 'd')
redis.call('PUBLISH', ARGV[4], 'k' .. ARGV[5])
return 1
