-- lost: ends a view that the event log saw begin and that session Redis has forgotten (design section 8). The caller has
-- mirrored the outbox first: a view whose record went on to a later one had its end written there.
-- KEYS[1] sessions   hash: session -> record (lib/record.lua)
-- KEYS[2] deadlines  zset: ticks at which the sweep must look at some account
-- KEYS[3] outbox     stream of events
-- KEYS[4] request    string: this view has been given up
-- ARGV[1] now            ms, or '' for the server's clock
-- ARGV[2] account
-- ARGV[3] outbox_max     lifecycle events the outbox may hold, about
-- ARGV[4] tuning         see lib/tuning.lua
-- ARGV[5] outage_began   ms, 0 if none lately
-- ARGV[6] outage_ended   ms
-- ARGV[7] session
-- ARGV[8] view           its ordinal
-- ARGV[9] started_at     ms when it began
-- ARGV[10] revision      how often it had been reopened
-- ARGV[11] request_ttl   ms for which KEYS[4] is remembered
-- ARGV[12] body          the view_end's JSON from "account" on
-- RETURNS {appended}; 0 if the view is known here (it goes on, or its end is in the outbox) or was given up before

-- @include clock
local sessions_key, deadlines_key, outbox_key, account = KEYS[1], KEYS[2], KEYS[3], ARGV[2]
-- @include tuning record account view

local view = tonumber(ARGV[8])
local text = redis.call('HGET', sessions_key, ARGV[7])
if text then
  local known = parse(ARGV[7], text)
  -- A number may come back after its record was forgotten, but not with the same beginning. (The `started` of what is
  -- tentative is another thing's: its number is that of a view that has ended.)
  local same = known.started == tonumber(ARGV[9]) or known.status == 't'
  if known.status ~= 'b' and known.ordinal == view and same then return {0} end
  now = math.max(now, known.seen, known.ended)
end
if not redis.call('SET', KEYS[4], '1', 'NX', 'PX', ARGV[11]) then return {0} end
put('view_end', {ordinal = view, started = tonumber(ARGV[9])}, '"revision":' .. ARGV[10] .. ',' .. ARGV[12])
return {1}
