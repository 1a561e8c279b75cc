-- Add a process's counts of reads to the ranking, and keep the ranking short.
-- KEYS[1]  the ranking
-- ARGV[1]  the counts: a JSON list of [member, reads]
-- ARGV[2]  how many members it may have
-- ARGV[3]  its life, in milliseconds
-- returns  the number of members left
for _, row in ipairs(cjson.decode(ARGV[1])) do
  redis.call('ZINCRBY', KEYS[1], row[2], row[1])
end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - tonumber(ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return redis.call('ZCARD', KEYS[1])
