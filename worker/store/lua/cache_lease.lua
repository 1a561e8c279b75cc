-- Let one caller load a missing entry, and tell the others why they may not.
-- KEYS[1]  the entry
-- KEYS[2]  its lease
-- ARGV[1]  the caller's lease: a token of 16 characters, then the digest of the tag versions it will load under
-- ARGV[2]  the life of the lease, in milliseconds
-- ARGV[3]  the id of the entry the caller saw and cannot use, empty when it saw none
-- ARGV[4]  1 to take over a lease held under other tag versions
-- ARGV[5]  the lease that was handed over to the caller and ends with this, empty for none
-- ARGV[6]  the longest back-off of its region, in milliseconds: a marker that names a longer one was left on other terms
-- returns  {0, entry, PTTL} when there is another entry than the one seen,
--          {1, failures so far} when the lease is the caller's,
--          {2, lease, PTTL} when another holds it,
--          {3, milliseconds, marker} when the last load failed and the next must wait,
--          {4} when another holds it under other tag versions
local id = redis.call('GETRANGE', KEYS[1], 4, 19)
if id ~= '' and id ~= ARGV[3] then
  local life = redis.call('PTTL', KEYS[1])
  return {0, redis.call('GET', KEYS[1]), life}
end
local held = redis.call('GET', KEYS[2])
local failures = 0
if held and string.sub(held, 1, 1) == '!' then
  -- A marker outlives the back-off by what it names, so that the next failure in a row is known as such.
  local count, beyond = string.match(held, '^!(%d+):(%d+):')
  local left = redis.call('PTTL', KEYS[2]) - tonumber(beyond)
  if left > 0 and left <= tonumber(ARGV[6]) then
    return {3, left, held}
  end
  failures = tonumber(count)
elseif held and held ~= ARGV[5] then
  if string.sub(held, 17) == string.sub(ARGV[1], 17) then
    return {2, held, redis.call('PTTL', KEYS[2])}
  elseif ARGV[4] ~= '1' then
    return {4}
  end
end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return {1, failures}
