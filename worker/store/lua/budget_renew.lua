-- Prolong the lease of a call that is still open.
-- Goes behind budget_tree.lua.
-- ARGV[1]  the id of the call
-- ARGV[2]  its new life, in milliseconds
-- returns  1 when prolonged, 0 when it is over or not known
local call = call_of(ARGV[1])
if not call or (call[1] ~= 'open' and call[1] ~= 'restored') then
  return 0
end
keep_call(ARGV[1], call, now + ARGV[2] * 1000)
return 1
