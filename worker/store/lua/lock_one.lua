-- Lend to one holder: a string with its token, as `SET key token NX PX` makes it.
-- Goes first in the scripts of a lock; lock_many.lua has the same functions for a semaphore.
-- is_free     tells whether there is something to lend
-- holds       tells whether this token holds it
-- lend        lends it to a token for so many milliseconds
-- take_back   ends the lease of a token
-- hand_over   ends the lease of one token and begins that of another
-- until_free  tells in how many milliseconds there is something to lend, if nobody renews
-- returns  nothing by itself
local function is_free(lease, now, most)
  return redis.call('EXISTS', lease) == 0
end

local function holds(lease, token, now)
  return redis.call('GET', lease) == token
end

local function lend(lease, token, ttl, now)
  redis.call('SET', lease, token, 'PX', ttl)
end

local function take_back(lease, token)
  redis.call('DEL', lease)
end

local function hand_over(lease, from, token, ttl, now)
  lend(lease, token, ttl, now)
end

local function until_free(lease, now)
  return redis.call('PTTL', lease)
end

