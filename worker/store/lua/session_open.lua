-- Begin a session under an id nobody has used.
-- KEYS[1]  the session
-- ARGV[1]  the user; empty for nobody
-- ARGV[2]  the data, JSON
-- ARGV[3]  the idle life, in milliseconds
-- ARGV[4]  the moment it ends at the latest, in milliseconds; 0 for ARGV[5] from now
-- ARGV[5]  the absolute life, in milliseconds
-- ARGV[6]  what tells people which session it is
-- returns  the moment it began and the one it ends at the latest; nothing when the id was used or that moment is over
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local ends = tonumber(ARGV[4])
if ends == 0 then
  ends = now + tonumber(ARGV[5])
end
if ends <= now or redis.call('EXISTS', KEYS[1]) == 1 then
  return false
end
redis.call('HSET', KEYS[1], 'user', ARGV[1], 'data', ARGV[2], 'version', 1, 'began', string.format('%.0f', now),
  'seen', string.format('%.0f', now), 'ends', string.format('%.0f', ends), 'idle', ARGV[3], 'about', ARGV[6])
redis.call('PEXPIRE', KEYS[1], math.min(tonumber(ARGV[3]), ends - now))
return {now, ends}
