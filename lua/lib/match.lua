-- match: which session does a piece of backend evidence belong to?

local LEFT = {stopped = true, superseded = true, error = true, content_changed = true}

-- The better of two matches: running before tentative before finished, then the player's own, then the latest.
local WEIGHT = {r = 4, t = 3, e = 2}
local function better(a, b)
  if not b then return true end
  if WEIGHT[a.status] ~= WEIGHT[b.status] then return WEIGHT[a.status] > WEIGHT[b.status] end
  if a.origin ~= b.origin then return a.origin == 'p' end
  if a.seen ~= b.seen then return a.seen > b.seen end
  return a.session < b.session
end

-- By the session it names, else by (device, content), else without content by device. Returns the record or
-- nil, and true if the evidence belongs to a view that its device has left or stopped.
local function match(ask, linked)
  if linked and WEIGHT[linked.status] and (ask.content == '' or linked.content == ask.content or linked.origin == 's') then
    if linked.status == 'e' and LEFT[linked.reason] and
        (ask.at <= linked.ended or (linked.content == ask.content and now < linked.ended + tune.left)) then return linked, true end
    return linked, false
  end
  local found
  for _, r in pairs(records) do
    if r.device == ask.device and WEIGHT[r.status] then
      local same = r.content == ask.content or (ask.content == '' and r.status == 'r')
      if same and better(r, found) then found = r end
    end
  end
  if found and found.status ~= 'e' then return found, false end
  for _, r in pairs(records) do
    if r.device == ask.device and ask.content ~= '' and r.left == ask.content and now < r.left_at + tune.left then return r, true end
  end
  if found and LEFT[found.reason] then
    return found, ask.at <= found.ended or now < found.ended + tune.left
  end
  return found, false
end

-- Keeps a running session alive. Segments mean that a paused player is playing after all.
local function refresh(r, rank, lifetime, at)
  if rank < r.rank then return end
  if r.paused > 0 then
    if rank < 4 then return end
    r.paused = 0
    emit('resume', r, {evidence = true})
  end
  if rank > r.rank or at > r.seen then
    if r.origin == 's' and at > r.seen then r.watched = r.watched + at - r.seen end
    r.rank, r.seen, r.ttl = rank, math.max(r.seen, at), lifetime
    r.signal_at, r.signal_rank = r.seen, rank
  end
  hold(r)
end

-- Evidence for other content on a device whose player is beating may be a zap about to be reported, or the
-- next episode being prefetched: it rides on the device's slot for two intervals. When both go on after that
-- they are two streams, and this one needs a slot of its own.
local function rides(ask, me, lifetime)
  local player
  for _, r in pairs(records) do
    if r.status == 'r' and r.origin == 'p' and r.device == ask.device and r.session ~= ask.session and yields_at(r) > now then
      player = r
    end
  end
  if not player then return false end
  if me and me.status == 'b' and now < me.seen + tune.left then
    me.seen = now
    save(me)
    ask.alone = true
    return false
  end
  if not me or me.status ~= 't' then
    me = blank(ask.ident, ask.session, 't')
    me.started, me.origin, me.ttl = ask.at, 's', lifetime
    records[me.session] = me
  end
  me.seen = math.max(me.seen, ask.at)
  save(me)
  ask.alone = true
  return not (me.seen > me.started + 2 * tune.interval and player.seen > me.started + 2 * tune.interval)
end
