-- heartbeat: a player shows that its stream is alive; decides whether it may go on.
-- KEYS[1] sessions   hash: session -> record (lib/record.lua)
-- KEYS[2] deadlines  zset: ticks at which the sweep must look at some account
-- KEYS[3] outbox     stream of events
-- KEYS[4...] leases  zsets, one for each rule in the policy, in its order
-- ARGV[1] now            ms, or '' for the server's clock
-- ARGV[2] account
-- ARGV[3] outbox_max     lifecycle events the outbox may hold, about
-- ARGV[4] tuning         see lib/tuning.lua
-- ARGV[5] outage_began   ms, 0 if none lately
-- ARGV[6] outage_ended   ms
-- ARGV[7] session
-- ARGV[8] ident          device, content, kind, device type, provider, profile, rules held, and the duration (s) if the
--                        player states one; tab-separated
-- ARGV[9] seq
-- ARGV[10] state         p playing, b buffering, k seeking, s starting, a paused, e ended, f failed
-- ARGV[11] position      ms, or '' if the player has none (live)
-- ARGV[12] interval      ms until the next heartbeat, as promised in the answer; '' for the usual
-- ARGV[13] ttl           ms the lease lives without evidence
-- ARGV[14] rate          playback rate
-- ARGV[15] policy        mode, require_evidence, then name:unit:limit for each rule; tab-separated
-- ARGV[16] at            ms when it really arrived, if it was spooled; else ''
-- ARGV[17] body          the event's JSON from "account" on; '' thins: the heartbeat is not appended
-- ARGV[18] completed     1: this position completes the title; else ''
-- ARGV[19...] events     the player's own events in pairs: type, JSON from "account" on
-- RETURNS {code, lease_expires_at, last_seq, duplicate, detail}; detail is JSON or '' (lib/reply.lua)

-- @include clock
local sessions_key, deadlines_key, outbox_key, account = KEYS[1], KEYS[2], KEYS[3], ARGV[2]
local session, ident, seq = ARGV[7], ARGV[8], tonumber(ARGV[9])

-- Fast path: a known session beats again, nothing but time and position has changed, its lease is alive. (Its rank is a
-- player's, no refusal is noted, and it does not end sooner than the account's deadline says.) `seldom` is what most beats
-- lack: that the view was completed, and since when its position has not moved.
local call = redis.call
local text = call('HGET', KEYS[1], session)
if text and ARGV[16] == '' then
  local last_seq, since, was, position, furthest, watched, ttl, seldom, life, slot, ordinal, started, held = string.match(text,
    '^(%d+)\t(%d+)\t([pbks])\t(%d*)\t(%d*)\t(%d+)\t(%d+)\t%d*([\t%d]*)\n(r(%d+)\t(%d+)\t4\t\t(%d+)\t[^\n]*)\n(.*)$')
  local seen = last_seq and started + since
  local fast = seen and held == ident and seq > tonumber(last_seq) and seen + ttl > now and ttl - ARGV[13] <= 0
    and string.find('pbks', ARGV[10], 1, true)
  if fast and (seldom ~= '' or ARGV[18] ~= '' or (position == ARGV[11] and position ~= '')) then
    local completed, still = string.match(seldom, '^\t?(%d*)\t?(%d*)$')
    if ARGV[18] ~= '' then completed = ARGV[18] end
    if position ~= ARGV[11] or position == '' then still = '' elseif still == '' then still = seen end
    seldom = (still ~= '' and '\t' .. completed .. '\t' .. still) or (completed ~= '' and '\t' .. completed) or ''
    fast = still == '' or math.max(now, seen) - still < tonumber(string.match(ARGV[4], '%d+$'))
  end
  if fast then
    if now < seen then now = seen end
    local elapsed = now - seen
    local moved = elapsed
    if ARGV[11] ~= '' then
      local to = tonumber(ARGV[11])
      moved = to - (tonumber(position) or to)
      if furthest == '' then furthest = position end
      if to >= (tonumber(furthest) or 0) then furthest = '' end
    else
      if furthest == '' then furthest = position end
      if was ~= 'p' then moved = 0 end
    end
    if moved > 0 then watched = string.format('%d', watched + math.min(moved, elapsed * ARGV[14])) end
    local expires = now + ARGV[13]
    for i = 4, #KEYS do call('ZADD', KEYS[i], expires, slot) end
    call('HSET', KEYS[1], session, ARGV[9] .. '\t' .. now - started .. '\t' .. ARGV[10] .. '\t' .. ARGV[11] .. '\t' ..
      furthest .. '\t' .. watched .. '\t' .. ARGV[13] .. '\t' .. ARGV[12] .. seldom .. '\n' .. life .. '\n' .. ident)
    local head = '","at":' .. now .. ',"view":' .. ordinal .. ',"started_at":' .. started .. ',"seq":' .. ARGV[9] .. ','
    if ARGV[17] ~= '' then
      call('XADD', KEYS[3], '*', 'e', '{"type":"heartbeat' .. head .. '"watched_ms":' .. watched .. ',' .. ARGV[17])
    end
    for i = 19, #ARGV, 2 do call('XADD', KEYS[3], '*', 'e', '{"type":"' .. ARGV[i] .. head .. ARGV[i + 1]) end
    return {0, expires, seq, 0, ''}
  end
end

-- @include tuning record account judge view progress reply

load()
local policy = parse_policy(ARGV[15])
local ask = {session = session, ident = ident, policy = policy, at = at_or_now(ARGV[16]), player = true,
  seq = seq}
read_ident(ask)
local me = records[session]

local function append_events(r)
  append('heartbeat', r, ARGV[17], seq, ask.at)
  for i = 19, #ARGV, 2 do append(ARGV[i], r, ARGV[i + 1], seq, ask.at) end
end

-- Order is (run, seq): what is older than what we have answers the current decision and changes nothing.
local run = me and me.run or 0
if me and me.status ~= 'b' and seq <= me.seq then
  if seq > 0 or ask.at - me.seen <= me.interval / 2 then
    if ARGV[16] ~= '' and ask.at < me.seen then append_events(me) end
    return decided(ask, me, 1)
  end
  run = run + 1
end

local state, position = ARGV[10], tonumber(ARGV[11])
local same = me and me.content == ask.content

local function accept()
  advance(me, ask.at, state, position, seq, run, tonumber(ARGV[14]), ARGV[18] ~= '')
end

-- The view's last beat. A last word about other content says nothing of this view's position.
local function finish(reason)
  if same then
    accept()
    me.duration = ask.duration or me.duration
  end
  me.state, me.seq, me.run, me.seen = state, seq, run, math.max(me.seen, ask.at)
  append_events(me)
  end_view(me, reason)
  settle()
  return {0, 0, seq, 0, ''}
end

if state == 'e' or state == 'f' then
  if me and me.status == 'r' then return finish(state == 'e' and 'stopped' or 'error') end
  return {0, 0, seq, 0, ''}
end

-- Spooled or late evidence is history: it neither creates nor extends a lease that would be over by now.
local ttl = tonumber(ARGV[13])
if ask.at + ttl <= now then
  append_events(me or ask)
  return decided(ask, me, 0)
end

local verdict = sticky(me) or standing(ask, me)
if verdict and verdict.allow then
  local heir = verdict.heir
  heir.debt, heir.debt_at = debt_of(heir.device) + tune.refill, now
  save(heir)
  settle()
  return {0, verdict.expires, me.seq, 0, ''}
end
-- The pause has ended its view, or is about to: a player that is paused still changes nothing. Nor does one whose view
-- ended because its position did not move, until it does.
local paused = state == 'a' and not moving(ask, me, position)
if same and paused and (me.reason == 'paused_timeout' or (me.status == 'r' and me.paused > 0 and not alive(me))) then
  return {0, 0, me.seq, 0, ''}
end
if same and me.reason == 'no_progress' and position == me.position then return {0, 0, me.seq, 0, ''} end
if same and me.status == 'r' and stuck(me, ask.at, state, position) then return finish('no_progress') end
ask = candidate(ask, me)
verdict = verdict or judge(ask)
if not verdict.allow then
  note_block(ask, me, verdict)
  settle()
  return refuse(records[session], verdict, 0)
end

me = admit(ask, me, verdict)
me.interval, me.beaten, me.ttl = tonumber(ARGV[12]) or tune.interval, 1, ttl
pause(me, paused, position, ask.at)
accept()
me.rank = 4
hold(me)
append_events(me)
settle()
return allow(me, 0, verdict.leaving)
