-- Score a member on a leaderboard, and keep the leaderboard short.
-- A score is the value, shifted, and beneath it how much of the window was left when it was reached: of equal values the one that
-- was reached first stands above.
-- KEYS[1]  the leaderboard
-- ARGV[1]  the member
-- ARGV[2]  the value, a whole number
-- ARGV[3]  add, set or best: the value is added, replaces the old one, or does if it is higher
-- ARGV[4]  the moment it was reached, in milliseconds; empty for now
-- ARGV[5]  the moment the window begins, in milliseconds
-- ARGV[6]  the milliseconds of one step of time
-- ARGV[7]  the steps there are
-- ARGV[8]  the highest value
-- ARGV[9]  how many members it holds
-- ARGV[10]  its life after the window's begin, in milliseconds; negative for a life from now on
-- returns  the value that stands, -1 when it would be above the highest, and 0 when the window is over and kept no more
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local at = tonumber(ARGV[4]) or now
local start, step, steps = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local life = tonumber(ARGV[10])
local ends = life < 0 and now - life or start + life
if ends <= now then
  return 0
end
local rest = steps - 1 - math.max(0, math.min(steps - 1, math.floor((at - start) / step)))
local value = tonumber(ARGV[2])
local found = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]))
if found then
  local old, old_rest = math.floor(found / steps), found % steps
  if ARGV[3] == 'add' then
    value = old + value
    -- Reached with the last of its parts, in whatever order they come.
    rest = value == old and old_rest or math.min(rest, old_rest)
  elseif value == old then
    rest = math.max(rest, old_rest)
  elseif ARGV[3] == 'best' and value < old then
    return old
  end
end
if value > tonumber(ARGV[8]) then
  return -1
end
redis.call('ZADD', KEYS[1], string.format('%.0f', value * steps + rest), ARGV[1])
if not found then
  redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - tonumber(ARGV[9]))
end
redis.call('PEXPIRE', KEYS[1], math.ceil(ends - now))
return value
