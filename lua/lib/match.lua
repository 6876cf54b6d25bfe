-- match: which session does a piece of backend evidence belong to?

-- The better of two matches: running before tentative before finished, then the player's own, then the latest.
local WEIGHT = {r = 4, t = 3, e = 2}
local function better(a, b)
  if not b then return true end
  if WEIGHT[a.status] ~= WEIGHT[b.status] then return WEIGHT[a.status] > WEIGHT[b.status] end
  if a.origin ~= b.origin then return a.origin == 'p' end
  if a.seen ~= b.seen then return a.seen > b.seen end
  return a.session < b.session
end

local function running(device, content)
  for _, r in pairs(records) do
    if r.status == 'r' and r.device == device and r.content == content then return true end
  end
  return false
end

-- Has the device started something else since the evidence happened?
local function moved_on(ask)
  for _, r in pairs(records) do
    if r.status == 'r' and r.device == ask.device and r.started > ask.at then return true end
  end
  return false
end

-- Nobody speaks for this device, and it fetches again what it had left: a zap back, if it had not fetched that for as long as a
-- slot takes to yield, or fetches nothing else any more. Returns since when.
local function zapped_back(r, at)
  if r.origin ~= 's' or r.reason ~= 'superseded' then return nil end
  if at - math.max(r.seen, r.signal_at) >= tune.stale * tune.interval then return at end
  local heir = records[r.by]
  if heir and heir.status == 'r' and heir.origin == 's' and heir.device == r.device and at - heir.seen >= tune.interval then
    return heir.seen
  end
end

-- Does the evidence belong to a view that its device has left? It does if it happened before, or is a straggler: see `spare` in
-- lib/view.lua. Where no player speaks, what was superseded is left for longer, because it may be a zap back: as a shared slot.
local function belongs(r, at)
  if at <= r.ended then return true end
  local other = r.origin == 's' and r.reason == 'superseded' and now < r.ended + tune.left and may_share()
  return (other or at < most_of('spared')) and not zapped_back(r, at)
end

-- By the session it names, else by (device, content), else without content by device. Returns the record or
-- nil, and true if the evidence belongs to a view that its device has left or stopped.
local function match(ask, linked)
  if linked and WEIGHT[linked.status] and (ask.content == '' or linked.content == ask.content or
      (linked.origin == 's' and linked.status ~= 't' and not running(ask.device, ask.content))) then
    local same = linked.content == ask.content or ask.at <= linked.ended
    return linked, linked.status == 'e' and LEFT[linked.reason] and same and belongs(linked, ask.at)
  end
  local found
  for _, r in pairs(records) do
    if WEIGHT[r.status] and r.device == ask.device then
      local same = r.content == ask.content or (ask.content == '' and r.status == 'r')
      if same and better(r, found) then found = r end
    end
  end
  if found and found.status ~= 'e' then return found, false end
  for _, r in pairs(records) do
    local maybe = not unread(r) or string.find(unread(r), ask.content, 1, true)
    if WEIGHT[r.status] and r.device == ask.device and ask.content ~= '' and maybe and r.left == ask.content and
        (ask.at <= r.left_at or ask.at < most_of('spared')) then return r, true end
  end
  if found and LEFT[found.reason] then
    return found, belongs(found, ask.at)
  end
  return found, false
end

-- Keeps a running session alive. Later segments mean that a paused player is playing after all.
local function refresh(r, rank, lifetime, at)
  if rank < r.rank then return end
  if r.paused > 0 then
    if rank < 4 or at <= r.seen then return end
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
-- Content that was superseded and is fetched again (`back`: a zap back, or the other of two streams) rides in the
-- same way on whatever the device runs by now. Returns whether it rides, and the tentative record under the id `born` if there is one.
local function rides(ask, born, lifetime, back)
  local t, player = records[born], nil
  back = back or (t and t.status == 't' and t.reason == 'superseded')
  for _, r in pairs(records) do
    if r.status == 'r' and (r.origin == 'p' or back) and r.device == ask.device and r.session ~= born and yields_at(r) > now and
        (not player or r.seen > player.seen) then
      player = r
    end
  end
  if not player then return false end
  if not t or t.status ~= 't' or now >= t.seen + tune.left then
    if t and t.status == 'r' then end_view(t, t.paused > 0 and 'paused_timeout' or 'timeout') end
    local ordinal = t and t.ordinal or 0
    t = blank(ask.ident, born, 't')
    t.started, t.seen, t.origin, t.ttl, t.ordinal = ask.at, ask.at, 's', lifetime, ordinal
    if back then t.reason, t.by = 'superseded', player.session end
    records[born] = t
    t.seen = ask.at - tune.interval / 2 -- a ride costs as much at least
  end
  local free = may_share()
  share(player, ask.at - t.seen)
  t.seen, t.place = math.max(t.seen, ask.at), nil
  save(t)
  ask.alone, ask.session = true, born
  return free and not (t.seen > t.started + 2 * tune.interval and player.seen > t.started + 2 * tune.interval), t
end
