-- apply: adds a partition's claim to the totals, each claim once, and its whole audience to the recount under way.
-- KEYS[1] totals     hash: kind, content, provider -> views now
-- KEYS[2] applied    hash: partition -> number of its last claim here
-- KEYS[3] recount    hash: what the totals will turn out to be, partition by partition
-- KEYS[4] recounted  set: partitions that are in it
-- KEYS[5] accounts   hash: the same as totals -> accounts now; in claims these end in a tab and @
-- KEYS[6] owner      string: who owns the job
-- ARGV[1] token      of the caller's ownership
-- ARGV[2] partition
-- ARGV[3] number     of the claim
-- ARGV[4] count      of the claim's changes
-- ARGV[5] whole      1: the audience follows
-- ARGV[6...] pairs   of the changes, then of the audience: what, and how many
-- RETURNS 1, or -1 if the job is another's by now
if redis.call('GET', KEYS[6]) ~= ARGV[1] then return -1 end
local partition, changes = ARGV[2], tonumber(ARGV[4])
local known = redis.call('SISMEMBER', KEYS[4], partition) == 1

local function add(key, what, more)
  if redis.call('HINCRBY', key, what, more) == 0 then redis.call('HDEL', key, what) end
end

if tonumber(ARGV[3]) > tonumber(redis.call('HGET', KEYS[2], partition) or 0) then
  for i = 6, 5 + 2 * changes, 2 do
    local what = string.match(ARGV[i], '^(.*)\t@$')
    if what then add(KEYS[5], what, ARGV[i + 1]) else add(KEYS[1], ARGV[i], ARGV[i + 1]) end
    if known then add(KEYS[3], ARGV[i], ARGV[i + 1]) end
  end
  redis.call('HSET', KEYS[2], partition, ARGV[3])
end
if ARGV[5] == '1' and not known then
  for i = 6 + 2 * changes, #ARGV, 2 do add(KEYS[3], ARGV[i], ARGV[i + 1]) end
  redis.call('SADD', KEYS[4], partition)
end
return 1
