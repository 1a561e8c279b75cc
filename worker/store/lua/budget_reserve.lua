-- Reserve an estimate in every window it falls into: in all of them, or in none.
-- Goes behind budget_tree.lua.
-- ARGV[1]  the id of the call; the same one again is the same call
-- ARGV[2]  its lease, in milliseconds
-- ARGV[3]  the estimated requests
-- ARGV[4]  the estimated tokens
-- ARGV[5]  the estimated micros
-- ARGV     then five a window: its period, its subject, and the most requests, tokens and micros, each empty for no bound
-- returns  {yes} when it is reserved, {ended, state} when the call is over,
--          {load, period, subject, …} when windows are not known and must be loaded first,
--          {no, window, amount, left, microseconds} when it does not fit: which window and
--          which of its amounts refuses longest, both counted from 1, and when to come again; 0 when that hangs on open calls
local id, estimate = ARGV[1], {ARGV[3] + 0, ARGV[4] + 0, ARGV[5] + 0}
local known = call_of(id)
if known and known[1] == 'open' then
  return {'yes'}
elseif known and known[1] ~= 'restored' then
  return {'ended', known[1]}
elseif known then
  add_call(known[3], negative(known[2]), negative(known[2]))
  forget_call(id)
end

local missing, places, refusal = {'load'}, {}, nil
for at = 6, #ARGV, 5 do
  local period, subject = ARGV[at], ARGV[at + 1]
  local window = window_of(period, subject)
  if not window then
    table.insert(missing, period)
    table.insert(missing, subject)
  else
    for _, place in ipairs({period, subject, PERIODS[period][1]}) do
      table.insert(places, place)
    end
    for i = 1, 3 do
      local most = tonumber(ARGV[at + 1 + i])
      local over = most and window.spent[i] + estimate[i] - most or 0
      if over > 0 then
        -- What is settled leaves with its sub-bucket; what is open may be given back any time.
        local wait, gone = 0, window.open[i]
        table.sort(window.buckets, function(a, b) return a[1] < b[1] end)
        for _, bucket in ipairs(window.buckets) do
          if gone < over then
            gone = gone + bucket[1 + i] - bucket[4 + i]
            wait = PERIODS[period][3](bucket[1]) - now
          end
        end
        if not refusal or wait > refusal[5] then
          refusal = {'no', (at - 1) / 5, i, math.max(0, most - window.spent[i]), wait}
        end
      end
    end
  end
end
if #missing > 1 then
  return missing
elseif refusal then
  return refusal
end
add_call(places, estimate, estimate)
keep_call(id, {'open', estimate, places}, now + ARGV[2] * 1000)
return {'yes'}
