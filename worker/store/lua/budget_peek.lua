-- Tell what windows stand at.
-- Goes behind budget_tree.lua.
-- ARGV     two a window: its period and its subject
-- returns  the number of calls that are open in the tree, then a window each: {} when it is not known, else the requests, tokens and
--          micros spent, then how much of each is open
local open = 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  local state = call_of(id)[1]
  if state == 'open' or state == 'restored' then
    open = open + 1
  end
end
local told = {open}
for at = 1, #ARGV, 2 do
  local window = window_of(ARGV[at], ARGV[at + 1])
  local row = {}
  for i = 1, 3 do
    if window then
      row[i], row[3 + i] = window.spent[i], window.open[i]
    end
  end
  table.insert(told, row)
end
return told
