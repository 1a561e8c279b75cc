-- Read on in a side group, up to an id and not beyond it, so that nothing outside the range becomes pending.
-- KEYS[1]  the stream
-- ARGV[1]  the group
-- ARGV[2]  the consumer
-- ARGV[3]  the last id of the range
-- ARGV[4]  entries at the most
-- returns  the entries, each its id and its flat fields
local at = nil
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local told = {}
  for place = 1, #flat, 2 do
    told[flat[place]] = flat[place + 1]
  end
  if told.name == ARGV[1] then
    at = told['last-delivered-id']
  end
end
if not at then
  return redis.error_reply('NOGROUP there is no such group')
end
local left = redis.call('XRANGE', KEYS[1], '(' .. at, ARGV[3], 'COUNT', ARGV[4])
if #left == 0 then
  return {}
end
local read = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', #left, 'STREAMS', KEYS[1], '>')
return read and read[1][2] or {}
