-- Count a failure of a party that is called, and open its circuit when there have been too many in a row.
-- KEYS[1]  the circuit: `failures` in a row, `until` when it stays open (microseconds)
-- ARGV[1]  failures that open it
-- ARGV[2]  milliseconds it is open the first time; twice as long after each further failure
-- ARGV[3]  milliseconds it is open at most
-- ARGV[4]  milliseconds after which a party that is not called any more is forgotten
-- returns  the milliseconds it is open from now on, 0 when it is not
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local over = redis.call('HINCRBY', KEYS[1], 'failures', 1) - tonumber(ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
if over < 0 then
  return 0
end
local open = math.min(ARGV[2] * 2 ^ math.min(over, 30), tonumber(ARGV[3]))
redis.call('HSET', KEYS[1], 'until', string.format('%.0f', now + open * 1000))
return math.floor(open)
