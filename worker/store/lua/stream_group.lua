-- Make sure that a consumer group is there, and find the token that lives as long as the group does.
-- The token is kept as the name of a consumer that never reads: what deletes the group or the stream deletes it as well.
-- KEYS[1]  the stream; it is made if it is missing
-- ARGV[1]  the group
-- ARGV[2]  the id behind which a new group begins to read
-- ARGV[3]  the token of a new group
-- ARGV[4]  what stands before the token in the consumer's name
-- returns  the token of the group, and 1 when the group is new
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[2], 'MKSTREAM')
if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then
  return made
end
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  for at = 1, #consumer, 2 do
    if consumer[at] == 'name' and string.sub(consumer[at + 1], 1, #ARGV[4]) == ARGV[4] then
      return {string.sub(consumer[at + 1], #ARGV[4] + 1), 0}
    end
  end
end
redis.call('XGROUP', 'CREATECONSUMER', KEYS[1], ARGV[1], ARGV[4] .. ARGV[3])
return {ARGV[3], made.err and 0 or 1}
