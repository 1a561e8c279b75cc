-- Read a session, and let its idle life begin anew if a tenth of it is over.
-- KEYS[1]  the session
-- ARGV[1]  1 to let it live on, 0 only to look
-- returns  user, data, version, moments in milliseconds: began, last seen, ends at the latest; about. Nothing for one that is gone
local found = redis.call('HMGET', KEYS[1], 'user', 'data', 'version', 'began', 'seen', 'ends', 'about', 'idle')
if not found[3] then
  return false
end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local ends, idle = tonumber(found[6]), tonumber(found[8])
if now >= ends then
  return false
end
if ARGV[1] == '1' and now - tonumber(found[5]) > idle / 10 then
  redis.call('HSET', KEYS[1], 'seen', string.format('%.0f', now))
  redis.call('PEXPIRE', KEYS[1], math.min(idle, ends - now))
end
found[8] = nil
return found
