-- Decide over several limits: all of them admit and are charged, or none is.
-- Goes behind the files of all algorithms.
-- KEYS     the counter of each limit
-- ARGV[1]  take to charge, peek to ask only
-- ARGV[2]  who holds the slots that are taken; the same one may ask again
-- ARGV     then five a limit: its algorithm (fixed, sliding, bucket, slots), the cost, the limit, its period or lease in
--          microseconds, and its burst
-- returns  four numbers a limit: whether it admits, what it has left, and the microseconds until it admits and until all is free
local looks = {fixed = fixed_look, sliding = sliding_look, bucket = bucket_look, slots = slots_look}
local takes = {fixed = fixed_take, sliding = sliding_take, bucket = bucket_take, slots = slots_take}
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local states, told, all = {}, {}, true
for i, key in ipairs(KEYS) do
  local a = i * 5 - 2
  local fits, left, retry, reset, state = looks[ARGV[a]](key, now, ARGV[a + 1] + 0, ARGV[a + 2] + 0, ARGV[a + 3] + 0, ARGV[a + 4] + 0)
  states[i], told[i], all = state, {fits and 1 or 0, left, retry, reset}, all and fits
end
if all and ARGV[1] == 'take' then
  for i, key in ipairs(KEYS) do
    local a = i * 5 - 2
    told[i][2], told[i][4] =
      takes[ARGV[a]](key, now, ARGV[a + 1] + 0, ARGV[a + 2] + 0, ARGV[a + 3] + 0, ARGV[a + 4] + 0, states[i])
  end
end
local flat = {}
for i, of in ipairs(told) do
  flat[i * 4 - 3], flat[i * 4 - 2], flat[i * 4 - 1], flat[i * 4] = of[1], math.max(0, of[2]), math.ceil(of[3]), math.ceil(of[4])
end
return flat
