-- sessions: the running sessions of one account. Reads only.
-- KEYS[1] leases     zset: session with its record -> when its lease expires (lib/record.lua)
-- KEYS[2] deadlines  zset: ticks at which the sweep must look at some account
-- ARGV[1] now            ms, or '' for the server's clock
-- ARGV[2] account
-- ARGV[3] tuning         see lib/tuning.lua
-- RETURNS JSON, a list of {session, device, …}, longest running first; '[]' if none

-- @include clock
local leases_key, deadlines_key, account = KEYS[1], KEYS[2], ARGV[2]
-- @include tuning record account judge reply

load()
local running, out = {}, {}
for _, r in pairs(records) do
  if r.status == 'r' and alive(r) then running[#running + 1] = r end
end
table.sort(running, by_time('started'))
for i, r in ipairs(running) do
  local item = describe(r)
  item.kind, item.provider = r.kind, r.provider
  item.state, item.view, item.revision = r.state, r.ordinal, r.revision
  item.position, item.watched_ms, item.seq = r.position and r.position / 1000, r.watched, r.seq
  item.started_at, item.lease_expires_at, item.yields_at = r.started, r.expires, yields_at(r)
  item.rules, item.origin, item.paused_at = rules_of(r), r.origin == 'p' and 'player' or 'backend', r.paused
  item.proven_until = r.proven
  out[i] = item
end
if #out == 0 then return '[]' end
return cjson.encode(out)
