-- Put windows into a tree that lacks them, out of what stands in Postgres; one that is there already stays as it is.
-- Goes behind budget_tree.lua. Whoever loads must keep others from loading the same tree between the reading and this.
-- ARGV[1]  the windows, as JSON: a list of [period, subject, list of [number, requests, tokens, micros]], all settled
-- ARGV[2]  the open calls, as JSON: a list of [id, milliseconds of lease, requests, tokens, micros, places], where places is a
--          list of [period, subject, number], of windows that are loaded or not
-- returns  how many windows were put in
local loaded, count = {}, 0
for _, row in ipairs(cjson.decode(ARGV[1])) do
  local field = row[1] .. ':' .. row[2]
  if redis.call('HEXISTS', KEYS[1], field) == 0 then
    local buckets = {}
    for _, bucket in ipairs(row[3]) do
      table.insert(buckets, {bucket[1], bucket[2], bucket[3], bucket[4], 0, 0, 0})
    end
    write(field, buckets)
    loaded[field], count = true, count + 1
  end
end
for _, row in ipairs(cjson.decode(ARGV[2])) do
  local id, call = row[1], call_of(row[1])
  if not call then
    call = {'restored', {row[3], row[4], row[5]}, {}}
    redis.call('ZADD', KEYS[2], string.format('%.0f', now + row[2] * 1000), id)
  end
  for _, place in ipairs(row[6]) do
    if loaded[place[1] .. ':' .. place[2]] then
      if call[1] == 'open' or call[1] == 'restored' then
        add(place[1], place[2], place[3], call[2], call[2])
      elseif call[1] == 'settled' then
        add(place[1], place[2], place[3], call[4], {0, 0, 0})
      end
      for i = 1, 3 do
        table.insert(call[3], place[i])
      end
    end
  end
  keep_call(id, call, redis.call('ZSCORE', KEYS[2], id) + 0)
end
redis.call('PEXPIRE', KEYS[1], LIFE)
return count
