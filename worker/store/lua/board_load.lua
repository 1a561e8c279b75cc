-- Put what a leaderboard was built anew from in its place.
-- KEYS[1]  the leaderboard
-- KEYS[2]  the one that was built; there is none when nobody is on it
-- ARGV[1]  how many members it holds
-- ARGV[2]  the moment it ends, in milliseconds; 0 for ARGV[3] from now
-- ARGV[3]  its life, in milliseconds
-- returns  the number of members on it
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local life = ARGV[2] == '0' and tonumber(ARGV[3]) or tonumber(ARGV[2]) - now
if life <= 0 or redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('DEL', KEYS[1], KEYS[2])
  return 0
end
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - tonumber(ARGV[1]))
redis.call('RENAME', KEYS[2], KEYS[1])
redis.call('PEXPIRE', KEYS[1], math.ceil(life))
return redis.call('ZCARD', KEYS[1])
