-- signal: the backend saw the stream: a playback token, a DRM licence, a manifest, a segment. Counts like a
-- heartbeat where no player speaks, and once where one does. Never evicts.
-- FLAGS allow-oom
-- KEYS[1] leases     zset: session with its record -> when its lease expires (lib/record.lua)
-- KEYS[2] deadlines  zset: ticks at which the sweep must look at some account
-- KEYS[3] outbox     stream of events
-- KEYS[4] request    string: the answer to a request id
-- ARGV[1] now            ms, or '' for the server's clock
-- ARGV[2] account
-- ARGV[3] tuning         see lib/tuning.lua
-- ARGV[4] link           the session the evidence names (token's sid or jti), or ''
-- ARGV[5] born           the id of the session to start if nothing matches and `link` is taken or ''
-- ARGV[6] ident          device, content ('' if unknown), kind, device type, provider, profile, rules
-- ARGV[7] rank           1 token, 2 licence, 3 manifest, 4 segment: coarser evidence extends nothing once finer was seen
-- ARGV[8] lifetime       ms this evidence keeps a lease alive, from when it happened
-- ARGV[9] at             ms when it happened, or '' for now
-- ARGV[10] policy        mode, require_evidence, then name:unit:limit for each rule; tab-separated
-- ARGV[11] unmatched     count or observe: what evidence that matches no session does
-- ARGV[12] who           the event's JSON from "account" up to its session, which is the one it turns out to be about
-- ARGV[13] body          the event's JSON from "content" on, or '' for none
-- ARGV[14] request_id    '' if none
-- ARGV[15] request_ttl   ms
-- RETURNS {code, lease_expires_at, last_seq, duplicate, detail, content}; see lib/reply.lua

-- @include clock
local leases_key, deadlines_key, outbox_key, account = KEYS[1], KEYS[2], KEYS[3], ARGV[2]
-- @include tuning record account judge view reply match

if ARGV[14] ~= '' then
  local answered = redis.call('GET', KEYS[4])
  if answered then return cjson.decode(answered) end
end

local function answer(reply)
  settle()
  if ARGV[14] ~= '' then redis.call('SET', KEYS[4], cjson.encode(reply), 'PX', ARGV[15]) end
  return reply
end

load()
local rank, lifetime = tonumber(ARGV[7]), tonumber(ARGV[8])
local linked = records[ARGV[4]]
local born = ARGV[4] ~= '' and (not linked or linked.origin == 's') and ARGV[4] or ARGV[5]
local ask = {session = born, ident = ARGV[6], policy = parse_policy(ARGV[10]), at = at_or_now(ARGV[9]), player = false}
read_ident(ask)
local me, belongs = match(ask, linked)
if me then
  ask.session = me.session
  if ask.profile == '' then
    -- Evidence that names no profile leaves the session the one it has.
    local before, after = string.match(ask.ident, '^([^\t]*\t[^\t]*\t[^\t]*\t[^\t]*\t[^\t]*\t)(\t.*)$')
    ask.ident = before .. me.profile .. after
    read_ident(ask)
  end
end
if ARGV[13] ~= '' then
  local body = ARGV[12] .. ',"session":' .. cjson.encode(ask.session) .. ',' .. ARGV[13]
  append('evidence', me or ask, body, me and me.seq or -1, ask.at)
end
if belongs then
  if me.origin == 's' and ask.at > me.signal_at then
    if me.status == 'e' and ask.at > me.ended then share(me, ask.at - math.max(me.signal_at, me.ended)) end
    me.signal_at = ask.at
    save(me)
  end
  return answer({0, 0, me.seq, 0, ''})
end
if me and me.status == 'r' and ask.at >= me.started then
  me.proven = now + tune.unproven
  save(me)
end
-- A late log line is history only.
if ask.at + lifetime <= now then return answer(decided(ask, me, 0)) end

if me and me.status == 'r' and alive(me) and (ask.content == '' or ask.content == me.content) then
  refresh(me, rank, lifetime, ask.at)
  return answer(allow(me, 0))
end
local verdict = sticky(me)
if not verdict then
  if ask.content == '' or (ARGV[11] == 'observe' and not me) then return answer({0, 0, -1, 0, ''}) end
  local back = false
  if me and me.status == 'e' and zapped_back(me, ask.at) then
    me.reason, ask.since = '', zapped_back(me, ask.at)
  elseif me and me.status == 'e' and LEFT[me.reason] then
    back = me.reason == 'superseded'
    me, ask.session = nil, born
  end
  me, ask.alone = me or records[ask.session], back
  if moved_on(ask) then return answer({0, 0, -1, 0, ''}) end
  if not (me and me.status == 'r' and alive(me)) then
    local riding, tentative = rides(ask, born, lifetime, back)
    if riding then return answer({0, 0, -1, 0, ''}) end
    me = tentative or me
  end
  ask.proven = now + tune.unproven
  verdict = judge(candidate(ask, me))
end
if not verdict.allow then
  note_block(ask, me, verdict)
  return answer(refuse(records[ask.session], verdict, 0))
end
me = admit(ask, me, verdict)
me.seen = math.max(me.seen, ask.at)
me.rank, me.ttl, me.state, me.signal_at, me.signal_rank = rank, lifetime, 'p', me.seen, rank
hold(me)
return answer(allow(me, 0, verdict.leaving))
