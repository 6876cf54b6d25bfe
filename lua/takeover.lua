-- takeover: the viewer chooses which of the account's streams ends so that this one may start.
-- KEYS[1] sessions   hash: session -> record (lib/record.lua)
-- KEYS[2] deadlines  zset: ticks at which the sweep must look at some account
-- KEYS[3] outbox     stream of events
-- KEYS[4] request    string: the answer to a request id
-- KEYS[5] takeovers  string: how many lately, for the rate limit
-- KEYS[6...] leases  zsets, one for each rule in the policy, in its order
-- ARGV[1] now            ms, or '' for the server's clock
-- ARGV[2] account
-- ARGV[3] outbox_max     lifecycle events the outbox may hold, about
-- ARGV[4] tuning         see lib/tuning.lua
-- ARGV[5] outage_began   ms, 0 if none lately
-- ARGV[6] outage_ended   ms
-- ARGV[7] session
-- ARGV[8] ident          device, content, kind, device type, provider, profile, rules; tab-separated
-- ARGV[9] stop           a session, or 'oldest'
-- ARGV[10] interval      ms
-- ARGV[11] ttl           ms the lease lives without evidence
-- ARGV[12] policy        mode, require_evidence, then name:unit:limit for each rule; tab-separated
-- ARGV[13] request_id    '' if none
-- ARGV[14] request_ttl   ms
-- RETURNS {code, lease_expires_at, last_seq, duplicate, detail}; see lib/reply.lua

-- @include clock
local sessions_key, deadlines_key, outbox_key, account = KEYS[1], KEYS[2], KEYS[3], ARGV[2]
-- @include tuning record account judge view reply

if ARGV[13] ~= '' then
  local answered = redis.call('GET', KEYS[4])
  if answered then return cjson.decode(answered) end
end
load()
local me = records[ARGV[7]]
local ask = {session = ARGV[7], ident = ARGV[8], policy = parse_policy(ARGV[12]), at = now, player = true}
read_ident(ask)
candidate(ask, me)

local used = tonumber(redis.call('GET', KEYS[5])) or 0
if used >= tune.takeovers then
  local wait = redis.call('PTTL', KEYS[5])
  return refuse(me, {reason = 'takeover_limited', rule = '', retry_at = now + math.max(wait, 0), conflicts = {}}, 0)
end

-- Nobody is stopped if the slot is free; 'oldest' is the longest held lease that frees every full rule.
local verdict
local choices = {}
for _, r in pairs(records) do
  if r.status == 'r' and not ask.freed[r.session] and (ARGV[9] == 'oldest' or r.session == ARGV[9]) then choices[#choices + 1] = r end
end
table.sort(choices, by_time('admitted'))
ask.victim = ''
verdict = judge(ask)
if not verdict.allow then
  if #choices == 0 and ARGV[9] ~= 'oldest' then return {2, 0, -1, 0, ''} end
  for _, r in ipairs(choices) do
    ask.victim = r.session
    local freed = judge(ask)
    if freed.allow then verdict = freed break end
  end
end
if not verdict.allow then return refuse(me, verdict, 0) end

me = admit(ask, me, verdict)
me.interval, me.beaten, me.rank, me.seen = tonumber(ARGV[10]), 1, 4, now
me.ttl = me.paused > 0 and math.max(0, me.paused + tune.paused_end - now) or tonumber(ARGV[11])
hold(me)
settle()
if used == 0 then redis.call('SET', KEYS[5], 1, 'PX', tune.takeover_window) else redis.call('INCR', KEYS[5]) end
local reply = allow(me, 0, verdict.leaving)
if ARGV[13] ~= '' then redis.call('SET', KEYS[4], cjson.encode(reply), 'PX', ARGV[14]) end
return reply
