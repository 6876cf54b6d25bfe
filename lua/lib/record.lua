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
  'paused', 'ended', 'reason', 'by', 'rule', 'debt', 'debt_at', 'left', 'left_at', 'signal_at', 'signal_rank', 'away'}
local IDENT = {'device', 'content', 'kind', 'device_type', 'provider', 'profile', 'rules', 'duration'}
local TEXT = {state = true, origin = true, reason = true, by = true, rule = true, blocked = true, left = true}

local function read_fields(r, names, line)
  local i = 0
  for value in string.gmatch(line .. '\t', '([^\t]*)\t') do
    i = i + 1
    if names[i] then
      if TEXT[names[i]] then r[names[i]] = value else r[names[i]] = tonumber(value) or 0 end
    end
  end
  for j = i + 1, #names do r[names[j]] = TEXT[names[j]] and '' or 0 end
end

local function read_ident(r)
  local i = 0
  r.duration = nil
  for value in string.gmatch(r.ident .. '\t', '([^\t]*)\t') do
    i = i + 1
    r[IDENT[i]] = value
  end
end

local function parse(text)
  local session, beat, status, life, id = string.match(text, '^([^\n]*)\n([^\n]*)\n(.)([^\n]*)\n(.*)$')
  local r = {session = session, status = status, ident = id}
  read_fields(r, BEAT, beat)
  read_fields(r, LIFE, life)
  read_ident(r)
  local position = string.match(beat, '^[^\t]*\t[^\t]*\t[^\t]*\t(%d*)')
  if position == '' then r.position = nil end
  if r.furthest == 0 then r.furthest = r.position or 0 end
  if r.admitted == 0 then r.admitted = r.started end
  r.seen = r.started + r.seen
  if r.interval == 0 then r.interval = tune.interval end
  r.expires, r.was = r.seen + r.ttl, r.seen
  return r
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
