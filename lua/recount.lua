-- recount: puts a finished recount in the totals' place and says where they differed. The totals are exact unless a Redis lost its
-- last second, or the log Redis was replaced.
-- KEYS[1] totals     hash: kind, content, provider -> views now
-- KEYS[2] recount    hash: the same, added up from all partitions
-- KEYS[3] recounted  set: partitions that are in it
-- KEYS[4] applied    hash: its field `recounts` says how many were finished
-- KEYS[5] accounts   hash: the same as totals -> accounts now; in the recount these end in a tab and @
-- KEYS[6] owner      string: who owns the job
-- ARGV[1] token      of the caller's ownership
-- ARGV[2] partitions how many there are
-- RETURNS flat list of what, total, recounted, for those that differed; nil if the recount is not finished
if redis.call('GET', KEYS[6]) ~= ARGV[1] or redis.call('SCARD', KEYS[3]) < tonumber(ARGV[2]) then return nil end

local function read(into, key, ending)
  local flat = redis.call('HGETALL', key)
  for i = 1, #flat, 2 do into[flat[i] .. ending] = flat[i + 1] end
  return into
end

local totals, recounted, differed = read(read({}, KEYS[1], ''), KEYS[5], '\t@'), read({}, KEYS[2], ''), {}
local function put(command, what, ...)
  local of = string.match(what, '^(.*)\t@$')
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
redis.call('HINCRBY', KEYS[4], 'recounts', 1)
return differed
