-- Put a dead letter back into its stream as a new entry.
-- KEYS[1]  the dead letters
-- KEYS[2]  the stream
-- ARGV[1]  the dead letter's id
-- ARGV[2]  what stands before the names of the original fields
-- returns  the new entry's id; nothing when there is no such dead letter
local found = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not found then
  return false
end
local fields = {}
for at = 1, #found[2], 2 do
  if string.sub(found[2][at], 1, #ARGV[2]) == ARGV[2] then
    fields[#fields + 1] = string.sub(found[2][at], #ARGV[2] + 1)
    fields[#fields + 1] = found[2][at + 1]
  end
end
local id = redis.call('XADD', KEYS[2], '*', unpack(fields))
redis.call('XDEL', KEYS[1], ARGV[1])
return id
