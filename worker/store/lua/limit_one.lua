-- Decide over one limit: it admits and is charged, or it is not.
-- Goes behind the file of its algorithm, which gives `look` and `take`.
-- KEYS[1]  the counter of the limit
-- ARGV[1]  take to charge, peek to ask only
-- ARGV[2]  who holds the slots that are taken; the same one may ask again
-- ARGV[3]  the cost
-- ARGV[4]  the limit
-- ARGV[5]  its period or lease, in microseconds
-- ARGV[6]  its burst
-- returns  whether it admits, what it has left, and the microseconds until it admits and until all is free
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local cost, limit, period, burst = ARGV[3] + 0, ARGV[4] + 0, ARGV[5] + 0, ARGV[6] + 0
local taking = ARGV[1] == 'take'
local fits, left, retry, reset, state = look(KEYS[1], now, cost, limit, period, burst, taking)
if fits and taking then
  left, reset = take(KEYS[1], now, cost, limit, period, burst, state)
end
return {fits and 1 or 0, math.max(0, left), math.ceil(retry), math.ceil(reset)}
