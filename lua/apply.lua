-- apply: adds a partition's claim to the totals, each claim once, and its whole audience to the recount under way.
-- KEYS[1] totals     hash: kind, content, provider -> views now
-- KEYS[2] applied    hash: partition -> number of its last claim here
-- KEYS[3] recount    hash: what the totals will turn out to be, partition by partition
-- KEYS[4] recounted  set: partitions that are in it
-- KEYS[5] accounts   hash: the same as totals -> accounts now; in claims these have a fourth field, @
-- KEYS[6] owner      string: who owns the job
-- ARGV[1] token      of the caller's ownership
-- ARGV[2] partition
-- ARGV[3] number     of the claim
-- ARGV[4] count      of the claim's changes
-- ARGV[5] whole      1: the audience follows
-- ARGV[6...] pairs   of the changes, then of the audience: what, and how many
-- RETURNS how many pairs were none and left out, or -1 if the job is another's by now
if redis.call('GET', KEYS[6]) ~= ARGV[1] then return -1 end
local partition, changes = ARGV[2], tonumber(ARGV[4])
local known = redis.call('SISMEMBER', KEYS[4], partition) == 1

local left_out = 0

-- A total that is no number is begun anew; the next recount puts it right.
local function add(key, what, more)
  local now = redis.pcall('HINCRBY', key, what, more)
  if type(now) == 'table' then
    redis.call('HSET', key, what, more)
    now = tonumber(more)
  end
  if now == 0 then redis.call('HDEL', key, what) end
end

-- Views have three fields, accounts four. So no provider, whatever its name, is taken for the mark of accounts.
local function look(what, more)
  local of = string.match(what, '^([^\t]*\t[^\t]*\t[^\t]*)\t@$')
  local whole = string.match(more, '^%-?%d+$') and #more < 16
  if whole and (of or string.match(what, '^[^\t]*\t[^\t]*\t[^\t]*$')) then return true, of end
  left_out = left_out + 1
  return false
end

if tonumber(ARGV[3]) > (tonumber(redis.call('HGET', KEYS[2], partition) or 0) or 0) then
  for i = 6, 5 + 2 * changes, 2 do
    local good, of = look(ARGV[i], ARGV[i + 1])
    if good then
      if of then add(KEYS[5], of, ARGV[i + 1]) else add(KEYS[1], ARGV[i], ARGV[i + 1]) end
      if known then add(KEYS[3], ARGV[i], ARGV[i + 1]) end
    end
  end
  redis.call('HSET', KEYS[2], partition, ARGV[3])
end
if ARGV[5] == '1' and not known then
  for i = 6 + 2 * changes, #ARGV, 2 do
    if look(ARGV[i], ARGV[i + 1]) then add(KEYS[3], ARGV[i], ARGV[i + 1]) end
  end
  redis.call('SADD', KEYS[4], partition)
end
return left_out
