-- Give signs of life of devices at a place, or say good-bye; evict those that are silent for too long, and tell who came and went.
-- KEYS[1]  the devices, by the moment each is taken for gone; and the channel
-- KEYS[2]  how many devices each member has
-- ARGV[1]  the devices: a JSON list of [member, device]
-- ARGV[2]  the life of a sign, in milliseconds; 0 to say good-bye
-- ARGV[3]  the life of the keys, in milliseconds
-- returns  the number of members that came, and of those that went
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local life = tonumber(ARGV[2])
local change = {}

local function count(member, by)
  local left = redis.call('HINCRBY', KEYS[2], member, by)
  if left <= 0 then
    redis.call('HDEL', KEYS[2], member)
  end
  -- Came and went, or went and came, in one step is no news.
  if by == 1 and left == 1 then
    change[member] = (change[member] or 0) + 1
  elseif by == -1 and left <= 0 then
    change[member] = (change[member] or 0) - 1
  end
end

-- A bounded part of the silent at a time, so that no step is long; the next goes on.
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now), 'LIMIT', 0, 1000)) do
  redis.call('ZREM', KEYS[1], entry)
  count(cjson.decode(entry)[1], -1)
end
for _, pair in ipairs(cjson.decode(ARGV[1])) do
  local entry = cjson.encode(pair)
  if life == 0 then
    if redis.call('ZREM', KEYS[1], entry) == 1 then
      count(pair[1], -1)
    end
  elseif redis.call('ZADD', KEYS[1], string.format('%.0f', now + life), entry) == 1 then
    count(pair[1], 1)
  end
end
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
end

local came, went = {}, {}
for member, by in pairs(change) do
  if by > 0 then
    came[#came + 1] = member
  elseif by < 0 then
    went[#went + 1] = member
  end
end
if #came + #went > 0 then
  local told = '{"came":' .. (#came > 0 and cjson.encode(came) or '[]') .. ',"went":' .. (#went > 0 and cjson.encode(went) or '[]') .. '}'
  redis.call('PUBLISH', KEYS[1], told)
end
return {#came, #went}
