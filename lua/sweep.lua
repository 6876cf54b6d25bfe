-- sweep: ends the views of one partition whose deadline has passed, and forgets what is past its use.
-- KEYS[1] deadlines  zset: the ticks (quarters of a second) at which some account is due
-- KEYS[2] outbox     stream of events
-- ARGV[1] now            ms, or '' for the server's clock
-- ARGV[2] batch          accounts to look at, at most
-- ARGV[3] tuning         see lib/tuning.lua
-- RETURNS {ended, looked}: views ended, accounts looked at; call again while looked = batch

-- @include clock
local deadlines_key, outbox_key = KEYS[1], KEYS[2]
local account, leases_key
-- @include tuning record account view

local server_now, ended_views = now, 0
local left = tonumber(ARGV[2])

local function look(name)
  account, leases_key, now = name, base .. 'leases:' .. name, server_now
  load()
  ended_views = ended_views + reap({})
  for _, r in pairs(records) do
    if r.status ~= 'r' and due(r) <= now then forget(r) end
  end
  settle(true)
end

local ticks = redis.call('ZRANGEBYSCORE', deadlines_key, '-inf', math.floor(now / TICK), 'LIMIT', 0, 1000)
for _, tick in ipairs(ticks) do
  local names = redis.call('SPOP', due_key(tick), left)
  if #names < left then redis.call('ZREM', deadlines_key, tick) end
  for _, name in ipairs(names) do look(name) end
  left = left - #names
  if left == 0 then break end
end
return {ended_views, ARGV[2] - left}
