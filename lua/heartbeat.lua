-- heartbeat: a player shows that its stream is alive; decides whether it may go on.
-- FLAGS allow-oom
-- KEYS[1] leases     zset: session with its record -> when its lease expires (lib/record.lua)
-- KEYS[2] deadlines  zset: ticks at which the sweep must look at some account
-- KEYS[3] outbox     stream of events
-- ARGV[1] now            ms, or '' for the server's clock
-- ARGV[2] account
-- ARGV[3] tuning         see lib/tuning.lua
-- ARGV[4] session
-- ARGV[5] ident          device, content, kind, device type, provider, profile, rules held, and the duration (s) if the
--                        player states one; tab-separated
-- ARGV[6] seq
-- ARGV[7] state          p playing, b buffering, k seeking, s starting, a paused, e ended, f failed
-- ARGV[8] position       ms, or '' if the player has none (live)
-- ARGV[9] interval       ms until the next heartbeat, as promised in the answer; '' for the usual
-- ARGV[10] ttl           ms the lease lives without evidence
-- ARGV[11] rate          playback rate; '' for 1
-- ARGV[12] policy        mode, require_evidence, then name:unit:limit for each rule; tab-separated; then, if the token is for some
--                        profiles only, a line break and those, each between tabs
-- ARGV[13] at            ms when it really arrived, if it was spooled; else ''
-- ARGV[14] body          the event's JSON from "account" on; '' thins: the heartbeat is not appended
-- ARGV[15] completed     1: this position completes the title; else ''
-- ARGV[16...] events     the player's own events in pairs: type, JSON from "account" on
-- RETURNS {code, lease_expires_at, last_seq, duplicate, detail, content}; detail is JSON or '' (lib/reply.lua). What nearly every
-- heartbeat is answered, {0, lease_expires_at, its seq, 0, ''}, is said by lease_expires_at alone: a list costs Redis 0.7 µs.
-- Negative: it has begun another five minutes and is to be counted as a viewer.

-- @include clock find
local leases_key, deadlines_key, outbox_key, account = KEYS[1], KEYS[2], KEYS[3], ARGV[2]
local session, ident, seq = ARGV[4], ARGV[5], tonumber(ARGV[6])

-- Fast path: a known session beats again, nothing but time and position has changed, its lease is alive. (Its rank is a
-- player's, no refusal is noted, it does not end sooner than the account's deadline says, and if it brings events there is room
-- for them.) `seldom` is what most beats
-- lack: that the view was completed, and since when its position has not moved.
local call, fmt, ARGV = redis.call, string.format, ARGV
-- Eight records are all of most accounts'; the others of a large one are read only if this is none of the eight, and nothing twice.
local text, read = find(KEYS[1], session, '0', '7')
local whole = #read < 8
if not text and not whole then
  local rest
  text, rest = find(KEYS[1], session, '8', '-1')
  for i = 1, #rest do read[#read + 1] = rest[i] end
  whole = true
end
if ARGV[13] ~= '' then text = nil end
if text then
  local last_seq, since, was, position, furthest, watched, ttl, seldom, life, ordinal, started, held = string.match(text,
    '^(%d+)\t(%d+)\t([pbks])\t(%d*)\t(%d*)\t(%d+)\t(%d+)\t%d*([\t%d]*)\n(r(%d+)\t4\t\t(%d+)\t[^\n]*)\n(.*)$', #session + 2)
  local state, lasts = ARGV[7], tonumber(ARGV[10])
  local left = ttl == ARGV[10] and lasts or tonumber(ttl)
  local seen = left and started + since
  local fast = seen and held == ident and seq > tonumber(last_seq) and seen + left > now and left <= lasts
    and (state == 'p' or state == 'b') and (ARGV[14] ~= '' or #ARGV < 16)
  if fast and (seldom ~= '' or ARGV[15] ~= '' or (position == ARGV[8] and position ~= '')) then
    local completed, still = string.match(seldom, '^\t?(%d*)\t?(%d*)$')
    if ARGV[15] ~= '' then completed = ARGV[15] end
    if position ~= ARGV[8] or position == '' then still = '' elseif still == '' then still = seen end
    seldom = (still ~= '' and '\t' .. completed .. '\t' .. still) or (completed ~= '' and '\t' .. completed) or ''
    fast = still == '' or math.max(now, seen) - still < tonumber(string.match(ARGV[3], '%d+$'))
  end
  if fast then
    if now < seen then now = seen end
    local elapsed = now - seen
    local moved, most = elapsed, elapsed
    if ARGV[8] ~= '' then
      local to, from = tonumber(ARGV[8]), tonumber(position)
      moved = from and to - from or 0
      if furthest == '' then
        if from and to < from then furthest = position end
      elseif to >= tonumber(furthest) then
        furthest = ''
      end
    else
      if furthest == '' then furthest = position end
      if was ~= 'p' then moved = 0 end
    end
    if ARGV[11] ~= '' then most = elapsed * ARGV[11] end
    if moved > most + 5000 then moved = most end -- RETRIED in lib/progress.lua
    if moved > 0 then watched = fmt('%d', watched + moved) end
    local expires = now + lasts
    call('ZADD', KEYS[1], expires, session .. '\n' .. ARGV[6] .. '\t' .. fmt('%d', now - started) .. '\t' .. state .. '\t' .. ARGV[8] ..
      '\t' .. furthest .. '\t' .. watched .. '\t' .. ARGV[10] .. '\t' .. ARGV[9] .. seldom .. '\n' .. life .. '\n' .. ident)
    call('ZREM', KEYS[1], text)
    local head = '","at":' .. fmt('%d', now) .. ',"view":' .. ordinal .. ',"started_at":' .. started .. ',"seq":' .. ARGV[6] .. ','
    if ARGV[14] ~= '' then
      call('XADD', KEYS[3], '*', 'e', '{"type":"heartbeat' .. head .. '"watched_ms":' .. watched .. ',' .. ARGV[14])
    end
    for i = 16, #ARGV, 2 do call('XADD', KEYS[3], '*', 'e', '{"type":"' .. ARGV[i] .. head .. ARGV[i + 1]) end
    if (now - started) % 300000 < elapsed then return -expires end
    return expires
  end
end

-- @include tuning record account judge view progress reply

if not whole then
  local _, rest = find(KEYS[1], session, '8', '-1')
  for i = 1, #rest do read[#read + 1] = rest[i] end
end
load(read)
local policy = parse_policy(ARGV[12])
local ask = {session = session, ident = ident, policy = policy, at = at_or_now(ARGV[13]), player = true,
  seq = seq}
read_ident(ask)
local me = records[session]
if me and not reaches(policy.profiles, me) then return {3, 0, -1, 0, ''} end

local function append_events(r)
  append('heartbeat', r, ARGV[14], seq, ask.at)
  for i = 16, #ARGV, 2 do append(ARGV[i], r, ARGV[i + 1], seq, ask.at) end
end

-- Order is (run, seq): what is older than what we have answers the current decision and changes nothing.
local run = me and me.run or 0
if me and me.status ~= 'b' and seq <= me.seq then
  if seq > 0 or ask.at - me.seen <= me.interval / 2 then
    if ARGV[13] ~= '' and ask.at < me.seen then append_events(me) end
    return decided(ask, me, 1)
  end
  run = run + 1
end

local state, position, rate = ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[11]) or 1
local same = me and me.content == ask.content

local function accept()
  advance(me, ask.at, state, position, seq, run, rate, ARGV[15] ~= '')
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

-- Everything let through is in the log, also where it changes no view.
local function note()
  if me and me.status == 'e' then
    me.seq, me.run = seq, run
    save(me)
  end
  append_events(me or ask)
  settle()
  return {0, 0, seq, 0, ''}
end

if state == 'e' or state == 'f' then
  if me and me.status == 'r' then return finish(state == 'e' and 'stopped' or 'error') end
  return note()
end

-- Spooled or late evidence is history: it neither creates nor extends a lease that would be over by now.
local ttl = tonumber(ARGV[10])
if ask.at + ttl <= now then
  append_events(me or ask)
  return decided(ask, me, 0)
end

local verdict = sticky(me) or standing(ask, me)
if verdict and verdict.allow then
  local heir = verdict.heir
  heir.debt, heir.debt_at = debt_of(heir.device) + tune.refill, now
  share(heir, tune.interval)
  note() -- its view is over, but what it says of where it is counts
  return {0, verdict.expires, seq, 0, ''}
end
-- The pause has ended its view, or is about to: a player that is paused still changes nothing. Nor does one whose view
-- ended because its position did not move, until it does.
local paused = state == 'a' and not moving(ask, me, position)
if same and paused and (me.reason == 'paused_timeout' or (me.status == 'r' and me.paused > 0 and not alive(me))) then
  return note()
end
if same and me.reason == 'no_progress' and position == me.position then return note() end
if same and me.status == 'r' and stuck(me, ask.at, state, position) then return finish('no_progress') end
ask = candidate(ask, me)
verdict = verdict or judge(ask)
if not verdict.allow then
  note_block(ask, me, verdict)
  settle()
  return refuse(records[session], verdict, 0)
end

ask.paused_since = same and paused and me.paused or 0
me = admit(ask, me, verdict)
me.interval, me.beaten, me.ttl = tonumber(ARGV[9]) or tune.interval, 1, ttl
pause(me, paused, position, ask.at)
accept()
me.rank = 4
hold(me)
append_events(me)
settle()
return allow(me, 0, verdict.leaving)
