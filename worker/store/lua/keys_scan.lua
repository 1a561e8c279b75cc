-- Counts a page of keys by shape, with what stands in braces left out: those without a time to live, and the others.
--
-- ARGV[1]  the cursor of the page
-- ARGV[2]  keys to look at, about
-- returns  the next cursor; a list of shape, keys without a time to live of it, and one of these; the same of the others
local page = redis.call('SCAN', ARGV[1], 'COUNT', ARGV[2])
local call, byte, find, match, sub = redis.call, string.byte, string.find, string.match, string.sub
local lasting, ending = {counts = {}, examples = {}}, {counts = {}, examples = {}}
local names, brace = page[2], byte('}')
for i = 1, #names do  -- runs for each key: what it takes is what the examination takes
  local key = names[i]
  local ttl = call('PTTL', key)
  if ttl ~= -2 then
    local open, shape = find(key, '{', 1, true), nil
    if open then
      shape = sub(key, 1, open)
      if byte(key, -1) ~= brace then
        shape = shape .. sub(key, find(key, '}', open, true) or #key + 1)
      end
    elseif ttl == -1 then
      -- Without its digits, but whole: queues and streams are among these, and told apart by their names.
      shape = string.gsub(key, '%d+', '0')
    else
      -- Of others the beginning, as long as that of a result, will do: up to the number, if it begins otherwise.
      shape = sub(key, 1, 17)
      shape = match(shape, '^%D+') or shape
    end
    local found = ttl == -1 and lasting or ending
    local count = found.counts[shape]
    if count then
      found.counts[shape] = count + 1
    else
      found.counts[shape] = 1
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
