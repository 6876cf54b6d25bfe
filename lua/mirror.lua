-- mirror: appends a batch of one partition's outbox to the event log, under the same ids, and notes how far it came.
-- KEYS[1] heartbeats  stream: topic `heartbeats` of the partition
-- KEYS[2] events      stream: topic `events`
-- KEYS[3] mirrored    hash: partition -> last id of the outbox that the log has; topic -> events appended ever; `large:` and
--   partition -> last id of a large event, of which a reader takes few at a time (workers/reading.py)
-- KEYS[4] owner       string: who owns the partition's group
-- ARGV[1] token          of the caller's ownership
-- ARGV[2] partition
-- ARGV[3] after          the id it took `mirrored` to be; '' for none
-- ARGV[4...] entries     in order: topic 1 or 2, id, JSON
-- RETURNS {appended} or {code, mirrored}: -1 the group is another's by now, -2 `mirrored` is not `after`: nothing appended
if redis.call('GET', KEYS[4]) ~= ARGV[1] then return {-1, ''} end
local mirrored = redis.call('HGET', KEYS[3], ARGV[2]) or ''
if mirrored ~= ARGV[3] then return {-2, mirrored} end
local LARGE = 2048
local appended, large = {0, 0}, nil
local function note(id)
  redis.call('HSET', KEYS[3], ARGV[2], id)
  if large then redis.call('HSET', KEYS[3], 'large:' .. ARGV[2], large) end
  if appended[1] > 0 then redis.call('HINCRBY', KEYS[3], 'heartbeats', appended[1]) end
  if appended[2] > 0 then redis.call('HINCRBY', KEYS[3], 'events', appended[2]) end
end
for i = 4, #ARGV, 3 do
  local topic = tonumber(ARGV[i])
  local reply = redis.pcall('XADD', KEYS[topic], ARGV[i + 1], 'e', ARGV[i + 2])
  if reply.err then
    -- What came before it is in the log for good, so it is noted; the batch goes on from here.
    if i > 4 then note(ARGV[i - 2]) end
    return redis.error_reply('mirror stopped at ' .. ARGV[i + 1] .. ': ' .. reply.err)
  end
  appended[topic] = appended[topic] + 1
  if #ARGV[i + 2] > LARGE then large = ARGV[i + 1] end
end
note(ARGV[#ARGV - 1])
return {appended[1] + appended[2]}
