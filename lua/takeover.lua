-- takeover: the viewer chooses which of the account's streams ends so that this one may start.
-- FLAGS allow-oom
-- KEYS[1] leases     zset: session with its record -> when its lease expires (lib/record.lua)
-- KEYS[2] deadlines  zset: ticks at which the sweep must look at some account
-- KEYS[3] outbox     stream of events
-- KEYS[4] request    string: the answer to a request id
-- KEYS[5] takeovers  string: how many lately, for the rate limit
-- ARGV[1] now            ms, or '' for the server's clock
-- ARGV[2] account
-- ARGV[3] tuning         see lib/tuning.lua
-- ARGV[4] session
-- ARGV[5] ident          device, content, kind, device type, provider, profile, rules; tab-separated
-- ARGV[6] stop           a session, or 'oldest'
-- ARGV[7] interval       ms
-- ARGV[8] ttl            ms the lease lives without evidence
-- ARGV[9] policy         mode, require_evidence, then name:unit:limit for each rule; tab-separated; profiles as in heartbeat.lua
-- ARGV[10] request_id    '' if none
-- ARGV[11] request_ttl   ms
-- RETURNS {code, lease_expires_at, last_seq, duplicate, detail, content}; see lib/reply.lua

-- @include clock
local leases_key, deadlines_key, outbox_key, account = KEYS[1], KEYS[2], KEYS[3], ARGV[2]
-- @include tuning record account judge view reply

if ARGV[10] ~= '' then
  local answered = redis.call('GET', KEYS[4])
  if answered then return cjson.decode(answered) end
end
load()
local me = records[ARGV[4]]
local ask = {session = ARGV[4], ident = ARGV[5], policy = parse_policy(ARGV[9]), at = now, player = true}
read_ident(ask)
local profiles = ask.policy.profiles
for _, r in pairs({me or ask, records[ARGV[6]] or ask}) do
  if not reaches(profiles, r) then return {3, 0, -1, 0, ''} end
end
candidate(ask, me)

-- Nobody is stopped if the slot is free; 'oldest' is the longest held lease that frees every full rule. Only so many may be
-- stopped in a while.
local used = tonumber(redis.call('GET', KEYS[5])) or 0
local verdict
local choices = {}
for _, r in pairs(records) do
  if r.status == 'r' and reaches(profiles, r) and not ask.freed[r.session] and (ARGV[6] == 'oldest' or r.session == ARGV[6]) then choices[#choices + 1] = r end
end
table.sort(choices, by_time('admitted'))
ask.victim = ''
verdict = judge(ask)
if not verdict.allow then
  if used >= tune.takeovers then
    local wait = redis.call('PTTL', KEYS[5])
    return refuse(me, {reason = 'takeover_limited', rule = '', retry_at = now + math.max(wait, 0), conflicts = {}}, 0)
  end
  if #choices == 0 and ARGV[6] ~= 'oldest' then return {2, 0, -1, 0, ''} end
  for _, r in ipairs(choices) do
    ask.victim = r.session
    local freed = judge(ask)
    if freed.allow then verdict = freed break end
  end
end
if not verdict.allow then return refuse(me, verdict, 0) end

me = admit(ask, me, verdict)
me.interval, me.beaten, me.rank, me.seen = tonumber(ARGV[7]), 1, 4, now
me.ttl = me.paused > 0 and math.max(0, me.paused + tune.paused_end - now) or tonumber(ARGV[8])
hold(me)
settle()
if #verdict.leaving > 0 then
  if used == 0 then redis.call('SET', KEYS[5], 1, 'PX', tune.takeover_window) else redis.call('INCR', KEYS[5]) end
end
local reply = allow(me, 0, verdict.leaving)
if ARGV[10] ~= '' then redis.call('SET', KEYS[4], cjson.encode(reply), 'PX', ARGV[11]) end
return reply
