-- Return who is at a place by now, whether or not the silent have been evicted yet.
-- KEYS[1]  the devices, by the moment each is taken for gone
-- returns  the devices: a list of JSON [member, device]
local t = redis.call('TIME')
return redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000)), '+inf')
