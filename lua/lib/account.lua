-- account: all records of one account, who holds which rule, and what is written back at the end. A running record is a
-- lease under every rule it names, and its score is when that lease expires; whatever holds none stands below 0, by when
-- it is forgotten.
-- Expects the locals account, leases_key and deadlines_key. Keys that are known only after reading (a tick's set, an
-- account found by the sweep) are built here, under the same hash tag.
local base = string.sub(deadlines_key, 1, -10)
local records, texts, dirty, held, before, changed = {}, {}, {}, {}, {}, false
local aged = {} -- what is not running, as it was read: newest first

-- Accounts due within the same quarter of a second share a set: a third of what a place in a sorted set costs. An
-- account may stand in several; the sweep that finds it alive puts it into the one of its next deadline.
local TICK = 250

local function due_key(tick) return base .. 'due:' .. tick end

local function rules_of(r)
  local names = {}
  for name in string.gmatch(r.rules, '[^,]+') do names[#names + 1] = name end
  return names
end

-- The leases of the account move `held` (rule -> leases) by `step`. Returns what it watches: kind, content, provider -> views,
-- without those that are paused for long.
local function count(step)
  local watched = {}
  for _, r in pairs(records) do
    if r.status == 'r' then
      for _, rule in ipairs(rules_of(r)) do held[rule] = (held[rule] or 0) + step end
      if r.away == 0 then
        local what = r.kind .. '\t' .. r.content .. '\t' .. r.provider
        watched[what] = (watched[what] or 0) + 1
      end
    end
  end
  return watched
end

local function audience(what, more)
  if more == 0 then return end
  if tonumber(redis.call('ZINCRBY', base .. 'audience', more, what)) <= 0 then redis.call('ZREM', base .. 'audience', what) end
  redis.call('HINCRBY', base .. 'deltas', what, more)
end

-- Moves the partition's counts by what has changed since the account was read (`before`): leases, views, and accounts, of which
-- this one counts once however many views it has (`@`).
local function write_counts()
  local after = count(1)
  for rule, more in pairs(held) do
    if more ~= 0 then redis.call('HINCRBY', base .. 'held', rule, more) end
  end
  for what, views in pairs(after) do
    audience(what, views - (before[what] or 0))
    if not before[what] then audience(what .. '\t@', 1) end
  end
  for what, views in pairs(before) do
    if not after[what] then
      audience(what, -views)
      audience(what .. '\t@', -1)
    end
  end
end

-- Reads the account, unless the caller has it read (`found`): latest lease first, then what is over, oldest first. What is no record is
-- left alone.
local NEWEST = 4
local function load(found)
  records, texts, dirty, held, before, changed, aged = {}, {}, {}, {}, {}, false, {}
  local all, ends = found or redis.call('ZREVRANGE', leases_key, '0', '-1'), 0
  for i = #all, 1, -1 do
    local r = read_record(all[i], ends < NEWEST)
    if r then
      records[r.session], texts[r.session] = r, all[i]
      if r.status == 'e' then ends = ends + 1 end
      if r.status ~= 'r' then r.place, aged[#aged + 1] = i, r end
      if not unread(r) then now = math.max(now, r.seen, r.ended) end
    end
  end
  before = count(-1)
end

-- Evidence counts from when it happened, never from the future.
local function at_or_now(text) return math.min(tonumber(text) or now, now) end

-- The latest of what the account's records carry for the account. Whatever ends carries on what was before it, so none but the newest need
-- be asked (several may have ended at once).
local function most_of(name)
  local most = 0
  for _, r in pairs(records) do
    if not unread(r) and r.status ~= 'b' then most = math.max(most, r[name]) end
  end
  return most
end

local function holds(r, rule) return string.find(',' .. r.rules .. ',', ',' .. rule .. ',', 1, true) ~= nil end

local function in_grace(r) return ended > 0 and r.seen <= ended and r.expires > began end

local function alive(r)
  return r.expires > now or (in_grace(r) and now < ended + (r.paused > 0 and tune.lifetime or r.ttl))
end

-- From when on somebody who asks may take this slot: silence beyond `stale` intervals, or a long pause.
local function yields_at(r)
  local at = r.expires
  if r.paused > 0 then
    at = math.min(r.paused + tune.paused_keep, r.seen + tune.paused_silent)
  elseif r.beaten > 0 then
    at = math.min(at, r.seen + tune.stale * r.interval)
  end
  if in_grace(r) then at = math.max(at, ended + tune.lifetime) end
  return at
end

local function unproven(r, require_evidence)
  if r.proven == 0 then return require_evidence end
  return r.paused == 0 and now >= r.proven
end

-- Who holds the rule now, without those in `gone` (session -> true); who expires first comes first.
local function holders_of(rule, gone)
  local found = {}
  for _, r in pairs(records) do
    if r.status == 'r' and holds(r, rule) and not gone[r.session] and alive(r) then found[#found + 1] = r end
  end
  table.sort(found, function(a, b) return a.expires < b.expires or (a.expires == b.expires and a.session < b.session) end)
  return found
end

local function save(r) dirty[r.session], changed = r, true end

local function forget(r)
  changed = true
  if texts[r.session] then redis.call('ZREM', leases_key, texts[r.session]) end
  records[r.session], texts[r.session], dirty[r.session] = nil, nil, nil
end

-- When the sweep must look at this record: it ends, or its pause has become so long that nobody counts as watching.
local function due(r)
  if r.status == 'r' then
    local at = r.expires
    if in_grace(r) then at = math.max(at, ended + (r.paused > 0 and tune.lifetime or r.ttl)) end
    if r.paused > 0 and r.away == 0 then at = math.min(at, r.paused + tune.paused_keep) end
    return at
  end
  if r.status == 't' then return r.seen + tune.left end
  return r.ended + tune.keep
end

-- Whether `a` is forgotten before `b`: by when they are due, which is how they were read (`place`) unless they have changed since.
local function sooner(a, b)
  if a.place ~= b.place then return a.place and (not b.place or a.place < b.place) end
  return due(a) < due(b) or (due(a) == due(b) and a.session > b.session)
end

-- Of finished records the newest `most` are kept, whatever the plan; a quarter of them may be refusals, which only say that their
-- block was told.
local function forget_oldest(finished, most)
  for left = #finished, most + 1, -1 do
    local oldest = 1
    for i = 2, left do
      if sooner(finished[i], finished[oldest]) then oldest = i end
    end
    forget(finished[oldest])
    finished[oldest] = finished[left]
  end
end

-- Writes what changed, keeps the number of finished records bounded, and notes the account's next deadline. Where nothing changed, the
-- account has one (the sweep, which takes it away, says so: `always`).
local function settle(always)
  local finished, refused, soonest = {}, {}, nil
  for _, r in pairs(records) do
    if r.status == 'b' then
      refused[#refused + 1] = r
    elseif r.status ~= 'r' then
      finished[#finished + 1] = r
    else
      local away = r.paused > 0 and now >= r.paused + tune.paused_keep and 1 or 0
      if away ~= r.away then
        r.away = away
        save(r)
      end
    end
  end
  local refusals = math.min(#refused, math.max(1, math.floor(tune.most / 4)))
  forget_oldest(refused, refusals)
  forget_oldest(finished, tune.most - refusals)
  if not (changed or always) then return end
  for session, r in pairs(dirty) do
    local text = format_record(r)
    redis.call('ZADD', leases_key, string.format('%d', r.status == 'r' and r.expires or -due(r)), text)
    if texts[session] and texts[session] ~= text then redis.call('ZREM', leases_key, texts[session]) end
  end
  write_counts()
  -- Of those that are as they were read, the oldest is due first.
  local oldest
  for _, r in pairs(records) do
    if r.status == 'r' or not r.place then
      soonest = math.min(soonest or due(r), due(r))
    elseif not oldest or r.place < oldest.place then
      oldest = r
    end
  end
  if oldest then soonest = math.min(soonest or due(oldest), due(oldest)) end
  if soonest then
    local tick = string.format('%d', math.floor(soonest / TICK))
    redis.call('ZADD', deadlines_key, tick, tick)
    redis.call('SADD', due_key(tick), account)
  end
end
