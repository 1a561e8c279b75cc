-- Delete consumers that have nothing pending: deleting one that has would lose its entries for the group.
-- KEYS[1]  the stream
-- ARGV[1]  the group
-- ARGV[2]  the consumer; empty for every one
-- ARGV[3]  milliseconds since it last did anything, at the least
-- ARGV[4]  consumers whose name begins with this stay
-- returns  how many were deleted, and how many entries are pending with those that were not for that reason
local gone, held = 0, 0
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local told = {}
  for at = 1, #consumer, 2 do
    told[consumer[at]] = consumer[at + 1]
  end
  local meant = ARGV[2] == '' or told.name == ARGV[2]
  if meant and string.sub(told.name, 1, #ARGV[4]) ~= ARGV[4] and told.idle >= tonumber(ARGV[3]) then
    if told.pending == 0 then
      redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], told.name)
      gone = gone + 1
    else
      held = held + told.pending
    end
  end
end
return {gone, held}
