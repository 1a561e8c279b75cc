-- Store a value that was written, unless a newer one was, and refuse the fills of those who loaded before.
-- One that comes late may have been held up on its way, behind an invalidation that has returned: it forgets instead.
-- KEYS[1]  the entry, and the channel of those who wait for it
-- KEYS[2]  its lease
-- KEYS[3]  the newest version written
-- ARGV[1]  the new entry
-- ARGV[2]  its life, in milliseconds
-- ARGV[3]  the version, a whole number below 2^53, or empty for none
-- ARGV[4]  the channel on which processes hear what to drop from their memory
-- ARGV[5]  the key as callers name it
-- ARGV[6]  the life of the version, in milliseconds
-- ARGV[7]  the server's time when its writer asked, in whole seconds
-- ARGV[8]  and the microseconds beyond
-- ARGV[9]  for how long after that it may be stored, in milliseconds
-- returns  1 when stored, 0 when a newer version was or it came late
if ARGV[3] ~= '' then
  local newest = tonumber(redis.call('GET', KEYS[3]) or '-1')
  if newest > tonumber(ARGV[3]) then
    return 0
  end
  redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[6])
end
local now = redis.call('TIME')
local late_ms = (now[1] - ARGV[7]) * 1000 + (now[2] - ARGV[8]) / 1000
local in_time = late_ms >= 0 and late_ms < tonumber(ARGV[9])
if in_time then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
else
  redis.call('DEL', KEYS[1])
end
redis.call('DEL', KEYS[2])
redis.call('PUBLISH', KEYS[1], 'd')
redis.call('PUBLISH', ARGV[4], 'k' .. ARGV[5])
return in_time and 1 or 0
