-- Lend to several holders: a sorted set of their tokens by the moment each lease ends.
-- Goes first in the scripts of a semaphore; lock_one.lua has the same functions for a lock, and says what each is for.
-- returns  nothing by itself
local function is_free(lease, now, most)
  redis.call('ZREMRANGEBYSCORE', lease, '-inf', now)
  return redis.call('ZCARD', lease) < most
end

local function holds(lease, token, now)
  local ends = redis.call('ZSCORE', lease, token)
  return ends and tonumber(ends) > now
end

local function lend(lease, token, ttl, now)
  redis.call('ZADD', lease, string.format('%.0f', now + ttl * 1000), token)
  if redis.call('PTTL', lease) < tonumber(ttl) then
    redis.call('PEXPIRE', lease, ttl)
  end
end

local function take_back(lease, token)
  redis.call('ZREM', lease, token)
end

local function hand_over(lease, from, token, ttl, now)
  take_back(lease, from)
  lend(lease, token, ttl, now)
end

local function until_free(lease, now)
  local first = redis.call('ZRANGE', lease, 0, 0, 'WITHSCORES')[2]
  return first and math.ceil((first - now) / 1000) or 0
end

