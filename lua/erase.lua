-- erase: forgets an account: its sessions, leases and counters. Running sessions end without an event, which would name it.
-- KEYS[1] leases     zset: session with its record -> when its lease expires (lib/record.lua)
-- KEYS[2] deadlines  zset: ticks at which the sweep must look at some account
-- KEYS[3] outbox     stream of events
-- KEYS[4] takeovers  string: how many lately
-- KEYS[5] seen       what the names of the sets of events seen begin with; a day follows
-- ARGV[1] now            ms, or '' for the server's clock
-- ARGV[2] account
-- ARGV[3] tuning         see lib/tuning.lua
-- RETURNS {sessions}: how many were known

-- @include clock
local leases_key, deadlines_key, outbox_key, account = KEYS[1], KEYS[2], KEYS[3], ARGV[2]
-- @include tuning record account view

load()
local known = 0
for _, r in pairs(records) do
  known = known + 1
  redis.call('SREM', due_key(string.format('%d', math.floor(due(r) / TICK))), account)
  forget(r)
end
settle()
local today = math.floor(now / 86400000)
redis.call('DEL', KEYS[4])
for day = today - 1, today do
  local seen = KEYS[5] .. ':' .. string.format('%d', day)
  redis.call('DEL', seen, seen .. ':n')
end
return {known}
