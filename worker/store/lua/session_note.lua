-- Note a session on its user's list, and take those off that are over by now.
-- KEYS[1]  the list
-- ARGV[1]  the session's digest
-- ARGV[2]  how long it lives at most, in milliseconds
-- ARGV[3]  how many a user may have
-- returns  the digests of those that are too many, the oldest first; they are to be ended and then taken off
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[2])), ARGV[1])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
local over = redis.call('ZCARD', KEYS[1]) - tonumber(ARGV[3])
return over > 0 and redis.call('ZRANGE', KEYS[1], 0, over - 1) or {}
