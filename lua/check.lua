-- check: what a heartbeat would be answered now. Reserves nothing, appends nothing, is no evidence.
-- KEYS[1] leases     zset: session with its record -> when its lease expires (lib/record.lua)
-- KEYS[2] deadlines  zset: ticks at which the sweep must look at some account
-- KEYS[3] outbox     stream of events
-- ARGV[1] now            ms, or '' for the server's clock
-- ARGV[2] account
-- ARGV[3] tuning         see lib/tuning.lua
-- ARGV[4] session        or '' for a session yet to be named
-- ARGV[5] ident          device, content, kind, device type, provider, profile, rules; tab-separated
-- ARGV[6] policy         mode, require_evidence, then name:unit:limit for each rule; tab-separated; profiles as in heartbeat.lua
-- RETURNS {code, lease_expires_at, last_seq, duplicate, detail, content}; see lib/reply.lua

-- @include clock
local leases_key, deadlines_key, outbox_key, account = KEYS[1], KEYS[2], KEYS[3], ARGV[2]
-- @include tuning record account judge reply

load()
local ask = {session = ARGV[4], ident = ARGV[5], policy = parse_policy(ARGV[6]), at = now, player = true}
read_ident(ask)
local me = records[ask.session]
if me and not reaches(ask.policy.profiles, me) then return {3, 0, -1, 0, ''} end
if ask.session == '' then
  for _, r in pairs(records) do
    if r.device == ask.device and r.content == ask.content and r.status == 'r' then me = r end
  end
end
return decided(ask, me, 0)
