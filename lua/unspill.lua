-- unspill: takes out of a partition's spilled events the oldest ones, which are on somebody's disk.
-- KEYS[1] spill  list of events, oldest first
-- ARGV[1] first  the oldest of them, as it was read
-- ARGV[2] count
-- RETURNS 1; 0 if another process has taken them meanwhile
if redis.call('LINDEX', KEYS[1], 0) ~= ARGV[1] then return 0 end
redis.call('LTRIM', KEYS[1], ARGV[2], -1)
return 1
