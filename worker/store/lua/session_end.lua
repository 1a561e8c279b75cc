-- End a session and leave a mark, under which nothing can begin or be written, for as long as it could have lived.
-- KEYS[1]  the session
-- ARGV[1]  the digest of the session that takes its place; empty for none
-- ARGV[2]  the life of the mark where nothing stands yet, in milliseconds; 0 for no mark
-- ARGV[3]  the version it must have; empty for any
-- returns  1 when it lived until now, 0 when not, minus the version it has when that is another; the digest of the session that had taken its place before, empty for none
local ends = redis.call('HGET', KEYS[1], 'ends')
if ends then
  local version = redis.call('HGET', KEYS[1], 'version')
  if ARGV[3] ~= '' and version ~= ARGV[3] then
    return {-tonumber(version), ''}
  end
  local t = redis.call('TIME')
  local life = math.max(1000, tonumber(ends) - (t[1] * 1000 + math.floor(t[2] / 1000)))
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'to', ARGV[1])
  redis.call('PEXPIRE', KEYS[1], life)
  return {1, ''}
end
local to = redis.call('HGET', KEYS[1], 'to')
if not to and ARGV[2] ~= '0' then
  redis.call('HSET', KEYS[1], 'to', '')
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return {0, to or ''}
