-- Let the reads of the past count less, and drop members that nobody reads any more.
-- KEYS[1]  the ranking
-- ARGV[1]  what every score is multiplied by, between 0 and 1
-- ARGV[2]  the score below which a member is dropped
-- ARGV[3]  its life, in milliseconds
-- returns  the number of members left
redis.call('ZUNIONSTORE', KEYS[1], 1, KEYS[1], 'WEIGHTS', ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return redis.call('ZCARD', KEYS[1])
