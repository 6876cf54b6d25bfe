-- stop: the viewer is done; ends the view and frees its slots at once. Stopping twice is the same as once.
-- KEYS[1] sessions   hash: session -> record (lib/record.lua)
-- KEYS[2] deadlines  zset: ticks at which the sweep must look at some account
-- KEYS[3] outbox     stream of events
-- KEYS[4] request    string: remembers an answered request id
-- ARGV[1] now            ms, or '' for the server's clock
-- ARGV[2] account
-- ARGV[3] outbox_max     lifecycle events the outbox may hold, about
-- ARGV[4] tuning         see lib/tuning.lua
-- ARGV[5] outage_began   ms, 0 if none lately
-- ARGV[6] outage_ended   ms
-- ARGV[7] session
-- ARGV[8] seq            the last seq the player has sent, or ''
-- ARGV[9] request_id     '' if none
-- ARGV[10] request_ttl   ms
-- RETURNS {ended}; 1 if a view ended, 0 if there was none

-- @include clock
local sessions_key, deadlines_key, outbox_key, account = KEYS[1], KEYS[2], KEYS[3], ARGV[2]
-- @include tuning record account view

if ARGV[9] ~= '' and not redis.call('SET', KEYS[4], '1', 'NX', 'PX', ARGV[10]) then return {0} end
load()
local me = records[ARGV[7]]
if not me or (me.status ~= 'r' and me.status ~= 't') then return {0} end
for _, r in pairs(records) do
  if r.status == 't' and r.device == me.device and (r == me or r.content == me.content) then forget(r) end
end
if me.status == 'r' then
  me.seq = math.max(me.seq, tonumber(ARGV[8]) or -1)
  end_view(me, 'stopped')
end
settle()
return {1}
