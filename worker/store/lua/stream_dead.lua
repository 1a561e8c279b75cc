-- Move a pending entry to the dead letters: acknowledged and set aside are one step.
-- The fields and values of the dead letter follow behind the last argument that is described here.
-- KEYS[1]  the stream
-- KEYS[2]  the dead letters
-- ARGV[1]  the group
-- ARGV[2]  the entry's id
-- returns  the dead letter's id; nothing when the entry was not pending any more
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then
  return false
end
return redis.call('XADD', KEYS[2], '*', unpack(ARGV, 3))
