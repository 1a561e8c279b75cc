-- Return a member's rank on a leaderboard and those beside it.
-- KEYS[1]  the leaderboard
-- ARGV[1]  the member
-- ARGV[2]  how many above it, and how many below
-- returns  the rank of the first that is returned, from 0; members and scores, the highest first. Nothing for who is not on it
local rank = redis.call('ZREVRANK', KEYS[1], ARGV[1])
if not rank then
  return false
end
local first = math.max(0, rank - tonumber(ARGV[2]))
return {first, redis.call('ZREVRANGE', KEYS[1], first, rank + tonumber(ARGV[2]), 'WITHSCORES')}
