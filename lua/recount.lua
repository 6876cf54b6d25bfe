-- recount: puts a finished recount in the totals' place and says where they differed. The totals are exact unless a Redis lost its
-- last second, or the log Redis was replaced.
-- KEYS[1] totals     hash: kind, content, provider -> views now
-- KEYS[2] recount    hash: the same, added up from all partitions
-- KEYS[3] recounted  set: partitions that are in it
-- KEYS[4] applied    hash: its field `recounts` says how many were finished
-- KEYS[5] accounts   hash: the same as totals -> accounts now; in the recount these have a fourth field, @
-- KEYS[6] owner      string: who owns the job
-- ARGV[1] token      of the caller's ownership
-- ARGV[2] partitions how many there are
-- RETURNS flat list of what, total, recounted, for those that differed; nil if the recount is not finished
if redis.call('GET', KEYS[6]) ~= ARGV[1] or redis.call('SCARD', KEYS[3]) < tonumber(ARGV[2]) then return nil end
for partition = 0, ARGV[2] - 1 do
  if redis.call('SISMEMBER', KEYS[3], partition) == 0 then return nil end
end

local THREE = '^[^\t]*\t[^\t]*\t[^\t]*$'
local function read(into, key, ending)
  local flat = redis.call('HGETALL', key)
  for i = 1, #flat, 2 do
    -- What has not three fields was never counted, and its name could be that of something else.
    if ending and not string.match(flat[i], THREE) then
      redis.call('HDEL', key, flat[i])
    else
      into[flat[i] .. (ending or '')] = flat[i + 1]
    end
  end
  return into
end

local totals, recounted, differed = read(read({}, KEYS[1], ''), KEYS[5], '\t@'), read({}, KEYS[2]), {}
local function put(command, what, ...)
  local of = string.match(what, '^([^\t]*\t[^\t]*\t[^\t]*)\t@$')
  redis.call(command, of and KEYS[5] or KEYS[1], of or what, ...)
end
local function note(what)
  differed[#differed + 1], differed[#differed + 2], differed[#differed + 3] = what, totals[what] or '0', recounted[what] or '0'
end
for what, count in pairs(recounted) do
  if totals[what] ~= count then
    put('HSET', what, count)
    note(what)
  end
end
for what in pairs(totals) do
  if not recounted[what] then
    put('HDEL', what)
    note(what)
  end
end
redis.call('DEL', KEYS[2], KEYS[3])
redis.pcall('HINCRBY', KEYS[4], 'recounts', 1)
return differed
