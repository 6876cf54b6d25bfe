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
local BEGUN = '^([^\t]*)' .. string.rep('\t?([^\t]*)', 5) .. '\t?(.*)$'
local SINCE = '^([^\t]*)' .. string.rep('\t?([^\t]*)', #LIFE - 7) .. '$'

-- What a record has not: most have few of the later fields, and every one that is set costs all who read the account.
local NONE = {revision = 0, run = 0, proven = 0, paused = 0, ended = 0, reason = '', by = '', rule = '', debt = 0, debt_at = 0, left = '',
  left_at = 0, signal_at = 0, signal_rank = 0, away = 0, spared = 0, shared = 0}
local RECORDS = {__index = NONE}

local function read_ident(r)
  local duration
  r.device, r.content, r.kind, r.device_type, r.provider, r.profile, r.rules, duration = string.match(r.ident, '^' .. ID .. '$')
  r.duration = duration ~= '' and duration or nil
end

local tonumber, setmetatable = tonumber, setmetatable
local function number(text) return text ~= '' and tonumber(text) or nil end

-- nil for what is no record.
local function parse(text)
  local session, seq, seen, state, position, furthest, watched, ttl, interval, completed, still, status, life, ident, device, content,
    kind, device_type, provider, profile, rules, duration = string.match(text, RECORD)
  if not session then return nil end
  local ordinal, rank, blocked, started, origin, beaten, since = string.match(life, BEGUN)
  started = started ~= '' and tonumber(started) or 0
  seen, ttl = started + seen, ttl ~= '' and ttl + 0 or 0
  local r = {
    session = session, status = status, ident = ident, device = device, content = content, kind = kind, device_type = device_type,
    provider = provider, profile = profile, rules = rules, duration = duration ~= '' and duration or nil,
    seq = seq + 0, seen = seen, was = seen, state = state, position = position ~= '' and position + 0 or nil,
    furthest = furthest ~= '' and furthest + 0 or position ~= '' and position + 0 or 0, watched = watched + 0, ttl = ttl, expires = seen + ttl,
    interval = interval ~= '' and interval + 0 or tune.interval, completed = completed ~= '' and completed + 0 or 0,
    still = still ~= '' and still + 0 or 0, ordinal = ordinal ~= '' and tonumber(ordinal) or 0, rank = rank ~= '' and tonumber(rank) or 0,
    blocked = blocked, started = started, origin = origin, beaten = beaten ~= '' and tonumber(beaten) or 0, admitted = started,
  }
  if since ~= '' then
    local admitted, revision, run, proven, paused, ended, reason, by, rule, debt, debt_at, left, left_at, signal_at, signal_rank, away,
      spared, shared = string.match(since, SINCE)
    if not admitted then return nil end
    r.admitted, r.revision, r.run, r.proven = number(admitted) or started, number(revision), number(run), number(proven)
    r.paused, r.ended, r.reason, r.by, r.rule = number(paused), number(ended), reason, by, rule
    r.debt, r.debt_at, r.left, r.left_at = number(debt), number(debt_at), left, number(left_at)
    r.signal_at, r.signal_rank, r.away = number(signal_at), number(signal_rank), number(away)
    r.spared, r.shared = number(spared), number(shared)
  end
  return setmetatable(r, RECORDS)
end

-- What is over is seldom asked for more than whose it was, and an account may have much of it: only then is the rest read.
local GONE = '^([^\n]*)\n[^\n]*\n([eb])[^\n]*\n([^\t\n]*)\t([^\t\n]*)'
local LATER = {__index = function(r, name)
  local whole = parse(rawget(r, 'text')) or {seq = -1, seen = 0, was = 0, state = 'e', furthest = 0, watched = 0, ttl = 0, expires = 0,
    interval = tune.interval, completed = 0, still = 0, ordinal = 0, rank = 0, blocked = '', started = 0, origin = 'p', beaten = 0,
    admitted = 0, ident = '', kind = '', device_type = '', provider = '', profile = '', rules = ''}
  r.text = nil
  setmetatable(r, RECORDS)
  for key, value in pairs(whole) do
    if rawget(r, key) == nil then r[key] = value end
  end
  return r[name]
end}

-- The text of a record that is to be read when it is asked for; nil for one that has been.
local function unread(r) return rawget(r, 'text') end

-- nil for what is no record. `all`: also what is over is read now.
local function read_record(text, all)
  local session, status, device, content = string.match(text, GONE)
  if not session or (all and status == 'e') then return parse(text) end
  return setmetatable({session = session, status = status, device = device, content = content, text = text}, LATER)
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
