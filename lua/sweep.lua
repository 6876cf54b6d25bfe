-- sweep: ends the views of one partition whose deadline has passed, and forgets what is past its use.
-- FLAGS allow-oom
-- KEYS[1] deadlines  zset: the ticks (quarters of a second) at which some account is due
-- KEYS[2] outbox     stream of events
-- ARGV[1] now            ms, or '' for the server's clock
-- ARGV[2] batch          accounts to look at, at most
-- ARGV[3] tuning         see lib/tuning.lua
-- RETURNS {ended, looked, bad, why}: views ended, accounts looked at; call again while looked = batch; what could not be read or
-- written, and Redis's or Lua's words for one of these

-- @include clock
local deadlines_key, outbox_key = KEYS[1], KEYS[2]
local account, leases_key
-- @include tuning record account view

-- What fails is tried again so much later: it must not keep the sweep from the others, nor be forgotten.
local AGAIN = 60000

local server_now, ended_views, bad, why = now, 0, 0, ''
local left = tonumber(ARGV[2])

local function failed(message)
  bad, why = bad + 1, tostring(type(message) == 'table' and message.err or message)
end

local function look(name)
  account, leases_key, now = name, base .. 'leases:' .. name, server_now
  load()
  ended_views = ended_views + reap({})
  for i = #aged, 1, -1 do
    if due(aged[i]) > now then break end
    forget(aged[i])
  end
  settle(true)
end

-- Forgets what is no record (nothing could be decided beside it), and looks once more.
local function mend(name, message)
  failed(message)
  local texts = redis.pcall('ZRANGE', leases_key, 0, -1)
  for _, text in ipairs(texts.err and {} or texts) do
    if not pcall(parse, text) then redis.call('ZREM', leases_key, text) end
  end
  if pcall(look, name) then return end
  local tick = string.format('%d', math.floor((server_now + AGAIN) / TICK))
  if type(redis.pcall('SADD', due_key(tick), name)) == 'number' then redis.call('ZADD', deadlines_key, tick, tick) end
end

local ticks = redis.call('ZRANGEBYSCORE', deadlines_key, '-inf', math.floor(now / TICK), 'LIMIT', 0, 1000)
for _, tick in ipairs(ticks) do
  local names = redis.pcall('SPOP', due_key(tick), left)
  if names.err then
    failed(names)
    names = {}
  end
  if #names < left then redis.call('ZREM', deadlines_key, tick) end
  for _, name in ipairs(names) do
    local good, message = pcall(look, name)
    if not good then mend(name, message) end
  end
  left = left - #names
  if left == 0 then break end
end
return {ended_views, ARGV[2] - left, bad, why}
