-- End a call: put what it really spent in the place of what it reserved, once.
-- Goes behind budget_tree.lua.
-- ARGV[1]  the id of the call
-- ARGV[2]  what becomes of it: settled, or released when it was not made
-- ARGV[3]  the requests it made
-- ARGV[4]  the tokens it spent
-- ARGV[5]  the micros it spent
-- returns  settled or released, late when its lease had ended, again when it had been ended before, unknown
local id, verb, actual = ARGV[1], ARGV[2], {ARGV[3] + 0, ARGV[4] + 0, ARGV[5] + 0}
local call = call_of(id)
if not call then
  return 'unknown'
elseif call[1] == 'settled' or call[1] == 'released' then
  return 'again'
end
local told = verb
if call[1] == 'returned' then
  told = 'late'
  add_call(call[3], actual, {0, 0, 0})
else
  local more = {actual[1] - call[2][1], actual[2] - call[2][2], actual[3] - call[2][3]}
  add_call(call[3], more, negative(call[2]))
end
keep_call(id, {verb, call[2], call[3], actual}, now + REMEMBERED)
return told
