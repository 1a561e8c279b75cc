-- Fill a token bucket at a steady rate, as the generic cell rate algorithm (ITU-T I.371) does: it keeps one moment.
-- Goes before limit_one.lua or limit_all.lua. The moment is when the bucket will be full again; a cost moves it on by the time its refill takes. A window
-- of any length admits at most the burst and what the rate gives in it.
-- bucket_look  asks whether a cost fits
-- bucket_take  charges it
-- returns  whether it fits, what is left, the microseconds until it fits and until all is free, and what to hand to bucket_take

-- Counted in microseconds from here, in November 2023, a moment has room for the fractions that a rate such as 3 a second needs.
local BUCKET_EPOCH = 1700000000000000
-- What these fractions may add up to.
local BUCKET_SLACK = 0.5

local function bucket_look(key, now, cost, limit, period, burst)
  now = now - BUCKET_EPOCH
  local full = math.max(now, tonumber(redis.call('GET', key) or now))
  -- No bucket is emptier than empty: a moment beyond that was noted by a clock that ran ahead, or under a larger burst.
  full = math.min(full, now + burst * period / limit)
  local room = burst * period / limit - (full - now)
  local wait = cost * period / limit - room - BUCKET_SLACK
  return wait <= 0, math.floor((room + BUCKET_SLACK) * limit / period), math.max(0, wait), full - now, full
end

local function bucket_take(key, now, cost, limit, period, burst, full)
  now, full = now - BUCKET_EPOCH, full + cost * period / limit
  redis.call('SET', key, string.format('%.3f', full), 'PX', math.ceil((full - now) / 1000))
  return math.floor(burst - (full - now - BUCKET_SLACK) * limit / period), full - now
end

local look, take = bucket_look, bucket_take
