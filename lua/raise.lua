-- raise: makes sure that an outbox gives no id again that the event log has seen. Harmless when it is past it already.
-- FLAGS allow-oom
-- KEYS[1] outbox     stream of events; need not exist
-- ARGV[1] id             the last id the outbox must have at least: ms-n
-- RETURNS {raised}; 1 if it was behind

local added = redis.pcall('XADD', KEYS[1], ARGV[1], 'e', '')
local why = type(added) == 'table' and added.err and tostring(added.err)
if why then
  -- Anything but that its last id is the same or greater (a wrong id, no memory) is the caller's to know.
  local harmless = string.find(why, 'equal or smaller', 1, true) or string.find(why, 'greater than 0-0', 1, true)
  return harmless and {0} or redis.error_reply(why)
end
redis.call('XDEL', KEYS[1], ARGV[1])
return {1}
