-- Take the next message out of the first list that has one, and the lock of its job with it.
-- A message names its job at its end. One that does not, or whose job is locked, comes without the lock: its taker asks for it.
-- KEYS     the lists of the queues, the one served first first
-- ARGV[1]  the taker's token
-- ARGV[2]  the life of the lock, in milliseconds
-- ARGV[3]  what stands before the id of a job in the name of its lock
-- ARGV[4]  what stands behind it
-- returns  nil when there is none, else the list, the message, and 1 when the lock was taken or 0
for _, list in ipairs(KEYS) do
  local item = redis.call('RPOP', list)
  if item then
    local id = string.match(string.sub(item, -300), ',"job":"([%w_.:-]+)"}$')
    -- A server that is full refuses; the message is out by then and must not be lost for that.
    local taken = id and redis.pcall('SET', ARGV[3] .. id .. ARGV[4], ARGV[1], 'NX', 'PX', ARGV[2])
    return {list, item, taken and taken.ok and 1 or 0}
  end
end
return nil
