-- Append an entry unless one was appended under the same token within its life.
-- The fields and values of the entry follow behind the last argument that is described here.
-- KEYS[1]  the stream
-- KEYS[2]  the token's mark
-- ARGV[1]  the mark's life in milliseconds
-- returns  the entry's id, and 1 when it is new, 0 when it was there
local known = redis.call('GET', KEYS[2])
if known then
  return {known, 0}
end
local id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
redis.call('SET', KEYS[2], id, 'PX', ARGV[1])
return {id, 1}
