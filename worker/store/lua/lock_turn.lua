-- Give out turns: the clock, the fencing token, and who is next in the queue.
-- Goes behind lock_one.lua or lock_many.lua, before a script that waits, takes or passes on.
-- A waiter is `channel ttl token`: where its process listens, the life of the lease it wants, and its name. One whose process
-- does not listen any more is dead and is passed over.
-- server_time  tells the server's time in microseconds
-- next_fence   gives out a fencing token: the time, or one more than the last where the clock was set back
-- serve_next   lends to the next in the queue and tells it; `from` hands over to it, `asker` needs no telling, and who listens on
--              `here` is told by the caller. Returns the news, nil when nobody waits, and whether the caller is to tell
-- serve        lends as long as there is something to lend and somebody waits
-- returns  nothing by itself
local function server_time()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

local function next_fence(fence, now)
  local last = tonumber(redis.call('GET', fence) or 0)
  local given = math.max(now, last + 1)
  redis.call('SET', fence, string.format('%.0f', given), 'PX', 86400000)
  return given
end

local function serve_next(lease, fence, queue, now, from, asker, here)
  local waiter = redis.call('LPOP', queue)
  while waiter do
    local channel, ttl, token = string.match(waiter, '^(%S+) (%d+) (%S+)$')
    local given = next_fence(fence, now)
    local news = string.format('%.0f %s %s', given, token, lease)
    if token == asker or channel == here or redis.call('PUBLISH', channel, news) > 0 then
      if from then
        hand_over(lease, from, token, ttl, now)
      else
        lend(lease, token, ttl, now)
      end
      return news, channel == here
    end
    waiter = redis.call('LPOP', queue)
  end
  return nil
end

local function serve(lease, fence, queue, now, most, asker)
  while is_free(lease, now, most) and serve_next(lease, fence, queue, now, nil, asker) do
  end
end

