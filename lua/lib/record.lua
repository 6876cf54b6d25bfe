-- record: the text of one session: its name, then three lines of tab-separated fields. Empty means 0, absent, or the usual:
-- furthest as position, admitted as started, interval as set. `seen` is written as ms since `started`.
--   beat   changes with every heartbeat: what the fast path rewrites
--   life   status letter (r running, t tentative, e ended, b blocked) and what changes with the view's life
--   ident  who and what: sent whole by the caller, compared whole; `duration` (s) only where the player states one
-- The last two of a beat are seldom there, and then left out with their tabs: completed (1: the view has been, whatever
-- comes), still (ms, since when the position has not moved; empty while it moves, is paused, or is not known).
local BEAT = {'seq', 'seen', 'state', 'position', 'furthest', 'watched', 'ttl', 'interval', 'completed', 'still'}
-- The fast path reads the first four of these; what is seldom there comes last, where it costs nothing.
local LIFE = {'ordinal', 'rank', 'blocked', 'started', 'origin', 'beaten', 'admitted', 'revision', 'run', 'proven',
  'paused', 'ended', 'reason', 'by', 'rule', 'debt', 'debt_at', 'left', 'left_at', 'signal_at', 'signal_rank', 'away',
  'spared', 'shared'}
local IDENT = {'device', 'content', 'kind', 'device_type', 'provider', 'profile', 'rules', 'duration'}
local TEXT = {state = true, origin = true, reason = true, by = true, rule = true, blocked = true, left = true}

-- One pattern a line: a set of records is read at every decision, and a field at a time costs twice as much.
local ID = '([^\t\n]*)\t([^\t\n]*)\t([^\t\n]*)\t([^\t\n]*)\t([^\t\n]*)\t([^\t\n]*)\t([^\t\n]*)\t?([^\t\n]*)'
local RECORD = '^([^\n]*)\n(%-?%d+)\t(%-?%d+)\t([^\t\n]*)\t(%d*)\t(%d*)\t(%d+)\t(%d*)\t(%d*)\t?(%d*)\t?(%d*)\n([^\n])([^\n]*)\n(' .. ID .. ')$'
local LIVES = '^([^\t]*)' .. string.rep('\t?([^\t]*)', #LIFE - 1) .. '$'

local function read_ident(r)
  local duration
  r.device, r.content, r.kind, r.device_type, r.provider, r.profile, r.rules, duration = string.match(r.ident, '^' .. ID .. '$')
  r.duration = duration ~= '' and duration or nil
end

local function number(text) return text ~= '' and tonumber(text) or 0 end

-- nil for what is no record.
local function parse(text)
  local session, seq, seen, state, position, furthest, watched, ttl, interval, completed, still, status, life, ident, device, content,
    kind, device_type, provider, profile, rules, duration = string.match(text, RECORD)
  if not session then return nil end
  local ordinal, rank, blocked, started, origin, beaten, admitted, revision, run, proven, paused, ended, reason, by, rule, debt, debt_at,
    left, left_at, signal_at, signal_rank, away, spared, shared = string.match(life, LIVES)
  if not ordinal then return nil end
  started = number(started)
  seen, ttl = started + seen, number(ttl)
  return {
    session = session, status = status, ident = ident, device = device, content = content, kind = kind, device_type = device_type,
    provider = provider, profile = profile, rules = rules, duration = duration ~= '' and duration or nil,
    seq = tonumber(seq), seen = seen, was = seen, state = state, position = position ~= '' and tonumber(position) or nil,
    furthest = number(furthest ~= '' and furthest or position), watched = tonumber(watched), ttl = ttl, expires = seen + ttl,
    interval = interval ~= '' and tonumber(interval) or tune.interval, completed = number(completed), still = number(still),
    ordinal = number(ordinal), rank = number(rank), blocked = blocked, started = started, origin = origin, beaten = number(beaten),
    admitted = admitted ~= '' and tonumber(admitted) or started, revision = number(revision), run = number(run), proven = number(proven),
    paused = number(paused), ended = number(ended), reason = reason, by = by, rule = rule, debt = number(debt), debt_at = number(debt_at),
    left = left, left_at = number(left_at), signal_at = number(signal_at), signal_rank = number(signal_rank), away = number(away),
    spared = number(spared), shared = number(shared),
  }
end

-- A refusal's record is seldom asked for more than that it is there; only then is the rest read. (It alone has a beat that ends with
-- two empty fields.)
local REFUSED = {__index = function(r, name)
  setmetatable(r, nil)
  for key, value in pairs(parse(r.text)) do
    if r[key] == nil then r[key] = value end
  end
  return r[name]
end}
local function read_record(text)
  if not string.find(text, '\t\t\nb', 1, true) then return parse(text) end
  local session, seen = string.match(text, '^([^\n]*)\n[^\t]*\t(%d+)')
  return setmetatable({session = session, status = 'b', seen = tonumber(seen), ended = tonumber(seen), text = text}, REFUSED)
end

local function plain(value)
  if value == 0 or value == nil then return '' end
  if type(value) == 'number' then return string.format('%d', value) end
  return value
end

local function format_record(r)
  local beat, life = {}, {}
  for i, name in ipairs(BEAT) do beat[i] = plain(r[name]) end
  for i, name in ipairs(LIFE) do life[i] = plain(r[name]) end
  -- The fast path reads these as digits, zero included.
  beat[1], beat[2], beat[6] = string.format('%d', r.seq), string.format('%d', r.seen - r.started), string.format('%d', r.watched)
  if r.interval == tune.interval then beat[8] = '' end
  if r.position then beat[4] = string.format('%d', r.position) end
  if r.furthest == r.position then beat[5] = '' end
  if r.admitted == r.started then life[7] = '' end
  local seldom = string.gsub('\t' .. beat[9] .. '\t' .. beat[10], '\t+$', '')
  local text = string.gsub(table.concat(life, '\t'), '\t+$', '')
  return r.session .. '\n' .. table.concat(beat, '\t', 1, 8) .. seldom .. '\n' .. r.status .. text .. '\n' .. r.ident
end

-- A new record: nothing seen, nothing held.
local function blank(id, session, status)
  local r = {session = session, status = status, ident = id, seq = -1, seen = now, watched = 0, furthest = 0, ttl = 0, state = 's',
    completed = 0, still = 0}
  for _, name in ipairs(LIFE) do r[name] = TEXT[name] and '' or 0 end
  read_ident(r)
  r.interval = tune.interval
  r.expires = now
  return r
end
