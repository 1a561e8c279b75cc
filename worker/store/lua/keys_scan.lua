-- Counts a page of keys by shape, with what stands in braces left out: those without a time to live, and the others.
--
-- ARGV[1]  the cursor of the page
-- ARGV[2]  keys to look at, about
-- returns  the next cursor; a list of shape, keys without a time to live of it, and one of these; the same of the others
local page = redis.call('SCAN', ARGV[1], 'COUNT', ARGV[2])
local call, find, sub = redis.call, string.find, string.sub  -- all that follows runs for each key
local lasting, ending = {counts = {}, examples = {}}, {counts = {}, examples = {}}
for _, key in ipairs(page[2]) do
  local ttl = call('PTTL', key)
  if ttl ~= -2 then
    local found, shape = ending, nil
    local open = find(key, '{', 1, true)
    if open then
      local close = find(key, '}', open, true) or #key
      shape = sub(key, 1, open)
      if close < #key then shape = shape .. sub(key, close) end
    elseif ttl == -1 then
      -- Without its digits, but whole: queues and streams are among these, and told apart by their names.
      shape = string.gsub(key, '%d+', '0')
    else
      shape = sub(key, 1, 17)  -- of others the beginning, as long as that of a result, will do
    end
    if ttl == -1 then found = lasting end
    local counts = found.counts
    local count = counts[shape]
    if count then
      counts[shape] = count + 1
    else
      counts[shape] = 1
      found.examples[shape] = key
    end
  end
end
local function listed(found)
  local list = {}
  for shape, count in pairs(found.counts) do
    list[#list + 1] = shape
    list[#list + 1] = count
    list[#list + 1] = found.examples[shape]
  end
  return list
end
return {page[1], listed(lasting), listed(ending)}
