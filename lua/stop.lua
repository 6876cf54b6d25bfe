-- stop: the viewer is done; ends the view and frees its slots at once. Stopping twice is the same as once.
-- FLAGS allow-oom
-- KEYS[1] leases     zset: session with its record -> when its lease expires (lib/record.lua)
-- KEYS[2] deadlines  zset: ticks at which the sweep must look at some account
-- KEYS[3] outbox     stream of events
-- KEYS[4] request    string: remembers the request id of a stop that ended something
-- ARGV[1] now            ms, or '' for the server's clock
-- ARGV[2] account
-- ARGV[3] tuning         see lib/tuning.lua
-- ARGV[4] session
-- ARGV[5] seq            the last seq the player has sent, or ''
-- ARGV[6] request_id     '' if none
-- ARGV[7] request_ttl    ms
-- ARGV[8] profiles       those that the token is for, each between tabs; '' any
-- RETURNS {ended}; 1 if a view ended, 0 if there was none, 3 if it is of another profile

-- @include clock
local leases_key, deadlines_key, outbox_key, account = KEYS[1], KEYS[2], KEYS[3], ARGV[2]
-- @include tuning record account judge view

load()
local me = records[ARGV[4]]
if (me and not reaches(ARGV[8], me)) or ARGV[8] == '\t' then return {3} end
if ARGV[6] ~= '' and redis.call('EXISTS', KEYS[4]) == 1 then return {0} end
if not me or (me.status ~= 'r' and me.status ~= 't') then return {0} end
for _, r in pairs(records) do
  if r.status == 't' and r.device == me.device and (r == me or r.content == me.content) then forget(r) end
end
if me.status == 'r' then
  me.seq = math.max(me.seq, tonumber(ARGV[5]) or -1)
  played_on(me, now)
  end_view(me, 'stopped')
end
settle()
if ARGV[6] ~= '' then redis.call('SET', KEYS[4], '1', 'PX', ARGV[7]) end
return {1}
