-- track: appends events that somebody tells of, each once within a day or two. No evidence of life: leases, deadlines
-- and records stay as they are.
-- KEYS[1] leases     zset: session with its record -> when its lease expires (lib/record.lua)
-- KEYS[2] outbox     stream of events
-- KEYS[3] seen       what the names of the sets of events seen begin with; a day follows
-- ARGV[1] now            ms, or '' for the server's clock
-- ARGV[2] account
-- ARGV[3] tuning         see lib/tuning.lua
-- ARGV[4] session        whose view the events belong to, or ''
-- ARGV[5] fill           names of envelope fields to take from the session's record, space-separated
-- ARGV[6] high           events in the outbox above which nothing is appended
-- ARGV[7] at             ms when they arrived, or '' for now
-- ARGV[8] view           ordinal, or '' for the session's running view
-- ARGV[9] started_at     of that view, ms
-- ARGV[10...] events     in threes: type as JSON, mark ('' is never a duplicate), JSON from "account" on; or '', mark,
--                        an event that has been told before, whole. A mark is an 8-byte digest, or that of a series with a
--                        4-byte number in it
-- RETURNS {full, flags, last, view, started_at, ident, origin}: full 1 if refused for length, with nothing written, 2 because the
-- account has told as much today as is remembered; flags one digit
-- an event, 1 appended, 0 duplicate; last the outbox id of the last one appended or ''; of the session: its running view
-- (0 if none), since when, the record's ident line, and who showed it first (p, s)

-- @include clock
-- @include find tuning record

local DAY = 86400000
local view, started, ident, mine = 0, 0, '', {}
local text = find(KEYS[1], ARGV[4], '0', '-1')
if text then
  mine = parse(text)
  ident, now = mine.ident, math.max(now, mine.seen, mine.ended)
  if mine.status == 'r' then view, started = mine.ordinal, mine.started end
end

-- Today's and yesterday's set together remember a day at least.
local day = math.floor(now / DAY)
local today = KEYS[3] .. ':' .. string.format('%d', day)
local yesterday = KEYS[3] .. ':' .. string.format('%d', day - 1)
local digests, seen = {}, {}
for i = 11, #ARGV, 3 do
  if #ARGV[i] == 8 then digests[#digests + 1] = ARGV[i] end
end
if #digests > 0 then
  for _, key in ipairs({today, yesterday}) do
    for i, known in ipairs(redis.call('SMISMEMBER', key, unpack(digests))) do
      if known == 1 then seen[digests[i]] = true end
    end
  end
end

-- @include numbers
local flags, fresh, new = {}, {}, {}
for i = 10, #ARGV, 3 do
  local mark = ARGV[i + 1]
  if mark ~= '' and known(mark) then
    flags[#flags + 1] = '0'
  else
    flags[#flags + 1], fresh[#fresh + 1] = '1', i
    if mark ~= '' then new[#new + 1] = remember(mark) end
  end
end

-- So much is remembered of an account's day; what could not be known again is not taken.
local REMEMBERED, BOOKS = 50000, 20000
if (#new > 0 and redis.call('SCARD', today) >= REMEMBERED) or (next(marked) and redis.call('HLEN', today .. SERIES) >= BOOKS) then
  return {2, '', '', view, started, ident, mine.origin or ''}
end
if #fresh > 0 and redis.call('XLEN', KEYS[2]) > tonumber(ARGV[6]) then return {1, '', '', view, started, ident, mine.origin or ''} end
local head = ',"at":' .. string.format('%d', tonumber(ARGV[7]) or now) .. ',"view":' .. string.format('%d', tonumber(ARGV[8]) or view) ..
  ',"started_at":' .. string.format('%d', tonumber(ARGV[9]) or started) .. ','
for name in string.gmatch(ARGV[5], '%S+') do head = head .. '"' .. name .. '":' .. cjson.encode(mine[name] or '') .. ',' end
local last = ''
for _, i in ipairs(fresh) do
  local event = ARGV[i] == '' and ARGV[i + 2] or '{"type":' .. ARGV[i] .. head .. ARGV[i + 2]
  last = redis.call('XADD', KEYS[2], '*', 'e', event)
end
local forgotten = string.format('%d', (day + 2) * DAY - now)
if #new > 0 then
  redis.call('SADD', today, unpack(new))
  redis.call('PEXPIRE', today, forgotten)
end
write_numbers(forgotten)
return {0, table.concat(flags), last, view, started, ident, mine.origin or ''}
