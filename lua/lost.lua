-- lost: ends a view that the event log saw begin and that session Redis has forgotten (design section 8). The caller has
-- mirrored the outbox first: a view whose record went on to a later one had its end written there.
-- KEYS[1] leases     zset: session with its record -> when its lease expires (lib/record.lua)
-- KEYS[2] deadlines  zset: ticks at which the sweep must look at some account
-- KEYS[3] outbox     stream of events
-- KEYS[4] request    string: this view has been given up
-- ARGV[1] now            ms, or '' for the server's clock
-- ARGV[2] account
-- ARGV[3] tuning         see lib/tuning.lua
-- ARGV[4] session
-- ARGV[5] view           its ordinal
-- ARGV[6] started_at     ms when it began
-- ARGV[7] revision       how often it had been reopened
-- ARGV[8] request_ttl    ms for which KEYS[4] is remembered
-- ARGV[9] body           the view_end's JSON from "account" on
-- RETURNS {appended}; 0 if the view is known here (it goes on, or its end is in the outbox) or was given up before

-- @include clock
local leases_key, deadlines_key, outbox_key, account = KEYS[1], KEYS[2], KEYS[3], ARGV[2]
-- @include find tuning record account view

local view = tonumber(ARGV[5])
local text = find(leases_key, ARGV[4], '0', '-1')
if text then
  local known = parse(text)
  -- A number may come back after its record was forgotten, but not with the same beginning. (The `started` of what is
  -- tentative is another thing's: its number is that of a view that has ended.)
  local same = known.started == tonumber(ARGV[6]) or known.status == 't'
  if known.status ~= 'b' and known.ordinal == view and same then return {0} end
  now = math.max(now, known.seen, known.ended)
end
if not redis.call('SET', KEYS[4], '1', 'NX', 'PX', ARGV[8]) then return {0} end
put('view_end', {ordinal = view, started = tonumber(ARGV[6])}, '"revision":' .. ARGV[7] .. ',' .. ARGV[9])
return {1}
