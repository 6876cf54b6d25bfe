-- view: what begins, changes and ends a view, each with its event in the outbox.

local function who(r)
  return '"account":' .. cjson.encode(account) .. ',"profile":' .. cjson.encode(r.profile) .. ',"device":' ..
    cjson.encode(r.device) .. ',"session":' .. cjson.encode(r.session) .. ',"content":' .. cjson.encode(r.content) ..
    ',"kind":' .. cjson.encode(r.kind) .. ',"v":1'
end

-- What has only shown evidence beside a player (t) has no view; its number is that of the last one it had.
local function put(kind, r, rest, at)
  local view = r.status ~= 't' and r.ordinal or 0
  local event = '{"type":"' .. kind .. '","at":' .. string.format('%d', at or now) .. ',"view":' .. string.format('%d', view) ..
    ',"started_at":' .. string.format('%d', view > 0 and r.started or 0) .. ',' .. rest
  if redis.call('XLEN', outbox_key) < tune.outbox_max then
    redis.call('XADD', outbox_key, '*', 'e', event)
    return
  end
  -- The log has been away for long: the event waits for an API process to take it to its disk (engine/spill.py).
  local spilled = redis.call('RPUSH', base .. 'spill', event)
  if spilled > tune.outbox_max then
    redis.call('LPOP', base .. 'spill')
    redis.call('INCR', base .. 'lost')
  end
end

-- An event of our own making about record r.
local function emit(kind, r, data)
  put(kind, r, '"revision":' .. string.format('%d', r.revision or 0) .. ',' .. who(r) .. ',"data":' .. cjson.encode(data) .. '}')
end

-- An event whose JSON the caller has written ('' appends nothing), as of when it happened.
local function append(kind, r, body, seq, at)
  if body ~= '' then
    put(kind, r, '"seq":' .. string.format('%d', seq) .. ',"watched_ms":' .. string.format('%d', r.watched or 0) .. ',' .. body, at)
  end
end

local function stated(text) return text ~= '' and text or nil end

-- The lease lasts as long as the latest evidence says.
local function hold(r)
  r.expires = r.seen + r.ttl
  save(r)
end

-- When a view that did not say so itself really ended, halfway through the first interval that brought nothing; nil where it
-- is no matter of guessing. A device that starts anew has left its earlier session some time since that last spoke. Who was
-- removed by another plays on until it is told, unless it had missed a beat by then.
local function estimated_end(r, reason)
  local silent = math.max(0, now - r.seen)
  local gone = reason == 'timeout' or reason == 'displaced' or reason == 'superseded'
    or ((reason == 'evicted' or reason == 'takeover') and r.paused == 0 and silent > r.interval + TICK)
  if gone then return math.floor(r.seen + math.min(silent, r.interval) / 2) end
end

-- A view that says it is over (a stop, other content) was played until then, if it was playing.
local function played_on(r, at)
  if r.state == 'p' and r.paused == 0 then r.watched = r.watched + math.max(0, at - r.seen) end
end

local function view_end(r, reason, by, rule)
  emit('view_end', r, {reason = reason, by = by, rule = rule, started_at = r.started, last_seen_at = r.seen,
    estimated_end_at = estimated_end(r, reason), watched_ms = r.watched,
    max_position = r.furthest / 1000, completed = r.completed == 1, duration = tonumber(r.duration), origin = r.origin})
end

-- Why a device has left a view itself.
local LEFT = {stopped = true, superseded = true, error = true, content_changed = true}

-- What was under way when a view was left still comes for the few seconds that a buffer explains, no longer than the view has lasted,
-- and once for the account: until `spared` (ms), the newest of which every ended record carries on, as it does `shared`.
local function spare(r)
  local spared = most_of('spared')
  if now >= spared + tune.left then spared = now + math.max(0, math.min(tune.straggle, now - r.started)) end
  r.spared = spared
end

local function end_view(r, reason, by, rule)
  view_end(r, reason, by, rule)
  if LEFT[reason] then spare(r) else r.spared = most_of('spared') end
  r.shared = most_of('shared')
  r.status, r.ended, r.reason, r.by, r.rule, r.blocked, r.place = 'e', now, reason, by or '', rule or '', '', nil
  save(r)
end

-- Ends what nobody has shown to be alive, except the records in `kept`.
local function reap(kept)
  local ended_views = 0
  for _, r in pairs(records) do
    if r.status == 'r' and not alive(r) and not kept[r.session] then
      end_view(r, r.paused > 0 and 'paused_timeout' or 'timeout')
      ended_views = ended_views + 1
    end
  end
  return ended_views
end

local REOPENS = {timeout = true, paused_timeout = true, no_progress = true, displaced = true}

local function begin_view(me, at)
  me.ordinal, me.revision, me.started, me.watched, me.furthest, me.position = me.ordinal + 1, 0, at, 0, 0, nil
  me.rank, me.seen, me.completed, me.still, me.was = 0, at, 0, 0, nil
end

-- Gives `ask` its slot: ends what leaves, takes over what it replaces, starts, continues or reopens its view.
local function admit(ask, me, verdict)
  reap(ask.freed)
  for _, go in ipairs(verdict.leaving) do
    end_view(go.r, go.reason, ask.session, go.rule)
    if go.reason ~= 'displaced' then
      emit(go.reason == 'takeover' and 'takeover' or 'evict', go.r, {by = ask.session, device = ask.device, rule = go.rule,
        provider = stated(go.r.provider)})
    end
  end
  local admitted = ask.heir and ask.heir.admitted
  local adopted = ask.adopted and ask.adopted.status == 'r' and ask.adopted or nil
  if ask.earlier then end_view(ask.earlier, 'superseded', ask.session) end
  if adopted and me and me.status == 'r' and me.content == ask.content then
    -- It has a view of its own going on; two views cannot become one.
    end_view(adopted, 'superseded', ask.session)
    adopted = nil
  end
  local spared, shared = 0, 0
  if ask.adopted then
    spared, shared = ask.adopted.spared, ask.adopted.shared
    forget(ask.adopted)
  end

  local new = not me or me.status == 'b' or me.status == 't'
  if new then
    -- A session that does not begin at seq 0 was forgotten: its views go on from a number none of them can have had.
    local ordinal = me and me.ordinal or 0
    if ordinal == 0 and (ask.seq or 0) > 0 then ordinal = math.floor(now / 1000) end
    me = blank(ask.ident, ask.session, 'r')
    me.ordinal = ordinal
  end
  local known = me.content
  if me.status == 'r' and not new and known ~= ask.content then
    played_on(me, ask.at)
    view_end(me, 'content_changed')
    spare(me)
    me.left, me.left_at = known, now
  end
  me.ident = ask.ident
  read_ident(me)
  local reopens = not adopted and me.status == 'e' and REOPENS[me.reason] and now < me.ended + tune.reopen and known == ask.content
  if reopens then
    me.revision, me.still = me.revision + 1, ask.at
    emit('view_reopen', me, {reason = me.reason})
  elseif new or me.status == 'e' or known ~= ask.content then
    begin_view(me, ask.at)
    if ask.since then me.started, me.watched = ask.since, ask.at - ask.since end
    if adopted then
      me.started, me.rank, me.watched = adopted.started, adopted.rank, adopted.watched
      emit('session_linked', me, {from = adopted.session})
    else
      emit('view_start', me, {origin = ask.player and 'p' or 's'})
    end
  end
  -- Whatever ended its view, a pause that goes on is the same pause.
  if me.status ~= 'r' or new then me.paused, me.state = ask.paused_since or 0, 's' end
  me.status, me.reason, me.by, me.rule, me.blocked, me.ended = 'r', '', '', '', '', 0
  me.origin = (ask.player or me.origin == 'p') and 'p' or 's'
  me.admitted = admitted or now
  me.proven = ask.proven
  me.spared, me.shared = math.max(me.spared, spared), math.max(me.shared, shared)
  if ask.debt > 0 then me.debt, me.debt_at = ask.debt, now end
  records[me.session] = me
  return me
end

-- A player may learn the duration after it was refused; that makes it no other stream.
local function same_stream(a, b)
  for i = 1, 7 do
    if a[IDENT[i]] ~= b[IDENT[i]] then return false end
  end
  return true
end

-- The block event is for the transition only, so a refused session leaves a note, but no evidence.
local function note_block(ask, me, verdict)
  local mark = verdict.rule ~= '' and verdict.rule or verdict.reason
  if me and me.blocked == mark and (me.status ~= 'b' or same_stream(me, ask)) then return end
  if not me or me.status == 'b' then
    me = blank(ask.ident, ask.session, 'b')
    me.ended = now
  end
  me.blocked, verdict.told = mark, true
  records[me.session] = me
  save(me)
  emit('block', {session = ask.session, status = me.status, ordinal = me.ordinal, started = me.started, device = ask.device,
    content = ask.content, kind = ask.kind, profile = ask.profile}, {reason = verdict.reason, rule = verdict.rule,
    limit = verdict.limit, by = verdict.by, provider = stated(ask.provider), conflicts = #verdict.conflicts})
end
